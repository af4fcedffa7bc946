"""What most tests need: baked model directories, made once a run, and a Datasette that serves one."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import httpx
import jinja2
import pytest
from filelock import FileLock

from patience import PATIENCE_S

os.environ.pop("CLIP_MODEL_DIR", None)  # tests say themselves which model they mean
os.environ["LLM_USER_PATH"] = tempfile.mkdtemp(prefix="llm-of-tests-")  # and leave the developer's own folder alone
os.environ["LLM_LOAD_PLUGINS"] = "datasette-clip"  # `llm` would load llm-clip too, and with it torch: 7 s of CPU

from datasette import app
from datasette.app import DEFAULT_SETTINGS, Datasette

from llm_clip_onnx import engine, towers
from llm_clip_onnx.engine import Engine
from random_checkpoint import TINY, write_checkpoint

# No verdict depends on how busy the machine is. Where a test is about SQL's time limit, it says which.
DEFAULT_SETTINGS["sql_time_limit_ms"] = 1000 * PATIENCE_S
for part in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)  # 5 s by itself

pytest_plugins = ["built_image"]


class Compiled(jinja2.BytecodeCache):
    """Templates that this process has compiled, whichever Datasette they were for."""

    def __init__(self) -> None:
        self.code: dict[str, bytes] = {}

    def load_bytecode(self, bucket) -> None:
        if bucket.key in self.code:
            bucket.bytecode_from_string(self.code[bucket.key])

    def dump_bytecode(self, bucket) -> None:
        self.code[bucket.key] = bucket.bytecode_to_string()


# Hundreds of tests make a Datasette. Each would compile all templates and read the metadata of all packages again.
app.Environment = functools.partial(jinja2.Environment, bytecode_cache=Compiled())
importlib.metadata.Distribution.metadata = property(functools.cache(importlib.metadata.Distribution.metadata.fget))

ROOT = Path(__file__).parent.parent
DEMO_CHECKPOINT = ROOT / "demo" / "checkpoint"
DEMO_MULTILINGUAL = ROOT / "demo" / "multilingual"
EMOJI = ROOT / "demo" / "emoji.txt"


CONTAINER = {"container/test_container", "container/test_load", "container/test_reference"}
REFERENCE = {
    *("container/test_reference", "llm_clip_onnx/test_llm_clip", "llm_clip_onnx/bake/test_reading"),
    *("llm_clip_onnx/bake/test_reading_tokens", "llm_clip_onnx/images/test_beside_open_clip"),
    "llm_clip_onnx/bake/test_siglip_itself",
}
SLOW = {"container/test_load", "container/test_reference", "test_peers", "datasette_clip/test_sdks"}
SLOW |= {"llm_clip_onnx/images/test_beside_open_clip", "llm_clip_onnx/bake/test_siglip_itself"}
LONG = {
    *("clip_collections/test_embed_command", "clip_collections/test_index", "container/test_two_instances"),
    "clip_collections/test_first_mile",
    *("clip_collections/test_serve", "clip_collections/test_publish", "clip_collections/test_search_command"),
    *("datasette_clip/test_demo_collection", "datasette_clip/test_endpoints", "datasette_clip/test_hostile"),
    *("datasette_clip/test_beside_plugins", "datasette_clip/test_sql_sentences"),
    *("clip_collections/test_forget", "datasette_clip/test_strangers", "test_examples"),
    *("datasette_clip/test_http", "datasette_clip/test_from_a_browser", "datasette_clip/test_opening"),
    *("datasette_guard/test_alone", "datasette_guard/test_gate", "datasette_guard/test_idle"),
    *("llm_clip_onnx/test_clip_vectors", "llm_clip_onnx/test_label_sets"),
    *("llm_clip_onnx/test_levels", "llm_clip_onnx/test_llm_plugin", "test_alpha"),
    *("test_measures", "test_photos", "test_run"),
}
LONG_FOLDERS = ("llm_clip_onnx/bake/",)


def pytest_sessionstart(session) -> None:
    """Give hypothesis all the time it takes. The process that hands out tests to others runs none, and does without."""
    if getattr(session.config.option, "dist", "no") == "no" or hasattr(session.config, "workerinput"):
        from hypothesis import HealthCheck, settings

        settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
        settings.load_profile("patient")


def name_of(path: Path) -> str:
    """The name of a test file in the sets above."""
    path = path.with_suffix("")
    return str(path.relative_to(ROOT / "tests") if path.is_relative_to(ROOT / "tests") else path.name)


def marks_of(name: str) -> dict[str, bool]:
    """The marks that all tests of a file have."""
    return {
        "container": name in CONTAINER,
        "reference": name in REFERENCE,
        "slow": name in SLOW,
        "long": name in LONG or name.startswith(LONG_FOLDERS),
    }


def pytest_ignore_collect(collection_path, config) -> bool | None:
    """Import no file of which `-m "not long and ..."` leaves no test: that takes as long as many tests."""
    unwanted = config.option.markexpr.split(" and ")  # no other kind of expression is read here
    marks = marks_of(name_of(collection_path)) if collection_path.suffix == ".py" else {}
    return True if any(marks[mark] and f"not {mark}" in unwanted for mark in marks) else None


def pytest_collection_modifyitems(items) -> None:
    """Mark tests by the file that they stand in, and those for a browser or the alpha by their fixtures."""
    for item in items:
        marks = marks_of(name_of(item.path))
        marks["browser"] = bool({"browser_page", "chromium_process"} & {*item.fixturenames})
        marks["long"] |= "alpha_bin" in item.fixturenames
        for mark in filter(marks.get, marks):
            item.add_marker(mark)


def quiet(line: str) -> None:
    """A `say` that says nothing."""


def bake(checkpoint: Path, to: Path, *precision: str) -> None:
    from llm_clip_onnx.bake import bake  # here: with what it imports it is needed by no run that finds its models baked

    bake(str(checkpoint), to, *precision, say=quiet)


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


BAKES_WITH = ("ml_dtypes", "numpy", "onnx", "onnxruntime", "safetensors", "tokenizers")


def bake_key() -> str:
    """A digest of all that a model directory of these fixtures depends on."""
    files = [*ROOT.glob("plugins/llm_clip_onnx/**/*.py"), *DEMO_CHECKPOINT.iterdir(), EMOJI, Path(__file__)]
    files += [file for file in DEMO_MULTILINGUAL.rglob("*") if file.is_file()]
    digest = hashlib.sha256(platform.machine().encode() + platform.python_version().encode())
    for file in sorted([*files, ROOT / "tests/support/random_checkpoint.py"]):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    for package in BAKES_WITH:
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()


def bake_once(name: str, bake: Callable[[Path], object], request, tmp_path_factory) -> Path:
    """As `make_once`, but a copy of what pytest's cache holds, until an edit of what bakes it. The copy is this run's."""
    kept = request.config.cache.mkdir(f"baked-{name}")

    def copy(to: Path) -> None:
        folder = kept / bake_key()
        with FileLock(kept.with_suffix(".lock")):
            if not folder.exists():
                shutil.rmtree(kept)
                bake(folder.with_suffix(".unfinished"))
                folder.with_suffix(".unfinished").rename(folder)
            shutil.copytree(folder, to)

    return make_once(name, copy, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    return make_once("tiny-checkpoint", lambda to: write_checkpoint(to, **TINY), tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_dir(tiny_checkpoint, request, tmp_path_factory) -> Path:
    """A model directory with random weights, both towers float32."""
    return bake_once("tiny", lambda to: bake(tiny_checkpoint, to, "fp32"), request, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_dir(request, tmp_path_factory) -> Path:
    """The demo model and its label set `emoji` as `make demo` bakes them."""

    def bake_demo(to: Path) -> None:
        from llm_clip_onnx.bake.label_set import bake_labels

        bake(DEMO_CHECKPOINT, to)
        bake_labels(to, "emoji", EMOJI, say=quiet)

    return bake_once("demo", bake_demo, request, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_float32_dir(request, tmp_path_factory) -> Path:
    return bake_once("demo-float32", lambda to: bake(DEMO_CHECKPOINT, to, "fp32"), request, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_multilingual_dir(request, tmp_path_factory) -> Path:
    """The demo's multilingual text tower over the demo model's images, as `make demo` bakes it."""

    def bake_both(to: Path) -> None:
        from llm_clip_onnx.bake import bake

        bake(str(DEMO_MULTILINGUAL), to, say=quiet, images=str(DEMO_CHECKPOINT))

    return bake_once("demo-multilingual", bake_both, request, tmp_path_factory)


@pytest.fixture(scope="session")
def demo_engine(demo_dir) -> Engine:
    return Engine(demo_dir)


@pytest.fixture
def no_image_tower(monkeypatch) -> None:
    """No image tower is open for another engine of this process, such as one of another test."""
    monkeypatch.setattr(engine, "_image_towers", WeakValueDictionary())


@pytest.fixture
def threads_opened(no_image_tower, monkeypatch) -> dict[str, int]:
    """How many threads each tower takes that a test opens, on three cores."""
    opened: dict[str, int] = {}
    genuine = towers.open_tower

    def open_tower(graph, threads, **more):
        opened[graph.name.partition(".")[0]] = threads
        return genuine(graph, threads, **more)

    monkeypatch.setattr(towers, "open_tower", open_tower)
    monkeypatch.setattr(towers, "available_cores", lambda: 3)
    return opened


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
