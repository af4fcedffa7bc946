"""Folders of made photos, each of which differs from every other one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nasty import saved


def picture(number: int) -> bytes:
    """A JPEG that differs from that of every other number."""
    coarse = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    return saved(Image.fromarray(coarse).resize((120, 90)), "JPEG")


def fill_folder(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(picture(number))
    return folder
