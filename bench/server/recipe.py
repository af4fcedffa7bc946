"""Measures the stack people run today beside ours on one checkpoint: cold start, queries, memory, `llm embed`.

    python -m bench.server.recipe [--checkpoint FOLDER | --tokenizer-json] [--pairs 5] [--to FILE]

The stacks are those of bench/harness/stacks.py. "Cold" is a new process on files that were read before: one start of
each stack, which checks it, is not counted. Memory is compared by PSS: the recipe maps its weights anew for each query
and unmaps them now and then, so its resident size (VmHWM) counts the same pages many times.

Without FOLDER the checkpoint is random, of ViT-B/32's shape, with its tokenizer in vocab.json and merges.txt;
--tokenizer-json puts it in tokenizer.json, for which llm-clip needs longer. Not measured: fidelity; many clients at
once, see crowd.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import time
from pathlib import Path

import numpy as np

from bench.harness.command import Results, main, source_line
from bench.harness.inputs import IMAGES, TEXTS
from bench.harness.models import write_random
from bench.harness.stacks import (
    EMBED_DIM,
    EMBED_IMAGE,
    EMBEDDING,
    MORE_TEXTS,
    STACKS,
    Server,
    Stack,
    call_of,
    prepare,
    served,
)
from bench.harness.turns import Figures, Titles, compare, comparison_lines
from llm_clip_onnx.tokenizer import open_tokenizer

TITLES: Titles = {
    "cold_wall_s": ("cold start to first answer, s", 2),
    "cold_cpu_s": ("  CPU seconds of that", 2),
    "query_p50_ms": ("query, new text each time, p50, ms", 1),
    "query_p95_ms": ("  p95, ms", 1),
    "seen_p50_ms": ("query, text seen before, p50, ms", 1),
    "image_first_ms": ("first image, a 640x480 JPEG in a table, ms", 0),
    "image_p50_ms": ("  another, p50, ms", 0),
    "text_held_mb": ("memory held, text only, MB (PSS)", 0),
    "text_peak_mb": ("  peak resident, MB (VmHWM)", 0),
    "image_held_mb": (f"memory held after {len(IMAGES)} images too, MB (PSS)", 0),
    "image_peak_mb": ("  peak resident, MB (VmHWM)", 0),
    "llm_wall_s": ("llm embed -m clip -c hello, s", 2),
    "llm_cpu_s": ("  CPU seconds of that", 2),
}


def with_tokenizer_json(folder: Path) -> Path:
    """A random checkpoint in `folder` with its tokenizer in one file, as newer libraries write it."""
    write_random(folder)
    files = folder / "vocab.json", folder / "merges.txt"
    open_tokenizer(*files, context_length=77).save(str(folder / "tokenizer.json"))
    for file in files:
        file.unlink()
    return folder


def measure_text(server: Server) -> Figures:
    """The figures of a new server that is queried for texts only, or without a model for `select 1`."""
    query, queries = server.stack.query, server.stack.queries
    new_ms = server.times_ms(query, TEXTS[1 : 1 + queries])
    seen_ms = server.times_ms(query, [TEXTS[1]] * queries)
    return {
        "cold_wall_s": server.cold_wall_s,
        "cold_cpu_s": server.cold_cpu_s,
        "query_p50_ms": float(np.percentile(new_ms, 50)),
        "query_p95_ms": float(np.percentile(new_ms, 95)),
        "seen_p50_ms": float(np.percentile(seen_ms, 50)),
        "text_held_mb": server.held_mb(query, MORE_TEXTS),
        "text_peak_mb": server.peak_mb(),
    }


def measure_images(server: Server) -> Figures:
    """The figures of a server that has embedded only texts, from its first image on."""
    first_ms, *more_ms = server.times_ms(EMBED_IMAGE, IMAGES)
    return {
        "image_first_ms": first_ms,
        "image_p50_ms": float(np.percentile(more_ms, 50)),
        "image_held_mb": server.held_mb(EMBED_IMAGE, IMAGES),
        "image_peak_mb": server.peak_mb(),
    }


def measure_llm(stack: Stack, place: Path) -> Figures:
    """Wall and CPU seconds of `llm embed -m clip -c hello`, the whole process."""
    embed = call_of(stack, place, "-m", "llm", "embed", "-m", "clip", "-c", "hello")
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed = subprocess.run(**embed, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if len(json.loads(printed)) != EMBED_DIM:
        raise RuntimeError(f"{stack.name}: llm embed printed {printed[:500]!r}")
    return {"llm_wall_s": wall_s, "llm_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure_stack(stack: Stack, place: Path) -> Figures:
    """All figures of one stack, from one new server and one `llm embed`."""
    with served(stack, place, ("images.db",)) as server:
        figures = measure_text(server)
        if stack in EMBEDDING:
            figures |= measure_images(server)
    return figures | measure_llm(stack, place) if stack in EMBEDDING else figures


def measure(place: Path, options: argparse.Namespace) -> Results:
    checkpoint = with_tokenizer_json(place / "tokenizer.json") if options.tokenizer_json else options.checkpoint
    results = prepare(place, checkpoint)
    ratios = (("recipe", "ours"), ("ours", "bare"))
    return results | compare(list(STACKS), options.pairs, lambda name: measure_stack(STACKS[name], place), ratios)


def table(results: Results) -> str:
    """Medians and ratios as plain text: a line for each figure, a column for each stack and ratio; then the source."""
    towers = ", ".join(f"{name} {kind}" for name, kind in results["precision"].items())
    lines = [*comparison_lines(results, TITLES), ""]
    lines.append(f"{len(results['pairs'])} pairs, {results['checkpoint']}, {towers}")
    lines.append(f"baked in {results['bake_wall_s']:.0f} s and {results['bake_peak_mb'] / 1000:.1f} GB")
    inputs = f"{len(MORE_TEXTS)} texts and {len(IMAGES)} images"
    lines.append(f"lowest cosine of recipe and ours, {inputs}: {results['worst_cosine']:.4f}")
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, checkpoint=Path, tokenizer_json=False, pairs=5)
