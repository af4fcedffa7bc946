"""Images are read as open_clip reads them, level by level; the oracle is tests/support/open_clip_pixels.py."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageOps

from llm_clip_onnx.images import png_strips, preprocess
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
from nasty import deep_grey, images, photo, saved, with_alpha
from open_clip_pixels import MODES, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, image_transform, levels_of, opened
from own_mode_images import FILTERS, odd_files, processor


def levels(image: bytes | Image.Image, how: Preprocess, orient: str | None = None) -> np.ndarray:
    """The pixels of to_pixels before they are normalised: [crop, crop, 3] as int."""
    pixels = to_pixels(image, how, orient).transpose(1, 2, 0)
    return np.rint((pixels * np.float32(how.std) + np.float32(how.mean)) * 255).astype(int)


def noise(mode: str, width: int, height: int) -> Image.Image:
    random, shape = np.random.default_rng(width), (height, width)
    if mode in ("I", "F", "I;16"):  # not all of it saturates
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        return Image.fromarray(random.integers(0, 500, shape).astype(kind))
    if mode == "1":
        return Image.fromarray(random.integers(0, 2, shape).astype(bool))
    image = Image.new(mode, (width, height))
    image.frombytes(random.bytes(width * height * len(image.getbands())))
    if mode in ("P", "PA"):
        image.putpalette(random.bytes(768))
    return image


def with_orientation(image: Image.Image, turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return saved(image, "PNG", exif=exif)


@pytest.mark.parametrize("name", images())
def test_an_image_is_read_as_open_clip_reads_it(name):
    for side, mode, interpolation, fill in product((32, 35), MODES, FILTERS, (0, 200)):
        if fill and mode != "longest":
            continue  # nothing is filled there
        expected = levels_of(opened(images()[name]), side, mode, interpolation, fill)
        np.testing.assert_array_equal(levels(images()[name], processor(side, mode, interpolation, fill)), expected)


def test_pixels_are_scaled_and_normalised_as_open_clip_does_it():
    for mode in MODES:
        transform = image_transform(32, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, mode, "bicubic")
        # One rounding of float32 more or less: open_clip divides by 255, we multiply by 1 / 255.
        np.testing.assert_allclose(to_pixels(photo(), processor(32, mode)), transform(photo()), atol=1e-6)


@pytest.mark.long
def test_odd_files_are_read_as_open_clip_reads_them():
    compared = 0
    for name, blob in odd_files().items():
        for mode, interpolation in product(MODES, FILTERS):
            image = opened(blob)
            size = sorted(image.size)
            if size[1] > 20_000 * size[0] or (mode == "longest" and size[1] > 64 * size[0]):
                continue  # they would need gigabytes, or make it 0 pixels wide
            found = levels(blob, processor(32, mode, interpolation))
            np.testing.assert_array_equal(found, levels_of(image, 32, mode, interpolation), f"{name} {mode}")
            compared += 1
    assert compared > 350


SIZES = [(1, 1), (2, 3), (32, 32), (33, 32), (64, 32), (61, 97), (5, 900), (299, 700)]
LONG_SIZES = [(1, 5000), (5000, 1), (3, 5000), (5000, 3), (1600, 20), (64, 4800), (128, 2400)]


@pytest.mark.parametrize("mode", ["1", "P", "PA", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_every_mode_and_shape_is_resized_as_pillow_resizes_it_whole(mode):
    for size, how, interpolation in product(SIZES + LONG_SIZES, ("shortest", "squash"), FILTERS):
        image = noise(mode, *size)
        found = levels(image, processor(32, how, interpolation))
        expected = levels_of(image, 32, how, interpolation)
        if mode in ("I;16", "I", "F") and size in LONG_SIZES:  # the place is a float32 then
            assert np.abs(found - expected).max() <= 2
            assert (found != expected).mean() < 0.05
        else:
            np.testing.assert_array_equal(found, expected, f"{size} {how} {interpolation}")


@pytest.mark.parametrize("mode", ["1", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_the_canvas_of_the_longest_side_has_a_level_of_the_images_own_mode(mode):
    for size, fill in product([(64, 32), (33, 32), (20, 37), (1, 1)], (0, 9, 255)):
        image = noise(mode, *size)
        found = levels(image, processor(33, "longest", fill=fill))
        np.testing.assert_array_equal(found, levels_of(image, 33, "longest", "bicubic", fill))


def test_a_side_that_open_clip_makes_0_pixels_is_one_pixel():
    found = levels(Image.new("RGB", (5000, 1), "red"), processor(32, "longest", fill=7))
    assert (found == (255, 0, 0)).all(-1).sum() == 32
    assert (found == 7).all(-1).sum() == 32 * 31


@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_an_image_upright_first(turn):
    for size, mode, how in product([(97, 61), (60, 99), (50, 50), (900, 20)], ("RGB", "RGBA", "P"), MODES):
        image = noise(mode, *size)
        blob = with_orientation(image, turn)
        upright = ImageOps.exif_transpose(opened(blob))
        np.testing.assert_array_equal(
            levels(blob, processor(32, how), "exif"), levels_of(upright, 32, how, "bicubic"), f"{size} {mode} {how}"
        )
        np.testing.assert_array_equal(levels(blob, processor(32, how)), levels_of(image, 32, how, "bicubic"))


def test_orient_keeps_the_upper_bits_of_16_bit_grey():
    upper = Image.fromarray((np.asarray(deep_grey()) // 256).astype(np.uint8))
    for mode in MODES:
        found = levels(saved(deep_grey(), "PNG"), processor(32, mode), "exif")
        np.testing.assert_array_equal(found, levels_of(upper, 32, mode, "bicubic"))


@pytest.mark.parametrize("turn", [1, 3, 6])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1", "I;16"])
def test_a_large_image_in_strips_differs_by_few_levels_where_pillow_has_another_order(mode, turn, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    monkeypatch.setattr(preprocess, "STRIP_PIXELS", 700)
    monkeypatch.setattr(png_strips, "STRIP_BYTES", 700)
    for size, how in product([(97, 61), (400, 300), (61, 97), (300, 61), (61, 300)], MODES):
        image = photo(*size)
        if "A" in mode:
            image.putalpha(Image.linear_gradient("L").resize(size).point(lambda level: max(32, level)))
        grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16))
        image = grey if mode == "I;16" else image.convert(mode)
        blob = with_orientation(image, turn)
        upright = ImageOps.exif_transpose(opened(blob))
        orient = None if mode == "I;16" else "exif"
        found = levels(blob, processor(32, how), orient)
        expected = levels_of(image if orient is None else upright, 32, how, "bicubic")
        if mode in ("P", "1") and turn > 1:
            assert (found != expected).any(-1).mean() < 0.1  # of two pixels that are as near the other one
        elif turn == 1 and size[0] >= size[1] and how != "squash" and mode != "I;16":
            np.testing.assert_array_equal(found, expected, f"{size} {how}")
        else:  # a level of a colour that is premultiplied by an alpha of 32 is 8 levels
            assert np.abs(found - expected).max() <= (8 if "A" in mode else 2), f"{size} {how}"


def test_a_large_jpeg_is_decoded_at_a_scale_and_looks_the_same():
    blob = saved(photo(3000, 2000), "JPEG", quality=92)
    for mode in MODES:
        difference = np.abs(levels(blob, processor(224, mode)) - levels_of(opened(blob), 224, mode, "bicubic"))
        assert 0 < difference.mean() < 1


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_scaled_jpeg_is_neither_shifted_nor_stretched(turn, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    ramp = Image.fromarray(np.add.outer(np.arange(129) * 0.5, np.arange(137)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    blob = saved(ramp, "JPEG", quality=100, exif=exif)
    upright = ImageOps.exif_transpose(opened(blob))
    for mode in MODES:
        difference = levels(blob, processor(8, mode), "exif") - levels_of(upright, 8, mode, "bicubic").astype(int)
        assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("name", images())
def test_transformers_makes_rgb_on_white_first_and_then_squashes(name):
    image = opened(images()[name])
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    expected = np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC))
    found = levels(images()[name], processor(32, "squash", library="transformers"))
    np.testing.assert_array_equal(found, expected)


def test_alpha_is_dropped_and_not_laid_on_white():
    hidden = Image.new("RGBA", (32, 32), (9, 90, 200, 0))
    assert (levels(hidden, processor(32, "shortest")) == (9, 90, 200)).all()
    assert (levels(hidden, processor(32, "shortest", library="transformers")) == 255).all()
    assert not (levels(with_alpha(), processor(32, "shortest")) == 255).all(-1).any()


PEAK = """
import io, re, sys
from PIL import Image
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
stream, size = io.BytesIO(), (int(sys.argv[2]), int(sys.argv[3]))
Image.new(sys.argv[1], size).save(stream, "PNG")
image, how = stream.getvalue(), Preprocess(224, 224, 3, (0, 0, 0), (1, 1, 1), 1 / 255, sys.argv[4], 0, "open_clip")
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
to_pixels(Image.new(sys.argv[1], (9, 999)), how)
open("/proc/self/clear_refs", "w").write("5")  # forget the peak that making the image was
print(peak())
to_pixels(image, how)
print(peak())
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "width", "height"),
    [("RGB", 5000, 5000), ("RGBA", 4240, 4240), ("LA", 5000, 5000), ("I;16", 5000, 5000), ("P", 5000, 5000),
     ("RGBA", 2000, 1990), ("RGB", 1, 100_000), ("RGBA", 100_000, 40), ("P", 40, 100_000), ("I;16", 100_000, 250)],
)  # fmt: skip
def test_no_image_takes_60_mb(mode, width, height):
    for how in ("shortest", "squash"):
        arguments = [mode, str(width), str(height), how]
        done = subprocess.run([sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True)
        before, after = (1024 * int(kilobytes) for kilobytes in done.stdout.split())
        assert after - before < 60e6
