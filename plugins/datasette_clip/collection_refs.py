"""Finds the collections that a client may see and search: each a database and a collection in it."""

from __future__ import annotations

import logging
import sqlite3
from dataclasses import dataclass
from functools import partial

from datasette.utils import tilde_decode
from datasette.utils.asgi import Forbidden, NotFound

from clip_collections.collection import Collection
from datasette_guard import ensure_instance, may, may_view_table
from llm_clip_onnx import models
from llm_clip_onnx.errors import ClipError, cited, shortened

from .config import Config, config_of
from .paths import search_path
from .sql.search import collection_names, open_collection

LLM_TABLES = ("collections", "embeddings")  # whose rows are llm's collections
INTERNAL_PREFIX, MIGRATIONS = "clip_", "_sqlite_migrations"  # tables of llm clip index, and of llm
log = logging.getLogger("datasette_clip")


@dataclass(frozen=True)
class CollectionRef:
    """A database and a collection in it that the client may see."""

    database: str
    collection: Collection


async def visible_collection(datasette, request) -> CollectionRef:
    """The collection that a URL names. Raises NotFound if there is none, Forbidden if the client may not see it."""
    await ensure_instance(datasette, request)
    database, name = (tilde_decode(request.url_vars[part]) for part in ("database", "collection"))
    return await named_collection(datasette, request.actor, database, name)


async def named_collection(datasette, actor, database: str, name: str) -> CollectionRef:
    """The collection of this name. Raises NotFound if there is none, Forbidden if the actor may not see it."""
    if database not in datasette.databases or database == "_internal":
        raise NotFound(f"there is no database {cited(database)}")
    if not await may(datasette, actor, "view-database", database):
        raise Forbidden("view-database")
    if name not in config_of(datasette).collections.get(database, {}):  # before the answer tells if there is one
        for table in LLM_TABLES:
            if not await may_view_table(datasette, actor, database, table):
                raise Forbidden("view-table")

    def open_named(conn):
        try:
            return open_collection(conn, config_of(datasette), database, name)
        except (ClipError, sqlite3.Error) as error:
            log.warning("%s: %s", shortened(database), error)
            raise NotFound(f"there is no collection {cited(name)} in database {cited(database)}") from error

    collection = await datasette.get_database(database).execute_fn(open_named)
    if not await may_view(datasette, actor, database, collection):
        raise Forbidden("view-table")
    return CollectionRef(database, collection)


async def searchable_collections(datasette, actor, within: str | None = None) -> list[dict[str, str]]:
    """The collections that an actor may search, in all databases or within one: database, table, name, model, path.

    The model is "" if it is not known.
    """
    return [
        {
            "database": ref.database,
            "table": ref.collection.table,
            "name": ref.collection.name,
            "model": ref.collection.model or "",
            "path": search_path(datasette, ref.database, ref.collection.name),
        }
        for ref in await searchable_refs(datasette, actor, within)
    ]


async def searchable_refs(datasette, actor, within: str | None = None) -> list[CollectionRef]:
    """The collections that an actor may search, in all databases or within one."""
    refs = []
    for database in [name for name in datasette.databases if name != "_internal" and within in (None, name)]:
        if not await may(datasette, actor, "view-database", database):
            continue
        read = partial(collections_of_model, config=config_of(datasette), database=database)
        for collection in await datasette.get_database(database).execute_fn(read):
            if await may_view(datasette, actor, database, collection):
                refs.append(CollectionRef(database, collection))
    return refs


async def may_view(datasette, actor, database: str, collection: Collection) -> bool:
    """True if an actor may view the tables that a search of a collection reads."""
    tables = LLM_TABLES if collection.condition else (collection.table,)
    return all([await may_view_table(datasette, actor, database, table) for table in tables])


def collections_of_model(conn, config: Config, database: str) -> list[Collection]:
    """The collections of a database whose vectors may be of our models."""
    collections, ours = [], models.directories()
    for name in collection_names(conn, config, database):
        try:
            collection = open_collection(conn, config, database, name)
        except (ClipError, sqlite3.Error):
            continue  # a search of it says why
        if collection.model in (None, *ours) and collection.embed_dim:
            collections.append(collection)
    return collections


def is_internal(datasette, database: str, table: str) -> bool:
    """True for a table that lists of tables hide: one that `llm clip index` or llm keeps for itself."""
    configured = config_of(datasette).collections.get(database, {}).values()
    is_collection = any(collection.get("table") == table for collection in configured)
    return (table == MIGRATIONS or table.startswith(INTERNAL_PREFIX)) and not is_collection
