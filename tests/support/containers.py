"""Runs an image as strictly as a host does, sends it requests, and reads what it used. Linux, root.

A container has no network but its own loopback, a read-only root without any tmpfs, and no capabilities. Its clients
connect from inside its network. building.py builds the image.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import numpy as np
from numpy.typing import NDArray

from building import run

STRICTLY = (
    *("--network", "none", "--read-only", "--read-only-tmpfs=false"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pull", "never"),
)
EMBED = "select hex(llm_embed('clip', :q)) as x"
CLONE_NEWNET = 0x40000000
START_LIMIT_S = 600
number = itertools.count()


class Container:
    """A container that was started. Each request is a new connection, made inside its network."""

    def __init__(self, name: str, port: int):
        self.name, self.port, self.requests = name, port, 0
        self.pid = int(self.inspect("{{.State.Pid}}"))

    def inspect(self, what: str) -> str:
        return run("podman", "inspect", "--format", what, self.name).stdout.strip()

    @property
    def exit_code(self) -> int | None:
        """Its exit code, None while it runs."""
        return None if self.inspect("{{.State.Running}}") == "true" else int(self.inspect("{{.State.ExitCode}}"))

    def logs(self) -> str:
        logs = run("podman", "logs", self.name)
        return logs.stdout + logs.stderr

    def execute(self, *command: str) -> CompletedProcess[str]:
        """Run a command in the container: the finished process."""
        return run("podman", "exec", self.name, *command, ok=False)

    def copy_out(self, path: str, to: Path) -> Path:
        """Copy a folder of the container into the folder `to`, and return the copy."""
        run("podman", "cp", f"{self.name}:{path}", to)
        return to / Path(path).name

    def healthy(self) -> bool:
        """True if its HEALTHCHECK passes."""
        return run("podman", "healthcheck", "run", self.name, ok=False).returncode == 0

    def signal(self, name: str) -> None:
        run("podman", "kill", "--signal", name, self.name)

    def get(self, path: str, **parameters: str | int) -> httpx.Response:
        """The answer to GET of a path."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with inside_network_of(self.pid):  # loading certificates for `verify` takes 15 ms a request
            self.requests += 1
            return httpx.get(url, params=parameters or None, timeout=START_LIMIT_S, trust_env=False, verify=False)

    def connected(self) -> socket.socket:
        """A connection to its port."""
        with inside_network_of(self.pid):
            return socket.create_connection(("127.0.0.1", self.port), START_LIMIT_S)

    def embed(self, text: str) -> NDArray[np.float32]:
        """The embedding of a text, by SQL over HTTP: [embed_dim] float32. Raises RuntimeError on any other answer."""
        return embedding_in(self.get("/_memory.json", sql=EMBED, q=text, _shape="array"))

    def first_embedding(self, text: str) -> NDArray[np.float32]:
        """The same, as soon as the container accepts connections. Waiting costs the container no CPU."""
        return embedding_in(self.wait("/_memory.json", sql=EMBED, q=text, _shape="array"))

    def wait(self, path: str, **parameters: str | int) -> httpx.Response:
        """The first answer to GET of a path. Raises RuntimeError with the log if none comes."""
        end = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end and Path(f"/proc/{self.pid}/ns/net").exists():
            try:
                return self.get(path, **parameters)
            except (httpx.TransportError, FileNotFoundError):
                time.sleep(0.01)
        raise RuntimeError(f"no answer, exit code {self.exit_code} (137: out of memory):\n{self.logs()[-4000:]}")

    def ready(self) -> Container:
        """The container itself, once its model is ready. Raises RuntimeError with its last answer if it never is."""
        end = time.monotonic() + START_LIMIT_S
        while (answer := self.wait("/-/clip/health")).status_code != 200:
            if time.monotonic() > end:
                raise RuntimeError(answer.text)
            time.sleep(0.1)
        return self

    def end(self, limit_s: float = START_LIMIT_S) -> int | None:
        """Its exit code, once it has ended; None if it still runs after `limit_s`."""
        end = time.monotonic() + limit_s
        while (code := self.exit_code) is None and time.monotonic() < end:
            time.sleep(0.02)
        return code

    def cgroup(self, controller: str) -> tuple[Path, bool]:
        """The folder of the container's cgroup, and True if that is of version 2, where all controllers share it."""
        groups = dict(line.split(":")[1:] for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines())
        for controllers, group in groups.items():
            if controller in controllers.split(","):
                return Path("/sys/fs/cgroup") / controller / group[1:], False
        return Path("/sys/fs/cgroup") / groups[""][1:], True

    def memory_limit(self) -> int:
        """How many bytes of memory it may use."""
        folder, is_v2 = self.cgroup("memory")
        return int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text())

    def slow_down(self, period_us: int, quota_us: int) -> None:
        """Limit it from now on to `quota_us` of CPU in every `period_us`."""
        folder, is_v2 = self.cgroup("cpu")
        v1 = {"cpu.cfs_period_us": f"{period_us}", "cpu.cfs_quota_us": f"{quota_us}"}
        for name, value in ({"cpu.max": f"{quota_us} {period_us}"} if is_v2 else v1).items():
            (folder / name).write_text(value)

    def cpu_s(self) -> float:
        """CPU seconds of all its processes since its start."""
        folder, is_v2 = self.cgroup("cpuacct")
        if is_v2:
            return int((folder / "cpu.stat").read_text().split()[1]) / 1e6  # usage_usec N
        return int((folder / "cpuacct.usage").read_text()) / 1e9

    def peak_mb(self) -> float:
        """Peak resident memory (VmHWM) of its first process, in 10^6 bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def network(self) -> dict[str, int]:
        """Counters of its network since its start: connections opened, datagrams sent, packets without a route."""
        lines = Path(f"/proc/{self.pid}/net/snmp").read_text().splitlines()
        counters = {}
        for names, values in zip(lines[::2], lines[1::2]):  # "Tcp: ActiveOpens ...", "Tcp: 1 ..."
            kind = names.split(":")[0]
            counters |= {f"{kind}{name}": int(value) for name, value in zip(names.split()[1:], values.split()[1:])}
        for line in Path(f"/proc/{self.pid}/net/snmp6").read_text().splitlines():
            counters[line.split()[0]] = int(line.split()[1])
        return counters


def embedding_in(response: httpx.Response) -> NDArray[np.float32]:
    if response.status_code != 200:
        raise RuntimeError(f"{EMBED} answered {response.status_code}: {response.text[:500]}")
    return np.frombuffer(bytes.fromhex(response.json()[0]["x"]), "<f4")


@contextmanager
def inside_network_of(pid: int) -> Iterator[None]:
    """Move this thread into the network of a process. A socket stays in the network in which it was made."""
    with open("/proc/thread-self/ns/net") as ours, open(f"/proc/{pid}/ns/net") as theirs:
        enter(theirs.fileno())
        try:
            yield
        finally:
            enter(ours.fileno())


def enter(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


@contextmanager
def started(image: str, *options: str, port: int = 8080) -> Iterator[Container]:
    """A container of an image, started with more options of `podman run`; removed on the way out."""
    name = f"datasette-clip-{os.getpid()}-{next(number)}"
    try:
        run("podman", "run", "--detach", "--name", name, *STRICTLY, *options, image)
        yield Container(name, port)
    finally:
        run("podman", "rm", "--force", "--time", "0", name, ok=False)


def run_once(image: str, *command: str, options: Sequence[str] = ()) -> CompletedProcess[str]:
    """Run a command in a new container of an image, with more options of `podman run`: the finished process."""
    return run("podman", "run", "--rm", *STRICTLY, *options, image, *command, ok=False)
