"""A bake of open_clip's layout beside open_clip itself: the same ids, pixels and embeddings."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

import nasty
from conftest import ROOT, quiet
from llm_clip_onnx.bake import bake
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.text_readers import open_reader
from open_clip_checkpoint import write_open_clip
from patience import PATIENCE_S
from random_checkpoint import TINY, write_checkpoint

PYTHON = ROOT / ".venv-open-clip/bin/python"
ODD_TEXTS = [
    "a <start_of_text> b", "!<end_of_text> x", "<END_OF_TEXT>", "it'\u017f 'S", "&amp;amp; &lt;p&gt; &nbsp;", "sch\u00c3\u00b6n",
    "\u201cquoted\u201d \u2018text\u2019", "\ufb01ne", "x\x00y \x07 \x1b[31mred", "\u0130I \u03a3\u0391\u03a3", "\uff11\uff12 \uff21", "e&#769;", "word " * 200,
    "\u0345 a\u0345b", "one\r\ntwo\u2028three", "",
]  # fmt: skip
NASTY = [text for text in [*nasty.TEXTS, *ODD_TEXTS] if text.encode(errors="replace").decode() == text]


@pytest.fixture(scope="module", params=["quick_gelu", "gelu"])
def both(request, tmp_path_factory):
    """Our engine of a tiny checkpoint, and what open_clip makes of the same inputs."""
    if not PYTHON.exists():
        pytest.skip("OPEN_CLIP ITSELF IS NOT ASKED: make .venv-open-clip/ready makes its environment")
    folder = tmp_path_factory.mktemp("open-clip")
    shape = {part: TINY[part] | {"hidden_act": request.param} for part in ("text", "vision")}
    checkpoint = write_open_clip(folder / "checkpoint", write_checkpoint(folder / "hf", **shape))
    bake(str(checkpoint), folder / "model", "fp32", say=quiet)
    arrays = {f"image_{n}": np.asarray(image.convert("RGB")) for n, image in enumerate(made_images().values())}
    np.savez(folder / "inputs.npz", texts=json.dumps([*TEXTS, *NASTY]), **arrays)
    program = ROOT / "tests/support/open_clip_itself.py"
    paths = [str(path) for path in (program, checkpoint, folder / "inputs.npz", folder / "outputs.npz")]
    subprocess.run([PYTHON, *paths], check=True, timeout=10 * PATIENCE_S)
    return Engine(folder / "model"), np.load(folder / "outputs.npz")


def test_ids_are_open_clips(both):
    engine, theirs = both
    read = open_reader(engine.path, 77, engine.manifest.tokens)
    for text, expected in zip([*TEXTS, *NASTY], theirs["ids"], strict=True):
        found = read(text)
        assert np.pad(found, (0, 77 - len(found))).tolist() == expected.tolist(), repr(text)


def test_pixels_are_open_clips(both):
    engine, theirs = both
    for (name, image), expected in zip(made_images().items(), theirs["pixels"], strict=True):
        found = to_pixels(image.convert("RGB"), engine.manifest.preprocess)
        np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=name)  # of a level by 255: float32's rounding


VERIFY = """
import sys
sys.path += sys.argv[1:3]  # behind the packages of open_clip's environment, of which torch is one
sys.argv = ["llm clip", *sys.argv[3:]]
from llm_clip_onnx.commands import clip
clip()
"""


@pytest.mark.slow
def test_verify_compares_with_open_clip_itself(both, tmp_path):
    model = both[0].path
    ours = [str(ROOT / "plugins"), str(Path(np.__file__).parents[1])]

    def verify(*options: str) -> list[tuple[str, str]]:
        command = [PYTHON, "-c", VERIFY, *ours, "verify", str(model), "--reference", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE_S)
        found = re.findall(r"^(\w+) +(\w+) tower \(fp32\) with open_clip", done.stdout, re.MULTILINE)
        assert done.returncode == any(verdict == "FAILED" for verdict, _ in found), done.stdout + done.stderr
        return found

    assert verify("open_clip") == verify("own") == [("ok", "text"), ("ok", "image")]
    other = write_open_clip(tmp_path / "other", write_checkpoint(tmp_path / "hf", **TINY, seed=1))
    assert verify("own", "--checkpoint", str(other)) == [("FAILED", "text"), ("FAILED", "image")]


def test_embeddings_are_open_clips(both):
    engine, theirs = both
    images = [image.convert("RGB") for image in made_images().values()]
    np.testing.assert_allclose(engine.embed_text([*TEXTS, *NASTY]), theirs["texts"], atol=1e-5)
    np.testing.assert_allclose(engine.embed_images(images), theirs["images"], atol=1e-5)
