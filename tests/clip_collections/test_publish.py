"""`llm clip serve --publish` writes what can be deployed, and nothing that the photos' owner has not shown."""

from __future__ import annotations

import getpass
import io
import json
import os
import shutil
import sqlite3
import tomllib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from PIL import ExifTags, Image

import clip_collections.publish
from clip_collections.publish import check_destination, copy_package, publish_database
from clip_collections.published_models import bake_arguments, build_arguments, needed_models
from llm_clip_onnx import __version__
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.model_dir import MANIFEST, Source, Tokens, read_manifest
from made_photos import picture
from nasty import saved
from serving import environment, run_llm, serving
from several_models import three_models

SECRET_CAMERA_OWNER = "Ottilie Unverwechselbar"


def photo(number: int) -> bytes:
    """A JPEG of 120 x 90 that is to be turned, with a place, an owner and a comment."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = SECRET_CAMERA_OWNER
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (48.0, 51.0, 29.61), 3: "E", 4: (2.0, 17.0, 40.21)}
    comment = SECRET_CAMERA_OWNER.encode()
    return saved(Image.open(io.BytesIO(picture(number))), "JPEG", exif=exif.tobytes(), comment=comment)


@pytest.fixture
def env(demo_dir, tmp_path):
    return environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))


@pytest.fixture
def photos(env, tmp_path) -> Path:
    folder = tmp_path / "private-home" / getpass.getuser() / "photos"
    (folder / "trip").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "trip/b.jpg", "gone.jpg"]):
        (folder / name).write_bytes(photo(number))
    named = ["-d", str(tmp_path / "photos.db"), "-c", "photos"]
    run_llm("clip", "embed", str(folder), *named, "--gps", "--store", env=env)
    (folder / "gone.jpg").unlink()  # rowids are not those of a copy
    return folder


def publish(photos: Path, to: Path, *options: str, env: dict[str, str]) -> str:
    database = photos.parents[2] / "photos.db"
    arguments = [str(photos), "--no-open", "-d", str(database), "-c", "photos", "--publish", str(to), *options]
    return run_llm("clip", "serve", *arguments, env=env).stderr


def contents(folder: Path) -> bytes:
    """All that is in a folder's files, and their names, but for the model's weights."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".safetensors"]
    return b"\0".join(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() for path in files)


def secrets(photos: Path) -> list[bytes]:
    words = ["private-home", str(photos), SECRET_CAMERA_OWNER, "48.858", "2.2945", 'latitude"', "GPS", "29.61"]
    return [word.encode() for word in words]


@pytest.mark.parametrize("options", [[], ["--with-originals"]], ids=["", "originals"])
def test_nothing_private_is_published(options, photos, env, tmp_path):
    with closing(sqlite3.connect(tmp_path / "photos.db")) as conn:
        before = b"".join(str(row).encode() for row in conn.execute("select metadata from embeddings"))
    assert b"latitude" in before  # so there is something to find
    publish(photos, tmp_path / "out", *options, env=env)
    database = (tmp_path / "out/deploy/databases/photos.db").read_bytes()
    assert [word for word in secrets(photos) if word in database] == []
    everything = contents(tmp_path / "out")
    assert [word for word in secrets(photos)[:3] if word in everything] == []
    assert b"Exif\0" not in database


def test_the_published_database_searches_and_shows_thumbnails(photos, env, tmp_path):
    publish(photos, tmp_path / "out", env=env)
    published = tmp_path / "out/deploy/databases/photos.db"
    with closing(sqlite3.connect(published)) as conn:
        assert conn.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert conn.execute("pragma journal_mode").fetchone() == ("delete",)
        assert conn.execute("select count(*), count(content_blob) from embeddings").fetchone() == (2, 0)
        assert conn.execute("select vectors from clip_index").fetchone() == (2,)
    with serving("-i", str(published), env=env, log=tmp_path / "log") as url:
        results = httpx.get(f"{url}/-/clip/search/photos/photos.json?q=a+tree").json()["results"]
        assert {row["id"] for row in results} == {"a.jpg", "trip/b.jpg"}
        thumbnails = [httpx.get(row["image"]) for row in results]
        assert [thumbnail.status_code for thumbnail in thumbnails] == [200, 200]
        assert all(Image.open(io.BytesIO(thumbnail.content)).size == (90, 120) for thumbnail in thumbnails)


def test_originals_are_published_upright_on_request(photos, env, tmp_path):
    publish(photos, tmp_path / "out", "--with-originals", env=env)
    with closing(sqlite3.connect(tmp_path / "out/deploy/databases/photos.db")) as conn:
        images = [Image.open(io.BytesIO(blob)) for (blob,) in conn.execute("select content_blob from embeddings")]
    assert [(image.format, image.size, dict(image.getexif())) for image in images] == [("JPEG", (90, 120), {})] * 2


