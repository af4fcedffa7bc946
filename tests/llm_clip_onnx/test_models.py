"""A folder of model directories is several models, each under its id, and as many bytes of towers are open as may be."""

from __future__ import annotations

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_clip_onnx import engine, models, towers
from llm_clip_onnx.engine import Engine, default_engine, engine_of
from llm_clip_onnx.errors import InputError, ModelDirError
from llm_clip_onnx.model_dir import File, Manifest, read_manifest
from nasty import photo, saved
from patience import PATIENCE_S
from serving import environment, run_llm

PNG = saved(photo(64, 64), "PNG")


def with_id(directory: Path, id: str) -> Path:
    """The model directory, whose manifest says this id from now on."""
    file = directory / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"id": id}))
    return directory


@pytest.fixture
def folder(demo_dir, tiny_dir, no_image_tower, tmp_path, monkeypatch) -> Path:
    """A folder with the demo model under the id `clip`, a tiny one without an id, and a file beside them."""
    shutil.copytree(demo_dir, tmp_path / "models" / "demo")
    shutil.copytree(tiny_dir, tmp_path / "models" / "tiny")
    with_id(tmp_path / "models" / "demo", "clip")
    (tmp_path / "models" / "notes.txt").write_text("two models")
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "models"))
    monkeypatch.setattr(engine, "_engines", {})
    return tmp_path / "models"


@pytest.fixture
def bound(monkeypatch):
    """A function that bounds the bytes of open towers for one test."""
    monkeypatch.setattr(models, "open_bytes", models.MODELS_BYTES)
    return models.keep_open


def size(directory: Path, *towers_: str) -> int:
    manifest = read_manifest(directory)
    return sum(manifest.files[f"{tower}.{end}"].bytes for tower in towers_ for end in ("onnx", "bin"))


def test_each_directory_of_a_folder_has_its_id(folder):
    assert models.ids() == models.choices() == ["clip", "tiny"]
    assert models.path_of("clip") == folder / "demo"
    assert models.path_of("tiny") == folder / "tiny"
    assert default_engine() is engine_of("clip")
    with pytest.raises(InputError, match=r"^there is no model 'demo' here; there are 'clip', 'tiny'$"):
        models.path_of("demo")


def test_one_directory_is_clip_and_its_id_in_the_catalogue(demo_dir, tmp_path, monkeypatch):
    one = with_id(shutil.copytree(demo_dir, tmp_path / "one"), "datacomp-b32-256")
    monkeypatch.setenv("CLIP_MODEL_DIR", str(one))
    assert models.ids() == ["clip", "datacomp-b32-256"]
    assert models.choices() == []
    assert engine_of("clip") is engine_of("datacomp-b32-256") is default_engine()


def test_without_one_of_that_id_there_is_no_clip(folder):
    with_id(folder / "demo", "datacomp-b32-256")
    assert models.ids() == ["datacomp-b32-256", "tiny"]
    assert default_engine().path == folder / "demo"
    with pytest.raises(InputError, match=r"^there is no model 'clip' here; there are 'datacomp-b32-256', 'tiny'$"):
        engine_of("clip")


