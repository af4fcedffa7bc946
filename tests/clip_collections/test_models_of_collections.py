"""Commands embed into a collection, and search it, with the model that is named, or with the collection's own."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from PIL import Image

from llm_clip_onnx.engine import Engine
from nasty import saved
from serving import environment, run_llm
from several_models import plain_photos, three_models

COLOURS = ("red", "green", "blue")


@pytest.fixture
def folder(demo_dir, demo_float32_dir, tiny_dir, tmp_path) -> Path:
    return three_models(tmp_path / "models", demo_dir, demo_float32_dir, tiny_dir)


@pytest.fixture
def env(folder, tmp_path) -> dict[str, str]:
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(folder))


@pytest.fixture
def photos(tmp_path) -> Path:
    return plain_photos(tmp_path / "photos", COLOURS)


def read(database: Path, sql: str) -> list[tuple]:
    with sqlite3.connect(database) as connection:
        return connection.execute(sql).fetchall()


def test_a_collection_is_filled_and_searched_with_the_model_that_was_named(env, photos, tiny_dir, tmp_path):
    database = tmp_path / "photos.db"
    run_llm("clip", "embed", str(photos), "-d", str(database), "-c", "photos", "--model", "tiny", env=env)
    assert read(database, "select model from collections") == [("tiny",)]
    image = (photos / "red.png").read_bytes()
    [(blob,)] = read(database, "select embedding from embeddings where id = 'red.png'")
    assert blob == Engine(tiny_dir).embed_item(image, "exif").tobytes()
    (photos / "grey.png").write_bytes(saved(Image.new("RGB", (80, 60), "grey"), "PNG"))
    done = run_llm("clip", "embed", str(photos), "-d", str(database), "-c", "photos", env=env)
    assert "1 embedded" in done.stderr
    found = run_llm(
        "clip", "search", "photos", "--image", str(photos / "red.png"), "-d", str(database), "--json", env=env
    )
    best = json.loads(found.stdout)[0]
    assert (best["id"], best["score"]) == ("red.png", 1)


def test_another_model_and_an_unknown_one_are_refused(env, photos, tmp_path):
    database = str(tmp_path / "photos.db")
    into = ("clip", "embed", str(photos), "-d", database, "-c", "photos")
    run_llm(*into, "--model", "tiny", env=env)
    done = run_llm(*into, "--model", "clip", env=env, ok=False)
    assert (
        "the collection photos is of the model tiny, to whose embeddings those of clip cannot be compared"
        in done.stderr
    )
    done = run_llm(*into, "--model", "siglip", env=env, ok=False)
    assert done.stderr == "Error: there is no model 'siglip' here; there are 'clip', 'float32', 'tiny'\n"


def test_a_new_collection_has_the_catalogue_id_of_the_one_model_here(photos, tiny_dir, tmp_path):
    model = tmp_path / "one"
    shutil.copytree(tiny_dir, model)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(model))
    into = ("clip", "embed", str(photos), "-d", str(tmp_path / "photos.db"), "-c")
    run_llm(*into, "before", env=env)
    facts = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(facts | {"id": "datacomp-b32"}))
    for collection in ("before", "after"):
        run_llm(*into, collection, env=env)
    sql = "select name, model from collections order by id"
    assert read(tmp_path / "photos.db", sql) == [("before", "clip"), ("after", "datacomp-b32")]


def test_a_search_in_a_collection_of_a_model_that_is_not_here_names_both(env, folder, photos, tmp_path):
    database = str(tmp_path / "photos.db")
    run_llm("clip", "embed", str(photos), "-d", database, "-c", "photos", "--model", "tiny", env=env)
    shutil.rmtree(folder / "tiny")
    done = run_llm("clip", "search", "photos", "red", "-d", database, env=env, ok=False)
    assert done.stderr == (
        f"Error: the collection 'photos' is of the model 'tiny', which is not in {folder}; there are 'clip', 'float32'\n"
    )
