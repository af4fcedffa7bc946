"""Image bytes to pixels: what CLIP's image tower looks at, by Pillow and numpy.

The reading is llm-clip's, as it is with transformers 5: RGB first, what is transparent laid on white (transformers 4
and openai/CLIP dropped alpha), EXIF rotation ignored, 16-bit grey saturated, the first frame of an animation. Only the
part that the centre crop keeps is ever resized: transformers makes 224 x 1,120,000 pixels of a 1 x 5000 image first.
"""

from __future__ import annotations

import io
import threading
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import InputError

MAX_PIXELS = 25_000_000  # width * height of an image: 100 MB decoded, however small its file
MAX_PIXELS_OF = {"WEBP": 10_000_000, "AVIF": 10_000_000}  # whose decoders hold a frame four times over
STRIP = 64  # rows
one_at_a_time = threading.Lock()  # is an image decoded, so that three at once do not need three times the memory
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")  # of all that Pillow knows, some start other programs

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # MAX_PIXELS is the lower bound


@dataclass(frozen=True)
class Preprocess:
    """What a checkpoint says about pixels: sides in pixels, Pillow's number of a filter, mean and std per channel."""

    shortest_side: int
    crop: int
    resample: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float


def open_image(blob: bytes) -> Image.Image:
    """An image that Pillow can read, not yet decoded.

    Raises InputError for bytes that are no image of FORMATS.
    """
    try:
        return Image.open(io.BytesIO(blob), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"{len(blob)}-byte image is too large: at most {MAX_PIXELS:,} pixels are read") from error
    except Exception as error:  # Pillow's readers raise what they like on bytes that only begin well
        raise InputError(
            f"{len(blob)}-byte blob is not an image Pillow can open; expected JPEG, PNG, WebP or GIF bytes"
        ) from error


def pixels_of(image: bytes | Image.Image, how: Preprocess) -> NDArray[np.float32]:
    """The pixels of one image: [3, crop, crop] float32, scaled and normalised.

    Raises InputError for anything else than an image, for one of more pixels than are read, and for one whose data are
    cut short or broken.
    Source: preprocess, openai/CLIP clip/clip.py; rounding as transformers' CLIPImageProcessor does it with Pillow.
    """
    if isinstance(image, bytes):
        opened = open_image(image)
    elif isinstance(image, Image.Image):
        opened = image
    else:
        raise InputError(f"{type(image).__name__} is not an image; expected bytes or a PIL image")
    limit = MAX_PIXELS_OF.get(opened.format or "", MAX_PIXELS)
    if opened.width * opened.height > limit:
        raise InputError(
            f"image of {opened.width} x {opened.height} pixels is too large: at most {limit:,} pixels are read"
        )
    try:
        with one_at_a_time:
            cropped = crop_window(as_rgb(opened), how)
    except Exception as error:  # the decoders raise OSError, SyntaxError, struct.error, ValueError...
        size = f"{len(image)}-byte " if isinstance(image, bytes) else ""
        raise InputError(f"{size}{opened.format or 'unknown'} image cannot be decoded: {error}") from error
    rgb = np.asarray(cropped, np.float32) * np.float32(how.scale)
    normalised = (rgb - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1), np.float32)


def as_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB, what is transparent laid on white. Source: convert_to_rgb, transformers 5.23.

    In strips, and without a copy where it is RGB already: 25 megapixels are 100 MB, and each copy as much again.
    """
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size)
    for top in range(0, rgba.height, STRIP):
        strip = rgba.crop((0, top, rgba.width, min(top + STRIP, rgba.height)))
        on_white = Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip)
        rgb.paste(on_white.convert("RGB"), (0, top))
    return rgb


def crop_window(image: Image.Image, how: Preprocess) -> Image.Image:
    """Resize the shortest side and crop the centre, in one step: an image of crop x crop pixels.

    The window is where the crop lies in the image as it came, so Pillow samples at the very same points.
    """
    short = min(image.size)
    width, height = (int(how.shortest_side * side / short) for side in image.size)
    left, top = (width - how.crop) // 2, (height - how.crop) // 2
    across, down = image.width / width, image.height / height
    box = (left * across, top * down, (left + how.crop) * across, (top + how.crop) * down)
    return image.resize((how.crop, how.crop), Image.Resampling(how.resample), box=box)
