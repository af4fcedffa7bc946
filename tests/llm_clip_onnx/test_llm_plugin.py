"""`llm`'s own commands work with our model without torch, and the commands `llm clip ...` report errors as sentences."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys

import llm
import pytest

from conftest import DEMO_CHECKPOINT
from llm_clip_onnx import llm_model
from llm_clip_onnx.errors import InputError, ModelDirError
from llm_clip_onnx.model_dir import read_manifest
from nasty import photo, saved
from patience import PATIENCE_S
from serving import environment, run_llm


@pytest.fixture
def env(demo_dir, tmp_path):
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))


def test_embed_text(env, demo_engine):
    assert (
        json.loads(run_llm("embed", "-m", "clip", "-c", "hello", env=env).stdout)
        == demo_engine.embed_item("hello").tolist()
    )


def test_embed_an_image_file(env, demo_engine, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(saved(photo(), "JPEG"))
    done = run_llm("embed", "-m", "clip", "--binary", "-i", str(tmp_path / "photo.jpg"), "-f", "hex", env=env)
    assert done.stdout.strip() == demo_engine.embed_item((tmp_path / "photo.jpg").read_bytes()).tobytes().hex()


def test_embed_multi_and_similar(env, tmp_path):
    (tmp_path / "photos").mkdir()
    for colour in ("red", "green", "blue"):
        from PIL import Image

        (tmp_path / "photos" / f"{colour}.jpg").write_bytes(saved(Image.new("RGB", (80, 60), colour), "JPEG"))
    database = str(tmp_path / "photos.db")
    run_llm(
        "embed-multi",
        "photos",
        "-m",
        "clip",
        "--binary",
        "--files",
        str(tmp_path / "photos"),
        "*.jpg",
        "-d",
        database,
        env=env,
    )
    with sqlite3.connect(database) as connection:
        assert sorted(connection.execute("select id, length(embedding) from embeddings")) == [
            (f"{c}.jpg", 2048) for c in ("blue", "green", "red")
        ]
        assert connection.execute("select model from collections").fetchall() == [("clip",)]
    lines = run_llm("similar", "photos", "-c", "green", "-d", database, env=env).stdout.splitlines()
    assert json.loads(lines[0])["id"] == "green.jpg"
    assert len(lines) == 3


def test_there_is_one_instance_whatever_llm_does():
    assert {id(llm.get_embedding_model("clip")) for _ in range(3)} == {id(llm_model.CLIP)}


def test_a_mixed_batch_keeps_its_order(demo_dir, demo_engine, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    items = ["a", saved(photo(), "PNG"), "b", saved(photo(50, 50), "PNG")]
    found = list(llm.get_embedding_model("clip").embed_multi(items))
    assert found == [demo_engine.embed_item(item).tolist() for item in items]


@pytest.mark.parametrize(
    ("items", "sentence"),
    [
        (["a", 3], "items[1] of this batch: int is neither text nor image bytes; expected str or bytes"),
        (["a", None], "items[1] of this batch: NoneType is neither text nor image bytes; expected str or bytes"),
        (
            ["a", "b", b"abc"],
            "items[2] of this batch: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
    ],
)
def test_a_bad_item_raises_by_its_position_and_is_not_skipped(items, sentence, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with pytest.raises(InputError) as raised:
        list(llm.get_embedding_model("clip").embed_multi(items))
    assert str(raised.value) == sentence


def test_without_a_model_directory_the_command_says_what_to_run(env, tmp_path, monkeypatch):
    done = run_llm("embed", "-m", "clip", "-c", "hello", env=env | {"CLIP_MODEL_DIR": str(tmp_path / "none")}, ok=False)
    assert (
        done.stderr
        == f"Error: clip: {tmp_path}/none: there is no model directory; make one with `llm clip bake --to {tmp_path}/none`, or set CLIP_MODEL_DIR to one\n"
    )
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    with pytest.raises(ModelDirError):
        llm.get_embedding_model("clip").embed("hello")


def test_a_bad_image_ends_the_command_with_its_sentence(env, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"abc")
    done = run_llm("embed", "-m", "clip", "--binary", "-i", str(tmp_path / "bad.jpg"), env=env, ok=False)
    assert (
        done.stderr
        == "Error: clip: items[0] of this batch: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF\n"
    )


def test_bake_info_and_verify_from_the_command_line(env, tmp_path):
    to = tmp_path / "baked"
    done = run_llm("clip", "bake", str(DEMO_CHECKPOINT), "--to", str(to), env=env)
    assert "text tower: int8, worst cosine" in done.stderr
    assert f"{to} is ready" in done.stderr
    info = run_llm("clip", "info", str(to), env=env).stdout
    for fact in ("This is the demo model", "embed_dim", "512", "text tower", "int8", "logit_scale"):
        assert fact in info
    assert json.loads(run_llm("clip", "info", str(to), "--json", env=env).stdout) == json.loads(
        (to / "manifest.json").read_text()
    )
    lines = run_llm("clip", "verify", str(to), env=env).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * 7
    for line, (name, tower) in zip(lines[1:5:2], read_manifest(to).towers.items()):
        assert re.search(rf"{name} tower's matrices +{len(tower.matrices)}, \d+ rewritten; .* float32: none", line)
    assert all(re.search(r"\d % of nearest inputs the same$", line) for line in lines[5:])
    assert all("signed and unsigned ones agree" in line for line in lines[2:5:2])


def test_verify_ends_with_1_where_a_tower_is_not_what_was_baked(env, demo_dir, demo_float32_dir, tmp_path):
    """The directory is valid, but its text tower is another model's."""
    import shutil

    from llm_clip_onnx.model_dir import sha256_of

    path = tmp_path / "model"
    shutil.copytree(demo_dir, path)
    manifest = json.loads((path / "manifest.json").read_text())
    import numpy as np

    np.save(path / "text.npy", np.roll(np.load(path / "text.npy"), 1, 0))
    manifest["files"]["text.npy"]["sha256"] = sha256_of(path / "text.npy")
    (path / "manifest.json").write_text(json.dumps(manifest))
    done = run_llm("clip", "verify", str(path), env=env, ok=False)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("ok", "ok", "ok", "ok", "ok"),
        *("FAILED", "ok", "ok"),
    ]