def test_originals_outside_of_the_folder_are_not_published(photos, env, tmp_path):
    (tmp_path / "elsewhere.jpg").write_bytes(photo(7))
    (photos / "link.jpg").symlink_to(tmp_path / "elsewhere.jpg")
    (photos / "within.jpg").symlink_to(photos / "a.jpg")
    said = publish(photos, tmp_path / "out", "--with-originals", env=env)
    assert "photos: 1 photo published without the original, which is outside of the folder" in said
    with closing(sqlite3.connect(tmp_path / "out/deploy/databases/photos.db")) as conn:
        without = conn.execute("select id from embeddings where content_blob is null").fetchall()
        assert without == [("link.jpg",)]
        assert conn.execute("select count(*) from embeddings").fetchone() == (4,)


def test_originals_of_a_database_need_a_folder_that_is_known(photos, env, tmp_path):
    arguments = ["clip", "serve", str(tmp_path / "photos.db"), "--publish", str(tmp_path / "out"), "--with-originals"]
    said = run_llm(*arguments, env=env, ok=False).stderr
    assert f"{tmp_path}/photos.db has no folder that is known and there, so --with-originals finds no photos" in said
    assert not (tmp_path / "out").exists()
    publish(photos, tmp_path / "first", env=env)  # remembers the folder
    run_llm(*arguments, env=env)
    with closing(sqlite3.connect(tmp_path / "out/deploy/databases/photos.db")) as conn:
        assert conn.execute("select count(*), count(content_blob) from embeddings").fetchone() == (2, 2)


def test_a_clone_publishes_what_its_dockerfile_needs(photos, env, tmp_path):
    publish(photos, tmp_path / "out", env=env)
    said = publish(photos, tmp_path / "out", env=env)  # again, over the first
    out = tmp_path / "out"
    assert f"  fly apps create YOUR-NAME\n  fly deploy {out} --app YOUR-NAME --ha=false\n" in said
    assert "app" not in tomllib.loads((out / "fly.toml").read_text())
    lines = (out / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert [name for names in copied for name in names if not (out / name).exists()] == []
    arguments = tomllib.loads((out / "fly.toml").read_text())["build"]["args"]
    assert arguments == {"CLIP_MODEL": "demo/checkpoint", "LABELS": "demo/emoji.txt", "VERIFY": "0"}
    assert "ARG CLIP_MODEL=demo/checkpoint" in lines


def test_without_a_clone_the_folder_has_the_model_and_a_dockerfile_of_its_own(photos, env, demo_dir, tmp_path):
    place = copy_package({"clip": demo_dir}, tmp_path / "out")
    publish_database(tmp_path / "photos.db", place / "photos.db", [])
    out = tmp_path / "out"
    lines = (out / "Dockerfile").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("COPY ")] == ["model", "srv"]
    assert "VERSION" not in (out / "Dockerfile").read_text()
    fly = tomllib.loads((out / "fly.toml").read_text())
    assert ("app" in fly, fly["http_service"]["internal_port"]) == (False, 8080)
    assert json.loads((out / "srv/metadata.json").read_text())["plugins"]
    assert (out / "srv/settings.json").read_bytes() == (
        clip_collections.publish.CLONE / "deploy/settings.json"
    ).read_bytes()
    assert str(demo_dir).encode() not in contents(out)
    own = environment(tmp_path / "own", CLIP_MODEL_DIR=str(out / "model"), SLEEP_AFTER="10m")
    with serving(str(out / "srv"), env=own, log=tmp_path / "log") as url:
        assert len(httpx.get(f"{url}/-/clip/search/photos/photos.json?q=a+tree").json()["results"]) == 3


@pytest.fixture
def two_databases(demo_dir, demo_float32_dir, tiny_dir, tmp_path) -> tuple[Path, list[str], dict[str, str]]:
    """A folder of models, databases of two of them and of one that is not there, and the environment for them."""
    models = three_models(tmp_path / "models", demo_dir, demo_float32_dir, tiny_dir)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(models))
    (checkpoint := tmp_path / "checkpoint").mkdir()  # that of the fixture may be gone
    (checkpoint / "config.json").write_text("{}")
    manifest = read_manifest(models / "tiny")
    source = replace(manifest.source, id=str(checkpoint))
    (models / "tiny" / MANIFEST).write_text(replace(manifest, source=source).to_json())
    (tmp_path / "words.csv").write_text("id,text\n1,a cat\n2,a tree\n")
    for name in ("clip", "tiny"):
        to = ["-d", str(tmp_path / f"{name}.db"), "-c", f"of {name}", "--model", name]
        run_llm("clip", "embed", str(tmp_path / "words.csv"), *to, "--store", env=env)
    with closing(sqlite3.connect(tmp_path / "tiny.db")) as conn, conn:
        conn.execute("insert into collections (name, model) values ('of another', 'ada-002')")
    return models, [str(tmp_path / "clip.db"), str(tmp_path / "tiny.db")], env


