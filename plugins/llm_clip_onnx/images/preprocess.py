"""Image bytes to pixels: what CLIP's image tower looks at, by Pillow and numpy.

The reading is llm-clip's, as it is with transformers 5: RGB first, what is transparent laid on white (transformers 4
and openai/CLIP dropped alpha), EXIF rotation ignored, 16-bit grey saturated, the first frame of an animation. `orient`
names another. Only the part that the centre crop keeps is ever made RGB or resized, some rows at a time: transformers
makes 224 x 1,120,000 pixels of a 1 x 5000 image first.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ..errors import InputError
from . import limits as image_limits
from . import png_strips

LARGE = 4_000_000  # pixels; from there PNG is decoded in strips and JPEG at a scale
STRIP = 500_000  # pixels of a decoded image that are made RGB at once
SUPPORT = 3  # pixels, of those in and out the larger: how far Pillow's widest filter looks
# A scaled JPEG's short side is at least this many times what is made of it. Of 40 made JPEGs of 7 to 25 megapixels the
# pixels then are 0.5 of 255 levels off on average, at most 16, and the demo model's embeddings have a cosine of 0.9995
# or more, centred 0.9985, to those of the full decode (at 4 times: 0.17 levels, 0.9994, 0.9988, which is what 8-bit
# weights make of any difference; at 1: 1.9 levels, 0.9994, 0.998). Xeon Skylake-SP, 2026-11-22.
SHARP = 2
SMALL, SMALL_BYTES = 500_000, 200_000  # pixels, and bytes of the file
ORIENTS = (None, "exif")
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # of all that Pillow knows, some start other programs
one_at_a_time = threading.Lock()  # is an image decoded, so that three at once do not need three times the memory

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # image_limits.MAX_PIXELS is the lower bound

TURNED = {  # EXIF orientation: how the image is brought upright. Source: exif_transpose, PIL/ImageOps.py
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Preprocess:
    """What a checkpoint says about pixels: sides in pixels, Pillow's number of a filter, mean and std per channel."""

    shortest_side: int
    crop: int
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float


# What is made of the rows of an image, as looked_at makes what CLIP looks at.
Look = Callable[[Iterable[Image.Image], Image.Image, Preprocess, str | None, tuple[int, int] | None], Image.Image]


