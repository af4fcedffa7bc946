"""Shows vectors and stored pictures in the cells of Datasette's table and row pages, with a link to similar rows."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import markupsafe

from clip_collections.query import Term, format_query

from ..api.thumbnail import FIRST_BYTES, MAX_STORED_BYTES, is_shown
from ..paths import search_path, thumbnail_path
from .like import LIKE_ID, is_vector_blob
from .places import Place, find_place, plain

PICTURE = 'alt="" width="48" height="48" loading="lazy" style="object-fit: cover"'


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
    # No Markup.format, which takes 5 times as long, because a page has hundreds of cells.
    escaped = markupsafe.escape(href)
    return markupsafe.Markup(f'<a class="clip-cell" href="{escaped}">{picture}{size} · more like this</a>')


async def picture_cell(datasette, database: str, table: str, row, column: str, value: bytes):
    """A stored picture of a collection as its small picture; None if it has none."""
    place = await find_place(datasette, database, table, row, column)
    if place.name and place.id is not None and (place.has_thumbnail or len(value) <= MAX_STORED_BYTES):
        return picture_of(datasette, database, place)
    return None


def picture_of(datasette, database: str, place: Place) -> markupsafe.Markup:
    assert place.name
    src = f"{thumbnail_path(datasette, database, place.name)}?{urlencode({'id': place.id})}"
    return markupsafe.Markup(f'<img src="{markupsafe.escape(src)}" {PICTURE}>')


def search_url(datasette, database: str, name: str, id_: str | int) -> str:
    """The URL of the search page with the rows of a collection like one of them."""
    return f"{search_path(datasette, database, name)}?{urlencode({'q': format_query([Term('id', str(id_))])})}"


def like_fields(row, id_: str | int) -> dict[str, Any]:
    """The fields of a table page that is filtered to the rows like a row, of llm's in the same collection."""
    fields = {LIKE_ID: id_}
    return ({"collection_id": plain(row["collection_id"])} if "collection_id" in [*row.keys()] else {}) | fields


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
