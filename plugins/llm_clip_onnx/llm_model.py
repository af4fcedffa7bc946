"""Defines the `llm` embedding model `clip`, and llm-clip's own model as `llm-clip` if that plugin is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

import click
import llm

from . import MODEL_ID
from .errors import ClipError, InputError


class ClipModel(llm.EmbeddingModel):
    """CLIP, from the model directory of CLIP_MODEL_DIR. One for the process, although `llm` asks on each call."""

    model_id = MODEL_ID
    supports_text = True
    supports_binary = True

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        """Embed str as text and bytes as images, in their order: lists of embed_dim floats, not normalised.

        Raises InputError naming the position, in this batch, of the first item that cannot be embedded, and
        ModelDirError; on `llm`'s command line both end the command with their sentence.
        """
        try:
            yield from self._embeddings(items)
        except ClipError as error:
            if click.get_current_context(silent=True):
                raise click.ClickException(f"clip: {error}") from error
            raise

    def _embeddings(self, items: Iterable[str | bytes]) -> Iterator[list[float]]:
        from .engine import default_engine
        from .images.limits import OWN_MACHINE, SERVER

        engine = default_engine(OWN_MACHINE if is_llm_command() else SERVER)
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
_reference: list[llm.EmbeddingModel] = []


def reference_model() -> llm.EmbeddingModel | None:
    """llm-clip's own model, one for the process, under the id `llm-clip`; None where llm-clip is not installed."""
    if "llm_clip" in sys.modules and not _reference:
        model = sys.modules["llm_clip"].ClipEmbeddingModel()
        model.model_id = "llm-clip"
        _reference.append(model)
    return _reference[0] if _reference else None
