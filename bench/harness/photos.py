"""Collections of made photos: the rows that `llm clip embed` would write of so many, without the photos themselves."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import llm
import numpy as np
from PIL import Image
from sqlite_utils import Database

import clip_vectors
from clip_collections.collection import open_collection
from clip_collections.floor import write_floor
from clip_collections.index import build, store
from clip_collections.origin import SCHEMA as ORIGIN
from clip_collections.thumbnails import encode
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.llm_model import CLIP

NAME = "photos"  # of the collection
CAMERAS = ("Apple iPhone 12", "Canon EOS 5D", "NIKON D750", "FUJIFILM X-T30", "Google Pixel 6", "SONY ILCE-7M3")
FIRST = datetime(2010, 1, 1, 8, 30)
THUMBNAILS = 64  # different ones; the rows take turns


def picture(number: int) -> Image.Image:
    """An image of 320 pixels with the statistics of photos: about as much light at every size of detail."""
    random, side = np.random.default_rng([7, number]), 512
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    grey = np.fft.ifft2(np.fft.fft2(random.standard_normal((side, side))) / frequency**1.4).real[:240, :320]
    tint = Image.fromarray(random.integers(0, 256, (4, 5, 3), np.uint8)).resize((320, 240), Image.Resampling.BICUBIC)
    light = 52 * (grey - grey.mean()) / grey.std()
    return Image.fromarray((np.asarray(tint) * 0.5 + 64 + light[..., None]).clip(0, 255).astype(np.uint8))


def thumbnails() -> list[bytes]:
    """WebPs as `llm clip embed` makes them."""
    return [encode(picture(number)) for number in range(THUMBNAILS)]


def facts(number: int) -> dict[str, str | int]:
    """The metadata of a photo: one every six hours, of six cameras, and some without time and camera."""
    time = FIRST + timedelta(hours=6 * number)
    exif = {} if number % 20 == 0 else {"taken": time.isoformat(), "camera": CAMERAS[number * 7 % 11 % len(CAMERAS)]}
    size = {"width": 4032, "height": 3024} if number % 4 else {"width": 3024, "height": 4032}
    return exif | size | {"bytes": 2_000_000 + number * 7919 % 3_000_000, "folder": f"{time:%Y}/{time:%m}"}


def rows(count: int) -> Iterator[tuple[str, bytes, dict[str, str | int]]]:
    """Ids, vector blobs and metadata."""
    vectors = (vector for chunk in clip_vectors.made(count) for vector in chunk)
    for number, vector in enumerate(vectors):
        known = facts(number)
        yield f"{known['folder']}/IMG_{number:05}.jpg", vector.tobytes(), known


def write_photos(file: Path, count: int, model: Path) -> Path:
    """Write a database with the collection NAME of `count` photos, its index, its thumbnails and its floor."""
    small = thumbnails()
    with closing(sqlite3.connect(file)) as conn:
        conn.execute("pragma journal_mode = wal")  # as `llm clip serve` does
        number = llm.Collection(NAME, Database(conn), model=CLIP).id
        conn.executescript(ORIGIN)
        store.create_tables(conn)
        with conn:
            conn.execute("insert into clip_collection_facts values (?, 'folder', 'exif', null, 0)", [number])
            for row, (id_, vector, known) in enumerate(rows(count), 1):
                values = (number, id_, vector, id_.encode(), json.dumps(known), 1_700_000_000 + row)
                conn.execute(
                    "insert into embeddings (rowid, collection_id, id, embedding, content_hash, metadata, updated)"
                    " values (?, ?, ?, ?, ?, ?, ?)",
                    (row, *values),
                )
                thumbnail = (NAME, id_, small[row % THUMBNAILS], row, id_.encode())
                conn.execute("insert into clip_thumbnails values (?, ?, ?, ?, ?)", thumbnail)
    with closing(build.connect(str(file))) as conn:
        collection = open_collection(conn, NAME)
        build.index(conn, collection, lambda _: None)
        write_floor(conn, collection, partial(Engine(model).embed_item))
    return file
