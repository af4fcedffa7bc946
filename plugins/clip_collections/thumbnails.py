"""Thumbnails of a collection's images: upright JPEGs of at most 30 KB, in a table of the same file."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from PIL import Image

from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.limits import OWN_MACHINE
from llm_clip_onnx.images.preprocess import EXIF_TRANSPOSE, decode, exif_orientation, resize_strips
from llm_clip_onnx.model_dir import Preprocess

from .collection import Collection, Id, columns_of, quoted, quoted_key, rows, source

SIDE = 256  # pixels, the longer one
MOST_BYTES = 30_000
QUALITIES = (85, 75, 60, 40, 20, 5)  # of JPEG, the first one that gives no more bytes; noise needs 40
AT_ONCE = 8  # images, between which is written
THREADS = 2
HOW = Preprocess(SIDE, SIDE, Image.Resampling.BICUBIC, (0, 0, 0), (1, 1, 1), 1)


def thumbnail(image: bytes) -> bytes:
    """A JPEG of at most 30 KB of an image file, upright, what is transparent on white. Raises InputError."""
    small = decode(image, HOW, "exif", whole_image, OWN_MACHINE)
    for quality in QUALITIES:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= MOST_BYTES:
            break
    return stream.getvalue()


def whole_image(
    strips: Iterable[Image.Image], image: Image.Image, how: Preprocess, orient: str | None, full: tuple[int, int] | None
) -> Image.Image:
    """All of an image of which `strips` are all rows: RGB, upright, at most SIDE x SIDE and no larger than it was."""
    width, height = full or image.size
    longer = max(width, height)
    side = min(SIDE, longer)
    square = resize_strips(strips, image.size, [0, 0, *map(float, image.size)], replace(how, crop=side), orient)
    shape = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    small = square.resize(shape, Image.Resampling.BICUBIC)
    orientation = exif_orientation(image)
    return small.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else small


def thumbnail_or_none(image: object) -> bytes | None:
    try:
        return thumbnail(bytes(image)) if isinstance(image, bytes | memoryview) else None
    except InputError:
        return None


def missing(conn: sqlite3.Connection, collection: Collection) -> list[tuple[int, Id]]:
    """Rowids and ids of the rows that have an image, and no thumbnail of it nor a note that it cannot be read."""
    if collection.image is None:
        return []
    return rows(
        conn,
        f"select rowid, {quoted_key(collection)} "
        + source(
            collection,
            "",
            f"{quoted(collection.image)} is not null",
            f"({quoted_key(collection)}, rowid) not in (select id, row from clip_thumbnails where collection = ?)",
        ),
        [collection.name],
    )


def make(
    conn: sqlite3.Connection,
    collection: Collection,
    wanted: list[tuple[int, Id]],
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Make the thumbnails of some rows, each few in a transaction of their own."""
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(wanted), AT_ONCE):
            some = dict(wanted[at : at + AT_ONCE])
            found = read_images(conn, collection, some)
            made = list(pool.map(thumbnail_or_none, [image for _, image in found]))
            conn.execute("begin immediate")
            with conn:
                conn.executemany(
                    "insert or replace into clip_thumbnails (collection, id, image, row) values (?, ?, ?, ?)",
                    [(collection.name, some[rowid], small, rowid) for (rowid, _), small in zip(found, made)],
                )
            on_images(len(some))


def read_images(conn: sqlite3.Connection, collection: Collection, some: Iterable[int]) -> list[tuple[int, object]]:
    assert collection.image is not None
    among = f"rowid in ({','.join(map(str, some))})"
    return rows(
        conn,
        f"select rowid, {quoted(collection.image)} {source(collection, '', among, how=' not indexed')}",
    )


def forget_what_is_gone(conn: sqlite3.Connection, collection: Collection) -> None:
    """Delete the thumbnails of rows that are not there any more."""
    gone = f"collection = ? and (id, row) not in (select {quoted_key(collection)}, rowid {source(collection)})"
    if rows(conn, f"select 1 from clip_thumbnails where {gone} limit 1", [collection.name]):
        conn.execute(f"delete from clip_thumbnails where {gone}", [collection.name])


def unreadable(conn: sqlite3.Connection, collection: Collection) -> int:
    """How many images of a collection cannot be read."""
    found = rows(conn, "select count(*) from clip_thumbnails where collection = ? and image is null", [collection.name])
    return found[0][0]


def thumbnail_of(conn: sqlite3.Connection, collection: Collection, id: Id) -> bytes | None:
    """The thumbnail of a row, a JPEG; None where there is none, or one of a row that was replaced since."""
    if "row" not in columns_of(conn, "clip_thumbnails"):
        return None
    found = rows(conn, f"select image {of_row(collection)}", [id, collection.name])
    return found[0][0] if found else None


def has_thumbnail(conn: sqlite3.Connection, collection: Collection, id: Id) -> bool:
    """True if thumbnail_of gives one."""
    if "row" not in columns_of(conn, "clip_thumbnails"):
        return False
    return bool(rows(conn, f"select 1 {of_row(collection)} and image is not null", [id, collection.name]))


def of_row(collection: Collection) -> str:
    row = (
        f"select {quoted_key(collection)} as id, rowid as row {source(collection, '', f'{quoted_key(collection)} = ?')}"
    )
    return f"from ({row} limit 1) join clip_thumbnails using (id, row) where collection = ?"
