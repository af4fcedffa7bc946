"""Who may import whom, what serving never loads, and what must not be in the repository."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from conftest import ROOT
from patience import PATIENCE_S
from serving import environment

PLUGINS = ROOT / "plugins"
FILES = sorted(PLUGINS.rglob("*.py"))
ARROWS = {  # package -> the packages of ours that it may import
    "llm_clip_onnx": set(),
    "clip_collections": {"llm_clip_onnx"},
    "datasette_clip": {"clip_collections", "llm_clip_onnx", "datasette_guard"},
    "datasette_guard": set(),
}


def module_of(file: Path) -> str:
    parts = file.relative_to(PLUGINS).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(file): file for file in FILES}


@cache
def imported(file: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at its top or inside a function."""
    package = module_of(file) if file.name == "__init__.py" else module_of(file).rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            of_names = {f"{module}.{alias.name}" for alias in node.names}
            # `from . import search` imports the module search, not the package's own names.
            names |= of_names & MODULES.keys() if of_names <= MODULES.keys() else {module} | of_names
    return names


def importers(module: str) -> set[str]:
    """Files that import a module, or something of it."""
    return {
        str(file.relative_to(PLUGINS))
        for file in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imported(file))
    }


@pytest.mark.parametrize("package", ARROWS)
def test_a_package_imports_only_those_that_it_may(package):
    others = ARROWS.keys() - {package} - ARROWS[package]
    for file in (PLUGINS / package).rglob("*.py"):
        assert not {name for name in imported(file) if name.split(".")[0] in others}, file


def test_the_doors_use_only_what_the_guard_exports():
    for file in (PLUGINS / "datasette_clip").rglob("*.py"):
        inside = {name for name in imported(file) & MODULES.keys() if name.startswith("datasette_guard.")}
        assert not inside, file


def test_the_model_and_the_collections_know_no_datasette():
    for name in ("datasette", "datasette_llm_embed", "uvicorn"):
        assert all(file.startswith(("datasette_clip/", "datasette_guard/")) for file in importers(name))


def test_no_import_goes_in_a_circle():
    """Inside functions too, but for the four packages themselves, which wire their modules to hooks."""
    rooms = MODULES.keys() - ARROWS.keys()
    arrows = {name: imported(MODULES[name]) & rooms - {name} for name in rooms}
    while leaves := {name for name, others in arrows.items() if not others & arrows.keys()}:
        for name in leaves:
            del arrows[name]
    assert not arrows, {name: sorted(others & arrows.keys()) for name, others in arrows.items()}


def test_json_never_imports_pages():
    assert not {file for file in importers("datasette_clip.pages") if file.startswith("datasette_clip/api/")}


def test_only_the_towers_know_onnxruntime():
    assert importers("onnxruntime") == {"llm_clip_onnx/towers.py"}


def test_only_commands_know_the_bake():
    outside = {name for name in importers("llm_clip_onnx.bake") if not name.startswith("llm_clip_onnx/bake/")}
    assert outside == {"llm_clip_onnx/commands.py"}


def test_onnx_safetensors_hub_and_torch_are_only_in_the_bake():
    for module in ("onnx", "safetensors", "huggingface_hub", "torch"):
        assert all(name.startswith("llm_clip_onnx/bake/") for name in importers(module)), module
    assert importers("llm_clip") == importers("sentence_transformers") == {"llm_clip_onnx/bake/libraries.py"}


WITHOUT_ONNXRUNTIME = """
import sys
import clip_collections.collection, clip_collections.query, clip_collections.search, clip_collections.index.build
import clip_collections.thumbnails
print(*sorted(sys.modules))
"""


def test_collections_are_searched_without_onnxruntime_and_datasette(tmp_path):
    command = [sys.executable, "-c", WITHOUT_ONNXRUNTIME]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert not {"onnxruntime", "datasette", "llm", "onnx", "torch"} & set(done.stdout.split())


def test_errors_import_nothing_of_ours():
    assert not imported(PLUGINS / "llm_clip_onnx/errors.py") & MODULES.keys()


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PLUGINS)))
def test_every_file_has_a_sentence_to_say_about_itself(file):
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring
    assert docstring[0].isupper()


SERVE = """
import asyncio, json, sys
from datasette.app import Datasette
async def main():
    datasette = Datasette(memory=True)
    answers = [await datasette.client.get(path) for path in json.loads(sys.argv[1])]
    print(json.dumps([[a.status_code for a in answers], sorted(sys.modules)]))
asyncio.run(main())
"""


@pytest.mark.long
def test_serving_loads_neither_torch_nor_onnx_nor_the_bake_nor_the_hub(demo_dir, tmp_path):
    from nasty import photo, saved

    image = f"/_memory.json?sql=select+llm_embed('clip',x'{saved(photo(9, 9), 'PNG').hex()}')"
    paths = ["/-/clip", "/-/clip.json", "/_memory.json?sql=select+llm_embed('clip','a')", image]
    env = environment(tmp_path, CLIP_MODEL_DIR=str(demo_dir))
    done = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(paths)], env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [200] * 4
    assert "onnxruntime" in modules
    for never in ("torch", "onnx", "safetensors", "huggingface_hub", "transformers", "llm_clip_onnx.bake"):
        assert never not in modules


@pytest.mark.long
def test_the_first_embedding_of_a_text_loads_nothing_that_it_has_no_need_of(demo_dir, tmp_path):
    """`llm` and what it brings take 0.1 s of CPU. Of all plugins datasette-llm-embed alone asks for it."""
    (tmp_path / "datasette_llm_embed.py").touch()
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", SERVE, json.dumps(["/_memory.json?sql=select+llm_embed('clip','a')"])],
        env=environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), PYTHONPATH=path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    codes, modules = json.loads(done.stdout.splitlines()[-1])
    assert codes == [200]
    assert "onnxruntime" in modules
    for never in ("llm", "openai", "pydantic", "sqlite_utils"):
        assert never not in modules


