"""The one checkpoint that a bench compares everything on: written, laid out for its readers, baked, and checked.

All is made by processes of their own: Linux counts the memory of a process as that of the commands it starts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import say
from serving import BIN, environment

RANDOM = "random weights of ViT-B/32's shape"


def write_random(folder: Path, shape: str = "ViT-B-32") -> Path:
    """Write a checkpoint with random weights of a shape of random_checkpoint.SHAPES to `folder`, and return that."""
    say("checkpoint")
    script = ROOT / "tests/support/random_checkpoint.py"
    subprocess.run([sys.executable, script, folder, shape], check=True, stdout=subprocess.DEVNULL)
    return folder


def bake(checkpoint: Path, model: Path, *options: str) -> Path:
    """Bake a checkpoint to the model directory `model` with `llm clip bake`, and return that."""
    say(f"bake {' '.join(options)}".rstrip())
    command = [BIN / "llm", "clip", "bake", checkpoint.resolve(), "--to", model, *options]
    subprocess.run(command, env=environment(model.parent / "llm"), check=True, stdout=sys.stderr)
    return model


def model_or_random(model: Path | None, place: Path) -> Path:
    """The given model directory, or one that is baked from random weights in the folder `place`."""
    return model.resolve() if model else bake(write_random(place / "checkpoint"), place / "model")


def lay_out(checkpoint: Path, place: Path) -> None:
    """Put `checkpoint` at place/clip-ViT-B-32 in sentence-transformers' layout.

    llm-clip opens SentenceTransformer('clip-ViT-B-32'), which looks in the working folder before it asks a hub.
    """
    folder = place / "clip-ViT-B-32"
    if (checkpoint / "modules.json").exists():
        return folder.symlink_to(checkpoint.resolve())
    folder.mkdir()
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "0_CLIPModel").symlink_to(checkpoint.resolve())


def worst_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The lowest cosine of a row of `a` [n, d] and the same row of `b`."""
    return float((np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def checked_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The worst cosine of two stacks' embeddings. Raises RuntimeError below 0.98: they do not serve one model."""
    worst = worst_cosine(a, b)
    if worst < 0.98:
        raise RuntimeError(f"the embeddings of one model differ: cosine {worst:.4f}, expected 0.98 or more")
    return worst
