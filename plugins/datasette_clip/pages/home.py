"""Gives Datasette's home page what our templates/index.html shows: collections with pictures of each, and ways in."""

from __future__ import annotations

import re
import sqlite3
from typing import Any
from urllib.parse import urlencode

from datasette.utils import sqlite_timelimit

from clip_collections import query
from clip_collections.collection import Collection, from_clause, quoted_key, rows
from clip_collections.query import Term
from llm_clip_onnx.errors import InputError

from .. import paths
from ..api.search import row_facts, row_json
from ..api.thumbnail import rowids_with_picture
from ..collection_refs import CollectionRef, searchable_refs
from ..frame import Frame
from ..model import text_opening
from ..paths import search_path
from .about import example_calls, why_not_ready
from .links import sql_database, sql_paths
from .search import caption_of, safe_image

SHELVES = 4  # collections that are shown with pictures; the others are links
PICTURES = 12  # of a collection, a multiple of the columns in clip.css
SAMPLES = 5  # of queries
SAMPLE = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")  # a caption that makes a query: words, and no file's name
SAMPLE_CHARACTERS = 30
PHOTO_SAMPLES = ("a dog on the beach", "sunset over water", "people around a table", "a red car", "food on a plate")


async def template_variables(datasette, request, view_name: str) -> dict[str, Any]:
    """The variables of every template, and those of templates/index.html."""
    variables: dict[str, Any] = {"clip_page": Frame(datasette, request)}
    if view_name == "index" and request:
        variables["clip_home"] = await home_variables(datasette, request)
    return variables


async def home_variables(datasette, request) -> dict[str, Any]:
    """What the home page shows to this client. why_not: why there is no model, None also while it is being opened."""
    refs = await searchable_refs(datasette, request.actor)
    database = await sql_database(datasette, request.actor)
    return {
        "paths": paths,
        "shelves": [await shelf(datasette, request, ref) for ref in refs[:SHELVES]],
        "more": [
            {"name": ref.collection.name, "path": search_path(datasette, ref.database, ref.collection.name)}
            for ref in refs[SHELVES:]
        ],
        "calls": await example_calls(datasette, request),
        "sql": database and sql_paths(datasette, database)[0],
        "why_not": await why_not_ready() if text_opening().done() else None,
    }


async def shelf(datasette, request, ref: CollectionRef) -> dict[str, Any]:
    """A collection with the path of its search page, some of its pictures, and sample queries."""
    path = search_path(datasette, ref.database, ref.collection.name)
    limit_ms = datasette.setting("sql_time_limit_ms")
    some = await datasette.get_database(ref.database).execute_fn(lambda conn: some_rows(conn, limit_ms, ref.collection))
    origin = datasette.absolute_url(request, "/")
    pictures = []
    for row in some:
        result = row_json(datasette, origin.removesuffix("/"), ref, row)
        like = f"{path}?{urlencode({'q': query.format_query([Term('id', str(result['id']))])})}"
        pictures.append(
            {"caption": caption_of(result), "image": safe_image(result["image"], origin), "path": like, "id": row["id"]}
        )
    return {
        "name": ref.collection.name,
        "database": ref.database,
        "path": path,
        "pictures": [picture for picture in pictures if picture["image"]][:PICTURES],
        "samples": [{"text": text, "path": f"{path}?{urlencode({'q': text})}"} for text in sample_queries(pictures)],
    }


def sample_queries(pictures: list[dict[str, Any]]) -> list[str]:
    """Queries for a collection: captions of some rows, else texts that fit photographs."""
    captions = [picture["caption"] for picture in pictures if picture["caption"] != picture["id"]]
    good = [text for text in captions if SAMPLE.fullmatch(text) and len(text) <= SAMPLE_CHARACTERS and parses(text)]
    return list(dict.fromkeys(good))[:SAMPLES] or list(PHOTO_SAMPLES)


def parses(text: str) -> bool:
    """True if a text is a query as it stands."""
    try:
        return query.format_query(query.parse(text)) == text
    except InputError:
        return False


def some_rows(conn, limit_ms: int, collection: Collection) -> list[dict[str, Any]]:
    """Rows from all over a collection, as api.search has them; [] if that takes too long or cannot be read."""
    columns = [column for column in (collection.content, collection.metadata) if column]
    try:
        with sqlite_timelimit(conn, limit_ms):
            ids = spread_rows(conn, collection, PICTURES)
            facts = row_facts(conn, collection, ids, columns)
            pictured = rowids_with_picture(conn, collection, list(ids))
    except sqlite3.Error:
        return []
    return [
        {
            "id": id,
            "score": None,
            "has_id": isinstance(id, str | int),
            "has_vector": True,
            "pictured": rowid in pictured,
            **facts.get(rowid, {}),
        }
        for rowid, id in ids.items()
    ]


def spread_rows(conn, collection: Collection, count: int) -> dict[int, object]:
    """Rowid -> id of at most `count` rows, evenly spread over the rowids. Each is one step in the table."""

    def row_from(rowid: int | None, order: str = "") -> list[tuple]:
        start = [] if rowid is None else [f"rowid >= {rowid}"]
        source = from_clause(collection, "", *start, hint=" not indexed")
        return rows(conn, f"select rowid, {quoted_key(collection)} {source} order by rowid {order} limit 1")

    ends = [*row_from(None), *row_from(None, "desc")]
    if not ends:
        return {}
    first, last = ends[0][0], ends[-1][0]
    spread = dict(ends[:1])
    for number in range(1, count):
        spread |= dict(row_from(first + (last - first) * number // (count - 1 or 1)))
    return spread
