"""The endpoint for the small picture of one row: the thumbnail that a command made, or a small stored image.

It makes no thumbnails. With `size=small` it answers with the middle square of one in fewer bytes, for a page of many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial

from datasette.utils.asgi import NotFound, Response

from clip_collections.collection import Collection, columns_of, from_clause, quoted, quoted_key, rows
from datasette_guard import CORS_HEADERS, may_view_table
from llm_clip_onnx.errors import cited
from llm_clip_onnx.images.signatures import format_of

from ..collection_refs import visible_collection
from .picture import picture_response

MAX_STORED_BYTES = 100_000  # larger stored images are not shown
FIRST_BYTES = 64  # enough to tell the format
SMALL = "small"  # the only `size`
SHOWN_FORMATS = ("JPEG", "PNG", "GIF", "WEBP")  # formats of stored images that are shown


async def thumbnail(datasette, request) -> Response:
    """The small picture of a row. Raises NotFound if it has none."""
    ref = await visible_collection(datasette, request)
    id_ = request.args.get("id") or ""
    made = await may_view_made(datasette, request.actor, ref.database)
    read = partial(picture_of, collection=ref.collection, id=id_, made=made)
    picture = await datasette.get_database(ref.database).execute_fn(read)
    if not picture:
        why = partial(why_no_picture, collection=ref.collection, id=id_, made=made)
        raise NotFound(await datasette.get_database(ref.database).execute_fn(why))
    if request.args.get("size") == SMALL:
        from clip_collections import thumbnails  # here: Datasette's start does not wait for Pillow

        if len(picture) <= thumbnails.MAX_BYTES:  # it is kept in memory
            loop = asyncio.get_running_loop()
            picture = await loop.run_in_executor(one_thread(), thumbnails.small_square, picture)
    return picture_response(request, picture, CORS_HEADERS if datasette.cors else {})


@cache
def one_thread() -> ThreadPoolExecutor:
    """The thread that makes small squares, one after the other, so that a page of them leaves a core to searches."""
    return ThreadPoolExecutor(1, "clip-small")


async def may_view_made(datasette, actor, database: str) -> bool:
    """True if an actor may view the thumbnails that `llm clip index` made. Stored images are asked for elsewhere."""
    return await may_view_table(datasette, actor, database, "clip_thumbnails")


def rowids_with_picture(conn, collection: Collection, rowids: Sequence[int], made: bool) -> set[int]:
    """The rowids of the rows that have a small picture. `made`: thumbnails that `llm clip index` made count too."""
    among, key = ",".join(str(int(rowid)) for rowid in rowids), quoted_key(collection)
    pictured: set[int] = set()
    if made and "row" in columns_of(conn, "clip_thumbnails"):
        named = f"select rowid as row, {key} as id from main.{quoted(collection.table)} where rowid in ({among})"
        pictures = (  # cross join: else SQLite reads all thumbnails, 0.25 s of 20,000
            f"select row from ({named}) cross join main.clip_thumbnails using (id, row)"
            " where collection = ? and image is not null"
        )
        pictured |= {row for (row,) in rows(conn, pictures, [collection.name])}
    if collection.image:
        small = f"rowid in ({among}) and length({quoted(collection.image)}) between 1 and {MAX_STORED_BYTES}"
        clause = from_clause(collection, "", small, hint=" not indexed")
        begins = f"select rowid, substr({quoted(collection.image)}, 1, {FIRST_BYTES}) {clause}"
        pictured |= {row for row, first in rows(conn, begins) if is_shown(first)}
    return pictured


def is_shown(image: object) -> bool:
    """True if a stored value begins as an image of a format in SHOWN_FORMATS."""
    return isinstance(image, bytes) and format_of(image) in SHOWN_FORMATS


def picture_of(conn, collection: Collection, id: str, made: bool) -> bytes | None:
    """The small picture of a row, None if it has none or one of a format not in SHOWN_FORMATS.

    `made`: a thumbnail that `llm clip embed` or `llm clip index` made may be it.
    """
    from clip_collections import thumbnails  # here: Datasette's start does not wait for Pillow

    image = thumbnails.read_thumbnail(conn, collection, id) if made else None
    if image is None and collection.image:
        column = quoted(collection.image)
        small = f"{quoted_key(collection)} = ? and length({column}) between 1 and {MAX_STORED_BYTES}"
        stored = rows(conn, f"select {column} {from_clause(collection, '', small)} limit 1", [id])
        image = stored[0][0] if stored and isinstance(stored[0][0], bytes) else None
    return image if is_shown(image) else None


def why_no_picture(conn, collection: Collection, id: str, made: bool) -> str:
    """The sentence why a row has no small picture, and what makes one if anything does. `made` is as in picture_of."""
    if not id:
        return "there is no id; expected ?id= and the id of a row"
    row = f"the row with the id {cited(id)} of collection {cited(collection.name)}"
    column = quoted(collection.image) if collection.image else "null"
    begins = f"case when typeof({column}) = 'blob' then substr({column}, 1, {FIRST_BYTES}) end"
    of_row = from_clause(collection, "", f"{quoted_key(collection)} = ?")
    matches = rows(conn, f"select {begins}, rowid {of_row} limit 1", [id])
    if not matches:
        return f"collection {cited(collection.name)} has no row with the id {cited(id)}"
    if collection.url:
        return f"{row} has no small picture here, because its image is at another URL (image_url)"
    first, rowid = matches[0]
    if not first:
        return f"{row} has no image"
    if not made:
        return f"{row} has no small picture that you may see"
    if format_of(first) is None or is_unreadable(conn, collection, rowid):
        return f"{row} has an image that cannot be read; no small picture can be made of it"
    return f"{row} has no small picture yet; llm clip index makes it"


def is_unreadable(conn, collection: Collection, rowid: int) -> bool:
    """True if `llm clip index` could not read the image of a row."""
    sql = "select 1 from main.clip_thumbnails where collection = ? and row = ? and image is null"
    return "row" in columns_of(conn, "clip_thumbnails") and bool(rows(conn, sql, [collection.name, rowid]))
