"""What reading an image will cost, found in its bytes before a decoder is started; what costs too much is refused.

A file of at most 10 MB is read in less than 60 MB on top of what the process holds, in less than a second, or not at
all; HEIC, which needs a plugin, takes more. Decoding, which strips and scales keep within that, is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from ..errors import InputError

MAX_PIXELS = 25_000_000  # width * height of any image, however small its file
MAX_SIDE = 100_000  # pixels; a row is held whole
FRAME_BYTES = 40_000_000  # what a decoder may hold of one image
INTERLACED_BYTES = 30_000_000  # of an interlaced PNG, whose file is held twice
PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # bytes in Pillow's memory; of every other mode 4

# Bytes a pixel that Pillow 13.0 peaked at, file aside, 2026-11-22: WebP 17 to 19, its animation decoder holding a frame
# four times; AVIF 10 to 14 of 8 bits, more of 10; HEIC 8. Whoever installs pillow-heif does so for photos of 12
# megapixels, and may: one took 98 MB and 0.8 s with pillow-heif 1.8.1.
MAX_PIXELS_OF = {"WEBP": 2_100_000, "AVIF": 2_100_000, "HEIF": 13_000_000}
MAX_WEBP_BYTES = 4_000_000  # of a file; Pillow holds a copy of it beside the frames
NAMES = {"WEBP": "WebP", "HEIF": "HEIC"}

# Pillow undoes 230 MB/s of a PNG's rows stored the slowest way: 25 megapixels of four channels took 1.0 to 1.1 s of a
# core, 18 take 0.75 (Xeon Skylake-SP, the other core busy, 2026-11-22).
MAX_RGBA = 18_000_000  # pixels
MAX_RUN_LENGTH = 1_000_000  # pixels, and bytes, of a run-length coded BMP: Pillow decodes those in Python
MAX_BEFORE_FRAME = 256_000  # bytes of a GIF before its first frame; Pillow joins comments at quadratic cost
MAX_SEGMENTS = 2_000  # of a JPEG before its first scan: Pillow reads each in Python
MAX_JUNK = 64_000  # bytes there that belong to none, of which Pillow reads one at a time
MAX_SCANS = 30  # of a JPEG; usual are 10, and each goes over the whole image
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # of a JPEG: neither a stuffed byte nor a restart


def check_size(image: Image.Image) -> None:
    """Raises InputError for more pixels, or longer sides, than are read of an image in this format."""
    found = f"image of {image.width} x {image.height} pixels"
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{found} is too large: at most {MAX_PIXELS:,} pixels are read")
    if max(image.size) > MAX_SIDE:
        raise InputError(f"{found} is too long: sides of at most {MAX_SIDE:,} pixels are read")
    limit = MAX_PIXELS_OF.get(image.format or "")
    if limit is not None:
        check_pixels(image, NAMES.get(image.format or "", image.format or ""), limit)


def check_pixels(image: Image.Image, kind: str, limit: int) -> None:
    """Raises InputError where an image of a kind that needs much memory or time has more pixels than `limit`."""
    if image.width * image.height > limit:
        raise InputError(
            f"{kind} image of {image.width} x {image.height} pixels is too large: at most {limit:,} pixels are read"
            f" of that kind; send it smaller or as baseline JPEG"
        )


def check_png(image: Image.Image) -> None:
    """Raises InputError for a PNG of four channels that would take a second, or an interlaced one, which can only be
    decoded whole, that would take more than INTERLACED_BYTES."""
    if image.mode == "RGBA":
        check_pixels(image, "RGBA PNG", MAX_RGBA)
    if image.info.get("interlace"):
        check_pixels(image, "interlaced PNG", INTERLACED_BYTES // PER_PIXEL.get(image.mode, 4))


def check_bytes(kind: str, blob: bytes, limit: int) -> None:
    """Raises InputError where a file of a kind that needs much memory or time for each byte has more than `limit`."""
    if len(blob) > limit:
        raise InputError(
            f"{kind} image of {len(blob):,} bytes is too large: at most {limit:,} bytes are read of that kind; send it"
            " smaller or as baseline JPEG"
        )


def check_file(image: Image.Image, blob: bytes) -> None:
    """Raises InputError for a WebP, or a run-length coded BMP that would keep Python busy, of more than is read.

    `image` is open and not decoded.
    """
    if image.format == "WEBP":
        check_bytes("WebP", blob, MAX_WEBP_BYTES)
    if [tile[0] for tile in image.tile] == ["bmp_rle"]:  # type: ignore[attr-defined]
        check_pixels(image, "run-length coded BMP", MAX_RUN_LENGTH)
        check_bytes("run-length coded BMP", blob, MAX_RUN_LENGTH)


def check_gif(blob: bytes) -> None:
    """Raises InputError for a GIF with more before its first frame than is read."""
    at = 13 + (3 << (blob[10] & 7) + 1 if len(blob) > 10 and blob[10] & 0x80 else 0)
    while at < min(len(blob) - 1, MAX_BEFORE_FRAME) and blob[at] not in b",;":
        at += 1
        if blob[at - 1] == 0x21:  # an extension: its label, then blocks, the last of them empty
            at += 1
            while at < len(blob) and blob[at]:
                at += 1 + blob[at]
            at += 1
    if at >= MAX_BEFORE_FRAME:
        raise InputError(f"GIF image has more than {MAX_BEFORE_FRAME:,} bytes of comments before its first frame")


@dataclass(frozen=True)
class Jpeg:
    """What a JPEG's markers say: bytes of coefficients a pixel that are held to the end (0 where it is decoded row by
    row), whether it can be decoded at a scale, and how many scans it has."""

    coefficient_bytes: float
    scales: bool
    scans: int


def jpeg_segments(blob: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Marker, junk before it in bytes, start and end of its content: of each segment of a JPEG up to its end."""
    at = 2
    while (found := MARKER.search(blob, at)) and blob[found.end() - 1] != 0xD9:
        length = int.from_bytes(blob[found.end() : found.end() + 2], "big")
        yield blob[found.end() - 1], found.start() - at, found.end() + 2, found.end() + length
        at = found.end() + (0 if blob[found.end() - 1] in (0x01, 0xD8) else max(length, 2))


