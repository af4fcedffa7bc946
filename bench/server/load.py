"""Measures many clients at once: on the container for ten minutes, beside a heavy query, and on two instances.

    python -m bench.server.load [--parts soak heavy two] [--minutes 10] [--seconds 20] [--to FILE]

    soak    25 clients on the container with 256 MB: errors, p99, memory in the first and last minute
    heavy   4 clients, first alone, then beside one client whose queries never end, for each of HEAVY
    two     25 clients on one instance on one core; on two instances on a core each behind haproxy; and on those two
            while one of them is stopped and started

Every client sends new texts. The model has random weights of ViT-B/32's shape in 8 bits. Each load runs once and
nothing takes turns: p50 and p99 are over thousands of answers, so a disturbance of a second hardly moves them, one of
minutes does. Clients are threads of this process, so that they can connect from inside the container, and share the
cores with the server: a rate is a lower bound. Linux; `soak` needs root, buildah and podman, `two` needs haproxy.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx

from bench.harness.command import Results, main, say, source_line
from bench.harness.models import bake, write_random
from building import build, copy_context, run
from clients import Answers, ask
from containers import inside_network_of, started
from load import HEAVY, free_address, instance, resident_mb, two_instances, wait_until_ready

PARTS = ("soak", "heavy", "two")
CLIENTS = 25
WARM_S = 5  # not measured: the first seconds fill caches and start threads
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


def stopped_and_started(model: Path, seconds: float) -> Answers:
    """What 25 clients see of two instances while one is stopped after 1/3 of the time and started again after 2/3."""
    with two_instances(model) as (front, process, address), ExitStack() as again:
        begun_s = time.monotonic()

        def stop_and_start() -> None:
            passed = (time.monotonic() - begun_s) / seconds
            if passed > 1 / 3 and not stopped:  # once: a second SIGTERM while it ends would kill it
                stopped.append(process.terminate())
            if passed > 2 / 3 and not restarted:
                process.wait(20)
                restarted.append(again.enter_context(instance(model, address, core=1)))

        stopped: list[None] = []
        restarted: list[subprocess.Popen] = []
        answers = ask(front, CLIENTS, seconds, seed="stopped", each_second=stop_and_start)
        if process.returncode != 0 or not restarted:
            raise RuntimeError(f"was not stopped and started: {process.returncode}, {restarted}")
        return answers


def soak(image: str, minutes: float, memory: str = "256m") -> dict:
    """What 25 clients see in some minutes on a container of this much memory, and its memory over that time."""
    resident: list[float] = []
    with started(image, "--memory", memory, "--memory-swap", memory) as container:
        container.ready()
        address, inside = f"127.0.0.1:{container.port}", partial(inside_network_of, container.pid)
        ask(address, CLIENTS, WARM_S, seed="warm", inside=inside)
        note = lambda: resident.append(resident_mb(container))  # noqa: E731
        answers = ask(address, CLIENTS, minutes * 60, seed="soak", inside=inside, each_second=note)
        alive = container.exit_code is None
    window = max(1, min(60, len(resident) // 4))
    return answers.summary() | {
        "minutes": minutes,
        "memory_limit": memory,
        "alive": alive,
        "first_mb": round(sum(resident[:window]) / window, 1),
        "last_mb": round(sum(resident[-window:]) / window, 1),
        "most_mb": round(max(resident), 1),
    }


def build_and_soak(checkpoint: Path, place: Path, minutes: float) -> dict[str, dict]:
    say("building the image")
    try:
        context = copy_context(place / "context")
        shutil.copytree(checkpoint, context / "deploy" / "checkpoints" / "random")
        build(IMAGE, context, CLIP_MODEL="deploy/checkpoints/random", LABELS="", VERIFY="0")
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
