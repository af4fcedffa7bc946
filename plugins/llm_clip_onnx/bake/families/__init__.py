"""Reads a checkpoint in any layout that can be baked, a file a layout: transformers', open_clip's, a text tower's."""

from __future__ import annotations

from pathlib import Path

from ..checkpoint import Checkpoint
from ..keys import CONFIG, MODULES
from ..layout import as_checkpoint_error, read_object
from . import hugging_face, open_clip, text_tower
from .text_tower import TextCheckpoint


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint | TextCheckpoint:
    """The checkpoint in the folder `root`, or a text tower for another one's images. Raises CheckpointError."""
    with as_checkpoint_error(source):
        if text_tower.has_several_modules(root, source):
            return text_tower.read_checkpoint(root, source, commit)
        layout = open_clip if is_open_clip(root, source) else hugging_face
        return layout.read_checkpoint(root, source, commit)


def is_open_clip(root: Path, source: str) -> bool:
    """True for a folder in open_clip's layout alone. Where transformers' config is there too, that one is read."""
    if not (root / open_clip.CONFIG).is_file() or (root / MODULES).is_file():
        return False
    return not (root / CONFIG).is_file() or "model_type" not in read_object(root / CONFIG, source)
