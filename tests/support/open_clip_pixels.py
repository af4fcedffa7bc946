"""What open_clip makes of an image, in Pillow and numpy alone: to be read beside open_clip/transform.py.

The oracle of images that are read as open_clip reads them: same names, same order. `resize`, `pad` and `center_crop` are
those of torchvision.transforms.functional. It imports nothing of ours.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

MODES = ("shortest", "squash", "longest")
OPENAI_DATASET_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_DATASET_STD = (0.26862954, 0.26130258, 0.27577711)


def resize(img, size, interpolation):
    """To the size (height, width), or, where it is a number, with the shorter side that long."""
    w, h = img.size
    if isinstance(size, int):
        short, long = (w, h) if w <= h else (h, w)
        new_short, new_long = size, int(size * long / short)
        size = (new_long, new_short) if w <= h else (new_short, new_long)
    if (h, w) == tuple(size):
        return img
    return img.resize((size[1], size[0]), interpolation)


def resize_keep_ratio(img, target_size, interpolation):
    """ResizeKeepRatio with longest=1."""
    w, h = img.size
    ratio = max(h / target_size, w / target_size)
    return resize(img, [round(x / ratio) for x in (h, w)], interpolation)


def pad(img, padding_ltrb, fill):
    channels = len(img.getbands())
    return ImageOps.expand(img, tuple(padding_ltrb), (fill,) * channels if channels > 1 else fill)


def crop(img, output_size):
    """The end of center_crop, and of center_crop_or_pad."""
    top = round((img.height - output_size) / 2.0)
    left = round((img.width - output_size) / 2.0)
    return img.crop((left, top, left + output_size, top + output_size))


def center_crop_or_pad(img, output_size, fill):
    w, h = img.size
    if output_size > w or output_size > h:
        img = pad(
            img,
            [
                (output_size - w) // 2 if output_size > w else 0,
                (output_size - h) // 2 if output_size > h else 0,
                (output_size - w + 1) // 2 if output_size > w else 0,
                (output_size - h + 1) // 2 if output_size > h else 0,
            ],
            fill,
        )
        if img.size == (output_size, output_size):
            return img
    return crop(img, output_size)


def levels_of(img, image_size, resize_mode, interpolation, fill_color=0):
    """The transforms of image_transform up to MaybeConvertMode: [image_size, image_size, 3] uint8."""
    interpolation = Image.Resampling.BILINEAR if interpolation == "bilinear" else Image.Resampling.BICUBIC
    if resize_mode == "longest":
        img = resize_keep_ratio(img, image_size, interpolation)
        img = center_crop_or_pad(img, image_size, fill_color)
    elif resize_mode == "squash":
        img = resize(img, (image_size, image_size), interpolation)
    else:
        img = resize(img, image_size, interpolation)
        img = crop(img, image_size)
    return np.asarray(img.convert("RGB"))


def image_transform(image_size, mean, std, resize_mode, interpolation, fill_color=0) -> Callable:
    """What makes an image pixels: [3, image_size, image_size] float32."""

    def transform(img):
        levels = levels_of(img, image_size, resize_mode, interpolation, fill_color)
        tensor = levels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        return (tensor - np.float32(mean)[:, None, None]) / np.float32(std)[:, None, None]

    return transform


def opened(blob: bytes) -> Image.Image:
    return Image.open(io.BytesIO(blob))
