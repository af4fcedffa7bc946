"""Measures how cost grows: with the length of a text, the texts of a call, the clients at once, the size of an image.

    python -m bench.embedding.growth [--rounds 5] [--seconds 5] [--to FILE]

    ours                    the 8-bit towers by our engine, in process: one thread for text, all cores for an image
    ours, fp32              the same with towers baked in 32 bits
    sentence-transformers   in process, as llm-clip calls it, on all cores
    bare                    Datasette alone, answering `select 1`, beside our server: the floor for many clients

All use one checkpoint with random weights of ViT-B/32's shape, and must agree. Each has a process of its own, which
waits while another works. In a round they take turns at each point, and servers are started anew; a figure is the
median over rounds of the medians of a few calls. Texts are new each time, and our engine forgets its embeddings; 2 ids
are those of the empty text. Clients are a process of their own on the same cores. CPU milliseconds, of all threads, are
kept beside each time: other programs hardly change them.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bench.harness.child import answer_requests, child
from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.inputs import COLOURS, TEXTS, THINGS, jpegs
from bench.harness.models import bake, checked_cosine, lay_out, write_random
from bench.harness.stacks import BARE, OURS, served
from bench.harness.turns import medians_of
from bench.server.crowd import WARM_S, answers_of
from llm_clip_onnx.engine import Engine

POINTS = {  # axis: where it is measured
    "ids": (2, 4, 8, 16, 32, 48, 64, 77),
    "texts": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "clients": (1, 2, 5, 10, 25, 50),
    "pixels": (64, 128, 224, 512, 1000, 2000, 4000),
}
TITLES = {
    "ids": "a text of so many ids, ms",
    "texts": "so many texts in one call, ms a text",
    "clients": "so many clients over HTTP, p50, ms",
    "pixels": "a JPEG so many pixels wide, ms",
}
SHOWN = {"ids": "ms", "texts": "ms", "clients": "p50_ms", "pixels": "ms"}
CALLS = {"ids": 5, "texts": 1, "pixels": 3}  # calls of each point in a round
IN_PROCESS = ("ours", "ours, fp32", "sentence-transformers")
SERVERS = {"ours": OURS, "bare": BARE}
IDS_IN_A_CALL = 8  # of each text of a call
WORDS = COLOURS + THINGS  # one id each

Point = dict[str, float]  # figures at a point
Round = dict[str, dict[str, dict[str, Point]]]  # axis, line, point


def text_of(ids: int) -> str:
    """A random text of `ids` ids, <|startoftext|> and <|endoftext|> included."""
    return " ".join(random.choices(WORDS, k=ids - 2))


def embedders(name: str, place: Path) -> tuple[Callable, Callable]:
    """Two functions that embed in process: a list of texts, and the bytes of an image."""
    if name == "sentence-transformers":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(place / "clip-ViT-B-32"), device="cpu")
        quiet = {"show_progress_bar": False}
        return (
            lambda texts: model.encode(texts, batch_size=len(texts), **quiet),
            lambda image: model.encode(Image.open(io.BytesIO(image)), **quiet),
        )
    engine = Engine(place / ("model-fp32" if name.endswith("fp32") else "model"))

    def embed_texts(texts: list[str]) -> np.ndarray:
        engine._cache.clear()
        return engine.embed_text(texts)

    return embed_texts, engine.embed_item


def serve(name: str, place: Path) -> None:
    """Be the process of one way to embed, until the input ends."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    embed_texts, embed_image = embedders(name, place)

    def handle(axis: str, size: int) -> Any:
        if axis == "check":
            vectors = [*embed_texts(TEXTS[:8]), embed_image((place / "512.jpg").read_bytes())]
            return np.array(vectors).tolist()
        if axis == "pixels":
            image = (place / f"{size}.jpg").read_bytes()
            return timed(CALLS[axis], lambda: embed_image(image))
        ids, count = (size, 1) if axis == "ids" else (IDS_IN_A_CALL, size)
        calls = iter([[text_of(ids) for _ in range(count)] for _ in range(CALLS[axis])])
        return timed(CALLS[axis], lambda: embed_texts(next(calls)))

    answer_requests(handle)


def timed(calls: int, call: Callable[[], object]) -> Point:
    """The median milliseconds of some calls, the CPU milliseconds of one, and this process's peak memory."""
    times_s, cpu_s = [], time.process_time()
    for _ in range(calls):
        begun_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begun_s)
    cpu_ms = 1000 * (time.process_time() - cpu_s) / calls
    # Not ru_maxrss, which on Linux includes the memory of the process that started this one.
    peak_kb = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return {"ms": 1000 * float(np.median(times_s)), "cpu_ms": cpu_ms, "peak_mb": peak_kb * 1024 / 1e6}


