"""Measures how cost grows: with the length of a text, the texts of a call, the clients at once, the size of an image.

    python bench/growth.py [--rounds 5] [--seconds 5] [--to FILE]

    ours                    the 8-bit towers by our engine, in process: one thread for text, all cores for an image
    ours, fp32              the same with towers baked in 32 bits
    sentence-transformers   in process, as llm-clip calls it, on all cores
    bare                    Datasette alone, answering `select 1`, beside our server: the floor for many clients

All on one checkpoint with random weights of ViT-B/32's shape, and all must agree. Each has a process of its own, which
waits while another works. In a round they take turns at each point, forwards or backwards, and servers are started
anew; a figure is the median over rounds of the medians of a few calls. Texts are new each time, for our engine forgets
what it embedded before; 2 ids are those of the empty text. Clients are a process of their own (bench/clients.py) on the
same cores. Beside each time stand the CPU milliseconds of all threads, which other programs hardly change.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from llm_clip_onnx.bake import bake
from llm_clip_onnx.engine import Engine
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import (
    BARE,
    COLOURS,
    OURS,
    TEXTS,
    THINGS,
    keep,
    lay_out,
    make_images,
    medians_of,
    origin,
    put_away_when_told_to_end,
    say,
    source_line,
    versions,
    worst_cosine,
)
from stacks import make_environment, served

POINTS = {  # what grows: where it is measured
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
CALLS = {"ids": 5, "texts": 1, "pixels": 3}  # of each point, in a round
IN_PROCESS = ("ours", "ours, fp32", "sentence-transformers")
SERVERS = {"ours": OURS, "bare": BARE}
OF_A_CALL = 8  # ids of each text of a call
WORDS = COLOURS + THINGS  # an id each

Point = dict[str, float]  # figures at a point
Round = dict[str, dict[str, dict[str, Point]]]  # what grows, line, point


def text_of(ids: int) -> str:
    """A text of so many ids, the two at its ends included, hardly ever the same one twice."""
    return " ".join(random.choices(WORDS, k=ids - 2))


def embedders(name: str, place: Path) -> tuple[Callable, Callable]:
    """Two functions of a stack in process: of a list of texts, and of the bytes of an image."""
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


def work(name: str, place: Path) -> None:
    """Be the process of a stack: read what to embed from stdin, a line each, and answer what it took, as JSON."""
    embed_texts, embed_image = embedders(name, place)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print
    for line in sys.stdin:
        what, size = json.loads(line)
        if what == "check":
            vectors = [*embed_texts(TEXTS[:8]), embed_image((place / "512.jpg").read_bytes())]
            print(json.dumps(np.array(vectors).tolist()), file=answers)
        elif what == "pixels":
            image = (place / f"{size}.jpg").read_bytes()
            print(json.dumps(taken(CALLS[what], lambda image=image: embed_image(image))), file=answers)
        else:
            ids, count = (size, 1) if what == "ids" else (OF_A_CALL, size)
            calls = iter([[text_of(ids) for _ in range(count)] for _ in range(CALLS[what])])
            print(json.dumps(taken(CALLS[what], lambda calls=calls: embed_texts(next(calls)))), file=answers)


def taken(calls: int, call: Callable[[], object]) -> Point:
    """The median milliseconds of a call, the CPU milliseconds of one, and the most memory this process ever had."""
    times_s, cpu_s = [], time.process_time()
    for _ in range(calls):
        begun_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begun_s)
    cpu_ms = 1000 * (time.process_time() - cpu_s) / calls
    # Not ru_maxrss, in which Linux counts what the process had that started this one.
    peak_kb = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    return {"ms": 1000 * float(np.median(times_s)), "cpu_ms": cpu_ms, "peak_mb": peak_kb * 1024 / 1e6}


@contextmanager
def worker(name: str, place: Path) -> Iterator[Callable]:
    """The process of a stack, as a function of what to embed and of its size."""
    command = [sys.executable, __file__, "--work", name, "--place", str(place)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with (place / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1
        )

    def ask(what: str, size: int = 0):
        print(json.dumps([what, size]), file=process.stdin)
        if not (answer := process.stdout.readline()):
            raise RuntimeError(f"{name} ended: {(place / f'{name}.log').read_text()[-2000:]}")
        return json.loads(answer)

    try:
        yield ask
    finally:
        process.kill()
        process.communicate()


def round_in_process(asks: dict[str, Callable], backwards: bool) -> Round:
    """One round of all that is measured in process."""
    found: Round = {}
    for what, calls in CALLS.items():
        found[what] = {name: {} for name in asks}
        for size in POINTS[what]:
            for name in list(asks)[:: -1 if backwards else 1]:
                point = asks[name](what, size)
                each = size if what == "texts" else 1
                point |= {"ms": point["ms"] / each, "cpu_ms": point["cpu_ms"] / each}
                found[what][name][str(size)] = point
        say(f"  {what}, {calls} calls each")
    return found


def round_of_clients(place: Path, seconds: float, backwards: bool) -> dict[str, dict[str, Point]]:
    """One round of clients, of new servers."""
    from crowd import WARM_S, asked

    with ExitStack() as all_servers:
        servers = {name: all_servers.enter_context(served(s, place, TEXTS[0])) for name, s in SERVERS.items()}
        found: dict[str, dict[str, Point]] = {name: {} for name in servers}
        for server in servers.values():
            asked(server, 2, WARM_S, "warm")
        for clients in POINTS["clients"]:
            for name in list(servers)[:: -1 if backwards else 1]:
                seen = asked(servers[name], clients, seconds, f"{clients}")
                kept = ("p50_ms", "p99_ms", "per_s", "cpu_ms", "errors")
                found[name][str(clients)] = {figure: seen[figure] for figure in kept}
    return found


def prepare(place: Path) -> None:
    """Make the checkpoint, both model directories, the images and the environments of the servers."""
    from classify import jpegs

    say("checkpoint")
    checkpoint = write_checkpoint(place / "checkpoint", text=VIT_B_32, vision=VIT_B_32)
    lay_out(checkpoint, place)
    say("bake")
    bake(str(checkpoint), place / "model", say=say)
    bake(str(checkpoint), place / "model-fp32", "fp32", say=say)
    make_images(place / "images.db")
    for width in POINTS["pixels"]:
        (place / f"{width}.jpg").write_bytes(jpegs(width, width * 3 // 4, 1)[0])
    for stack in SERVERS.values():
        make_environment(stack, place)


def check(asks: dict[str, Callable]) -> float:
    """The lowest cosine of what ours and another embed. Raises RuntimeError where they do not serve one model."""
    found = {name: np.array(ask("check"), np.float32) for name, ask in asks.items()}
    worst = min(worst_cosine(found["ours"], other) for other in found.values())
    if worst < 0.98:
        raise RuntimeError(f"they differ: cosine {worst:.4f}, expected 0.98 or more")
    return worst


def run(place: Path, rounds: int, seconds: float) -> dict:
    """Measure in the folder `place` and return all that was found."""
    found = origin() | {"versions": versions(), "seconds": seconds}
    prepare(place)
    all_rounds: list[Round] = []
    with ExitStack() as processes:
        asks = {name: processes.enter_context(worker(name, place)) for name in IN_PROCESS}
        found["worst_cosine"] = check(asks)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            all_rounds.append(round_in_process(asks, backwards=bool(number % 2)))
            all_rounds[-1]["clients"] = round_of_clients(place, seconds, backwards=bool(number % 2))
            say("  clients")
    found["medians"] = {
        what: {
            line: {size: medians_of([one[what][line][size] for one in all_rounds]) for size in points}
            for line, points in all_rounds[0][what].items()
        }
        for what in POINTS
    }
    return found | {"rounds": all_rounds}


def table(found: dict) -> str:
    """The medians as plain text: a block for what grows, a line each; then where they are from."""
    lines = []
    for what, title in TITLES.items():
        points = found["medians"][what]
        lines.append(f"{title:38}" + "".join(f"{size:>8}" for size in next(iter(points.values()))))
        for name, at in points.items():
            cells = (point[SHOWN[what]] for point in at.values())
            lines.append(f"  {name:36}" + "".join(f"{cell:>8.1f}" for cell in cells))
    errors = [point["errors"] for at in found["medians"]["clients"].values() for point in at.values()]
    load = found["machine"]["load_average_at_start"]
    lines += ["", f"{len(found['rounds'])} rounds, load {load:.1f} at the start"]
    lines[-1] += f"; lowest cosine to ours {found['worst_cosine']:.4f}; {sum(errors):g} errors"
    lines.append(source_line(found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each number of clients")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--work", choices=IN_PROCESS, help=argparse.SUPPRESS)
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.place)
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        found = run(Path(place), options.rounds, options.seconds)
    return keep(found, options.to, table)


if __name__ == "__main__":
    main()
