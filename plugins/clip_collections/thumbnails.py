"""Makes, stores and reads thumbnails of a collection's images: upright WebPs of at most 20 kB in clip_thumbnails.

`llm clip embed` makes them while it decodes an image for the image tower, `llm clip index` of stored images. The middle
squares that a search page shows are made when they are asked for, and some are kept in memory.
"""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from PIL import Image, ImageOps

from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.limits import OWN_MACHINE
from llm_clip_onnx.images.preprocess import EXIF_TRANSPOSE, decode, exif_orientation, resize_and_crop, to_rgb
from llm_clip_onnx.model_dir import Preprocess

from .collection import Collection, Id, columns_of, from_clause, quoted, quoted_key, rows
from .photo import photo_facts

SIDE = 320  # pixels of the longer side
MAX_BYTES = 20_000
# Ten views of two photos, 320 pixels: WebP of quality 80 and method 2 had 13.4 kB at 38.2 dB in 8.1 ms, JPEG of quality
# 85 18.4 kB at 37.8 dB in 4.3 ms (Pillow 13.0, 2026-11-27).
QUALITIES = (80, 65, 50, 30, 15, 0)  # the first that fits MAX_BYTES; noise needs 15
METHOD = 2
SMALL_SIDE = 224  # pixels of the small square, which a search page shows in about 200
SMALL_QUALITY = 40  # ten views of two photos: 4.7 kB of 12.8, in 4 ms of CPU
SMALL_KEPT = 256  # with the thumbnails they were made of: at most 6 MB
BATCH_IMAGES = 8  # in one transaction
THREADS = 2
PREPROCESS = Preprocess(SIDE, SIDE, Image.Resampling.BICUBIC, (0, 0, 0), (1, 1, 1), 1)


class Look:
    """What is seen of one image while it is decoded: its thumbnail, and facts of the photo.

    Each only if it is wanted. thumbnail: None if it is not, or if no image was decoded.
    """

    def __init__(self, with_thumbnail: bool = True, with_facts: bool = False, places: bool = False):
        self.with_thumbnail, self.with_facts, self.places = with_thumbnail, with_facts, places
        self.facts: dict[str, Any] = {}
        self.thumbnail: bytes | None = None
        self._small: Image.Image | None = None

    def render(
        self,
        strips: Iterable[Image.Image],
        image: Image.Image,
        preprocess: Preprocess,
        orient: str | None,
        full_size: tuple[int, int] | None,
    ) -> Image.Image:
        """What resize_and_crop returns, whose strips are looked at. It is a `render` of preprocess.decode."""
        size = full_size or image.size
        reduction = Reduction(size)
        watched = reduction.watch(strips) if self.with_thumbnail else strips
        crop = resize_and_crop(watched, image, preprocess, orient, full_size)
        if self.with_thumbnail:
            self._small = upright(reduction.finish(), image)
        if self.with_facts:
            self.facts = photo_facts(image, size, self.places)
        return crop

    def decode(self, image: bytes) -> None:
        """Look at an image file that is not embedded. Nothing is seen if it cannot be read."""
        try:
            decode(image, PREPROCESS, "exif", self.render, OWN_MACHINE)
        except InputError:
            self._small = None

    def encode(self) -> None:
        """Make the thumbnail of the image that was decoded."""
        self.thumbnail = encode(self._small) if self._small else None
        self._small = None


class Reduction:
    """Makes an image of at most SIDE x SIDE, not enlarged, of the strips of one of `size`."""

    def __init__(self, size: tuple[int, int]):
        longer = max(size)
        side = min(SIDE, longer)
        self.width, self.height = (max(1, round(length * side / longer)) for length in size)
        self.parts: list[Image.Image] = []

    def watch(self, strips: Iterable[Image.Image]) -> Iterator[Image.Image]:
        """The strips, as they come."""
        for strip in strips:
            self.add(strip)
            yield strip

    def add(self, strip: Image.Image) -> None:
        rgb = to_rgb(strip, "exif")
        self.parts.append(rgb.resize((self.width, rgb.height), Image.Resampling.BICUBIC))

    def finish(self) -> Image.Image:
        """The image, RGB."""
        whole, top = Image.new("RGB", (self.width, sum(part.height for part in self.parts))), 0
        for part in self.parts:
            whole.paste(part, (0, top))
            top += part.height
        return whole.resize((self.width, self.height), Image.Resampling.BICUBIC)


