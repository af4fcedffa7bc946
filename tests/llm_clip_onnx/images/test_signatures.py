"""A format is recognised by its first bytes as Pillow recognises it, without an image library."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from PIL import Image

from llm_clip_onnx.images.signatures import BUILT_IN, EXPECTED, FORMATS, SUFFIXES, content_type_of, format_of
from nasty import broken, images, photo, saved

HEIC = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"
AVIF_BY_A_COMPATIBLE_BRAND = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_format_that_pillow_writes_is_told(name):
    blob = saved(photo(), name)
    assert format_of(blob) == Image.open(io.BytesIO(blob)).format == name
    assert content_type_of(blob) == Image.MIME[name]


@pytest.mark.parametrize("name", images())
def test_each_image_that_is_read_has_a_format(name):
    assert format_of(images()[name]) == Image.open(io.BytesIO(images()[name])).format


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (HEIC, "HEIF"),
        (b"\0\0\0\x18ftypheic", "HEIF"),
        (AVIF_BY_A_COMPATIBLE_BRAND, "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", None),  # a film
        (b"\0\0\0\x14ftypisom\0\0\0\0mp42avif", None),  # what follows the box is no brand
        (b"RIFF\0\0\0\0WAVEfmt ", None),
        (b"GIF88a", None),
        (b"", None),
    ],
)
def test_bytes_that_pillow_does_not_write_are_told_apart(blob, expected):
    assert format_of(blob) == expected


@pytest.mark.parametrize("name", ["no bytes", "three bytes", "text", "svg"])
def test_bytes_of_no_format_have_no_content_type(name):
    assert content_type_of(broken()[name]) is None


def test_the_table_says_what_messages_and_folders_need():
    assert EXPECTED == "JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"
    assert {".jpg", ".jfif", ".jpe", ".png", ".tif", ".tiff", ".avif", ".heic"} < set(SUFFIXES)
    Image.init()
    assert all(Image.EXTENSION[suffix] == name for name in BUILT_IN for suffix in FORMATS[name].suffixes)


def test_it_imports_neither_pillow_nor_numpy():
    code = "import sys, llm_clip_onnx.images.signatures; print(*{'PIL', 'numpy', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
