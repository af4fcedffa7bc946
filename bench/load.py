"""Measures many clients at once: on the container for as long as you like, beside a heavy query, and on two instances.

    python bench/load.py [soak] [heavy] [two] [--minutes 10] [--to FILE]

    soak    25 clients ask the container, limited to 256 MB, new texts: errors, p99, memory in the first and last minute
    heavy   4 clients ask new texts, first alone, then beside one client whose queries never end, of each of HEAVY
    two     25 clients ask one instance on one core; two on a core each behind haproxy; and those two again while one
            of them is stopped and started

The model has random weights of ViT-B/32's shape in 8 bits. Each load runs once, its p50 and p99 over thousands of
answers: a disturbance of a second hardly moves them, one of minutes does, for nothing takes turns. Clients are this
process, to be able to connect from inside the container, and share the cores with what they ask: a figure here is a
lower bound. Linux; `soak` wants root, buildah and podman, `two` wants haproxy.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from building import build, copy_context, run
from clients import Answers, ask, free_address
from llm_clip_onnx.bake import bake
from random_checkpoint import VIT_B_32, write_checkpoint
from recipe import keep, origin, put_away_when_told_to_end, say, source_line
from running import Container, inside_network_of, started

BIN = Path(sys.executable).parent
PARTS = ("soak", "heavy", "two")
CLIENTS = 25
WARM_S = 5  # not measured: the first seconds fill caches and start threads
HAPROXY = "/usr/sbin/haproxy" if os.path.exists("/usr/sbin/haproxy") else "haproxy"  # Debian's is not on all PATHs
IMAGE = "localhost/clip-bench:load"
FOR_EVER = "with recursive c(x) as (select 1 union all select x + 1 from c)"
HEAVY = {
    "llm_embed without end": f"{FOR_EVER} select max(llm_embed('clip', x || :q)) from c",
    "a cross join": f"{FOR_EVER}, d as (select x from c limit 100000) select count(*) from d, d as e where d.x < e.x",
    "randomblob": f"{FOR_EVER} select max(length(randomblob(1000000))) from c",
    "a sort in memory": f"{FOR_EVER} select x, randomblob(1000) as r from c order by r",
}
PROXY = """
global
    maxconn 500
defaults
    mode http
    timeout connect 60s
    timeout check 60s
    timeout client 60s
    timeout server 60s
    retries 5
    option redispatch 1
    retry-on conn-failure empty-response 503
frontend front
    bind {front}
    default_backend instances
backend instances
    balance leastconn
    option httpchk GET /-/clip/health
    default-server check inter 200ms fall 1 rise 1
    server one {one}
    server two {two}
