"""`llm clip forget` leaves nothing of a row: not in the tables, the index, the file's bytes or the WAL."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_collections import thumbnails
from clip_collections.collection import open_collection
from clip_collections.forget import forget
from clip_collections.index import build
from clip_collections.photo_folders import PhotoFolder, remember
from clip_collections.search import search
from llm_clip_onnx.vectors import from_blob
from nasty import saved
from serving import environment, run_llm

NUMBER = 60  # so that the tables have pages that were split


def picture(number: int) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    return saved(Image.fromarray(coarse).resize((120, 90)), "JPEG")


def name(number: int) -> str:
    return f"{number * 7919 % 997:03}-of-a-day-in-июнь.jpg"


@pytest.fixture(scope="module")
def env(demo_dir, tmp_path_factory):
    return environment(tmp_path_factory.mktemp("llm"), CLIP_MODEL_DIR=str(demo_dir))


@pytest.fixture(scope="module")
def filled(env, tmp_path_factory) -> dict[str, Path]:
    """Databases that `llm clip embed` and `llm embed-multi` have made and changed, with contents and an index."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "photos").mkdir()
    made = {maker: folder / f"{maker}.db" for maker in ("embed", "embed-multi")}
    commands = {
        "embed": ["clip", "embed", str(folder / "photos"), "-c", "photos"],
        "embed-multi": ["embed-multi", "photos", "-m", "clip", "--binary", "--files", str(folder / "photos"), "*.jpg"],
    }
    for start in (0, 100):  # the second time all are replaced
        for number in range(NUMBER):
            (folder / "photos" / name(number)).write_bytes(picture(start + number))
        for maker, database in made.items():
            run_llm(*commands[maker], "--store", "-d", str(database), env=env)
            run_llm("clip", "index", str(database), env=env)
    return made


@pytest.fixture(params=["embed", "embed-multi"])
def database(request, filled, tmp_path) -> Path:
    return Path(shutil.copy(filled[request.param], tmp_path / "photos.db"))


def row(conn: sqlite3.Connection, id: str) -> tuple[bytes, bytes, bytes]:
    """Vector blob, stored image and thumbnail."""
    sql = "select embedding, content_blob from embeddings where id = ?"
    small = thumbnails.read_thumbnail(conn, open_collection(conn, "photos"), id)
    return *conn.execute(sql, [id]).fetchone(), small


def bytes_of(database: Path) -> bytes:
    """The bytes of all files of a database, its WAL among them."""
    return b"".join(file.read_bytes() for file in sorted(database.parent.glob(database.name + "*")))


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_nothing_of_it_stays(journal, database):
    ids = [name(3), name(44)]
    with closing(build.connect(str(database))) as conn, closing(build.connect(str(database))) as reader:
        conn.execute(f"pragma journal_mode = {journal}")
        reader.execute("select count(*) from embeddings").fetchall()  # a second program, that keeps the WAL's file
        rows = {id: row(conn, id) for id in [*ids, name(5)]}
        known = [name(3).encode(), *(blob[100:164] for blob in rows[name(3)])]
        assert all(piece in bytes_of(database) for piece in known)
        assert forget(conn, "photos", ids) == (ids, [], True)
        content = bytes_of(database)
        for id in ids:
            vector, image, small = rows[id]
            assert id.encode() not in content
            for blob in (vector, image[700:], small[100:]):  # images begin alike
                assert not any(blob[at : at + 32] in content for at in range(0, len(blob) - 32, 32))
        assert conn.execute("pragma integrity_check").fetchall() == [("ok",)]
        photos = open_collection(conn, "photos")
        assert row(conn, name(5)) == rows[name(5)]
        hits = [hit.id for hit in search(conn, photos, from_blob(rows[ids[0]][0]), NUMBER)]
        assert len(hits) == NUMBER - 2
        assert not set(hits) & set(ids)
        assert conn.execute("select vectors from clip_index").fetchall() == [(NUMBER - 2,)]
        assert conn.execute("select sum(length(rowids)) / 8 from clip_index_chunks").fetchone() == (NUMBER - 2,)


