"""Says where a cold start goes: what is imported, and the steps that open the text tower, each measured alone.

    python bench/cold_start.py [--model-dir DIR] [--pairs 9] [--to FILE]

    ours     datasette-clip, from exec to the first embedding of a text over HTTP
    bare     Datasette alone, from exec to the first `select 1`

Starts take turns as in bench/recipe.py, and a figure is the median. The parts are of processes of their own, with one
thread, so that none waits for another: `python -X importtime` of what the command `datasette` imports, each package
with the time of its own modules, and after that the opening step by step, in CPU. Under `datasette serve` the opening
runs beside the imports, so the wall time of a start is less than the sum.

Without DIR it bakes random weights of ViT-B/32's shape.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from llm_clip_onnx.bake import bake
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import (
    BARE,
    OURS,
    TEXTS,
    keep,
    medians_of,
    origin,
    put_away_when_told_to_end,
    say,
    source_line,
    turns,
)
from stacks import Stack, command, make_environment, served

LEAST_MS = 4.0  # a package with less is among the others
PYTHON, OTHERS = "Python's own", "others"
# What opening.py has done in its thread, and the first query after it.
STEPS = """
import json, time, datasette.cli
steps, last_s = {}, time.process_time()
def done(step):
    global last_s
    steps[step] = (time.process_time() - last_s) * 1000
    last_s = time.process_time()
import onnxruntime; done("import onnxruntime")
import tokenizers; done("import tokenizers")
from llm_clip_onnx import engine, model_dir, towers
opened = engine.default_engine(); done("import the engine, read the manifest")
graph, *weights = opened.tower_files("text"); done("multiply the probe")
files = (graph, *weights, model_dir.VOCAB, model_dir.MERGES)
model_dir.check_sha256(opened.path, opened.manifest, files); done("sha256 of the text tower's files")
vocab, merges = opened.path / model_dir.VOCAB, opened.path / model_dir.MERGES
bpe = engine.open_tokenizer(vocab, merges, 77); done("open the tokenizer")
tower = towers.open_tower(opened.path / graph, threads=1); done("open the text tower")
towers.run_text(tower, engine.ids_of(bpe, "red car in the snow")[None]); done("embed the first text")
print(json.dumps(steps))
"""


def imports_ms(stack: Stack, place: Path) -> dict[str, float]:
    """Package -> milliseconds in its own modules, of all that the command `datasette` imports before it begins."""
    called = command(stack, place, "datasette")
    called["args"] = [called["args"][0], "-X", "importtime", "-c", "import datasette.cli"]
    told = subprocess.run(**called, check=True, capture_output=True, text=True).stderr
    spent: Counter[str] = Counter()
    for microseconds, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", told, re.MULTILINE):
        package = module.split(".")[0]
        spent[PYTHON if package in sys.stdlib_module_names else package] += int(microseconds) / 1000
    return dict(spent)


def steps_ms(stack: Stack, place: Path) -> dict[str, float]:
    """Step of the opening -> milliseconds of CPU."""
    called = command(stack, place, "datasette")
    called["args"] = [called["args"][0], "-c", STEPS]
    return json.loads(subprocess.run(**called, check=True, capture_output=True, text=True).stdout)


def median_of(runs: list[dict[str, float]]) -> dict[str, float]:
    """Name -> median over runs, 0 in a run where it is missing; the largest first."""
    names = {name: None for run in runs for name in run}
    found = {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def start(stack: Stack, place: Path) -> dict[str, float]:
    with served(stack, place, TEXTS[0]) as server:
        return {"wall_s": server.cold_wall_s, "cpu_s": server.cold_cpu_s}


def measure(place: Path, model: Path, pairs: int) -> dict:
    """All that was found, with environments made in the folder `place`."""
    ours = replace(OURS, environment=OURS.environment | {"CLIP_MODEL_DIR": str(model)}, arguments=OURS.arguments[1:])
    stacks = (ours, replace(BARE, arguments=BARE.arguments[1:]))  # without images.db
    for stack in stacks:
        make_environment(stack, place)
        start(stack, place)  # writes the bytecode, and reads the files once
        imports_ms(stack, place)
    found = origin()
    starts: dict[str, list] = {stack.name: [] for stack in stacks}
    imports: dict[str, list] = {stack.name: [] for stack in stacks}
    steps = []
    for number, stack in turns(stacks, pairs):
        say(f"pair {number + 1} of {pairs}: {stack.name}")
        starts[stack.name].append(start(stack, place))
        imports[stack.name].append(imports_ms(stack, place))
        if stack is ours:
            steps.append(steps_ms(ours, place))
    found["starts"] = starts
    found["medians"] = {name: medians_of(runs) for name, runs in starts.items()}
    found["imports_ms"] = {name: median_of(runs) for name, runs in imports.items()}
    return found | {"steps_ms": medians_of(steps)}


def table(found: dict) -> str:
    """The figures as plain text: the starts, what is imported by package, and the steps of the opening."""
    line = "{:<44}{:>10}{:>10}".format
    ours, bare = (found["medians"][name] for name in ("ours", "bare"))
    lines = [line("", "ours", "bare")]
    lines.append(line("cold start to first answer, s", f"{ours['wall_s']:.2f}", f"{bare['wall_s']:.2f}"))
    lines.append(line("  CPU seconds of that", f"{ours['cpu_s']:.2f}", f"{bare['cpu_s']:.2f}"))
    ours, bare = (found["imports_ms"][name] for name in ("ours", "bare"))
    lines.append(line("imports of datasette.cli, ms", f"{sum(ours.values()):.0f}", f"{sum(bare.values()):.0f}"))
    shown = [name for name in ours if max(ours[name], bare.get(name, 0)) >= LEAST_MS]
    rows = [(name, ours[name], bare.get(name, 0.0)) for name in shown]
    rest = (sum(ms for name, ms in packages.items() if name not in shown) for packages in (ours, bare))
    for name, ms, bare_ms in [*rows, (OTHERS, *rest)]:
        lines.append(line(f"  {name}", f"{ms:.0f}", f"{bare_ms:.0f}"))
    lines.append(line("opening of the text tower alone, ms of CPU", f"{sum(found['steps_ms'].values()):.0f}", ""))
    lines += [line(f"  {name}", f"{ms:.0f}", "") for name, ms in found["steps_ms"].items()]
    load = found["machine"]["load_average_at_start"]
    lines += ["", f"{len(found['starts']['ours'])} pairs, load {load:.1f} at the start"]
    lines.append(source_line(found))
    return "\n".join(text.rstrip() for text in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as folder:
        place, model = Path(folder), options.model_dir
        if model is None:
            model = place / "model"
            say("bake")
            bake(str(write_checkpoint(place / "checkpoint", text=VIT_B_32, vision=VIT_B_32)), model, say=say)
        keep(measure(place, model.resolve(), options.pairs), options.to, table)


if __name__ == "__main__":
    main()
