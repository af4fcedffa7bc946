"""Turns image bytes into pixels, the input of CLIP's image tower, by Pillow and numpy.

An image is read as llm-clip reads it with transformers 5: RGB first, transparency on white (transformers 4 and
openai/CLIP dropped alpha), EXIF rotation ignored, 16-bit grey saturated, the first frame of an animation. The argument
`orient` selects another reading. Only the part inside the centre crop is converted to RGB and resized, some rows at a
time: transformers first makes 224 x 1,120,000 pixels of a 1 x 5000 image.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ..errors import InputError
from ..model_dir import Preprocess
from . import limits, png_strips
from .signatures import BUILT_IN, EXPECTED, FORMATS, format_of

LARGE_PIXELS = 4_000_000  # a larger PNG is decoded in strips, a larger JPEG at a scale
STRIP_PIXELS = 500_000  # of a decoded image, converted to RGB at once
FILTER_SUPPORT = 3  # pixels, of the larger of source and result: the reach of Pillow's widest filter
# A scaled JPEG's short side is at least this many times the shortest_side of Preprocess. Of 40 made JPEGs of 7 to 25
# megapixels the pixels then are 0.5 of 255 levels off on average, at most 16, and the demo model's embeddings have a
# cosine of 0.9995 or more, centred 0.9985, to those of the full decode (at 4 times: 0.17 levels, 0.9994, 0.9988, which
# is what 8-bit weights make of any difference; at 1: 1.9 levels, 0.9994, 0.998). Xeon Skylake-SP, 2026-11-22.
SCALED_JPEG_MARGIN = 2
SMALL_PIXELS, SMALL_BYTES = 500_000, 200_000  # of an image that is decoded without decode_lock, and of its file
ORIENTS = (None, "exif")
decode_lock = threading.Lock()  # one large image in memory at a time

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # limits.MAX_PIXELS is lower

EXIF_TRANSPOSE = {  # EXIF orientation: the operation that turns the image upright. Source: PIL/ImageOps.py
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Makes one small image of the strips of a large one. Called as resize_and_crop is, which is the usual one.
Render = Callable[[Iterable[Image.Image], Image.Image, Preprocess, str | None, tuple[int, int] | None], Image.Image]


def to_pixels(
    image: bytes | Image.Image,
    preprocess: Preprocess,
    orient: str | None = None,
    lock: AbstractContextManager = decode_lock,
) -> NDArray[np.float32]:
    """The pixels of one image, scaled and normalised: [3, crop, crop] float32. Holds `lock` to decode a large one.

    `orient` None reads as llm-clip does. "exif" turns the image upright by its EXIF orientation, and keeps the upper 8
    of 16 bits of grey, where llm-clip makes almost everything white; transparency is laid on white in both.
    Raises InputError for another `orient`, for anything but an image, for an image that would cost too much memory or
    time, and for one whose data are cut short or broken.
    Source: preprocess, openai/CLIP clip/clip.py; rounding as transformers' CLIPImageProcessor does it with Pillow.
    """
    if orient not in ORIENTS:
        raise InputError(f"orient {orient!r} is not known; expected 'exif', or None for llm-clip's reading")
    if not isinstance(image, bytes | Image.Image):
        raise InputError(f"{type(image).__name__} is not an image; expected bytes or a PIL image")
    with nullcontext() if is_small(image) else lock:
        crop = decode(image, preprocess, orient) if isinstance(image, bytes) else _crop(image, preprocess, orient)
    rgb = np.asarray(crop, np.float32) * np.float32(preprocess.scale)
    normalised = (rgb - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def is_small(image: bytes | Image.Image) -> bool:
    """True if decoding takes so little memory that it need not wait for the large images of other threads."""
    if isinstance(image, bytes) and len(image) > SMALL_BYTES:
        return False
    try:
        width, height = (open_image(image) if isinstance(image, bytes) else image).size
    except InputError:
        return False
    return width * height <= SMALL_PIXELS


def _crop(image: Image.Image, preprocess: Preprocess, orient: str | None) -> Image.Image:
    """As `decode` of a caller's PIL image, which is decoded whole: its memory is the caller's."""
    limits.check_dimensions(image)
    try:
        image.load()
        return resize_and_crop(in_strips(image), image, preprocess, orient)
    except Exception as error:
        raise _decoding_error(image, error) from error


def decode(blob: bytes, preprocess: Preprocess, orient: str | None, render: Render | None = None) -> Image.Image:
    """The centre crop of an image file, resized to RGB of crop x crop, or what `render` makes. Raises InputError."""
    render = render or resize_and_crop
    begins_as = format_of(blob)
    if begins_as == "PNG":
        return _decode_png(blob, preprocess, orient, render)
    if begins_as == "JPEG":
        return _decode_jpeg(blob, preprocess, orient, render)
    if begins_as == "GIF":
        limits.check_gif(blob)
    image = open_image(blob)
    limits.check_dimensions(image)
    limits.check_webp_and_bmp(image, blob)
    try:
        return render(in_strips(image), image, preprocess, orient, None)
    except Exception as error:  # the decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise _decoding_error(image, error, blob) from error


def _decode_png(blob: bytes, preprocess: Preprocess, orient: str | None, render: Render) -> Image.Image:
    """`decode` of a PNG: a large one in strips, unless it is interlaced."""
    layout = png_strips.read_layout(blob)
    image = _open(lambda: png_strips.open_header(layout), blob)
    limits.check_dimensions(image)
    limits.check_png(image)
    try:
        if image.info.get("interlace") or image.width * image.height <= LARGE_PIXELS:
            image = png_strips.open_whole(layout, blob)
            return render(in_strips(image), image, preprocess, orient, None)
        return render(png_strips.decode_strips(image, layout, blob), image, preprocess, orient, None)
    except Exception as error:
        raise _decoding_error(image, error, blob) from error


def _decode_jpeg(blob: bytes, preprocess: Preprocess, orient: str | None, render: Render) -> Image.Image:
    """`decode` of a JPEG: a large one at a scale of 1/2, 1/4 or 1/8, which libjpeg decodes faster too."""
    cost = limits.jpeg_cost(blob)
    image = open_image(blob)
    limits.check_dimensions(image)
    full_size = image.size
    scale = limits.jpeg_scale(image, cost, SCALED_JPEG_MARGIN * preprocess.shortest_side, LARGE_PIXELS)
    try:
        if scale > 1:
            image.draft(None, (full_size[0] // scale, full_size[1] // scale))
        return render(in_strips(image), image, preprocess, orient, full_size)
    except Exception as error:
        raise _decoding_error(image, error, blob) from error


def open_image(blob: bytes) -> Image.Image:
    """An image opened by Pillow and not yet decoded.

    Raises InputError for bytes that are no image of a format in signatures.FORMATS, or of one that needs a plugin which
    is not installed.
    """
    from PIL import AvifImagePlugin, WebPImagePlugin  # noqa: F401  # without these, Pillow imports all of its plugins

    formats = BUILT_IN + tuple(name for name in FORMATS if FORMATS[name].plugin and name in Image.OPEN)
    return _open(lambda: Image.open(io.BytesIO(blob), formats=formats), blob)


def _open(opener: Callable[[], Image.Image], blob: bytes) -> Image.Image:
    try:
        return opener()
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{len(blob)}-byte image is too large: at most {limits.MAX_PIXELS:,} pixels are read"
        ) from error
    except Exception as error:  # Pillow's readers raise many kinds of errors on bytes that only begin well
        raise InputError(f"{len(blob)}-byte blob is not an image; expected {EXPECTED}") from error


def _decoding_error(image: Image.Image, error: Exception, blob: bytes | None = None) -> InputError:
    size = f"{len(blob)}-byte " if blob is not None else ""
    return InputError(f"{size}{image.format or 'unknown'} image cannot be decoded: {error}")


def in_strips(image: Image.Image) -> Iterator[Image.Image]:
    """The image from top to bottom as images of some rows each. The first of them decodes the whole image."""
    height = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, height):
        yield image.crop((0, top, image.width, min(top + height, image.height)))


def resize_and_crop(
    strips: Iterable[Image.Image],
    image: Image.Image,
    preprocess: Preprocess,
    orient: str | None,
    full_size: tuple[int, int] | None = None,
) -> Image.Image:
    """The centre crop of an image whose rows come as `strips`, resized: RGB, crop x crop.

    `full_size` is the size of a JPEG that is decoded at a scale; the crop is computed from it.
    """
    orientation = exif_orientation(image) if orient == "exif" else 1
    size = full_size or image.size
    scale = round(size[0] / image.width)
    window = crop_window(size, preprocess, orientation)
    box = [float(np.float32(side / scale)) for side in window]  # Pillow takes it as float32
    crop = resize_strips(strips, image.size, box, preprocess, orient)
    return crop.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else crop


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, which is upright, if it has none or a broken one."""
    try:
        # PNG's own getexif decodes the image.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # browsers too show an image whose EXIF is broken
        return 1
    return orientation if orientation in EXIF_TRANSPOSE else 1


