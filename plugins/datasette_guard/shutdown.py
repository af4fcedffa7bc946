"""Ends the process: with 0, after the requests in flight are answered, and by a signal within 5 seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

from . import upstream

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_S = 4.0  # hosts kill 5 s after their signal
uvicorn_drains: dict[int, Any] = {}  # signal -> uvicorn's handler, once it runs


@cache
def is_server() -> bool:
    """True if this process is `datasette serve`, which `datasette photos.db` is too."""
    program, *arguments = sys.argv or [""]
    path = Path(program)
    if path.stem != "datasette" and (path.parent.name, path.name) != ("datasette", "__main__.py"):
        return False
    first = next(iter(arguments), "serve")
    if first in ("--version", "--help"):
        return False
    return first == "serve" or first.startswith("-") or "." in first or os.path.exists(first)


def end_with_0() -> None:
    """From now on SIGTERM and SIGINT end the process with 0.

    uvicorn puts its own handlers, which drain, in their place. When it has drained it restores these and raises again.
    """
    for number in SIGNALS:
        signal.signal(number, exit_with_0)


def bound_drain() -> None:
    """From now on a drain that a signal begins is cut off after DRAIN_S. Called when uvicorn starts."""
    if threading.current_thread() is not threading.main_thread():
        return
    uvicorn_drains.update(upstream.uvicorn_handlers(SIGNALS))
    for number in uvicorn_drains:
        signal.signal(number, drain_in_time)
    upstream.accept_long_urls(uvicorn_drains)


def exit_with_0(number: int, frame: object) -> None:
    if not uvicorn_drains:
        # Nothing is served yet. A SystemExit is lost where a callback of the import system happens to be interrupted.
        os._exit(0)
    cut_off_later()
    sys.exit(0)


def drain_in_time(number: int, frame: object) -> None:
    cut_off_later()
    uvicorn_drains[number](number, frame)


def drain() -> None:
    """End as by SIGTERM, but wait for the requests in flight however long they take."""
    if drain := uvicorn_drains.get(signal.SIGTERM):
        drain(signal.SIGTERM, None)
    else:
        sys.exit(0)


@cache
def cut_off_later() -> None:
    """End the process with 0 in DRAIN_S, whatever is still running. Nothing else interrupts an SQL thread."""
    timer = threading.Timer(DRAIN_S, cut_off)
    timer.daemon = True
    timer.start()


def cut_off() -> None:
    print(f"datasette-guard: what was still in flight {DRAIN_S:.0f} s after the signal is cut off", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)
