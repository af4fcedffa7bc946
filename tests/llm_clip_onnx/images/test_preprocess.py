"""Pixels equal those of transformers' image processor with Pillow; hostile images cost little and are refused."""

from __future__ import annotations

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageOps

from conftest import ROOT
from hostile import SAMPLES, heic, split
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images import png_strips, preprocess
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
from nasty import broken, chunk, images, photo, png, saved, with_alpha

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GOLDEN = np.load(ROOT / "tests/golden/pixels.npz")
LEVEL = 1 / 255 / min(STD)  # one of 256 levels, in normalised pixels


def processor(side: int, shortest_side: int | None = None) -> Preprocess:
    return Preprocess(shortest_side or side, side, Image.Resampling.BICUBIC, MEAN, STD, 1 / 255)


def test_there_is_a_golden_for_every_image():
    assert set(GOLDEN.files) == images().keys() | {"source"}


@pytest.mark.parametrize("name", images())
def test_pixels_are_the_goldens(name):
    found = to_pixels(images()[name], processor(32))
    assert (found.shape, found.dtype) == ((3, 32, 32), np.float32)
    # Pillow takes the corners of a window as float32, so its weights, rounded to 8 bits, may differ by a level or two.
    np.testing.assert_allclose(found, GOLDEN[name], atol=2.01 * LEVEL)
    assert np.abs(found - GOLDEN[name]).mean() < 0.25 * LEVEL