def crop_window(
    size: tuple[int, int], preprocess: Preprocess, orientation: int = 1
) -> tuple[float, float, float, float]:
    """The place in an image of `size`, before it is turned upright, of its centre crop: left, top, right, bottom.

    In pixels. Pillow samples there at the same points as if it resized the whole upright image and cropped then.
    """
    crop = preprocess.crop
    across, down = size[::-1] if orientation >= 5 else size
    width, height = (int(preprocess.shortest_side * side / min(size)) for side in (across, down))
    left, top = (width - crop) // 2, (height - crop) // 2
    x, y = across / width, down / height
    box = [(left * x, (left + crop) * x), (top * y, (top + crop) * y)]
    if orientation >= 5:
        box.reverse()
    for axis, mirrored_by in ((0, (2, 3, 7, 8)), (1, (3, 4, 6, 7))):
        if orientation in mirrored_by:
            box[axis] = (max(0.0, size[axis] - box[axis][1]), size[axis] - box[axis][0])
    (left_, right), (top_, bottom) = box
    return left_, top_, right, bottom


def source_range(low: float, high: float, target: int, side: int) -> tuple[int, int]:
    """The first and one after the last of `side` pixels that a filter reads to resize low..high to `target` pixels."""
    support = FILTER_SUPPORT * max(1.0, (high - low) / target)
    return max(0, int(low - support) - 1), min(side, int(high + support) + 2)


