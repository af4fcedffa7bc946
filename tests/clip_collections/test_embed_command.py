"""`llm clip embed` writes what `llm embed-multi` writes, embeds everything that can be read, and may be killed."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_collections import commands
from clip_collections.commands import summary_of
from clip_collections.photo_folders import PhotoFolder
from clip_collections.serve import open_model
from conftest import ROOT
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.images.limits import OWN_MACHINE, SERVER
from nasty import photo, saved
from serving import BIN, environment, run_llm

ROWS = "select id, embedding, content, content_blob, content_hash, metadata from embeddings order by id"


@pytest.fixture
def env(demo_dir, tmp_path):
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))


def picture(number: int) -> bytes:
    """A JPEG that differs from that of every other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return saved(Image.fromarray(coarse).resize((120, 90)), "JPEG")


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder with six photos, two of them in a subfolder, and with other files that are not embedded."""
    folder = tmp_path / "photos"
    (folder / "old" / ".thumbnails").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b.jpg", "c.JPG", "d.jpeg", "old/a.jpg", "old/e.jpg"]):
        (folder / name).write_bytes(picture(number))
    for name in ["notes.txt", ".hidden.jpg", "old/.thumbnails/a.jpg"]:
        (folder / name).write_bytes(b"not to be read")
    return folder


def test_each_of_the_images_that_are_embedded_at_once_takes_one_thread(photos, demo_dir, threads_opened):
    arguments = [str(photos), "-d", str(photos.parent / "photos.db"), "-c", "photos", "--model-dir", str(demo_dir)]
    commands.embed.main(arguments, standalone_mode=False)
    assert threads_opened["image"] == 1


def test_each_of_the_photos_that_llm_clip_serve_embeds_at_once_takes_one_thread(photos, demo_dir, threads_opened):
    embedder = open_model(demo_dir, PhotoFolder(photos, photos.parent / "photos.db", "photos"))
    embedder.embed_item(picture(1), "exif")
    assert (embedder.threads, threads_opened["image"]) == (3, 1)


def embed(source: Path, *options: str, env: dict[str, str], ok: bool = True) -> list[str]:
    """Run `llm clip embed` into photos.db beside the source, and return its output."""
    arguments = ["clip", "embed", str(source), "-d", str(source.parent / "photos.db"), "-c", "photos", *options]
    return run_llm(*arguments, env=env, ok=ok).stderr.splitlines()[1:]


def rows(database: Path, sql: str = ROWS) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        return connection.execute(sql).fetchall()


def test_a_folder_becomes_a_collection_that_llm_reads(photos, env, demo_engine):
    [said] = embed(photos, env=env)
    assert said.startswith("6 images embedded in ")
    database = photos.parent / "photos.db"
    names = ["a.jpg", "b.jpg", "c.JPG", "d.jpeg", "old/a.jpg", "old/e.jpg"]
    assert [row[:2] for row in rows(database)] == [
        (name, demo_engine.embed_item((photos / name).read_bytes()).tobytes()) for name in names
    ]
    assert "photos: clip" in run_llm("collections", "list", "-d", str(database), env=env).stdout
    found = run_llm("similar", "photos", "b.jpg", "-d", str(database), env=env).stdout.splitlines()
    assert {json.loads(line)["id"] for line in found} == set(names) - {"b.jpg"}


@pytest.mark.parametrize("store", [[], ["--store"]], ids=["", "stored"])
def test_its_rows_are_those_of_embed_multi(store, photos, env):
    shutil.rmtree(photos / "old/.thumbnails")  # which embed-multi would look into, and give up
    theirs = photos.parent / "theirs.db"
    arguments = ["photos", "-m", "clip", "--binary", "--files", str(photos), "**/[a-e].[jJ]*", "-d", str(theirs)]
    run_llm("embed-multi", *arguments, *store, env=env)
    embed(photos, *store, env=env)
    ours = rows(photos.parent / "photos.db")
    assert [row[:5] for row in ours] == [row[:5] for row in rows(theirs)]  # all but metadata
    assert len(ours) == 6
    schema = "select type, name, sql from sqlite_master where tbl_name not like 'clip_%' order by name"
    assert rows(photos.parent / "photos.db", schema) == rows(theirs, schema)


@pytest.mark.parametrize("kind", ["csv", "tsv", "json", "jsonl"])
def test_rows_of_texts_are_those_of_embed_multi(kind, env, tmp_path):
    table = [{"key": "1", "name": "red", "what": "car"}, {"key": "b", "name": "blåbær", "what": ""}]
    source, theirs = tmp_path / f"things.{kind}", tmp_path / "theirs.db"
    with source.open("w", newline="") as stream:
        if kind in ("csv", "tsv"):
            writer = csv.DictWriter(stream, table[0], dialect="excel-tab" if kind == "tsv" else "excel")
            writer.writeheader()
            writer.writerows(table)
        else:
            stream.write(json.dumps(table) if kind == "json" else "".join(f"{json.dumps(row)}\n" for row in table))
    embed(source, "--store", env=env)
    given = ["--store", "--format", "nl" if kind == "jsonl" else kind]
    run_llm("embed-multi", "photos", str(source), "-m", "clip", *given, "-d", str(theirs), env=env)
    found = rows(tmp_path / "photos.db")
    assert [row[2] for row in found] == ["red car", "blåbær "]
    assert found == rows(theirs)


def test_rows_with_paths_of_images_keep_metadata(photos, env, demo_engine):
    source = photos.parent / "photos.csv"
    source.write_text("id,title,file,year\n1,A red one,photos/a.jpg,1999\n2,Æ,photos/none.jpg,2000\n3,no,,\n")
    said = embed(source, "--image", "file", "--metadata", "title", "--metadata", "year", env=env, ok=False)
    assert said[:2] == [
        f"2: {photos}/none.jpg cannot be read: No such file or directory",
        "3: there is no image; expected the path of a file, or a BLOB",
    ]
    [(id_, embedding, _, _, _, metadata)] = rows(photos.parent / "photos.db")
    assert (id_, json.loads(metadata)) == ("1", {"title": "A red one", "year": "1999"})
    assert embedding == demo_engine.embed_item((photos / "a.jpg").read_bytes()).tobytes()
    source.write_text("id,title,file,year\n1,A redder one,photos/a.jpg,1999\n")
    [told] = embed(source, "--image", "file", "--metadata", "title", "--metadata", "year", env=env)
    assert told == "1 row with the same content as another"
    assert json.loads(rows(photos.parent / "photos.db")[0][5]) == {"title": "A redder one", "year": "1999"}


@pytest.mark.parametrize("to", ["photos.db", "other.db"])
def test_rows_of_a_sqlite_file_also_into_the_same_file(to, env, tmp_path, demo_engine):
    source = tmp_path / to
    with sqlite3.connect(source) as connection:
        connection.execute("create table pictures (name text, picture blob, kind text)")
        pictures = [(str(number), picture(number), "made") for number in range(100)]
        connection.executemany("insert into pictures values (?, ?, ?)", pictures)
    before = source.read_bytes()
    sql = "select name, picture, kind from pictures"
    embed(source, "--sql", sql, "--image", "picture", "--metadata", "kind", "--store", env=env)
    found = {row[0]: row[1:] for row in rows(tmp_path / "photos.db")}
    assert len(found) == 100
    assert found["7"][0] == demo_engine.embed_item(picture(7)).tobytes()
    assert found["7"][1:3] == (None, picture(7))
    assert found["7"][4] == '{"kind": "made"}'
    assert to == "photos.db" or source.read_bytes() == before


def test_what_is_there_is_skipped_what_moved_moves_what_changed_is_embedded(photos, env, demo_engine):
    database = photos.parent / "photos.db"
    embed(photos, env=env)
    with sqlite3.connect(database) as connection:  # the proof that a row was not written again
        connection.execute("update embeddings set updated = 1")
    (photos / "a.jpg").rename(photos / "moved.jpg")
    (photos / "b.jpg").write_bytes(picture(99))
    (photos / "old/a.jpg").write_bytes(picture(5))  # what old/e.jpg holds
    (photos / "old/e.jpg").write_bytes(picture(4))  # and the other way round
    [said] = embed(photos, env=env)
    counts = ", 2 with the same content as another, 1 moved, 2 there already; "
    assert re.match(rf"6 images: 1 embedded in \S+ s \(\S+ a second\){counts}", said)
    found = {row[0]: row[1] for row in rows(database)}
    for file in ("moved.jpg", "b.jpg", "c.JPG", "d.jpeg", "old/a.jpg", "old/e.jpg"):
        assert found[file] == demo_engine.embed_item((photos / file).read_bytes()).tobytes()
    assert len(found) == 6
    untouched = "select id from embeddings where updated = 1 order by id"
    assert rows(database, untouched) == [("c.JPG",), ("d.jpeg",)]


def test_bad_files_are_named_at_the_end_and_all_others_are_embedded(photos, env):
    (photos / "0.jpg").write_bytes(b"abc")
    (photos / "cut.jpg").write_bytes(picture(7)[:900])
    os.mkdir(photos / "folder.jpg")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    Path(os.fsdecode(bytes(photos) + b"/\xff.jpg")).write_bytes(picture(8))
    said = embed(photos, env=env, ok=False)
    assert said[0] == "0.jpg: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"
    assert said[1].startswith("cut.jpg: JPEG image of 900 bytes cannot be decoded: ")
    assert said[2] == f"gone.jpg: {photos}/gone.jpg cannot be read: No such file or directory"
    assert said[3].endswith(".jpg: its name or text is not UTF-8, so SQLite cannot hold it; rename it")
    assert re.match(r"10 images: 6 embedded in \S+ s \(\S+ a second\), 4 that could not be read; ", said[4])
    assert said[5:] == ["Error: 4 of 10 could not be embedded"]
    assert len(rows(photos.parent / "photos.db")) == 6


NEVER = "(with recursive numbers (n) as (select 1 union all select n + 1 from numbers) select count(*) from numbers)"


def test_a_run_that_is_killed_loses_little_and_the_next_one_finishes_it(env, tmp_path, demo_engine):
    """It is killed while it waits for the row after 150 others, which never comes."""
    with sqlite3.connect(tmp_path / "pictures.db") as connection:
        connection.execute("create table pictures (id integer primary key, picture blob)")
        connection.executemany("insert into pictures values (?, ?)", [(n, picture(1000 + n)) for n in range(200)])
    database = tmp_path / "photos.db"
    command = [str(BIN / "llm"), "clip", "embed", str(tmp_path / "pictures.db"), "-d", str(database), "-c", "photos"]
    sql = f"select * from pictures where id < 150 union all select * from pictures where id = {NEVER}"
    with subprocess.Popen([*command, "--sql", sql], env=env, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (not database.exists() or count(database) < 96):
            time.sleep(0.02)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    kept = rows(database)
    assert 96 <= len(kept) <= 150
    [said] = embed(tmp_path / "pictures.db", "--sql", "select * from pictures", env=env)
    assert re.match(rf"200 rows: {200 - len(kept)} embedded in .*, {len(kept)} there already$", said)
    found = rows(database)
    assert set(kept) <= set(found)
    assert len(found) == len({row[4] for row in found}) == 200
    assert found[20][1] == demo_engine.embed_item(picture(1000 + int(found[20][0]))).tobytes()


def count(database: Path) -> int:
    try:
        with sqlite3.connect(database) as connection:
            return connection.execute("select count(*) from embeddings").fetchone()[0]
    except sqlite3.OperationalError:  # there is no such table yet
        return 0


@pytest.mark.parametrize(
    ("source", "options", "sentence"),
    [
        ("photos", ["--sql", "select 1"], "{}/photos is a folder; --sql cannot be used with it"),
        (
            "photos/notes.txt",
            [],
            "{}/photos/notes.txt is neither a folder of images nor a file of rows, which ends with .csv, .tsv, .json,"
            " .jsonl, .ndjson, .nl; rows of a SQLite file are named with --sql",
        ),
        ("things.csv", ["--image", "file"], "there is no column 'file' among id, name"),
        ("things.csv", ["--metadata", "year"], "there is no column 'year' among id, name"),
        ("things.json", [], "{}/things.json cannot be read: it is not JSON: Expecting value: line 1 column 2 (char 1)"),
        ("things.json", ["--exclude", "x"], "{}/things.json is a file of rows; --exclude cannot be used with it"),
        ("things.db", ["--sql", "select x from y"], "--sql cannot be run: no such table: y"),
        ("things.db", ["--sql", "-- none"], "--sql cannot be run: it is no query that gives rows"),
        ("things.db", ["--sql", "drop table things"], "--sql cannot be run: attempt to write a readonly database"),
        ("to.db", ["--sql", "delete from kept returning 1"], "--sql cannot be run: attempt to write a readonly database"),
        ("things.db", ["--sql", "select 1", "--model-dir", "none"], "none: there is no model directory; make one with `llm clip bake --to none`, or set CLIP_MODEL_DIR to one"),
    ],
)  # fmt: skip
def test_what_it_refuses_it_refuses_with_a_sentence(source, options, sentence, photos, env, tmp_path):
    (tmp_path / "things.csv").write_text("id,name\n1,one\n")
    (tmp_path / "things.json").write_text("[")
    for name, table in [("things.db", "things"), ("to.db", "kept")]:
        sqlite3.connect(tmp_path / name).execute(f"create table {table} (id)").connection.close()
    arguments = ["clip", "embed", str(tmp_path / source), "-d", str(tmp_path / "to.db"), "-c", "photos"]
    said = run_llm(*arguments, *options, env=env, ok=False).stderr.splitlines()[-1]
    assert said == f"Error: {sentence.format(tmp_path)}"


def test_a_database_that_is_none_is_refused_with_a_sentence(photos, env):
    (photos.parent / "photos.db").write_text("no database, but a text of some length")
    arguments = ["clip", "embed", str(photos), "-d", str(photos.parent / "photos.db"), "-c", "photos"]
    said = run_llm(*arguments, env=env, ok=False).stderr
    assert said == f"Error: {photos.parent}/photos.db: file is not a database\n"


def test_a_collection_of_another_model_is_refused(photos, env):
    database = photos.parent / "photos.db"
    embed(photos, env=env)
    with sqlite3.connect(database) as connection:
        connection.execute("update collections set model = '3-small'")
    arguments = ["clip", "embed", str(photos), "-d", str(database), "-c", "photos"]
    assert run_llm(*arguments, env=env, ok=False).stderr == (
        "Error: the collection photos is of the model 3-small, to whose embeddings those of clip cannot be compared;"
        " choose another collection\n"
    )


def test_a_collection_of_another_model_directory_is_refused_unless_forced(photos, env, tiny_dir):
    embed(photos, env=env)
    before = rows(photos.parent / "photos.db")
    [said] = embed(photos, "--model-dir", str(tiny_dir), env=env, ok=False)
    assert said.startswith(
        "Error: the collection photos holds an embedding whose cosine to today's of the same content"
    )
    assert said.endswith("--force embeds everything again, another collection keeps both")
    assert rows(photos.parent / "photos.db") == before
    assert embed(photos, "--model-dir", str(tiny_dir), "--force", env=env)[0].startswith("6 images embedded in ")
    assert rows(photos.parent / "photos.db")[0][1] == (
        Engine(tiny_dir).embed_item((photos / "a.jpg").read_bytes()).tobytes()
    )


def test_orient_turns_a_photo_upright(env, tmp_path, demo_engine):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = saved(photo(80, 60), "JPEG", exif=exif)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").write_bytes(turned)
    embed(tmp_path / "photos", "--orient", "exif", env=env)
    [row] = rows(tmp_path / "photos.db")
    assert row[1] == demo_engine.embed_item(turned, "exif").tobytes() != demo_engine.embed_item(turned).tobytes()


def test_on_ones_own_machine_only_very_large_images_wait_for_one_another(demo_dir, monkeypatch):
    taken = []

    @contextmanager
    def lock():
        taken.append(1)
        yield

    large = saved(photo(1000, 800), "JPEG")
    found = []
    for bounds in (OWN_MACHINE, SERVER):
        monkeypatch.setattr("llm_clip_onnx.images.preprocess.decode_lock", lock())
        found.append((Engine(demo_dir, bounds).embed_item(large).tobytes(), len(taken)))
    assert found == [(found[0][0], 0), (found[0][0], 1)]


def test_the_commands_in_the_manual_run(photos, env, tmp_path):
    """Runs each `llm clip embed ...` line in a folder with the files that it names."""
    (tmp_path / "faucets.csv").write_text("id,file,title,price\n1,photos/a.jpg,Brass,20\n")
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table faucets (id, image, title)")
        connection.execute("insert into faucets values (2, ?, 'Chrome')", [picture(3)])
    lines = re.findall(r"^    (llm clip embed .*)$", (ROOT / "docs/collections.md").read_text(), re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        command = [str(BIN / "llm"), *shlex.split(line)[1:]]
        subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    assert [len(rows(tmp_path / name)) for name in ("photos.db", "faucets.db", "shop.db")] == [6, 1, 1]


@pytest.mark.parametrize(
    ("became", "said"),
    [
        ({"embedded": 200}, "200 photos embedded in 2.0 s (100 a second)"),
        ({"embedded": 1}, "1 photo embedded in 2.0 s (0.5 a second)"),
        ({"there": 1}, "nothing new in 1 photo"),
        ({}, "nothing new in 0 photos"),
        ({"moved": 2}, "2 photos moved"),
        ({"embedded": 4000, "there": 1}, "4,001 photos: 4,000 embedded in 2.0 s (2,000 a second), 1 there already"),
        ({"bad": 1, "moved": 1}, "2 photos: 1 moved, 1 that could not be read"),
    ],
)
def test_the_summary_has_units_and_nothing_that_is_zero(became, said):
    assert summary_of(Counter(became), "photo", 2.0) == said
