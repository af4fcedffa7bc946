"""Runs an image as strictly as a host would, asks it from inside its network, and reads what it used. Linux, root.

No network but its own loopback, a read-only root without any tmpfs, no capabilities and no new ones.
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
    """A container that was started. Its clients connect from inside its network, a new connection for each request."""

    def __init__(self, name: str, port: int):
        self.name, self.port, self.asked = name, port, 0
        self.pid = int(self.inspect("{{.State.Pid}}"))

    def inspect(self, what: str) -> str:
        return run("podman", "inspect", "--format", what, self.name).stdout.strip()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
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
        """What its HEALTHCHECK says."""
        return run("podman", "healthcheck", "run", self.name, ok=False).returncode == 0

    def signal(self, name: str) -> None:
        run("podman", "kill", "--signal", name, self.name)

    def get(self, path: str, **parameters: str | int) -> httpx.Response:
        """What GET of a path answers."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with inside_network_of(self.pid):  # verify: no certificates are to be loaded, each time, for 15 ms
            self.asked += 1
            return httpx.get(url, params=parameters or None, timeout=START_LIMIT_S, trust_env=False, verify=False)

    def connected(self) -> socket.socket:
        """A connection to its port."""
        with inside_network_of(self.pid):
            return socket.create_connection(("127.0.0.1", self.port), START_LIMIT_S)

    def embed(self, text: str) -> NDArray[np.float32]:
        """The embedding of a text by the URL that the recipe is called by: [embed_dim] float32. Raises RuntimeError."""
        return embedding_in(self.get("/_memory.json", sql=EMBED, q=text, _shape="array"))

    def first_embedding(self, text: str) -> NDArray[np.float32]:
        """The same, from the moment on that it takes requests; waiting for that costs it nothing."""
        return embedding_in(self.wait("/_memory.json", sql=EMBED, q=text, _shape="array"))

    def wait(self, path: str, **parameters: str | int) -> httpx.Response:
        """The first answer to GET of a path that is no refused connection. Raises RuntimeError with the log."""
        end = time.monotonic() + START_LIMIT_S
        while time.monotonic() < end and Path(f"/proc/{self.pid}/ns/net").exists():
            try:
                return self.get(path, **parameters)
            except (httpx.TransportError, FileNotFoundError):
                time.sleep(0.01)
        raise RuntimeError(f"no answer, exit code {self.exit_code} (137: out of memory):\n{self.logs()[-4000:]}")

    def ready(self) -> Container:
        """Itself, once it says that the model is ready. Raises RuntimeError with what it said last."""
        end = time.monotonic() + START_LIMIT_S
        while (answer := self.wait("/-/clip/health")).status_code != 200:
            if time.monotonic() > end:
                raise RuntimeError(answer.text)
            time.sleep(0.1)
        return self

    def end(self, limit_s: float = START_LIMIT_S) -> int | None:
        """Its exit code, once it has ended; None where it still runs after that time."""
        end = time.monotonic() + limit_s
        while (code := self.exit_code) is None and time.monotonic() < end:
            time.sleep(0.02)
        return code

    def cgroup(self, controller: str) -> tuple[Path, bool]:
        """Folder of the container's cgroup, and whether it is of version 2, where all controllers share one."""
        groups = dict(line.split(":")[1:] for line in Path(f"/proc/{self.pid}/cgroup").read_text().splitlines())
        for controllers, group in groups.items():
            if controller in controllers.split(","):
                return Path("/sys/fs/cgroup") / controller / group[1:], False
        return Path("/sys/fs/cgroup") / groups[""][1:], True

    def memory_limit(self) -> int:
        """Bytes that it may use."""
        folder, is_v2 = self.cgroup("memory")
        return int((folder / ("memory.max" if is_v2 else "memory.limit_in_bytes")).read_text())

    def slow_down(self, period_us: int, quota_us: int) -> None:
        """From now on it gets no more than `quota_us` of CPU in every `period_us`."""
        folder, is_v2 = self.cgroup("cpu")
        v1 = {"cpu.cfs_period_us": f"{period_us}", "cpu.cfs_quota_us": f"{quota_us}"}
        for name, value in ({"cpu.max": f"{quota_us} {period_us}"} if is_v2 else v1).items():
            (folder / name).write_text(value)

    def cpu_s(self) -> float:
        """CPU seconds used since it was started, by all its processes."""
        folder, is_v2 = self.cgroup("cpuacct")
        if is_v2:
            return int((folder / "cpu.stat").read_text().split()[1]) / 1e6  # usage_usec N
        return int((folder / "cpuacct.usage").read_text()) / 1e9

    def peak_mb(self) -> float:
        """Most memory it ever had resident, in 10^6 bytes, the first process alone (VmHWM)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

    def network(self) -> dict[str, int]:
        """What went out, or tried to, since it was started: connections opened, datagrams, and what had no route."""
        lines = Path(f"/proc/{self.pid}/net/snmp").read_text().splitlines()
        found = {}
        for names, values in zip(lines[::2], lines[1::2]):  # "Tcp: ActiveOpens ...", "Tcp: 1 ..."
            kind = names.split(":")[0]
            found |= {f"{kind}{name}": int(value) for name, value in zip(names.split()[1:], values.split()[1:])}
        for line in Path(f"/proc/{self.pid}/net/snmp6").read_text().splitlines():
            found[line.split()[0]] = int(line.split()[1])
        return found


def embedding_in(response: httpx.Response) -> NDArray[np.float32]:
    if response.status_code != 200:
        raise RuntimeError(f"{EMBED} answered {response.status_code}: {response.text[:500]}")
    return np.frombuffer(bytes.fromhex(response.json()[0]["x"]), "<f4")


@contextmanager
def inside_network_of(pid: int) -> Iterator[None]:
    """This thread in the network of a process. Sockets stay in the one that they were made in."""
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
