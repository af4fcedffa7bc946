"""Measures a bake and a server of each shape of the catalogue's models, with random weights.

    python -m bench.embedding.models [--shapes NAME ...] [--rounds 5] [--to FILE]

A checkpoint is written in float16 and baked by `llm clip bake` in auto precision, which is timed once. Then all models
stay open, each in a process of its own, and take turns: the time of a text counts from its ids to its embedding, of 7
ids, or as many as a SigLIP always has, that of an image from its pixels, with the threads that a server takes. A figure
is the median of a turn, of the fastest turn, because other programs only add to it. CPU seconds of a bake count threads
that wait for each other too. Memory is that of `datasette serve` with that model alone: its peak resident size (VmHWM)
after 20 texts, and after 20 images too; "opened" are the bytes of the towers. Results are written after each shape and
each round. Not measured: real weights, whose bake may keep matrices float32.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from bench.embedding.shapes import SHAPE_OF, SHAPES
from bench.harness import ROOT
from bench.harness.child import Child, answer_requests, child
from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.inputs import IMAGES, TEXTS, write_images
from bench.harness.turns import Figures, Titles, turns
from llm_clip_onnx import model_dir
from llm_clip_onnx.measured import Figures as Measured
from serving import BIN, address_of, environment, started

IDS, TEXTS_A_TURN, IMAGES_A_TURN, WARM = 7, 20, 4, 2
COLUMNS: Titles = {
    "text_ms": ("text, ms", 1),
    "image_ms": ("image, ms", 1),
    "text_mb": ("texts, MB", 0),
    "peak_mb": ("and images", 0),
    "opened_mb": ("opened, MB", 0),
    "bake_s": ("bake, s", 0),
    "bake_cpu_s": ("of CPU, s", 0),
    "bake_gb": ("bake, GB", 1),
}


def write_checkpoint(folder: Path, shape: str) -> list[str]:
    """Write a checkpoint to `folder`, in a process of its own: the arguments by which `llm clip bake` reads it.

    Linux counts the memory of a process as that of the commands it starts.
    """
    say("checkpoint")
    command = [sys.executable, "-m", "bench.embedding.shapes", folder, shape]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    images = folder / "images"
    return [str(folder / "text"), "--images", str(images)] if images.exists() else [str(folder)]


def bake(source: list[str], model: Path) -> Figures:
    """Bake as users do: its seconds, and its peak memory. Raises CalledProcessError if it fails."""
    say("bake")
    command = [str(BIN / "llm"), "clip", "bake", *source, "--to", str(model)]
    begun_s = time.perf_counter()
    process = subprocess.Popen(command, env=environment(model.parent / "llm"), stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu_s = used.ru_utime + used.ru_stime
    return {"bake_s": time.perf_counter() - begun_s, "bake_cpu_s": cpu_s, "bake_gb": 1024 * used.ru_maxrss / 1e9}


def served(model: Path, place: Path) -> Figures:
    """Peak resident MB of a server of this model, after texts, and after images too."""
    say("server")
    env = environment(place / "llm", CLIP_MODEL_DIR=str(model), OPENBLAS_THREAD_TIMEOUT="4")
    arguments = (str(place / "images.db"), "--memory")
    log = place / "server.log"
    with (
        started(*arguments, env=env, log=log) as process,
        httpx.Client(base_url=address_of(process, log), timeout=120) as client,
    ):
        ask(client, "_memory", "select llm_embed('clip', :q) as x", TEXTS[:20])
        texts_mb = peak_mb(process.pid)
        ask(client, "images", "select llm_embed('clip', image) as x from images where id = :q", IMAGES)
        return {"text_mb": texts_mb, "peak_mb": peak_mb(process.pid)}


def ask(client: httpx.Client, database: str, sql: str, qs: Any) -> None:
    for q in qs:
        response = client.get(f"/{database}.json", params={"sql": sql, "q": q, "_shape": "array"})
        response.raise_for_status()


def peak_mb(pid: int) -> float:
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) * 1024 / 1e6


def facts_of(model: Path) -> dict[str, Any]:
    """The precision of each tower, and the MB that both open."""
    manifest = model_dir.read_manifest(model)
    files = [file for tower in manifest.towers for file in model_dir.tower_files(manifest, tower, signed=False)]
    return {
        "precision": {name: tower.summary for name, tower in manifest.towers.items()},
        "opened_mb": sum(manifest.files[file].bytes for file in files) / 1e6,
    }


def answer(model: Path) -> None:
    """In the child: open both towers as a server does, and answer each request with the milliseconds of one turn."""
    from llm_clip_onnx import towers
    from llm_clip_onnx.engine import Engine

    engine = Engine(model)
    graphs = {name: model / engine.tower_files(name)[0] for name in ("text", "image")}
    text = towers.open_tower(graphs["text"], threads=1)
    image = towers.open_tower(graphs["image"], threads=towers.available_cores(), one_shape=True)
    random, side = np.random.default_rng(0), engine.manifest.preprocess.crop
    length = ids_of_a_text(engine.manifest)

    def of_text() -> None:
        ids = random.integers(300, 40_000, (1, length))
        ids[0, -1] = 49_407  # CLIP's <|endoftext|>, a token like others of the other families
        towers.run_text(text, ids)

    def of_image() -> None:
        towers.run_image(image, random.standard_normal((1, 3, side, side), np.float32))

    answer_requests(lambda: {"text_ms": times_ms(of_text, TEXTS_A_TURN), "image_ms": times_ms(of_image, IMAGES_A_TURN)})


def ids_of_a_text(manifest: model_dir.Manifest) -> int:
    """How many ids a text has: a SigLIP fills all its positions."""
    return IDS if manifest.logit_bias is None else manifest.context_length


def times_ms(embed, times: int) -> list[float]:
    """Milliseconds of each embedding; the first ones do not count, because other models had the caches before."""
    found = []
    for _ in range(WARM + times):
        begun_s = time.perf_counter()
        embed()
        found.append(1000 * (time.perf_counter() - begun_s))
    return found[WARM:]


def measure(place: Path, options: argparse.Namespace) -> Results:
    write_images(place / "images.db")
    shapes: dict[str, dict[str, Any]] = {}
    results: Results = {"rounds": options.rounds, "shapes": shapes}
    with ExitStack() as open_:
        children = {}
        for shape in options.shapes:
            say(shape)
            shapes[shape] = baked_and_served(place, shape) | {"turns": []}
            command = [sys.executable, "-m", "bench.embedding.models", "--answer", str(place / shape)]
            children[shape] = open_.enter_context(child(command, place / f"{shape}.log"))
            take_turn(shapes[shape], children[shape])
            options.keep(results)
        for number, shape in turns(list(shapes), options.rounds - 1):
            say(f"round {number + 2} of {options.rounds}: {shape}")
            take_turn(shapes[shape], children[shape])
            options.keep(results)
    return results


def baked_and_served(place: Path, shape: str) -> dict[str, Any]:
    """The figures of a shape's bake and of its server. The model directory stays, the checkpoint does not."""
    model, checkpoint = place / shape, place / "checkpoint"
    figures = bake(write_checkpoint(checkpoint, shape), model)
    shutil.rmtree(checkpoint)
    return figures | facts_of(model) | served(model, place)


