"""Measures the stack people run today beside ours on one checkpoint: cold start, queries, memory, `llm embed`.

    python bench/recipe.py [--checkpoint FOLDER | --tokenizer-json] [--pairs 5] [--to FILE]

    recipe   datasette + datasette-llm-embed + llm-clip, as they are
    ours     datasette-clip, serving what it baked of the same checkpoint
    bare     Datasette alone, answering `select 1`: the floor

In a pair the stacks take turns, forwards or backwards; a figure is the median over pairs, a ratio the median of the
pairs' ratios. "Cold" is a new process on files read before: one start of each stack, in which it is checked, is not
counted. Memory is compared by PSS: the recipe maps its weights anew for each query and drops them now and then, so that
its resident size (VmHWM) counts the same pages many times.

Without FOLDER the checkpoint is random, of ViT-B/32's shape, and its tokenizer in vocab.json and merges.txt; llm-clip
needs longer for one in tokenizer.json. No stack waits for a hub. Not measured: fidelity, and many clients at once, for
which bench/crowd.py is.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import re
import resource
import shlex
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from llm_clip_onnx import model_dir
from llm_clip_onnx.tokenizer import open_tokenizer
from random_checkpoint import VIT_B_32, write_checkpoint
from stacks import Query, Server, Stack, closure, command, make_environment, served

T = TypeVar("T")
BEGAN = time.perf_counter()
ROOT = Path(__file__).parent.parent
COLOURS = ("red", "green", "blue", "purple", "golden", "black", "white", "silver")
THINGS = ("car", "dog", "house", "bird", "boat", "tree", "horse", "chair")
PLACES = ("in the snow", "by the sea", "at night", "on a wall")
TEXTS = [" ".join(words) for words in itertools.product(COLOURS, THINGS, PLACES)]  # 256, of 6 or 7 ids
MORE = TEXTS[-10:]  # not among those timed
IMAGES = range(1, 21)  # ids in the table that make_images writes

EMBED_DIM = 512  # of clip-ViT-B-32, the one model that llm-clip asks for
EMBED_TEXT = Query("_memory", "select hex(llm_embed('clip', :q)) as x", 2 * 4 * EMBED_DIM)
EMBED_IMAGE = Query("images", "select hex(llm_embed('clip', image)) as x from images where id = :q", 2 * 4 * EMBED_DIM)
SELECT_1 = Query("_memory", "select 1 as x", 1)

RECIPE = Stack(
    name="recipe",
    distributions=("datasette", "datasette-llm-embed", "llm-clip", "pillow"),  # llm-clip needs Pillow without saying so
    plugins={"datasette-llm-embed"},
    library="libtorch_cpu",
    query=EMBED_TEXT,
    queries=20,
    # Its first query opens the model, and would fail at Datasette's default of 1000 ms.
    arguments=("images.db", "--memory", "--setting", "sql_time_limit_ms", "100000"),
)
OURS = Stack(
    name="ours",
    distributions=("datasette-clip",),
    plugins={"datasette-block-robots", "datasette-clip", "datasette-llm-embed", "datasette-scale-to-zero"},
    library="onnxruntime",
    query=EMBED_TEXT,
    queries=200,
    arguments=("images.db", "--memory", "--metadata", str(ROOT / "metadata.json")),
    environment={"CLIP_MODEL_DIR": "model", "OPENBLAS_THREAD_TIMEOUT": "4"},  # as the Dockerfile has it
)
BARE = Stack(
    name="bare",
    distributions=("datasette",),
    plugins=set(),
    library="",
    query=SELECT_1,
    queries=200,
    arguments=("images.db", "--memory"),
)
STACKS = (RECIPE, OURS, BARE)
EMBEDDING = (RECIPE, OURS)

FIGURES = {  # figure: what the table calls it, digits after the point
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


def lay_out(checkpoint: Path, place: Path) -> None:
    """Put `checkpoint` at place/clip-ViT-B-32 in sentence-transformers' layout.

    There SentenceTransformer('clip-ViT-B-32'), which is what llm-clip opens, looks before it asks a hub.
    """
    folder = place / "clip-ViT-B-32"
    if (checkpoint / "modules.json").exists():
        return folder.symlink_to(checkpoint.resolve())
    folder.mkdir()
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "0_CLIPModel").symlink_to(checkpoint.resolve())


def with_tokenizer_json(folder: Path) -> Path:
    """The random checkpoint in `folder`, its tokenizer in one file as newer libraries write it, which is slower."""
    write_checkpoint(folder, text=VIT_B_32, vision=VIT_B_32)
    files = folder / "vocab.json", folder / "merges.txt"
    open_tokenizer(*files, context_length=77).save(str(folder / "tokenizer.json"))
    for file in files:
        file.unlink()
    return folder


def make_images(file: Path) -> None:
    """A SQLite file with the table images(id, image): IMAGES, 640x480 JPEGs of coloured clouds."""
    random = np.random.default_rng(0)
    database = sqlite3.connect(file)
    with database:
        database.execute("create table images (id integer primary key, image blob)")
        for number in IMAGES:
            coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
            coarse.resize((640, 480), Image.Resampling.BICUBIC).save(jpeg := io.BytesIO(), "JPEG")
            database.execute("insert into images values (?, ?)", (number, jpeg.getvalue()))
    database.close()


def check(stack: Stack, place: Path) -> NDArray[np.float32]:
    """Start a stack, see that it is what it should be, and return its embeddings of MORE and IMAGES: [30, 512].

    Raises RuntimeError where other plugins or libraries answer. `bare` gives [0, 512].
    """
    with served(stack, place, TEXTS[0]) as server:
        plugins = {plugin["name"] for plugin in server.client.get("/-/plugins.json").json()}
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        libraries = {one.library for one in EMBEDDING if one.library in mapped}
        if plugins != stack.plugins or libraries != {stack.library} - {""}:
            raise RuntimeError(f"{stack.name} answers with plugins {plugins} and libraries {libraries}")
        answers = []
        if stack in EMBEDDING:
            answers += [server.ask(EMBED_TEXT, text) for text in MORE]
            answers += [server.ask(EMBED_IMAGE, number) for number in IMAGES]
        return np.frombuffer(bytes.fromhex("".join(answers)), "<f4").reshape(-1, EMBED_DIM)


def measure_text(server: Server) -> dict[str, float]:
    """The figures of a new server that is asked for texts only, or where it has no model, for `select 1`."""
    query, queries = server.stack.query, server.stack.queries
    new_ms = server.times_ms(query, TEXTS[1 : 1 + queries])
    seen_ms = server.times_ms(query, [TEXTS[1]] * queries)
    return {
        "cold_wall_s": server.cold_wall_s,
        "cold_cpu_s": server.cold_cpu_s,
        "query_p50_ms": float(np.percentile(new_ms, 50)),
        "query_p95_ms": float(np.percentile(new_ms, 95)),
        "seen_p50_ms": float(np.percentile(seen_ms, 50)),
        "text_held_mb": server.held_mb(query, MORE),
        "text_peak_mb": server.peak_mb(),
    }


def measure_images(server: Server) -> dict[str, float]:
    """The figures of a server that was asked for texts only, from its first image on."""
    first_ms, *more_ms = server.times_ms(EMBED_IMAGE, IMAGES)
    return {
        "image_first_ms": first_ms,
        "image_p50_ms": float(np.percentile(more_ms, 50)),
        "image_held_mb": server.held_mb(EMBED_IMAGE, IMAGES),
        "image_peak_mb": server.peak_mb(),
    }


def measure_llm(stack: Stack, place: Path) -> dict[str, float]:
    """Wall and CPU seconds of `llm embed -m clip -c hello`, the whole process."""
    embed = command(stack, place, "llm", "embed", "-m", "clip", "-c", "hello")
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    printed = subprocess.run(**embed, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if len(json.loads(printed)) != EMBED_DIM:
        raise RuntimeError(f"{stack.name}: llm embed printed {printed[:500]!r}")
    return {"llm_wall_s": wall_s, "llm_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def measure(stack: Stack, place: Path) -> dict[str, float]:
    """All figures of one stack, from one new server and one `llm embed`."""
    with served(stack, place, TEXTS[0]) as server:
        figures = measure_text(server)
        if stack in EMBEDDING:
            figures |= measure_images(server)
    return figures | measure_llm(stack, place) if stack in EMBEDDING else figures


def medians_of(pairs: list[dict[str, float]]) -> dict[str, float]:
    """Figure -> median over pairs."""
    return {figure: float(np.median([pair[figure] for pair in pairs])) for figure in pairs[0]}


def ratio(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
    """Figure -> its value in `a` over that in `b`, of the figures that both have."""
    return {figure: a[figure] / b[figure] for figure in a.keys() & b.keys()}


def worst_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The lowest cosine of a row of `a` [n, d] and the same row of `b`."""
    return float((np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def machine() -> dict[str, str | int | float]:
    """What it ran on. A load average above 0.5 at the start says that something else was running."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    flags = re.findall(r"\b(?:avx512f|\w*vnni|amx_int8)\b", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cpu_flags": " ".join(sorted(set(flags))),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "load_average_at_start": os.getloadavg()[0],
    }


def origin() -> dict:
    """What results begin with: the date, the command but for where the results go, and the machine."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to")
    _, words = parser.parse_known_args(sys.argv)
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {"date": date, "command": shlex.join(["python", *words]), "machine": machine()}


def source_line(found: dict) -> str:
    """The last line of a table: the machine, the date and the command."""
    facts = found["machine"]
    return f"{facts['cpu']} ({facts['cpu_flags']}), {facts['cores']} cores, {found['date']}, {found['command']}"


def turns(compared: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """The number of a round, from 0, and what has its turn: in every other round they come backwards."""
    for number in range(rounds):
        for one in compared[:: -1 if number % 2 else 1]:
            yield number, one


def versions() -> dict[str, str]:
    """Version of Python, of SQLite and of every distribution that a stack had."""
    found = closure(tuple(name for stack in STACKS for name in stack.distributions))
    own = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    return own | {name: found[name].version for name in sorted(found, key=str.lower)}


def prepare(place: Path, checkpoint: Path | None) -> dict:
    """Make all that the stacks need in the folder `place`, check them, and return what they serve.

    Raises RuntimeError where they do not serve one model.
    """
    served_as: dict = {"checkpoint": checkpoint.name if checkpoint else "random weights of ViT-B/32's shape"}
    if checkpoint is None:
        say("checkpoint")
        checkpoint = write_checkpoint(place / "checkpoint", text=VIT_B_32, vision=VIT_B_32)
    say("bake")
    bake = [sys.executable, "-m", "llm", "clip", "bake", str(checkpoint.resolve()), "--to", str(place / "model")]
    start_s = time.perf_counter()
    subprocess.run(bake, check=True, stdout=sys.stderr)
    served_as["bake_wall_s"] = time.perf_counter() - start_s
    served_as["bake_peak_mb"] = (
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    )  # its is the largest
    towers = model_dir.read_manifest(place / "model").towers
    served_as["precision"] = {name: tower.precision for name, tower in towers.items()}
    lay_out(checkpoint, place)
    make_images(place / "images.db")
    embeddings = {}
    for stack in STACKS:
        say(f"check: {stack.name}")
        make_environment(stack, place)
        embeddings[stack.name] = check(stack, place)
    served_as["worst_cosine"] = worst_cosine(embeddings["recipe"], embeddings["ours"])
    if served_as["worst_cosine"] < 0.98:
        raise RuntimeError(f"recipe and ours differ: cosine {served_as['worst_cosine']:.4f}, expected 0.98 or more")
    return served_as


def run(place: Path, checkpoint: Path | None, pairs: int) -> dict:
    """Measure in the folder `place` and return all that was found."""
    found = origin() | {"versions": versions()} | prepare(place, checkpoint)
    measured: list[dict] = [{} for _ in range(pairs)]
    for number, stack in turns(STACKS, pairs):
        say(f"pair {number + 1} of {pairs}: {stack.name}")
        measured[number][stack.name] = measure(stack, place)
    found["medians"] = {stack.name: medians_of([pair[stack.name] for pair in measured]) for stack in STACKS}
    found["ratios"] = {
        f"{a} / {b}": medians_of([ratio(pair[a], pair[b]) for pair in measured])
        for a, b in (("recipe", "ours"), ("ours", "bare"))
    }
    return found | {"pairs": measured}


def table(found: dict) -> str:
    """Medians and ratios as plain text: a line per figure, a column per stack and ratio; then where they are from."""
    lines = ["".join([f"{'':46}", *(f"{name:>15}" for name in (*found["medians"], *found["ratios"]))])]
    for figure, (title, digits) in FIGURES.items():
        cells = [f"{column[figure]:.{digits}f}" if figure in column else "" for column in found["medians"].values()]
        cells += [f"{column[figure]:.1f}" if figure in column else "" for column in found["ratios"].values()]
        lines.append("".join([f"{title:46}", *(f"{cell:>15}" for cell in cells)]).rstrip())
    towers = ", ".join(f"{name} {kind}" for name, kind in found["precision"].items())
    lines += ["", f"{len(found['pairs'])} pairs, {found['checkpoint']}, {towers}"]
    lines.append(f"baked in {found['bake_wall_s']:.0f} s and {found['bake_peak_mb'] / 1000:.1f} GB")
    lines.append(
        f"lowest cosine of recipe and ours, {len(MORE)} texts and {len(IMAGES)} images: {found['worst_cosine']:.4f}"
    )
    lines.append(source_line(found))
    return "\n".join(lines)


def keep(found: dict, to: Path | None, table: Callable[[dict], str]) -> None:
    """Print what was measured as a table, and write all of it to a file where there is one."""
    if to:
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def put_away_when_told_to_end() -> None:
    """On SIGTERM leave by an exception, as on Ctrl-C, so that servers are ended and files deleted then too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def say(text: str) -> None:
    print(f"[{time.perf_counter() - BEGAN:4.0f} s] {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="a folder in Hugging Face's or sentence-transformers' layout")
    parser.add_argument(
        "--tokenizer-json", action="store_true", help="random weights with the tokenizer in tokenizer.json instead"
    )
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        checkpoint = options.checkpoint
        if options.tokenizer_json:
            checkpoint = with_tokenizer_json(Path(place) / "tokenizer.json")
        found = run(Path(place), checkpoint, options.pairs)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
