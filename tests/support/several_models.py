"""A folder of three models, and photos that are one colour each, for tests of collections with several models."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from nasty import saved


def three_models(folder: Path, clip: Path, float32: Path, tiny: Path) -> Path:
    """Copy model directories to `folder`: `clip`, `float32` of the same checkpoint, and another, `tiny`."""
    for name, directory in (("clip", clip), ("float32", float32), ("tiny", tiny)):
        shutil.copytree(directory, folder / name)
    return folder


def plain_photos(folder: Path, colours: Iterable[str]) -> Path:
    """Write a PNG of each colour to a new folder."""
    folder.mkdir()
    for colour in colours:
        (folder / f"{colour}.png").write_bytes(saved(Image.new("RGB", (80, 60), colour), "PNG"))
    return folder
