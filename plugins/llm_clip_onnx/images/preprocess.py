"""Opens an image file of any format, decodes it, and makes of it the pixels that an image tower reads.

Every image that comes in passes here. How large it may be is in limits.py.

An image is read as llm-clip reads it with transformers 5: RGB first, transparency on white (transformers 4 and
openai/CLIP dropped alpha), EXIF rotation ignored, 16-bit grey saturated, the first frame of an animation. The argument
`orient` selects another reading. Only the part inside the centre crop is converted to RGB and resized, some rows at a
time: transformers first makes 224 x 1,120,000 pixels of a 1 x 5000 image. Where Preprocess says open_clip it is read as
open_clip reads it: resized first and made RGB afterwards, in own_mode.py.
"""

from __future__ import annotations

import importlib
import io
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ..errors import InputError, cited, counted, shortened
from ..model_dir import Preprocess
from . import heic, limits, own_mode, png_strips, tiff
from .limits import SERVER, ImageLimits
from .own_mode import Side
from .signatures import FORMATS, format_of, sentence_of

LARGE_PIXELS = 4_000_000  # a larger PNG is decoded in strips, a larger JPEG at a scale
STRIP_PIXELS = 500_000  # of a decoded image, converted to RGB at once
FILTER_SUPPORT = 3  # pixels, of the larger of source and result: the reach of Pillow's widest filter
# A scaled JPEG's short side is at least this many times the shortest_side of Preprocess. Of 40 made JPEGs of 7 to 25
# megapixels the pixels then are 0.5 of 255 levels off on average, at most 16, and the demo model's embeddings have a
# cosine of 0.9995 or more, centred 0.9985, to those of the full decode (at 4 times: 0.17 levels, 0.9994, 0.9988, which
# is what 8-bit weights make of any difference; at 1: 1.9 levels, 0.9994, 0.998). Xeon Skylake-SP, 2026-11-22.
SCALED_JPEG_MARGIN = 2
ORIENTS = (None, "exif")
decode_lock = threading.Lock()  # one large image in memory at a time

warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # about each tag of a broken TIFF or EXIF

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
    bounds: ImageLimits = SERVER,
    render: Render | None = None,
) -> NDArray[np.float32]:
    """The pixels of one image, scaled and normalised: [3, crop, crop] float32. Large ones are decoded one at a time.

    `orient` None reads as llm-clip does. "exif" turns the image upright by its EXIF orientation, and keeps the upper 8
    of 16 bits of grey, where llm-clip makes almost everything white; transparency is laid on white in both, but dropped
    where `preprocess` names open_clip.
    `render` takes the place of resize_and_crop for bytes, so that a caller sees the image while it is decoded.
    Raises InputError for another `orient`, for anything but an image, for an image beyond `bounds`, and for one whose
    data are cut short or broken.
    Source: preprocess, openai/CLIP clip/clip.py; rounding as transformers' CLIPImageProcessor does it with Pillow.
    """
    if orient not in ORIENTS:
        raise InputError(f"orient {cited(orient)} is not known; expected 'exif', or None for llm-clip's reading")
    if not isinstance(image, bytes | Image.Image):
        raise InputError(f"{type(image).__name__} is not an image; expected bytes or a PIL image")
    with nullcontext() if is_small(image, bounds) else decode_lock:
        if isinstance(image, bytes):
            crop = decode(image, preprocess, orient, render, bounds)
        else:
            crop = _crop(image, preprocess, orient, bounds)
    rgb = np.asarray(crop, np.float32) * np.float32(preprocess.scale)
    normalised = (rgb - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def is_small(image: bytes | Image.Image, bounds: ImageLimits) -> bool:
    """True if decoding takes so little memory that it need not wait for the large images of other threads."""
    if isinstance(image, bytes) and len(image) > bounds.small_bytes:
        return False
    try:
        width, height = (open_image(image, bounds) if isinstance(image, bytes) else image).size
    except InputError:
        return False
    return width * height <= bounds.small_pixels


def _crop(image: Image.Image, preprocess: Preprocess, orient: str | None, bounds: ImageLimits) -> Image.Image:
    """As `decode` of a caller's PIL image, which is decoded whole: its memory is the caller's."""
    limits.check_dimensions(image, bounds)
    try:
        image.load()
        return resize_and_crop(in_strips(image), image, preprocess, orient)
    except Exception as error:
        raise _decoding_error(image, error) from error


def decode(
    blob: bytes,
    preprocess: Preprocess,
    orient: str | None,
    render: Render | None = None,
    bounds: ImageLimits = SERVER,
) -> Image.Image:
    """The centre crop of an image file, resized to RGB of crop x crop, or what `render` makes. Raises InputError."""
    render = render or resize_and_crop
    image = open_image(blob, bounds)
    limits.check_dimensions(image, bounds)
    if bounds.bounds_cost:
        check_cost(image, blob)
    try:
        full_size = scale_jpeg(image, blob, preprocess, bounds) if image.format in ("JPEG", "MPO") else None
        return render(strips_of(image, blob), image, preprocess, orient, full_size)
    except InputError:
        raise
    except Exception as error:  # the decoders raise OSError, SyntaxError, struct.error, ValueError...
        raise _decoding_error(image, error, blob) from error


def open_image(blob: bytes, bounds: ImageLimits = SERVER) -> Image.Image:
    """An image opened by Pillow and not yet decoded. Every image that comes in is opened here.

    Chunks of a PNG that say nothing of its pixels are not looked at. Raises InputError for bytes that are no image of a
    format in signatures.FORMATS, for one whose extra is not installed, and for one that takes long to open.
    """
    begins_as = format_of(blob)
    if begins_as is None:
        raise InputError(sentence_of(blob))
    if begins_as == "JPEG":
        limits.jpeg_cost(blob, bounds.bounds_cost)
    elif begins_as == "TIFF":
        tiff.check_directory(blob)
    elif begins_as == "GIF" and bounds.bounds_cost:
        limits.check_gif(blob)
    try:
        if begins_as == "PNG":
            return png_strips.open_header(png_strips.read_layout(blob))
        return opener_of(begins_as)(io.BytesIO(blob), "")
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise many kinds of errors on bytes that only begin well
        name = FORMATS[begins_as].name
        size = counted(len(blob), "byte")
        raise InputError(f"begins as {name} and cannot be opened as one ({size})") from error


def opener_of(name: str) -> Callable[[io.BytesIO, str], Image.Image]:
    """What opens images of a format in Pillow. Raises InputError if the extra that has it is not installed.

    Image.open would import all plugins for AVIF, WebP and TIFF, and refuses 179 megapixels, whatever the limits say.
    """
    known = FORMATS[name]
    try:
        plugin = importlib.import_module(known.opener)
    except ImportError as error:
        raise InputError(
            f"{known.name} is read only with the extra {known.extra}: pip install 'datasette-clip[{known.extra}]', or"
            " send it as JPEG"
        ) from error
    if known.extra and name not in Image.OPEN:
        plugin.register_heif_opener(decode_threads=1)  # each thread takes memory, and CLIP needs the other cores
    return Image.OPEN[name][0]


def check_cost(image: Image.Image, blob: bytes) -> None:
    """Raises InputError if decoding an opened image would cost a server too much memory or time."""
    if image.format == "PNG":
        limits.check_png(image)
    elif image.format == "TIFF":
        tiff.check(image, blob)
    elif image.format == "HEIF":
        heic.check(image, blob)
    else:
        limits.check_webp_and_bmp(image, blob)


def scale_jpeg(image: Image.Image, blob: bytes, preprocess: Preprocess, bounds: ImageLimits) -> tuple[int, int]:
    """The size of a JPEG, which from now on is decoded at a scale of 1/2, 1/4 or 1/8 if it is large: faster too."""
    width, height = image.size
    cost = limits.jpeg_cost(blob, bounds.bounds_cost)
    side = SCALED_JPEG_MARGIN * preprocess.shortest_side
    scale = limits.jpeg_scale(image, cost, side, LARGE_PIXELS, bounds.bounds_cost)
    if scale > 1:
        image.draft(None, (width // scale, height // scale))  # type: ignore[attr-defined]
    return width, height


def strips_of(image: Image.Image, blob: bytes) -> Iterable[Image.Image]:
    """The rows of an opened image, as images of some rows each: a large PNG and a HEIC are never in memory whole."""
    if image.format == "HEIF":
        return heic.decode_strips(image, blob)
    if image.format != "PNG":
        return in_strips(image)
    layout = png_strips.read_layout(blob)
    if image.info.get("interlace") or image.width * image.height <= LARGE_PIXELS:
        return in_strips(png_strips.open_whole(layout, blob))
    return png_strips.decode_strips(image, layout, blob)


def _decoding_error(image: Image.Image, error: Exception, blob: bytes | None = None) -> InputError:
    size = f" of {counted(len(blob), 'byte')}" if blob is not None else ""
    return InputError(f"{image.format or 'unknown'} image{size} cannot be decoded: {shortened(error)}")


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
    if preprocess.library == "open_clip":
        return resize_in_own_mode(strips, preprocess, orient, orientation, size, scale)
    across, down = sides(size, preprocess, orientation, scale)
    (left, right), (top, bottom) = across.source, down.source
    box = [float(np.float32(side)) for side in (left, top, right, bottom)]  # Pillow takes it as float32
    kept = across.end - across.first, down.end - down.first
    crop = resize_strips(strips, image.size, box, kept, preprocess.resample, orient)
    return own_mode.finish(turned(crop, orientation), preprocess.crop, preprocess.fill)


def resize_in_own_mode(
    strips: Iterable[Image.Image],
    preprocess: Preprocess,
    orient: str | None,
    orientation: int,
    size: tuple[int, int],
    scale: int,
) -> Image.Image:
    """As resize_and_crop, of an image that is made RGB afterwards, see own_mode.py.

    One that is large, or decoded at a scale, is turned upright at the end: nothing of it is in memory whole.
    """
    resample = Image.Resampling(preprocess.resample)
    across, down = sides(size, preprocess, orientation, scale)
    is_resized = (across.target, down.target) != size
    strips = (own_mode.premultiplied(deep_grey_to_rgb(strip, orient), is_resized) for strip in strips)
    if scale == 1 and size[0] * size[1] <= LARGE_PIXELS:
        whole = turned(own_mode.joined(list(strips)), orientation)
        crop = own_mode.resize_whole(whole, *sides(whole.size, preprocess), resample)
    else:
        crop = turned(own_mode.resize_strips(strips, across, down, resample), orientation)
    return own_mode.finish(crop, preprocess.crop, preprocess.fill)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image turned upright by its EXIF orientation."""
    return image.transpose(EXIF_TRANSPOSE[orientation]) if orientation in EXIF_TRANSPOSE else image


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, which is upright, if it has none or a broken one.

    Pillow turns a TIFF upright itself, and libheif a HEIC.
    """
    if image.format in ("TIFF", "HEIF"):
        return 1
    try:
        # PNG's own getexif decodes the image.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # browsers too show an image whose EXIF is broken
        return 1
    return orientation if orientation in EXIF_TRANSPOSE else 1


def sides(size: tuple[int, int], preprocess: Preprocess, orientation: int = 1, scale: int = 1) -> tuple[Side, Side]:
    """Width and height of an image of `size`, before it is turned upright, with what is kept of them: see Preprocess.

    It is decoded at a `scale` of 1 / 2, 4 or 8. Pillow samples what is kept at the same points as if it resized the
    whole upright image and cropped then. Source: torchvision's resize and center_crop, open_clip's ResizeKeepRatio.
    """
    crop = preprocess.crop
    upright = size[::-1] if orientation >= 5 else size
    found = []
    for length in upright:
        if preprocess.resize == "shortest":
            target = int(preprocess.shortest_side * length / min(size))
        elif preprocess.resize == "longest":
            target = max(1, round(length / (max(size) / crop)))  # open_clip refuses a side of 0
        else:
            target = crop
        rest = max(0, target - crop)
        first = round(rest / 2) if preprocess.library == "open_clip" else rest // 2
        found.append(Side(length / scale, target, first, first + min(crop, target)))
    if orientation >= 5:
        found.reverse()
    for axis, mirrored_by in ((0, (2, 3, 7, 8)), (1, (3, 4, 6, 7))):
        if orientation in mirrored_by:
            found[axis] = found[axis].mirrored
    return found[0], found[1]


def source_range(low: float, high: float, target: int, side: int) -> tuple[int, int]:
    """The first and one after the last of `side` pixels that a filter reads to resize low..high to `target` pixels."""
    support = FILTER_SUPPORT * max(1.0, (high - low) / target)
    return max(0, int(low - support) - 1), min(side, int(high + support) + 2)


def resize_strips(
    strips: Iterable[Image.Image],
    size: tuple[int, int],
    box: list[float],
    target: tuple[int, int],
    resample: int,
    orient: str | None,
) -> Image.Image:
    """The part in `box` of an image of `size` whose rows come as `strips`, resized to `target`: RGB.

    Each strip of a large image is resized horizontally as it comes, and all of them vertically at the end. These are
    Pillow's own two passes, each rounded to 8 bits. (If an image is higher than wide, Pillow 13 resizes vertically
    first, which may differ by a level.)
    """
    left, top, right, bottom = box
    (width, height), filter_, is_large = target, Image.Resampling(resample), size[0] * size[1] > LARGE_PIXELS
    first_column, end_column = source_range(left, right, width, size[0]) if is_large else (0, size[0])
    first_row, end_row = source_range(top, bottom, height, size[1]) if is_large else (0, size[1])
    kept = Image.new("RGB", (width if is_large else size[0], end_row - first_row))
    y = 0  # of the strip's first row
    for strip in strips:
        upper, lower = max(y, first_row), min(y + strip.height, end_row)
        if upper < lower:
            rgb = to_rgb(strip.crop((first_column, upper - y, end_column, lower - y)), orient)
            if is_large:
                columns = (left - first_column, 0, right - first_column, rgb.height)
                rgb = rgb.resize((width, rgb.height), filter_, box=columns)
            kept.paste(rgb, (0, upper - first_row))
        y += strip.height
    left, right = (0, width) if is_large else (left, right)
    return kept.resize(target, filter_, box=(left, top - first_row, right, bottom - first_row))


def to_rgb(image: Image.Image, orient: str | None = None) -> Image.Image:
    """The image as RGB, its transparency on white. Source: convert_to_rgb, transformers 5.23.

    16-bit grey saturates, or is divided by 256 if `orient` is given.
    """
    image = deep_grey_to_rgb(image, orient)
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):  # opaque everywhere: a quarter of the time
        return rgba.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def deep_grey_to_rgb(image: Image.Image, orient: str | None) -> Image.Image:
    """16-bit grey as RGB by its upper 8 bits, its transparent value white, if `orient` is given. Others as they are."""
    if orient is None or not image.mode.startswith("I;16"):
        return image
    grey = np.asarray(image)
    upper = (grey >> 8).astype(np.uint8)
    if image.info.get("transparency") is not None:
        upper[grey == image.info["transparency"]] = 255
    return Image.fromarray(upper).convert("RGB")
