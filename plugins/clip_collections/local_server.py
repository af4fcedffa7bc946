"""Starts Datasette on 127.0.0.1 as a process of its own, says when it listens, and ends it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote_plus

from llm_clip_onnx.errors import InputError

HOST = "127.0.0.1"
FIRST_PORT, PORTS = 8001, 100
END_S = 10  # Datasette ends within 5 s by itself
TILDES = str.maketrans({"%": "~", ".": "~2E", "~": "~7E"})
SETTINGS = {  # of a machine of one's own: its one user may wait longer than the many of a public instance
    "sql_time_limit_ms": 10_000,
    "suggest_facets": "off",
    "default_page_size": 50,  # a table's rows have pictures; 100 take Datasette 0.1 s
}


def metadata(title: str) -> dict:
    """Datasette's metadata for photos on one's own machine: no crawlers to refuse, and no end when it is idle."""
    return {
        "title": title,
        "plugins": {
            "datasette-clip": {"models": ["clip"]},
            "datasette-guard": {"refuse_crawlers": [], "hosts": [HOST, "localhost"]},
        },
    }


def free_port(port: int | None) -> int:
    """The port that is given, 0 for any, or else the first free one from FIRST_PORT. Raises InputError."""
    for candidate in [port] if port is not None else range(FIRST_PORT, FIRST_PORT + PORTS):
        with socket.socket() as probe, suppress(OSError):
            if os.name == "posix":  # as uvicorn does; on Windows it would find a port free that is taken
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, candidate))
            return probe.getsockname()[1]
    taken = f"port {port} is" if port is not None else f"the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1} are"
    raise InputError(f"{taken} taken by another program; -p names another port")


def database_names(databases: Iterable[Path]) -> dict[Path, str]:
    """The names that Datasette gives to databases: without the suffix, and with a number if there are two of a name."""
    names: dict[Path, str] = {}
    for database in databases:
        numbered = (f"{database.stem}_{number}" for number in count(2))
        names[database] = next(name for name in chain([database.stem], numbered) if name not in names.values())
    return names


def tilde_encode(name: str) -> str:
    """A name as it stands in Datasette's URLs."""
    return quote_plus(name.encode("utf-8", "surrogateescape"), safe="").translate(TILDES)


class LocalServer:
    """A Datasette that serves databases on 127.0.0.1. What it prints goes into the file `log`."""

    def __init__(self, databases: Iterable[Path], port: int, environment: Mapping[str, str], title: str, log: Path):
        self.port, self.log = port, log
        self.url = f"http://{HOST}:{port}/"
        options = [word for name, value in SETTINGS.items() for word in ("--setting", name, str(value))]
        # -P: a file json.py in the working folder, which may be one of photos, is not Python's own.
        command = [sys.executable, "-P", "-m", "datasette", "serve", *map(str, databases), "-h", HOST, "-p", str(port)]
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [*command, *options, "--memory", "-m", "-"],
                env={**os.environ, "LLM_LOAD_PLUGINS": "datasette-clip", "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        assert self.process.stdin
        with suppress(BrokenPipeError), self.process.stdin as pipe:  # `check` says why it has ended
            pipe.write(json.dumps(metadata(title)).encode())

    def listens(self) -> bool:
        """True once it takes connections."""
        with suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
            return True
        return False

    def check(self) -> None:
        """Raises InputError with the last lines of its log if it has ended."""
        if (code := self.process.poll()) is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-5:]
            raise InputError(f"Datasette has ended with {code}; {self.log} has: " + " ".join(lines))

    def wait_until_it_listens(self) -> None:
        """Returns once it takes connections. Raises InputError if it has ended."""
        while not self.listens():
            self.check()
            time.sleep(0.02)

    def end(self) -> None:
        """End it, and wait until it has ended."""
        self.process.terminate()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
