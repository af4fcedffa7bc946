"""Resizes an image in its own Pillow mode and makes RGB of it afterwards, as open_clip does.

Alpha is dropped at the end, after Pillow has resized colours that are premultiplied by it; palettes and 1-bit images
keep the nearest pixel; 16-bit grey and deeper modes become RGB as Pillow does it. An image that is resized whole has
exactly the levels of open_clip, also one of 1 x 5000, of which only what is kept is computed. What differs:

- A large image is resized in strips, across first and down afterwards. That is Pillow's order but for an image over
  twice as high as wide, one that is squashed, and one that EXIF turns by 90 degrees: of those a quarter of the levels
  of a photo differ by one, some by two; where alpha is low by more, because colours are divided by it.
- Of a side that becomes very long, in modes of more than 8 bits, the place is rounded to float32: up to 1 in 20 levels
  of 16-bit grey differ by one or two.
- A longest side so much longer that the other would have 0 pixels is refused there; here the other has one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PREMULTIPLIED = {"RGBA": "RGBa", "LA": "La"}
STRAIGHT = {"RGBa": "RGBA", "La": "LA"}
EIGHT_BIT = ("L", "La", "RGB", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "PA")
NEAREST = ("1", "P")  # modes in which Pillow takes the nearest pixel, whatever the filter
LONG = 4  # times what is kept of it: of a longer side only that is computed where an image comes in strips
LONG_AT_ONCE = 16  # the same where it is resized whole
REACH = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2}  # pixels, of the larger of source and result

# Of each pixel that is kept: the first pixel that it is made of, and the weights of that and the next ones.
Weights = list[tuple[int, NDArray[np.float64]]]


@dataclass(frozen=True)
class Side:
    """One side of an image: `length` pixels become `target`, of which those from `first` to `end` are kept."""

    length: float  # no whole number for a JPEG that is decoded at a scale
    target: int
    first: int
    end: int

    @property
    def source(self) -> tuple[float, float]:
        """Where the pixels that are kept come from."""
        step = self.length / self.target
        return self.first * step, self.end * step

    @property
    def mirrored(self) -> Side:
        return replace(self, first=self.target - self.end, end=self.target - self.first)

    def is_longer(self, times: int) -> bool:
        """True if it becomes more than so many times as long as what is kept of it."""
        return self.target > times * (self.end - self.first)


def premultiplied(image: Image.Image, is_resized: bool) -> Image.Image:
    """The image with the alpha in its colours, if it has any and is resized: so does Pillow."""
    return image.convert(PREMULTIPLIED[image.mode]) if is_resized and image.mode in PREMULTIPLIED else image


def finish(image: Image.Image, crop: int, fill: int) -> Image.Image:
    """A resized image in the centre of a canvas of crop x crop, as RGB. The canvas has the level `fill` in its mode."""
    if image.mode in STRAIGHT:
        image = image.convert(STRAIGHT[image.mode])
    if image.size != (crop, crop):
        bands = len(image.getbands())
        canvas = like(image, (crop, crop), (fill,) * bands if bands > 1 else fill)
        canvas.paste(image, ((crop - image.width) // 2, (crop - image.height) // 2))
        image = canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def like(image: Image.Image, size: tuple[int, int], fill: int | tuple[int, ...] = 0) -> Image.Image:
    """A new image with the mode and palette of another."""
    new = Image.new(image.mode, size, fill)
    if palette := image.getpalette():
        new.putpalette(palette)
    return new


def joined(strips: Sequence[Image.Image]) -> Image.Image:
    """One image of strips that stand from top to bottom."""
    if len(strips) == 1:
        return strips[0]
    whole, top = like(strips[0], (strips[0].width, sum(strip.height for strip in strips))), 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole


def resize_whole(image: Image.Image, across: Side, down: Side, resample: Image.Resampling) -> Image.Image:
    """The part that is kept of an image, resized."""
    if not across.is_longer(LONG_AT_ONCE) and not down.is_longer(LONG_AT_ONCE):
        whole = image.resize((across.target, down.target), resample)
        return whole.crop((across.first, down.first, across.end, down.end))
    if down.is_longer(LONG_AT_ONCE) and down.target < down.length:  # Pillow 13 then resizes down first
        return resize_across(resize_down(image, 0, down, resample), across, resample)
    return resize_strips([image], across, down, resample)


def resize_strips(strips: Iterable[Image.Image], across: Side, down: Side, resample: Image.Resampling) -> Image.Image:
    """The same of an image whose rows come as `strips`: each is resized across as it comes, and all of them down."""
    top, bottom = source_range(weights(down, resample)) if down.is_longer(LONG) else (0, math.ceil(down.length))
    parts, y = [], 0  # of the strip's first row
    for strip in strips:
        upper, lower = max(y, top), min(y + strip.height, bottom)
        if upper < lower:
            parts.append(resize_across(strip.crop((0, upper - y, strip.width, lower - y)), across, resample))
        y += strip.height
    return resize_down(joined(parts), top, down, resample)


def resize_across(image: Image.Image, side: Side, resample: Image.Resampling) -> Image.Image:
    """All rows of an image, resized to the columns that are kept."""
    if not side.is_longer(LONG):
        resized = image.resize((side.target, image.height), resample, (0, 0, side.length, image.height))
        return resized.crop((side.first, 0, side.end, image.height))
    if image.mode in EIGHT_BIT + NEAREST:
        return resize_exactly(image, 1, 0, side, resample)
    first, end = source_range(weights(side, resample))
    left, right = (float(np.float32(at - first)) for at in side.source)
    box = (left, 0, right, image.height)
    return image.crop((first, 0, end, image.height)).resize((side.end - side.first, image.height), resample, box)


def resize_down(image: Image.Image, start: int, side: Side, resample: Image.Resampling) -> Image.Image:
    """An image of the rows from `start` that are needed, resized to the rows that are kept."""
    if not side.is_longer(LONG):
        resized = image.resize((image.width, side.target), resample, (0, 0, image.width, side.length))
        return resized.crop((0, side.first, image.width, side.end))
    if image.mode in EIGHT_BIT + NEAREST:
        return resize_exactly(image, 0, start, side, resample)
    first, end = source_range(weights(side, resample))
    top, bottom = (float(np.float32(at - first)) for at in side.source)
    box = (0, top, image.width, bottom)
    part = image.crop((0, first - start, image.width, end - start))
    return part.resize((image.width, side.end - side.first), resample, box)


def resize_exactly(image: Image.Image, axis: int, start: int, side: Side, resample: Image.Resampling) -> Image.Image:
    """Pixels from `start` of a side, resized to those that are kept as Pillow does it. axis: 0 down, 1 across."""
    levels = np.moveaxis(np.asarray(image), axis, 0)  # [pixels, other side] or [pixels, other side, channels]
    pixels = nearest(side) if image.mode in NEAREST else weights(side, resample)
    sums = np.stack([np.tensordot(each, levels[at - start : at - start + len(each)], 1) for at, each in pixels])
    resized = np.moveaxis(np.clip(np.floor(sums / 2**22 + 0.5), 0, 255).astype(np.uint8), 0, axis)
    new = like(image, resized.shape[1::-1])
    new.frombytes(resized.tobytes(), "raw", "1;8" if image.mode == "1" else image.mode)
    return new


def source_range(pixels: Weights) -> tuple[int, int]:
    """The first and one after the last of the pixels that others are made of."""
    return pixels[0][0], pixels[-1][0] + len(pixels[-1][1])


@lru_cache(8)
def weights(side: Side, resample: Image.Resampling) -> Weights:
    """What each pixel that is kept of a side is made of, in units of 1 / 2 ** 22.

    Source: precompute_coeffs and normalize_coeffs_8bpc, Pillow's Resample.c.
    """
    step = side.length / side.target
    widened = max(step, 1.0)
    reach = REACH[resample] * widened
    found = []
    for pixel in range(side.first, side.end):
        centre = (pixel + 0.5) * step
        low = max(0, int(centre - reach + 0.5))
        high = min(math.ceil(side.length), int(centre + reach + 0.5))
        each = kernel(np.abs((np.arange(low, high) - centre + 0.5) * (1 / widened)), resample)
        each *= 2**22 / each.sum()
        found.append((low, np.trunc(each + np.copysign(0.5, each))))
    return found


@lru_cache(8)
def nearest(side: Side) -> Weights:
    """The same where a pixel is made of the nearest one. Source: ImagingScaleAffine, Pillow's Geometry.c."""
    step = side.length / side.target
    at, found = step * 0.5, []
    for pixel in range(side.end):  # Pillow too adds up the steps, with their rounding errors
        if pixel >= side.first:
            found.append((int(at), np.array([2.0**22])))
        at += step
    return found


def kernel(x: NDArray[np.float64], resample: Image.Resampling) -> NDArray[np.float64]:
    """The weight of a pixel at the distance `x`, 0 or more. Source: Pillow's bilinear_filter and bicubic_filter."""
    if resample == Image.Resampling.BILINEAR:
        return np.where(x < 1, 1 - x, 0)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0))