@contextmanager
def worker(name: str, place: Path) -> Iterator[Callable[[str, int], Any]]:
    """A process that embeds, as a function of an axis and a size."""
    with child(
        [sys.executable, "-m", "bench.embedding.growth", "serve", name, place], place / f"{name}.log"
    ) as process:
        yield lambda axis, size=0: process.ask(axis=axis, size=size)


def round_in_process(asks: dict[str, Callable], backwards: bool) -> Round:
    """One round of the axes that are measured in process."""
    points: Round = {}
    for axis, calls in CALLS.items():
        points[axis] = {name: {} for name in asks}
        for size in POINTS[axis]:
            for name in list(asks)[:: -1 if backwards else 1]:
                point = asks[name](axis, size)
                texts = size if axis == "texts" else 1
                point |= {"ms": point["ms"] / texts, "cpu_ms": point["cpu_ms"] / texts}
                points[axis][name][str(size)] = point
        say(f"  {axis}, {calls} calls each")
    return points


def round_of_clients(place: Path, seconds: float, backwards: bool) -> dict[str, dict[str, Point]]:
    """One round of clients, with new servers."""
    with ExitStack() as all_servers:
        servers = {name: all_servers.enter_context(served(stack, place)) for name, stack in SERVERS.items()}
        points: dict[str, dict[str, Point]] = {name: {} for name in servers}
        for server in servers.values():
            answers_of(server, 2, WARM_S, "warm")
        for clients in POINTS["clients"]:
            for name in list(servers)[:: -1 if backwards else 1]:
                summary = answers_of(servers[name], clients, seconds, f"{clients}")
                kept = ("p50_ms", "p99_ms", "per_s", "cpu_ms", "errors")
                points[name][str(clients)] = {figure: summary[figure] for figure in kept}
    return points


def prepare(place: Path) -> None:
    """Make the checkpoint, both model directories and the images."""
    checkpoint = write_random(place / "checkpoint")
    lay_out(checkpoint, place)
    bake(checkpoint, place / "model")
    bake(checkpoint, place / "model-fp32", "--precision", "fp32")
    for width in POINTS["pixels"]:
        (place / f"{width}.jpg").write_bytes(jpegs(width, width * 3 // 4, 1)[0])


def check(asks: dict[str, Callable]) -> float:
    """The lowest cosine of our embeddings and another's. Raises RuntimeError if they are not of one model."""
    embeddings = {name: np.array(ask("check"), np.float32) for name, ask in asks.items()}
    return min(checked_cosine(embeddings["ours"], other) for other in embeddings.values())


def measure(place: Path, options: argparse.Namespace) -> Results:
    prepare(place)
    results: Results = {"seconds": options.seconds}
    rounds: list[Round] = []
    with ExitStack() as processes:
        asks = {name: processes.enter_context(worker(name, place)) for name in IN_PROCESS}
        results["worst_cosine"] = check(asks)
        for number in range(options.rounds):
            say(f"round {number + 1} of {options.rounds}")
            rounds.append(round_in_process(asks, backwards=bool(number % 2)))
            rounds[-1]["clients"] = round_of_clients(place, options.seconds, backwards=bool(number % 2))
            say("  clients")
    results["medians"] = {
        axis: {
            line: {size: medians_of([one[axis][line][size] for one in rounds]) for size in points}
            for line, points in rounds[0][axis].items()
        }
        for axis in POINTS
    }
    return results | {"rounds": rounds}


def table(results: Results) -> str:
    """The medians as plain text: a block for each axis, a line for each way to embed; then the source."""
    lines = []
    for axis, title in TITLES.items():
        points = results["medians"][axis]
        lines.append(f"{title:38}" + "".join(f"{size:>8}" for size in next(iter(points.values()))))
        for name, at in points.items():
            cells = (point[SHOWN[axis]] for point in at.values())
            lines.append(f"  {name:36}" + "".join(f"{cell:>8.1f}" for cell in cells))
    errors = [point["errors"] for at in results["medians"]["clients"].values() for point in at.values()]
    lines += ["", f"{len(results['rounds'])} rounds, {load_words(results)}"]
    lines[-1] += f"; lowest cosine to ours {results['worst_cosine']:.4f}; {sum(errors):g} errors"
    lines.append(source_line(results))
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], Path(sys.argv[3]))
    else:
        main(__doc__, measure, table, rounds=5, seconds=5.0)
