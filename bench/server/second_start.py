"""Measures the second start of `llm clip serve`: from the command to the first search answered, over unchanged photos.

    python -m bench.server.second_start [--model FOLDER] [--photos 5000] [--starts 7] [--to FILE]

The photos are made, small, and embedded once, by the same command; then nothing changes. The model is FOLDER, or the
demo's, baked now. Each start is a new process on files that were read before. The search is in words, asked again every
10 ms until the server answers. CPU seconds are those of both processes, llm and Datasette, until that answer. `llm
--help`, which ends before a command of ours begins, and a `datasette serve` of the same database take turns with it:
one after the other they are the least that the start can take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
from PIL import Image

from bench.harness import ROOT
from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.models import bake
from bench.harness.turns import Figures, compare, comparison_lines
from listening import end, free_port
from serving import BIN, environment

TITLES = {"wall_s": ("command to first search, s", 2), "cpu_s": ("  CPU seconds of that", 2)}


def write_photos(folder: Path, count: int) -> Path:
    """`count` different JPEGs of 96 x 72 pixels in 15 folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        file = folder / f"{2010 + number % 15}" / f"IMG_{number:05}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((96, 72)).save(file, "JPEG")
    return folder


def first_search(command: list[str], path: Callable[[], str], port: int, env: dict[str, str], log: Path) -> Figures:
    """Wall and CPU seconds of a command until a search is answered at `path` of the port."""
    start_s = time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=stream)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            while not answers(client, path):
                if process.poll() is not None:
                    raise RuntimeError(log.read_text()[-2000:])
                time.sleep(0.01)
        wall_s = time.perf_counter() - start_s
        all_of_it = [own := psutil.Process(process.pid), *own.children(recursive=True)]
        return {"wall_s": wall_s, "cpu_s": sum(sum(one.cpu_times()[:2]) for one in all_of_it)}
    finally:
        end(process)


def answers(client: httpx.Client, path: Callable[[], str]) -> bool:
    with suppress(httpx.TransportError):
        return bool(client.get(path(), params={"q": "a red car"}).json()["results"])
    return False


def measure(place: Path, options: argparse.Namespace) -> Results:
    model = options.model.resolve() if options.model else bake(ROOT / "demo/checkpoint", place / "model")
    env = environment(place / "llm", CLIP_MODEL_DIR=str(model))
    say("photos")
    folder = write_photos(place / "photos", options.photos)
    say("embedding them once")
    embed = [BIN / "llm", "clip", "serve", folder, "--publish", place / "published"]
    subprocess.run(list(map(str, embed)), env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    [database] = (place / "llm/clip").glob("*.db")
    path = f"/-/clip/search/{database.stem}/photos.json"

    def start(name: str) -> Figures:
        port = str(free_port())
        if name == "llm --help":
            return timed([str(BIN / "llm"), "--help"], env)
        serve = ["llm", "clip", "serve", folder, "--no-open", "-p", port]
        bare = ["datasette", "serve", database, "-p", port]
        program, *arguments = serve if name == "llm clip serve" else bare
        return first_search([str(BIN / program), *map(str, arguments)], lambda: path, int(port), env, place / "log")

    names = ("llm clip serve", "datasette serve", "llm --help")
    for name in names:
        start(name)  # not counted
    compared = compare(names, options.starts, start, [("llm clip serve", "datasette serve")])
    return {"photos": options.photos} | compared


def timed(command: list[str], env: dict[str, str]) -> Figures:
    """Wall and CPU seconds of a command that ends by itself."""
    start_s, before = time.perf_counter(), os.times()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return {"wall_s": time.perf_counter() - start_s, "cpu_s": cpu_s}


def table(results: Results) -> str:
    lines = [*comparison_lines(results, TITLES), ""]
    lines.append(f"{results['photos']:,} photos, {len(results['pairs'])} starts, {load_words(results)}")
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, model=Path, photos=5000, starts=7)
