"""Defines an `llm` embedding model for each model here, and llm-clip's own as `llm-clip` if that is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click
import llm

from . import MODEL_ID, models
from .errors import ClipError, InputError


class ClipModel(llm.EmbeddingModel):
    """A model of CLIP_MODEL_DIR, by its id. One for the process, although `llm` asks on each call."""

    supports_text = True
    supports_binary = True

    def __init__(self, model_id: str = MODEL_ID) -> None:
        self.model_id = model_id

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Embed str as text and bytes as images, in their order: lists of embed_dim floats, not normalised.

        Raises InputError naming the position, in this batch, of the first item that cannot be embedded, and
        ModelDirError; on `llm`'s command line both end the command with their sentence.
        """
        try:
            yield from self._embeddings(items)
        except ClipError as error:
            if click.get_current_context(silent=True):
                raise click.ClickException(f"{self.model_id}: {error}") from error
            raise

    def _embeddings(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        from .engine import engine_of
        from .images.limits import OWN_MACHINE, SERVER

        engine = engine_of(self.model_id, OWN_MACHINE if is_llm_command() else SERVER)
        for position, item in enumerate(items):
            try:
                yield engine.embed_item(item).tolist()
            except InputError as error:
                raise InputError(f"items[{position}] of this batch: {error}") from error


def is_llm_command() -> bool:
    """True in a command of `llm`, such as `llm embed`; False in a server, whatever command has started it."""
    from llm.cli import cli

    context = click.get_current_context(silent=True)
    return context is not None and context.find_root().command is cli


CLIP = ClipModel()
_models = {MODEL_ID: CLIP}
_reference: list[llm.EmbeddingModel] = []


def model_of(model_id: str) -> ClipModel:
    """The one `llm` model of this process with this id."""
    return _models.setdefault(model_id, ClipModel(model_id))


def registered_models() -> list[ClipModel]:
    """A model for each id here, those that two directories have among them: called, they say so."""
    return [model_of(id) for id in models.directories()]


def reference_model() -> llm.EmbeddingModel | None:
    """llm-clip's own model, one for the process, under the id `llm-clip`; None where llm-clip is not installed."""
    if "llm_clip" in sys.modules and not _reference:
        model = sys.modules["llm_clip"].ClipEmbeddingModel()
        model.model_id = "llm-clip"
        _reference.append(model)
    return _reference[0] if _reference else None
