"""An 8-bit tower has signed and unsigned levels of the same numbers; the signed ones are used where they are exact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_clip_onnx import model_dir, towers
from llm_clip_onnx.bake.samples import made_images
from llm_clip_onnx.bake.verify import verify
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import ModelDirError
from llm_clip_onnx.towers import multiplies_signed, open_tower, run_text

IDS = np.array([[49406, 3306, 1002, 256, 49407]])
TEXTS = ["purple and gold", "a bunny"]
PICTURES = list(made_images().values())[5:8]


def damage(file: Path, by: int = 1) -> None:
    """Change one byte of a file outside its padding."""
    content = bytearray(file.read_bytes())
    content[1000] = (content[1000] + by) % 256
    file.write_bytes(content)


def test_the_probe_tells_what_the_towers_do(demo_dir):
    """On any processor, both forms give the same embedding bit for bit, or the probe says that they do not."""
    unsigned, signed = (
        run_text(open_tower(demo_dir / name, 1), IDS) for name in ("text.onnx", f"text{model_dir.SIGNED_TOWER_SUFFIX}")
    )
    assert np.array_equal(unsigned, signed) == multiplies_signed(demo_dir / model_dir.PROBE)


def test_a_processor_on_which_products_overflow_is_told_apart(demo_dir, tmp_path, monkeypatch):
    """The probe returns half of the exact product, as it does on an emulated Haswell."""
    monkeypatch.setattr(towers, "run_one", lambda *given: np.full((1, towers.PROBE_WIDTH), 4111.9375, np.float32))
    probe = Path(shutil.copy(demo_dir / model_dir.PROBE, tmp_path))  # another path, for what is known is kept
    assert not multiplies_signed(probe)


@pytest.mark.parametrize("exact", [True, False])
def test_signed_levels_are_opened_where_they_are_exact_and_only_there(exact, demo_dir, no_image_tower, monkeypatch):
    opened, genuine = set(), towers.open_tower
    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: exact)
    monkeypatch.setattr(
        towers, "open_tower", lambda graph, threads, **more: opened.add(graph.name) or genuine(graph, threads, **more)
    )
    engine = Engine(demo_dir)
    engine.open_text()
    engine.open_image()
    assert opened == ({"text.int8.onnx", "image.int8.onnx"} if exact else {"text.onnx", "image.onnx"})


def test_on_another_processor_the_vectors_are_the_same(demo_dir, demo_engine, monkeypatch):
    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: False)
    other = Engine(demo_dir)
    np.testing.assert_array_equal(other.embed_text(TEXTS), demo_engine.embed_text(TEXTS))
    np.testing.assert_array_equal(other.embed_images(PICTURES), demo_engine.embed_images(PICTURES))


def test_only_what_is_opened_is_read_and_checked(demo_dir, tmp_path, monkeypatch):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    damage(path / "text.int8.bin")
    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: False)
    Engine(path).open_text()
    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: True)
    with pytest.raises(ModelDirError, match=r"text.int8.bin has sha256 "):
        Engine(path).open_text()


def test_a_damaged_probe_is_no_answer(demo_dir, tmp_path):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    damage(path / model_dir.PROBE)
    with pytest.raises(ModelDirError, match=r"probe.onnx has sha256 "):
        Engine(path).open_text()


def test_a_float32_model_has_one_form_and_is_not_probed(demo_float32_dir, monkeypatch):
    monkeypatch.setattr(towers, "multiplies_signed", lambda probe: pytest.fail("it was probed"))
    Engine(demo_float32_dir).open_text()
    assert not [file for file in demo_float32_dir.iterdir() if file.name.endswith(model_dir.EIGHT_BIT_SUFFIXES)]


def test_an_8_bit_tower_lists_all_its_files(demo_dir, tmp_path):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["text.uint8.bin"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelDirError, match=r"manifest.json does not list text.uint8.bin: bake again"):
        Engine(path)


def test_verify_compares_the_two_forms(demo_dir, tmp_path):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    manifest = json.loads((path / "manifest.json").read_text())
    for by, name in enumerate(("image.uint8.bin", "image.int8.bin"), 1):
        damage(path / name, by)
        manifest["files"][name]["sha256"] = model_dir.sha256_of(path / name)
    (path / "manifest.json").write_text(json.dumps(manifest))
    checks = {check.name: check for check in verify(path)}
    assert checks["text tower's levels"].ok
    assert not checks["image tower's levels"].ok
    assert checks["image tower's levels"].found.startswith("signed and unsigned ones differ; the ")
