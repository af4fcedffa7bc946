"""A stack to measure: what is installed, how its server is started, and a running server to ask. Linux only.

A stack runs in a virtual environment of links to what `pip install` of it would bring, and nothing else: Datasette 0.65
loads every plugin it finds, and people do not run what happens to be installed here. It does not say what is measured.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil

PLUGINS = Path(__file__).parent.parent / "plugins"
START_LIMIT_S = 120


class Query(NamedTuple):
    """What a server is asked: one row with the column x. :q is what differs from one request to the next."""

    database: str
    sql: str
    characters: int  # of x, to be seen at once that it is an answer: datasette-llm-embed gives errors as values


@dataclass(frozen=True)
class Stack:
    """One way to answer: what is installed, how it is called, and what shows that it is this one that answers."""

    name: str
    distributions: tuple[str, ...]
    plugins: set[str]  # what /-/plugins.json must list
    library: str  # of which the server must have mapped a file once it has answered; "" for none
    query: Query
    queries: int  # how many are timed
    arguments: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def closure(names: Sequence[str]) -> dict[str, metadata.Distribution]:
    """Name -> installed distribution, of these and of all they require without extras: what pip would install."""
    left, found = list(names), {}
    while left:
        name = re.match(r"[\w.-]+", left.pop())[0]
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in names:
                raise
            continue  # it is for other systems or Pythons
        if distribution.name not in found:
            found[distribution.name] = distribution
            left += [line for line in distribution.requires or [] if "extra ==" not in line]
    return found


def make_environment(stack: Stack, place: Path) -> None:
    """A virtual environment at place/NAME with the stack's distributions, and nothing else, as links."""
    venv.create(place / stack.name, symlinks=True)
    site = next((place / stack.name).glob("lib/python*/site-packages"))
    found = closure(stack.distributions)
    files = {Path(one.locate_file(file.parts[0])) for one in found.values() for file in one.files or []}
    if "datasette-clip" in found:
        files |= set(PLUGINS.glob("*_clip*"))  # installed editable it does not list its packages
    for file in files:
        if file.name not in ("..", "__pycache__") and file.suffix != ".pth" and not (site / file.name).exists():
            (site / file.name).symlink_to(file.resolve())


def command(stack: Stack, place: Path, *arguments: str) -> dict:
    """What Popen needs to run `python -m ARGUMENTS` of a stack in `place`.

    Of the caller's environment it gets PATH alone, and it waits for no hub.
    """
    args = [str(place / stack.name / "bin" / "python"), "-m", *arguments]
    own = {"HOME": str(place), "LLM_USER_PATH": str(place / "llm"), "HF_HUB_OFFLINE": "1"}
    return {"args": args, "cwd": place, "env": {"PATH": os.environ["PATH"]} | own | stack.environment}


@dataclass
class Server:
    """A server of `stack` that has answered once: after cold_wall_s and cold_cpu_s."""

    stack: Stack
    process: psutil.Popen
    client: httpx.Client
    cold_wall_s: float = 0
    cold_cpu_s: float = 0

    def ask(self, query: Query, q: str | int) -> str:
        """Column x of the row that answers. Raises RuntimeError where it is not the answer that `query` describes."""
        response = self.client.get(f"/{query.database}.json", params={"sql": query.sql, "q": q, "_shape": "array"})
        answer = str(response.json()[0]["x"]) if response.is_success else ""
        if len(answer) != query.characters:
            found = f"HTTP {response.status_code}: {response.text[:500]}"
            raise RuntimeError(f"{self.stack.name}: {query.sql} for {q!r} answered {found}")
        return answer

    def times_ms(self, query: Query, qs: Sequence[str | int]) -> list[float]:
        """Milliseconds of one request after the other, as the client sees them."""
        times_s = [time.perf_counter()]
        for q in qs:
            self.ask(query, q)
            times_s.append(time.perf_counter())
        return [(end - start) * 1000 for start, end in itertools.pairwise(times_s)]

    def held_mb(self, query: Query, qs: Sequence[str | int]) -> float:
        """Most memory held after any of these requests, in 10^6 bytes, a page counted once, however often mapped."""
        return max(self._kilobytes("smaps_rollup", "Pss") for q in qs if self.ask(query, q)) * 1024 / 1e6

    def peak_mb(self) -> float:
        """Most memory ever resident, in 10^6 bytes, a page counted as often as it is mapped."""
        return self._kilobytes("status", "VmHWM") * 1024 / 1e6

    def _kilobytes(self, file: str, key: str) -> int:
        return int(re.search(rf"^{key}:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/{file}").read_text(), re.M)[1])


@contextmanager
def served(stack: Stack, place: Path, first: str) -> Iterator[Server]:
    """A new server on a free port of 127.0.0.1 that has answered the stack's query for `first`; ended on the way out.

    Raises RuntimeError with the end of its log where it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    arguments = ("datasette", "serve", *stack.arguments, "--host", host, "--port", str(port))
    log = place / f"{stack.name}.log"
    start_s = time.perf_counter()
    with log.open("wb") as to:
        process = psutil.Popen(**command(stack, place, *arguments), stdout=to, stderr=to)
    try:
        while not accepts(host, port):
            if process.poll() is not None or time.perf_counter() - start_s > START_LIMIT_S:
                raise RuntimeError(f"{stack.name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.005)
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=START_LIMIT_S) as client:
            server = Server(stack, process, client)
            server.ask(stack.query, first)
            server.cold_wall_s = time.perf_counter() - start_s
            server.cold_cpu_s = sum(process.cpu_times()[:4])  # user and system, its own and its children's
            yield server
    finally:
        end(process)


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def end(process: psutil.Popen) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except psutil.TimeoutExpired:
        process.kill()
        process.wait()
