"""A model directory that is absent, unfinished, damaged or of another format is refused; the message says what to run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_clip_onnx import model_dir
from llm_clip_onnx.engine import Engine, default_engine, engine_for
from llm_clip_onnx.errors import ModelDirError
from llm_clip_onnx.tokenizer import CLIP_TOKENS


def rewritten(path: Path, **facts) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | facts))


def rewritten_in(path: Path, part: str, **facts) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    rewritten(path, **{part: manifest[part] | facts})


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


CASES = [
    (
        shutil.rmtree,
        "{path}: there is no model directory; make one with `llm clip bake --to {path}`, or set CLIP_MODEL_DIR to one",
    ),
    (
        lambda p: (p / "manifest.json").unlink(),
        "{path} has no manifest.json, so it is no model directory that a bake finished;",
    ),
    (lambda p: (p / "manifest.json").write_text("{"), "{path}/manifest.json cannot be read (JSONDecodeError: "),
    (lambda p: (p / "manifest.json").write_text("[]"), "{path}/manifest.json cannot be read (TypeError: "),
    (
        lambda p: (p / "manifest.json").write_text("[" * 100_000),
        "{path}/manifest.json cannot be read (RecursionError: ",
    ),
    (lambda p: rewritten(p, format="x" * 99), "{path}/manifest.json says format " + "x" * 57 + "..., this version"),
    (lambda p: (p / "manifest.json").write_text('{"format": 2}'), "{path}/manifest.json cannot be read (KeyError: "),
    (
        lambda p: rewritten(p, format=1),
        "{path}/manifest.json says format 1, this version reads 2: bake again with llm clip bake SOURCE --to {path} --force",
    ),
    (
        lambda p: rewritten_in(p, "preprocess", resize="crop"),
        "{path}/manifest.json says preprocess.resize 'crop', this version reads shortest, squash, longest: update "
        "datasette-clip, or bake again with llm clip bake ",
    ),
    (
        lambda p: rewritten_in(p, "preprocess", library=["open_clip"]),
        "{path}/manifest.json says preprocess.library ['open_clip'], this version reads transformers, open_clip: update",
    ),
    (
        lambda p: rewritten(p, tokens=dataclasses.asdict(CLIP_TOKENS) | {"library": "sentencepiece"}),
        "{path}/manifest.json says tokens.library 'sentencepiece', this version reads transformers, ",
    ),
    (lambda p: rewritten(p, files={}), "{path}/manifest.json does not list text.onnx: bake again"),
    (lambda p: (p / "merges.txt").unlink(), "{path}/merges.txt cannot be read (No such file or directory): bake again"),
    (lambda p: os.truncate(p / "text.bin", 99), "{path}/text.bin has 99 bytes, its manifest says "),
    (lambda p: flip_a_bit(p / "text.bin"), "{path}/text.bin has sha256 "),
    (lambda p: flip_a_bit(p / "vocab.json"), "{path}/vocab.json has sha256 "),
    (lambda p: flip_a_bit(p / "text.onnx"), "{path}/text.onnx has sha256 "),
]


def test_a_manifest_without_tokens_has_those_of_clip(tiny_dir):
    """As each one before there were tokens in it."""
    facts = json.loads((tiny_dir / "manifest.json").read_text())
    assert "tokens" not in facts
    assert model_dir.Manifest.from_dict(facts).tokens is None


def test_a_bias_is_in_the_manifest_only_where_there_is_one(tiny_dir):
    manifest = model_dir.read_manifest(tiny_dir)
    assert (manifest.logit_bias, manifest.scores) == (None, "softmax")
    assert "logit_bias" not in manifest.to_dict()
    biased = dataclasses.replace(manifest, logit_bias=-16.5)
    assert (biased.to_dict()["logit_bias"], biased.scores) == (-16.5, "sigmoid")
    assert model_dir.Manifest.from_dict(json.loads(biased.to_json())) == biased


def test_a_manifest_keeps_tokens_and_their_order(tiny_dir):
    manifest = model_dir.read_manifest(tiny_dir)
    added = tuple(model_dir.AddedToken(text, False, True, False, False, True) for text in ("<|end|>", "<|b|>"))
    changed = dataclasses.replace(manifest, tokens=model_dir.Tokens("<|b|>", "<|end|>", "?", added))
    assert model_dir.Manifest.from_dict(json.loads(changed.to_json())) == changed


def test_how_images_are_read_is_in_the_manifest_only_where_it_is_not_as_ever(tiny_dir):
    manifest = model_dir.read_manifest(tiny_dir)
    facts = json.loads((tiny_dir / "manifest.json").read_text())
    assert [*facts["preprocess"]] == ["shortest_side", "crop", "resample", "mean", "std", "scale"]
    assert manifest.to_json() == (tiny_dir / "manifest.json").read_text()
    steps = dataclasses.replace(manifest.preprocess, resize="longest", fill=9, library="open_clip")
    changed = dataclasses.replace(manifest, preprocess=steps)
    assert json.loads(changed.to_json())["preprocess"].keys() - facts["preprocess"].keys() == {
        "resize",
        "fill",
        "library",
    }
    assert model_dir.Manifest.from_dict(json.loads(changed.to_json())) == changed


def test_what_cannot_be_read_is_refused_with_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, sentence in (
        (tmp_path / "file", f"{tmp_path}/file cannot be read as a model directory (Not a directory); "),
        (
            tmp_path / "loop",
            f"{tmp_path}/loop cannot be read as a model directory (Too many levels of symbolic links); ",
        ),
        (tmp_path / ("x" * 300), "there is no model directory"),
    ):
        with pytest.raises(ModelDirError) as raised:
            engine_for(path)
        assert sentence in str(raised.value)
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "file"))
    with pytest.raises(
        ModelDirError, match=r"the folder of llm, .*file, cannot be made \(File exists\); set LLM_USER_PATH"
    ):
        default_engine()


def test_a_folder_that_this_user_may_not_read_is_refused_with_a_sentence(tiny_dir, monkeypatch):
    """The test raises the system call's error itself, because root may read everything."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ModelDirError, match=r"cannot be read as a model directory \(Permission denied\); make one"):
        Engine(tiny_dir)


