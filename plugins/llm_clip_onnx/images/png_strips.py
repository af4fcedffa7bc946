"""Decodes a PNG in strips of rows, so that a large one is never in memory whole. The result is exactly Pillow's.

A row of a PNG is stored as differences to the bytes on its left and above it, so a strip is decoded with the last row
of the strip before on top of it. Each byte depends only on bytes at the same place in a pixel: a row whose pixels have
n bytes can be decoded as one of n channels of 8 bits, whatever the bytes mean, and without the lower byte of each
16 bits where Pillow drops that anyway. Not for interlaced images, whose rows come in seven passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImagePalette
from PIL.PngImagePlugin import PngImageFile

from ..errors import InputError
from .signatures import PNG_SIGNATURE

KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")  # a text or colour profile of 1 kB may inflate to 1 MB, repeatedly
MAX_EXIF_BYTES = 1_000_000  # of a chunk that is kept, because Pillow copies it repeatedly
MAX_CHUNKS = 20_000  # Pillow reads each in Python
INPUT_BYTES = 65_536  # given to zlib at once, which copies what it could not use
STRIP_BYTES = 1_000_000  # inflated, of a strip
STRIP_PIXELS = 500_000  # of a strip, if they have only a few bits
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class PngLayout:
    """Where things are in a PNG: the chunks before the image data that matter, as bytes, and the image data's parts."""

    header: bytes
    parts: Sequence[tuple[int, int]]  # start and end of the content of each IDAT chunk


def read_layout(blob: bytes) -> PngLayout:
    """The layout of a PNG, of one that is cut short up to there. Raises InputError if it has too many chunks."""
    kept, at, count, last = [PNG_SIGNATURE], len(PNG_SIGNATURE), 0, b""
    parts: list[tuple[int, int]] = []
    while at + 8 <= len(blob) and last != b"IEND":
        length, kind = int.from_bytes(blob[at : at + 4], "big"), blob[at + 4 : at + 8]
        if kind == b"IDAT" and (last == kind or not parts):  # image data after another chunk is not read
            parts.append((at + 8, min(at + 8 + length, len(blob))))
        elif kind in KEPT_CHUNKS and (kind == b"eXIf" or not parts) and is_intact(blob, at, length):
            kept.append(blob[at : at + 12 + length])
        at, count, last = at + 12 + length, count + 1, kind
        if count > MAX_CHUNKS:
            raise InputError(f"PNG image has more than {MAX_CHUNKS:,} chunks")
    return PngLayout(b"".join(kept), parts)


def is_intact(blob: bytes, at: int, length: int) -> bool:
    """True for a chunk that the image needs, and for another of a sane size whose checksum is right, as in browsers."""
    if not blob[at + 4] & 0x20:  # a capital letter: the image needs it
        return True
    if length > MAX_EXIF_BYTES:
        return False
    return zlib.crc32(blob[at + 4 : at + 8 + length]) == int.from_bytes(blob[at + 8 + length : at + 12 + length], "big")


def open_header(layout: PngLayout) -> Image.Image:
    """The image opened by Pillow, with everything but its pixels. Raises what Pillow raises."""
    return PngImageFile(BytesIO(layout.header + (b"\0\0\0\0IDAT" if layout.parts else b"")))


def open_whole(layout: PngLayout, blob: bytes) -> Image.Image:
    """The image opened by Pillow, without the chunks that do not matter; it decodes all of it at once.

    Raises what Pillow raises.
    """
    size = sum(end - start for start, end in layout.parts)
    whole = BytesIO()
    whole.write(layout.header + size.to_bytes(4, "big") + b"IDAT")
    for start, end in layout.parts:
        whole.write(memoryview(blob)[start:end])
    whole.write(b"\0\0\0\0\0\0\0\0IEND\xaeB\x60\x82")  # Pillow does not check the checksum of image data
    whole.seek(0)
    return PngImageFile(whole)


def decode_strips(image: Image.Image, layout: PngLayout, blob: bytes) -> Iterator[Image.Image]:
    """The image from top to bottom as images of a few rows each, in the mode that Pillow gives the whole.

    `image` comes from open_header. Raises OSError if the data are cut short, zlib.error or ValueError if they are
    broken.
    """
    width, (depth, colour) = image.width, layout.header[24:26]
    samples = SAMPLES[colour]
    drops_lower_byte = depth == 16 and samples > 1
    channels = CHANNELS[max(1, samples * depth // 8) if not drops_lower_byte else samples]
    stored_bytes = (width * samples * depth + 7) // 8  # of a row, after the byte that says how it is stored
    row_bytes = stored_bytes // 2 if drops_lower_byte else stored_bytes
    across = row_bytes // len(channels)
    row_above = bytes(row_bytes)
    strip_height = max(1, min(STRIP_BYTES // stored_bytes, STRIP_PIXELS // width))
    for rows in inflate_rows(layout, blob, stored_bytes + 1, image.height, strip_height):
        if drops_lower_byte:
            rows = np.concatenate([rows[:, :1], rows[:, 1::2]], 1)
        count = len(rows)
        packed = zlib.compress(b"\0" + row_above + rows.tobytes(), 0)
        decoded = Image.frombytes(channels, (across, count + 1), packed, "zip", channels)
        row_above = decoded.crop((0, count, across, count + 1)).tobytes()
        yield with_mode_of(image, decoded.crop((0, 1, across, count + 1)))


def with_mode_of(image: Image.Image, rows: Image.Image) -> Image.Image:
    """Decoded bytes of some rows as an image with the mode, palette and transparency of `image`."""
    raw_mode = image.tile[0][3]  # type: ignore[attr-defined]
    if raw_mode not in ("L", "LA", "LA;16B", "RGB", "RGB;16B", "RGBA", "RGBA;16B"):  # rows have one of these already
        rows = Image.frombytes(image.mode, (image.width, rows.height), rows.tobytes(), "raw", raw_mode)
    if image.palette is not None:
        rows.palette = ImagePalette.raw("RGB", image.palette.palette)
    rows.info = image.info.copy()
    return rows


def inflate_rows(
    layout: PngLayout, blob: bytes, row_bytes: int, height: int, strip_height: int
) -> Iterator[np.ndarray]:
    """The inflated image data: [rows, row_bytes] uint8, `strip_height` rows at a time, `height` in all.

    Raises OSError if there are fewer rows, zlib.error if the data are no zlib stream.
    """
    inflate = zlib.decompressobj()
    pieces = (
        blob[at : min(at + INPUT_BYTES, end)] for start, end in layout.parts for at in range(start, end, INPUT_BYTES)
    )
    unused = b""
    for top in range(0, height, strip_height):
        wanted = min(strip_height, height - top) * row_bytes
        rows = bytearray()
        while len(rows) < wanted:
            piece = unused or next(pieces, b"")
            more = inflate.decompress(piece, wanted - len(rows))
            if not more and (inflate.eof or not piece):
                raise OSError("image file is truncated")
            rows += more
            unused = inflate.unconsumed_tail
        yield np.frombuffer(rows, np.uint8).reshape(-1, row_bytes)
