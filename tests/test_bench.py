"""bench/run.py runs what it is told, keeps what was found in one file, and leaves nothing running."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

import clients
import cold_start
import fidelity
import growth
import run
from conftest import ROOT
from llm_clip_onnx.model_dir import read_manifest
from llm_clip_onnx.tokenizer import ids_of, open_tokenizer
from nasty import photo, saved
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
def runner(tmp_path) -> list[str]:
    """A command that runs benches of this test's own: made, failing, staying."""
    (tmp_path / "made.py").write_text(MADE)
    benches = {
        "failing": run.Bench(str(tmp_path / "made.py"), "fails", "--fail", "--fail"),
        "made": run.Bench(str(tmp_path / "made.py"), "does little", ""),
        "staying": run.Bench(str(tmp_path / "made.py"), "stays", "", f"--stay {tmp_path}/stays"),
    }
    code = f"import run; from run import Bench; run.BENCHES = {benches!r}; run.main()"
    return [sys.executable, "-c", code, "--here", "--to", str(tmp_path / "results.json")]


def ended(command: list[str], **more) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'bench'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, **more)


def test_a_bench_runs_by_its_name_and_a_quick_look_is_not_kept(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "bench/run.py"),
        "scan",
        "--quick",
        "--here",
        "--to",
        str(tmp_path / "r.json"),
    ]
    done = ended(command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines, last = done.stdout.splitlines()  # on a busy machine it may say now and then how far it is
    assert re.fullmatch(r"\[1 of 1\] scan \S+, all \S+: ordering a whole table by cosine in SQL", first)
    assert any("ms as datasette-llm-embed does it" in line for line in lines)
    assert last.startswith("1 of 1 in ")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_those_that_there_are(tmp_path):
    done = ended([sys.executable, str(ROOT / "bench/run.py"), "skan"])
    assert done.returncode == 2
    assert done.stderr.endswith(f"there is no bench 'skan'; there are {', '.join(run.BENCHES)}\n")


def test_what_is_found_is_kept_beside_what_others_found_and_one_that_fails_is_named(runner, tmp_path):
    kept = {"machine": {}, "versions": {"elsewhere": {}}, "benches": {"staying": {"figure": 1, "took_s": 61}}}
    (tmp_path / "results.json").write_text(json.dumps(kept))
    done = ended([*runner, "made", "failing"])
    assert done.returncode == 1
    assert done.stderr == "failed: failing, ended with 3\n"
    assert done.stdout.count("\n    a line of its own\n") == 2
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["machine"] == {"cores": 2}
    assert results["versions"].keys() == {"elsewhere", ".venv-test"}
    assert results["versions"][".venv-test"]["pytest"] == pytest.__version__
    results["benches"]["made"].pop("took_s")
    made = {"machine": {"cores": 2}, "figure": 7, "environment": ".venv-test", "command": f"python {tmp_path}/made.py"}
    assert results["benches"] == {"made": made, "staying": {"figure": 1, "took_s": 61}}
    assert "1:01" in ended([*runner, "--list"]).stdout


def test_what_ran_elsewhere_can_be_kept(runner, tmp_path):
    (tmp_path / "made.json").write_text(json.dumps({"machine": {"cores": 8}, "figure": 9}))
    assert ended([*runner, "--keep", str(tmp_path / "made.json")]).returncode == 0
    assert json.loads((tmp_path / "results.json").read_text())["benches"]["made"]["figure"] == 9


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_bench_and_what_that_started(number, runner, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT / "bench")}
    process = subprocess.Popen([*runner, "staying"], env=environment, stdout=subprocess.DEVNULL)
    until(lambda: process.poll() is not None or ((tmp_path / "stays").exists() and (tmp_path / "stays").read_text()))
    child, place = (tmp_path / "stays").read_text().split()
    child = psutil.Process(int(child))
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == 128 + number
    until(lambda: has_ended(child))
    assert not Path(place).exists()
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("name", [name for name, bench in run.BENCHES.items() if bench.plot])
@pytest.mark.filterwarnings("error")
def test_a_plot_is_drawn_without_a_warning_and_shows_what_is_kept(name, tmp_path):
    draw = importlib.import_module(run.BENCHES[name].plot.removesuffix(".py")).draw
    found = json.loads((ROOT / "bench/results.json").read_text())["benches"][name]
    for again in ("a.svg", "b.svg"):
        draw(found, tmp_path / again)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    kept, drawn = (texts(file) for file in (ROOT / f"bench/results/{name}.svg", tmp_path / "a.svg"))
    assert len(drawn) > 20
    assert drawn == kept


