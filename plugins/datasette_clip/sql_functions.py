"""The SQL functions llm_embed, llm_embed_cosine, llm_embed_decode and llm_embed_average.

Names and results are datasette-llm-embed's. NULL in gives NULL out; misuse raises, which Datasette shows as HTTP 400,
and the sentence, which SQLite hides, goes to the log.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable

import llm
import numpy as np

from llm_clip_onnx import CLIP, vectors
from llm_clip_onnx.errors import InputError, VectorError
from llm_clip_onnx.lazy import Lazy

from .config import PLUGIN, Config

log = logging.getLogger("datasette_clip")


_other_models: dict[str, Lazy[llm.EmbeddingModel]] = {}


def other_model(model_id: str, keys: dict[str, str]) -> llm.EmbeddingModel:
    """An allowed `llm` model beside ours, opened once for the whole process, with its configured key."""

    def open_it() -> llm.EmbeddingModel:
        model = llm.get_embedding_model(model_id)
        model.key = keys.get(model.model_id, model.key)
        return model

    return _other_models.setdefault(model_id, Lazy(open_it)).get()


def llm_embed(config: Config, model_id: str | None, item: str | bytes | None) -> bytes | None:
    """The vector blob of a text, or of an image in a BLOB.

    Raises InputError for a model that SQL may not call and an item that cannot be embedded, and ModelDirError.
    """
    from llm_clip_onnx.engine import default_engine  # imports onnxruntime, which Datasette's start does not wait for

    if model_id is None or item is None:
        return None
    if model_id not in config.models:
        raise InputError(f"model {model_id!r} is not on the list plugins.{PLUGIN}.models, {list(config.models)}")
    if isinstance(item, str) and (size := len(item.encode(errors="replace"))) > config.limits.text_bytes:
        raise InputError(
            f"text of {size} bytes; at most {config.limits.text_bytes} are accepted "
            f"(plugins.{PLUGIN}.limits.text_bytes)"
        )
    if model_id == CLIP.model_id:
        return vectors.to_blob(default_engine().embed_item(item))
    return vectors.to_blob(np.asarray(other_model(model_id, config.keys).embed(item), np.float32))


def llm_embed_cosine(a: bytes | None, b: bytes | None) -> float | None:
    """Cosine of two vector blobs, -1 to 1. Raises VectorError for vectors of two sizes and for what is none."""
    if a is None or b is None:
        return None
    return vectors.cosine(vectors.from_blob(a), vectors.from_blob(b))


def llm_embed_decode(blob: bytes | None) -> str | None:
    """A vector blob as a JSON list of numbers. Raises VectorError for what is none, or holds what JSON cannot."""
    if blob is None:
        return None
    embedding = vectors.from_blob(blob)
    if not np.isfinite(embedding).all():
        raise VectorError("a vector with infinities or NaN cannot be written as JSON")
    return json.dumps(embedding.tolist())


class LlmEmbedAverage:
    """The mean of vector blobs, as a vector blob: NULLs are left out, and NULL comes back where there is nothing else.

    Raises VectorError for vectors of two sizes and for what is none.
    """

    def __init__(self) -> None:
        self._average = vectors.Average()

    def step(self, blob: bytes | None) -> None:
        if blob is not None:
            self._average.add(vectors.from_blob(blob))

    def finalize(self) -> bytes | None:
        mean = self._average.mean()
        return None if mean is None else vectors.to_blob(mean)


def logged(name: str, function: Callable) -> Callable:
    """`function`, whose exceptions leave their sentence in the log on their way to SQLite, which would lose it."""

    @functools.wraps(function, updated=())
    def logging_function(*arguments):
        try:
            return function(*arguments)
        except Exception as error:
            log.warning("%s: %s", name, error)
            raise

    return logging_function


class LoggedAverage(LlmEmbedAverage):
    step = logged("llm_embed_average", LlmEmbedAverage.step)


def register(conn, config: Config) -> None:
    """Put the functions on a SQLite connection, in place of datasette-llm-embed's, all deterministic.

    So `order by llm_embed_cosine(embedding, llm_embed('clip', :q))` embeds once, not once a row.
    """
    functions: dict[str, tuple[int, Callable]] = {
        "llm_embed": (2, functools.partial(llm_embed, config)),
        "llm_embed_cosine": (2, llm_embed_cosine),
        "llm_embed_decode": (1, llm_embed_decode),
    }
    for name, (arguments, function) in functions.items():
        conn.create_function(name, arguments, logged(name, function), deterministic=True)
    conn.create_aggregate("llm_embed_average", 1, LoggedAverage)
