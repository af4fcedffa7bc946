"""The SQL functions: llm_embed and its family, whose names and results are datasette-llm-embed's, and clip_image,
clip_classify and clip_similarity.

NULL in gives NULL out; misuse raises, which Datasette shows as HTTP 400, and the sentence, which SQLite hides, goes to
the log.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx import MODEL_ID, vectors
from llm_clip_onnx.errors import InputError, VectorError
from llm_clip_onnx.lazy import Lazy

from .. import image_strings
from ..config import PLUGIN, Config
from ..image_strings import is_image
from ..labels import classifier_of, matches_as_json

if TYPE_CHECKING:
    import llm  # 0.1 s of CPU, which Datasette's start has no need of

log = logging.getLogger("datasette_clip")


_other_models: dict[str, Lazy[llm.EmbeddingModel]] = {}


def other_model(model_id: str, keys: dict[str, str]) -> llm.EmbeddingModel:
    """An allowed `llm` model beside ours, opened once for the whole process, with its configured key."""
    import llm

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
    check_model(config, model_id)
    check_text(config, item)
    if model_id == MODEL_ID:
        return vectors.to_blob(default_engine().embed_item(item))
    return vectors.to_blob(np.asarray(other_model(model_id, config.keys).embed(item), np.float32))


def check_model(config: Config, model_id: str) -> None:
    """Raises InputError for a model that is not on the list of those that visitors may call."""
    if model_id not in config.models:
        raise InputError(f"model {model_id!r} is not on the list plugins.{PLUGIN}.models, {list(config.models)}")


def check_text(config: Config, item: object) -> None:
    """Raises InputError for a text that is longer than is accepted."""
    if isinstance(item, str) and (size := len(item.encode(errors="replace"))) > config.limits.text_bytes:
        raise InputError(
            f"text of {size} bytes; at most {config.limits.text_bytes} are accepted "
            f"(plugins.{PLUGIN}.limits.text_bytes)"
        )


def clip_image(text: str | None) -> bytes | None:
    """The image bytes that a string holds, for llm_embed and clip_classify: see image_strings. Raises InputError."""
    from llm_clip_onnx.images.preprocess import open_image

    if text is None:
        return None
    blob = image_strings.bytes_of(text)
    open_image(blob)
    return blob


def embedding_of(config: Config, item: str | bytes) -> NDArray[np.float32]:
    """The embedding [embed_dim] of a text, of an image in a BLOB, or that a vector blob of this model holds.

    Raises InputError for what is none of these.
    """
    from llm_clip_onnx.engine import default_engine

    engine, vector_bytes = default_engine(), 4 * default_engine().manifest.embed_dim
    check_text(config, item)
    if isinstance(item, bytes) and len(item) == vector_bytes and not is_image(item):
        return vectors.from_blob(item)
    try:
        return engine.embed_item(item)
    except InputError as error:
        if isinstance(item, bytes) and not is_image(item):
            raise InputError(f"{error}, or a vector blob of this model, {vector_bytes} bytes") from error
        raise


def clip_similarity(config: Config, a: str | bytes | None, b: str | bytes | None) -> float | None:
    """Cosine of any two of texts, images and vector blobs, -1 to 1. Raises InputError and VectorError."""
    if a is None or b is None:
        return None
    check_model(config, MODEL_ID)
    return vectors.cosine(embedding_of(config, a), embedding_of(config, b))


def clip_classify(config: Config, item: bytes | None, labels: str | None, k: int | None = 5) -> str | None:
    """The k labels that fit an image or a vector blob best, as JSON: [{"label", "probability", "cosine"}...].

    labels: the name of a label set, or a JSON list of labels. Raises InputError, VectorError and ModelDirError.
    """
    from llm_clip_onnx import zero_shot
    from llm_clip_onnx.engine import default_engine

    if item is None or labels is None or k is None:
        return None
    check_model(config, MODEL_ID)
    if not isinstance(item, bytes):
        raise InputError(
            f"{type(item).__name__} is neither an image nor a vector; expected a BLOB, as clip_image() makes of strings"
        )
    if not isinstance(k, int):
        raise InputError(f"k is {k!r}; expected a whole number from 1, of the labels to answer")
    engine = default_engine()
    classifier = classifier_of(engine, config.limits, labels)
    matches = zero_shot.classify(classifier, embedding_of(config, item), engine.manifest.logit_scale, k)
    return json.dumps(matches_as_json(matches), ensure_ascii=False)


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
    functions: list[tuple[str, int, Callable]] = [
        ("llm_embed", 2, functools.partial(llm_embed, config)),
        ("llm_embed_cosine", 2, llm_embed_cosine),
        ("llm_embed_decode", 1, llm_embed_decode),
        ("clip_image", 1, clip_image),
        ("clip_similarity", 2, functools.partial(clip_similarity, config)),
        ("clip_classify", 2, functools.partial(clip_classify, config)),
        ("clip_classify", 3, functools.partial(clip_classify, config)),
    ]
    for name, arguments, function in functions:
        conn.create_function(name, arguments, logged(name, function), deterministic=True)
    conn.create_aggregate("llm_embed_average", 1, LoggedAverage)
