"""What the benches beside other programs share: the checkpoint in each program's form, what is stored, and table lines.

Random weights of ViT-B/32's shape at 256 pixels, the only one that rclip has.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import Results, load_words, say, source_line
from bench.harness.models import bake, worst_cosine, write_random
from bench.harness.turns import Titles, comparison_lines

SHAPE = "ViT-B-32-256"
OURS = {"ours": "model", "ours, float32": "model-float32"}  # name: its model directory
RCLIP = ROOT / ".venv-rclip" / "bin"
SIZES = {"small": (640, 480), "large": (4000, 3000)}  # pixels of the photos of a folder
LEAST_COSINE = 0.98  # of two programs' embeddings of one photo: they resize and quantise differently


class Stored(Protocol):
    """One of the programs, which has stored an embedding of each photo."""

    name: str

    def embeddings(self) -> NDArray[np.float32]: ...


def bake_ours(place: Path) -> Path:
    """Write the checkpoint and bake it as each of OURS. Returns the checkpoint."""
    checkpoint = write_random(place / "checkpoint", SHAPE)
    bake(checkpoint, place / OURS["ours"])
    bake(checkpoint, place / OURS["ours, float32"], "--precision", "fp32")
    return checkpoint


def lay_out(program: Path, module: str, checkpoint: Path, to: Path) -> str | None:
    """Write the checkpoint as a program reads it, by a script: None, or why the program cannot be measured."""
    if not program.exists():
        return f"not installed: make {program.parents[1].name}/ready installs it"
    say(f"files: {program.name}")
    command = [sys.executable, "-m", module, str(checkpoint), str(to)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else None


def stored_embeddings(file: Path, is_rclip: bool) -> NDArray[np.float32]:
    """The embeddings of a database of llm's or of rclip's, by the names of the photos: [photos, 512]."""
    sql = "select id, embedding from embeddings order by id"
    if is_rclip:
        sql = "select filepath, vector from images where deleted is null order by filepath"
    with closing(sqlite3.connect(file)) as connection:
        return np.array([np.frombuffer(blob, "<f4") for _, blob in connection.execute(sql)])


def checked_cosine(contestants: Sequence[Stored]) -> float:
    """The lowest cosine of a stored embedding with ours. Raises RuntimeError if it is too low, or one is missing."""
    ours, *others = contestants
    first, worst = ours.embeddings(), 1.0
    for other in others:
        found = other.embeddings()
        if found.shape != first.shape:
            raise RuntimeError(f"{other.name} stored {found.shape} numbers, ours {first.shape}")
        if (cosine := worst_cosine(first, found)) < LEAST_COSINE:
            raise RuntimeError(f"{other.name}: cosine {cosine:.4f} to ours of one photo, expected {LEAST_COSINE}")
        worst = min(worst, cosine)
    return worst


def folder_lines(folder: Results, titles: Titles) -> list[str]:
    """The lines of a table about a folder, which begin with its title."""
    title = f"{folder['count']} JPEGs of {folder['width']} x {folder['height']} pixels"
    head, *rest = comparison_lines(folder, titles, ratio_digits=2)
    return [title + head[len(title) :], *rest]


def last_lines(results: Results) -> list[str]:
    """The lines at the end of a table: who was not measured and why, the model, the lowest cosine, and the source."""
    worst = min(results[folder]["worst_cosine"] for folder in SIZES)
    return [
        *(f"{name}: {why}" for name, why in results["why"].items()),
        f"random weights of the shape of {results['model']}, {results['rounds']} rounds, {load_words(results)}",
        f"lowest cosine with ours, of a photo: {worst:.4f}",
        source_line(results),
    ]
