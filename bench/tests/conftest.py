"""The models that the tests of the benches need, baked once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.harness import ROOT
from llm_clip_onnx.bake import bake
from random_checkpoint import TINY, write_checkpoint


def quiet(line: str) -> None:
    """A `say` that says nothing."""


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> Path:
    """A model directory with random weights, both towers float32. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    bake(str(write_checkpoint(folder / "checkpoint", **TINY)), folder / "model", "fp32", say=quiet)
    return folder / "model"


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory) -> Path:
    """The demo model. Not to be changed."""
    to = tmp_path_factory.mktemp("demo") / "model"
    bake(str(ROOT / "demo" / "checkpoint"), to, say=quiet)
    return to
