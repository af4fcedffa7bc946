"""Writes a checkpoint of the shape of a model of the catalogue, with random weights in float16.

    python -m bench.embedding.shapes FOLDER SHAPE

Its tokenizer has as many tokens as the real one. SHAPE_OF says which entries have one shape; of those, some compute
gelu and some quick_gelu, which is measured. A text tower alone is written to FOLDER/text, and the checkpoint of its
images to FOLDER/images.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import bench.harness  # noqa: F401, puts tests/support on the path
import random_checkpoint
from random_checkpoint import halve, write_checkpoint
from siglip_checkpoint import BASE, BASE_WORDS, write_siglip
from text_tower_checkpoint import REAL, REAL_WORDS, write_text_tower

SHAPE_OF = {
    "clip": "ViT-B-32",
    "laion2b-b32": "ViT-B-32",
    "datacomp-b32": "ViT-B-32",
    "datacomp-b32-256": "ViT-B-32-256",
    "clip-b16": "ViT-B-16",
    "datacomp-b16": "ViT-B-16",
    "clip-l14": "ViT-L-14",
    "datacomp-l14": "ViT-L-14",
    "tinyclip-40m-32": "TinyCLIP-40M-32",
    "multilingual": "DistilBERT-B-32",
    "siglip2-b32-256": "SigLIP2-B-32-256",
    "siglip2-b16-224": "SigLIP2-B-16-224",
}


def clip(shape: str, folder: Path) -> Path:
    return write_checkpoint(folder, **random_checkpoint.SHAPES[shape], change=halve)


def text_tower(folder: Path) -> Path:
    clip("ViT-B-32", folder / "images")
    return write_text_tower(folder / "text", REAL | {"vocab_size": REAL_WORDS}, change=halve)


def siglip2(patch: int, side: int, folder: Path) -> Path:
    text, vision = {"vocab_size": BASE_WORDS[2]}, {"image_size": side, "patch_size": patch}
    return write_siglip(folder, 2, BASE | text, BASE | vision, change=halve)


WRITERS: dict[str, Callable[[Path], Path]] = {
    **{shape: partial(clip, shape) for shape in random_checkpoint.SHAPES},
    "DistilBERT-B-32": text_tower,
    "SigLIP2-B-32-256": partial(siglip2, 32, 256),
    "SigLIP2-B-16-224": partial(siglip2, 16, 224),
}
SHAPES = tuple(dict.fromkeys(SHAPE_OF.values()))  # in the order of the catalogue

if __name__ == "__main__":
    print(WRITERS[sys.argv[2]](Path(sys.argv[1])))