"""


def soak(image: str, minutes: float, memory: str = "256m") -> dict:
    """25 clients for some minutes on a container of this much memory: answers, errors, and its memory over time."""
    held: list[float] = []
    with started(image, "--memory", memory, "--memory-swap", memory) as container:
        container.ready()
        address, inside = f"127.0.0.1:{container.port}", partial(inside_network_of, container.pid)
        ask(address, CLIENTS, WARM_S, seed="warm", inside=inside)
        note = lambda: held.append(resident_mb(container))  # noqa: E731
        answers = ask(address, CLIENTS, minutes * 60, seed="soak", inside=inside, each_second=note)
        alive = container.exit_code is None
    window = max(1, min(60, len(held) // 4))
    return answers.summary() | {
        "minutes": minutes,
        "memory_limit": memory,
        "alive": alive,
        "first_mb": round(sum(held[:window]) / window, 1),
        "last_mb": round(sum(held[-window:]) / window, 1),
        "most_mb": round(max(held), 1),
    }


def resident_mb(container: Container) -> float:
    status = Path(f"/proc/{container.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


@contextmanager
def instance(model: Path, address: str, *, core: int | None = None) -> Iterator[subprocess.Popen]:
    """`datasette serve` of a model directory at HOST:PORT, on one core if told which; it need not be ready."""
    host, port = address.split(":")
    command = [str(BIN / "datasette"), "serve", "--memory", "--host", host, "--port", port]
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    with tempfile.TemporaryDirectory() as user:
        own = {"CLIP_MODEL_DIR": str(model), "LLM_USER_PATH": user, "LLM_LOAD_PLUGINS": "datasette-clip"}
        process = subprocess.Popen(
            [*pinned, *command], env=os.environ | own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(300)


def wait_until_ready(address: str) -> str:
    """The address, once what is there is ready."""
    end_s = time.monotonic() + 300
    while time.monotonic() < end_s:
        try:
            if httpx.get(f"http://{address}/-/clip/health", trust_env=False).status_code == 200:
                return address
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{address} is not ready in 300 s")


def heavy(model: Path, seconds: float) -> dict[str, dict]:
    """What 4 clients see alone, and beside one that asks each kind of heavy query again and again."""
    found = {}
    with instance(model, address := free_address()):
        wait_until_ready(address)
        ask(address, 4, WARM_S, seed="warm")
        found["nothing"] = ask(address, 4, seconds, seed="alone").summary()
        for name, sql in HEAVY.items():
            stop, codes = threading.Event(), []
            attacker = threading.Thread(target=attack, args=(address, sql, stop, codes))
            attacker.start()
            found[name] = ask(address, 4, seconds, seed=name).summary()
            stop.set()
            attacker.join()
            found[name] |= {"heavy_answers": {code: codes.count(code) for code in sorted(set(codes))}}
    return found


def attack(address: str, sql: str, stop: threading.Event, codes: list[int]) -> None:
    while not stop.is_set():
        asked = {"params": {"sql": sql, "q": str(len(codes))}, "timeout": 60, "trust_env": False}
        codes.append(httpx.get(f"http://{address}/_memory.json", **asked).status_code)


@contextmanager
def proxied(one: str, two: str) -> Iterator[str]:
    """haproxy before two addresses: its own."""
    with tempfile.TemporaryDirectory() as place:
        front, config = free_address(), Path(place) / "haproxy.cfg"
        config.write_text(PROXY.format(front=front, one=one, two=two))
        process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(config)])
        try:
            yield front
        finally:
            process.terminate()
            process.wait(300)


def two(model: Path, seconds: float) -> dict[str, dict]:
    """What 25 clients see of one instance, of two, and of two of which one is stopped and started meanwhile."""
    found = {}
    with instance(model, one := free_address(), core=0):
        found["one instance"] = ask(wait_until_ready(one), CLIENTS, seconds, seed="one").summary()
    with two_instances(model) as (front, _, _):
        found["two instances"] = ask(front, CLIENTS, seconds, seed="two").summary()
    return found | {"two, one stopped and started": stopped_and_started(model, seconds).summary()}


@contextmanager
def two_instances(model: Path) -> Iterator[tuple[str, subprocess.Popen, str]]:
    """The address of haproxy before two instances, a core each; the process of one of these, and its address."""
    one, other = free_address(), free_address()
    with (
        instance(model, one, core=0),
        instance(model, other, core=1) as process,
        proxied(one, other) as front,
    ):
        for address in (one, other, front):
            wait_until_ready(address)
        yield front, process, other


def stopped_and_started(model: Path, seconds: float) -> Answers:
    """What 25 clients see of two instances while one is stopped after a third of the time, and started after two."""
    with two_instances(model) as (front, process, address), ExitStack() as again:
        begun_s = time.monotonic()

        def stop_and_start() -> None:
            passed = (time.monotonic() - begun_s) / seconds
            if passed > 1 / 3 and process.poll() is None:
                process.terminate()
            if passed > 2 / 3 and not started_again:
                started_again.append(again.enter_context(instance(model, address, core=1)))

        started_again: list[subprocess.Popen] = []
        found = ask(front, CLIENTS, seconds, seed="stopped", each_second=stop_and_start)
        if process.returncode != 0 or not started_again:
            raise RuntimeError(f"was not stopped and started: {process.returncode}, {started_again}")
        return found


def build_image(checkpoint: Path, place: Path) -> None:
    context = copy_context(place / "context")
    shutil.copytree(checkpoint, context / "checkpoints" / "random")
    build(IMAGE, context, CLIP_MODEL="checkpoints/random", LABELS="", VERIFY="0")


def table(found: dict) -> str:
    """The figures as plain text: a line for each load."""
    columns = ("per_s", "p50_ms", "p99_ms", "most_ms", "answers", "errors")
    lines = ["".join([f"{'':34}", *(f"{name.replace('_', ', '):>12}" for name in columns)])]
    for part in PARTS:
        for name, load in found.get(part, {}).items():
            lines.append("".join([f"{name:34}", *(f"{load[column]:>12}" for column in columns)]))
    if "soak" in found:
        [load] = found["soak"].values()
        lines += ["", f"memory in the first and last minute: {load['first_mb']} and {load['last_mb']} MB"]
    lines.append(source_line(found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help="soak, heavy or two; all without")
    parser.add_argument("--minutes", type=float, default=10, help="of the soak")
    parser.add_argument("--seconds", type=float, default=20, help="of each other load")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    found: dict = origin()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint", text=VIT_B_32, vision=VIT_B_32)
        model = Path(folder) / "model"
        bake(str(checkpoint), model, say=say)
        if "heavy" in options.parts:
            say("beside heavy queries")
            found["heavy"] = heavy(model, options.seconds)
        if "two" in options.parts:
            say("two instances")
            found["two"] = two(model, options.seconds)
        if "soak" in options.parts:
            try:
                say("building the image")
                build_image(checkpoint, Path(folder))
                say(f"soaking it for {options.minutes} minutes")
                found["soak"] = {f"{CLIENTS} clients, 256 MB": soak(IMAGE, options.minutes)}
            finally:
                run("podman", "rmi", IMAGE, ok=False)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
