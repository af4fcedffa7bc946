"""Defines the SQL function clip_search, and two steps for api/search.py: to open a collection and to embed a query.

In SQL all of it runs in the thread of the query; api/search.py embeds in threads of its own.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils import sqlite_timelimit
from numpy.typing import NDArray

from clip_collections import collection, query, search
from clip_collections.collection import Collection
from clip_collections.query import Term
from datasette_guard import connect, per_datasette
from llm_clip_onnx import models, vectors
from llm_clip_onnx.errors import InputError, cited

from ..config import Config, config_of
from ..items import bytes_of, check_text
from ..labels import DIGITS
from ..model import default_model, get_engine, manifests_of, model_choices, own_models, permitted_engine
from .functions import embed_outside_clock, embedding_of_value, number_of, public

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.model_dir import Manifest

K = 20
MAX_K = 1000


def open_collection(conn, config: Config, database: str, name: str) -> Collection:
    """The collection of this name, by plugins.datasette-clip.collections, else by llm's tables. Raises InputError."""
    configured = config.collections.get(database, {})
    if name in configured:
        return collection.table_collection(conn, name, configured[name])
    if name not in collection.llm_collection_names(conn):  # without the names of others, which may be private
        raise InputError(f"there is no collection {cited(name)} in this database")
    return collection.open_collection(conn, name)


def collection_names(conn, config: Config, database: str) -> list[str]:
    """Names of the collections of a database, sorted."""
    return sorted({*config.collections.get(database, {}), *collection.llm_collection_names(conn)})


def collection_engine(config: Config, of: Collection, asked: str = "") -> tuple[str, Engine]:
    """The id and the engine of the model that embeds queries for a collection: its own, or `asked` if that may.

    A collection whose model is not known has the default one. Raises InputError for a model that is not here or may not
    be called, and for one whose vectors cannot be compared with the collection's; and as get_engine.
    """
    own = of.model or default_model(config)
    if not models.is_here(own):
        raise InputError(
            f"collection {cited(of.name)} holds vectors of model {cited(own)}, which is not here; "
            + models.listed(own_models(config))
        )
    if asked in ("", own):
        return own, checked_engine(of, own, permitted_engine(config, own))
    engine = permitted_engine(config, asked)
    if not models.exchangeable(get_engine(own).manifest, engine.manifest):
        raise InputError(collection.incomparable(of.name, own, asked))
    return asked, checked_engine(of, own, engine)


def exchangeable_models(config: Config, of: Collection) -> list[str]:
    """The ids of the models that may embed queries for a collection, its own first; [] if no other one may."""
    own, choices = of.model or default_model(config), model_choices(config)
    others = exchangeable_with(own, manifests_of(choices)) if own in choices else []
    return [own, *others] if others else []


def exchangeable_with(model_id: str, manifests: Mapping[str, Manifest]) -> list[str]:
    """The ids of the other models whose vectors can be compared with a model's; [] if its manifest is not there."""
    if (own := manifests.get(model_id)) is None:
        return []
    return [id for id, other in manifests.items() if id != model_id and models.exchangeable(own, other)]


def checked_engine(of: Collection, own: str, engine: Engine) -> Engine:
    """The engine, after a check that its vectors have the size of the collection's. Raises VectorError."""
    collection.check_model(of, own, engine.manifest.embed_dim)
    return engine


def read_stored(conn, of: Collection, terms: Sequence[Term]) -> dict[Term, NDArray[np.float32]]:
    """The stored embeddings of a query's terms of kind id. Raises InputError for an id that the collection lacks."""
    return {term: search.stored_vector(conn, of, str(term.value)) for term in terms if term.kind == "id"}


def embed_query(
    engine: Engine,
    config: Config,
    terms: Sequence[Term],
    stored: Mapping[Term, NDArray[np.float32]],
    embed_item: Callable[[str | bytes], NDArray[np.float32]],
) -> NDArray[np.float32]:
    """The unit embedding [embed_dim] of a query, with the stored embeddings of its terms of kind id.

    Raises InputError, VectorError, and what `embed_item` raises for a text or an image.
    """

    def embed_term(term: Term) -> NDArray[np.float32]:
        if term in stored:
            return stored[term]
        if term.kind == "text":
            check_text(config, term.value)
            return embed_item(term.value)
        content = term.value if isinstance(term.value, bytes) else bytes_of(term.value)
        if term.kind == "image":
            return embed_item(content)
        return vectors.from_blob(content, engine.manifest.embed_dim)

    return query.combine(terms, embed_term)


def clip_search(
    datasette,
    database: str,
    name: str | None,
    q: str | bytes | None,
    k: int | None = K,
    model_id: str | None = "",
) -> str | None:
    """The k rows of a collection most like a query, as JSON: [{"id", "score", "rowid"}...], the best first.

    q: a query (see clip_collections/query.py), or a BLOB with an image or a vector blob. model_id: as `asked` of
    collection_engine. Raises InputError, VectorError and ModelDirError.
    """
    config = config_of(datasette)
    if name is None or q is None or k is None or model_id is None:
        return None
    k, conn = checked_k(k), connection_of(datasette, database)
    with sqlite_timelimit(conn, datasette.setting("sql_time_limit_ms")):
        of = open_collection(conn, config, database, name)
        _, engine = collection_engine(config, of, model_id)
        if isinstance(q, bytes):
            embedding = embedding_of_value(config, engine, q, of.orient)
        else:
            terms = query.parse(str(q))
            embed_item = partial(embed_outside_clock, engine, orient=of.orient)
            embedding = embed_query(engine, config, terms, read_stored(conn, of, terms), embed_item)
        hits = search.search(conn, of, embedding, k)
    return json.dumps([hit_json(hit) for hit in hits], ensure_ascii=False)


def hit_json(hit: search.Hit) -> dict:
    return {"id": json_value(hit.id), "score": round(hit.score, DIGITS), "rowid": hit.rowid}


def json_value(value: object) -> object:
    """An SQL value in JSON, bytes as Datasette writes them."""
    if isinstance(value, bytes):
        return {"$base64": True, "encoded": base64.b64encode(value).decode()}
    return value


@per_datasette
def connections_of(datasette) -> threading.local:
    """The connections of SQL functions, as attributes by database. Each thread has its own."""
    return threading.local()


def connection_of(datasette, database: str):
    """This thread's connection to a database. A function that held the connection it is on would never be freed."""
    connections = connections_of(datasette).__dict__
    if database not in connections:
        connections[database] = connect(datasette, database)
        connections[database].text_factory = lambda text: str(text, "utf-8", "replace")  # as Datasette's own
    return connections[database]


def register(conn, datasette, database: str) -> None:
    """Add clip_search to a SQLite connection to a database."""
    function = public("clip_search", partial(clip_search, datasette, database))
    for arguments in (2, 3, 4):
        conn.create_function("clip_search", arguments, function, deterministic=True)


def checked_k(k: object) -> int:
    """The number k, which may be digits. Raises InputError for a k that is no whole number from 1 to MAX_K."""
    k = number_of(k)
    if not isinstance(k, int) or isinstance(k, bool) or not 0 < k <= MAX_K:
        raise InputError(f"k is {cited(k)}; expected a whole number from 1 to {MAX_K}, of the rows to answer")
    return k
