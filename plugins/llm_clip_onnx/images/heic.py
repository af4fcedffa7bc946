"""Decodes HEIC by pillow-heif, the extra `photos`, and says how much memory that takes. The limit is in limits.py.

The rows come without Pillow's own copy of the image.

Memory at 12.2 megapixels of 8 bits, pillow-heif 1.8.1, 2026-11-26: 60.3 MB with a file of 1.7 MB in tiles of 512,
as phones write it; 61 MB coded in one piece, 86 MB with transparency. Decoding through Pillow took 92 MB.
"""

from __future__ import annotations

from collections.abc import Iterator

from PIL import Image

from . import limits

TILED, WHOLE, ALPHA, DEEP = 4.8, 4.9, 7.2, 9.0  # bytes a pixel, file aside
STRIP_PIXELS = 100_000  # at once, because each is copied twice


def bytes_per_pixel(image: Image.Image) -> float:
    """What decoding takes. `image` is opened by pillow-heif's plugin and not decoded."""
    if image.info.get("bit_depth", 8) > 8:
        return DEEP
    if "A" in image.mode:
        return ALPHA
    return TILED if image.info.get("tiling") else WHOLE


def check(image: Image.Image, blob: bytes) -> None:
    """Raises InputError if decoding needs too much memory."""
    limits.check_memory(image, "HEIC", len(blob) + image.width * image.height * bytes_per_pixel(image))


def decode_strips(image: Image.Image, blob: bytes) -> Iterator[Image.Image]:
    """The first image of a HEIC from top to bottom as images of some rows each, as its EXIF and rotation show it."""
    import pillow_heif

    file = pillow_heif.open_heif(blob, convert_hdr_to_8bit=True)
    pixels, (width, height), mode = memoryview(file.data), file.size, file.mode
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        count = min(rows, height - top)
        part = pixels[top * file.stride : (top + count) * file.stride]
        strip = Image.frombuffer(mode, (width, count), part, "raw", mode, file.stride, 1)  # type: ignore[arg-type]
        strip.info = {}
        yield strip
