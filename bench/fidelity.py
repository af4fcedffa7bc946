"""Measures how close 8-bit towers stay to float32 ones, as they are baked and as plainer ways would make them.

    python bench/fidelity.py [--quick] [--to FILE]

    as baked    linear layers rewritten to fit 8 bits, a scale for each column of a matrix
    per column  not rewritten
    per matrix  not rewritten, one scale for a whole matrix, as plain dynamic quantisation does it

Checkpoints: random weights of ViT-B/32's shape, the same with planted outliers (planted.py; not with --quick), and the
demo's. Inputs are the fixed ones of every bake. For the demo also what search finds in demo/emoji.db, for which its
cosines mean something. A cosine is the worst of all inputs; nothing here depends on time.
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

from llm_clip_onnx.bake import bake, fidelity, open_checkpoint, smooth, write_tokenizer
from llm_clip_onnx.bake import graph as graphs
from llm_clip_onnx.bake.eight_bit import calibration_inputs
from llm_clip_onnx.bake.quantize import quantize_columns
from llm_clip_onnx.bake.tower_plan import TowerPlan, plan_image, plan_text
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from planted import plant_outliers
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import ROOT, keep, origin, put_away_when_told_to_end, say, source_line

sys.path.append(str(ROOT / "demo"))
from search_recall import collection, first_ten, overlap

TOWERS = {"text": plan_text, "image": plan_image}
COLUMNS = {"baked": "as baked", "column": "per column", "matrix": "per matrix"}
RANDOM, PLANTED, DEMO = "random weights of ViT-B/32's shape", "the same with planted outliers", "the demo model"


def per_tensor(weight: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
    """What plain dynamic quantisation does: one scale and zero point for a whole matrix."""
    levels, scale, zero_point = quantize_columns(weight.reshape(-1, 1))
    return levels.reshape(weight.shape), scale.repeat(weight.shape[1]), zero_point.repeat(weight.shape[1])


def mean_cosine(embeddings: NDArray[np.float32]) -> float:
    """The mean cosine of two different rows of [n, d]."""
    cosines = unit(embeddings) @ unit(embeddings).T
    return float((cosines.sum() - len(cosines)) / (cosines.size - len(cosines)))


def worst(found: NDArray[np.float32], expected: NDArray[np.float32], plan: TowerPlan) -> dict[str, float]:
    result = fidelity.agreement(found, expected, plan.inputs)
    return {"centred": result.worst_centred, "plain": result.worst}


def measure_tower(plan: TowerPlan, place: Path) -> dict[str, Any]:
    """The figures of one tower. Raises RuntimeError where a bake would keep some of its matrices float32."""
    everything = {graphs.TOKEN_TABLE, *smooth.linears(plan.prefix, plan.config)}

    def embedded(name: str, tensors: Mapping[str, NDArray], eight_bit: Collection[str]) -> NDArray[np.float32]:
        return plan.write_and_embed(place / f"{plan.name}-{name}", tensors, eight_bit)

    float32 = embedded("fp32", plan.tensors, ())
    fitted, choices = smooth.smoothed(plan.tensors, plan.prefix, plan.config, calibration_inputs(plan))
    baked = embedded("baked", fitted, everything)
    if not fidelity.int8_agrees(plan.name, fidelity.agreement(baked, float32, plan.inputs)):
        raise RuntimeError(f"{plan.name} tower: a bake would keep matrices float32, which is not measured here")
    column = embedded("column", plan.tensors, everything)
    with patch.object(graphs, "quantize_columns", per_tensor):
        matrix = embedded("matrix", plan.tensors, everything)
    return {
        "inputs": len(plan.inputs),
        "mean_cosine": mean_cosine(plan.reference),
        "linears": len(choices),
        "rewritten": sum(choice.strength is not None for choice in choices.values()),
        "float32": worst(float32, plan.reference, plan),
        "int8": {"baked": worst(baked, float32, plan)}
        | {"column": worst(column, float32, plan), "matrix": worst(matrix, float32, plan)},
    }


def measure(checkpoint: Path, place: Path) -> dict[str, Any]:
    """Tower -> its figures, made in the folder `place`, which is there."""
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
    """Raises RuntimeError where a tower is of another precision."""
    towers = bake(str(ROOT / "demo" / "checkpoint"), to, precision, say=say).towers
    if {tower.precision for tower in towers.values()} != {precision}:
        raise RuntimeError(f"the demo model was asked for in {precision} and baked otherwise")
    return to


def run(place: Path, quick: bool) -> dict[str, Any]:
    """Measure in the folder `place` and return all that was found."""
    made: dict[str, Callable[[Path], Path]] = {
        RANDOM: lambda folder: write_checkpoint(folder, text=VIT_B_32, vision=VIT_B_32),
        PLANTED: lambda folder: write_checkpoint(folder, text=VIT_B_32, vision=VIT_B_32, change=plant_outliers),
        DEMO: lambda _: ROOT / "demo" / "checkpoint",
    }
    if quick:
        del made[PLANTED]
    found: dict[str, Any] = origin() | {"checkpoints": {}}
    for name, make in made.items():
        say(name)
        with tempfile.TemporaryDirectory(dir=place) as folder:  # each leaves 2 GB
            (work := Path(folder) / "work").mkdir()
            found["checkpoints"][name] = measure(make(Path(folder) / "checkpoint"), work)
    say("search")
    return found | {"search": search_figures(place)}


def table(found: dict[str, Any]) -> str:
    """The figures as plain text: two lines for each checkpoint, then those of search."""
    line = "{:<8}{:>13}{:>11}" + "{:>12}{:>9}" * len(COLUMNS)
    line = line.format
    lines = ["worst cosine of the 8-bit tower with the float32 one, centred and plain", ""]
    lines.append(line("", "mean cosine", "layers", *(cell for title in COLUMNS.values() for cell in (title, ""))))
    lines.append(line("", "of two inputs", "rewritten", *["centred", "plain"] * len(COLUMNS)))
    for name, towers in found["checkpoints"].items():
        lines.append(name)
        for tower, figures in towers.items():
            cells = [f"{figures['int8'][way][kind]:.4f}" for way in COLUMNS for kind in ("centred", "plain")]
            rewritten = f"{figures['rewritten']} of {figures['linears']}"
            lines.append(line(f"  {tower}", f"{figures['mean_cosine']:.2f}", rewritten, *cells))
    every = [figures for towers in found["checkpoints"].values() for figures in towers.values()]
    least = min(min(figures["float32"].values()) for figures in every)
    lines += ["", f"worst cosine of the float32 towers with plain numpy, centred or plain: {least:.6f}", ""]
    search = found["search"]
    lines.append(f"{search['pictures']:,} pictures of the demo collection, the first ten of both precisions")
    row = "{:<60}{:>8}".format
    lines.append(row("  in common, by name, %", f"{search['overlap']['text']:.1f}"))
    lines.append(row("  in common, by picture, %", f"{search['overlap']['image']:.1f}"))
    lines.append(row("  with the right one, by name, 8-bit towers, %", f"{search['recall']['int8']:.1f}"))
    lines.append(row("  with the right one, by name, float32 towers, %", f"{search['recall']['fp32']:.1f}"))
    lines += ["", source_line(found)]
    return "\n".join(text.rstrip() for text in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without planted outliers")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        found = run(Path(place), options.quick)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
