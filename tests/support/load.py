"""Loads that break a server, and instances to run them on: the tests assert with them, bench/server/load.py measures.

soak runs 25 clients on a container, HEAVY are queries that never end, two_instances are two servers behind haproxy.
Clients are threads of this process, so that they can connect from inside the container.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx

from clients import Answers, ask
from containers import Container, inside_network_of, started
from serving import BIN, end, environment, free_port

CLIENTS = 25
WARM_S = 5  # not measured: the first seconds fill caches and start threads
HAPROXY = "/usr/sbin/haproxy" if os.path.exists("/usr/sbin/haproxy") else "haproxy"  # Debian's is not on every PATH
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
    timeout connect 2s
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


def resident_mb(container: Container) -> float:
    status = Path(f"/proc/{container.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6


@contextmanager
def instance(model: Path, address: str, *, core: int | None = None) -> Iterator[subprocess.Popen]:
    """`datasette serve` of a model directory at HOST:PORT, on one core if `core` is given. It need not be ready yet."""
    host, port = address.split(":")
    command = [str(BIN / "datasette"), "serve", "--memory", "--host", host, "--port", port]
    pinned = [] if core is None else ["taskset", "--cpu-list", str(core)]
    with tempfile.TemporaryDirectory() as user:
        env = environment(Path(user), CLIP_MODEL_DIR=str(model))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*pinned, *command], env=env, **quiet)
        try:
            yield process
        finally:
            end(process)


def wait_until_ready(address: str) -> str:
    """The address, once its server is ready. Raises RuntimeError if that takes over 60 s."""
    limit_s = time.monotonic() + 60
    while time.monotonic() < limit_s:
        try:
            if httpx.get(f"http://{address}/-/clip/health", trust_env=False).status_code == 200:
                return address
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{address} is not ready in 60 s")


def free_address() -> str:
    """HOST:PORT on this machine where nothing listens."""
    return f"127.0.0.1:{free_port()}"


@contextmanager
def proxied(one: str, two: str) -> Iterator[str]:
    """The address of a haproxy before two addresses."""
    with tempfile.TemporaryDirectory() as place:
        front, config = free_address(), Path(place) / "haproxy.cfg"
        config.write_text(PROXY.format(front=front, one=one, two=two))
        process = subprocess.Popen([HAPROXY, "-db", "-q", "-f", str(config)])
        try:
            yield front
        finally:
            end(process)


@contextmanager
def two_instances(model: Path) -> Iterator[tuple[str, subprocess.Popen, str]]:
    """The address of haproxy before two instances on a core each; the second one's process, and its address."""
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
