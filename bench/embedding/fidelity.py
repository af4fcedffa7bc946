"""Measures how close 8-bit towers stay to float32 ones, as they are baked and as plainer ways would make them.

    python -m bench.embedding.fidelity [--quick] [--to FILE]

    as baked    linear layers rewritten to fit 8 bits, a scale for each column of a matrix
    per column  not rewritten
    per matrix  not rewritten, one scale for a whole matrix, as plain dynamic quantisation does it

Checkpoints: random weights of ViT-B/32's shape, the same with planted outliers (tests/support/planted.py; not with
--quick), and the demo's. Inputs are the fixed ones of every bake. For the demo, whose cosines mean something, also what
both precisions find in demo/emoji.db. A cosine is the worst over all inputs; nothing here depends on time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import Results, main, say, source_line
from bench.harness.models import RANDOM
from llm_clip_onnx.bake import bake, fidelity, open_checkpoint, smooth, write_tokenizer
from llm_clip_onnx.bake import graph as graphs
from llm_clip_onnx.bake.eight_bit import calibration_inputs
from llm_clip_onnx.bake.tower_plan import TowerPlan
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from plain_quantisation import TOWERS, mean_cosine, per_tensor
from planted import plant_outliers
from random_checkpoint import VIT_B_32, write_checkpoint

sys.path.append(str(ROOT / "demo"))
from search_recall import collection, first_ten, overlap

COLUMNS = {"baked": "as baked", "column": "per column", "matrix": "per matrix"}
PLANTED, DEMO = "the same with planted outliers", "the demo model"


def worst(embeddings: NDArray[np.float32], expected: NDArray[np.float32], plan: TowerPlan) -> dict[str, float]:
    result = fidelity.agreement(embeddings, expected, plan.inputs)
    return {"centred": result.worst_centred, "plain": result.worst}


def measure_tower(plan: TowerPlan, place: Path) -> dict[str, Any]:
    """The figures of one tower. Raises RuntimeError if a bake would keep some of its matrices float32."""
    everything = {graphs.TOKEN_TABLE, *(linear.name for linear in plan.tower.linears)}

    def embedded(name: str, tensors: Mapping[str, NDArray], eight_bit: Collection[str]) -> NDArray[np.float32]:
        return plan.write_and_embed(place / f"{plan.name}-{name}", tensors, eight_bit)

    float32 = embedded("fp32", plan.tower.tensors, ())
    fitted, choices = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    baked = embedded("baked", fitted, everything)
    if not fidelity.int8_agrees(plan.name, fidelity.agreement(baked, float32, plan.inputs)):
        raise RuntimeError(f"{plan.name} tower: a bake would keep matrices float32, which is not measured here")
    column = embedded("column", plan.tower.tensors, everything)
    with patch.object(graphs, "quantize_columns", per_tensor):
        matrix = embedded("matrix", plan.tower.tensors, everything)
    return {
        "inputs": len(plan.inputs),
        "mean_cosine": mean_cosine(plan.reference),
        "linears": len(choices),
        "rewritten": sum(choice.strength is not None for choice in choices.values()),
        "float32": worst(float32, plan.reference, plan),
        "int8": {"baked": worst(baked, float32, plan)}
        | {"column": worst(column, float32, plan), "matrix": worst(matrix, float32, plan)},
    }


def measure_checkpoint(checkpoint: Path, place: Path) -> dict[str, Any]:
    """Tower -> its figures. Its files go to the folder `place`, which exists."""
    opened = open_checkpoint(str(checkpoint))
    write_tokenizer(place, opened)
    return {name: measure_tower(plan(place, opened, say), place) for name, plan in TOWERS.items()}


def search_figures(place: Path) -> dict[str, Any]:
    """What both precisions of the demo model find in the demo collection, in percent."""
    labels, images = collection()
    by_text, by_image, recall = [], [], {}
    for precision in ("int8", "fp32"):
        engine = Engine(bake_demo(place / precision, precision))
        pictures = unit(engine.embed_images(images))
        by_text.append(first_ten(unit(engine.embed_text(labels)) @ pictures.T))
        by_image.append(first_ten(pictures @ pictures.T))
        recall[precision] = 100 * float(np.mean([n in ten for n, ten in enumerate(by_text[-1])]))
    return {
        "pictures": len(images),
        "overlap": {"text": overlap(*by_text), "image": overlap(*by_image)},
        "recall": recall,
    }


def bake_demo(to: Path, precision: str) -> Path:
    """Bake the demo model in a precision. Raises RuntimeError if a tower comes out in another one."""
    towers = bake(str(ROOT / "demo" / "checkpoint"), to, precision, say=say).towers
    if {tower.precision for tower in towers.values()} != {precision}:
        raise RuntimeError(f"asked for the demo model in {precision}, and a tower has another precision")
    return to


def measure(place: Path, options: argparse.Namespace) -> Results:
    made: dict[str, Callable[[Path], Path]] = {
        RANDOM: lambda folder: write_checkpoint(folder, text=VIT_B_32, vision=VIT_B_32),
        PLANTED: lambda folder: write_checkpoint(folder, text=VIT_B_32, vision=VIT_B_32, change=plant_outliers),
        DEMO: lambda _: ROOT / "demo" / "checkpoint",
    }
    if options.quick:
        del made[PLANTED]
    checkpoints: dict[str, Any] = {}
    for name, make in made.items():
        say(name)
        with tempfile.TemporaryDirectory(dir=place) as folder:  # each leaves 2 GB
            (work := Path(folder) / "work").mkdir()
            checkpoints[name] = measure_checkpoint(make(Path(folder) / "checkpoint"), work)
    say("search")
    return {"checkpoints": checkpoints, "search": search_figures(place)}


def table(results: Results) -> str:
    """The figures as plain text: two lines for each checkpoint, then those of search."""
    line = "{:<8}{:>13}{:>11}" + "{:>12}{:>9}" * len(COLUMNS)
    line = line.format
    lines = ["worst cosine of the 8-bit tower with the float32 one, centred and plain", ""]
    lines.append(line("", "mean cosine", "layers", *(cell for title in COLUMNS.values() for cell in (title, ""))))
    lines.append(line("", "of two inputs", "rewritten", *["centred", "plain"] * len(COLUMNS)))
    for name, towers in results["checkpoints"].items():
        lines.append(name)
        for tower, figures in towers.items():
            cells = [f"{figures['int8'][way][kind]:.4f}" for way in COLUMNS for kind in ("centred", "plain")]
            rewritten = f"{figures['rewritten']} of {figures['linears']}"
            lines.append(line(f"  {tower}", f"{figures['mean_cosine']:.2f}", rewritten, *cells))
    every = [figures for towers in results["checkpoints"].values() for figures in towers.values()]
    least = min(min(figures["float32"].values()) for figures in every)
    lines += ["", f"worst cosine of the float32 towers with plain numpy, centred or plain: {least:.6f}", ""]
    search = results["search"]
    lines.append(f"{search['pictures']:,} pictures of the demo collection, the first ten of both precisions")
    row = "{:<60}{:>8}".format
    lines.append(row("  in common, by name, %", f"{search['overlap']['text']:.1f}"))
    lines.append(row("  in common, by picture, %", f"{search['overlap']['image']:.1f}"))
    lines.append(row("  with the right one, by name, 8-bit towers, %", f"{search['recall']['int8']:.1f}"))
    lines.append(row("  with the right one, by name, float32 towers, %", f"{search['recall']['fp32']:.1f}"))
    lines += ["", source_line(results)]
    return "\n".join(text.rstrip() for text in lines)


if __name__ == "__main__":
    main(__doc__, measure, table, quick=False)
