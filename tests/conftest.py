"""What most tests need: baked model directories, made once a run, and a Datasette that serves one."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import hypothesis
import pytest
from filelock import FileLock

from patience import PATIENCE_S

os.environ.pop("CLIP_MODEL_DIR", None)  # tests say themselves which model they mean
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llm-of-tests-")  # and leave the developer's own folder alone
os.environ["LLM_LOAD_PLUGINS"] = "datasette-clip"  # `llm` would load llm-clip too, and with it torch: 7 s of CPU

from datasette.app import DEFAULT_SETTINGS, Datasette

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

pytest_plugins = ["built_image"]

ROOT = Path(__file__).parent.parent
DEMO_CHECKPOINT = ROOT / "demo" / "checkpoint"
EMOJI = ROOT / "demo" / "emoji.txt"


CONTAINER = {"container/test_container", "container/test_load", "container/test_reference"}
REFERENCE = {
    *("container/test_reference", "llm_clip_onnx/test_llm_clip", "llm_clip_onnx/bake/test_reading"),
    "llm_clip_onnx/bake/test_reading_tokens",
}
SLOW = {"container/test_load", "container/test_reference", "test_peers"}
LONG = {
    *("clip_collections/test_embed_command", "clip_collections/test_index", "container/test_two_instances"),
    *("clip_collections/test_serve", "clip_collections/test_publish", "clip_collections/test_search_command"),
    *("datasette_clip/test_demo_collection", "datasette_clip/test_endpoints", "datasette_clip/test_hostile"),
    *("datasette_clip/test_beside_plugins", "datasette_clip/test_sql_sentences"),
    "datasette_clip/test_strangers",
    *("datasette_clip/test_http", "datasette_clip/test_from_a_browser", "datasette_clip/test_opening"),
    *("datasette_guard/test_alone", "datasette_guard/test_gate", "datasette_guard/test_idle"),
    *("llm_clip_onnx/test_clip_vectors", "llm_clip_onnx/test_label_sets"),
    *("llm_clip_onnx/test_levels", "llm_clip_onnx/test_llm_plugin", "test_alpha"),
    *("test_measures", "test_run"),
}
LONG_FOLDERS = ("llm_clip_onnx/bake/",)


def pytest_collection_modifyitems(items) -> None:
    """Mark tests by the file that they stand in, and those for a browser or the alpha by their fixtures."""
    for item in items:
        path = item.path.with_suffix("")
        name = str(path.relative_to(ROOT / "tests") if path.is_relative_to(ROOT / "tests") else path.name)
        marks = {
            "browser": {"browser_page", "chromium_process"} & {*item.fixturenames},
            "container": name in CONTAINER,
            "reference": name in REFERENCE,
            "slow": name in SLOW,
            "long": name in LONG or name.startswith(LONG_FOLDERS) or "alpha_bin" in item.fixturenames,
        }
        for mark in filter(marks.get, marks):
            item.add_marker(mark)


def quiet(line: str) -> None:
    """A `say` that says nothing."""


def make_once(name: str, make: Callable[[Path], object], tmp_path_factory) -> Path:
    """The folder that `make` fills: once a run, however many workers pytest-xdist starts. Not to be changed."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return make_once("tiny-checkpoint", lambda to: write_checkpoint(to, **TINY), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_dir(tiny_checkpoint, tmp_path_factory) -> Path:
    """A model directory with random weights, both towers float32."""
    return make_once("tiny", lambda to: bake(str(tiny_checkpoint), to, "fp32", say=quiet), tmp_path_factory)


@pytest.fixture(scope="session")
def demo_dir(tmp_path_factory) -> Path:
    """The demo model and its label set `emoji` as `make demo` bakes them."""

    def bake_demo(to: Path) -> None:
        bake(str(DEMO_CHECKPOINT), to, say=quiet)
        bake_labels(to, "emoji", EMOJI, say=quiet)

    return make_once("demo", bake_demo, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_float32_dir(tmp_path_factory) -> Path:
    return make_once("demo-float32", lambda to: bake(str(DEMO_CHECKPOINT), to, "fp32", say=quiet), tmp_path_factory)


@pytest.fixture(scope="session")
def demo_engine(demo_dir) -> Engine:
    return Engine(demo_dir)


@pytest.fixture
def datasette(demo_dir, monkeypatch) -> Datasette:
    """A Datasette in this process that serves the demo model."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette(memory=True)


def shipped_metadata() -> dict:
    """metadata.json, but for the bound on SQLite's memory, which would be that of this process until it ends."""
    metadata = json.loads((ROOT / "metadata.json").read_text())
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
