"""Collections of any `llm` embedding model are filled, indexed and searched, without CLIP and onnxruntime."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import llm
import numpy as np
import pytest
from sqlite_utils import Database

from clip_collections.collection import open_collection
from clip_collections.entry import Entry
from clip_collections.index import build
from clip_collections.search import search
from clip_collections.writer import CollectionWriter, Embedder
from conftest import ROOT
from llm_clip_onnx.errors import InputError
from patience import PATIENCE_S
from serving import environment

EMBED_DIM = 7
TEXTS = {f"{n:02}": f"text number {n}" for n in range(40)}


class Hashed(llm.EmbeddingModel):
    """A model whose embeddings are 7 bytes of a text's hash. It stands for any model that is not ours."""

    model_id = "hashed"
    supports_text = True

    def embed_batch(self, items):
        for item in items:
            yield [byte / 255 - 0.5 for byte in hashlib.sha256(item.encode()).digest()[:EMBED_DIM]]


def embed_item(content, orient=None) -> np.ndarray:
    return np.array(Hashed().embed(content), np.float32)


def written_by_llm(database: Database) -> None:
    llm.Collection("texts", database, model=Hashed()).embed_multi(TEXTS.items())


def written_by_us(database: Database) -> None:
    embedder = Embedder(Hashed(), EMBED_DIM, embed_item, threads=2)
    entries = [Entry(id, text) for id, text in TEXTS.items()]
    assert {outcome.became for outcome in CollectionWriter(database, "texts", embedder).embed(entries)} == {"embedded"}
    assert {outcome.became for outcome in CollectionWriter(database, "texts", embedder).embed(entries)} == {"there"}


@pytest.mark.parametrize("write", [written_by_llm, written_by_us])
def test_a_collection_of_another_model_is_indexed_and_searched(write, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "nothing"))
    write(Database(tmp_path / "texts.db"))
    conn = build.connect(str(tmp_path / "texts.db"))
    texts = open_collection(conn, "texts")
    assert (texts.model, texts.embed_dim) == ("hashed", EMBED_DIM)
    vectors = np.array([embed_item(text) for text in TEXTS.values()])
    cosines = vectors @ vectors[11] / np.linalg.norm(vectors, axis=1)
    expected = [f"{n:02}" for n in np.argsort(-cosines)[:5]]
    assert [hit.id for hit in search(conn, texts, vectors[11], 5)] == expected
    assert build.index(conn, texts).vectors == len(TEXTS)
    assert [hit.id for hit in search(conn, texts, vectors[11], 5)] == expected


def test_a_collection_of_one_model_is_not_filled_by_another(tmp_path):
    database = Database(tmp_path / "texts.db")
    written_by_llm(database)

    class Another(Hashed):
        model_id = "another"

    with pytest.raises(InputError) as raised:
        CollectionWriter(database, "texts", Embedder(Another(), EMBED_DIM, embed_item))
    assert "is of the model hashed, to whose embeddings those of another cannot be compared" in str(raised.value)


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*sys.modules)
"""


@pytest.mark.long
def test_no_module_of_the_collections_loads_onnxruntime_or_datasette(tmp_path):
    plugins = ROOT / "plugins"
    files = sorted((plugins / "clip_collections").rglob("*.py"))
    names = [".".join(file.relative_to(plugins).with_suffix("").parts).removesuffix(".__init__") for file in files]
    assert len(names) > 8
    command = [sys.executable, "-c", IMPORT_ALL, *names]
    env = environment(tmp_path)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    assert not {"onnxruntime", "datasette", "llm_clip_onnx.bake", "torch"} & set(done.stdout.split())
