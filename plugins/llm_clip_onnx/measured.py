"""What a model of the catalogue takes: milliseconds, memory, and the smallest machine; measured on its shape.

It reads measured.json, which `python -m bench.harness.tables` writes from the kept results of the bench of models. It
measures nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_name("measured.json")
MACHINES_MB = (256, 512, 1024, 2048)
USABLE = 0.8  # of a machine's memory: the system takes about 46 of 256 MB


@dataclass(frozen=True)
class Figures:
    """Milliseconds of a text and of an image; peak resident MB of a server after texts, and after images too."""

    text_ms: float
    image_ms: float
    text_mb: float
    peak_mb: float


@cache
def figures() -> dict[str, Figures]:
    """Catalogue id -> its figures; an entry that was not measured is not in it."""
    return {id: Figures(**found) for id, found in json.loads(FILE.read_text()).items()}


def machine(mb: float) -> str:
    """The smallest usual machine for a server with such a peak."""
    return next(
        (f"{size} MB" if size < 1024 else f"{size // 1024} GB" for size in MACHINES_MB if mb <= USABLE * size), "more"
    )
