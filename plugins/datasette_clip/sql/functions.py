"""Defines the SQL functions of the model: llm_embed and its family, clip_image, clip_classify and clip_similarity.

The names and results of llm_embed and its family are those of datasette-llm-embed.

NULL in gives NULL out. Misuse raises, which Datasette answers with HTTP 400 and the sentence (see datasette_guard). All
exceptions are logged as well.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datasette_guard import with_sentence
from llm_clip_onnx import MODEL_ID, models, vectors
from llm_clip_onnx.errors import ClipError, InputError, VectorError, cited
from llm_clip_onnx.images.signatures import format_of
from llm_clip_onnx.lazy import Lazy

from ..config import Config
from ..items import bytes_of, check_text, is_image
from ..labels import classifier_of, is_json_list, matches_json
from ..model import TowerClosed, check_model, default_model, get_engine, need_tower, permitted_engine

if TYPE_CHECKING:
    import llm  # 0.1 s of CPU, which Datasette's start does not need

    from llm_clip_onnx.engine import Engine

log = logging.getLogger("datasette_clip")
FOR_CLIENTS = (ClipError, ImportError)  # exceptions whose sentence the client reads


_other_models: dict[str, Lazy[llm.EmbeddingModel]] = {}


def other_model(model_id: str, keys: dict[str, str]) -> llm.EmbeddingModel:
    """Another `llm` model that SQL may call, opened once for the whole process, with its configured key."""
    import llm

    def open_model() -> llm.EmbeddingModel:
        model = llm.get_embedding_model(model_id)
        model.key = keys.get(model.model_id, model.key)
        return model

    return _other_models.setdefault(model_id, Lazy(open_model)).get()


def llm_embed(config: Config, model_id: str | None, item: str | bytes | None) -> bytes | None:
    """The vector blob of a text, or of an image in a BLOB.

    Raises InputError for a model that SQL may not call and an item that cannot be embedded, and ModelDirError.
    """
    if model_id is None or item is None:
        return None
    check_model(config, model_id)
    check_text(config, item)
    if model_id == MODEL_ID or models.is_here(model_id):
        return vectors.to_blob(embed_outside_clock(get_engine(model_id), item))
    return vectors.to_blob(np.asarray(other_model(model_id, config.keys).embed(item), np.float32))


def clip_image(text: str | None) -> bytes | None:
    """The image bytes in a string (see `bytes_of`), for llm_embed and clip_classify. Raises InputError."""
    from llm_clip_onnx.images.preprocess import open_image

    if text is None:
        return None
    blob = bytes_of(text)
    open_image(blob)
    return blob


def embed_outside_clock(engine: Engine, item: str | bytes, orient: str | None = None) -> NDArray[np.float32]:
    """The embedding [embed_dim] of a text or an image. `orient` is as in Engine.embed_images.

    Raises InputError, ModelDirError, and TowerClosed if a tower is to be opened outside SQL's clock first.
    """
    if isinstance(item, str):
        need_tower(engine, "text")
    elif isinstance(item, bytes) and format_of(item) is not None:
        need_tower(engine, "image")
    return engine.embed_item(item, orient)


def embedding_of_value(
    config: Config, engine: Engine, item: str | bytes, orient: str | None = None
) -> NDArray[np.float32]:
    """The embedding [embed_dim] of an SQL value: a text, a BLOB with an image, or a vector blob of this model.

    Raises InputError for any other value, and as embed_outside_clock.
    """
    vector_bytes = 4 * engine.manifest.embed_dim
    check_text(config, item)
    if isinstance(item, bytes) and len(item) == vector_bytes and not is_image(item):
        return vectors.from_blob(item)
    try:
        return embed_outside_clock(engine, item, orient)
    except InputError as error:
        if isinstance(item, bytes) and format_of(item) is None:
            raise InputError(f"{error}, or a vector blob of this model, {vector_bytes} bytes") from error
        raise


def clip_similarity(
    config: Config, a: str | bytes | None, b: str | bytes | None, model_id: str | None = ""
) -> float | None:
    """Cosine of any two of texts, images and vector blobs, -1 to 1. Raises InputError and VectorError."""
    if a is None or b is None or model_id is None:
        return None
    engine = permitted_engine(config, model_id or default_model(config))
    return vectors.cosine(embedding_of_value(config, engine, a), embedding_of_value(config, engine, b))


def clip_classify(
    config: Config, item: bytes | None, labels: str | None, k: int | None = 5, model_id: str | None = ""
) -> str | None:
    """The k labels that fit an image or a vector blob best, as JSON: [{"label", "probability", "cosine"}...].

    labels: the name of a label set, or a JSON list of labels. Raises InputError, VectorError and ModelDirError.
    """
    if item is None or labels is None or k is None or model_id is None:
        return None
    model_id = model_id or default_model(config)
    check_model(config, model_id)
    if not isinstance(item, bytes):
        raise InputError(
            f"{type(item).__name__} is neither an image nor a vector; expected a BLOB, as clip_image() makes of strings"
        )
    if not isinstance(number := number_of(k), int):
        raise InputError(f"k is {cited(k)}; expected a whole number from 1, of the labels to answer")
    engine = get_engine(model_id)
    if is_json_list(labels):
        need_tower(engine, "text")
    classifier = classifier_of(engine, config.limits, labels)
    embedding = embedding_of_value(config, engine, item)
    matches = engine.classify(classifier, embedding, number)
    return json.dumps(matches_json(matches, engine.manifest.scores), ensure_ascii=False)


def number_of(value: object) -> object:
    """The whole number that digits say, because Datasette binds the fields of a URL as texts; else the value itself."""
    is_number = isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10
    return int(value) if is_number else value  # type: ignore[call-overload]


def llm_embed_cosine(a: bytes | None, b: bytes | None) -> float | None:
    """Cosine of two vector blobs, -1 to 1. Raises VectorError for two sizes, and for a value that is no vector blob."""
    if a is None or b is None:
        return None
    return vectors.cosine(vectors.from_blob(a), vectors.from_blob(b))


def llm_embed_decode(blob: bytes | None) -> str | None:
    """A vector blob as a JSON list of numbers. Raises VectorError for any other value, and for infinities and NaN."""
    if blob is None:
        return None
    embedding = vectors.from_blob(blob)
    if not np.isfinite(embedding).all():
        raise VectorError("a vector with infinities or NaN cannot be written as JSON")
    return json.dumps(embedding.tolist())


class LlmEmbedAverage:
    """The mean of vector blobs, as a vector blob. It ignores NULLs and is NULL if there is nothing else.

    Raises VectorError for vectors of two sizes, and for a value that is no vector blob.
    """

    def __init__(self) -> None:
        self._average = vectors.Average()

    def step(self, blob: bytes | None) -> None:
        if blob is not None:
            self._average.add(vectors.from_blob(blob))

    def finalize(self) -> bytes | None:
        mean = self._average.mean()
        return None if mean is None else vectors.to_blob(mean)


def public(name: str, function: Callable) -> Callable:
    """`function` as an SQL function of this name. The log, and the client if it may, get its exceptions' sentences."""

    @functools.wraps(function, updated=())
    def logging_function(*arguments):
        try:
            return function(*arguments)
        except TowerClosed:
            raise  # no misuse: the request runs again
        except Exception as error:
            log.warning("%s: %s", name, error)
            raise

    return with_sentence(name, logging_function, FOR_CLIENTS)


class PublicAverage(LlmEmbedAverage):
    step = public("llm_embed_average", LlmEmbedAverage.step)


def register(conn, config: Config) -> None:
    """Add the functions to a SQLite connection. They replace datasette-llm-embed's.

    All are deterministic, so that `order by llm_embed_cosine(embedding, llm_embed('clip', :q))` embeds once a query.
    """
    functions: list[tuple[str, int, Callable]] = [
        ("llm_embed", 2, functools.partial(llm_embed, config)),
        ("llm_embed_cosine", 2, llm_embed_cosine),
        ("llm_embed_decode", 1, llm_embed_decode),
        ("clip_image", 1, clip_image),
        ("clip_similarity", 2, functools.partial(clip_similarity, config)),
        ("clip_classify", 2, functools.partial(clip_classify, config)),
        ("clip_similarity", 3, functools.partial(clip_similarity, config)),
        ("clip_classify", 3, functools.partial(clip_classify, config)),
        ("clip_classify", 4, functools.partial(clip_classify, config)),
    ]
    for name, arguments, function in functions:
        conn.create_function(name, arguments, public(name, function), deterministic=True)
    conn.create_aggregate("llm_embed_average", 1, PublicAverage)
