"""PNG in strips of rows, so that a large one is never in memory whole; exactly what Pillow makes of it, by Pillow.

A row of a PNG is stored as differences to the bytes left of it and above it, so a strip is decoded with the last row
of the strip before on top of it. Each byte depends only on bytes of the same place in a pixel: a row whose pixels are
of n bytes can be decoded as one of n channels of 8 bits, whatever the bytes mean, and without the lower byte of each
16 bits where Pillow drops that anyway. Not for interlaced images, whose rows come in seven passes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImagePalette

from ..errors import InputError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
KEPT = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")  # a text or a colour profile of 1 kB may inflate to 1 MB, and often
MAX_CHUNKS = 20_000  # Pillow reads each in Python
INPUT_BYTES = 65_536  # given to zlib at once, which copies what it could not use
STRIP_BYTES = 1_000_000  # inflated, of a strip
STRIP_PIXELS = 500_000  # of a strip, if they are of a few bits only
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
CHANNELS = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Png:
    """A PNG's chunks that matter, up to the image data, as bytes; and start and end of each part of the image data."""

    header: bytes
    parts: Sequence[tuple[int, int]]


def read_png(blob: bytes) -> Png:
    """Where things are in a PNG; one that is cut short has what there is of it.

    Raises InputError for more chunks than are read.
    """
    kept, at, count, last = [SIGNATURE], len(SIGNATURE), 0, b""
    parts: list[tuple[int, int]] = []
    while at + 8 <= len(blob) and last != b"IEND":
        length, kind = int.from_bytes(blob[at : at + 4], "big"), blob[at + 4 : at + 8]
        if kind == b"IDAT" and (last == kind or not parts):  # what follows another chunk is not read
            parts.append((at + 8, min(at + 8 + length, len(blob))))
        elif kind in KEPT and (kind == b"eXIf" or not parts):
            kept.append(blob[at : at + 12 + length])
        at, count, last = at + 12 + length, count + 1, kind
        if count > MAX_CHUNKS:
            raise InputError(f"PNG image has more than {MAX_CHUNKS:,} chunks")
    return Png(b"".join(kept), parts)


def open_header(png: Png) -> Image.Image:
    """The image as Pillow sees it, of which everything but the pixels is there. Raises what Pillow raises."""
    return Image.open(BytesIO(png.header + (b"\0\0\0\0IDAT" if png.parts else b"")), formats=("PNG",))


def open_whole(png: Png, blob: bytes) -> Image.Image:
    """The image to be decoded by Pillow at once, without the chunks that do not matter. Raises what Pillow raises."""
    size = sum(end - start for start, end in png.parts)
    whole = BytesIO()
    whole.write(png.header + size.to_bytes(4, "big") + b"IDAT")
    for start, end in png.parts:
        whole.write(memoryview(blob)[start:end])
    whole.write(b"\0\0\0\0\0\0\0\0IEND\xaeB\x60\x82")  # Pillow does not look at the checksum of image data
    return Image.open(whole, formats=("PNG",))


def strips(image: Image.Image, png: Png, blob: bytes) -> Iterator[Image.Image]:
    """The image from top to bottom as images of some rows each, in the mode that Pillow gives the whole.

    `image` is what open_header gave. Raises OSError where the data are cut short, zlib.error or ValueError where they
    are broken.
    """
    width, (depth, colour) = image.width, png.header[24:26]
    samples = SAMPLES[colour]
    halved = depth == 16 and samples > 1
    channels = CHANNELS[max(1, samples * depth // 8) if not halved else samples]
    stored = (width * samples * depth + 7) // 8  # bytes a row, after the one that says how it is stored
    row = stored // 2 if halved else stored
    across = row // len(channels)
    above = bytes(row)
    tall = max(1, min(STRIP_BYTES // stored, STRIP_PIXELS // width))
    for rows in inflated(png, blob, stored + 1, image.height, tall):
        if halved:
            rows = np.concatenate([rows[:, :1], rows[:, 1::2]], 1)
        count = len(rows)
        packed = zlib.compress(b"\0" + above + rows.tobytes(), 0)
        decoded = Image.frombytes(channels, (across, count + 1), packed, "zip", channels)
        above = decoded.crop((0, count, across, count + 1)).tobytes()
        yield as_mode(decoded.crop((0, 1, across, count + 1)), image)


def as_mode(rows: Image.Image, image: Image.Image) -> Image.Image:
    """Decoded bytes of some rows as an image of the same mode, palette and transparency as `image`."""
    raw_mode = image.tile[0][3]  # type: ignore[attr-defined]
    if raw_mode not in ("L", "LA", "LA;16B", "RGB", "RGB;16B", "RGBA", "RGBA;16B"):  # which they have become already
        rows = Image.frombytes(image.mode, (image.width, rows.height), rows.tobytes(), "raw", raw_mode)
    if image.palette is not None:
        rows.palette = ImagePalette.raw("RGB", image.palette.palette)
    rows.info = image.info.copy()
    return rows


def inflated(png: Png, blob: bytes, row: int, height: int, tall: int) -> Iterator[np.ndarray]:
    """The image data inflated: [rows, row] uint8, `tall` rows at a time, `height` in all.

    Raises OSError where there are less, and zlib.error where they are no zlib stream.
    """
    inflate = zlib.decompressobj()
    pieces = (
        blob[at : min(at + INPUT_BYTES, end)] for start, end in png.parts for at in range(start, end, INPUT_BYTES)
    )
    waiting = b""
    for top in range(0, height, tall):
        wanted = min(tall, height - top) * row
        got = bytearray()
        while len(got) < wanted:
            piece = waiting or next(pieces, b"")
            more = inflate.decompress(piece, wanted - len(got))
            if not more and (inflate.eof or not piece):
                raise OSError("image file is truncated")
            got += more
            waiting = inflate.unconsumed_tail
        yield np.frombuffer(got, np.uint8).reshape(-1, row)
