"""Answers /-/clip/health: if texts can be embedded, else the sentence why not."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from datasette.utils.asgi import Response

from llm_clip_onnx import models
from llm_clip_onnx.errors import ClipError

from ..config import config_of
from ..model import default_model, manifest_of, open_text, text_opening, unopenable, was_open

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine


async def health(datasette) -> Response:
    """200 if the model is ready, else 503 and the sentence why not. Needs no permission, and keeps no server awake."""
    why_not = await why_not_ready(datasette)
    content = {"ok": why_not is None, "error": why_not, "status": 503 if why_not else 200}
    return Response.json(content, status=content["status"])


async def why_not_ready(datasette) -> str | None:
    """The sentence why no text can be embedded, None if it can."""
    if text_opening().done():
        return await asyncio.to_thread(why_no_text, default_model(config_of(datasette)))
    return "the text tower is being opened"


def why_no_text(model_id: str) -> str | None:
    """The sentence why a model embeds no text, None if it does, also if its tower was closed to make room for another.

    To ask is no use of the model. One that could not be opened is tried again, because it may have been baked since.
    """
    with suppress(ClipError, ImportError):
        engine = known_engine(models.path_of(model_id))
        if engine and engine in was_open and engine not in unopenable["text"] and is_as_it_was(engine):
            return None
    return open_text(model_id)


def is_as_it_was(engine: Engine) -> bool:
    """True if a model's text tower is open, or its directory is still the one that it was opened from."""
    if "text" in engine.open_towers:
        return True
    files = [engine.path / name for name in engine.manifest.files if name.startswith("text")]
    return manifest_of(engine.path) == engine.manifest and all(file.is_file() for file in files)


def known_engine(directory: Path) -> Engine | None:
    """The engine of a model directory if this process has one. It stays as recently used as it was."""
    from llm_clip_onnx.engine import engine_if_known  # here: as in get_engine

    return engine_if_known(directory)
