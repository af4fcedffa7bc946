"""Queries that never end, and instances behind haproxy, for tests and for bench/server/load.py."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from containers import Container
from listening import end, free_port
from serving import BIN, environment

# Debian installs it in a folder that is not on every PATH.
HAPROXY = "/usr/sbin/haproxy" if os.path.exists("/usr/sbin/haproxy") else "haproxy"
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
    """The address, once its server is ready. Raises RuntimeError if that takes over 300 s."""
    limit_s = time.monotonic() + 300
    while time.monotonic() < limit_s:
        try:
            if httpx.get(f"http://{address}/-/clip/health", trust_env=False).status_code == 200:
                return address
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{address} is not ready in 300 s")


def free_address() -> str:
    """HOST:PORT on this machine where nothing listens."""
    return f"127.0.0.1:{free_port()}"


@contextmanager
def proxied(one: str, two: str) -> Iterator[str]:
    """The address of a haproxy in front of two addresses."""
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
    """Two instances on a core each behind haproxy: haproxy's address, and the process and address of the second."""
    one, other = free_address(), free_address()
    with (
        instance(model, one, core=0),
        instance(model, other, core=1) as process,
        proxied(one, other) as front,
    ):
        for address in (one, other, front):
            wait_until_ready(address)
        yield front, process, other
