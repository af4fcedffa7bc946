"""The measure of fidelity detects bad towers, and published embeddings are compared number by number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from llm_clip_onnx.bake import fidelity
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.bake.verify import verify
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.model_dir import sha256_of
from llm_clip_onnx.vectors import unit


def test_there_are_enough_inputs_and_no_two_are_alike():
    assert len(set(TEXTS)) == len(TEXTS) >= 64
    pictures = {image.tobytes() for image in made_images().values()}
    assert len(pictures) == 16


def test_the_made_images_are_the_same_each_time():
    again = made_images()
    assert all(again[name].tobytes() == image.tobytes() for name, image in made_images().items())


def test_plain_cosine_flatters_and_centred_cosine_does_not():
    """The embeddings share a large part, as CLIP's do, and the tower gets only that part right."""
    random = np.random.default_rng(0)
    shared, own = 10 * random.standard_normal(64), random.standard_normal((20, 64))
    reference = (shared + own).astype(np.float32)
    found = (shared + random.standard_normal((20, 64))).astype(np.float32)
    result = fidelity.agreement(found, reference, [str(n) for n in range(20)])
    assert result.worst > 0.98
    assert result.worst_centred < 0.4
    assert not fidelity.int8_agrees("text", result)
    assert not fidelity.float32_agrees(result)


def test_agreement_names_its_worst_input():
    reference = np.eye(4, dtype=np.float32)
    found = reference.copy()
    found[2] = [1, 0, 1, 0]
    result = fidelity.agreement(found, reference, ["a", "b", "c", "d"])
    assert (result.inputs, result.worst_input) == (4, "c")
    assert result.worst == pytest.approx(np.sqrt(0.5), abs=1e-6)
    same = fidelity.agreement(reference, reference, ["a", "b", "c", "d"])
    assert (same.worst, same.mean, same.worst_centred, same.mean_centred) == (1, 1, 1, 1)


def test_neighbours_are_counted_without_the_input_itself():
    """There are two pairs of close points. If two points of different pairs are swapped, no point keeps its neighbour."""

    def points(*angles: float) -> np.ndarray:
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    reference = points(0.1, 0.2, 1.1, 1.2)
    assert fidelity.neighbours_in_common(reference, reference) == 1
    assert fidelity.neighbours_in_common(5 * reference, reference) == 1
    assert fidelity.neighbours_in_common(points(0.1, 1.1, 0.2, 1.2), reference) == 0
    assert fidelity.agreement(points(0.1, 0.2, 0.3, 1.2), reference, list("abcd")).neighbours == 0.75


def test_nan_embeddings_agree_with_nothing():
    result = fidelity.agreement(np.full((2, 4), np.nan, np.float32), np.eye(2, 4, dtype=np.float32), ["a", "b"])
    assert result.worst == result.worst_centred == -1


def test_published_embeddings_are_compared_as_published(demo_float32_dir):
    """The demo model's own numbers replace the published ones: equal ones pass, others do not."""
    texts = ["a", "hello world", "she smiled, with pain"]
    embeddings = Engine(demo_float32_dir).embed_text(texts)
    right = (
        {"text": "hello world", "unit": True, "at": slice(0, 5), "values": tuple(unit(embeddings[1])[:5].round(4))},
        {"text": "she smiled, with pain", "unit": False, "at": slice(-3, None), "values": tuple(embeddings[2, -3:])},
    )
    assert max(fidelity.published_differences(texts, embeddings, right)) < fidelity.PUBLISHED_TOLERANCE
    wrong = fidelity.published_differences(texts, embeddings * np.float32(1.01), right)
    assert wrong[0] < fidelity.PUBLISHED_TOLERANCE < wrong[1]  # of a unit embedding the length does not matter
    differences = fidelity.published_differences(texts, embeddings)  # what OpenAI's ViT-B/32 gives
    assert len(differences) == 3
    assert min(differences) > fidelity.PUBLISHED_TOLERANCE


def test_verify_compares_with_published_embeddings_where_the_source_is_openais(demo_dir, tmp_path):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["source"]["id"] = fidelity.PUBLISHED_FOR[0]
    (path / "manifest.json").write_text(json.dumps(manifest))
    published = [check for check in verify(path) if "as published in" in check.name]
    assert [check.ok for check in published] == [False] * 3


def test_verify_recognises_openais_weights_in_a_folder_by_what_they_give(demo_dir, tmp_path, monkeypatch):
    """The reference embeddings contain the published numbers, as those of the real weights do."""
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    assert not [check for check in verify(path) if "as published in" in check.name]
    reference = np.load(path / "text.npy")
    for golden in fidelity.PUBLISHED:
        row = reference[TEXTS.index(golden["text"])]
        row[golden["at"]] = np.array(golden["values"]) * (np.linalg.norm(row) if golden["unit"] else 1)
    np.save(path / "text.npy", reference)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["text.npy"]["sha256"] = sha256_of(path / "text.npy")
    (path / "manifest.json").write_text(json.dumps(manifest))
    published = [check for check in verify(path) if "as published in" in check.name]
    assert [check.ok for check in published] == [True] * 3


def test_a_bake_that_says_it_is_openais_must_give_the_published_embeddings(tiny_checkpoint, tmp_path, monkeypatch):
    from conftest import quiet
    from llm_clip_onnx.bake import bake
    from llm_clip_onnx.errors import FidelityError

    monkeypatch.setattr(fidelity, "PUBLISHED_FOR", (str(tiny_checkpoint),))
    with pytest.raises(
        FidelityError,
        match=r"the embedding of 'hello world' is off by|the embedding of 'she smiled, with pain' is off by",
    ):
        bake(str(tiny_checkpoint), tmp_path / "model", say=quiet)
    assert not (tmp_path / "model").exists()
