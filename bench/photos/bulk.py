"""Measures photos a second of `llm clip embed` beside rclip and clip-retrieval: the same files and weights.

    python -m bench.photos.bulk [--small 240] [--large 40] [--rounds 3] [--to FILE]

    ours             as a bake makes it: 8-bit towers. It stores a thumbnail and the facts of each photo too
    ours, float32    the same weights as the peers'
    rclip            3.3, from .venv-rclip: float32 in onnxruntime, eight photos a call
    clip-retrieval   2.45, from .venv-clip-retrieval: `clip-retrieval inference`, float32 in torch, eight photos a call

Random weights of ViT-B/32's shape at 256 pixels, the only one that rclip has. Each round embeds a folder of eight
photos and then one of many, each from nothing and with the whole command. Photos a second are those of the difference,
so that no start counts; the commands themselves are in the table too. The cores are busy by the CPU seconds of the
difference over its seconds and all cores. Then one run of ours on one core says where the CPU time of a photo goes
(bulk_steps.py). The stored embeddings must be the same, within rounding. A peer that is not installed or fails is named
with the reason. The results so far are written to FILE after each folder.

Immich's pipeline is not here: its machine-learning server is no package that pip installs, but a container image that
downloads its models. clip-retrieval's default of 256 photos a call is not taken, because it embeds 256 texts and images
twice before it begins.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import Results, main, say
from bench.harness.turns import Figures, Titles, medians_of, ratio, turns
from bench.photos.inputs import as_installed, photos_in, run
from bench.photos.side_by_side import (
    OURS,
    RCLIP,
    SHAPE,
    SIZES,
    bake_ours,
    checked_cosine,
    folder_lines,
    last_lines,
    lay_out,
    stored_embeddings,
)
from llm_clip_onnx.towers import available_cores
from serving import BIN

RETRIEVAL = ROOT / ".venv-clip-retrieval" / "bin"
PEERS = {"rclip": RCLIP / "rclip", "clip-retrieval": RETRIEVAL / "clip-retrieval"}
FEW, A_CALL = 8, 8
OPEN_CLIP = "open-clip/open_clip_model.safetensors"
TITLES: Titles = {
    "per_s": ("photos a second", 1),
    "cpu_ms": ("  CPU, ms a photo", 0),
    "busy_percent": ("  cores busy, %", 0),
    "wall_s": ("whole command, s", 1),
    "whole_per_s": ("  photos a second", 1),
    "few_wall_s": (f"whole command with {FEW} photos, s", 1),
    "peak_mb": ("peak resident of its largest process, MB", 0),
}
STEPS = {  # of bulk_steps.py
    "decode": "decode",
    "resize": "resize, also for the thumbnail",
    "tower": "tower",
    "thumbnail": "encode the thumbnail",
    "write": "write",
    "rest": "read, hash and all else",
}


class Contestant:
    """One of the programs, with what it stored of one folder of photos at a time in the folder `place`."""

    def __init__(self, name: str, place: Path):
        self.name, self.place = name, place
        self.stored = place / f"stored {name}"
        model = place / OURS.get(name, "")
        self.env = as_installed(place, RCLIP_DATADIR=str(place / "rclip-data"), CLIP_MODEL_DIR=str(model))

    def command(self, photos: Path) -> list:
        if self.name in OURS:
            return [BIN / "llm", "clip", "embed", photos, "-d", self.stored, "-c", "photos"]
        if self.name == "rclip":
            return [PEERS["rclip"], "--filepath-only", "red car"]  # there is no command that only indexes
        model = f"open_clip:{SHAPE}/{self.place / OPEN_CLIP}"
        options = ["--clip_model", model, "--enable_text", "False", "--batch_size", A_CALL]
        whole = [RETRIEVAL / "python", "-m", "bench.photos.clip_retrieval", "--input_dataset", photos]
        return [*whole, "--output_folder", self.stored, *options]

    def embed(self, photos: Path) -> Figures:
        """Embed a folder from nothing."""
        self.forget()
        cwd = {"rclip": photos, "clip-retrieval": ROOT}.get(self.name, self.place)
        return run(self.command(photos), self.env, cwd)[0]

    def forget(self) -> None:
        """Remove what is stored."""
        if self.stored.is_dir():
            shutil.rmtree(self.stored)
        kept = self.place / "rclip-data/db.sqlite3" if self.name == "rclip" else self.stored
        for file in kept.parent.glob(f"{kept.name}*"):
            file.unlink()

    def embeddings(self) -> NDArray[np.float32]:
        """What is stored of each photo, by name: [photos, 512]."""
        if self.name == "clip-retrieval":
            return np.load(next(self.stored.glob("img_emb/*.npy"))).astype(np.float32)
        is_rclip = self.name == "rclip"
        return stored_embeddings(self.place / "rclip-data/db.sqlite3" if is_rclip else self.stored, is_rclip)

    def measure(self, few: Path, photos: Path, count: int, cores: int) -> Figures:
        """Embed both folders. What is stored then is that of `photos`."""
        start, whole = self.embed(few), self.embed(photos)
        figures = {"wall_s": whole["wall_s"], "whole_per_s": count / whole["wall_s"], "few_wall_s": start["wall_s"]}
        figures["peak_mb"] = whole["peak_mb"]
        wall_s, cpu_s = (whole[figure] - start[figure] for figure in ("wall_s", "cpu_s"))
        if min(wall_s, cpu_s) > 0:  # else the machine was too busy to tell, and the table has no such figures
            figures |= {"per_s": (count - FEW) / wall_s, "cpu_ms": 1000 * cpu_s / (count - FEW)}
            figures["busy_percent"] = 100 * cpu_s / wall_s / cores
        return figures


def prepare(place: Path) -> dict[str, str]:
    """Write and bake the checkpoint, and lay it out for the peers: peer -> why it cannot be measured."""
    checkpoint = bake_ours(place)
    forms = {
        "rclip": ("bench.photos.rclip_files", place / "rclip-data"),
        "clip-retrieval": ("bench.harness.open_clip_files", place / "open-clip"),
    }
    why = {name: lay_out(PEERS[name], module, checkpoint, to) for name, (module, to) in forms.items()}
    return {name: reason for name, reason in why.items() if reason}


def measure_folder(contestants: list[Contestant], few: Path, photos: Path, rounds: int, cores: int) -> Results:
    """{"medians", "ratios", "pairs", "worst_cosine", "why"} of a folder. Who fails is left out, with the reason."""
    count, why = len(list(photos.iterdir())), {}
    pairs: list[dict[str, Figures]] = [{} for _ in range(rounds)]
    for number, one in turns(contestants, rounds):
        if one.name not in why:
            say(f"round {number + 1} of {rounds}: {one.name}")
            try:
                pairs[number][one.name] = one.measure(few, photos, count, cores)
            except RuntimeError as error:
                if one.name in OURS:
                    raise
                why[one.name] = str(error)
    there = [one for one in contestants if one.name not in why]
    peers = [one.name for one in there if one.name not in OURS]
    return {
        "why": why,
        "medians": {one.name: medians_of([pair[one.name] for pair in pairs]) for one in there},
        "ratios": {f"ours / {peer}": medians_of([ratio(pair["ours"], pair[peer]) for pair in pairs]) for peer in peers},
        "pairs": pairs,
        "worst_cosine": checked_cosine(there),
    }


def steps_of(photos: Path, ours: Contestant) -> Figures:
    """Step -> milliseconds of CPU a photo, of `llm clip embed` on one core."""
    say("where the time goes")
    ours.forget()
    command = [sys.executable, "-m", "bench.photos.bulk_steps", photos, ours.stored]
    return json.loads(run(command, ours.env, ROOT)[1])


def measure(place: Path, options: argparse.Namespace) -> Results:
    results: Results = {"model": SHAPE, "rounds": options.rounds, "why": prepare(place)}
    contestants = [Contestant(name, place) for name in (*OURS, *PEERS) if name not in results["why"]]
    cores = available_cores()
    for folder, (width, height) in SIZES.items():
        count = getattr(options, folder)
        say(f"{count} photos of {width} x {height}")
        few, photos = (photos_in(place / f"{folder}-{n}", width, height, n) for n in (FEW, count))
        for one in contestants:
            one.embed(few)  # once, not counted
        results[folder] = {"width": width, "height": height, "count": count}
        results[folder] |= measure_folder(contestants, few, photos, options.rounds, cores)
        results[folder]["steps_ms"] = steps_of(photos, contestants[0])
        results["why"] |= results[folder]["why"]
        options.keep(results)
    return results


def table(results: Results) -> str:
    lines: list[str] = []
    for folder in SIZES:
        lines += [*folder_lines(results[folder], TITLES), "on one core, of ours, CPU ms a photo"]
        steps_ms = results[folder]["steps_ms"]
        lines += [*(f"{'  ' + title:46}{steps_ms[step]:15.1f}" for step, title in STEPS.items()), ""]
    return "\n".join([*lines, *last_lines(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, small=240, large=40, rounds=3)
