"""Measures embedding in each family of models beside the library that the family is for, on one checkpoint each.

    python -m bench.embedding.families [--only FAMILY ...] [--rounds 10] [--starts 3] [--to FILE]

    open_clip      ViT-B-32-256 in open_clip's layout, beside open_clip
    multilingual   DistilBERT's text tower of clip-ViT-B-32-multilingual-v1, beside sentence-transformers; texts alone,
                   because its images are those of peers.py
    siglip         B/16-224, beside transformers
    siglip2        B/32-256, beside transformers

Random weights of the real sizes, of token tables too. The vocabularies are small, so that texts have more ids than with
the real ones. How the peers (family_embedders.py) take turns, and each column, is as in peers.py. A cosine is to the
library, the lowest over all that were checked; one below 0.98 makes the row an error. fastembed 0.9 has no model of
these families. The results of a family are written to FILE when it is done.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.embedding.embedders import OURS
from bench.embedding.family_embedders import peers_of
from bench.embedding.peers import Measuring, peer_lines
from bench.harness import ROOT
from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.inputs import IMAGES, smooth_jpegs
from bench.harness.models import write_random
from llm_clip_onnx import model_dir
from text_tower_checkpoint import REAL, write_text_tower

VOCABULARY = 119_547  # tokens of clip-ViT-B-32-multilingual-v1


def write_open_clip(folder: Path) -> None:
    random = write_random(folder / "random", "ViT-B-32-256")
    script("-m", "bench.harness.open_clip_files", random, folder / "checkpoint")


def write_multilingual(folder: Path) -> None:
    """A text tower with all rows of its token table, and the checkpoint whose images it searches."""
    checkpoint = write_text_tower(folder / "checkpoint", REAL | {"vocab_size": VOCABULARY})
    with (checkpoint / "vocab.txt").open("r+", encoding="utf-8") as vocabulary:
        known = len(vocabulary.readlines())
        vocabulary.writelines(f"[unused{n}]\n" for n in range(VOCABULARY - known))
    write_random(folder / "images")


def write_siglip(version: int) -> Callable[[Path], None]:
    return lambda folder: script("tests/support/siglip_checkpoint.py", folder / "checkpoint", version, "B")


def script(*words: Any) -> None:
    """Run Python with these words, in a process of its own for its memory."""
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, stdout=sys.stderr)


FAMILIES = {  # what writes the checkpoint
    "open_clip": write_open_clip,
    "multilingual": write_multilingual,
    "siglip": write_siglip(1),
    "siglip2": write_siglip(2),
}


def measure_family(family: str, place: Path, options: argparse.Namespace) -> Results:
    say(f"{family}: checkpoint")
    place.mkdir()
    FAMILIES[family](place)
    files = [place / f"{number}.jpg" for number in IMAGES]
    for file, image in zip(files, smooth_jpegs()):
        file.write_bytes(image)
    peers = peers_of(family)
    measuring = Measuring(place, [str(file) for file in files], reference=peers[-1])
    with ExitStack() as stack:
        measuring.measure(measuring.start(peers, options.starts, stack), options.rounds)
    results: Results = {"peers": measuring.results()}
    if (place / OURS / model_dir.MANIFEST).exists():
        towers = model_dir.read_manifest(place / OURS).towers
        results["precision"] = {name: tower.summary for name, tower in towers.items()}
    return results


def measure(place: Path, options: argparse.Namespace) -> Results:
    if unknown := set(options.only) - {*FAMILIES}:
        sys.exit(f"--only {' '.join(sorted(unknown))}: there are {', '.join(FAMILIES)}")
    results: Results = {"rounds": options.rounds, "starts": options.starts, "families": {}}
    for family in options.only:
        results["families"][family] = measure_family(family, place / family, options)
        options.keep(results)
    return results


def table(results: Results) -> str:
    lines: list[str] = []
    for family, measured in results["families"].items():
        lines += peer_lines(measured["peers"], family)
        told = ", ".join(f"{name} {kind}" for name, kind in measured.get("precision", {}).items())
        lines += [f"    ours: {told}" if told else "", ""]
    lines += [f"{results['rounds']} rounds, {results['starts']} starts of each, random weights, {load_words(results)}"]
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, only=tuple(FAMILIES), rounds=10, starts=3)
