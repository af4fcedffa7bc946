"""Pixels are those of transformers' image processor with Pillow; hostile images cost nothing and are refused in a sentence."""

from __future__ import annotations

import resource
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.preprocess import Preprocess, pixels_of
from nasty import broken, images, photo, saved

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOLDEN = np.load(ROOT / "tests/golden/pixels.npz")
LEVEL = 1 / 255 / min(STD)  # one of 256 levels, in normalised pixels


def processor(side: int, shortest_side: int | None = None) -> Preprocess:
    return Preprocess(shortest_side or side, side, Image.Resampling.BICUBIC, MEAN, STD, 1 / 255)


def test_there_is_a_golden_for_every_image():
    assert set(GOLDEN.files) == images().keys() | {"source"}


@pytest.mark.parametrize("name", images())
def test_pixels_are_the_goldens(name):
    found = pixels_of(images()[name], processor(32))
    assert (found.shape, found.dtype) == ((3, 32, 32), np.float32)
    # Pillow takes the corners of a window as float32, so its weights, rounded to 8 bits, may differ by a level or two.
    np.testing.assert_allclose(found, GOLDEN[name], atol=2.01 * LEVEL)
    assert np.abs(found - GOLDEN[name]).mean() < 0.25 * LEVEL


def test_a_shortest_side_larger_than_the_crop_is_cropped_as_the_reference_does():
    from transformers import CLIPImageProcessor

    theirs = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    expected = theirs(photo(97, 61), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(pixels_of(photo(97, 61), processor(32, 40)), expected, atol=2.01 * LEVEL)


def test_bytes_and_a_pil_image_give_the_same_pixels():
    np.testing.assert_array_equal(pixels_of(saved(photo(), "PNG"), processor(224)), pixels_of(photo(), processor(224)))


def test_a_sliver_of_an_image_takes_no_memory():
    """Resizing all of it first, as transformers does, makes 224 x 4,480,000 pixels of it."""
    sliver = saved(Image.new("RGB", (1, 20_000), "red"), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = pixels_of(sliver, processor(224))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert pixels.shape == (3, 224, 224)


@pytest.mark.parametrize("name", broken())
def test_what_is_no_image_is_refused_with_a_sentence(name):
    with pytest.raises(InputError) as raised:
        pixels_of(broken()[name], processor(224))
    assert any(
        part in str(raised.value)
        for part in (
            "is not an image Pillow can open; expected JPEG, PNG, WebP or GIF bytes",
            "cannot be decoded",
            "is too large",
        )
    )


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"abc", "3-byte blob is not an image Pillow can open; expected JPEG, PNG, WebP or GIF bytes"),
        (broken()["12000 x 12000"], "image of 12000 x 12000 pixels is too large: at most 25,000,000 pixels are read"),
        (
            saved(Image.new("RGBA", (4000, 2501)), "WEBP"),
            "image of 4000 x 2501 pixels is too large: at most 10,000,000 pixels are read",
        ),
        (Image.new("1", (6000, 5000)), "image of 6000 x 5000 pixels is too large: at most 25,000,000 pixels are read"),
        (None, "NoneType is not an image; expected bytes or a PIL image"),
        ("cat.jpg", "str is not an image; expected bytes or a PIL image"),
    ],
)
def test_the_sentence_says_what_was_found_and_what_was_expected(image, sentence):
    with pytest.raises(InputError) as raised:
        pixels_of(image, processor(224))
    assert str(raised.value) == sentence


def test_a_truncated_jpeg_is_refused_not_filled_up():
    jpeg = saved(photo(300, 200), "JPEG")
    with pytest.raises(InputError, match="JPEG image cannot be decoded"):
        pixels_of(jpeg[: len(jpeg) // 2], processor(224))
    assert pixels_of(jpeg, processor(224)).shape == (3, 224, 224)


PEAK = """
import io, re, sys
from PIL import Image
from llm_clip_onnx.preprocess import Preprocess, pixels_of
image = io.BytesIO()
Image.new(sys.argv[1], (5000, 5000), "teal").save(image, "PNG")
image, how = image.getvalue(), Preprocess(224, 224, 3, (0, 0, 0), (1, 1, 1), 1 / 255)
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
pixels_of(Image.new(sys.argv[1], (9, 9)), how)
print(peak())
pixels_of(image, how)
print(peak())
"""


@pytest.mark.parametrize(("mode", "copies"), [("RGB", 1), ("RGBA", 2)])
def test_the_largest_image_is_in_memory_no_more_often_than_it_must(mode, copies):
    """25 megapixels, 4 bytes each: once as it is, and once more where it must be made RGB."""
    done = subprocess.run([sys.executable, "-c", PEAK, mode], capture_output=True, text=True, check=True)
    made, decoded = (1024 * int(kilobytes) for kilobytes in done.stdout.split())
    # Making the image took one copy too, which was freed since, so that the peak shows what comes on top of one.
    assert decoded - made < (copies - 1) * 100e6 + 60e6