def read_jpeg(blob: bytes) -> Jpeg:
    """What is to be known of a JPEG before it is opened. One without a frame reads as the dearest kind.

    Raises InputError where opening it, or going through its scans, would take long.
    """
    kind, per_pixel, parts, scans, whole, junk = 0xC3, 8.0, 0, 0, False, 0
    for count, (marker, gap, start, end) in enumerate(jpeg_segments(blob)):
        junk += gap
        if not scans and (count > MAX_SEGMENTS or junk > MAX_JUNK):
            raise InputError(
                f"JPEG image has more than {MAX_SEGMENTS:,} segments or {MAX_JUNK:,} stray bytes before its first scan"
            )
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) and end - start >= 6:
            kind, parts = marker, blob[start + 5]
            factors = [(v >> 4, v & 15) for v in blob[start + 7 : end : 3]]
            largest = max(a for a, _ in factors) * max(d for _, d in factors) if factors else 0
            per_pixel = 2 * sum(a * d for a, d in factors) / largest if largest else 8.0
        elif marker == 0xDA:
            scans += 1
            whole = whole or kind & 3 == 2 or blob[start : start + 1] != bytes([parts])
            if not whole:  # one scan has it all
                break
            if scans > MAX_SCANS:
                raise InputError(
                    f"JPEG image has more than {MAX_SCANS} scans, which take long; send it as baseline JPEG"
                )
    return Jpeg(per_pixel if whole else 0, kind & 3 != 3, scans)


def jpeg_scale(image: Image.Image, jpeg: Jpeg, short: int, large: int) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG is to be decoded, by libjpeg's own scaling of its 8 x 8 blocks.

    One of more than `large` pixels as small as its short side stays `short` pixels; any as small as memory asks.
    Raises InputError where no scale suffices.
    """
    pixels, side = image.width * image.height, min(image.size)
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or (jpeg.scales and pixels > large and side // s >= short))

    def held(s: int) -> float:
        return pixels * (jpeg.coefficient_bytes + PER_PIXEL.get(image.mode, 4) / s**2)

    while held(scale) > FRAME_BYTES and jpeg.scales and scale < 8:
        scale *= 2
    if held(scale) > FRAME_BYTES:
        kind = "progressive JPEG" if jpeg.scales else "lossless JPEG"
        check_pixels(image, kind, int(FRAME_BYTES * pixels / held(scale) / 100_000) * 100_000)
    return scale