def resize_strips(
    strips: Iterable[Image.Image], size: tuple[int, int], box: list[float], preprocess: Preprocess, orient: str | None
) -> Image.Image:
    """The part in `box` of an image of `size` whose rows come as `strips`: RGB, crop x crop.

    Each strip of a large image is resized horizontally as it comes, and all of them vertically at the end. These are
    Pillow's own two passes, each rounded to 8 bits. (If an image is higher than wide, Pillow 13 resizes vertically
    first, which may differ by a level.)
    """
    left, top, right, bottom = box
    crop, filter_, is_large = preprocess.crop, Image.Resampling(preprocess.resample), size[0] * size[1] > LARGE_PIXELS
    first_column, end_column = source_range(left, right, crop, size[0]) if is_large else (0, size[0])
    first_row, end_row = source_range(top, bottom, crop, size[1]) if is_large else (0, size[1])
    kept = Image.new("RGB", (crop if is_large else size[0], end_row - first_row))
    y = 0  # of the strip's first row
    for strip in strips:
        upper, lower = max(y, first_row), min(y + strip.height, end_row)
        if upper < lower:
            rgb = to_rgb(strip.crop((first_column, upper - y, end_column, lower - y)), orient)
            if is_large:
                columns = (left - first_column, 0, right - first_column, rgb.height)
                rgb = rgb.resize((crop, rgb.height), filter_, box=columns)
            kept.paste(rgb, (0, upper - first_row))
        y += strip.height
    left, right = (0, crop) if is_large else (left, right)
    return kept.resize((crop, crop), filter_, box=(left, top - first_row, right, bottom - first_row))


def to_rgb(image: Image.Image, orient: str | None = None) -> Image.Image:
    """The image as RGB, its transparency on white. Source: convert_to_rgb, transformers 5.23.

    16-bit grey saturates, or is divided by 256 if `orient` is given.
    """
    if orient is not None and image.mode.startswith("I;16"):
        return grey_16_to_rgb(image)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):  # opaque everywhere: a quarter of the time
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def grey_16_to_rgb(image: Image.Image) -> Image.Image:
    """16-bit grey as RGB by its upper 8 bits; its transparent value, if it has one, becomes white."""
    grey = np.asarray(image)
    upper = (grey >> 8).astype(np.uint8)
    if image.info.get("transparency") is not None:
        upper[grey == image.info["transparency"]] = 255
    return Image.fromarray(upper).convert("RGB")
