"""Measures `llm clip embed` beside `llm embed-multi`, both with our model, on a folder of photos: the whole commands.

    python -m bench.embedding.embed [--model-dir FOLDER] [--images 300] [--pairs 3] [--to FILE]

The photos are made JPEGs of 640 x 480 pixels. The two commands take turns, each into a new database; a figure is the
median over pairs, a ratio the median of the pairs' ratios. One run of each on ten photos is not counted. Both must
write the same rows. CPU seconds hardly depend on what else the machine does, wall seconds do. Without FOLDER random
weights of ViT-B/32's shape are baked.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from bench.harness.command import Results, main, source_line
from bench.harness.inputs import jpegs
from bench.harness.models import model_or_random
from bench.harness.turns import Figures, Titles, compare, comparison_lines
from serving import BIN, environment

NAMES = ("clip embed", "embed-multi")
ROWS = "select id, embedding, content_hash from embeddings order by id"
TITLES: Titles = {
    "wall_s": ("all of it, s", 1),
    "per_s": ("  photos a second", 1),
    "cpu_s": ("  CPU seconds", 1),
    "peak_mb": ("peak resident, MB", 1),
}


def write_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number, photo in enumerate(jpegs(640, 480, count)):
        (folder / f"{number:04}.jpg").write_bytes(photo)
    return folder


def command(name: str, photos: Path, to: Path) -> list[str]:
    if name == "clip embed":
        return [str(BIN / "llm"), "clip", "embed", str(photos), "-d", str(to), "-c", "photos"]
    files = ["--binary", "--files", str(photos), "*.jpg"]
    return [str(BIN / "llm"), "embed-multi", "photos", "-m", "clip", *files, "-d", str(to)]


def run(name: str, photos: Path, model: Path) -> tuple[Figures, list[tuple]]:
    """The figures of one command, and the rows that it wrote."""
    to, count = photos.parent / "photos.db", len(list(photos.iterdir()))
    to.unlink(missing_ok=True)
    env = environment(photos.parent / "llm", CLIP_MODEL_DIR=str(model))  # without llm-clip, which would import torch
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    begun_s = time.perf_counter()
    process = subprocess.Popen(command(name, photos, to), env=env, **quiet)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - begun_s
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    with closing(sqlite3.connect(to)) as connection:
        rows = connection.execute(ROWS).fetchall()
    figures = {"wall_s": wall_s, "per_s": count / wall_s, "cpu_s": used.ru_utime + used.ru_stime}
    return figures | {"peak_mb": 1024 * used.ru_maxrss / 1e6}, rows


def measure(place: Path, options: argparse.Namespace) -> Results:
    model, count = model_or_random(options.model_dir, place), options.images
    few, photos = write_photos(place / "few", 10), write_photos(place / "photos", count)
    first_rows = [run(name, few, model)[1] for name in NAMES]
    written: list[list[tuple]] = []

    def measure_command(name: str) -> Figures:
        figures, rows = run(name, photos, model)
        written.append(rows)
        return figures

    results = compare(NAMES, options.pairs, measure_command, [("embed-multi", "clip embed")])
    if first_rows[0] != first_rows[1] or any(rows != written[0] or len(rows) != count for rows in written):
        raise RuntimeError("the two commands wrote different rows")
    image_bytes = sum(file.stat().st_size for file in photos.iterdir()) // count
    return {"images": count, "image_bytes": image_bytes} | results


def table(results: Results) -> str:
    return "\n".join([*comparison_lines(results, TITLES, ratio_digits=2), "", source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, model_dir=Path, images=300, pairs=3)