def test_a_clone_publishes_all_models_of_the_collections(two_databases, tmp_path):
    _, databases, env = two_databases
    said = run_llm("clip", "serve", *databases, "--publish", str(tmp_path / "out"), env=env).stderr
    assert (
        "'of another' is published without its model, 'ada-002': there is no model 'ada-002' here; there are 'clip', "
        "'float32', 'tiny'\n"
    ) in said
    fly, dockerfile = (tmp_path / "out/fly.toml").read_text(), (tmp_path / "out/Dockerfile").read_text()
    models = "deploy/checkpoints/clip deploy/checkpoints/tiny"
    arguments = {"CLIP_MODELS": models, "LABELS": "demo/emoji.txt", "VERIFY": "0"}
    assert tomllib.loads(fly)["build"]["args"] == arguments
    assert tomllib.loads(fly)["vm"] == [{"size": "shared-cpu-1x", "memory": "1gb"}]
    assert f'\nARG CLIP_MODELS="{models}"\n' in dockerfile
    for model in models.split():
        assert (tmp_path / "out" / model / "config.json").exists()


def test_without_a_clone_each_collection_is_searched_with_its_own_model(two_databases, tmp_path):
    models, databases, _ = two_databases
    out, files = tmp_path / "out", [Path(file) for file in databases]
    copy_package({"clip": models / "clip"}, out)  # what was published before is replaced
    place = copy_package(needed_models(files, models), out)
    assert sorted(path.name for path in (out / "model").iterdir()) == ["clip", "tiny"]
    for file in files:
        publish_database(file, place / file.name, [])
    assert tomllib.loads((out / "fly.toml").read_text())["vm"][0]["memory"] == "1gb"
    own = environment(tmp_path / "own", CLIP_MODEL_DIR=str(out / "model"), SLEEP_AFTER="10m")
    with serving(str(out / "srv"), env=own, log=tmp_path / "log") as url:
        for name in ("clip", "tiny"):
            answer = httpx.get(f"{url}/-/clip/search/{name}/of~20{name}.json?q=a+tree").json()
            assert (answer["model"], answer["results"][0]["id"]) == (name, "2")


def test_models_that_would_get_another_id_are_not_published(demo_dir, tmp_path):
    models = {id: shutil.copytree(demo_dir, tmp_path / id) for id in ("one", "two")}
    manifest = replace(read_manifest(demo_dir), source=Source("owner/two", None, {}, None))
    for path in models.values():
        (path / MANIFEST).write_text(manifest.to_json())
    with pytest.raises(InputError, match=r"^the container would serve 'one' as 'two': convert its collections to a"):
        build_arguments(models, tmp_path / "out")
    assert build_arguments({"two": models["two"]}, tmp_path / "out") == {"CLIP_MODELS": "owner/two"}
    (models["one"] / MANIFEST).write_text(replace(manifest, id="datacomp-b32").to_json())
    arguments = build_arguments({"datacomp-b32": models["one"], "two": models["two"]}, tmp_path / "out")
    assert arguments == {"CLIP_MODELS": "datacomp-b32 owner/two"}


def test_alone_a_model_that_is_not_clip_is_published_by_its_own_id(two_databases, tmp_path):
    """A collection of `clip`, which is not there, is not searched with the vectors of another model."""
    models, databases, _ = two_databases
    shutil.rmtree(models / "clip")
    files = [Path(file) for file in databases]
    place = copy_package(needed_models(files, models), tmp_path / "out")
    for file in files:
        publish_database(file, place / file.name, [])
    own = environment(tmp_path / "own", CLIP_MODEL_DIR=str(tmp_path / "out/model"), SLEEP_AFTER="10m")
    with serving(str(tmp_path / "out/srv"), env=own, log=tmp_path / "log") as url:
        answers = [httpx.get(f"{url}/-/clip/search/{name}/of~20{name}.json?q=a+tree") for name in ("clip", "tiny")]
    assert [answer.status_code for answer in answers] == [400, 200]
    assert "clip" in answers[0].json()["error"]


