"""Measures classifying an image among 1000 labels over HTTP: ours beside torch loaded per request and kept loaded.

    python bench/classify.py [--pairs 3] [--to FILE]

    recipe   torch and transformers, the model loaded for each image, as CLIP on Heroku did it (torch_server.py)
    kept     sentence-transformers, loaded once (torch_server.py)
    ours     datasette-clip, POST /-/clip/classify.json, the label set baked

All on one checkpoint with random weights of ViT-B/32's shape, so what they answer means nothing but must agree. They
take turns; a figure is the median over pairs. Not measured: accuracy, for which demo/top_five.py is.
"""

from __future__ import annotations

import argparse
import io
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from llm_clip_onnx import label_sets, model_dir
from llm_clip_onnx.bake.label_set import bake_labels
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import (
    EMBED_DIM,
    OURS,
    ROOT,
    keep,
    lay_out,
    medians_of,
    origin,
    put_away_when_told_to_end,
    ratio,
    say,
    source_line,
    turns,
    worst_cosine,
)
from stacks import Stack, accepts, command, end, make_environment

TORCH = Stack("torch", ("llm-clip", "pillow"), set(), "", OURS.query, 0)  # llm-clip brings all that both peers need
LABELS, WARM, TIMED = 1000, 2, {"recipe": 8, "kept": 40, "ours": 40}
FIGURES = {
    "cold_s": ("start to first answer, s", 2),
    "photo_p50_ms": ("640x480 JPEG, p50, ms", 1),
    "large_p50_ms": ("4000x3000 JPEG (12 megapixels), p50, ms", 1),
    "peak_mb": ("peak resident, MB (VmHWM)", 0),
}


