"""The texts and pictures that benches embed: made here, the same in every run."""

from __future__ import annotations

import io
import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "purple", "golden", "black", "white", "silver")
THINGS = ("car", "dog", "house", "bird", "boat", "tree", "horse", "chair")
PLACES = ("in the snow", "by the sea", "at night", "on a wall")
TEXTS = [" ".join(words) for words in itertools.product(COLOURS, THINGS, PLACES)]  # 256, of 6 or 7 ids
IMAGES = range(1, 21)  # ids in the table of write_images


def jpegs(width: int, height: int, count: int, *, noise: int = 12, quality: int = 88) -> list[bytes]:
    """JPEGs of coloured clouds. With noise they are as hard to decode as photographs."""
    random, files = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (max(2, height // 80), max(2, width // 80), 3), np.uint8))
        image = coarse.resize((width, height), Image.Resampling.BICUBIC)
        if noise:
            clouds = np.asarray(image, np.int16)
            noisy = clouds + random.integers(-noise, noise + 1, clouds.shape, np.int16)
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
        image.save(file := io.BytesIO(), "JPEG", quality=quality)
        files.append(file.getvalue())
    return files


def smooth_jpegs() -> list[bytes]:
    """A 640x480 JPEG without noise for each of IMAGES."""
    return jpegs(640, 480, len(IMAGES), noise=0, quality=75)


def write_images(file: Path) -> None:
    """Write a SQLite file with the table images(id, image) of smooth_jpegs."""
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("create table images (id integer primary key, image blob)")
        database.executemany("insert into images values (?, ?)", zip(IMAGES, smooth_jpegs()))