WITHOUT_THE_EXTRA = """
import sys
sys.modules |= dict.fromkeys(["onnx", "safetensors", "huggingface_hub", "torch", "llm_clip", "sentence_transformers"])
from llm.cli import cli
cli()
"""


def test_without_the_extras_verify_still_runs_and_bake_says_what_to_install(env, demo_dir, tmp_path):
    """None in sys.modules makes an import fail as if the package were not installed, as in a run-time image."""

    def llm_without(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", WITHOUT_THE_EXTRA, "clip", *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)

    assert llm_without("verify", str(demo_dir)).returncode == 0
    for arguments in (
        ["bake", str(DEMO_CHECKPOINT), "--to", str(tmp_path / "m")],
        ["verify", "--reference", "llm-clip"],
    ):
        done = llm_without(*arguments)
        assert done.returncode == 1
        assert "is not installed; `llm clip " in done.stderr
        assert (
            "in a clone of datasette-clip, pip install '.[bake]', or '.[reference]' to compare with other libraries"
            in done.stderr
        )


def test_a_bfloat16_checkpoint_is_baked_from_the_command_line(env, tiny_checkpoint, tmp_path):
    """Runs in a process in which no other package has registered bfloat16 with numpy."""
    import shutil

    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint")
    weights = tmp_path / "checkpoint" / "model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}, weights)
    done = run_llm("clip", "bake", str(tmp_path / "checkpoint"), "--to", str(tmp_path / "baked"), env=env)
    assert "baked is ready" in done.stderr