def make_thumbnail(image: bytes) -> bytes:
    """The thumbnail of an image file, upright, with transparency on white. Raises InputError if it cannot be read."""
    return encode(decode(image, PREPROCESS, "exif", reduce_and_turn, OWN_MACHINE))


def reduce_and_turn(
    strips: Iterable[Image.Image],
    image: Image.Image,
    preprocess: Preprocess,
    orient: str | None,
    full_size: tuple[int, int] | None,
) -> Image.Image:
    """The whole image as RGB, upright, at most SIDE x SIDE. It is a `render` of preprocess.decode."""
    reduction = Reduction(full_size or image.size)
    for strip in strips:
        reduction.add(strip)
    return upright(reduction.finish(), image)


def upright(small: Image.Image, image: Image.Image) -> Image.Image:
    """A small image turned as the EXIF of `image` says."""
    orientation = exif_orientation(image)
    return small.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else small


def encode(small: Image.Image) -> bytes:
    """An image as WebP, without EXIF, in the best quality of at most MAX_BYTES."""
    for quality in QUALITIES:
        stream = io.BytesIO()
        small.save(stream, "WEBP", quality=quality, method=METHOD)
        if stream.tell() <= MAX_BYTES:
            break
    return stream.getvalue()


@lru_cache(maxsize=SMALL_KEPT)
def small_square(thumbnail: bytes) -> bytes:
    """The middle square of a WebP thumbnail, as a smaller WebP. Any other image, or a transparent one, as it was."""
    try:
        image = Image.open(io.BytesIO(thumbnail), formats=["WEBP"])
        if image.mode != "RGB" or max(image.size) > SIDE:
            return thumbnail
        side, stream = min(SMALL_SIDE, *image.size), io.BytesIO()
        ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC).save(
            stream, "WEBP", quality=SMALL_QUALITY, method=METHOD
        )
    except (OSError, ValueError):
        return thumbnail
    return min(stream.getvalue(), thumbnail, key=len)


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
    content_hash = "null"
    if "content_hash" in columns_of(conn, collection.table):
        content_hash = f"(select content_hash from main.{quoted(collection.table)} where rowid = ?4)"
    columns = "collection, id, image, row, content_hash"
    insert = f"insert or replace into main.clip_thumbnails ({columns}) values (?1, ?2, ?3, ?4, {content_hash})"
    with ThreadPoolExecutor(THREADS) as pool:
        for at in range(0, len(wanted), BATCH_IMAGES):
            ids = dict(wanted[at : at + BATCH_IMAGES])
            images = read_images(conn, collection, ids)
            thumbnails = list(pool.map(thumbnail_or_none, [image for _, image in images]))
            conn.execute("begin immediate")
            with conn:
                conn.executemany(
                    insert,
                    [(collection.name, ids[rowid], small, rowid) for (rowid, _), small in zip(images, thumbnails)],
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
    """The thumbnail of a row: a WebP, or a JPEG of earlier versions. None if it has none or was replaced since."""
    if "row" not in columns_of(conn, "clip_thumbnails"):
        return None
    key = quoted_key(collection)
    row = f"select {key} as id, rowid as row {from_clause(collection, '', f'{key} = ?')} limit 1"
    sql = f"select image from ({row}) join main.clip_thumbnails using (id, row) where collection = ?"
    thumbnails = rows(conn, sql, [id, collection.name])
    return thumbnails[0][0] if thumbnails else None
