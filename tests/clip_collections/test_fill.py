"""A folder's collection follows it: thumbnails in the same pass, files that are unchanged, moved, copied and gone."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlite_utils import Database

from clip_collections import folder as folders
from clip_collections import thumbnails, writer
from clip_collections.collection import open_collection
from clip_collections.fill import Fill
from clip_collections.index import build
from clip_collections.sources import Reading, read_source
from clip_collections.writer import CollectionWriter, Embedder
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images import preprocess
from llm_clip_onnx.llm_model import CLIP
from nasty import animation, deep_grey, photo, saved, turned, with_alpha


def picture(number: int) -> bytes:
    """A JPEG that differs from that of every other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return saved(Image.fromarray(coarse).resize((120, 90)), "JPEG")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with three photos, one of them in a subfolder."""
    (tmp_path / "photos/old").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.jpg", "old/c.jpg"]):
        (tmp_path / "photos" / name).write_bytes(picture(number))
    return tmp_path / "photos"


@pytest.fixture
def run(tmp_path, demo_engine):
    """Fills the collection of photos.db, and returns the numbers of outcomes and the notes."""

    def fill(source: Path, prune: bool = False, reading: Reading | None = None, **options) -> tuple[Counter, list[str]]:
        embedder = Embedder(CLIP, 512, demo_engine.embed_item, 2, demo_engine.embed_item, "demo")
        embedder = embedder._replace(embed_dim=demo_engine.manifest.embed_dim)
        with closing(sqlite3.connect(tmp_path / "photos.db")) as conn:
            database = Database(conn)
            with read_source(source, database, reading or Reading()) as found:
                options = {"thumbnails": True, "folder": found.folder} | options
                run = Fill(CollectionWriter(database, "photos", embedder, **options), found, prune)
                return Counter(outcome.became for outcome in run.run()), run.notes

    return fill


def query(photos: Path, sql: str, *parameters) -> list[tuple]:
    with closing(sqlite3.connect(photos.parent / "photos.db")) as conn:
        return conn.execute(sql, parameters).fetchall()


def ids(photos: Path) -> list[str]:
    return [id for (id,) in query(photos, "select id from embeddings order by id")]


def stored_thumbnails(photos: Path) -> dict[str, bytes]:
    """The thumbnails that are shown, by id."""
    with closing(build.connect(str(photos.parent / "photos.db"))) as conn:
        collection = open_collection(conn, "photos")
        return {id: small for id in ids(photos) if (small := thumbnails.read_thumbnail(conn, collection, id))}


KINDS = {
    "small.jpg": lambda: saved(photo(90, 60), "JPEG"),
    "large.jpg": lambda: saved(photo(3000, 2000), "JPEG"),
    "large.png": lambda: saved(photo(2400, 1800), "PNG"),
    "turned.jpg": turned,
    "grey16.png": lambda: saved(deep_grey(), "PNG"),
    "alpha.png": lambda: saved(with_alpha(), "PNG"),
    "moves.gif": animation,
    "page.tif": lambda: saved(photo(), "TIFF"),
    "web.webp": lambda: saved(photo(), "WEBP"),
    "long.png": lambda: saved(photo(1, 3000), "PNG"),
}


@pytest.mark.long
@pytest.mark.parametrize("orient", ["none", "exif"])
def test_thumbnails_are_made_of_images_that_are_decoded_once_and_embedded_as_ever(
    orient, tmp_path, run, demo_engine, monkeypatch
):
    folder, decoded = tmp_path / "photos", []
    folder.mkdir()
    for name, make in KINDS.items():
        (folder / name).write_bytes(make())
    genuine = preprocess.strips_of
    monkeypatch.setattr(preprocess, "strips_of", lambda *given: decoded.append(1) or genuine(*given))
    assert run(folder, orient=orient)[0] == {"embedded": len(KINDS)}
    assert len(decoded) == len(KINDS)
    stored = dict(query(folder, "select id, embedding from embeddings"))
    small = stored_thumbnails(folder)
    for name in KINDS:
        blob, read_as = (folder / name).read_bytes(), None if orient == "none" else orient
        assert stored[name] == demo_engine.embed_item(blob, read_as).tobytes()
        assert len(small[name]) <= thumbnails.MAX_BYTES
        shown, whole = (Image.open(io.BytesIO(file)).convert("RGB") for file in (small[name], blob))
        assert max(shown.size) == min(320, max(whole.size))
    assert Image.open(io.BytesIO(small["turned.jpg"])).size == (60, 90)  # upright


def test_texts_and_no_thumbnails_write_none(photos, run):
    run(photos, thumbnails=False)
    assert query(photos, "select count(*) from clip_thumbnails") == [(0,)]
    assert run(photos)[0] == {"there": 3}  # and they can be had later, without embedding
    assert [*stored_thumbnails(photos)] == ["a.jpg", "b.jpg", "old/c.jpg"]
    texts = photos.parent / "texts.csv"
    texts.write_text("id,text\n1,red\n")
    run(texts)
    assert query(photos, "select count(*) from clip_thumbnails") == [(3,)]


def test_images_of_a_column_get_thumbnails_too(photos, run):
    table = photos.parent / "table.csv"
    table.write_text("id,file,title\n1,photos/a.jpg,Red\n2,photos/a.jpg,Again\n")
    run(table, reading=Reading(image="file", metadata=["title"]))
    assert [*stored_thumbnails(photos)] == ["1", "2"]
    assert query(photos, "select metadata from embeddings") == [('{"title": "Red"}',), ('{"title": "Again"}',)]


def test_a_file_of_an_earlier_version_keeps_its_thumbnails(photos, run):
    run(photos)
    with closing(sqlite3.connect(photos.parent / "photos.db")) as conn, conn:
        conn.execute("drop table clip_thumbnails")
        conn.execute(
            "create table clip_thumbnails (collection text, id, image blob, row integer, primary key (collection, id))"
        )
        conn.execute(
            "insert into clip_thumbnails select 'photos', id, ?, rowid from embeddings where id < 'c'", [picture(0)]
        )
    run(photos)
    small = stored_thumbnails(photos)
    assert small["a.jpg"] == picture(0)
    assert small["old/c.jpg"].startswith(b"RIFF")


def test_the_index_keeps_the_thumbnails_that_were_written_with_the_rows(photos, run):
    def index() -> dict[str, bytes]:
        with closing(build.connect(str(photos.parent / "photos.db"))) as conn:
            build.index(conn, open_collection(conn, "photos"))
        return stored_thumbnails(photos)

    run(photos)
    before = stored_thumbnails(photos)
    assert index() == before
    (photos / "old/c.jpg").write_bytes(picture(9))  # the last row is replaced by one of the same rowid
    run(photos)
    after = stored_thumbnails(photos)
    assert after["old/c.jpg"] != before["old/c.jpg"]
    assert index() == after


def test_files_that_are_gone_are_counted_and_removed_only_with_prune(photos, run):
    run(photos)
    with closing(build.connect(str(photos.parent / "photos.db"))) as conn:
        build.index(conn, open_collection(conn, "photos"))
    (photos / "b.jpg").unlink()
    shutil.rmtree(photos / "old")
    became, notes = run(photos)
    assert (became, notes) == (
        {"there": 1},
        ["2 gone from the folder and still in the collection: --prune removes them"],
    )
    assert len(ids(photos)) == 3
    assert run(photos, prune=True)[1] == ["2 gone from the folder, so removed from the collection"]
    assert ids(photos) == [*stored_thumbnails(photos)] == ["a.jpg"]
    assert query(photos, "select count(*) from clip_files") == [(1,)]
    assert query(photos, "select vectors from clip_index") == [(1,)]
    assert query(photos, "select sum(length(rowids)) / 8 from clip_index_chunks") == [(1,)]
    assert run(photos, prune=True)[1] == []


def test_prune_of_a_folder_without_images_is_refused(photos, run):
    run(photos)
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(InputError) as raised:
        run(photos, prune=True)
    assert str(raised.value) == (
        f"{photos} has no images, so --prune would remove all of its 3 from the collection; is it the right folder, and"
        " is its disk there?"
    )
    assert run(photos)[1] == ["3 gone from the folder and still in the collection: --prune removes them"]
    assert len(ids(photos)) == 3


@pytest.mark.parametrize(("unreadable", "kept"), [("", 3), ("old", 2)])
def test_prune_removes_nothing_in_a_folder_that_cannot_be_read(unreadable, kept, photos, run, monkeypatch):
    run(photos)
    (photos / "b.jpg").unlink()
    (photos / "old/c.jpg").unlink()
    genuine = os.scandir

    def scandir(path):
        if Path(path) == photos / unreadable:
            raise PermissionError(13, "Permission denied")
        return genuine(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)
    if not unreadable:
        with pytest.raises(InputError):
            run(photos, prune=True)
    else:
        run(photos, prune=True)
    assert len(ids(photos)) == kept
    assert "old/c.jpg" in ids(photos)


def test_prune_leaves_rows_of_other_sources(photos, run, tmp_path):
    (tmp_path / "table.csv").write_text("id,file\n1,photos/a.jpg\n2,photos/b.jpg\n")
    run(tmp_path / "table.csv", reading=Reading(image="file"), orient="exif")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/z.jpg").write_bytes(picture(7))
    run(tmp_path / "others")
    run(photos)
    (photos / "b.jpg").unlink()
    assert run(photos, prune=True)[1] == ["1 gone from the folder, so removed from the collection"]
    assert ids(photos) == ["1", "2", "a.jpg", "old/c.jpg", "z.jpg"]


@pytest.mark.parametrize("made_by", ["this version", "an earlier one"])
def test_a_folder_that_was_renamed_is_the_same_folder(made_by, photos, run):
    run(photos)
    if made_by == "an earlier one":
        with closing(sqlite3.connect(photos.parent / "photos.db")) as conn, conn:
            conn.execute("drop table clip_files")
            conn.execute("drop table clip_collection_facts")
    renamed = photos.rename(photos.parent / "pictures")
    (renamed / "b.jpg").unlink()
    became, notes = run(renamed, prune=True)
    assert (became, notes) == ({"there": 2}, ["1 gone from the folder, so removed from the collection"])


def test_a_moved_file_moves_and_a_copied_one_is_two_rows(photos, run):
    run(photos)
    before = dict(query(photos, "select id, embedding from embeddings"))
    (photos / "Ж 猫").mkdir()
    (photos / "a.jpg").rename(photos / "Ж 猫/é.jpg")
    shutil.copy(photos / "b.jpg", photos / "b copy.jpg")
    assert run(photos) == ({"moved": 1, "copied": 1, "there": 2}, [])
    assert ids(photos) == [*stored_thumbnails(photos)] == ["b copy.jpg", "b.jpg", "old/c.jpg", "Ж 猫/é.jpg"]
    after = dict(query(photos, "select id, embedding from embeddings"))
    assert (after["Ж 猫/é.jpg"], after["b copy.jpg"]) == (before["a.jpg"], before["b.jpg"])
    folder_of = "select json_extract(metadata, '$.folder') from embeddings where id = ?"
    assert query(photos, folder_of, "Ж 猫/é.jpg") == [("Ж 猫",)]
    assert run(photos)[0] == {"there": 4}


@pytest.mark.parametrize("metadata", ["no JSON", "[1]", "null", b"\xff", None])
def test_a_row_whose_metadata_another_program_wrote_moves_with_them(metadata, photos, run):
    run(photos)
    with closing(sqlite3.connect(photos.parent / "photos.db")) as conn, conn:
        conn.execute("update embeddings set metadata = ?", [metadata])
    (photos / "a.jpg").rename(photos / "z.jpg")
    assert run(photos)[0] == {"moved": 1, "there": 2}
    assert query(photos, "select metadata from embeddings where id = 'z.jpg'") == [(metadata,)]


def test_unchanged_files_are_not_read_again(photos, run, monkeypatch):
    run(photos)
    read = []
    genuine = writer.content_of
    monkeypatch.setattr(writer, "content_of", lambda entry: read.append(entry.id) or genuine(entry))
    assert run(photos)[0] == {"there": 3}
    assert read == []
    os.utime(photos / "a.jpg")
    assert run(photos)[0] == {"there": 3}
    assert read == ["a.jpg"]
    assert run(photos, store=True)[0] == {"copied": 3}  # their contents are wanted now
    assert sorted(read) == ["a.jpg", "a.jpg", "b.jpg", "old/c.jpg"]


def test_the_first_rows_are_written_at_once_and_later_ones_together(photos, tmp_path, demo_engine):
    for number in range(3, 40):
        (photos / f"{number}.jpg").write_bytes(picture(number))
    embedder = Embedder(CLIP, demo_engine.manifest.embed_dim, demo_engine.embed_item, 2)
    file, counts = tmp_path / "photos.db", []
    with closing(sqlite3.connect(file)) as conn, closing(sqlite3.connect(file)) as reader:
        database = Database(conn)
        with read_source(photos, database, Reading()) as source:
            for _ in Fill(CollectionWriter(database, "photos", embedder), source, prune=False).run():
                counts += reader.execute("select count(*) from embeddings").fetchone()
        counts += reader.execute("select count(*) from embeddings").fetchone()
    assert list(dict.fromkeys(counts)) == [1, 3, 7, 15, 31, 40]


def test_newest_first(photos):
    for age, name in enumerate(["b.jpg", "old/c.jpg", "a.jpg"]):
        os.utime(photos / name, (1_000_000 - age, 1_000_000 - age))
    entries = folders.read_folder(photos, newest_first=True).entries
    assert [entry.id for entry in entries] == ["b.jpg", "old/c.jpg", "a.jpg"]
