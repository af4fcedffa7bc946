"""Measures many clients at once: on the container for ten minutes, beside a heavy query, and on two instances.

    python -m bench.server.load [--parts soak heavy two] [--minutes 10] [--seconds 20] [--to FILE]

    soak    25 clients on the container with 256 MB: errors, p99, memory in the first and last minute
    heavy   4 clients, first alone, then beside one client whose queries never end, for each of HEAVY
    two     25 clients on one instance on one core; on two instances on a core each behind haproxy; and on those two
            while one of them is stopped and started

Every client sends new texts. The model has random weights of ViT-B/32's shape in 8 bits. Each load runs once and
nothing takes turns: p50 and p99 are over thousands of answers, so a disturbance of a second hardly moves them, one of
minutes does. Clients are threads of this process and share the cores with the server: a rate is a lower bound. Linux;
`soak` needs root, buildah and podman, `two` needs haproxy. The loads are tests/support/load.py.
"""

from __future__ import annotations

import argparse
import shutil
import threading
from pathlib import Path

import httpx

from bench.harness.command import Results, main, say, source_line
from bench.harness.models import bake, write_random
from building import build, copy_context, run
from clients import ask
from load import (
    CLIENTS,
    HEAVY,
    WARM_S,
    free_address,
    instance,
    soak,
    stopped_and_started,
    two_instances,
    wait_until_ready,
)

PARTS = ("soak", "heavy", "two")
IMAGE = "localhost/clip-bench:load"


def heavy(model: Path, seconds: float) -> dict[str, dict]:
    """What 4 clients see alone, and beside a client that sends each kind of heavy query again and again."""
    say("beside heavy queries")
    loads = {}
    with instance(model, address := free_address()):
        wait_until_ready(address)
        ask(address, 4, WARM_S, seed="warm")
        loads["nothing"] = ask(address, 4, seconds, seed="alone").summary()
        for name, sql in HEAVY.items():
            stop, codes = threading.Event(), []
            attacker = threading.Thread(target=attack, args=(address, sql, stop, codes))
            attacker.start()
            loads[name] = ask(address, 4, seconds, seed=name).summary()
            stop.set()
            attacker.join()
            loads[name] |= {"heavy_answers": {code: codes.count(code) for code in sorted(set(codes))}}
    return loads


def attack(address: str, sql: str, stop: threading.Event, codes: list[int]) -> None:
    """Send a heavy query again and again until `stop`, and note the status of each answer."""
    while not stop.is_set():
        request = {"params": {"sql": sql, "q": str(len(codes))}, "timeout": 60, "trust_env": False}
        codes.append(httpx.get(f"http://{address}/_memory.json", **request).status_code)


def two(model: Path, seconds: float) -> dict[str, dict]:
    """What 25 clients see of one instance, of two, and of two while one of them is stopped and started."""
    say("two instances")
    loads = {}
    with instance(model, one := free_address(), core=0):
        loads["one instance"] = ask(wait_until_ready(one), CLIENTS, seconds, seed="one").summary()
    with two_instances(model) as (front, _, _):
        loads["two instances"] = ask(front, CLIENTS, seconds, seed="two").summary()
    return loads | {"two, one stopped and started": stopped_and_started(model, seconds).summary()}


def build_and_soak(checkpoint: Path, place: Path, minutes: float) -> dict[str, dict]:
    say("building the image")
    try:
        context = copy_context(place / "context")
        shutil.copytree(checkpoint, context / "checkpoints" / "random")
        build(IMAGE, context, CLIP_MODEL="checkpoints/random", LABELS="", VERIFY="0")
        say(f"soaking it for {minutes} minutes")
        return {f"{CLIENTS} clients, 256 MB": soak(IMAGE, minutes)}
    finally:
        run("podman", "rmi", IMAGE, ok=False)


def measure(place: Path, options: argparse.Namespace) -> Results:
    checkpoint = write_random(place / "checkpoint")
    model = bake(checkpoint, place / "model")
    parts = {
        "heavy": lambda: heavy(model, options.seconds),
        "two": lambda: two(model, options.seconds),
        "soak": lambda: build_and_soak(checkpoint, place, options.minutes),
    }
    return {name: part() for name, part in parts.items() if name in options.parts}


def table(results: Results) -> str:
    """The figures as plain text: a line for each load."""
    columns = ("per_s", "p50_ms", "p99_ms", "most_ms", "answers", "errors")
    lines = ["".join([f"{'':34}", *(f"{name.replace('_', ', '):>12}" for name in columns)])]
    for part in PARTS:
        for name, load in results.get(part, {}).items():
            lines.append("".join([f"{name:34}", *(f"{load[column]:>12}" for column in columns)]))
    if "soak" in results:
        [load] = results["soak"].values()
        lines += ["", f"memory in the first and last minute: {load['first_mb']} and {load['last_mb']} MB"]
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, parts=PARTS, minutes=10.0, seconds=20.0)