@pytest.mark.long
def test_onnxruntime_reports_nothing_to_its_makers(demo_dir, tmp_path):
    """With its telemetry on, the first session of a user makes a folder for it: here there is none."""
    code = "from llm_clip_onnx.engine import default_engine; default_engine().embed_item('red')"
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), HOME=str(tmp_path))
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        env.pop(name, None)
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=PATIENCE_S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llm"]


@pytest.mark.long
def test_datasette_finds_the_hooks_also_where_the_plugin_is_imported_first(tmp_path):
    """Importing part of Datasette loads all plugins, and of one that is still being imported it would see no hook."""
    code = "import datasette_clip; from datasette.plugins import pm; print(len(pm.get_hookcallers(datasette_clip)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert int(done.stdout) >= 8


STARTED = """
import sys, threading
sys.argv = ["datasette", "serve"]
threading.Thread.start = lambda thread: print(thread.name, "datasette_clip.pages" in sys.modules)
import datasette_clip.model
"""


@pytest.mark.long
def test_the_text_tower_begins_to_open_before_the_rest_of_the_plugin_is_imported(tmp_path):
    command = [sys.executable, "-c", STARTED]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=PATIENCE_S)
    assert "clip-opening_0 False" in done.stdout.splitlines(), done.stderr


@pytest.mark.long
def test_importing_the_llm_plugin_costs_no_onnxruntime(tmp_path):
    """Over what `llm` itself imports, which may be numpy."""
    code = "import sys, llm; before = set(sys.modules); import llm_clip_onnx; print(*(set(sys.modules) - before))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    added = {name.split(".")[0] for name in done.stdout.split()}
    assert added == {"llm_clip_onnx"}


@pytest.mark.long
def test_the_model_runs_without_being_installed(tiny_dir, tmp_path):
    """As in the Dockerfile's bake, which has none of the other packages."""
    shutil.copytree(PLUGINS / "llm_clip_onnx", tmp_path / "llm_clip_onnx")
    command = [sys.executable, "-m", "llm_clip_onnx", "verify", str(tiny_dir)]
    done = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path / "llm"), capture_output=True, text=True)
    assert (done.returncode, "FAILED" in done.stdout) == (0, False), done.stdout + done.stderr


def test_the_image_tells_numpys_threads_not_to_spin_for_no_plugin_can():
    """Datasette and `llm` (by openai) import numpy first. What the threads spin cannot be tested: they give way to others."""
    env = re.search(r"^ENV PATH=(.*\\\n)*.*$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert env
    assert " OPENBLAS_THREAD_TIMEOUT=4" in env[0]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize(
    ("edited", "bakes_again"),
    [
        ("plugins/llm_clip_onnx/tokenizer.py", True),
        ("plugins/llm_clip_onnx/bake/quantize.py", True),
        ("demo/checkpoint/model.safetensors", True),
        ("plugins/clip_collections/search.py", False),
        ("plugins/datasette_clip/config.py", False),
        ("plugins/datasette_guard/gate.py", False),
        ("pyproject.toml", False),
    ],
)
def test_make_bakes_again_only_after_an_edit_of_the_model(edited, bakes_again, tmp_path):
    """In a tree of empty files with the times of a demo that was made after all of them, and then of the edit."""
    made = (
        *(".venv/ready", "demo/model/manifest.json", "demo/model/labels/emoji.json", "demo/served/emoji.db"),
        "demo/models/multilingual/manifest.json",
    )
    for time_s, names in enumerate(([str(file.relative_to(ROOT)) for file in tracked()], made, [edited]), start=1):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (time_s, time_s))
    shutil.copy(ROOT / "Makefile", tmp_path)
    done = subprocess.run(["make", "--dry-run", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "datasette serve" in done.stdout
    assert ("llm clip bake" in done.stdout) == bakes_again


def test_no_test_file_imports_another():
    """What tests share is in tests/support/ or in conftest.py."""
    imports = re.compile(r"^\s*(?:from|import) test_\w+", re.M)
    assert [str(file) for file in tracked() if file.name.startswith("test_") and imports.search(file.read_text())] == []


ROOT_FILES = {
    *("Dockerfile", "fly.toml", "heroku.yml", "metadata.json", "pyproject.toml", "README.md", "LICENSE", "Makefile"),
    *("CONTRIBUTING.md", "plugins", "tests", "docs", "demo", "bench", "deploy", "examples"),
}


def test_the_root_holds_nothing_but_what_a_reader_looks_for_there():
    names = {file.relative_to(ROOT).parts[0] for file in tracked()}
    assert {name for name in names if not name.startswith(".")} <= ROOT_FILES


def test_only_the_demo_and_small_goldens_are_binary():
    binary = {f.relative_to(ROOT) for f in tracked() if b"\0" in f.read_bytes()}
    for file in binary:
        assert file.parts[0] == "demo" or file.parts[:2] in (("tests", "golden"), ("docs", "search.png")), file
        assert (ROOT / file).stat().st_size < (20_000_000 if file.parts[0] == "demo" else 200_000), file


def test_the_demo_checkpoint_takes_at_most_20_megabytes():
    assert sum(f.stat().st_size for f in (ROOT / "demo/checkpoint").iterdir()) <= 20_000_000


def test_no_file_names_a_place_outside_the_project():
    home = re.compile(r"(?<![\w.$~])/(home|root|Users|work)/|\.\./sha" + "red")
    for file in tracked():
        text = file.read_bytes()
        if b"\0" not in text and file.suffix != ".txt":
            assert not home.search(text.decode()), file
