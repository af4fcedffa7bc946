"""Measures the container: its size, and from a cold start its memory, CPU seconds and time to the first embedding.

    python -m bench.container.container [--starts 5] [--to FILE]

Two models: the demo, and random weights of ViT-B/32's shape in 8 bits. Each is started in a container of one core
without network, read-only and without capabilities:

    full      as fast as the core goes
    burst     as Fly runs a shared CPU: the first 5 CPU seconds at full speed, then 5 ms of every 80
    shared    5 ms of every 80 from the very start, as when the burst was used up before

A start is a new process on files that were read before. Its time counts from the start of the container's process to
the answer with the embedding, its CPU seconds are those of the container's cgroup; a figure is the median over starts.
The two models are not compared and take no turns. Least memory is the lowest of LIMITS_MB with which every query is
answered. The base image is the stand-in of tests/support/building.py, some MB smaller than the official one. Linux,
root. Not measured: pulling the image, and what a host does before it starts a process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from bench.harness.command import Results, main, say, source_line
from bench.harness.inputs import TEXTS, write_images
from bench.harness.models import write_random
from bench.harness.turns import Figures, medians_of
from building import build, copy_context, run, size_bytes, stand_in, why_not
from containers import Container, started

PYTHON = "3.13"
ONE_CORE = ("--cpuset-cpus", "0")
PERIOD_US, QUOTA_US, BURST_S = 80_000, 5_000, 5.0  # fly.io/docs: shared CPUs, baseline 1/16
LIMITS_MB = (100, 128, 150, 175, 200, 225, 256, 300, 350, 400, 512)
IMAGES = {"demo": "localhost/clip-bench:demo", "ViT-B/32's shape": "localhost/clip-bench:vit-b-32"}  # model: its image
IMAGES_SQL = "select hex(llm_embed('clip', image)) as x from images where id between :q and :q + 1"


def since_start_s(container: Container) -> float:
    """Seconds since the start of the container's first process."""
    ticks = int(Path(f"/proc/{container.pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / 100


def first_embedding(container: Container) -> Figures:
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
    """Embed all 20 images, two a query: all in one take longer than Datasette's limit of a second."""
    for q in range(1, 20, 2):
        response = container.get("/images.json", sql=IMAGES_SQL, q=q, _shape="array")
        if [len(row["x"]) for row in response.json()] != [4096, 4096]:
            raise RuntimeError(response.text[:500])


def measure_full(image: str) -> Figures:
    with started(image, *ONE_CORE) as container:
        figures = first_embedding(container)
        figures["query_p50_ms"] = float(np.median(ask_texts(container, TEXTS[1:101])))
        figures["text_peak_mb"] = container.peak_mb()
        ask_images(container)
        return figures | {"image_peak_mb": container.peak_mb()}


def measure_burst(image: str) -> Figures:
    """The figures, and how many seconds of the burst are left at the first embedding."""
    with started(image, *ONE_CORE) as container:
        threading.Thread(target=slow_down_after_burst, args=(container,), daemon=True).start()
        figures = first_embedding(container)
        return figures | {"burst_left_s": max(0.0, BURST_S - figures["first_cpu_s"])}


def slow_down_after_burst(container: Container) -> None:
    """Wait until the container has used its burst, then limit it to its share."""
    try:
        while container.cpu_s() < BURST_S:
            time.sleep(0.005)
        container.slow_down(PERIOD_US, QUOTA_US)
    except OSError:
        pass  # it has ended


def measure_shared(image: str) -> Figures:
    limits = ("--cpu-period", str(PERIOD_US), "--cpu-quota", str(QUOTA_US))
    with started(image, *ONE_CORE, *limits) as container:
        figures = first_embedding(container)
        return figures | {"query_p50_ms": float(np.median(ask_texts(container, TEXTS[1:11])))}


def least_memory_mb(image: str, images_too: bool) -> int | None:
    """The lowest of LIMITS_MB with which texts, and images if asked for, are answered; None if no limit suffices."""
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


def measure_image(image: str, starts: int) -> Results:
    """All figures of an image."""
    manifest = json.loads(run("podman", "run", "--rm", image, "cat", "/model/manifest.json").stdout)
    results: Results = {
        "image_mb": round(size_bytes(image) / 1e6, 1),
        "model_mb": round(sum(file["bytes"] for file in manifest["files"].values()) / 1e6, 1),
        "precision": {name: tower["precision"] for name, tower in manifest["towers"].items()},
    }
    for name, start, times in (
        ("full", measure_full, starts),
        ("burst", measure_burst, 3),
        ("shared", measure_shared, 3),
    ):
        say(f"{image}: {name}")
        medians = medians_of([start(image) for _ in range(times)])
        results[name] = {figure: round(value, 3) for figure, value in medians.items()}
    for name, images_too in (("text", False), ("image", True)):
        say(f"{image}: least memory, {name}")
        results[f"{name}_least_memory_mb"] = least_memory_mb(image, images_too)
    return results


def build_images(place: Path) -> None:
    """Build IMAGES, each with a database that has the table of images."""
    context = copy_context(place / "context")
    write_images(context / "deploy" / "databases" / "images.db")
    write_random(context / "deploy" / "checkpoints" / "vit-b-32")
    for image, source in zip(IMAGES.values(), ("demo/checkpoint", "deploy/checkpoints/vit-b-32")):
        say(f"building with {source}")
        build(image, context, python=PYTHON, CLIP_MODEL=source, LABELS="", VERIFY="0")


def measure(place: Path, options: argparse.Namespace) -> Results:
    if reason := why_not():
        sys.exit(reason)
    base = stand_in(PYTHON)
    debian = run("podman", "run", "--rm", base, "cat", "/etc/os-release").stdout
    name = re.search("PRETTY_NAME=.(.*?).$", debian, re.M)[1]
    try:
        build_images(place)
        models = {model: measure_image(image, options.starts) for model, image in IMAGES.items()}
    finally:
        for image in IMAGES.values():
            run("podman", "rmi", image, ok=False)
    base_mb = size_bytes(base) / 1e6
    return {"starts": options.starts, "base": f"stand-in of {name}", "base_mb": base_mb, "models": models}


def table(results: Results) -> str:
    """The figures as plain text: a line per figure, a column per model."""
    models = results["models"].values()
    lines = ["".join([f"{'':52}", *(f"{name:>18}" for name in results["models"])])]
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
    base = f"base image: {results['base']}, {results['base_mb']:.0f} MB"
    lines += ["", f"{base}; median of {results['starts']} starts (3 slowed ones)", source_line(results)]
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__, measure, table, starts=5)
