"""The benches measure what they say, on small models."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import clients
from bench.embedding import fidelity, growth, thumbnails
from bench.harness import ROOT
from bench.server import cold_start
from listening import free_port
from llm_clip_onnx.model_dir import read_manifest
from llm_clip_onnx.tokenizer import open_tokenizer, tokenize
from nasty import photo, saved


def test_clients_of_another_process_see_every_answer_and_every_error():
    summary = clients.ask_from_outside(f"127.0.0.1:{free_port()}", 2, 0.2, seed="nobody listens")
    assert summary["answers"] == summary["per_s"] == 0
    assert summary["errors"] >= 2  # one of each client at the least
    assert summary["first_error"].startswith("ConnectionRefusedError")


@pytest.mark.parametrize("ids", growth.POINTS["ids"])
def test_a_text_of_so_many_ids_has_them(ids):
    folder = ROOT / "demo/checkpoint"
    bpe = open_tokenizer(folder / "vocab.json", folder / "merges.txt", context_length=77)
    assert len(tokenize(bpe, growth.text_of(ids))) == ids


def test_a_stack_in_its_process_says_what_each_call_took(tiny_dir, tmp_path):
    (tmp_path / "model").symlink_to(tiny_dir)
    (tmp_path / "64.jpg").write_bytes(saved(photo(), "JPEG"))
    with growth.worker("ours", tmp_path) as ask:
        for axis, size in (("ids", 8), ("texts", 16), ("pixels", 64)):
            assert all(figure > 0 for figure in ask(axis, size).values())
        with pytest.raises(RuntimeError, match="No such file"):
            ask("pixels", 128)


def test_the_steps_of_a_cold_start_are_those_of_a_model_directory(demo_dir):
    environment = os.environ | {"CLIP_MODEL_DIR": str(demo_dir)}
    done = subprocess.run([sys.executable, "-c", cold_start.STEPS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert {"multiply the probe", "sha256 of the text tower's files", "open the text tower"} < steps.keys()
    assert all(ms > 0 for ms in steps.values())


def test_fidelity_as_baked_is_what_the_manifest_of_a_bake_says(demo_dir, tmp_path):
    figures = fidelity.measure_checkpoint(ROOT / "demo/checkpoint", tmp_path)
    for name, tower in read_manifest(demo_dir).towers.items():
        baked, result = figures[name]["int8"]["baked"], tower.fidelity["int8 with fp32"]
        assert (baked["plain"], baked["centred"]) == (result.worst, result.worst_centred)
        assert figures[name]["int8"]["matrix"]["centred"] < baked["centred"]
        assert 0 < figures[name]["rewritten"] <= figures[name]["linears"]
    assert sum(tower["linears"] for tower in figures.values()) == 36


def test_fidelity_is_not_measured_of_a_tower_that_is_not_baked_so(monkeypatch, tmp_path):
    monkeypatch.setattr(fidelity.fidelity, "INT8_MINIMUM", {"text": 0.9999, "image": 0.9999})
    with pytest.raises(RuntimeError, match=r"^text tower: a bake would keep matrices float32"):
        fidelity.measure_checkpoint(ROOT / "demo/checkpoint", tmp_path)


def test_thumbnails_are_compared_with_the_photos_they_are_of():
    [photo_] = thumbnails.photos([saved(Image.new("RGB", (80, 80), "red"), "PNG")], 640, 480)
    image, small = (Image.open(io.BytesIO(content)) for content in (photo_, thumbnails.thumbnail_of(photo_)))
    assert (image.size, small.size, small.format) == ((640, 480), (320, 240), "WEBP")
    for one, middle in ((image, (320, 240)), (small, (160, 120))):
        red, green, _ = one.getpixel(middle)
        assert red > 200 > 60 > green
    vectors = np.eye(12, dtype=np.float32) * 3 + np.arange(144, dtype=np.float32).reshape(12, 12) / 144
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    same = thumbnails.agreement(vectors, vectors, vectors)
    assert (same["mean"], same["worst"]) == (pytest.approx(1), pytest.approx(1))
    assert [same[key] for key in ("nearest", "ten", "ten_by_text", "photo_recall", "thumbnail_recall")] == [100] * 5
    changed = vectors.copy()
    changed[0] = -vectors[0]
    worse = thumbnails.agreement(vectors, changed, vectors)
    assert worse["worst"] == pytest.approx(-1)
    assert worse["mean"] == pytest.approx(10 / 12)
    assert worse["thumbnail_recall"] == pytest.approx(1100 / 12)
    assert worse["photo_recall"] == 100 > worse["ten"]
