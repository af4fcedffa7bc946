"""Measures how close the vectors of thumbnails stay to those of the photos: what `llm clip convert` does without files.

    python -m bench.embedding.thumbnails [--photos 200] [--quick] [--to FILE]

Each photo is a made JPEG: a drawing of demo/emoji.db, enlarged to three quarters of the height, before coloured clouds
with noise. Its thumbnail is the WebP that `llm clip embed` stores. Both are embedded with the demo model, which reads
squares of 224 pixels. Nothing here depends on time. Not measured: photographs, and OpenAI's weights.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.harness import ROOT
from bench.harness.command import Results, main, say, source_line
from bench.harness.inputs import jpegs
from bench.harness.models import bake
from clip_collections.thumbnails import Look
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import unit
from plain_quantisation import mean_cosine

sys.path.append(str(ROOT / "demo"))
from search_recall import collection, first_ten, overlap

SIZES = {"1600 x 1200": (1600, 1200), "1600 x 900": (1600, 900), "2400 x 800": (2400, 800)}
SHARE = 0.75  # of the height, that a drawing has
TITLES = {
    "thumbnail_kb": ("thumbnail, kB", 1),
    "mean": ("cosine of thumbnail and photo, mean", 4),
    "worst": ("  worst", 4),
    "between": ("cosine of two photos, mean", 4),
    "nearest": ("nearest photo the same, %", 1),
    "ten": ("first ten in common, by photo, %", 1),
    "ten_by_text": ("first ten in common, by name, %", 1),
    "photo_recall": ("right one in the first ten, photos, %", 1),
    "thumbnail_recall": ("right one in the first ten, thumbnails, %", 1),
}


def photos(drawings: list[bytes], width: int, height: int) -> Iterator[bytes]:
    """A JPEG of each drawing, in order."""
    side = round(SHARE * height)
    for content, clouds in zip(drawings, jpegs(width, height, len(drawings)), strict=True):
        drawing = Image.open(io.BytesIO(content)).convert("RGBA").resize((side, side), Image.Resampling.LANCZOS)
        photo = Image.open(io.BytesIO(clouds)).convert("RGB")
        photo.paste(drawing, ((width - side) // 2, (height - side) // 2), drawing)
        photo.save(file := io.BytesIO(), "JPEG", quality=88)
        yield file.getvalue()


def thumbnail_of(photo: bytes) -> bytes:
    look = Look()
    look.decode(photo)
    look.encode()
    assert look.thumbnail
    return look.thumbnail


def measure_size(engine: Engine, labels: list[str], drawings: list[bytes], size: tuple[int, int]) -> dict[str, float]:
    """The figures of photos of one size."""
    small, embeddings = [], []
    for photo in photos(drawings, *size):
        small.append(thumbnail_of(photo))
        embeddings.append(engine.embed_item(photo))
    texts = unit(engine.embed_text(labels))
    large, little = unit(np.array(embeddings)), unit(np.array([engine.embed_item(one) for one in small]))
    return agreement(large, little, texts) | {"thumbnail_kb": sum(map(len, small)) / len(small) / 1000}


def agreement(
    photos: NDArray[np.float32], thumbnails: NDArray[np.float32], texts: NDArray[np.float32]
) -> dict[str, float]:
    """The figures of unit embeddings [n, embed_dim] of photos, of their thumbnails, and of their names."""
    pairs = np.sum(photos * thumbnails, axis=1)
    by_photo, by_thumbnail = others_first(photos), others_first(thumbnails)
    of_photos, of_thumbnails = first_ten(texts @ photos.T), first_ten(texts @ thumbnails.T)
    return {
        "mean": float(pairs.mean()),
        "worst": float(pairs.min()),
        "between": mean_cosine(photos),
        "nearest": 100 * float(np.mean(by_photo[:, 0] == by_thumbnail[:, 0])),
        "ten": overlap(by_photo, by_thumbnail),
        "ten_by_text": overlap(of_photos, of_thumbnails),
        "photo_recall": recall(of_photos),
        "thumbnail_recall": recall(of_thumbnails),
    }


def others_first(embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
    """The ten other rows that each row of [n, embed_dim] finds first: [n, 10]."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    return first_ten(cosines)


def recall(lists: NDArray[np.int64]) -> float:
    """Percent of the lists in which the row of the same number is."""
    return 100 * float(np.mean([number in ten for number, ten in enumerate(lists.tolist())]))


def measure(place: Path, options: argparse.Namespace) -> Results:
    labels, drawings = collection()
    count = 20 if options.quick else options.photos
    step = len(labels) // count  # of all groups
    labels, drawings = labels[::step][:count], drawings[::step][:count]
    engine, sizes = Engine(bake(ROOT / "demo" / "checkpoint", place / "model")), dict[str, Any]()
    for name, size in SIZES.items():
        say(name)
        sizes[name] = measure_size(engine, labels, drawings, size)
    return {"photos": count, "sizes": sizes}


def table(results: Results) -> str:
    """The figures as plain text: a column for each size of photos."""
    line = ("{:<44}" + "{:>13}" * len(results["sizes"])).format
    rows = [line(f"{results['photos']} made photos, of pixels", *results["sizes"])]
    for key, (title, digits) in TITLES.items():
        rows.append(line(title, *(f"{figures[key]:.{digits}f}" for figures in results["sizes"].values())))
    return "\n".join([*rows, "", source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, photos=200, quick=False)
