"""What most tests need: baked model directories, made once a run, and a Datasette that serves one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import httpx
import hypothesis
import pytest
from datasette.app import DEFAULT_SETTINGS

from patience import PATIENCE_S

os.environ.pop("CLIP_MODEL_DIR", None)  # tests say themselves which model they mean
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llm-of-tests-")  # and leave the developer's own folder alone

from llm_clip_onnx.bake import bake
from llm_clip_onnx.bake.label_set import bake_labels
from llm_clip_onnx.engine import Engine
from random_checkpoint import TINY, write_checkpoint

# No verdict depends on how busy the machine is. Where a test is about SQL's time limit, it says which.
DEFAULT_SETTINGS["sql_time_limit_ms"] = 1000 * PATIENCE_S
for part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)  # 5 s by itself
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")

ROOT = Path(__file__).parent.parent
DEMO_CHECKPOINT = ROOT / "demo" / "checkpoint"
EMOJI = ROOT / "demo" / "emoji.txt"


def quiet(line: str) -> None:
    """A `say` that says nothing."""


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", **TINY)


@pytest.fixture(scope="session")
def tiny_dir(tiny_checkpoint, tmp_path_factory) -> Path:
    """A model directory with random weights, both towers float32. Not to be changed."""
    to = tmp_path_factory.mktemp("tiny-baked") / "model"
    bake(str(tiny_checkpoint), to, "fp32", say=quiet)
    return to


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory) -> Path:
    """The demo model and its label set `emoji` as `make demo` bakes them. Not to be changed."""
    to = tmp_path_factory.mktemp("demo-baked") / "model"
    bake(str(DEMO_CHECKPOINT), to, say=quiet)
    bake_labels(to, "emoji", EMOJI, say=quiet)
    return to


@pytest.fixture(scope="session")
def demo_float32_dir(tmp_path_factory) -> Path:
    to = tmp_path_factory.mktemp("demo-float32") / "model"
    bake(str(DEMO_CHECKPOINT), to, "fp32", say=quiet)
    return to


@pytest.fixture(scope="session")
def demo_engine(demo_dir) -> Engine:
    return Engine(demo_dir)


def shipped_metadata(name: str = "metadata.json") -> dict:
    """metadata.json, but for the bound on SQLite's memory, which would be that of this process until it ends."""
    metadata = json.loads((ROOT / name).read_text())
    del metadata["plugins"]["datasette-guard"]["limits"]["sqlite_bytes"]
    return metadata


@pytest.fixture(scope="session")
def alpha_bin() -> Path:
    """Where the programs of .venv-alpha are, which has Datasette's 1.0 alpha."""
    folder = ROOT / ".venv-alpha"
    assert (folder / "ready").exists(), "there is no finished .venv-alpha: `make test` makes it"
    return folder / "bin"


@pytest.fixture(scope="module")  # not longer: while it lives, its event loop is the thread's
def chromium_process():
    from playwright.sync_api import sync_playwright

    from browser import CHROMIUM, QUIET

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET, timeout=1000 * PATIENCE_S)
        yield browser
        browser.close()


@pytest.fixture
def browser_page(chromium_process):
    """An empty page of a new browser context."""
    from browser import new_context

    with new_context(chromium_process) as context:
        yield context.new_page()