def test_a_bake_under_a_running_process_asks_for_a_restart(tiny_dir, demo_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    engine = Engine(path)
    shutil.rmtree(path)
    shutil.copytree(demo_dir, path)
    with pytest.raises(ModelDirError, match="model was baked again since this process began: restart it"):
        engine.embed_text(["a"])


@pytest.mark.parametrize(("break_it", "sentence"), CASES)
def test_embedding_text_by_a_directory_that_is_not_right_says_what_is_wrong(break_it, sentence, tiny_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    break_it(path)
    with pytest.raises(ModelDirError) as raised:
        engine_for(path).embed_text(["a"])
    assert str(raised.value).startswith(sentence.format(path=path))
    assert "bake" in str(raised.value)


def test_a_manifest_of_a_later_format_need_not_be_understood_to_be_named(tiny_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (path / "manifest.json").write_text('{"format": 7, "everything": "else"}')
    with pytest.raises(ModelDirError, match="says format 7, this version reads 2"):
        Engine(path)


def test_a_damaged_image_tower_leaves_text_alone(tiny_dir, tmp_path):
    path = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    flip_a_bit(path / "image.bin")
    engine = Engine(path)
    assert engine.embed_text(["a"]).shape == (1, 512)
    with pytest.raises(ModelDirError, match=r"image.bin has sha256 .* the file is damaged; bake again"):
        engine.open_image()


@pytest.mark.parametrize("size", [0, 1, model_dir.PIECE_BYTES, model_dir.PIECE_BYTES + 1])
def test_the_sha256_of_a_file_is_that_of_all_its_pieces(size, tmp_path):
    (tmp_path / "file").write_bytes(content := os.urandom(size))
    assert model_dir.sha256_of(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_where_the_model_directory_is(tiny_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    assert model_dir.default_path() == tmp_path / "clip-model"
    with pytest.raises(ModelDirError, match="there is no model directory"):
        default_engine()
    shutil.copytree(tiny_dir, tmp_path / "clip-model")
    assert (
        default_engine().path == tmp_path / "clip-model"
    )  # baked while the process runs, it is found without a restart
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tiny_dir))
    assert default_engine().path == tiny_dir


def test_a_manifest_survives_its_file(tiny_dir):
    manifest = model_dir.read_manifest(tiny_dir)
    assert model_dir.Manifest.from_dict(json.loads(manifest.to_json())) == manifest


def test_it_is_read_without_pillow_numpy_and_onnxruntime():
    code = "import sys, llm_clip_onnx.model_dir; print(*{'PIL', 'numpy', 'onnxruntime'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
