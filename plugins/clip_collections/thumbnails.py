"""Makes, stores and reads thumbnails of a collection's images: upright JPEGs of at most 30 KB in clip_thumbnails."""

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

from .collection import Collection, Id, columns_of, from_clause, quoted, quoted_key, rows

SIDE = 256  # pixels of the longer side
MAX_BYTES = 30_000
QUALITIES = (85, 75, 60, 40, 20, 5)  # of the JPEG, the first that fits MAX_BYTES; noise needs 40
BATCH_IMAGES = 8  # in one transaction
THREADS = 2
PREPROCESS = Preprocess(SIDE, SIDE, Image.Resampling.BICUBIC, (0, 0, 0), (1, 1, 1), 1)


def make_thumbnail(image: bytes) -> bytes:
    """The thumbnail of an image file, upright, with transparency on white. Raises InputError if it cannot be read."""
    small = decode(image, PREPROCESS, "exif", whole_image, OWN_MACHINE)
    for quality in QUALITIES:
        stream = io.BytesIO()
        small.save(stream, "JPEG", quality=quality, optimize=True)
        if stream.tell() <= MAX_BYTES:
            break
    return stream.getvalue()


def whole_image(
    strips: Iterable[Image.Image],
    image: Image.Image,
    preprocess: Preprocess,
    orient: str | None,
    full: tuple[int, int] | None,
) -> Image.Image:
    """The whole image as RGB, upright, at most SIDE x SIDE and not enlarged. It is a `render` of preprocess.decode."""
    width, height = full or image.size
    longer = max(width, height)
    side = min(SIDE, longer)
    square = resize_strips(strips, image.size, [0, 0, *map(float, image.size)], replace(preprocess, crop=side), orient)
    shape = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    small = square.resize(shape, Image.Resampling.BICUBIC)
    orientation = exif_orientation(image)
    return small.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else small


def thumbnail_or_none(image: object) -> bytes | None:
    try:
        return make_thumbnail(bytes(image)) if isinstance(image, bytes | memoryview) else None
    except InputError:
        return None


def rows_without_thumbnail(conn: sqlite3.Connection, collection: Collection) -> list[tuple[int, Id]]:
    """Rowids and ids of the rows with an image that is not in clip_thumbnails, where unreadable ones are NULL."""
    if collection.image is None:
        return []
    return rows(
        conn,
        f"select rowid, {quoted_key(collection)} "
        + from_clause(
            collection,
            "",
            f"{quoted(collection.image)} is not null",
            f"({quoted_key(collection)}, rowid) not in (select id, row from main.clip_thumbnails where collection = ?)",
        ),
        [collection.name],
    )


def write_thumbnails(
    conn: sqlite3.Connection,
    collection: Collection,
    wanted: list[tuple[int, Id]],
    on_images: Callable[[int], object] = lambda count: None,
) -> None:
    """Make and store the thumbnails of the rows (rowid, id), in transactions of BATCH_IMAGES."""
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(wanted), BATCH_IMAGES):
            ids = dict(wanted[at : at + BATCH_IMAGES])
            images = read_images(conn, collection, ids)
            thumbnails = list(pool.map(thumbnail_or_none, [image for _, image in images]))
            conn.execute("begin immediate")
            with conn:
                conn.executemany(
                    "insert or replace into main.clip_thumbnails (collection, id, image, row) values (?, ?, ?, ?)",
                    [(collection.name, ids[rowid], jpeg, rowid) for (rowid, _), jpeg in zip(images, thumbnails)],
                )
            on_images(len(ids))


def read_images(conn: sqlite3.Connection, collection: Collection, rowids: Iterable[int]) -> list[tuple[int, object]]:
    """The stored images of these rows: (rowid, value of the image's column)."""
    assert collection.image is not None
    condition = f"rowid in ({','.join(map(str, rowids))})"
    return rows(
        conn,
        f"select rowid, {quoted(collection.image)} {from_clause(collection, '', condition, hint=' not indexed')}",
    )


def delete_stale_thumbnails(conn: sqlite3.Connection, collection: Collection) -> None:
    """Delete the thumbnails of rows that were deleted or replaced."""
    stale = f"collection = ? and (id, row) not in (select {quoted_key(collection)}, rowid {from_clause(collection)})"
    if rows(conn, f"select 1 from main.clip_thumbnails where {stale} limit 1", [collection.name]):
        conn.execute(f"delete from main.clip_thumbnails where {stale}", [collection.name])


def count_unreadable(conn: sqlite3.Connection, collection: Collection) -> int:
    """How many images of a collection cannot be read and have no thumbnail."""
    sql = "select count(*) from main.clip_thumbnails where collection = ? and image is null"
    return rows(conn, sql, [collection.name])[0][0]


def read_thumbnail(conn: sqlite3.Connection, collection: Collection, id: Id) -> bytes | None:
    """The thumbnail of a row, a JPEG. None if it has none, or if the row was replaced since."""
    if "row" not in columns_of(conn, "clip_thumbnails"):
        return None
    key = quoted_key(collection)
    row = f"select {key} as id, rowid as row {from_clause(collection, '', f'{key} = ?')} limit 1"
    sql = f"select image from ({row}) join main.clip_thumbnails using (id, row) where collection = ?"
    thumbnails = rows(conn, sql, [id, collection.name])
    return thumbnails[0][0] if thumbnails else None
