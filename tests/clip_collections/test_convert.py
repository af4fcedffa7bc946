"""`llm clip convert` gives a collection the vectors of another model, all at once, from the best that is left of each row."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image
from sqlite_utils import Database

from clip_collections import commands, convert
from clip_collections.collection import open_collection
from clip_collections.convert import Conversion, Target
from clip_collections.entry import Entry
from clip_collections.forget import forget
from clip_collections.index.build import connect, index
from clip_collections.photo_folders import only_writer
from clip_collections.publish import publish_database
from clip_collections.writer import CollectionWriter, Embedder
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.llm_model import CLIP
from nasty import saved
from serving import environment, run_llm
from several_models import plain_photos, three_models

COLOURS = ("black", "blue", "green", "red", "white", "yellow")


@pytest.fixture
def env(demo_dir, demo_float32_dir, tiny_dir, tmp_path) -> dict[str, str]:
    """An environment with three models: `clip`, `float32` of the same checkpoint, and another, `tiny`."""
    models = three_models(tmp_path / "models", demo_dir, demo_float32_dir, tiny_dir)
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(models))


@pytest.fixture
def photos(tmp_path) -> Path:
    return plain_photos(tmp_path / "photos", COLOURS)


@pytest.fixture
def database(env, photos, tmp_path) -> Path:
    """A database with an indexed collection of `clip`: three rows with a stored content, three with a file alone."""
    file = tmp_path / "photos.db"
    run_llm("clip", "embed", str(photos), "-d", str(file), "-c", "photos", "--store", "--orient", "none", env=env)
    run_llm("clip", "index", str(file), env=env)
    with sqlite3.connect(file) as connection:
        connection.execute("update embeddings set content_blob = null where id > 'green.png'")
    return file


def read(database: Path, sql: str) -> list[tuple]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(sql).fetchall()


def expected(engine: Engine, photos: Path) -> list[tuple]:
    return [
        (f"{colour}.png", engine.embed_item((photos / f"{colour}.png").read_bytes()).tobytes()) for colour in COLOURS
    ]


def test_stored_contents_files_and_thumbnails_are_embedded_anew(env, database, photos, tiny_dir):
    tiny = Engine(tiny_dir)
    [(thumbnail,)] = read(database, "select image from clip_thumbnails where id = 'yellow.png'")
    (photos / "yellow.png").write_bytes(saved(Image.new("RGB", (80, 60), "pink"), "PNG"))  # another picture now
    options = ("--model", "tiny", "-d", str(database), "--folder", str(photos))
    done = run_llm("clip", "convert", "photos", *options, env=env)
    assert (
        "photos: 6 rows embedded with tiny: 3 from stored contents, 2 from files, "
        "1 from thumbnails, whose vectors are less faithful\n"
    ) in done.stderr
    assert "photos: 6 rows can be searched" in done.stderr
    rows = [*expected(tiny, photos)[:-1], ("yellow.png", tiny.embed_item(thumbnail).tobytes())]
    assert read(database, "select id, embedding from embeddings order by id") == rows
    assert read(database, "select model from collections") == [("tiny",)]
    found = run_llm("clip", "search", "photos", "--like", "red.png", "-d", str(database), "--paths", env=env)
    assert found.stdout.splitlines()[0] == "red.png"
    again = run_llm("clip", "embed", str(photos), "-d", str(database), "-c", "photos", env=env)
    assert "1 embedded" in again.stderr  # the pink one
    refused = run_llm("clip", "convert", "photos", *options, env=env, ok=False)
    assert refused.stderr == "Error: the collection 'photos' is of the model 'tiny' already\n"


def test_each_of_the_rows_that_are_embedded_at_once_takes_one_thread(env, database, monkeypatch, threads_opened):
    monkeypatch.setenv("CLIP_MODEL_DIR", env["CLIP_MODEL_DIR"])
    commands.convert.main(["photos", "--model", "tiny", "-d", str(database)], standalone_mode=False)
    assert threads_opened["image"] == 1


def test_without_a_content_the_collection_stays_as_it_is(env, database):
    before = read(database, "select id, embedding from embeddings order by id")
    with sqlite3.connect(database) as connection:
        connection.execute("delete from clip_thumbnails where id = 'red.png'")
    refused = run_llm("clip", "convert", "photos", "--model", "tiny", "-d", str(database), env=env, ok=False)
    assert (
        "1 row, such as 'red.png', cannot be embedded, because neither a stored content nor the file" in refused.stderr
    )
    assert read(database, "select id, embedding from embeddings order by id") == before
    assert read(database, "select model from collections") == [("clip",)]


def test_a_run_that_was_ended_goes_on_where_it_was(database, photos, tiny_dir, monkeypatch):
    monkeypatch.setattr(convert, "SELECT_ROWS", convert.SELECT_ROWS.replace("limit 32", "limit 2"))
    engine, embedded = Engine(tiny_dir), []

    def embed_item(content, orient):
        embedded.append(content)
        return engine.embed_item(content, orient)

    target = Target("tiny", "sha256 of tiny", embed_item, 1)
    with closing(connect(str(database))) as conn:
        run = Conversion(conn, "photos", target, photos).embed()
        assert (next(run), next(run)) == (2, 2)
        run.close()
    assert len(embedded) == 4
    with closing(connect(str(database))) as conn:
        conversion = Conversion(conn, "photos", target, photos)
        assert conversion.count() == 2
        assert list(conversion.embed()) == [2]
        conversion.swap()
        assert conn.execute("select name from sqlite_master where name = 'clip_conversion'").fetchall() == []
    assert len(embedded) == 6
    assert read(database, "select id, embedding from embeddings order by id") == expected(engine, photos)


def test_what_comes_or_changes_meanwhile_is_not_lost(database, photos, tiny_dir):
    target = Target("tiny", "sha256 of tiny", Engine(tiny_dir).embed_item, 1)
    with closing(connect(str(database))) as conn:
        conversion = Conversion(conn, "photos", target, photos)
        assert list(conversion.embed()) == [6]
        conn.execute("update embeddings set content_hash = x'00', content_blob = null where id = 'red.png'")
        with pytest.raises(InputError, match=r"^1 row came while the others were embedded: run it again$"):
            conversion.swap()
        assert conn.execute("select model from collections").fetchall() == [("clip",)]
        another = Conversion(conn, "photos", target._replace(sha256="another model's"), photos)
        assert another.count() == 6


def test_rows_with_any_id_are_embedded_anew(database, tiny_dir):
    engine = Engine(tiny_dir)
    sql = "insert into embeddings (collection_id, id, embedding, content) values (1, cast(? as text), ?, ?)"
    texts = {b"": "nothing", b"caf\xe9": "a coffee", b"zz": "the last one"}
    with sqlite3.connect(database) as connection:
        connection.execute("delete from embeddings")
        connection.executemany(sql, [(id, b"", text) for id, text in texts.items()])
    with closing(connect(str(database))) as conn:
        conversion = Conversion(conn, "photos", Target("tiny", "sha256 of tiny", engine.embed_item, 1), None)
        run = conversion.embed()
        assert next(run) == 3
        assert next(run, None) is None
        assert conversion.swap() == {"content": 3}
    found = read(database, "select cast(id as blob), embedding from embeddings")
    assert dict(found) == {id: engine.embed_item(text).tobytes() for id, text in texts.items()}


def test_a_resumed_run_takes_what_is_better_than_thumbnails_and_another_orientation_begins_anew(
    database, photos, tiny_dir
):
    engine = Engine(tiny_dir)
    target = Target("tiny", "sha256 of tiny", engine.embed_item, 1)
    with closing(connect(str(database))) as conn:
        assert list(Conversion(conn, "photos", target, None).embed()) == [6]
        stored = [(photos / "red.png").read_bytes()]
        conn.execute("update embeddings set content_blob = ? where id = 'red.png'", stored)
        assert Conversion(conn, "photos", target, None).count() == 1
        conversion = Conversion(conn, "photos", target, photos)
        assert conversion.count() == 3
        assert list(conversion.embed()) == [3]
        conn.execute("update clip_collection_facts set orient = 'exif'")
        assert Conversion(conn, "photos", target, photos).count() == 6
        conn.execute("update clip_collection_facts set orient = null")
        conversion = Conversion(conn, "photos", target, photos)
        assert list(conversion.embed()) == [6]
        assert conversion.swap() == {"content": 4, "file": 2}
    assert read(database, "select id, embedding from embeddings order by id") == expected(engine, photos)


def test_a_collection_that_lost_its_index_to_an_interruption_is_named_with_the_command_that_makes_it(
    database, photos, tiny_dir
):
    target = Target("tiny", "sha256 of tiny", Engine(tiny_dir).embed_item, 1)
    said = "^the collection 'photos' is of the model 'tiny' already"
    with closing(connect(str(database))) as conn:
        conversion = Conversion(conn, "photos", target, photos)
        assert list(conversion.embed()) == [6]
        conversion.swap()  # which removes the index; that of the new vectors is built afterwards
        with pytest.raises(InputError, match=f"{said}, and has no index: llm clip index makes it$"):
            Conversion(conn, "photos", target, photos)
        index(conn, open_collection(conn, "photos"))
        with pytest.raises(InputError, match=f"{said}$"):
            Conversion(conn, "photos", target, photos)


def test_images_are_not_converted_to_a_model_with_the_same_image_tower(env, database, tmp_path):
    convert_to = ("--model", "float32", "-d", str(database))
    refused = run_llm("clip", "convert", "photos", *convert_to, env=env, ok=False)
    assert refused.stderr == (
        "Error: the collection 'photos' is searched with the model 'float32' as it is: that embeds images with the image "
        "tower of 'clip', so a conversion would change nothing\n"
    )
    (tmp_path / "words.csv").write_text("id,text\n1,a cat\n")
    run_llm("clip", "embed", str(tmp_path / "words.csv"), "-d", str(database), "-c", "words", "--store", env=env)
    done = run_llm("clip", "convert", "words", *convert_to, env=env)
    assert "words: 1 row embedded with float32: 1 from stored contents\n" in done.stderr


def test_what_is_forgotten_or_published_has_no_vector_of_an_unfinished_conversion(database, photos, tiny_dir, tmp_path):
    engine = Engine(tiny_dir)
    with closing(connect(str(database))) as conn:
        conversion = Conversion(conn, "photos", Target("tiny", "sha256 of tiny", engine.embed_item, 1), photos)
        assert list(conversion.embed()) == [6]
        vector = engine.embed_item((photos / "red.png").read_bytes()).tobytes()
        assert (b"red.png" in database.read_bytes(), vector in database.read_bytes()) == (True, True)
        publish_database(database, tmp_path / "public.db", [])
        assert forget(conn, "photos", ["red.png"]).is_clean
        assert (b"red.png" in database.read_bytes(), vector in database.read_bytes()) == (False, False)
        assert conversion.swap() == {"content": 3, "file": 2}
    assert read(tmp_path / "public.db", "select name from sqlite_master where name = 'clip_conversion'") == []
    assert vector not in (tmp_path / "public.db").read_bytes()


def writer_of_clip(conn: sqlite3.Connection, engine: Engine) -> CollectionWriter:
    embedder = Embedder(CLIP, engine.manifest.embed_dim, engine.embed_item, model_sha256="sha256 of clip")
    return CollectionWriter(Database(conn), "photos", embedder)


def test_who_fills_a_collection_while_it_is_converted_writes_no_vector_of_the_old_model(
    database, photos, demo_engine, tiny_dir
):
    target = Target("tiny", "sha256 of tiny", Engine(tiny_dir).embed_item, 1)
    refusal = "^the collection photos is of the model tiny, to whose embeddings those of clip cannot be compared"
    with closing(sqlite3.connect(database)) as conn, closing(connect(str(database))) as other:
        filling, idle = writer_of_clip(conn, demo_engine), writer_of_clip(conn, demo_engine)
        conversion = Conversion(other, "photos", target, photos)
        assert list(conversion.embed()) == [6]
        conversion.swap()
        with pytest.raises(InputError, match=refusal):
            list(filling.embed([Entry("new", "a text")]))
        idle._is_checked = True
        with pytest.raises(InputError, match=refusal):
            list(idle.embed([]))
    assert read(database, "select count(*) from embeddings where id = 'new'") == [(0,)]
    assert read(database, "select model from clip_collection_facts") == [("sha256 of tiny",)]


def test_a_collection_that_another_program_fills_is_not_converted(env, database, photos, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", env["LLM_USER_PATH"])
    options = ("--model", "tiny", "-d", str(database), "--folder", str(photos))
    with only_writer(database) as is_ours:
        assert is_ours
        refused = run_llm("clip", "convert", "photos", *options, env=env, ok=False)
    said = f"Error: `llm clip serve` or another conversion writes into {database}; end it first\n"
    assert refused.stderr == said
    assert read(database, "select model from collections") == [("clip",)]
