"""Measures the container: its size, and from a cold start its memory, CPU seconds and time to the first embedding.

    python bench/container.py [--starts 5] [--to FILE]

Two models: the demo, and random weights of ViT-B/32's shape in 8 bits. Each is started in a container of one core
without network, read-only and without capabilities:

    full      as fast as the core goes
    burst     as Fly runs a shared CPU: the first 5 CPU seconds at full speed, then 5 ms of every 80
    shared    5 ms of every 80 from the very start, as when the burst was used up before

A start is a new process on files read before. Its time counts from the start of the process in the container to the
answer with the embedding, its CPU seconds are those of the container's cgroup; a figure is the median over starts. The
two models are not compared and take no turns. Least memory is the lowest of LIMITS_MB by which all is answered. The
base image is building.py's stand-in, which is some MB smaller than the official one. Linux, root. Not measured: pulling
the image, what a host does before it starts a process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from building import build, copy_context, run, size_bytes, stand_in, why_not
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import TEXTS, keep, make_images, origin, put_away_when_told_to_end, say, source_line
from running import Container, started

PYTHON = "3.13"
ONE_CORE = ("--cpuset-cpus", "0")
PERIOD_US, QUOTA_US, BURST_S = 80_000, 5_000, 5.0  # fly.io/docs: shared CPUs, baseline 1/16
LIMITS_MB = (100, 128, 150, 175, 200, 225, 256, 300, 350, 400, 512)
IMAGES = {"demo": "localhost/clip-bench:demo", "ViT-B/32's shape": "localhost/clip-bench:vit-b-32"}  # model: its image
IMAGES_SQL = "select hex(llm_embed('clip', image)) as x from images where id between :q and :q + 1"


def since_start_s(container: Container) -> float:
    """Seconds since the first process of the container was started."""
    ticks = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100


def first(container: Container) -> dict[str, float]:
    """Seconds and CPU seconds from the start to the first embedding."""
    container.first_embedding(TEXTS[0])
    return {"first_wall_s": since_start_s(container), "first_cpu_s": container.cpu_s()}


def ask_texts(container: Container, texts: list[str]) -> list[float]:
    """Milliseconds of one query after the other."""
    times_ms = []
    for text in texts:
        begun = time.perf_counter()
        container.embed(text)
        times_ms.append((time.perf_counter() - begun) * 1000)
    return times_ms


def ask_images(container: Container) -> None:
    for q in range(1, 20, 2):  # two by two, for all 20 take longer than Datasette's second
        response = container.get("/images.json", sql=IMAGES_SQL, q=q, _shape="array")
        if [len(row["x"]) for row in response.json()] != [4096, 4096]:
            raise RuntimeError(response.text[:500])


def measure_full(image: str) -> dict[str, float]:
    with started(image, *ONE_CORE) as container:
        found = first(container)
        found["query_p50_ms"] = float(np.median(ask_texts(container, TEXTS[1:101])))
        found["text_peak_mb"] = container.peak_mb()
        ask_images(container)
        return found | {"image_peak_mb": container.peak_mb()}


def measure_burst(image: str) -> dict[str, float]:
    """With the figures, how much of the burst was left at the first embedding; at 0 it was over before."""
    with started(image, *ONE_CORE) as container:
        threading.Thread(target=slow_down_after_burst, args=(container,), daemon=True).start()
        found = first(container)
        return found | {"burst_left_s": max(0.0, BURST_S - found["first_cpu_s"])}


def slow_down_after_burst(container: Container) -> None:
    """Wait until the container has used its burst, then give it its share."""
    try:
        while container.cpu_s() < BURST_S:
            time.sleep(0.005)
        container.slow_down(PERIOD_US, QUOTA_US)
    except OSError:
        pass  # it has ended


def measure_shared(image: str) -> dict[str, float]:
    limits = ("--cpu-period", str(PERIOD_US), "--cpu-quota", str(QUOTA_US))
    with started(image, *ONE_CORE, *limits) as container:
        found = first(container)
        return found | {"query_p50_ms": float(np.median(ask_texts(container, TEXTS[1:11])))}


def least_memory_mb(image: str, images_too: bool) -> int | None:
    """The lowest of LIMITS_MB by which texts, or images too, are answered. None: by none of them."""
    for limit in LIMITS_MB:
        memory = ("--memory", f"{limit}m", "--memory-swap", f"{limit}m")
        try:
            with started(image, *ONE_CORE, *memory) as container:
                container.first_embedding(TEXTS[0])
                ask_texts(container, TEXTS[1:26])
                if images_too:
                    ask_images(container)
                return limit
        except (RuntimeError, OSError, httpx.TransportError):
            say(f"  {limit} MB are too little")
    return None


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {figure: round(float(np.median([one[figure] for one in runs])), 3) for figure in runs[0]}


def measure(image: str, starts: int) -> dict:
    """All figures of an image."""
    manifest = json.loads(run("podman", "run", "--rm", image, "cat", "/model/manifest.json").stdout)
    found: dict = {
        "image_mb": round(size_bytes(image) / 1e6, 1),
        "model_mb": round(sum(file["bytes"] for file in manifest["files"].values()) / 1e6, 1),
        "precision": {name: tower["precision"] for name, tower in manifest["towers"].items()},
    }
    for name, how, times in (
        ("full", measure_full, starts),
        ("burst", measure_burst, 3),
        ("shared", measure_shared, 3),
    ):
        say(f"{image}: {name}")
        found[name] = medians([how(image) for _ in range(times)])
    for name, images_too in (("text", False), ("image", True)):
        say(f"{image}: least memory, {name}")
        found[f"{name}_least_memory_mb"] = least_memory_mb(image, images_too)
    return found


def build_images(place: Path) -> None:
    """Build IMAGES, with the table of images in a database."""
    context = copy_context(place / "context")
    make_images(context / "deploy" / "databases" / "images.db")
    write_checkpoint(context / "deploy" / "checkpoints" / "vit-b-32", text=VIT_B_32, vision=VIT_B_32)
    for image, source in zip(IMAGES.values(), ("demo/checkpoint", "deploy/checkpoints/vit-b-32")):
        say(f"building with {source}")
        build(image, context, python=PYTHON, CLIP_MODEL=source, LABELS="", VERIFY="0")


def table(found: dict) -> str:
    """The figures as plain text: a line per figure, a column per model."""
    models = found["models"].values()
    lines = ["".join([f"{'':52}", *(f"{name:>18}" for name in found["models"])])]
    for title, *path in (
        ("image, MB (10^6 bytes, uncompressed)", "image_mb"),
        ("  model directory of that, MB", "model_mb"),
        ("first embedding after, s", "full", "first_wall_s"),
        ("  CPU seconds of that", "full", "first_cpu_s"),
        ("  with Fly's burst, s", "burst", "first_wall_s"),
        ("    CPU seconds of burst left then", "burst", "burst_left_s"),
        ("  with 1/16 of a core from the start, s", "shared", "first_wall_s"),
        ("query, new text each time, p50, ms", "full", "query_p50_ms"),
        ("  with 1/16 of a core, ms", "shared", "query_p50_ms"),
        ("peak resident, text only, MB", "full", "text_peak_mb"),
        ("  after 20 images too, MB", "full", "image_peak_mb"),
        ("least --memory for text, MiB", "text_least_memory_mb"),
        ("  for images too, MiB", "image_least_memory_mb"),
    ):
        cells, places = [], 2 if title.endswith(", s") else 1
        for model in models:
            value = model
            for key in path:
                value = value[key]
            cells.append(f"{value:>18.{places}f}" if isinstance(value, float) else f"{value!s:>18}")
        lines.append("".join([f"{title:52}", *cells]))
    lines += [
        "",
        f"base image: {found['base']}, {found['base_mb']:.0f} MB; median of {found['starts']} starts (3 slowed ones)",
    ]
    lines.append(source_line(found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    put_away_when_told_to_end()
    found: dict = origin() | {"starts": options.starts}
    base = stand_in(PYTHON)
    debian = run("podman", "run", "--rm", base, "cat", "/etc/os-release").stdout
    found |= {
        "base": f"stand-in of {re.search('PRETTY_NAME=.(.*?).$', debian, re.M)[1]}",
        "base_mb": size_bytes(base) / 1e6,
    }
    try:
        with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
            build_images(Path(place))
        found["models"] = {model: measure(image, options.starts) for model, image in IMAGES.items()}
    finally:
        for image in IMAGES.values():
            run("podman", "rmi", image, ok=False)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
