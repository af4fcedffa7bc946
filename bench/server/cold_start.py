"""Measures where a cold start goes: the imports, and the steps that open the text tower, each alone.

    python -m bench.server.cold_start [--model-dir DIR] [--pairs 9] [--to FILE]

    ours     datasette-clip, from exec to the first embedding of a text over HTTP
    bare     Datasette alone, from exec to the first `select 1`

Starts take turns, and a figure is the median. Imports and steps are measured in processes of their own, with one
thread, so that none waits for another: `python -X importtime` of what the command `datasette` imports, each package
with the time of its own modules, then the opening step by step, in CPU. `datasette serve` opens beside its imports, so
the wall time of a start is less than the sum. Without DIR random weights of ViT-B/32's shape are baked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.models import model_or_random
from bench.harness.stacks import BARE, OURS, Stack, call_of, served
from bench.harness.turns import Figures, medians_of, turns

LEAST_MS = 4.0  # a package that takes less is counted with the others
PYTHON, OTHERS = "Python's own", "others"
# What the server's opening thread does, and the first query after it.
STEPS = """
import json, time, datasette.cli
steps, last_s = {}, time.process_time()
def done(step):
    global last_s
    steps[step] = (time.process_time() - last_s) * 1000
    last_s = time.process_time()
import onnxruntime; done("import onnxruntime")
import tokenizers; done("import tokenizers")
from llm_clip_onnx import engine, model_dir, tokenizer, towers
opened = engine.default_engine(); done("import the engine, read the manifest")
graph, *weights = opened.tower_files("text"); done("multiply the probe")
files = (graph, *weights, *model_dir.tokenizer_files(opened.manifest.tokens))
model_dir.check_sha256(opened.path, opened.manifest, files); done("sha256 of the text tower's files")
vocab, merges = opened.path / model_dir.VOCAB, opened.path / model_dir.MERGES
bpe = tokenizer.open_tokenizer(vocab, merges, 77); done("open the tokenizer")
tower = towers.open_tower(opened.path / graph, threads=1); done("open the text tower")
towers.run_text(tower, tokenizer.tokenize(bpe, "red car in the snow")[None]); done("embed the first text")
print(json.dumps(steps))
"""


def imports_ms(stack: Stack, place: Path) -> Figures:
    """Package -> milliseconds in its own modules, for all that the command `datasette` imports before it begins."""
    call = call_of(stack, place, "-X", "importtime", "-c", "import datasette.cli")
    trace = subprocess.run(**call, check=True, capture_output=True, text=True).stderr
    spent: Counter[str] = Counter()
    for microseconds, module in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", trace, re.MULTILINE):
        package = module.split(".")[0]
        spent[PYTHON if package in sys.stdlib_module_names else package] += int(microseconds) / 1000
    return dict(spent)


def steps_ms(stack: Stack, place: Path) -> Figures:
    """Step of the opening -> milliseconds of CPU."""
    call = call_of(stack, place, "-c", STEPS)
    return json.loads(subprocess.run(**call, check=True, capture_output=True, text=True).stdout)


def medians_by_size(runs: list[Figures]) -> Figures:
    """Name -> median over runs, largest first. A run without the name counts as 0."""
    names = {name: None for run in runs for name in run}
    medians = {name: float(np.median([run.get(name, 0.0) for run in runs])) for name in names}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def start(stack: Stack, place: Path) -> Figures:
    with served(stack, place) as server:
        return {"wall_s": server.cold_wall_s, "cpu_s": server.cold_cpu_s}


def measure(place: Path, options: argparse.Namespace) -> Results:
    model = model_or_random(options.model_dir, place)
    ours = replace(OURS, environment=OURS.environment | {"CLIP_MODEL_DIR": str(model)})
    stacks = (ours, BARE)
    for stack in stacks:
        start(stack, place)  # not counted: writes the bytecode, and reads the files
        imports_ms(stack, place)
    starts: dict[str, list[Figures]] = {stack.name: [] for stack in stacks}
    imports: dict[str, list[Figures]] = {stack.name: [] for stack in stacks}
    steps = []
    for number, stack in turns(stacks, options.pairs):
        say(f"pair {number + 1} of {options.pairs}: {stack.name}")
        starts[stack.name].append(start(stack, place))
        imports[stack.name].append(imports_ms(stack, place))
        if stack is ours:
            steps.append(steps_ms(ours, place))
    return {
        "starts": starts,
        "medians": {name: medians_of(runs) for name, runs in starts.items()},
        "imports_ms": {name: medians_by_size(runs) for name, runs in imports.items()},
        "steps_ms": medians_of(steps),
    }


def table(results: Results) -> str:
    """The figures as plain text: the starts, the imports by package, and the steps of the opening."""
    line = "{:<44}{:>10}{:>10}".format
    ours, bare = (results["medians"][name] for name in ("ours", "bare"))
    lines = [line("", "ours", "bare")]
    lines.append(line("cold start to first answer, s", f"{ours['wall_s']:.2f}", f"{bare['wall_s']:.2f}"))
    lines.append(line("  CPU seconds of that", f"{ours['cpu_s']:.2f}", f"{bare['cpu_s']:.2f}"))
    ours, bare = (results["imports_ms"][name] for name in ("ours", "bare"))
    lines.append(line("imports of datasette.cli, ms", f"{sum(ours.values()):.0f}", f"{sum(bare.values()):.0f}"))
    shown = [name for name in ours if max(ours[name], bare.get(name, 0)) >= LEAST_MS]
    rows = [(name, ours[name], bare.get(name, 0.0)) for name in shown]
    others = (sum(ms for name, ms in packages.items() if name not in shown) for packages in (ours, bare))
    for name, ms, bare_ms in [*rows, (OTHERS, *others)]:
        lines.append(line(f"  {name}", f"{ms:.0f}", f"{bare_ms:.0f}"))
    lines.append(line("opening of the text tower alone, ms of CPU", f"{sum(results['steps_ms'].values()):.0f}", ""))
    lines += [line(f"  {name}", f"{ms:.0f}", "") for name, ms in results["steps_ms"].items()]
    lines += ["", f"{len(results['starts']['ours'])} pairs, {load_words(results)}", source_line(results)]
    return "\n".join(text.rstrip() for text in lines)


if __name__ == "__main__":
    main(__doc__, measure, table, model_dir=Path, pairs=9)
