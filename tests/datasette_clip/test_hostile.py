"""Every file of the hostile set gives an embedding or one sentence, and none takes 60 MB."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from hostile import hostile, readable, refused, write
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images import heic

pytestmark = pytest.mark.filterwarnings("ignore:Corrupt EXIF")


def test_the_set_is_large_and_every_file_could_be_sent():
    assert len(hostile()) >= 40
    assert len(hostile()) == len(readable()) + len(refused())
    assert {name: len(file) for name, file in hostile().items() if len(file) > 10_000_000} == {}


@pytest.mark.parametrize("orient", [None, "exif"])
def test_every_readable_file_gives_an_embedding(demo_engine, orient):
    for name, file in readable().items():
        embedding = demo_engine.embed_item(file, orient)
        assert np.isfinite(embedding).all(), name
        assert np.linalg.norm(embedding) > 0, name


def test_every_other_file_is_refused_in_one_sentence(demo_engine):
    for name, file in refused().items():
        with pytest.raises(InputError) as raised:
            demo_engine.embed_item(file)
        sentence = str(raised.value)
        assert 20 < len(sentence) < 250, name
        assert not set("\n<>") & set(sentence), name
        assert not sentence.removesuffix("...").endswith("."), name


EXPECTED = "expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"
TOO_LARGE = "pixels are read of that kind; send it smaller or as baseline JPEG"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing.png", f"not an image (0 bytes); {EXPECTED}"),
        ("page.html", f"not an image but an HTML page (40 bytes); {EXPECTED}; the address may need a login, or be that of a page and not of its image"),
        ("script.gif", "begins as GIF and cannot be opened as one (17 bytes)"),
        ("12000x12000.png", "image of 12000 x 12000 pixels is too large: at most 25,000,000 pixels are read"),
        ("25mp-long.png", "image of 250000 x 100 pixels is too long: sides of at most 100,000 pixels are read"),
        ("25mp-cut.png", "PNG image of 300,000 bytes cannot be decoded: image file is truncated"),
        ("claims-25mp.png", "PNG image of 69 bytes cannot be decoded: image file is truncated"),
        ("25mp-interlaced.png", f"interlaced PNG image of 5000 x 5000 pixels is too large: at most 7,500,000 {TOO_LARGE}"),
        ("25mp-rgba.png", f"RGBA PNG image of 5000 x 5000 pixels is too large: at most 18,000,000 {TOO_LARGE}"),
        ("25mp-progressive.jpg", f"progressive JPEG image of 5000 x 5000 pixels is too large: at most 13,000,000 {TOO_LARGE}"),
        ("25mp.webp", f"WebP image of 5000 x 5000 pixels is too large: at most 2,100,000 {TOO_LARGE}"),
        ("2mp-noise.webp", "WebP image of 8,387,008 bytes is too large: at most 4,000,000 bytes are read of that kind; send it smaller or as baseline JPEG"),
        ("25mp.avif", f"AVIF image of 5000 x 5000 pixels is too large: at most 2,100,000 {TOO_LARGE}"),
        ("25mp-run-length.bmp", f"run-length coded BMP image of 5000 x 5000 pixels is too large: at most 1,000,000 {TOO_LARGE}"),
        ("run-length-standing-still.bmp", "run-length coded BMP image of 8,000,062 bytes is too large: at most 1,000,000 bytes are read of that kind; send it smaller or as baseline JPEG"),
        ("scans.jpg", "JPEG image has more than 30 scans, which take long; send it as baseline JPEG"),
        ("segments.jpg", "JPEG image has more than 2,000 segments or 64,000 stray bytes before its first scan"),
        ("stray-bytes.jpg", "JPEG image has more than 2,000 segments or 64,000 stray bytes before its first scan"),
        ("comments.gif", "GIF image has more than 256,000 bytes of comments before its first frame"),
        ("25mp-colour.tif", "TIFF image of 5000 x 5000 pixels is too large: it needs 106 MB of memory, at most 58 MB are given to an image; send it smaller or as baseline JPEG"),
        ("tile-of-5-gb.tif", "TIFF image of 40 x 30 pixels is too large: it needs 4805 MB of memory, at most 58 MB are given to an image; send it smaller or as baseline JPEG"),
        ("two-million-strips.tif", "TIFF image has a tag of 1,000,000 values; at most 200,000 are read"),
        ("another-compression.tif", "TIFF image compressed as lzma is not read; save it with LZW or deflate"),
        ("only-a-brand.heic", "begins as HEIC and cannot be opened as one (3,012 bytes)"),
        ("drawing.svg", f"not an image but an SVG drawing (74 bytes); {EXPECTED}; export it as PNG"),
        ("chunks.png", "PNG image has more than 20,000 chunks"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_limit(demo_engine, name, sentence):
    with pytest.raises(InputError) as raised:
        demo_engine.embed_item(refused()[name])
    assert str(raised.value) == sentence


def test_a_refusal_of_a_heic_says_what_it_needs(demo_engine):
    blob = refused()["24mp.heic"]  # whose size is its encoder's
    with pytest.raises(InputError) as raised:
        demo_engine.embed_item(blob)
    needed = f"{(4900 * 4900 * heic.TILED + len(blob)) / 1e6:.0f} MB"
    assert str(raised.value) == (
        f"HEIC image of 4900 x 4900 pixels is too large: it needs {needed} of memory, at most 58 MB are given to an image;"
        " send it smaller or as baseline JPEG"
    )


PEAK = """
import re, sys
from pathlib import Path
from llm_clip_onnx.engine import default_engine
from llm_clip_onnx.errors import InputError
from hostile import heic
from nasty import photo, saved
engine = default_engine()
for kind in ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF"):  # each of their decoders is there
    engine.embed_item(heic(photo()) if kind == "HEIF" else saved(photo().convert("RGB"), kind))
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
warm = peak()
for file in sorted(Path(sys.argv[1]).iterdir()):
    before = peak()
    try:
        engine.embed_item(file.read_bytes())
    except InputError:
        pass
    if peak() > before:
        print(peak() - warm, file.name)
"""


def test_the_whole_set_takes_less_than_60_megabytes_on_top_of_the_model(demo_dir, tmp_path):
    files = tmp_path / "files"
    write(files)
    # As in the Dockerfile. Without it, glibc keeps 10 to 20 MB of an image in fragments that it cannot use again.
    setting = {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    environment = os.environ | setting | {"CLIP_MODEL_DIR": str(demo_dir), "PYTHONPATH": str(ROOT / "tests/support")}
    command = [sys.executable, "-W", "ignore", "-c", PEAK, files]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    over = [line for line in done.stdout.splitlines() if int(line.split()[0]) >= 60e6]
    assert not over
    assert done.stdout