def jpegs(width: int, height: int, count: int) -> list[bytes]:
    """JPEGs of coloured clouds with some noise, as hard to decode as a photograph."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (max(2, height // 80), max(2, width // 80), 3), np.uint8))
        clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = (clouds + random.integers(-12, 13, clouds.shape, np.int16)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(jpeg := io.BytesIO(), "JPEG", quality=88)
        found.append(jpeg.getvalue())
    return found


PHOTOS, LARGE = jpegs(640, 480, 20), jpegs(4000, 3000, 4)


@contextmanager
def running(how: dict, port: int, log: Path) -> Iterator[psutil.Process]:
    """A server that accepts connections; ended on the way out. Raises RuntimeError with its log where it does not."""
    with log.open("wb") as to:
        process = psutil.Popen(**how, stdout=to, stderr=to)
    try:
        while not accepts("127.0.0.1", port):
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.005)
        yield process
    finally:
        end(process)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def started_by(name: str, place: Path, port: int) -> dict:
    """What Popen needs to start a server."""
    if name == "ours":
        arguments = ("--memory", "--metadata", str(ROOT / "metadata.json"), "--host", "127.0.0.1", "--port", str(port))
        return command(OURS, place, "datasette", "serve", *arguments)
    how = command(TORCH, place)
    vectors = place / "model" / model_dir.LABELS / "thousand.npy"
    script = [str(ROOT / "bench/torch_server.py"), str(port)]
    checkpoint = "clip-ViT-B-32/0_CLIPModel" if name == "recipe" else "clip-ViT-B-32"
    mode = "per-request" if name == "recipe" else "kept"
    return how | {"args": [how["args"][0], *script, checkpoint, str(vectors), mode]}


def best_label(answer: dict) -> str:
    matches = answer["results"][0]["matches"] if "results" in answer else answer["matches"]
    return str(matches[0]["label"])


def measure(name: str, place: Path) -> dict[str, float]:
    """All figures of one server, from one new process."""
    port = free_port()
    path = "/-/clip/classify.json?labels=thousand" if name == "ours" else "/"
    begun_s = time.perf_counter()
    with (
        running(started_by(name, place, port), port, place / f"{name}.log") as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):

        def ask_ms(image: bytes) -> float:
            asked_s = time.perf_counter()
            response = client.post(path, content=image, headers={"Content-Type": "image/jpeg"})
            taken_s = time.perf_counter() - asked_s
            best_label(response.raise_for_status().json())
            return 1000 * taken_s

        ask_ms(PHOTOS[0])
        cold_s = time.perf_counter() - begun_s
        photo_ms, large_ms = (
            [ask_ms(images[n % len(images)]) for n in range(WARM + count)][WARM:]
            for images, count in ((PHOTOS, TIMED[name]), (LARGE, max(5, TIMED[name] // 4)))
        )
        memory = Path(f"/proc/{process.pid}/status").read_text()
        peak_mb = int(memory.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    p50s = {"photo_p50_ms": float(np.median(photo_ms)), "large_p50_ms": float(np.median(large_ms))}
    return {"cold_s": cold_s, "peak_mb": peak_mb} | p50s


def embeddings(name: str, place: Path) -> NDArray[np.float32]:
    """What a server makes of PHOTOS and LARGE: [24, 512]."""
    port = free_port()
    with (
        running(started_by(name, place, port), port, place / f"{name}.log"),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        found = []
        for image in PHOTOS + LARGE:
            answer = client.post("/-/clip/embed.json" if name == "ours" else "/", content=image).json()
            found.append(answer["results"][0]["embedding"] if name == "ours" else answer["embedding"])
    return np.array(found, np.float32).reshape(-1, EMBED_DIM)


def prepare(place: Path) -> dict:
    """Make all that the servers need, see that kept and ours agree, and return what they serve."""
    say("checkpoint")
    checkpoint = write_checkpoint(place / "checkpoint", text=VIT_B_32, vision=VIT_B_32)
    lay_out(checkpoint, place)
    say("bake")
    bake = [sys.executable, "-m", "llm", "clip", "bake", str(checkpoint), "--to", str(place / "model")]
    subprocess.run(bake, check=True, stdout=sys.stderr)
    (place / "thousand.txt").write_text("\n".join(f"thing number {n}" for n in range(LABELS)))
    bake_labels(place / "model", "thousand", place / "thousand.txt", say=say)
    for stack in (TORCH, OURS):
        make_environment(stack, place)
    say("check: kept and ours")
    worst = worst_cosine(embeddings("kept", place), embeddings("ours", place))
    if worst < 0.98:
        raise RuntimeError(f"kept and ours differ: cosine {worst:.4f}, expected 0.98 or more")
    towers = model_dir.read_manifest(place / "model").towers
    facts = label_sets.read_facts(place / "model", model_dir.read_manifest(place / "model"), "thousand")
    return {"labels": len(facts.labels), "image_precision": towers["image"].precision, "worst_cosine": worst}


def run(place: Path, pairs: int) -> dict:
    """Measure in the folder `place` and return all that was found."""
    found = origin() | prepare(place)
    measured: list[dict] = [{} for _ in range(pairs)]
    for number, name in turns(list(TIMED), pairs):
        say(f"pair {number + 1} of {pairs}: {name}")
        measured[number][name] = measure(name, place)
    found["medians"] = {name: medians_of([pair[name] for pair in measured]) for name in TIMED}
    found["ratios"] = {
        f"{name} / ours": medians_of([ratio(pair[name], pair["ours"]) for pair in measured])
        for name in ("recipe", "kept")
    }
    return found | {"pairs": measured}


def table(found: dict) -> str:
    """Medians and ratios as plain text, then where they are from."""
    columns = {**found["medians"], **found["ratios"]}
    lines = ["".join([f"{'':42}", *(f"{name:>15}" for name in columns)])]
    for figure, (title, digits) in FIGURES.items():
        cells = [f"{column[figure]:.{digits}f}" for column in found["medians"].values()]
        cells += [f"{column[figure]:.1f}" for column in found["ratios"].values()]
        lines.append("".join([f"{title:42}", *(f"{cell:>15}" for cell in cells)]))
    lines += ["", f"{len(found['pairs'])} pairs, {found['labels']} labels, image tower {found['image_precision']}"]
    lines.append(f"lowest cosine of kept and ours, {len(PHOTOS) + len(LARGE)} images: {found['worst_cosine']:.4f}")
    lines.append(source_line(found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        found = run(Path(place), options.pairs)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
