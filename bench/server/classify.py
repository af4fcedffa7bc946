"""Measures classifying an image among 1000 labels over HTTP: ours beside torch loaded per request and kept loaded.

    python -m bench.server.classify [--pairs 3] [--to FILE]

    recipe   torch and transformers, the model loaded for each image, as CLIP on Heroku did it (torch_server.py)
    kept     sentence-transformers, loaded once (torch_server.py)
    ours     datasette-clip, POST /-/clip/classify.json, the label set baked

All use one checkpoint with random weights of ViT-B/32's shape: their labels mean nothing, but must agree. They take
turns; a figure is the median over pairs. Not measured: accuracy, see demo/top_five.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from bench.harness import ROOT
from bench.harness.command import Results, main, say, source_line
from bench.harness.inputs import jpegs
from bench.harness.models import bake, checked_cosine, lay_out, write_random
from bench.harness.stacks import EMBED_DIM, OURS, RECIPE, call_of
from bench.harness.turns import Figures, Titles, compare, comparison_lines
from listening import free_port, listening
from llm_clip_onnx import label_sets, model_dir
from llm_clip_onnx.bake.label_set import bake_labels

LABELS, WARM, TIMED = 1000, 2, {"recipe": 8, "kept": 40, "ours": 40}
PHOTOS, LARGE = jpegs(640, 480, 20), jpegs(4000, 3000, 4)
TITLES: Titles = {
    "cold_s": ("start to first answer, s", 2),
    "photo_p50_ms": ("640x480 JPEG, p50, ms", 1),
    "large_p50_ms": ("4000x3000 JPEG (12 megapixels), p50, ms", 1),
    "peak_mb": ("peak resident, MB (VmHWM)", 0),
}


def call_of_server(name: str, place: Path, port: int) -> dict:
    """The arguments of Popen for a server."""
    if name == "ours":
        return call_of(OURS, place, "-m", "datasette", "serve", *OURS.arguments, "--port", str(port))
    vectors = place / "model" / model_dir.LABELS / "thousand.npy"
    checkpoint, mode = ("clip-ViT-B-32/0_CLIPModel", "per-request") if name == "recipe" else ("clip-ViT-B-32", "kept")
    return call_of(RECIPE, place, str(ROOT / "bench/server/torch_server.py"), str(port), checkpoint, str(vectors), mode)


@contextmanager
def started(name: str, place: Path) -> Iterator[tuple[int, Callable[[str, bytes], dict]]]:
    """The process id of a new server, and a function that posts an image to one of its paths."""
    port = free_port()
    with (
        listening(**call_of_server(name, place, port), port=port, log=place / f"{name}.log") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):

        def post(path: str, image: bytes) -> dict:
            response = client.post(path, content=image, headers={"Content-Type": "image/jpeg"})
            return response.raise_for_status().json()

        yield process.pid, post


def measure_server(name: str, place: Path) -> Figures:
    """All figures of one server, from one new process."""
    path = "/-/clip/classify.json?labels=thousand" if name == "ours" else "/"
    begun_s = time.perf_counter()
    with started(name, place) as (pid, post):

        def ask_ms(image: bytes) -> float:
            asked_s = time.perf_counter()
            answer = post(path, image)
            taken_s = time.perf_counter() - asked_s
            (answer["results"][0] if name == "ours" else answer)["matches"][0]["label"]  # it is an answer
            return 1000 * taken_s

        ask_ms(PHOTOS[0])
        cold_s = time.perf_counter() - begun_s
        photo_ms, large_ms = (
            [ask_ms(images[n % len(images)]) for n in range(WARM + count)][WARM:]
            for images, count in ((PHOTOS, TIMED[name]), (LARGE, max(5, TIMED[name] // 4)))
        )
        status = Path(f"/proc/{pid}/status").read_text()
    return {
        "cold_s": cold_s,
        "peak_mb": int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6,
        "photo_p50_ms": float(np.median(photo_ms)),
        "large_p50_ms": float(np.median(large_ms)),
    }


def embeddings(name: str, place: Path) -> NDArray[np.float32]:
    """A server's embeddings of PHOTOS and LARGE: [24, 512]."""
    path = "/-/clip/embed.json" if name == "ours" else "/"
    with started(name, place) as (_, post):
        answers = [post(path, image) for image in PHOTOS + LARGE]
    vectors = [(answer["results"][0] if name == "ours" else answer)["embedding"] for answer in answers]
    return np.array(vectors, np.float32).reshape(-1, EMBED_DIM)


def prepare(place: Path) -> Results:
    """Make everything that the servers need, check that kept and ours agree, and describe the model."""
    checkpoint = write_random(place / "checkpoint")
    lay_out(checkpoint, place)
    model = bake(checkpoint, place / "model")
    (place / "thousand.txt").write_text("\n".join(f"thing number {n}" for n in range(LABELS)))
    bake_labels(model, "thousand", place / "thousand.txt", say=say)
    say("check: kept and ours")
    worst = checked_cosine(embeddings("kept", place), embeddings("ours", place))
    manifest = model_dir.read_manifest(model)
    labels = label_sets.read_facts(model, manifest, "thousand").labels
    return {
        "labels": len(labels),
        "image_precision": manifest.towers["image"].precision,
        "worst_cosine": worst,
    }


def measure(place: Path, options: argparse.Namespace) -> Results:
    ratios = (("recipe", "ours"), ("kept", "ours"))
    return prepare(place) | compare(list(TIMED), options.pairs, lambda name: measure_server(name, place), ratios)


def table(results: Results) -> str:
    """Medians and ratios as plain text, then the source."""
    lines = [*comparison_lines(results, TITLES), ""]
    lines.append(f"{len(results['pairs'])} pairs, {results['labels']} labels, image tower {results['image_precision']}")
    count = len(PHOTOS) + len(LARGE)
    lines.append(f"lowest cosine of kept and ours, {count} images: {results['worst_cosine']:.4f}")
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, pairs=3)