def test_a_single_clip_is_found_without_a_look_at_its_manifest(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr(models, "id_in", None)
    assert models.path_of(models.default_id()) == demo_dir


def test_two_directories_of_one_id_are_refused_and_the_others_go_on(folder):
    shutil.copytree(folder / "tiny", folder / "zwei")
    with_id(folder / "zwei", "tiny")
    sentence = f"{folder}/tiny and {folder}/zwei have the same model id 'tiny', so none of them is served; leave one in the folder"
    with pytest.raises(ModelDirError) as raised:
        engine_of("tiny")
    assert [str(raised.value)] == models.twins() == [sentence]
    assert models.ids() == ["clip"]
    assert engine_of("clip").embed_item("red").shape == (512,)


def test_a_folder_in_which_all_have_one_id_says_so(folder):
    with_id(folder / "tiny", "same")
    with_id(folder / "demo", "same")
    with pytest.raises(
        ModelDirError, match=r"demo and .*tiny have the same model id 'same', so none of them is served"
    ):
        default_engine()


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"id": 3}', '{"id": "clip"'])
def test_a_damaged_directory_says_so_when_it_is_called_and_the_others_go_on(manifest, folder):
    (folder / "tiny" / "manifest.json").write_text(manifest)
    assert models.ids() == ["clip", "tiny"]
    with pytest.raises(ModelDirError, match=f"^{folder}/tiny/manifest.json cannot be read"):
        engine_of("tiny")
    assert engine_of("clip").embed_item("red").shape == (512,)


def test_llm_has_them_all(folder, demo_engine, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(folder))
    assert {"ClipModel: clip", "ClipModel: tiny"} <= set(run_llm("embed-models", env=env).stdout.splitlines())
    embedding = json.loads(run_llm("embed", "-m", "tiny", "-c", "red", env=env).stdout)
    assert embedding == Engine(folder / "tiny").embed_item("red").tolist() != demo_engine.embed_item("red").tolist()
    (folder / "tiny" / "text.bin").write_bytes(b"")
    done = run_llm("embed", "-m", "tiny", "-c", "red", env=env, ok=False)
    assert done.stderr.startswith(f"Error: tiny: {folder}/tiny/text.bin has 0 bytes, its manifest says ")


def test_info_lists_the_models_of_a_folder_and_says_what_is_wrong_with_others(folder, tmp_path):
    for name in ("damaged", "twin", "zwei"):
        shutil.copytree(folder / "tiny", folder / name)
    (folder / "damaged" / "text.bin").unlink()
    with_id(with_id(folder / "twin", "other").parent / "zwei", "other")
    twins = f"{folder}/twin and {folder}/zwei have the same model id 'other', so none of them is served; leave one in the folder"
    sources = {name: read_manifest(folder / name).source.id for name in ("demo", "tiny")}
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(folder))
    lines = run_llm("clip", "info", env=env).stdout.splitlines()
    assert lines[0] == f"clip     {folder}/demo, of {sources['demo']}"
    assert lines[1].startswith(
        f"damaged  {folder}/damaged/text.bin cannot be read (No such file or directory): bake aga"
    )
    assert lines[2:] == [f"other    {twins}"] * 2 + [f"tiny     {folder}/tiny, of {sources['tiny']}"]
    members = json.loads(run_llm("clip", "info", str(folder), "--json", env=env).stdout)
    assert [(member["id"], member["directory"]) for member in members] == [
        (id, str(folder / name))
        for id, name in zip(
            ("clip", "damaged", "other", "other", "tiny"), ("demo", "damaged", "twin", "zwei", "tiny"), strict=True
        )
    ]
    assert [member.get("error") for member in members][2:] == [twins, twins, None]
    assert members[0] == read_manifest(folder / "demo").to_dict() | members[0]
    assert members[0]["embed_dim"] == 512


def changed_tower(manifest: Manifest, name: str) -> Manifest:
    """The manifest with another sha256 of a file."""
    return replace(manifest, files=manifest.files | {name: File(manifest.files[name].bytes, "0" * 64)})


def test_vectors_can_be_compared_if_the_image_towers_are_the_same(demo_dir):
    copy = read_manifest(demo_dir)
    of_openai = replace(copy, source=replace(copy.source, weights_sha256={"model.safetensors": "another file's"}))
    assert models.exchangeable(copy, changed_tower(copy, "image.bin"))  # of one checkpoint, in another precision
    assert models.exchangeable(copy, of_openai)  # of two, whose tensors are the same
    assert models.exchangeable(copy, changed_tower(of_openai, "text.bin"))
    assert not models.exchangeable(copy, changed_tower(of_openai, "image.bin"))
    assert not models.exchangeable(copy, changed_tower(of_openai, "image.onnx"))
    squashed = replace(of_openai, preprocess=replace(copy.preprocess, resize="squash"))
    assert not models.exchangeable(copy, squashed)
    assert not models.exchangeable(copy, replace(copy, embed_dim=768))


def test_vectors_can_be_compared_if_the_catalogue_says_so(demo_dir):
    clip = replace(read_manifest(demo_dir), id="clip")
    source = replace(clip.source, weights_sha256={"model.safetensors": "another file's"})
    other = changed_tower(replace(clip, source=source), "image.bin")
    ids = ("multilingual", "clip", "datacomp-b32", "unknown", None)
    assert [models.exchangeable(clip, replace(other, id=id)) for id in ids] == [True, True, False, False, False]
    assert not models.exchangeable(replace(clip, id=None), replace(other, id=None))


