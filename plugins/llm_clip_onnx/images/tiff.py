"""Says how much memory the first page of a TIFF takes, by its tags. The limit is in limits.py; Pillow decodes.

A TIFF may claim strips and tiles of any size, and a compression whose decoder takes any memory.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from PIL import Image

from ..errors import InputError
from . import limits

COMPRESSIONS = (
    "raw",
    "tiff_ccitt",
    "group3",
    "group4",
    "tiff_lzw",
    "jpeg",
    "packbits",
    "tiff_adobe_deflate",
    "tiff_deflate",
)
MAX_VALUES = 200_000  # of one tag: Pillow makes a Python number of each
BYTE_TYPES = (1, 2, 6, 7)  # BYTE, ASCII, SBYTE, UNDEFINED: these stay bytes
ROWS_PER_STRIP, TILE_WIDTH, TILE_LENGTH = 278, 322, 323
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL, PLANAR, ORIENTATION = 258, 277, 284, 274
STRIPS_BYTES = 5_000_000  # of rows that are made RGB and resized, see preprocess.in_strips
JPEG_BYTES_PER_PIXEL = 8  # of a strip or tile of JPEG, of which a progressive one is in memory as coefficients


def check_directory(blob: bytes) -> None:
    """Raises InputError if a tag of the first page has very many values. `blob` begins as a TIFF."""
    for _, type_, count in tags_of(blob):
        if count > MAX_VALUES and type_ not in BYTE_TYPES:
            raise InputError(f"TIFF image has a tag of {count:,} values; at most {MAX_VALUES:,} are read")


def tags_of(blob: bytes) -> Iterator[tuple[int, int, int]]:
    """The tags of the first page: number, type and how many values. They end where the file does."""
    order, is_big = ("<" if blob[:2] == b"II" else ">"), 43 in blob[2:4]
    head, entry = (f"{order}Q", f"{order}HHQ8x") if is_big else (f"{order}H", f"{order}HHI4x")
    try:
        [at] = struct.unpack_from(f"{order}Q" if is_big else f"{order}I", blob, 8 if is_big else 4)
        [count] = struct.unpack_from(head, blob, at)
        at += struct.calcsize(head)
        for number in range(min(count, 65_535)):
            yield struct.unpack_from(entry, blob, at + number * struct.calcsize(entry))
    except (struct.error, OverflowError):
        return


def check(image: Image.Image, blob: bytes) -> None:
    """Raises InputError if decoding a TIFF, opened and not decoded, needs too much memory or an unusual decoder."""
    compression = image.info["compression"]
    if compression not in COMPRESSIONS:
        raise InputError(
            f"TIFF image compressed as {compression.removeprefix('tiff_')} is not read; save it with LZW or deflate"
        )
    if blob.count(b"\xff\xda") > limits.MAX_JPEG_SCANS * len(offsets_of(image)):
        raise InputError("TIFF image has JPEG parts of very many scans, which take long; save it with LZW or deflate")
    limits.check_memory(image, "TIFF", needed_bytes(image, blob))


def needed_bytes(image: Image.Image, blob: bytes) -> float:
    """The memory that reading a TIFF takes: its file, all pixels, one strip or tile of it, and rows to resize."""
    pixels = image.width * image.height * limits.BYTES_PER_PIXEL.get(image.mode, 4)
    if image.tag_v2.get(ORIENTATION, 1) != 1:  # type: ignore[attr-defined]  # Pillow turns it upright
        pixels *= 2
    return len(blob) + pixels + part_bytes(image) + STRIPS_BYTES


def offsets_of(image: Image.Image) -> tuple[int, ...]:
    """Where the strips or tiles are; (0,) if the tags do not say."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    found = tags.get(273) or tags.get(324) or (0,)
    return found if isinstance(found, tuple) else (found,)


def part_bytes(image: Image.Image) -> float:
    """The memory of the largest strip or tile while it is decoded. An uncompressed one is read row by row."""
    tags, compression = image.tag_v2, image.info["compression"]  # type: ignore[attr-defined]
    if compression == "raw":
        return 0
    across, down = tags.get(TILE_WIDTH), tags.get(TILE_LENGTH)
    if not across or not down:
        across, down = max(image.size), min(tags.get(ROWS_PER_STRIP, image.height), image.height)
    bits = max(tags.get(BITS_PER_SAMPLE, (1,))) * (1 if tags.get(PLANAR) == 2 else tags.get(SAMPLES_PER_PIXEL, 1))
    return across * down * max(bits / 8, JPEG_BYTES_PER_PIXEL if compression == "jpeg" else 0)
