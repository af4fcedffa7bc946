"""Shows vectors and stored pictures in the cells of Datasette's table and row pages, with a link to similar rows."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode

import markupsafe

from clip_collections.collection import columns_of, key_of, rows
from clip_collections.query import Term, format_query
from datasette_guard import may_view_table, per_datasette

from ..api.thumbnail import FIRST_BYTES, MAX_STORED_BYTES, is_shown
from ..config import Config, config_of
from ..paths import search_path, thumbnail_path
from .like import LIKE_ID, is_vector_blob

KEPT_S = 1  # a page is rendered in less, and one that is loaded again asks again
PICTURE = '<img src="{}" alt="" width="48" height="48" loading="lazy" style="object-fit: cover">'


class Place(NamedTuple):
    """Where a cell stands: the name of its collection, None if it is in none, and the id of its row."""

    name: str | None
    id: str | int | None
    has_thumbnail: bool


def cell(datasette, database: str | None, table: str | None, row, column: str, value: object):
    """A function whose coroutine gives a cell's HTML; None for what is no vector and no picture of a table."""
    if not isinstance(value, bytes) or not table or not database:
        return None
    if is_shown(value[:FIRST_BYTES]):
        return lambda: picture_cell(datasette, database, table, row, column, value)
    return (lambda: vector_cell(datasette, database, table, row, column, value)) if is_vector_blob(value) else None


async def vector_cell(datasette, database: str, table: str, row, column: str, value: bytes):
    """A vector as the picture of its row, its size and a link to rows like it."""
    place = await find_place(datasette, database, table, row, column)
    size = markupsafe.Markup(f"{len(value) // 4} numbers")
    if place.id is None:
        return size
    if place.name:
        href = search_url(datasette, database, place.name, place.id)
    else:
        href = f"{datasette.urls.table(database, table)}?{urlencode(like_fields(row, place.id))}"
    picture = picture_of(datasette, database, place) if place.has_thumbnail else ""
    html = '<a class="clip-cell" href="{}">{}{} · more like this</a>'
    return markupsafe.Markup(html).format(href, picture, size)


async def picture_cell(datasette, database: str, table: str, row, column: str, value: bytes):
    """A stored picture of a collection as its small picture; None if it has none."""
    place = await find_place(datasette, database, table, row, column)
    if place.name and place.id is not None and (place.has_thumbnail or len(value) <= MAX_STORED_BYTES):
        return picture_of(datasette, database, place)
    return None


def picture_of(datasette, database: str, place: Place) -> markupsafe.Markup:
    assert place.name
    src = f"{thumbnail_path(datasette, database, place.name)}?{urlencode({'id': place.id})}"
    return markupsafe.Markup(PICTURE).format(src)


def search_url(datasette, database: str, name: str, id_: str | int) -> str:
    """The URL of the search page with the rows of a collection like one of them."""
    return f"{search_path(datasette, database, name)}?{urlencode({'q': format_query([Term('id', str(id_))])})}"


def like_fields(row, id_: str | int) -> dict[str, Any]:
    """The fields of a table page that is filtered to the rows like a row, of llm's in the same collection."""
    fields = {LIKE_ID: id_}
    return ({"collection_id": plain(row["collection_id"])} if "collection_id" in [*row.keys()] else {}) | fields


def plain(value: Any) -> Any:
    """A value of a row. Datasette has replaced that of a foreign key by an object with its label."""
    return value.get("value") if isinstance(value, Mapping) else value


@per_datasette
def last_place(datasette) -> dict[tuple, tuple[float, Place]]:
    """The place that was found last and when, because the cells of a row come one after another."""
    return {}


@per_datasette
def last_permission(datasette) -> dict[str, tuple[float, bool]]:
    """If anybody may read the names of llm's collections in a database, and when it was asked: once for a page."""
    return {}


async def may_anybody_see_names(datasette, database: str) -> bool:
    """True if anybody may read the names of llm's collections: Datasette 0.65 does not tell who is looking."""
    last, now_s = last_permission(datasette), time.monotonic()
    if database not in last or last[database][0] < now_s - KEPT_S:
        last[database] = now_s, await may_view_table(datasette, None, database, "collections")
    return last[database][1]


async def find_place(datasette, database: str, table: str, row, column: str) -> Place:
    """The collection and the id of a cell's row."""
    name, settings = configured_for(config_of(datasette), database, table, column)
    values = [plain(row[of]) for of in [*row.keys()]]  # a sqlite3.Row iterates over its values
    key = (database, table, name, *(value for value in values if not isinstance(value, bytes)))
    last, now_s = last_place(datasette), time.monotonic()
    if key not in last or last[key][0] < now_s - KEPT_S:
        last.clear()
        last[key] = now_s, await read_place(datasette, database, table, row, name, settings)
    return last[key][1]


async def read_place(datasette, database: str, table: str, row, name: str | None, settings: dict) -> Place:
    """The collection and the id of a row, from the database. name, settings: of the collection configured for it."""
    db, columns = datasette.get_database(database), {*row.keys()}
    if table == "embeddings" and {"collection_id", "id", "embedding"} <= columns:
        if not await may_anybody_see_names(datasette, database):
            return Place(None, row["id"], False)
        return await db.execute_fn(lambda conn: llm_place(conn, plain(row["collection_id"]), row["id"]))

    def table_place(conn):
        key = settings.get("id") or key_of(columns_of(conn, table))
        id_ = plain(row[key]) if key in columns else None
        return Place(name, id_, name is not None and has_thumbnail(conn, name, id_))

    return await db.execute_fn(table_place)


def llm_place(conn, number: int, id_: str) -> Place:
    """The place of a row of llm's."""
    named = rows(conn, "select name from main.collections where id = ?", [number])
    name = named[0][0] if named and isinstance(named[0][0], str) else None
    return Place(name, id_, name is not None and has_thumbnail(conn, name, id_))


def configured_for(config: Config, database: str, table: str, column: str) -> tuple[str | None, dict]:
    """The name and settings of the collection with this column of vectors or images; None and {} if there is none."""
    for name, settings in config.collections.get(database, {}).items():
        if settings.get("table") == table and column in (settings.get("vector"), settings.get("image")):
            return name, settings
    return None, {}


def has_thumbnail(conn, name: str, id_: object) -> bool:
    """True if a row has a thumbnail. One that is out of date is not shown by its URL."""
    if "row" not in columns_of(conn, "clip_thumbnails"):
        return False
    sql = "select 1 from main.clip_thumbnails where collection = ? and id = ? and image is not null"
    return bool(rows(conn, sql, [name, id_]))


async def row_links(datasette, actor, database: str, table: str, row) -> list[dict[str, str]]:
    """Links of a row's menu: to the rows like it. Datasette 1.0 shows them."""
    links = []
    for column in [*row.keys()]:  # a sqlite3.Row iterates over its values
        if is_vector_blob(row[column]):
            place = await find_place(datasette, database, table, row, column)
            if place.id is not None and place.name:
                href = search_url(datasette, database, place.name, place.id)
                links.append({"href": href, "label": f"More like this in {place.name}"})
    return links
