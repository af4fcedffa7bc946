"""All limits on images, those on TIFF and HEIC too: refuses what costs too much memory or time before it is decoded.

With the limits of a server a file of at most 10 MB is read in less than 60 MB of memory beyond what the process already
uses, and in less than a second. A command on one's own machine reads what fits its memory. Decoding in strips and at a
scale, which keeps within that, is in preprocess.py and png_strips.py. tiff.py and heic.py say how much memory a TIFF or
HEIC takes; IMAGE_BYTES here says how much it may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from ..errors import InputError
from .signatures import FORMATS


@dataclass(frozen=True)
class ImageLimits:
    """How large images may be. place: where, for messages. pixels: width * height of any image. side: pixels.

    small_pixels, small_bytes: of an image that is decoded beside others; a larger one is decoded alone. bounds_cost:
    False if everything below in this module, about the memory and time of single formats, does not apply.
    """

    place: str
    pixels: int
    side: int  # because a row is always in memory whole
    small_pixels: int
    small_bytes: int
    bounds_cost: bool


SERVER = ImageLimits("", 25_000_000, 100_000, 500_000, 200_000, bounds_cost=True)
OWN_MACHINE = ImageLimits(" by a command", 200_000_000, 1_000_000, 60_000_000, 50_000_000, bounds_cost=False)

IMAGE_BYTES = 58_500_000  # of memory for a TIFF or HEIC: its file, decoded pixels, and what its decoder keeps beside
FRAME_BYTES = 40_000_000  # of one decoded image in memory
INTERLACED_BYTES = 30_000_000  # of a decoded interlaced PNG, because its file is in memory twice
BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}  # in Pillow's memory; 4 in every other mode

# Bytes a pixel that Pillow 13.0 peaked at, file aside, 2026-11-22: WebP 17 to 19, because its animation decoder keeps
# four copies of a frame; AVIF 10 to 14 with 8 bits, more with 10.
MAX_PIXELS_BY_FORMAT = {"WEBP": 2_100_000, "AVIF": 2_100_000}
MAX_WEBP_BYTES = 4_000_000  # of a file, because Pillow keeps a copy of it beside the frames

# Pillow undoes 230 MB/s of a PNG's rows stored the slowest way: 25 megapixels of four channels took 1.0 to 1.1 s of a
# core, 18 take 0.75 (Xeon Skylake-SP, the other core busy, 2026-11-22).
MAX_RGBA_PIXELS = 18_000_000
MAX_RUN_LENGTH = 1_000_000  # pixels, and bytes, of a run-length coded BMP, because Pillow decodes those in Python
MAX_GIF_PREAMBLE = 256_000  # bytes before the first frame, because Pillow joins comments at quadratic cost
MAX_JPEG_SEGMENTS = 2_000  # before the first scan, because Pillow reads each in Python
MAX_JPEG_STRAY_BYTES = 64_000  # there, outside all segments, because Pillow reads them one at a time
MAX_JPEG_SCANS = 30  # usual are 10, and each goes over the whole image
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # neither a stuffed byte nor a restart marker
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def check_dimensions(image: Image.Image, limits: ImageLimits) -> None:
    """Raises InputError if an image has more pixels, or a longer side, than is read of its format."""
    found = f"image of {image.width} x {image.height} pixels"
    if image.width * image.height > limits.pixels:
        raise InputError(f"{found} is too large: at most {limits.pixels:,} pixels are read{limits.place}")
    if max(image.size) > limits.side:
        raise InputError(f"{found} is too long: sides of at most {limits.side:,} pixels are read{limits.place}")
    if limits.bounds_cost and image.format in MAX_PIXELS_BY_FORMAT:
        check_pixels(image, FORMATS[image.format].name, MAX_PIXELS_BY_FORMAT[image.format])


def check_pixels(image: Image.Image, kind: str, limit: int) -> None:
    """Raises InputError if an image of a costly kind has more pixels than `limit`."""
    if image.width * image.height > limit:
        raise InputError(
            f"{kind} image of {image.width} x {image.height} pixels is too large: at most {limit:,} pixels are read"
            f" of that kind; send it smaller or as baseline JPEG"
        )


def check_memory(image: Image.Image, kind: str, needed_bytes: float) -> None:
    """Raises InputError if decoding an image of some kind needs more than IMAGE_BYTES of memory, its file included."""
    if needed_bytes > IMAGE_BYTES:
        raise InputError(
            f"{kind} image of {image.width} x {image.height} pixels is too large: it needs"
            f" {needed_bytes / 1e6:.0f} MB of memory, at most {IMAGE_BYTES / 1e6:.0f} MB are given to an image; send it"
            " smaller or as baseline JPEG"
        )


def check_bytes(blob: bytes, kind: str, limit: int) -> None:
    """Raises InputError if a file of a costly kind has more bytes than `limit`."""
    if len(blob) > limit:
        raise InputError(
            f"{kind} image of {len(blob):,} bytes is too large: at most {limit:,} bytes are read of that kind; send it"
            " smaller or as baseline JPEG"
        )


def check_png(image: Image.Image) -> None:
    """Raises InputError if a PNG has four channels and would take a second, or is interlaced and large.

    An interlaced PNG can only be decoded whole.
    """
    if image.mode == "RGBA":
        check_pixels(image, "RGBA PNG", MAX_RGBA_PIXELS)
    if image.info.get("interlace"):
        check_pixels(image, "interlaced PNG", INTERLACED_BYTES // BYTES_PER_PIXEL.get(image.mode, 4))


def check_webp_and_bmp(image: Image.Image, blob: bytes) -> None:
    """Raises InputError if a WebP or a run-length coded BMP is too large. `image` is opened and not decoded."""
    if image.format == "WEBP":
        check_bytes(blob, "WebP", MAX_WEBP_BYTES)
    if [tile[0] for tile in image.tile] == ["bmp_rle"]:  # type: ignore[attr-defined]
        check_pixels(image, "run-length coded BMP", MAX_RUN_LENGTH)
        check_bytes(blob, "run-length coded BMP", MAX_RUN_LENGTH)


def check_gif(blob: bytes) -> None:
    """Raises InputError if a GIF has too many bytes before its first frame."""
    at = 13 + (3 << (blob[10] & 7) + 1 if len(blob) > 10 and blob[10] & 0x80 else 0)  # after header and palette
    while at < min(len(blob) - 1, MAX_GIF_PREAMBLE) and blob[at] not in b",;":
        at += 1
        if blob[at - 1] == 0x21:  # an extension: its label, then blocks, the last of them empty
            at += 1
            while at < len(blob) and blob[at]:
                at += 1 + blob[at]
            at += 1
    if at >= MAX_GIF_PREAMBLE:
        raise InputError(f"GIF image has more than {MAX_GIF_PREAMBLE:,} bytes of comments before its first frame")


@dataclass(frozen=True)
class JpegCost:
    """What decoding a JPEG costs, by its markers."""

    coefficient_bytes: float  # a pixel, in memory until the last scan; 0 if it is decoded row by row
    can_scale: bool  # True if libjpeg can decode it at 1/2, 1/4 or 1/8
    scans: int


def jpeg_segments(blob: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Each segment of a JPEG up to its end: (marker, stray bytes before it, start of its content, end of it)."""
    at = 2
    while (marker := JPEG_MARKER.search(blob, at)) and blob[marker.end() - 1] != END_OF_IMAGE:
        length = int.from_bytes(blob[marker.end() : marker.end() + 2], "big")
        yield blob[marker.end() - 1], marker.start() - at, marker.end() + 2, marker.end() + length
        at = marker.end() + (0 if blob[marker.end() - 1] in (0x01, 0xD8) else max(length, 2))


