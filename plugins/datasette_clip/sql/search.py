"""Searching a collection: from what was asked, by way of one unit embedding, to the rows most like it.

For SQL, where all of it runs on the connection that runs the query, and for search_views.py, which embeds elsewhere.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils import sqlite_timelimit
from numpy.typing import NDArray

from clip_collections import collection, query, search
from clip_collections.collection import Collection
from clip_collections.query import Term
from llm_clip_onnx import MODEL_ID, vectors
from llm_clip_onnx.errors import InputError, VectorError

from .. import image_strings
from ..config import Config, config_of
from ..labels import DIGITS
from .functions import check_model, check_text, embedding_of, logged

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine  # imports onnxruntime, which Datasette's start does not wait for

K = 20
MAX_K = 1000


def open_collection(conn, config: Config, database: str, name: str) -> Collection:
    """A collection of a database, by llm's tables or by plugins.datasette-clip.collections. Raises InputError."""
    configured = config.collections.get(database, {})
    if name in configured:
        return collection.configured(conn, name, configured[name])
    return collection.open_collection(conn, name)


def names_of(conn, config: Config, database: str) -> list[str]:
    """Names of the collections of a database."""
    return sorted({*config.collections.get(database, {}), *collection.names_of(conn)})


def stored(conn, of: Collection, terms: Sequence[Term]) -> dict[Term, NDArray[np.float32]]:
    """The stored embeddings that a query names by id. Raises InputError for an id that there is none of."""
    return {term: search.vector_of(conn, of, term.value) for term in terms if term.kind == "id"}


def embedded(
    engine: Engine, config: Config, terms: Sequence[Term], known: Mapping[Term, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """The unit embedding [embed_dim] of a query, of whose terms some are known. Raises InputError and VectorError."""

    def embedding(term: Term) -> NDArray[np.float32]:
        if term in known:
            return known[term]
        if term.kind == "text":
            check_text(config, term.value)
            return engine.embed_text([term.value])[0]
        content = image_strings.bytes_of(term.value)
        if term.kind == "image":
            return engine.embed_item(content)
        found = vectors.from_blob(content)
        if found.size != engine.manifest.embed_dim:
            raise VectorError(f"{found.size} dimensions; vectors of this model have {engine.manifest.embed_dim}")
        return found

    return query.combined(terms, embedding)


def clip_search(datasette, database: str, name: str | None, asked: str | bytes | None, k: int | None = K) -> str | None:
    """The k rows of a collection most like a query, as JSON: [{"id", "score", "rowid"}...], the best first.

    asked: a query (see query.py), or a BLOB, which is an image or a vector blob. Raises InputError, VectorError and
    ModelDirError.
    """
    from llm_clip_onnx.engine import default_engine

    config = config_of(datasette)
    if name is None or asked is None or k is None:
        return None
    check_model(config, MODEL_ID)
    check_k(k)
    engine, conn = default_engine(), connection_of(datasette, database)
    with sqlite_timelimit(conn, datasette.setting("sql_time_limit_ms")):
        of = open_collection(conn, config, database, name)
        collection.check_model(of, MODEL_ID, engine.manifest.embed_dim)
        if isinstance(asked, bytes):
            embedding = embedding_of(config, asked)
        else:
            terms = query.parse(str(asked))
            embedding = embedded(engine, config, terms, stored(conn, of, terms))
        hits = search.search(conn, of, embedding, k)
    return json.dumps([hit_as_json(hit) for hit in hits], ensure_ascii=False)


def hit_as_json(hit: search.Hit) -> dict:
    return {"id": plain(hit.id), "score": round(hit.score, DIGITS), "rowid": hit.rowid}


def plain(value: object) -> object:
    """A value as JSON can have it: bytes as Datasette writes them."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    return value


def connection_of(datasette, database: str):
    """A connection of this thread to a database, for SQL functions: one that held its own would never be freed."""
    known = datasette.__dict__.setdefault("_clip_connections", threading.local()).__dict__
    if database not in known:
        known[database] = datasette.get_database(database).connect()
        known[database].text_factory = lambda text: str(text, "utf-8", "replace")  # as Datasette's own have it
    return known[database]


def register(conn, datasette, database: str) -> None:
    """Put clip_search on a SQLite connection to a database."""
    function = logged("clip_search", partial(clip_search, datasette, database))
    for arguments in (2, 3):
        conn.create_function("clip_search", arguments, function, deterministic=True)


def check_k(k: object) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MAX_K:
        raise InputError(f"k is {k!r}; expected a whole number from 1 to {MAX_K}, of the rows to answer")