def take_turn(figures: dict[str, Any], opened: Child) -> None:
    """Add a turn to the figures of a shape, and set its milliseconds to the least of all turns."""
    figures["turns"].append({figure: float(np.median(ms)) for figure, ms in opened.ask().items()})
    figures |= least_of(figures["turns"])


def least_of(rounds: list[Figures]) -> Figures:
    """Figure -> its least value of all turns."""
    return {figure: min(one[figure] for one in rounds) for figure in rounds[0]}


def measured(results: Results) -> dict[str, Figures]:
    """Catalogue id -> its figures as llm_clip_onnx/measured.json has them, of the entries whose shape was measured."""
    shapes = results["shapes"]
    return {
        id: {one.name: round(shapes[shape][one.name], 1) for one in fields(Measured)}
        for id, shape in SHAPE_OF.items()
        if shape in shapes
    }


def table(results: Results) -> str:
    lines = [f"{'':18}" + "".join(f"{title:>12}" for title, _ in COLUMNS.values())]
    for shape, figures in results["shapes"].items():
        lines.append(f"{shape:18}" + "".join(f"{figures[key]:>12.{digits}f}" for key, (_, digits) in COLUMNS.items()))
        lines += [f"  {', '.join(id for id, of in SHAPE_OF.items() if of == shape)}"]
        lines += [f"  {name}: {told}" for name, told in figures["precision"].items() if told != "int8"]
    return "\n".join(
        [*lines, "", f"{results['rounds']} rounds, random weights, {load_words(results)}", source_line(results)]
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(Path(sys.argv[2]))
    else:
        main(__doc__, measure, table, shapes=SHAPES, rounds=5)
