"""Answers with the large picture of a row: the file it was embedded from, else the image that the database holds.

A file is read only where the environment variable CLIP_ORIGINALS names the folder of its collection, which
`llm clip serve` sets: {"database": {"collection": "/absolute/folder"}}. The id of a row is the path in that folder.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from datasette.utils.asgi import NotFound, Response

from clip_collections.collection import Collection, from_clause, quoted, quoted_key, rows
from clip_collections.photo_folders import path_within
from datasette_guard import ConfigError, collect_soon, per_datasette
from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.images.signatures import FORMATS, format_of

from ..collection_refs import CollectionRef, visible_collection
from ..model import embedding_queue, in_thread
from ..paths import thumbnail_path
from .picture import picture_response

if TYPE_CHECKING:
    from PIL import Image

    from llm_clip_onnx.images.limits import ImageLimits
    from llm_clip_onnx.model_dir import Preprocess

VARIABLE = "CLIP_ORIGINALS"
SIDE = 2000  # pixels of a picture that is converted for the browser
QUALITY = 88
SHOWN_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP")  # which browsers show
SHOWN_BYTES = 20_000_000  # of a file that is shown as it is
MAX_BYTES = 90_000_000  # of a file that is read
FIRST_BYTES = 64  # enough to tell the format
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


@per_datasette
def folders_of(datasette) -> dict[str, dict[str, Path]]:
    """The folders of original pictures, by database and collection, read once. Raises ConfigError."""
    text = os.environ.get(VARIABLE) or "{}"
    try:
        folders = {
            database: {collection: Path(folder) for collection, folder in collections.items()}
            for database, collections in json.loads(text).items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        folders = {"": {"": Path()}}
    if not all(folder.is_absolute() for collections in folders.values() for folder in collections.values()):
        raise ConfigError(f'{VARIABLE} is {cited(text)}; expected {{"database": {{"collection": "/absolute/folder"}}}}')
    return folders


def folder_of(datasette, ref: CollectionRef) -> Path | None:
    """The folder of a collection's original pictures, None if this server knows none."""
    return folders_of(datasette).get(ref.database, {}).get(ref.collection.name)


async def original(datasette, request) -> Response:
    """The large picture of a row, or the small one if that cannot be read. `download`: unconverted. Raises NotFound."""
    ref = await visible_collection(datasette, request)
    id_ = request.args.get("id") or ""
    blob, bounds = await read_large_picture(datasette, ref, id_)
    if request.args.get("download"):
        return picture_response(request, blob, attachment(id_, blob))
    if format_of(blob) in SHOWN_FORMATS and len(blob) <= SHOWN_BYTES:
        return picture_response(request, blob)
    try:
        with embedding_queue(datasette).slot():
            jpeg = await in_thread(as_jpeg, blob, bounds, for_images=True)
    except InputError:
        small = f"{thumbnail_path(datasette, ref.database, ref.collection.name)}?{urlencode({'id': id_})}"
        return Response.redirect(small)
    finally:
        collect_soon()
    return picture_response(request, jpeg)


def attachment(id: str, blob: bytes) -> dict[str, str]:
    """The header that has a browser store an image, under the last part of its id."""
    name, suffixes = id.rpartition("/")[2] or "picture", FORMATS[format_of(blob) or "JPEG"].suffixes
    name += "" if name.lower().endswith(suffixes) else suffixes[0]
    return {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(name, safe='', errors='replace')}"}


async def read_large_picture(datasette, ref: CollectionRef, id: str) -> tuple[bytes, ImageLimits]:
    """The file of a row, else its stored image, and the bounds within which it is decoded. Raises NotFound."""
    from llm_clip_onnx.images.limits import OWN_MACHINE, SERVER  # here: Datasette's start does not wait for Pillow

    database, folder = datasette.get_database(ref.database), folder_of(datasette, ref)
    stored = await database.execute_fn(partial(stored_image, collection=ref.collection, id=id))
    if stored is None:
        raise NotFound(f"there is no row with the id {cited(id)}")
    blob = await asyncio.to_thread(read_image_file, folder, id) if folder else None
    if blob is not None:
        return blob, OWN_MACHINE
    if format_of(stored) is None:
        raise NotFound("there is no large picture of this row")
    return stored, SERVER


async def ids_with_large_picture(datasette, ref: CollectionRef, ids: Iterable[str | int]) -> set[str]:
    """Those of the ids of some rows that `original` answers with a picture."""
    database, folder = datasette.get_database(ref.database), folder_of(datasette, ref)

    def begin_as_image(conn) -> set[str]:
        first = partial(stored_image, conn, ref.collection, most=FIRST_BYTES)
        return {str(id) for id in ids if format_of(first(str(id)) or b"") is not None}

    found = await database.execute_fn(begin_as_image)
    if folder:
        found |= await asyncio.to_thread(
            lambda: {str(id) for id in ids if read_image_file(folder, str(id), FIRST_BYTES)}
        )
    return found


def stored_image(conn, collection: Collection, id: str, most: int | None = None) -> bytes | None:
    """The image that a row holds, b"" if it holds none, and its first `most` bytes. None if there is no such row."""
    column = quoted(collection.image) if collection.image else "null"
    selected = f"substr({column}, 1, {most})" if most else column
    found = rows(
        conn, f"select {selected} {from_clause(collection, '', f'{quoted_key(collection)} = ?')} limit 1", [id]
    )
    if not found:
        return None
    return found[0][0] if isinstance(found[0][0], bytes) else b""


def read_image_file(folder: Path, id: str, most: int = MAX_BYTES) -> bytes | None:
    """The content of the image with this path in a folder, or its first `most` bytes. None if there is no such image.

    None too for what leads out of the folder, is no regular file, or is larger than MAX_BYTES.
    """
    path = path_within(folder, id)
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_FOLLOW) if path else None
    except OSError:
        return None
    if descriptor is None:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            return None
        first = file.read(FIRST_BYTES)
        return first + file.read(most - len(first)) if format_of(first) else None


def as_jpeg(blob: bytes, bounds: ImageLimits) -> bytes:
    """An image as a JPEG of at most SIDE x SIDE pixels, upright. Raises InputError if it cannot be read."""
    from PIL import Image

    from llm_clip_onnx.images.preprocess import decode, decode_lock
    from llm_clip_onnx.model_dir import Preprocess

    preprocess = Preprocess(SIDE // 2, SIDE // 2, Image.Resampling.BICUBIC, (0, 0, 0), (1, 1, 1), 1)
    with decode_lock:
        image = decode(blob, preprocess, "exif", fitting, bounds)
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def fitting(
    strips: Iterable[Image.Image],
    image: Image.Image,
    preprocess: Preprocess,
    orient: str | None,
    full: tuple[int, int] | None,
) -> Image.Image:
    """The whole image as RGB, upright, at most SIDE x SIDE and not enlarged. It is a `render` of preprocess.decode."""
    from llm_clip_onnx.images.preprocess import EXIF_TRANSPOSE, exif_orientation, resize_strips

    longer = max(full or image.size)
    side = min(SIDE, longer)
    box = [0.0, 0.0, *map(float, image.size)]
    square = resize_strips(strips, image.size, box, (side, side), preprocess.resample, orient)
    width, height = (max(1, round(length * side / longer)) for length in full or image.size)
    small = square.resize((width, height), preprocess.resample)
    orientation = exif_orientation(image)
    return small.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else small