@pytest.mark.long
def test_a_shortest_side_larger_than_the_crop_is_cropped_as_the_reference_does():
    from transformers import CLIPImageProcessor

    theirs = CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    expected = theirs(photo(97, 61), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(to_pixels(photo(97, 61), processor(32, 40)), expected, atol=2.01 * LEVEL)


def test_bytes_and_a_pil_image_give_the_same_pixels():
    np.testing.assert_array_equal(to_pixels(saved(photo(), "PNG"), processor(224)), to_pixels(photo(), processor(224)))


def test_a_sliver_of_an_image_takes_no_memory():
    """Resizing the whole image first, as transformers does, would make 224 x 4,480,000 pixels."""
    sliver = saved(Image.new("RGB", (1, 20_000), "red"), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pixels = to_pixels(sliver, processor(224))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
    assert pixels.shape == (3, 224, 224)


@pytest.mark.parametrize("name", broken())
def test_what_is_no_image_is_refused_with_a_sentence(name):
    with pytest.raises(InputError) as raised:
        to_pixels(broken()[name], processor(224))
    assert any(
        part in str(raised.value)
        for part in (
            "not an image",
            "and cannot be opened as one",
            "cannot be decoded",
            "is too large",
        )
    )


@pytest.mark.parametrize(
    ("image", "sentence"),
    [
        (b"abc", "not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"),
        (broken()["12000 x 12000"], "image of 12000 x 12000 pixels is too large: at most 25,000,000 pixels are read"),
        (
            saved(Image.new("RGBA", (2100, 1001)), "WEBP"),
            "WebP image of 2100 x 1001 pixels is too large: at most 2,100,000 pixels are read of that kind; send it smaller or as baseline JPEG",
        ),
        (Image.new("1", (6000, 5000)), "image of 6000 x 5000 pixels is too large: at most 25,000,000 pixels are read"),
        (None, "NoneType is not an image; expected bytes or a PIL image"),
        ("cat.jpg", "str is not an image; expected bytes or a PIL image"),
    ],
)
def test_the_sentence_says_what_was_found_and_what_was_expected(image, sentence):
    with pytest.raises(InputError) as raised:
        to_pixels(image, processor(224))
    assert str(raised.value) == sentence


def test_a_truncated_jpeg_is_refused_not_filled_up():
    jpeg = saved(photo(300, 200), "JPEG")
    with pytest.raises(InputError, match=r"JPEG image of .* cannot be decoded"):
        to_pixels(jpeg[: len(jpeg) // 2], processor(224))
    assert to_pixels(jpeg, processor(224)).shape == (3, 224, 224)


@cache
def cuttable() -> dict[str, bytes]:
    """A file of each format, and files of several frames or pages."""
    first, *others = [photo(150, 100).rotate(turn) for turn in (0, 10, 20)]
    several = {"save_all": True, "append_images": others}
    return {
        **{kind: saved(first, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "AVIF", "TIFF")},
        "progressive JPEG": saved(first, "JPEG", progressive=True),
        "HEIC": heic(first),
        **{f"{kind} of three": saved(first, kind, **several) for kind in ("PNG", "GIF", "WEBP", "AVIF", "TIFF")},
    }


@pytest.mark.parametrize("name", cuttable())
def test_a_file_cut_anywhere_is_refused_or_gives_the_pixels_of_the_whole(name, monkeypatch):
    if name.startswith("PNG"):
        monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)  # so that it is decoded in strips
    file = cuttable()[name]
    whole, read = to_pixels(file, processor(32)), set()
    for missing in {*range(1, 14), *(len(file) * part // 8 for part in range(1, 8))}:
        try:
            np.testing.assert_array_equal(to_pixels(file[:-missing], processor(32)), whole)
            read.add(missing)
        except InputError:
            pass
    # What docs/formats.md says of files that are cut behind their first frame or page.
    assert bool(read) == (name.startswith(("PNG", "GIF", "BMP")) or name == "TIFF of three")


PEAK = """
import io, re, sys
from PIL import Image
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
image = io.BytesIO()
Image.new(sys.argv[1], (int(sys.argv[2]),) * 2, "teal").save(image, "PNG")
image, how = image.getvalue(), Preprocess(224, 224, 3, (0, 0, 0), (1, 1, 1), 1 / 255)
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
open("/proc/self/clear_refs", "w").write("5")  # forget the peak that making the image was
to_pixels(Image.new(sys.argv[1], (9, 9)), how)
print(peak())
to_pixels(image, how)
print(peak())
"""


@pytest.mark.long
@pytest.mark.parametrize(("mode", "side"), [("RGB", 5000), ("RGBA", 4240), ("LA", 5000), ("I;16", 5000)])
def test_the_largest_png_is_never_in_memory_whole(mode, side):
    """The images have 18 to 25 megapixels: 50 to 100 MB decoded."""
    done = subprocess.run([sys.executable, "-c", PEAK, mode, str(side)], capture_output=True, text=True, check=True)
    before, after = (1024 * int(kilobytes) for kilobytes in done.stdout.split())
    assert after - before < 45e6


def at_once(image: Image.Image, how: Preprocess) -> np.ndarray:
    """The oracle: Pillow converts the whole image to RGB and resizes it in one call, [crop, crop, 3] uint8."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    width, height = (int(how.shortest_side * side / min(image.size)) for side in image.size)
    x, y = image.width / width, image.height / height
    left, top = (width - how.crop) // 2, (height - how.crop) // 2
    box = (left * x, top * y, (left + how.crop) * x, (top + how.crop) * y)
    return np.asarray(image.convert("RGB").resize((how.crop, how.crop), Image.Resampling(how.resample), box=box))


def levels(image: bytes | Image.Image, how: Preprocess, orient: str | None = None) -> np.ndarray:
    """The pixels of to_pixels before they are normalised: [crop, crop, 3] uint8."""
    pixels = to_pixels(image, how, orient).transpose(1, 2, 0)
    return np.rint((pixels * np.float32(how.std) + np.float32(how.mean)) * 255).astype(np.uint8)


def random_png(seed: int, width: int, height: int, depth: int, colour: int, transparent: bool) -> bytes:
    """A PNG of random bytes, which are valid image data, with all five filters."""
    random = np.random.default_rng(seed)
    rows = random.integers(0, 256, (height, (width * SAMPLES[colour] * depth + 7) // 8 + 1), np.uint8)
    rows[:, 0] %= 5
    chunks = [chunk(b"PLTE", random.bytes(3 * min(2**depth, 200)))] if colour == 3 else []
    if transparent:
        values = bytes([9, 255][: 2 if depth > 1 else 1]) if colour == 3 else struct.pack(">H", 2 ** min(depth, 8) - 1)
        chunks.append(chunk(b"tRNS", values * (3 if colour == 2 else 1)))
    return png(width, height, depth, colour, zlib.compress(rows.tobytes()), *chunks)


KINDS = [(depth, 0) for depth in (1, 2, 4, 8, 16)] + [(depth, 3) for depth in (1, 2, 4, 8)]
KINDS += [(depth, colour) for depth in (8, 16) for colour in (2, 4, 6)]


@pytest.mark.parametrize("transparent", [False, True], ids=["opaque", "transparent"])
@pytest.mark.parametrize(("depth", "colour"), KINDS)
def test_a_png_in_strips_is_exactly_the_png_at_once(depth, colour, transparent, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    monkeypatch.setattr(png_strips, "STRIP_BYTES", 700)
    transparent = transparent and colour in (0, 2, 3)
    for seed, (width, height) in enumerate([(1, 1), (300, 1), (97, 61), (61, 61), (250, 33), (700, 299)]):
        blob = random_png(seed, width, height, depth, colour, transparent)
        for how in (processor(32), processor(33, 40)):
            np.testing.assert_array_equal(levels(blob, how), at_once(Image.open(io.BytesIO(blob)), how))


def test_a_png_higher_than_wide_is_resized_across_first_which_differs_by_a_level(monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    for size in ((61, 97), (299, 700), (400, 401)):
        blob = saved(photo(*size), "PNG")
        found, expected = levels(blob, processor(32)).astype(int), at_once(photo(*size), processor(32)).astype(int)
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "WEBP"])
def test_an_image_up_to_the_size_of_strips_is_exactly_what_pillow_makes_of_it_at_once(kind):
    for size in ((97, 61), (61, 97), (5, 900)):
        blob = saved(photo(*size).convert("P") if kind == "GIF" else photo(*size), kind)
        np.testing.assert_array_equal(
            levels(blob, processor(32, 35)), at_once(Image.open(io.BytesIO(blob)), processor(32, 35))
        )


def test_image_data_in_many_chunks_and_followed_by_more_are_read(monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    blob = saved(photo(300, 200), "PNG")
    expected = levels(blob, processor(32))
    np.testing.assert_array_equal(levels(split(blob, 7), processor(32)), expected)
    np.testing.assert_array_equal(levels(blob + bytes(1000), processor(32)), expected)


def test_a_large_jpeg_is_decoded_at_a_scale_and_looks_the_same():
    image = photo(3000, 2000)
    blob = saved(image, "JPEG", quality=92)
    found, expected = levels(blob, processor(224)).astype(int), at_once(Image.open(io.BytesIO(blob)), processor(224))
    assert 0 < np.abs(found - expected).mean() < 1
    blob = saved(photo(2000, 1999), "JPEG", quality=92)
    np.testing.assert_array_equal(levels(blob, processor(224)), at_once(Image.open(io.BytesIO(blob)), processor(224)))


def with_orientation(image: Image.Image, turn: int, kind: str, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return saved(image, kind, exif=exif, **options)


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_scaled_jpeg_is_neither_shifted_nor_stretched(turn, monkeypatch):
    """The sides are multiples of 8 plus 1: the crop is computed from them, not from the rounded size."""
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", 0)
    ramp = Image.fromarray(np.add.outer(np.arange(129) * 0.5, np.arange(137)).astype(np.uint8))
    blob = with_orientation(ramp, turn, "JPEG", quality=100)
    expected = at_once(ImageOps.exif_transpose(Image.open(io.BytesIO(blob))), processor(8)).astype(int)
    assert np.abs(levels(blob, processor(8), "exif") - expected).max() <= 3


@pytest.mark.parametrize("large", [0, 4_000_000], ids=["in strips", "at once"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_turns_an_image_upright(turn, large, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", large)
    for size in ((97, 61), (60, 99), (50, 50)):
        for how in (processor(32), processor(32, 35)):
            blob = with_orientation(photo(*size), turn, "PNG")
            upright = ImageOps.exif_transpose(Image.open(io.BytesIO(blob)))
            found = levels(blob, how, "exif").astype(int)
            # Of one that lies on its side Pillow resizes the other side first, and rounds between.
            assert np.abs(found - at_once(upright, how)).max() <= 2
            np.testing.assert_array_equal(levels(blob, how), levels(photo(*size), how))  # llm-clip's reading


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_exif_is_read_in_every_format_that_has_it(kind):
    blob = with_orientation(photo(97, 61), 6, kind, quality=95)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(blob)))
    assert upright.size == (61, 97)
    assert np.abs(levels(blob, processor(32), "exif").astype(int) - at_once(upright, processor(32))).max() <= 2
    np.testing.assert_array_equal(
        levels(Image.open(io.BytesIO(blob)), processor(32), "exif"), levels(blob, processor(32), "exif")
    )


def test_exif_of_a_png_may_follow_its_image_data():
    blob = with_orientation(photo(97, 61), 8, "PNG")
    start = blob.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(blob[start : start + 4], "big")
    late = blob[:start] + blob[end:-12] + blob[start:end] + blob[-12:]
    np.testing.assert_array_equal(levels(late, processor(32), "exif"), levels(blob, processor(32), "exif"))


@pytest.mark.parametrize("exif", [b"II+\0\x08\0\0\0\0\0\0\0", b"no EXIF", b""])
def test_an_image_whose_exif_is_broken_is_upright(exif):
    blob = saved(photo(97, 61), "WEBP", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(levels(blob, processor(32), "exif"), levels(blob, processor(32)))


def test_the_engine_passes_orient_on(demo_engine):
    image = photo(97, 61).rotate(20)
    blob, upright = with_orientation(image, 2, "PNG"), saved(ImageOps.mirror(image), "PNG")
    expected = demo_engine.embed_item(upright)
    np.testing.assert_allclose(demo_engine.embed_item(blob, orient="exif"), expected, atol=0.05)
    np.testing.assert_array_equal(
        demo_engine.embed_images([blob], orient="exif")[0], demo_engine.embed_item(blob, orient="exif")
    )
    np.testing.assert_array_equal(demo_engine.embed_item(blob), demo_engine.embed_item(saved(image, "PNG")))
    assert np.abs(demo_engine.embed_item(blob) - expected).max() > 0.2
    with pytest.raises(InputError, match=r"images\[0\]: orient 'up' is not known"):
        demo_engine.embed_images([blob], orient="up")


@pytest.mark.parametrize("large", [0, 4_000_000], ids=["in strips", "at once"])
def test_orient_keeps_what_there_is_in_16_bit_grey(large, monkeypatch):
    monkeypatch.setattr(preprocess, "LARGE_PIXELS", large)
    grey = (np.mgrid[0:50, 0:70].sum(0) * 500).astype(np.uint16)
    upper = Image.fromarray((grey // 256).astype(np.uint8))
    blob = saved(Image.fromarray(grey), "PNG")
    np.testing.assert_array_equal(levels(blob, processor(32), "exif"), at_once(upper, processor(32)))
    assert levels(blob, processor(32)).min() == 255  # llm-clip's reading: almost all of it is white
    holed = Image.fromarray(np.where(grey == 20_000, 255, grey // 256).astype(np.uint8))
    blob = saved(Image.fromarray(grey), "PNG", transparency=20_000)
    np.testing.assert_array_equal(levels(blob, processor(32), "exif"), at_once(holed, processor(32)))


def test_orient_lays_alpha_on_white_as_llm_clip_does():
    blob = saved(with_alpha(), "PNG")
    np.testing.assert_array_equal(levels(blob, processor(32), "exif"), at_once(with_alpha(), processor(32)))


@pytest.mark.parametrize("orient", ["EXIF", "", True, 0, "upright"])
def test_another_orient_is_refused(orient):
    with pytest.raises(InputError) as raised:
        to_pixels(saved(photo(), "PNG"), processor(32), orient)
    assert str(raised.value) == f"orient {orient!r} is not known; expected 'exif', or None for llm-clip's reading"


def test_without_the_extra_the_sentence_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it raises ImportError
    with pytest.raises(InputError) as raised:
        to_pixels(b"\0\0\0\x18ftypheic" + bytes(100), processor(32))
    assert str(raised.value) == (
        "HEIC is read only with the extra photos: pip install 'datasette-clip[photos]', or send it as JPEG"
    )


def test_opening_an_image_does_not_import_every_reader_of_pillow():
    code = """
import sys
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
from nasty import animation, photo, saved
how = Preprocess(32, 32, 3, (0, 0, 0), (1, 1, 1), 1 / 255)
for blob in (saved(photo(), "PNG"), saved(photo(), "JPEG"), animation(), b"nothing"):
    try:
        to_pixels(blob, how)
    except InputError:
        pass
print(*(name for name in sys.modules if name.endswith("ImagePlugin") or name.startswith("pillow_heif")))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/support")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    others = {f"PIL.{name}ImagePlugin" for name in ("Psd", "Avif", "WebP", "Tiff")}
    assert not others & set(done.stdout.split())
    assert "pillow_heif" not in done.stdout
