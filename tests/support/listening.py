"""Starts a server and returns within 5 ms of its first listening, because benches measure start times with it.

Tests that start Datasette use serving.py.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_S = 300


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def listening(args: list, port: int, log: Path, **options) -> Iterator[subprocess.Popen]:
    """The process of a command, as soon as it accepts connections on `port`; ended on the way out.

    Its output goes to `log`, and `options` to Popen. Raises RuntimeError with the log if it ends before, or if it does
    not accept connections in START_LIMIT_S.
    """
    with log.open("w") as stream:
        process = subprocess.Popen(args, stdout=stream, stderr=subprocess.STDOUT, **options)
    limit_s = time.monotonic() + START_LIMIT_S
    try:
        while not accepts("127.0.0.1", port):
            if process.poll() is not None or time.monotonic() > limit_s:
                raise RuntimeError(f"{args[0]} does not listen on port {port}: {log.read_text()[-2000:]}")
            time.sleep(0.005)
        yield process
    finally:
        end(process)


def accepts(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def end(process: subprocess.Popen) -> None:
    """Ask a process to end. If it has not after START_LIMIT_S, kill it and raise TimeoutExpired."""
    process.terminate()
    try:
        process.wait(START_LIMIT_S)
    finally:
        process.kill()
        process.wait()
