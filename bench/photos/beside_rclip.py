"""Measures `llm clip embed` and `llm clip search` beside rclip 3.3: the same photos, weights and words, whole commands.

    python -m bench.photos.beside_rclip [--small 200] [--large 40] [--rounds 5] [--to FILE]

    ours            as a bake makes it: 8-bit towers
    ours, float32   the same weights as rclip's
    rclip           from .venv-rclip, with float32 towers exported as its own script exports them

Random weights of ViT-B/32's shape at 256 pixels, the only one that rclip has. The folders have made JPEGs of 640 x 480
pixels, and of 4000 x 3000. First the folder is indexed and a query is answered: rclip does both in one command, ours
takes two. Then another query is answered by a new process, in which rclip is told that the folder has not changed
(`--no-indexing`). Last come queries in a process that is open already: both through Python, because rclip has no
server. The three take turns, each round with a new index. Memory is that of the largest process. Each must store the
same embeddings, within rounding. If rclip is not installed, the table says so, and ours are measured alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness.command import Results, main, say
from bench.harness.inputs import TEXTS
from bench.harness.turns import Figures, Titles, compare
from bench.photos.inputs import as_installed, photos_in, run
from bench.photos.side_by_side import (
    OURS,
    RCLIP,
    SHAPE,
    SIZES,
    bake_ours,
    checked_cosine,
    folder_lines,
    last_lines,
    lay_out,
    stored_embeddings,
)
from serving import BIN

FIRST, ANOTHER = TEXTS[0], TEXTS[100]
TITLES: Titles = {
    "first_wall_s": ("from nothing to the first paths, s", 1),
    "first_cpu_s": ("  CPU seconds", 1),
    "first_peak_mb": ("  peak resident, MB", 0),
    "query_wall_s": ("another query, s", 2),
    "query_cpu_s": ("  CPU seconds", 2),
    "start_cpu_s": ("  of these to start llm or rclip alone", 2),
    "query_peak_mb": ("  peak resident, MB", 0),
    "open_ms": ("another query in an open process, ms", 1),
}
# Programs that print the median milliseconds of a query: of ours, and of rclip. Each text is new.
OPEN = {
    "ours": """
import json, statistics, sys, time
from pathlib import Path
from clip_collections.photo_search import find_collection, find_rows, read_terms
from llm_clip_onnx.engine import Engine

database, model, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
engine, file = Engine(Path(model)), find_collection("photos", Path(database))

def search(text):
    find_rows(file, read_terms(text, (), ()), 10, engine.embed_item, engine.manifest.embed_dim)
""",
    "rclip": """
import json, statistics, sys, time
from rclip.main import init_rclip

texts = json.loads(sys.argv[2])
rclip, model, database = init_rclip(sys.argv[1], 8, no_indexing=True)

def search(text):
    rclip.search(text, sys.argv[1])
""",
}
TIMES = """
times_ms = []
for text in texts:
    begun_s = time.perf_counter()
    search(text)
    times_ms.append(1000 * (time.perf_counter() - begun_s))
