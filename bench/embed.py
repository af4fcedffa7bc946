"""Measures `llm clip embed` beside `llm embed-multi`, both with our model, on a folder of photos: the whole commands.

    python bench/embed.py [--model-dir FOLDER] [--images 300] [--pairs 3] [--to FILE]

The photos are JPEGs of 640 x 480 pixels, made. In a pair the two take turns, forwards or backwards, each into a new
database; a figure is the median over pairs, a ratio the median of the pairs' ratios. One run of each, on ten photos, is
not counted. The rows that the two write are compared, and must be the same. CPU seconds hardly depend on what else the
machine does, unlike the others. Without FOLDER the model is baked from random weights of ViT-B/32's shape.
"""

from __future__ import annotations

import argparse
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from recipe import keep, medians_of, origin, put_away_when_told_to_end, ratio, source_line

BENCH = Path(__file__).parent
LLM = Path(sys.executable).parent / "llm"
ROWS = "select id, embedding, content_hash from embeddings order by id"
FIGURES = {
    "wall_s": "all of it, s",
    "per_s": "  photos a second",
    "cpu_s": "  CPU seconds",
    "peak_mb": "peak resident, MB",
}


def make_photos(folder: Path, count: int) -> Path:
    """`count` JPEGs of 640 x 480 pixels, clouds with grain, in a new folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8)).resize((640, 480))
        grain = random.normal(0, 6, (480, 640, 1))
        photo = Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))
        photo.save(folder / f"{number:04}.jpg", quality=85)
    return folder


def bake_random_weights(checkpoint: Path, model: Path) -> None:
    """By processes of their own: Linux counts what a process had when it started a command as the command's memory."""
    subprocess.run([sys.executable, str(BENCH / "random_checkpoint.py"), str(checkpoint)], check=True)
    environment = os.environ | {"LLM_LOAD_PLUGINS": "datasette-clip"}
    subprocess.run([str(LLM), "clip", "bake", str(checkpoint), "--to", str(model)], env=environment, check=True)


def command(name: str, photos: Path, to: Path) -> list[str]:
    if name == "clip embed":
        return [str(LLM), "clip", "embed", str(photos), "-d", str(to), "-c", "photos"]
    return [str(LLM), "embed-multi", "photos", "-m", "clip", "--binary", "--files", str(photos), "*.jpg", "-d", str(to)]


def run(name: str, photos: Path, model: Path, place: Path) -> tuple[dict[str, float], list[tuple]]:
    """The figures of one command, and the rows that it wrote."""
    to, count = place / "photos.db", len(list(photos.iterdir()))
    to.unlink(missing_ok=True)
    # As where it is deployed: llm-clip, where it is installed, would be imported, and torch with it.
    environment = os.environ | {"CLIP_MODEL_DIR": str(model), "LLM_LOAD_PLUGINS": "datasette-clip"}
    begun_s = time.perf_counter()
    process = subprocess.Popen(
        command(name, photos, to), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall_s = time.perf_counter() - begun_s
    if process.returncode:
        raise RuntimeError(f"{name} ended with {process.returncode}")
    with sqlite3.connect(to) as connection:
        rows = connection.execute(ROWS).fetchall()
    return figures(wall_s, used, count), rows


def figures(wall_s: float, used: resource.struct_rusage, count: int) -> dict[str, float]:
    cpu_s, peak_bytes = used.ru_utime + used.ru_stime, 1024 * used.ru_maxrss
    return {"wall_s": wall_s, "per_s": count / wall_s, "cpu_s": cpu_s, "peak_mb": peak_bytes / 1e6}


def measure(place: Path, model: Path, count: int, pairs: int) -> dict:
    names = ("clip embed", "embed-multi")
    few, photos = make_photos(place / "few", 10), make_photos(place / "photos", count)
    for name in names:
        run(name, few, model, place)
    found: dict = {
        **origin(),
        "images": count,
        "image_bytes": sum(file.stat().st_size for file in photos.iterdir()) // count,
        "pairs": {name: [] for name in names},
    }
    for turn in range(pairs):
        rows = {}
        for name in names if turn % 2 == 0 else names[::-1]:
            result, rows[name] = run(name, photos, model, place)
            found["pairs"][name].append(result)
            print(name, result, file=sys.stderr)
        if rows[names[0]] != rows[names[1]] or len(rows[names[0]]) != count:
            raise RuntimeError("the two commands wrote different rows")
    found["medians"] = {name: medians_of(found["pairs"][name]) for name in names}
    ratios = list(map(ratio, found["pairs"]["embed-multi"], found["pairs"]["clip embed"]))
    found["ratios"] = {"embed-multi / clip embed": medians_of(ratios)}
    return found


def table(found: dict) -> str:
    ours, theirs = (found["medians"][name] for name in ("clip embed", "embed-multi"))
    ratios = found["ratios"]["embed-multi / clip embed"]
    lines = [f"{'':<24}{'clip embed':>14}{'embed-multi':>14}{'ratio':>8}"]
    lines += [f"{told:<24}{ours[key]:>14.1f}{theirs[key]:>14.1f}{ratios[key]:>8.2f}" for key, told in FIGURES.items()]
    return "\n".join([*lines, "", source_line(found)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as folder:
        place, model = Path(folder), args.model_dir
        if model is None:
            model = place / "model"
            bake_random_weights(place / "checkpoint", model)
        keep(measure(place, model.resolve(), args.images, args.pairs), args.to, table)


if __name__ == "__main__":
    main()