def texts(svg: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]+)</text>", svg.read_text())


def test_clients_of_another_process_see_every_answer_and_every_error():
    found = clients.asked_from_outside(clients.free_address(), 2, 0.2, seed="nobody listens")
    assert found["answers"] == found["per_s"] == 0
    assert found["errors"] >= 2  # one of each client at the least
    assert found["first_error"].startswith("ConnectionRefusedError")


@pytest.mark.parametrize("ids", growth.POINTS["ids"])
def test_a_text_of_so_many_ids_has_them(ids):
    folder = ROOT / "demo/checkpoint"
    bpe = open_tokenizer(folder / "vocab.json", folder / "merges.txt", context_length=77)
    assert len(ids_of(bpe, growth.text_of(ids))) == ids


def test_a_stack_in_its_process_says_what_each_call_took(tiny_dir, tmp_path):
    (tmp_path / "model").symlink_to(tiny_dir)
    (tmp_path / "64.jpg").write_bytes(saved(photo(), "JPEG"))
    with growth.worker("ours", tmp_path) as ask:
        for what, size in (("ids", 8), ("texts", 16), ("pixels", 64)):
            assert all(figure > 0 for figure in ask(what, size).values())
        with pytest.raises(RuntimeError, match="No such file"):
            ask("pixels", 128)


def test_the_steps_of_a_cold_start_are_those_of_a_model_directory(demo_dir):
    environment = os.environ | {"CLIP_MODEL_DIR": str(demo_dir)}
    done = subprocess.run([sys.executable, "-c", cold_start.STEPS], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = json.loads(done.stdout)
    assert {"multiply the probe", "sha256 of the text tower's files", "open the text tower"} < steps.keys()
    assert all(ms > 0 for ms in steps.values())


def test_fidelity_as_baked_is_what_the_manifest_of_a_bake_says(demo_dir, tmp_path):
    figures = fidelity.measure(ROOT / "demo/checkpoint", tmp_path)
    for name, tower in read_manifest(demo_dir).towers.items():
        baked, result = figures[name]["int8"]["baked"], tower.fidelity["int8 with fp32"]
        assert (baked["plain"], baked["centred"]) == (result.worst, result.worst_centred)
        assert figures[name]["int8"]["matrix"]["centred"] < baked["centred"]
        assert 0 < figures[name]["rewritten"] <= figures[name]["linears"]
    assert sum(tower["linears"] for tower in figures.values()) == 36


def test_fidelity_is_not_measured_of_a_tower_that_is_not_baked_so(monkeypatch, tmp_path):
    monkeypatch.setattr(fidelity.fidelity, "INT8_MINIMUM", {"text": 0.9999, "image": 0.9999})
    with pytest.raises(RuntimeError, match=r"^text tower: a bake would keep matrices float32"):
        fidelity.measure(ROOT / "demo/checkpoint", tmp_path)


def test_every_bench_has_its_script_and_every_result_its_bench():
    assert all((ROOT / "bench" / bench.script).exists() for bench in run.BENCHES.values())
    kept = json.loads((ROOT / "bench/results.json").read_text())
    assert kept["machine"].keys() >= {"cpu", "cores", "memory_bytes", "system"}
    assert kept["benches"].keys() <= run.BENCHES.keys()
    for found in kept["benches"].values():
        assert found.keys() >= {"date", "command", "machine", "environment"}
        assert kept["versions"][found["environment"]]