def pixels_of(
    image: bytes | Image.Image, how: Preprocess, orient: str | None = None, lock: AbstractContextManager = one_at_a_time
) -> NDArray[np.float32]:
    """The pixels of one image: [3, crop, crop] float32, scaled and normalised. `lock` is held while a large one is
    decoded.

    `orient` None reads as llm-clip does. "exif" turns the image upright as its EXIF says, and keeps the upper 8 of 16
    bits of grey, which llm-clip makes white almost everywhere; alpha lies on white in both.
    Raises InputError for another `orient`, for anything else than an image, for one that would cost too much memory or
    time, and for one whose data are cut short or broken.
    Source: preprocess, openai/CLIP clip/clip.py; rounding as transformers' CLIPImageProcessor does it with Pillow.
    """
    if orient not in ORIENTS:
        raise InputError(f"orient {orient!r} is not known; expected 'exif', or None for llm-clip's reading")
    if not isinstance(image, bytes | Image.Image):
        raise InputError(f"{type(image).__name__} is not an image; expected bytes or a PIL image")
    with nullcontext() if is_small(image) else lock:
        cropped = read_bytes(image, how, orient) if isinstance(image, bytes) else read_image(image, how, orient)
    rgb = np.asarray(cropped, np.float32) * np.float32(how.scale)
    normalised = (rgb - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def is_small(image: bytes | Image.Image) -> bool:
    """Whether decoding takes little of anything, so that it need not wait for the photographs of others."""
    if isinstance(image, bytes) and len(image) > SMALL_BYTES:
        return False
    try:
        width, height = (open_image(image) if isinstance(image, bytes) else image).size
    except InputError:
        return False
    return width * height <= SMALL


def read_image(image: Image.Image, how: Preprocess, orient: str | None) -> Image.Image:
    """What CLIP looks at of an image of the caller's: RGB, crop x crop. Raises InputError.

    It is decoded whole, if it is not yet, never at a scale: its memory is the caller's.
    """
    image_limits.check_size(image)
    try:
        image.load()
        return looked_at(whole(image), image, how, orient)
    except Exception as error:
        raise undecodable(image, error) from error


def read_bytes(blob: bytes, how: Preprocess, orient: str | None, look: Look | None = None) -> Image.Image:
    """What CLIP looks at of an image file, RGB, crop x crop, or what `look` makes of it. Raises InputError."""
    look = look or looked_at
    if blob.startswith(png_strips.SIGNATURE):
        return read_png(blob, how, orient, look)
    if blob.startswith(b"\xff\xd8\xff"):
        return read_jpeg(blob, how, orient, look)
    if blob.startswith(b"GIF8"):
        image_limits.check_gif(blob)
    image = open_image(blob)
    image_limits.check_size(image)
    image_limits.check_file(image, blob)
    try:
        return look(whole(image), image, how, orient, None)
    except Exception as error:  # the decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise undecodable(image, error, blob) from error


def read_png(blob: bytes, how: Preprocess, orient: str | None, look: Look) -> Image.Image:
    """`read_bytes` of a PNG: a large one in strips, unless it is interlaced."""
    png = png_strips.read_png(blob)
    image = checked(lambda: png_strips.open_header(png), blob)
    image_limits.check_size(image)
    image_limits.check_png(image)
    try:
        if image.info.get("interlace") or image.width * image.height <= LARGE:
            image = png_strips.open_whole(png, blob)
            return look(whole(image), image, how, orient, None)
        return look(png_strips.strips(image, png, blob), image, how, orient, None)
    except Exception as error:
        raise undecodable(image, error, blob) from error


def read_jpeg(blob: bytes, how: Preprocess, orient: str | None, look: Look) -> Image.Image:
    """`read_bytes` of a JPEG: a large one at a scale of 1/2, 1/4 or 1/8, at which libjpeg decodes it faster too."""
    jpeg = image_limits.read_jpeg(blob)
    image = open_image(blob)
    image_limits.check_size(image)
    full, scale = image.size, image_limits.jpeg_scale(image, jpeg, SHARP * how.shortest_side, LARGE)
    try:
        if scale > 1:
            image.draft(None, (full[0] // scale, full[1] // scale))
        return look(whole(image), image, how, orient, full)
    except Exception as error:
        raise undecodable(image, error, blob) from error


def open_image(blob: bytes) -> Image.Image:
    """An image that Pillow can read, not yet decoded.

    Raises InputError for bytes that are no image of FORMATS, or of HEIC where a plugin has taught Pillow that.
    """
    from PIL import AvifImagePlugin, WebPImagePlugin  # noqa: F401  # without these, Pillow imports all of its plugins

    formats = FORMATS + (("HEIF",) if "HEIF" in Image.OPEN else ())
    return checked(lambda: Image.open(io.BytesIO(blob), formats=formats), blob)


def checked(opening, blob: bytes) -> Image.Image:
    """What `opening` gives. Raises InputError for all that it raises."""
    try:
        return opening()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{len(blob)}-byte image is too large: at most {image_limits.MAX_PIXELS:,} pixels are read"
        ) from error
    except Exception as error:  # Pillow's readers raise what they like on bytes that only begin well
        raise InputError(
            f"{len(blob)}-byte blob is not an image Pillow can open; expected JPEG, PNG, WebP or GIF bytes"
        ) from error


def undecodable(image: Image.Image, error: Exception, blob: bytes | None = None) -> InputError:
    size = f"{len(blob)}-byte " if blob is not None else ""
    return InputError(f"{size}{image.format or 'unknown'} image cannot be decoded: {error}")


def whole(image: Image.Image) -> Iterator[Image.Image]:
    """An image from top to bottom as images of some rows each, decoded at the first of them."""
    tall = max(1, STRIP // image.width)
    for top in range(0, image.height, tall):
        yield image.crop((0, top, image.width, min(top + tall, image.height)))


def looked_at(
    strips: Iterable[Image.Image],
    image: Image.Image,
    how: Preprocess,
    orient: str | None,
    full: tuple[int, int] | None = None,
) -> Image.Image:
    """The centre of an image of which `strips` are all rows, resized: RGB, crop x crop.

    `full` is the size of an image that is decoded at a scale, of which the window is taken.
    """
    turn = orientation(image) if orient == "exif" else 1
    size = full or image.size
    scale = round(size[0] / image.width)
    box = [float(np.float32(side / scale)) for side in window(size, how, turn)]  # Pillow takes it as float32
    small = resized(strips, image.size, box, how, orient)
    return small.transpose(TURNED[turn]) if turn in TURNED else small


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, which is upright, where it has none or none that can be read."""
    try:
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)  # PNG's own getexif decodes the image
    except Exception:  # browsers too show an image whose EXIF is broken
        return 1
    return turn if turn in TURNED else 1


def window(size: tuple[int, int], how: Preprocess, turn: int = 1) -> tuple[float, float, float, float]:
    """Where the centre crop of the resized, upright image lies in the image as it came: left, top, right, bottom.

    In pixels; Pillow samples there at the very same points as when it resizes all and crops then.
    """
    across, down = size[::-1] if turn >= 5 else size
    short = min(size)
    width, height = int(how.shortest_side * across / short), int(how.shortest_side * down / short)
    left, top = (width - how.crop) // 2, (height - how.crop) // 2
    x, y = across / width, down / height
    box = [(left * x, (left + how.crop) * x), (top * y, (top + how.crop) * y)]
    if turn >= 5:
        box.reverse()
    for axis, turns in ((0, (2, 3, 7, 8)), (1, (3, 4, 6, 7))):
        if turn in turns:
            box[axis] = (max(0.0, size[axis] - box[axis][1]), size[axis] - box[axis][0])
    (left_, right), (top_, bottom) = box
    return left_, top_, right, bottom


def reach(low: float, high: float, to: int, side: int) -> tuple[int, int]:
    """First and one after the last of `side` pixels that count where those from low to high are resized to `to`."""
    support = SUPPORT * max(1.0, (high - low) / to)
    return max(0, int(low - support) - 1), min(side, int(high + support) + 2)


def resized(
    strips: Iterable[Image.Image], size: tuple[int, int], box: list[float], how: Preprocess, orient: str | None
) -> Image.Image:
    """What lies in `box` of an image of which `strips` are all rows, as RGB of crop x crop.

    Of a large image each strip is resized across as it comes, and all of them down at the end: Pillow's own two passes,
    each rounded to 8 bits. (Of an image higher than wide Pillow 13 resizes down first, which may differ by a level.)
    """
    left, top, right, bottom = box
    resample, large = Image.Resampling(how.resample), size[0] * size[1] > LARGE
    first, last = reach(left, right, how.crop, size[0]) if large else (0, size[0])
    highest, lowest = reach(top, bottom, how.crop, size[1]) if large else (0, size[1])
    kept = Image.new("RGB", (how.crop if large else size[0], lowest - highest))
    at = 0
    for strip in strips:
        upper, lower = max(at, highest), min(at + strip.height, lowest)
        if upper < lower:
            rgb = as_rgb(strip.crop((first, upper - at, last, lower - at)), orient)
            if large:
                rgb = rgb.resize((how.crop, rgb.height), resample, box=(left - first, 0, right - first, rgb.height))
            kept.paste(rgb, (0, upper - highest))
        at += strip.height
    left, right = (0, how.crop) if large else (left, right)
    return kept.resize((how.crop, how.crop), resample, box=(left, top - highest, right, bottom - highest))


def as_rgb(image: Image.Image, orient: str | None = None) -> Image.Image:
    """The image as RGB, what is transparent laid on white. Source: convert_to_rgb, transformers 5.23.

    16-bit grey saturates, or is divided by 256 where `orient` is given.
    """
    if orient is not None and image.mode.startswith("I;16"):
        return shallow(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):  # nothing shines through: a quarter of the time
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def shallow(image: Image.Image) -> Image.Image:
    """16-bit grey as RGB by its upper 8 bits, its transparent value, if it has one, white."""
    grey = np.asarray(image)
    upper = (grey >> 8).astype(np.uint8)
    if image.info.get("transparency") is not None:
        upper[grey == image.info["transparency"]] = 255
    return Image.fromarray(upper).convert("RGB")