def jpeg_cost(blob: bytes, bounds_cost: bool = True) -> JpegCost:
    """What decoding a JPEG costs, before it is opened. One without a frame header counts as the most costly kind.

    Raises InputError if opening it, or its scans, would take long, unless `bounds_cost` is False.
    """
    frame, per_pixel, components, scans, is_kept, stray = 0xC3, 8.0, 0, 0, False, 0
    for count, (marker, gap, start, end) in enumerate(jpeg_segments(blob)):
        stray += gap
        if bounds_cost and not scans and (count > MAX_JPEG_SEGMENTS or stray > MAX_JPEG_STRAY_BYTES):
            raise InputError(
                f"JPEG image has more than {MAX_JPEG_SEGMENTS:,} segments or {MAX_JPEG_STRAY_BYTES:,} stray bytes"
                " before its first scan"
            )
        if marker in range(0xC0, 0xD0) and marker not in (0xC4, 0xC8, 0xCC) and end - start >= 6:  # a frame header
            frame, components = marker, blob[start + 5]
            factors = [(v >> 4, v & 15) for v in blob[start + 7 : end : 3]]
            largest = max(a for a, _ in factors) * max(d for _, d in factors) if factors else 0
            per_pixel = 2 * sum(a * d for a, d in factors) / largest if largest else 8.0
        elif marker == START_OF_SCAN:
            scans += 1
            is_kept = is_kept or frame & 3 == 2 or blob[start : start + 1] != bytes([components])
            if not is_kept:  # this one scan has all components
                break
            if bounds_cost and scans > MAX_JPEG_SCANS:
                raise InputError(
                    f"JPEG image has more than {MAX_JPEG_SCANS} scans, which take long; send it as baseline JPEG"
                )
    return JpegCost(per_pixel if is_kept else 0, frame & 3 != 3, scans)


def jpeg_scale(image: Image.Image, cost: JpegCost, shortest_side: int, large: int, bounds_cost: bool = True) -> int:
    """The divisor 1, 2, 4 or 8 at which libjpeg decodes a JPEG, by scaling its 8 x 8 blocks.

    One of more than `large` pixels becomes as small as its short side, at least `shortest_side`, allows; any becomes as
    small as memory demands. Raises InputError if no divisor suffices. Memory demands nothing without `bounds_cost`.
    """
    pixels, side = image.width * image.height, min(image.size)
    scale = max(s for s in (1, 2, 4, 8) if s == 1 or (cost.can_scale and pixels > large and side // s >= shortest_side))

    def decoded_bytes(s: int) -> float:
        return bounds_cost * pixels * (cost.coefficient_bytes + BYTES_PER_PIXEL.get(image.mode, 4) / s**2)

    while decoded_bytes(scale) > FRAME_BYTES and cost.can_scale and scale < 8:
        scale *= 2
    if decoded_bytes(scale) > FRAME_BYTES:
        kind = "progressive JPEG" if cost.can_scale else "lossless JPEG"
        check_pixels(image, kind, int(FRAME_BYTES * pixels / decoded_bytes(scale) / 100_000) * 100_000)
    return scale