def test_what_a_copy_has_stays(database):
    with closing(build.connect(str(database))) as conn:
        conn.execute(
            "insert into embeddings select collection_id, 'copy', embedding, content, content_blob, content_hash,"
            " metadata, updated from embeddings where id = ?",
            [name(8)],
        )
        vector, image, _ = row(conn, name(8))
        forget(conn, "photos", [name(8)])
        assert row(conn, "copy")[:2] == (vector, image)


def test_the_last_row_can_be_forgotten(database):
    with closing(build.connect(str(database))) as conn:
        forget(conn, "photos", [name(number) for number in range(NUMBER)])
        for table in ("embeddings", "clip_index", "clip_index_chunks"):
            assert conn.execute(f"select count(*) from {table}").fetchone() == (0,)
        assert open_collection(conn, "photos").embed_dim is None


def test_the_command_names_what_it_does_not_find_and_forgets_the_others(database, env):
    arguments = ["clip", "forget", "-d", str(database), "-c", "photos"]
    done = run_llm(*arguments, "нет.jpg", name(3), "a\nb", name(3), env=env, ok=False)
    assert done.stderr.splitlines() == [
        "photos has no 'нет.jpg'",
        "photos has no 'a\\nb'",
        "1 forgotten; llm clip embed and llm clip serve add those again whose files are still in the folder: "
        "delete the files first, or name them with --exclude",
        "Error: 2 of 4 not found in the collection photos",
    ]
    found = run_llm("similar", "photos", name(5), "-d", str(database), "-n", "100", env=env).stdout.splitlines()
    assert name(3) not in {json.loads(line)["id"] for line in found}
    refused = run_llm("clip", "forget", "x", "-d", str(database), "-c", "pets", env=env, ok=False).stderr
    assert refused == "Error: there is no collection 'pets'; there are 'photos'\n"


@pytest.mark.parametrize("named", ["photos", "FOLDER"])
def test_paths_are_forgotten_in_the_database_that_is_remembered(named, database, env, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "shortcut").symlink_to(tmp_path / "photos")
    own = environment(tmp_path / "llm", CLIP_MODEL_DIR=env["CLIP_MODEL_DIR"])
    monkeypatch.setenv("LLM_USER_PATH", own["LLM_USER_PATH"])
    remember(PhotoFolder(tmp_path / "photos", database, "photos"))
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / "photos" / name(1)), f"photos/{name(2)}", f"shortcut/{name(3)}", name(4)]
    collection = str(tmp_path / "photos") if named == "FOLDER" else named
    assert "4 forgotten" in run_llm("clip", "forget", *paths, "-c", collection, env=own).stderr
    with closing(sqlite3.connect(database)) as conn:
        left = {id for (id,) in conn.execute("select id from embeddings")}
    assert left == {name(number) for number in range(NUMBER)} - {name(number) for number in (1, 2, 3, 4)}
    outside = run_llm("clip", "forget", f"elsewhere/{name(5)}", "-c", "photos", env=own, ok=False).stderr
    assert f"photos has no 'elsewhere/{name(5)}'" in outside


def test_a_file_that_another_program_locks_is_left_as_it_is(database, monkeypatch):
    with closing(build.connect(str(database))) as conn, closing(sqlite3.connect(database)) as other:
        other.execute("begin immediate")
        conn.execute("pragma busy_timeout = 0")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            forget(conn, "photos", [name(3)])
        other.rollback()
        assert row(conn, name(3))[0]
        assert conn.execute("select vectors from clip_index").fetchall() == [(NUMBER,)]


def test_a_reader_that_keeps_the_wal_is_said(database):
    with closing(build.connect(str(database))) as conn, closing(build.connect(str(database))) as reader:
        conn.execute("pragma journal_mode = wal")
        conn.execute("pragma busy_timeout = 0")
        reader.execute("begin")
        reader.execute("select count(*) from embeddings").fetchall()
        assert not forget(conn, "photos", [name(3)]).is_clean
        reader.rollback()
        assert forget(conn, "photos", [name(3)]) == ([], [name(3)], True)
        assert name(3).encode() not in bytes_of(database)
