"""Our embeddings are those of llm-clip itself, run with torch on the same checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from conftest import DEMO_CHECKPOINT
from llm_clip_onnx.bake import verify
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import cosine
from nasty import TEXTS as NASTY_TEXTS
from nasty import images
from patience import PATIENCE_S
from serving import environment


@pytest.fixture(scope="module")
def llm_clip_on():
    """llm-clip's model on a checkpoint folder."""
    import llm_clip
    from sentence_transformers import SentenceTransformer

    def model_on(folder):
        model = llm_clip.ClipEmbeddingModel()
        model._model = SentenceTransformer(str(folder), device="cpu")
        return model

    return model_on


@pytest.mark.parametrize("which", ["demo", "random"])
def test_float32_towers_agree_with_llm_clip(which, llm_clip_on, demo_float32_dir, tiny_dir, tiny_checkpoint):
    folder, path = {"demo": (DEMO_CHECKPOINT, demo_float32_dir), "random": (tiny_checkpoint, tiny_dir)}[which]
    model, engine = llm_clip_on(folder), Engine(path)
    texts = [*TEXTS, *NASTY_TEXTS]
    theirs = np.array(model.embed_batch(texts), np.float32)
    assert min(map(cosine, engine.embed_text(texts), theirs)) >= 0.9999
    np.testing.assert_allclose(
        np.linalg.norm(engine.embed_text(texts), axis=1), np.linalg.norm(theirs, axis=1), rtol=1e-3
    )
    blobs = [*images().values(), *map(verify.png_bytes, made_images().values())]
    theirs = np.array(model.embed_batch(blobs), np.float32)
    assert min(map(cosine, engine.embed_images(blobs), theirs)) >= 0.9999


def test_verify_compares_with_llm_clip(demo_dir):
    checks = verify.verify(demo_dir, "llm-clip", str(DEMO_CHECKPOINT))
    assert [(c.name, c.ok) for c in checks][-2:] == [
        ("text tower (int8) with llm-clip", True),
        ("image tower (int8) with llm-clip", True),
    ]


def test_verify_finds_another_checkpoint_out(demo_dir, tiny_checkpoint):
    checks = verify.verify(demo_dir, "llm-clip", str(tiny_checkpoint))
    assert [c.ok for c in checks][-2:] == [False, False]


WHO_IS_WHO = """
import json, llm
clip, reference = llm.get_embedding_model("clip"), llm.get_embedding_model("llm-clip")
print(json.dumps([type(clip).__module__, type(reference).__module__, reference is llm.get_embedding_model("llm-clip"), clip.embed("purple"), reference.embed("purple")]))
"""


def test_where_llm_clip_is_installed_too_clip_is_ours_and_llm_clip_stays_within_reach(demo_dir, tmp_path):
    """`llm` loads both plugins in a process that finds the demo checkpoint under the one name llm-clip knows."""
    (tmp_path / "clip-ViT-B-32").symlink_to(DEMO_CHECKPOINT)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir)) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    del env["LLM_LOAD_PLUGINS"]
    done = subprocess.run(
        [sys.executable, "-c", WHO_IS_WHO], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    ours, theirs, same, found, expected = json.loads(done.stdout.splitlines()[-1])
    assert (ours, theirs, same) == ("llm_clip_onnx.llm_model", "llm_clip", True)
    assert cosine(np.float32(found), np.float32(expected)) > 0.99
