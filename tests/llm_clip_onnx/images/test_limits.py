"""A command on one's own machine reads what phones and cameras write; a server reads what fits its memory."""

from __future__ import annotations

import io
import json

import llm
import numpy as np
import pytest
from click.testing import CliRunner
from llm.cli import cli
from PIL import Image

import tiffs
from hostile import big_photo, heic, packed
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.limits import OWN_MACHINE, SERVER
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Preprocess
from nasty import photo, png, png_claiming, saved, with_alpha

HOW = Preprocess(224, 224, 3, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 1 / 255)


def large(width: int, height: int) -> Image.Image:
    return big_photo(max(width, height)).crop((0, 0, width, height))


# Pictures as phones, cameras and sites write them, each too large for a server in its format.
PHOTOS = {
    "WebP of 2000 x 1500": lambda: saved(large(2000, 1500), "WEBP", method=0),
    "AVIF of 4000 x 3000": lambda: saved(large(4000, 3000), "AVIF", speed=10),
    "JPEG of 8160 x 6120": lambda: saved(large(8160, 6120), "JPEG"),
    "HEIC of 5712 x 4284": lambda: heic(large(5712, 4284), tile_size=512),
    "progressive JPEG of 6000 x 4000": lambda: saved(large(6000, 4000), "JPEG", progressive=True),
    "TIFF of 6000 x 4000": lambda: tiffs.colour_strips(6000, 4000, 50),
    "PNG of 6000 x 6000": lambda: png(6000, 6000, 8, 6, packed(bytes(24_001), 6000)),
}


@pytest.mark.long
@pytest.mark.parametrize("name", PHOTOS)
def test_a_command_reads_what_a_server_refuses(name):
    file = PHOTOS[name]()
    assert np.isfinite(to_pixels(file, HOW, bounds=OWN_MACHINE)).all()
    with pytest.raises(InputError, match="is too large: "):
        to_pixels(file, HOW)


@pytest.mark.parametrize(
    ("bounds", "sentence"),
    [
        (SERVER, "image of 15000 x 14000 pixels is too large: at most 25,000,000 pixels are read"),
        (OWN_MACHINE, "image of 15000 x 14000 pixels is too large: at most 200,000,000 pixels are read by a command"),
    ],
)
def test_the_refusal_says_whose_limit_it_is(bounds, sentence):
    with pytest.raises(InputError) as raised:
        to_pixels(png_claiming(15_000, 14_000), HOW, bounds=bounds)
    assert str(raised.value) == sentence


def test_200_megapixels_are_more_than_pillow_opens_by_itself():
    with pytest.raises(InputError, match="cannot be decoded: image file is truncated"):
        to_pixels(png_claiming(16_320, 12_240), HOW, bounds=OWN_MACHINE)


def largest(name: str) -> bytes:
    """A file of 199.8 megapixels: colour as the largest phones write it, or grey."""
    if name == "PNG":
        grey = b"\0" + bytes(x * 256 // 16_320 for x in range(16_320))
        return png(16_320, 12_240, 8, 0, packed(grey, 12_240))
    return saved(Image.linear_gradient("L").resize((16_320, 12_240)).convert("RGB"), "JPEG")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_a_command_reads_almost_200_megapixels(name, demo_dir):
    [embedding] = Engine(demo_dir, OWN_MACHINE).embed_images([largest(name)])
    assert np.linalg.norm(embedding) > 1


@pytest.mark.slow
def test_a_command_refuses_a_whole_image_above_200_megapixels(demo_dir):
    file = png(16_320, 12_260, 8, 0, packed(bytes(16_321), 12_260))
    sentence = "image of 16320 x 12260 pixels is too large: at most 200,000,000 pixels are read by a command"
    with pytest.raises(InputError, match=sentence):
        Engine(demo_dir, OWN_MACHINE).embed_images([file])


def test_llm_embed_has_the_limits_of_a_command_and_the_model_elsewhere_those_of_a_server(
    demo_dir, monkeypatch, tmp_path
):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    (tmp_path / "a.webp").write_bytes(file := PHOTOS["WebP of 2000 x 1500"]())
    command = ["embed", "-m", "clip", "--binary", "-i", str(tmp_path / "a.webp")]
    done = CliRunner().invoke(cli, command)
    assert len(json.loads(done.output)) == 512
    with pytest.raises(InputError, match="is too large: at most 2,100,000 pixels"):
        llm.get_embedding_model("clip").embed(file)


def test_a_heic_is_read_as_pillow_reads_it():
    to_pixels(heic(photo()), HOW)  # registers the opener
    for file in (heic(photo(300, 200)), heic(photo(301, 203), tile_size=64), heic(with_alpha())):
        np.testing.assert_array_equal(to_pixels(file, HOW), to_pixels(Image.open(io.BytesIO(file)), HOW))


@pytest.mark.parametrize("name", [name for name, file in tiffs.readable().items() if len(file) < 100_000])
def test_a_tiff_is_read_as_pillow_reads_it(name):
    file = tiffs.readable()[name]
    np.testing.assert_array_equal(to_pixels(file, HOW), to_pixels(Image.open(io.BytesIO(file)), HOW))
