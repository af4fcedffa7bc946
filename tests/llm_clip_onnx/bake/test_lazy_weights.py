"""A bake reads weights when it needs them, and holds no more of them than it must."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from conftest import quiet
from llm_clip_onnx.bake import open_checkpoint, smooth, tensors, write_tokenizer
from llm_clip_onnx.bake.eight_bit import calibration_inputs
from llm_clip_onnx.bake.samples import CALIBRATION_TEXTS
from llm_clip_onnx.bake.tensors import SafeTensors
from llm_clip_onnx.bake.tower_plan import plan_text
from random_checkpoint import SMALL, write_checkpoint
from siglip_checkpoint import write_siglip
from text_tower_checkpoint import TINY, write_text_tower

SCALARS = {"logit_scale", "logit_bias"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, tuple[str, str | None]]:
    """Family -> the folder of a small checkpoint, and of its images where they are another one's."""
    root = tmp_path_factory.mktemp("checkpoints")
    clip = str(write_checkpoint(root / "clip", **SMALL))
    text = write_text_tower(root / "text", TINY, SMALL["embed_dim"])
    return {"CLIP": (clip, None), "text tower": (str(text), clip), "SigLIP 2": (str(write_siglip(root / "s", 2)), None)}


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """The names of all tensors that are read from here on."""
    names, original = [], SafeTensors.__getitem__

    def getitem(self, name: str):
        names.append(name)
        return original(self, name)

    monkeypatch.setattr(SafeTensors, "__getitem__", getitem)
    return names


@pytest.mark.parametrize("family", ["CLIP", "text tower", "SigLIP 2"])
def test_a_checkpoint_is_opened_without_reading_its_matrices(family, sources, read):
    source, images = sources[family]
    open_checkpoint(source, images=images)
    assert {*read} <= SCALARS


@pytest.mark.parametrize(("family", "kept"), [("CLIP", 1), ("text tower", 1), ("SigLIP 2", 3)])
def test_fitting_reads_no_token_table_and_every_third_row_of_padded_texts(family, kept, sources, tmp_path, read):
    source, images = sources[family]
    checkpoint = open_checkpoint(source, images=images)
    write_tokenizer(tmp_path, checkpoint)
    plan, lengths = plan_text(tmp_path, checkpoint, quiet), []
    plan.calibrate(lambda name, x: lengths.append(x.shape[1]))
    inputs = calibration_inputs(plan)
    name = plan.tower.linears[0].tensors[0]
    linears = len(lengths) // len(CALIBRATION_TEXTS)
    assert [len(rows) for rows in inputs[name]] == [-(-length // kept) for length in lengths[::linears]]
    read.clear()
    fitted, _ = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, inputs)
    assert read
    assert not [name for name in read if "token_embedding" in name or "word_embeddings" in name]
    assert fitted.keys() >= plan.tower.tensors.keys()


def test_what_was_read_of_a_file_does_not_stay_in_memory(tmp_path, monkeypatch):
    """Linux counts the pages of a mapped file that were read as memory of the process."""
    monkeypatch.setattr(tensors, "MAPPED_BYTES", 4_000_000)
    written = {f"t{n}": np.full((1000, 1000), n, np.float16) for n in range(30)}
    save_file(written, tmp_path / "model.safetensors")
    opened: Mapping = SafeTensors([tmp_path / "model.safetensors"])
    before = mapped_bytes()
    for name, expected in written.items():
        assert np.array_equal(opened[name], expected)
    assert mapped_bytes() - before < 20_000_000  # of 60


def mapped_bytes() -> int:
    return 1024 * int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[1])