def test_the_least_recently_used_model_closes_beyond_the_bytes(folder, bound):
    bound(size(folder / "tiny", "text", "image"))
    clip, tiny = engine_of("clip"), engine_of("tiny")
    expected = tiny.embed_item(PNG), tiny.embed_item("red")
    assert tiny.open_towers == ["text", "image"]
    clip.embed_item("red")
    assert (clip.open_towers, tiny.open_towers) == (["text"], [])
    assert engine_of("tiny") is tiny
    np.testing.assert_array_equal(tiny.embed_item("red"), expected[1])  # kept, without its tower
    np.testing.assert_array_equal(tiny.embed_item(PNG), expected[0])
    assert (clip.open_towers, tiny.open_towers) == (["text"], ["image"])  # for which there is room
    tiny.embed_item("blue")
    assert (clip.open_towers, tiny.open_towers) == ([], ["text", "image"])


def test_one_model_stays_open_however_small_the_bound(folder, bound):
    bound(1)
    tiny = engine_of("tiny")
    tiny.embed_item(PNG)
    tiny.embed_item("red")
    assert tiny.open_towers == ["text", "image"]


def test_a_model_that_closes_while_it_embeds_finishes(folder, bound, monkeypatch):
    bound(1)
    tiny, entered, closed = engine_of("tiny"), threading.Event(), threading.Event()
    expected, genuine = tiny.embed_item(PNG), towers.run_image

    def slowly(tower, pixels):
        entered.set()
        assert closed.wait(60)
        return genuine(tower, pixels)

    monkeypatch.setattr(towers, "run_image", slowly)
    found: list = []
    thread = threading.Thread(target=lambda: found.append(tiny.embed_item(PNG)))
    thread.start()
    assert entered.wait(60)
    engine_of("clip").embed_item("red")
    assert tiny.open_towers == []
    closed.set()
    thread.join()
    np.testing.assert_array_equal(found[0], expected)


def test_towers_that_are_opened_at_once_count_before_they_are_open(folder, bound, monkeypatch):
    bound(max(size(folder / name, "text") for name in ("demo", "tiny")))
    clip, tiny = engine_of("clip"), engine_of("tiny")
    both_begun, genuine = threading.Barrier(2), towers.open_tower

    def open_tower(graph, *threads, **more):
        if graph.name.startswith("text"):
            both_begun.wait(PATIENCE_S)
        return genuine(graph, *threads, **more)

    monkeypatch.setattr(towers, "open_tower", open_tower)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda opened: opened.open_text(), (clip, tiny)))
    assert (clip.open_towers, tiny.open_towers) == (["text"], ["text"])
    engine_of("tiny")
    assert (clip.open_towers, tiny.open_towers) == ([], ["text"])


def test_a_tower_that_cannot_be_opened_takes_no_room(folder, bound, monkeypatch):
    bound(size(folder / "demo", "text") + size(folder / "tiny", "text", "image") - 1)
    engine_of("clip").open_text()
    with monkeypatch.context() as patched:
        patched.setattr(towers, "open_tower", lambda *graph, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine_of("tiny").open_image()
    assert engine_of("tiny").held == {}


def test_models_with_the_same_image_tower_have_it_open_once(folder, bound, monkeypatch):
    shutil.copytree(folder / "demo", folder / "other")
    with_id(folder / "other", "other")
    bound(size(folder / "demo", "image") * 2 - 1)
    opened, genuine = [], towers.open_tower

    def open_tower(graph, *threads, **more):
        opened.append(graph.name.partition(".")[0])
        return genuine(graph, *threads, **more)

    monkeypatch.setattr(towers, "open_tower", open_tower)
    clip, other = engine_of("clip"), engine_of("other")
    np.testing.assert_array_equal(clip.embed_item(PNG), other.embed_item(PNG))
    assert (clip.open_towers, other.open_towers) == (["image"], ["image"])
    assert opened.count("image") == 1


def test_vectors_of_one_checkpoint_are_exchangeable(demo_dir, demo_float32_dir, tiny_dir):
    demo, float32, tiny = map(read_manifest, (demo_dir, demo_float32_dir, tiny_dir))
    assert models.exchangeable(demo, float32)
    assert not models.exchangeable(demo, tiny)
