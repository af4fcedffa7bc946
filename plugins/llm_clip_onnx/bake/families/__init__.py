"""Reads a checkpoint of any family that can be baked: CLIP in two layouts, SigLIP, a text tower alone."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Checkpoint
from ..keys import CONFIG, MODULES
from ..layout import as_checkpoint_error, read_object
from . import hugging_face, open_clip, siglip, text_tower
from .text_tower import TextCheckpoint


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint | TextCheckpoint:
    """The checkpoint in the folder `root`, or a text tower for another one's images. Raises CheckpointError."""
    with as_checkpoint_error(source):
        if text_tower.has_several_modules(root, source):
            return text_tower.read_checkpoint(root, source, commit)
        if is_open_clip(root, source):
            return open_clip.read_checkpoint(root, source, commit)
        return in_transformers(root, source).read_checkpoint(root, source, commit)


def in_transformers(root: Path, source: str):
    """The reader of a folder in transformers' layout, by its config. In sentence-transformers' layout it is CLIP's."""
    return siglip if not (root / MODULES).is_file() and siglip.is_siglip(root, source) else hugging_face


def is_open_clip(root: Path, source: str) -> bool:
    """True for a folder in open_clip's layout alone. Where transformers' config is there too, that one is read."""
    if not (root / open_clip.CONFIG).is_file() or (root / MODULES).is_file():
        return False
    return not (root / CONFIG).is_file() or "model_type" not in read_object(root / CONFIG, source)
