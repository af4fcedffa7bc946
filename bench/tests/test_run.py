"""The runner runs the benches that it is told, keeps their results, and leaves nothing running."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from bench.harness import ROOT, run, tables
from patience import PATIENCE_S, has_ended, until

MADE = """
import argparse, json, pathlib, signal, subprocess, sys, tempfile
parser = argparse.ArgumentParser()
parser.add_argument("--to")
parser.add_argument("--fail", action="store_true")
parser.add_argument("--stay")
options = parser.parse_args()
print("a line of its own")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
if options.fail:
    sys.exit(3)
if options.stay:
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    child.stdout.readline()
    with tempfile.TemporaryDirectory() as place:
        pathlib.Path(options.stay).write_text(f"{child.pid} {place}")
        child.wait()
pathlib.Path(options.to).write_text(json.dumps({"machine": {"cores": 2}, "figure": 7}))
"""


@pytest.fixture
def runner(tmp_path, monkeypatch) -> list[str]:
    """A command that runs three benches of this test in the room `room`: made, failing, staying."""
    (tmp_path / "made/room").mkdir(parents=True)
    (tmp_path / "made/room/made.py").write_text(MADE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    benches = {
        "failing": run.Bench("made.room.made", "fails", "--fail", "--fail"),
        "made": run.Bench("made.room.made", "does little", ""),
        "staying": run.Bench("made.room.made", "stays", "", f"--stay {tmp_path}/stays"),
    }
    code = f"from bench.harness import run; from bench.harness.run import Bench; run.BENCHES = {benches!r}; run.main()"
    return [sys.executable, "-c", code, "--here", "--to", str(tmp_path)]


@pytest.fixture
def results(tmp_path) -> Path:
    """The file in which `runner` keeps results."""
    return tmp_path / "room" / "results.json"


def ended(command: list[str], **more) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, **{"cwd": ROOT} | more)


def test_a_bench_runs_by_its_name_and_a_quick_look_is_not_kept(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "bench/harness/run.py"),
        "scan",
        "--quick",
        "--here",
        "--to",
        str(tmp_path),
    ]
    done = ended(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines, last = done.stdout.splitlines()  # a busy machine may print the status between them
    assert re.fullmatch(r"\[1 of 1\] scan \S+, all \S+: ordering a whole table by cosine in SQL", first)
    assert any("ms with datasette-llm-embed's function" in line for line in lines)
    assert lines[-1].endswith("python -m bench.search.scan --rows 1000 --pairs 1")
    assert last.startswith("1 of 1 in ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_known_ones():
    done = ended([sys.executable, str(ROOT / "bench/harness/run.py"), "skan"])
    assert done.returncode == 2
    assert done.stderr.endswith(f"there is no bench 'skan'; there are {', '.join(run.BENCHES)}\n")


def test_results_are_kept_beside_those_of_other_benches_and_a_failing_bench_is_named(runner, results):
    kept = {"versions": {"elsewhere": {}}, "benches": {"staying": {"figure": 1, "took_s": 61}}}
    results.parent.mkdir()
    results.write_text(json.dumps(kept))
    done = ended([*runner, "made", "failing"])
    assert done.returncode == 1
    assert done.stderr == "failed: failing, ended with 3\n"
    assert done.stdout.count("\n    a line of its own\n") == 2
    kept = json.loads(results.read_text())
    assert kept["versions"].keys() == {"elsewhere", ".venv-test"}
    assert kept["versions"][".venv-test"]["pytest"] == pytest.__version__
    kept["benches"]["made"].pop("took_s")
    made = {"machine": {"cores": 2}, "figure": 7, "environment": ".venv-test", "command": "python -m made.room.made"}
    assert kept["benches"] == {"made": made, "staying": {"figure": 1, "took_s": 61}}
    assert "1:01" in ended([*runner, "--list"]).stdout


def test_results_of_another_machine_can_be_kept(runner, results, tmp_path):
    (tmp_path / "made.json").write_text(json.dumps({"machine": {"cores": 8}, "figure": 9}))
    assert ended([*runner, "--keep", str(tmp_path / "made.json")]).returncode == 0
    assert json.loads(results.read_text())["benches"]["made"]["figure"] == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_bench_and_all_that_it_started(number, runner, results, tmp_path):
    process = subprocess.Popen([*runner, "staying"], cwd=ROOT, stdout=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or ((tmp_path / "stays").exists() and (tmp_path / "stays").read_text()))
    child, place = (tmp_path / "stays").read_text().split()
    child = psutil.Process(int(child))
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 128 + number
    until(lambda: has_ended(child))
    assert not Path(place).exists()
    assert not results.exists()


@pytest.mark.parametrize("name", [name for name, bench in run.BENCHES.items() if bench.plot])
@pytest.mark.filterwarnings("error")
def test_a_plot_is_drawn_without_a_warning_and_shows_what_is_kept(name, tmp_path):
    bench = run.BENCHES[name]
    draw = importlib.import_module(bench.plot).draw
    kept = json.loads((ROOT / f"bench/{bench.room}/results.json").read_text())["benches"][name]
    for again in ("a.svg", "b.svg"):
        draw(kept, tmp_path / again)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    committed, drawn = (texts(file) for file in (ROOT / f"bench/{bench.room}/{name}.svg", tmp_path / "a.svg"))
    assert len(drawn) > 20
    assert drawn == committed


def texts(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.read_text())


def test_every_bench_is_a_module_and_every_result_has_its_bench():
    assert all(importlib.util.find_spec(bench.module) for bench in run.BENCHES.values())
    for room in tables.ROOMS:
        kept = json.loads((ROOT / f"bench/{room}/results.json").read_text())
        assert kept["benches"].keys() == {name for name, bench in run.BENCHES.items() if bench.room == room}
        for results in kept["benches"].values():
            assert results.keys() >= {"date", "command", "machine", "environment"}
            assert results["machine"].keys() >= {"cpu", "cores", "memory_bytes", "system"}
            assert kept["versions"][results["environment"]]


def test_the_tables_of_the_rooms_are_those_of_their_results():
    done = ended([sys.executable, "-m", "bench.harness.tables", "--check"])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", tables.ROOMS)
def test_a_room_shows_every_bench_and_every_plot(room):
    readme = (ROOT / f"bench/{room}/README.md").read_text()
    benches = {name: bench for name, bench in run.BENCHES.items() if bench.room == room}
    assert re.findall(r"^## `(.+)`$", readme, re.MULTILINE) == list(benches)
    assert set(re.findall(r"^!\[.+\]\((.+)\)$", readme, re.MULTILINE)) == {
        f"{name}.svg" for name, bench in benches.items() if bench.plot
    }


def what_make_runs(only: str) -> str:
    return ended(["make", "--dry-run", "--always-make", "bench", only]).stdout


def test_make_bench_makes_only_the_environments_that_its_benches_need():
    commands = what_make_runs("ONLY=scan")
    assert "python3 bench/harness/run.py scan" in commands
    assert ".venv-test/bin/pip install" in commands
    assert ".venv-bench" not in commands
    assert ".venv-bench/bin/pip install" in what_make_runs("ONLY=growth")
    commands = what_make_runs("ONLY=peers")
    for environment in ("test", "bench", "peers", "open-clip", "infinity"):
        assert f".venv-{environment}/bin/pip install" in commands
    for environment in ("recipe", "ours", "bare"):
        assert f".venv-{environment}/bin/pip install" in what_make_runs("ONLY=recipe")


def test_the_tests_of_the_project_import_no_bench():
    imports = re.compile(r"^\s*(?:from|import) bench\b", re.MULTILINE)
    assert [file for file in (ROOT / "tests").rglob("*.py") if imports.search(file.read_text())] == []


@pytest.mark.parametrize("file", sorted((ROOT / "bench").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_has_a_sentence_to_say_about_itself(file):
    docstring = ast.get_docstring(ast.parse(file.read_text()))
    assert docstring
    assert docstring[0].isupper()
