"""Finds the collection and the id of each row of a table page, and which rows have a thumbnail, once for a page.

Datasette renders cell by cell, each a query of its own. What one page has read is kept while it is rendered.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from clip_collections.collection import Id, columns_of, key_of, rows
from datasette_guard import may_view_table, per_datasette

from ..config import Config, config_of

KEPT_S = 1  # a page is rendered in less, and one that is loaded again asks again
AHEAD = 100  # rows after the first one of a page, in the order of Datasette's table pages


class Place(NamedTuple):
    """Where a cell stands: the name of its collection, None if it is in none, and the id of its row."""

    name: str | None
    id: str | int | None
    has_thumbnail: bool


@dataclass
class Page:
    """What was read for a page of a database, since `begun_s`.

    may_read_names: None if it was not asked. names: of llm's collections by their ids. keys: columns of ids by
    table and the configured column, which two columns of vectors of a table may have. thumbnails: by collection and id
    of a row, if it has one.
    """

    begun_s: float
    may_read_names: bool | None = None
    names: dict[Any, str | None] = field(default_factory=dict)
    keys: dict[tuple[str, str | None], str] = field(default_factory=dict)
    thumbnails: dict[tuple[str | None, Any], bool] = field(default_factory=dict)


@per_datasette
def pages(datasette) -> dict[str, Page]:
    """The last page by database."""
    return {}


def page_of(datasette, database: str) -> Page:
    """What was read for the page that is rendered now."""
    known, now_s = pages(datasette), time.monotonic()
    if database not in known or known[database].begun_s < now_s - KEPT_S:
        known[database] = Page(now_s)
    return known[database]


async def find_place(datasette, database: str, table: str, row, column: str) -> Place:
    """The collection and the id of a cell's row."""
    page, columns = page_of(datasette, database), {*row.keys()}
    name, settings = configured_for(config_of(datasette), database, table, column)
    if table == "embeddings" and {"collection_id", "id", "embedding"} <= columns:
        if not await may_anybody_read_names(datasette, database, page):
            return Place(None, row["id"], False)
        number, id_ = plain(row["collection_id"]), row["id"]
        if number not in page.names or (page.names[number], id_) not in page.thumbnails:
            await datasette.get_database(database).execute_fn(lambda conn: read_llms(conn, page, number, id_))
        name = page.names[number]
        return Place(name, id_, name is not None and page.thumbnails[name, id_])
    key = table, settings.get("id")
    if key not in page.keys:
        await datasette.get_database(database).execute_fn(lambda conn: read_key(conn, page, *key))
    id_ = plain(row[page.keys[key]]) if page.keys[key] in columns else None
    if name is not None and (name, id_) not in page.thumbnails:
        await datasette.get_database(database).execute_fn(lambda conn: read_thumbnails(conn, page, name, [id_]))
    return Place(name, id_, name is not None and page.thumbnails[name, id_])


async def may_anybody_read_names(datasette, database: str, page: Page) -> bool:
    """True if anybody may read the names of llm's collections: Datasette 0.65 does not tell who is looking."""
    if page.may_read_names is None:
        page.may_read_names = await may_view_table(datasette, None, database, "collections")
    return page.may_read_names


def read_llms(conn, page: Page, number: Any, id_: Any) -> None:
    """Read the name of llm's collection, and if a row of it has a thumbnail, into `page`.

    With the first row, those after it in the order of the primary key are read: a page is likely to show them.
    """
    if number not in page.names:
        named = rows(conn, "select name from main.collections where id = ?", [number])
        page.names[number] = named[0][0] if named and isinstance(named[0][0], str) else None
    if name := page.names[number]:
        after = "select id from main.embeddings where collection_id = ? and id > ? order by id limit ?"
        ahead = [] if page.thumbnails else rows(conn, after, [number, id_, AHEAD])
        read_thumbnails(conn, page, name, [id_, *(next_id for (next_id,) in ahead)])
    else:
        page.thumbnails[name, id_] = False


def read_key(conn, page: Page, table: str, configured: str | None) -> None:
    """Read the column of ids of a table into `page`. configured: that of the collection, where it says one."""
    page.keys[table, configured] = configured or key_of(columns_of(conn, table))


def read_thumbnails(conn, page: Page, name: str, ids: Iterable[Id | None]) -> None:
    """Read which rows of a collection have a thumbnail into `page`. One that is out of date is not shown by its URL."""
    ids = [*ids]
    found: dict[tuple[str | None, Any], bool] = {(name, id_): False for id_ in ids}
    if "row" in columns_of(conn, "clip_thumbnails"):
        among = ", ".join("?" * len(ids))
        sql = f"select id from main.clip_thumbnails where collection = ? and id in ({among}) and image is not null"
        found |= {(name, id_): True for (id_,) in rows(conn, sql, [name, *ids])}
    page.thumbnails |= found  # at once, because another cell may read it now


def configured_for(config: Config, database: str, table: str, column: str) -> tuple[str | None, dict]:
    """The name and settings of the collection with this column of vectors or images; None and {} if there is none."""
    for name, settings in config.collections.get(database, {}).items():
        if settings.get("table") == table and column in (settings.get("vector"), settings.get("image")):
            return name, settings
    return None, {}


def plain(value: Any) -> Any:
    """A value of a row. Datasette has replaced that of a foreign key by an object with its label."""
    return value.get("value") if isinstance(value, Mapping) else value