def test_a_model_that_is_published_where_it_was_copied_to_before_stays(demo_dir, tmp_path):
    copy_package({"clip": demo_dir}, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out/model").iterdir())
    copy_package({"clip": tmp_path / "out/model"}, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/model").iterdir()) == files
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Dockerfile", "fly.toml", "model", "srv"]


def test_a_model_that_could_search_what_is_published_is_named_if_it_is_not(two_databases, capsys):
    models, databases, _ = two_databases
    needed_models([Path(databases[0])], models)
    assert capsys.readouterr().err == "'float32' is not published, as no collection is of it\n"


def test_the_public_name_is_without_the_hash_of_the_path(photos, env, tmp_path):
    run_llm("clip", "serve", str(photos), "--publish", str(tmp_path / "out"), env=env)
    assert [path.name for path in (tmp_path / "out/deploy/databases").glob("*.db")] == ["photos.db"]


def test_another_folder_is_not_overwritten(photos, env, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    arguments = [str(photos), "--no-open", "--publish", str(tmp_path / "mine")]
    done = run_llm("clip", "serve", *arguments, env=env, ok=False)
    assert f"{tmp_path}/mine is not empty, and was not written by --publish" in done.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    assert not list(Path(env["LLM_USER_PATH"], "clip").glob("*.db"))  # it was said before anything was embedded


def test_nothing_is_published_among_the_photos_or_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for place in ("photos", "photos/new/public", "link/public"):
        with pytest.raises(InputError, match="nothing is written among the photos"):
            check_destination(tmp_path / place, [tmp_path / "photos"])
    check_destination(tmp_path / "photos-public", [tmp_path / "photos"])
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        check_destination(tmp_path / "new" / "public", [tmp_path / "photos"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "photos"]


def test_a_text_tower_is_published_with_the_checkpoint_of_its_images(demo_dir, tmp_path):
    sources = {}
    for name in ("text", "images"):
        (folder := tmp_path / name / "checkpoint").mkdir(parents=True)
        (folder / "config.json").write_text(name)
        sources[name] = Source(str(folder), None, {"model.safetensors": name}, None)
    manifest = replace(read_manifest(demo_dir), source=sources["text"], images=sources["images"])
    assert bake_arguments(manifest, tmp_path / "out") == {
        "CLIP_MODEL": "deploy/checkpoints/checkpoint",
        "CLIP_IMAGES": "deploy/checkpoints/checkpoint-images",
        "REFERENCE": "sentence-transformers",
    }
    copies = tmp_path / "out/deploy/checkpoints"
    assert (copies / "checkpoint/config.json").read_text() == "text"
    assert (copies / "checkpoint-images/config.json").read_text() == "images"
    images = Source("owner/images", "0123", {}, None)
    assert bake_arguments(replace(manifest, images=images), tmp_path / "out") == {
        "CLIP_MODEL": "deploy/checkpoints/checkpoint",
        "CLIP_IMAGES": "owner/images",
        "REFERENCE": "sentence-transformers",
        "CLIP_IMAGES_REVISION": "0123",
    }


def test_a_siglip_is_baked_again_and_compared_but_without_imagenet(demo_dir, tmp_path):
    manifest = replace(read_manifest(demo_dir), source=Source("owner/siglip", "0123", {}, None), logit_bias=-10.0)
    assert bake_arguments(manifest, tmp_path / "out") == {
        "CLIP_MODEL": "owner/siglip",
        "CLIP_REVISION": "0123",
        "LABELS": "",
    }


def test_the_published_manifest_names_no_folder_and_hub_ids_in_full(demo_dir, tmp_path):
    (private := tmp_path / "private-home" / "images").mkdir(parents=True)
    gone, hub = Source(str(tmp_path / "private-home" / "gone"), None, {}, None), Source("owner/model", "0123", {}, None)
    shutil.copytree(demo_dir, model := tmp_path / "model")
    for source, images, ids in (
        (hub, Source(str(private), None, {}, None), ("owner/model", "images")),
        (gone, hub, ("gone", "owner/model")),
    ):
        manifest = replace(read_manifest(demo_dir), source=source, images=images)
        (model / MANIFEST).write_text(manifest.to_json())
        copy_package({"clip": model}, tmp_path / "out")
        published = read_manifest(tmp_path / "out/model")
        assert published.images
        assert (published.source.id, published.images.id) == ids
        assert b"private-home" not in (tmp_path / "out/model" / MANIFEST).read_bytes()


def test_the_published_dockerfile_installs_what_reads_texts_as_open_clip(demo_dir, tmp_path):
    shutil.copytree(demo_dir, model := tmp_path / "model")
    manifest = read_manifest(demo_dir)
    tokens = Tokens("<|startoftext|>", "<|endoftext|>", "<|endoftext|>", ())
    for library, package in (("transformers", "datasette-clip"), ("open_clip", "datasette-clip[open-clip]")):
        (model / MANIFEST).write_text(replace(manifest, tokens=replace(tokens, library=library)).to_json())
        copy_package({"clip": model}, tmp_path / "out")
        assert f'"{package}=={__version__}"' in (tmp_path / "out/Dockerfile").read_text()