print(statistics.median(times_ms[1:]))
"""


class Contestant:
    """One of the programs in the folder `place`, with an index of one folder of photos at a time."""

    def __init__(self, name: str, place: Path):
        self.name, self.place = name, place
        self.is_rclip = name == "rclip"
        model = OURS.get(name, "")
        self.index = place / ("rclip-data/db.sqlite3" if self.is_rclip else f"{model}.db")
        paths = {"RCLIP_DATADIR": place / "rclip-data", "CLIP_MODEL_DIR": place / model}
        self.env = as_installed(place, **{variable: str(path) for variable, path in paths.items()})

    def run(self, command: list, photos: Path) -> tuple[Figures, str]:
        """Run a command of this program; rclip is always about the folder that it runs in."""
        return run(command, self.env, photos if self.is_rclip else self.place)

    def first(self, photos: Path) -> Figures:
        """Index the photos and answer a query, from nothing."""
        for file in self.index.parent.glob(f"{self.index.name}*"):
            file.unlink()
        if self.is_rclip:
            figures, _ = self.run([RCLIP / "rclip", "--filepath-only", FIRST], photos)
            return figures
        embed = [BIN / "llm", "clip", "embed", photos, "-d", self.index, "-c", "photos"]
        embedded, _ = self.run(embed, photos)
        searched, _ = self.query(photos, FIRST)
        most = max(embedded["peak_mb"], searched["peak_mb"])
        return {figure: embedded[figure] + searched[figure] for figure in embedded} | {"peak_mb": most}

    def query(self, photos: Path, text: str) -> tuple[Figures, str]:
        if self.is_rclip:
            return self.run([RCLIP / "rclip", "--filepath-only", "--no-indexing", text], photos)
        return self.run([BIN / "llm", "clip", "search", "photos", text, "-d", self.index, "--paths"], photos)

    def start(self, photos: Path) -> Figures:
        """What the program takes to print its version."""
        return self.run([RCLIP / "rclip" if self.is_rclip else BIN / "llm", "--version"], photos)[0]

    def open_ms(self, photos: Path) -> float:
        """The median time of a query in a process that has answered one."""
        texts = json.dumps(TEXTS[:21])
        if self.is_rclip:
            command = [RCLIP / "python", "-c", OPEN["rclip"] + TIMES, photos, texts]
        else:
            command = [sys.executable, "-c", OPEN["ours"] + TIMES, self.index, self.env["CLIP_MODEL_DIR"], texts]
        return float(self.run(command, photos)[1])

    def embeddings(self) -> NDArray[np.float32]:
        """The stored embedding of each photo, by name: [photos, 512]."""
        return stored_embeddings(self.index, self.is_rclip)

    def measure(self, photos: Path) -> Figures:
        figures = {f"first_{figure}": value for figure, value in self.first(photos).items()}
        figures |= {f"query_{figure}": value for figure, value in self.query(photos, ANOTHER)[0].items()}
        figures["start_cpu_s"] = self.start(photos)["cpu_s"]
        return figures | {"open_ms": self.open_ms(photos)}


def prepare(place: Path) -> dict[str, str]:
    """Write and bake the checkpoint, and lay it out for rclip: {"rclip": why it cannot be measured}, or {}."""
    why = lay_out(RCLIP / "rclip", "bench.photos.rclip_files", bake_ours(place), place / "rclip-data")
    return {"rclip": why} if why else {}


def measure_folder(contestants: list[Contestant], photos: Path, rounds: int) -> Results:
    by_name = {one.name: one for one in contestants}
    against = [("rclip", name) for name in OURS if "rclip" in by_name]
    results = compare([*by_name], rounds, lambda name: by_name[name].measure(photos), against)
    return results | {"worst_cosine": checked_cosine(contestants)}


def measure(place: Path, options: argparse.Namespace) -> Results:
    why = prepare(place)
    contestants = [Contestant(name, place) for name in (*OURS, "rclip") if name not in why]
    few = photos_in(place / "few", 640, 480, 8)
    for one in contestants:
        say(f"once, not counted: {one.name}")
        one.measure(few)
    results: Results = {"model": SHAPE, "why": why, "rounds": options.rounds}
    for folder, (width, height) in SIZES.items():
        count = getattr(options, folder)
        say(f"{count} photos of {width} x {height}")
        photos = photos_in(place / folder, width, height, count)
        size = {"width": width, "height": height, "count": count}
        results[folder] = size | measure_folder(contestants, photos, options.rounds)
    return results


def table(results: Results) -> str:
    lines: list[str] = []
    for folder in SIZES:
        lines += [*folder_lines(results[folder], TITLES), ""]
    return "\n".join([*lines, *last_lines(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, small=200, large=40, rounds=5)
