"""`llm clip search` prints what the pages find, as scores and paths, as paths for other programs, and as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from clip_collections.photo_folders import PhotoFolder, database_of, remember
from conftest import ROOT
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import cosine
from serving import BIN, environment, run_llm
from several_models import three_models

EMOJI = {"red heart": "❤", "cat": "🐱", "snowman": "⛄", "blue heart": "💙"}


@pytest.fixture
def env(demo_dir, tmp_path, monkeypatch):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    monkeypatch.setenv("LLM_USER_PATH", env["LLM_USER_PATH"])
    return env


@pytest.fixture
def photos(env, tmp_path) -> Path:
    """A folder of pictures, as `llm clip serve` embeds it."""
    folder = tmp_path / "my photos"
    folder.mkdir()
    with sqlite3.connect(ROOT / "demo/emoji.db") as conn:
        for label, image in conn.execute("select label, image from emoji order by label limit 40"):
            (folder / f"{label.replace('/', '-').replace(':', '')}.png").write_bytes(image)
    database = database_of(folder)
    run_llm("clip", "embed", str(folder), "-d", str(database), "-c", "my photos", env=env)
    remember(PhotoFolder(folder, database, "my photos"))
    return folder


def search(*arguments: str, env: dict[str, str], ok: bool = True) -> str:
    done = run_llm("clip", "search", *arguments, env=env, ok=ok)
    return done.stdout if ok else done.stderr


def test_scores_and_paths_best_first(photos, env, demo_engine):
    lines = search("my photos", "a heart", "-n", "3", env=env).splitlines()
    scores = [float(line.split("  ")[0]) for line in lines]
    paths = [Path(line.split("  ", 1)[1]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert [path.parent for path in paths] == [photos] * 3
    expected = cosine(demo_engine.embed_text(["a heart"])[0], demo_engine.embed_item(paths[0].read_bytes()))
    assert scores[0] == pytest.approx(expected, abs=6e-5)  # of four digits


@pytest.mark.parametrize("collection", ["my photos", "{photos}", "{photos}/", "."])
def test_a_collection_is_named_by_its_name_or_its_folder(collection, photos, env, monkeypatch):
    monkeypatch.chdir(photos)
    paths = search(collection.format(photos=photos), "a heart", "--paths", env=env).splitlines()
    assert len(paths) == 10
    assert all(Path(path).is_file() for path in paths)


def test_paths_end_with_nul_on_request_and_go_into_a_pipe_that_closes(photos, env):
    paths = search("my photos", "a heart", "-0", "-n", "2", env=env).split("\0")
    assert [Path(path).is_file() for path in paths[:2]] == [True, True]
    assert paths[2:] == [""]
    command = f"'{BIN}/llm' clip search 'my photos' 'a heart' --json -n 40 | true"
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_json_is_an_array_with_ids_scores_and_paths(photos, env):
    rows = json.loads(search("my photos", "a heart", "--json", "-n", "2", env=env))
    assert [row.keys() for row in rows] == [{"id", "score", "path", "metadata"}] * 2
    assert [row["path"] for row in rows] == [str(photos / row["id"]) for row in rows]


def test_the_query_algebra_is_that_of_the_pages(photos, env):
    first, second, *_ = sorted(path.name for path in photos.iterdir())
    by_id = json.loads(search("my photos", f'id:"{first}"', "--json", env=env))
    assert by_id[0]["id"] == first
    assert json.loads(search("my photos", "--like", first, "--json", env=env)) == by_id
    by_image = json.loads(search("my photos", "--image", str(photos / first), "--json", env=env))
    assert [row["id"] for row in by_image] == [row["id"] for row in by_id]
    without = json.loads(search("my photos", f'id:"{second}" - id:"{first}"', "--json", "-n", "40", env=env))
    assert (without[0]["id"], without[-1]["id"]) == (second, first)


def test_weak_matches_are_said_in_the_list_and_json_has_the_floor(photos, env):
    run_llm("clip", "index", str(database_of(photos)), env=env)
    rows = json.loads(search("my photos", "a red apple", "--json", "-n", "40", env=env))
    [floor] = {row["floor"] for row in rows}
    lines = search("my photos", "a red apple", "-n", "40", env=env).splitlines()
    strong = [row for row in rows if row["score"] >= floor]
    assert 0 < len(strong) < 40
    assert lines.pop(len(strong)) == "Weak matches from here."
    assert [line.split("  ", 1)[1] for line in lines] == [row["path"] for row in rows]
    assert len(search("my photos", "a red apple", "--paths", "-n", "40", env=env).splitlines()) == 40
    nothing = search("my photos", "an unpaid invoice", env=env).splitlines()
    assert nothing[0] == "Perhaps nothing here fits these words: all of these are weak matches."
    assert len(nothing) == 11
    first = min(path.name for path in photos.iterdir())
    assert "floor" not in json.loads(search("my photos", "--like", first, "--json", env=env))[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none", "a heart"], "there is no collection 'none' of `llm clip serve`; there are 'my photos'"),
        (["my photos"], "there is nothing to search for; expected a query, --image or --like"),
        (["my photos", " "], "there is nothing to search for; expected a query, --image or --like"),
        (["my photos", "--like", "none.jpg"], "has no row with the id 'none.jpg'"),
        (["my photos", "image:?"], "'?' is not base64url"),
        (["my photos", "--image", __file__], f"{__file__}: not an image but text ("),
        (["my photos", "vector:AAAA"], "a BLOB of 3 bytes is not a vector blob"),
    ],
)
def test_what_cannot_be_searched_is_said_in_a_sentence(arguments, sentence, photos, env):
    error = search(*arguments, env=env, ok=False)
    assert sentence in error
    assert "Traceback" not in error


def test_a_folder_that_is_not_embedded_yet_is_said(env, tmp_path):
    (tmp_path / "new").mkdir()
    error = search(str(tmp_path / "new"), "a heart", env=env, ok=False)
    assert f"the photos of {tmp_path}/new are not embedded yet: `llm clip serve {tmp_path}/new` does it" in error


def test_any_database_can_be_named_and_prints_ids(photos, env, tmp_path):
    shutil.copy(database_of(photos), tmp_path / "other.db")
    lines = search("my photos", "a heart", "-d", str(tmp_path / "other.db"), "--paths", env=env).splitlines()
    assert set(lines) <= set(os.listdir(photos))


def test_of_two_databases_with_the_collection_one_must_be_named(photos, env, tmp_path):
    shutil.copy(database_of(photos), tmp_path / "other.db")
    remember(PhotoFolder(photos, tmp_path / "other.db", "my photos"))
    error = search("my photos", "a heart", env=env, ok=False)
    assert "the collection 'my photos' is in 2 databases; choose one: " in error
    assert f"-d {tmp_path}/other.db" in error


def test_another_model_embeds_the_query_if_its_vectors_can_be_compared(
    photos, env, demo_dir, demo_float32_dir, tiny_dir, tmp_path
):
    env = env | {"CLIP_MODEL_DIR": str(three_models(tmp_path / "models", demo_dir, demo_float32_dir, tiny_dir))}
    run_llm("clip", "index", str(database_of(photos)), env=env)
    rows = json.loads(search("my photos", "a heart", "--model", "float32", "--json", env=env))
    image = (photos / rows[0]["id"]).read_bytes()
    expected = cosine(Engine(demo_float32_dir).embed_item("a heart"), Engine(demo_dir).embed_item(image))
    assert rows[0]["score"] == pytest.approx(expected, abs=6e-5)  # of four digits
    own = json.loads(search("my photos", "a heart", "--model", "clip", "--json", env=env))
    assert ("floor" in own[0], "floor" in rows[0]) == (True, False)
    assert own[0]["score"] != rows[0]["score"]
    assert search("my photos", "a heart", "--model", "tiny", env=env, ok=False) == (
        "Error: collection 'my photos' holds vectors of model 'clip', and 'tiny' is asked, whose vectors cannot be "
        "compared with them\n"
    )
    assert search("my photos", "a heart", "--model", "none", env=env, ok=False) == (
        "Error: there is no model 'none' here; there are 'clip', 'float32', 'tiny'\n"
    )
