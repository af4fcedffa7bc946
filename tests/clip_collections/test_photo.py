"""Metadata of photos: what EXIF says, upright sizes, no place unless it is asked for, and broken EXIF is as none."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from clip_collections.photo import camera, photo_facts, place, time_taken
from clip_collections.thumbnails import Look
from llm_clip_onnx.images.limits import OWN_MACHINE
from llm_clip_onnx.images.preprocess import open_image
from nasty import photo, saved
from serving import environment, run_llm

HERE = {1: "S", 2: (33.0, 51.0, 25.2), 3: "E", 4: (151.0, 12.0, 54.0)}


def exif_of(tags: dict | None = None, details: dict | None = None, gps: dict | None = None) -> Image.Exif:
    exif = Image.Exif()
    exif.update(tags or {})
    if details:
        exif.get_ifd(ExifTags.IFD.Exif).update(details)
    if gps:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(gps)
    return exif


FULL = ({0x010F: "Canon", 0x0110: "Canon EOS 5D", 0x0112: 6}, {0x9003: "2019:07:14 10:30:05"}, HERE)
FACTS = {"taken": "2019-07-14T10:30:05", "camera": "Canon EOS 5D", "width": 60, "height": 90}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_what_a_photo_says_is_read_from_every_format_that_has_exif(kind):
    exif = Image.Exif()
    exif.load(exif_of(*FULL).tobytes())  # Pillow writes no other into a TIFF
    blob = saved(photo(), kind, exif=exif)
    for places in (False, True):
        look = Look(with_facts=True, places=places)
        look.decode(blob)
        here = {"latitude": -33.857, "longitude": 151.215} if places else {}
        assert look.facts == FACTS | here


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({0x010F: "Canon", 0x0110: "Canon EOS 5D"}, "Canon EOS 5D"),
        ({0x010F: "NIKON CORPORATION", 0x0110: "NIKON D90\0\0"}, "NIKON D90"),
        ({0x010F: "Apple", 0x0110: "iPhone 12"}, "Apple iPhone 12"),
        ({0x010F: "  SONY\n", 0x0110: "DSC-\x1b[31mRX100 "}, "SONY DSC- [31mRX100"),
        ({0x0110: "Ж-5".encode().decode("latin-1")}, "Ж-5"),
        ({0x010F: b"Leica", 0x0110: 7}, "Leica"),
        ({0x010F: " \0", 0x0110: None}, None),
        ({0x010F: "x" * 500}, "x" * 80),
        ({}, None),
    ],
)
def test_cameras(tags, expected):
    assert camera(tags) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({0x9003: "2019:07:14 10:30:05"}, "2019-07-14T10:30:05"),
        ({0x9003: "2019-07-14 10:30:05+02:00\0"}, "2019-07-14T10:30:05"),
        ({0x9003: "2019:07:14 10:30"}, "2019-07-14T10:30:00"),
        ({0x9003: "0000:00:00 00:00:00", 0x9004: "2020:02:29 00:00:00"}, "2020-02-29T00:00:00"),
        ({0x9003: "2019:02:29 10:30:05"}, None),
        ({0x9003: "    :  :     :  :  "}, None),
        ({0x9003: (2019, 7)}, None),
        ({}, None),
    ],
)
def test_times(tags, expected):
    assert time_taken(tags) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (HERE, {"latitude": -33.857, "longitude": 151.215}),
        (HERE | {1: b"N", 3: "W"}, {"latitude": 33.857, "longitude": -151.215}),
        (HERE | {2: (IFDRational(1, 0), 0, 0)}, {}),
        (HERE | {2: (91.0, 0.0, 0.0)}, {}),
        (HERE | {2: "here"}, {}),
        (HERE | {2: (33.0,)}, {}),
        ({2: (33.0, 51.0, 25.2)}, {}),
    ],
)
def test_places(tags, expected):
    assert place(tags) == expected


@pytest.mark.parametrize("at", range(6, 200, 7))
def test_broken_exif_fails_no_photo(at):
    exif = bytearray(exif_of(*FULL).tobytes())
    if at < len(exif):
        exif[at : at + 4] = b"\xff\xff\xff\xff"
    blob = saved(photo(), "JPEG", exif=bytes(exif))
    facts = photo_facts(open_image(blob, OWN_MACHINE), (90, 60), places=True)
    assert sorted([facts["width"], facts["height"]]) == [60, 90]
    json.dumps(facts, allow_nan=False)


@pytest.fixture
def turned_photo(tmp_path) -> bytes:
    (tmp_path / "photos/2019/italy").mkdir(parents=True)
    blob = saved(photo(80, 60), "JPEG", exif=exif_of(*FULL).tobytes())
    (tmp_path / "photos/2019/italy/a.jpg").write_bytes(blob)
    return blob


def embedded(folder: Path, demo_dir, *options: str, ok: bool = True) -> tuple[list[str], bytes, dict]:
    """Runs `llm clip embed`: what it said last, and the vector blob and metadata of the first row."""
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = ["clip", "embed", str(folder / "photos"), "-d", str(folder / "photos.db"), "-c", "photos"]
    said = run_llm(*arguments, *options, env=env, ok=ok).stderr.splitlines()
    with closing(sqlite3.connect(folder / "photos.db")) as conn:
        vector, metadata = conn.execute("select embedding, metadata from embeddings order by id").fetchone()
    return said, vector, json.loads(metadata) if metadata else None


@pytest.mark.long
def test_a_new_collection_is_upright_and_goes_on_as_it_was_made(turned_photo, demo_dir, demo_engine, tmp_path):
    upright, lying = (demo_engine.embed_item(turned_photo, orient).tobytes() for orient in ("exif", None))
    assert upright != lying
    _, vector, metadata = embedded(tmp_path, demo_dir)
    assert vector == upright
    assert metadata == FACTS | {"height": 80, "bytes": len(turned_photo), "folder": "2019/italy"}
    said, vector, _ = embedded(tmp_path, demo_dir, "--orient", "none", ok=False)
    assert vector == upright
    assert said[-1] == (
        "Error: the collection photos was made with --orient exif; --force embeds everything again, another collection"
        " keeps both"
    )
    _, vector, metadata = embedded(tmp_path, demo_dir, "--orient", "none", "--force", "--gps")
    assert vector == lying
    assert (metadata["latitude"], metadata["longitude"]) == (-33.857, 151.215)
    _, vector, metadata = embedded(tmp_path, demo_dir, "--force")  # as it is now: lying, with places
    assert (vector, "latitude" in metadata) == (lying, True)
    with closing(sqlite3.connect(tmp_path / "photos.db")) as conn:
        facts = conn.execute("select source, orient, places from clip_collection_facts").fetchall()
        assert facts == [("folder", None, 1)]
        assert str(tmp_path).encode() not in (tmp_path / "photos.db").read_bytes()


@pytest.mark.long
def test_a_collection_of_embed_multi_goes_on_as_it_was(turned_photo, demo_dir, demo_engine, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    source = ["--files", str(tmp_path / "photos"), "**/*.jpg", "-d", str(tmp_path / "photos.db")]
    run_llm("embed-multi", "photos", "-m", "clip", "--binary", *source, env=env)
    second = saved(photo(70, 50), "JPEG", exif=exif_of(*FULL).tobytes())
    (tmp_path / "photos/0.jpg").write_bytes(second)
    said, vector, metadata = embedded(tmp_path, demo_dir)
    assert said[-1].startswith("2 images: 1 embedded in ")
    assert "1 there already" in said[-1]
    assert vector == demo_engine.embed_item(second).tobytes()
    assert metadata["taken"] == "2019-07-14T10:30:05"
