"""Takes pictures from all over a collection, for pages to show and for forms to try; and reads one of them.

A picture is named by its database, collection and id, each tilde-encoded, as the field `sample` of a form has it.
"""

from __future__ import annotations

import re
import sqlite3
from functools import partial
from typing import Any

from datasette.utils import sqlite_timelimit, tilde_decode, tilde_encode
from datasette.utils.asgi import NotFound

from clip_collections import query
from clip_collections.collection import Collection, from_clause, quoted_key, rows
from llm_clip_onnx.errors import InputError, cited

from ..api.search import row_facts, row_json
from ..api.thumbnail import may_view_made, picture_of, rowids_with_picture
from ..collection_refs import CollectionRef, named_collection, searchable_refs
from .pictures import Picture
from .search import caption_of, safe_image

PICTURES = 12  # of a collection, a multiple of the columns in clip.css
TRIED = 6  # pictures that a form offers
QUERY = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+)*")  # a caption that makes a query: words, and no file's name
QUERY_CHARACTERS = 30


async def sample_rows(datasette, request, ref: CollectionRef) -> list[dict[str, Any]]:
    """Rows from all over a collection: caption, image or None, id, field `sample`, and if the caption is a query."""
    limit_ms, origin = datasette.setting("sql_time_limit_ms"), datasette.absolute_url(request, "/")
    read = partial(some_rows, limit_ms=limit_ms, collection=ref.collection)
    made = await may_view_made(datasette, request.actor, ref.database)
    some = await datasette.get_database(ref.database).execute_fn(partial(read, made=made))
    samples = []
    for row in some:
        result = row_json(datasette, origin.removesuffix("/"), ref, row)
        caption, id_ = caption_of(result), str(result["id"])
        samples.append(
            {
                "caption": caption,
                "image": safe_image(result["image"], origin),
                "id": id_,
                "pictured": row["pictured"],
                "field": "/".join(map(tilde_encode, (ref.database, ref.collection.name, id_))),
                "is_query": caption != id_ and is_query(caption),
            }
        )
    return samples


async def pictures_to_try(datasette, request) -> list[dict[str, Any]]:
    """Pictures of the first collection that has some which the server can read and the client may see."""
    for ref in await searchable_refs(datasette, request.actor):
        if samples := [row for row in await sample_rows(datasette, request, ref) if row["pictured"]]:
            return samples[:: max(1, len(samples) // TRIED)][:TRIED]
    return []


async def read_sample(datasette, request, field: str) -> Picture:
    """The picture that a field `sample` names. Raises InputError, NotFound, or Forbidden for the client."""
    parts = [tilde_decode(part) for part in field.split("/")]
    if len(parts) != 3:
        raise InputError(f"sample is {cited(field)}; expected DATABASE/COLLECTION/ID")
    database, name, id_ = parts
    ref = await named_collection(datasette, request.actor, database, name)
    made = await may_view_made(datasette, request.actor, database)
    read = partial(picture_of, collection=ref.collection, id=id_, made=made)
    found = await datasette.get_database(database).execute_fn(read)
    if not found:
        raise NotFound(f"there is no small picture of {cited(id_)}")
    return Picture(id_, found)


def is_query(text: str) -> bool:
    """True if a text is some words, and a query as it stands."""
    if not QUERY.fullmatch(text) or len(text) > QUERY_CHARACTERS:
        return False
    try:
        return query.format_query(query.parse(text)) == text
    except InputError:
        return False


def some_rows(conn, limit_ms: int, collection: Collection, made: bool) -> list[dict[str, Any]]:
    """Rows from all over a collection, as api.search has them; [] if that takes too long or cannot be read.

    `made` is as in thumbnail.picture_of.
    """
    columns = [column for column in (collection.content, collection.metadata) if column]
    try:
        with sqlite_timelimit(conn, limit_ms):
            ids = spread_rows(conn, collection, PICTURES)
            facts = row_facts(conn, collection, ids, columns)
            pictured = rowids_with_picture(conn, collection, list(ids), made)
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
