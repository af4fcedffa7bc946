"""How the process ends: with 0, once what is in flight has been answered; told by a signal, within 5 seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from functools import cache
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_S = 4.0  # hosts kill 5 s after their signal
uvicorns_drain: dict[int, Any] = {}  # signal -> handler, while uvicorn runs


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

    uvicorn puts its handlers, which drain, in their place, and when it has drained restores these and raises again.
    """
    for one in SIGNALS:
        signal.signal(one, leave)


def bound_the_drain() -> None:
    """From now on a drain that uvicorn begins by a signal is cut off after DRAIN_S. Called while uvicorn starts."""
    if threading.current_thread() is not threading.main_thread():
        return
    for one in SIGNALS:
        if is_uvicorns(drain := signal.getsignal(one)):
            uvicorns_drain[one] = drain
            signal.signal(one, drain_and_leave_in_time)


def uvicorns_config() -> Any:
    """The configuration of the uvicorn that runs here, once bound_the_drain was called; None where none does."""
    return next((drain.__self__.config for drain in uvicorns_drain.values()), None)


def leave(number: int, frame: object) -> None:
    bound_the_end()
    sys.exit(0)


def drain_and_leave_in_time(number: int, frame: object) -> None:
    bound_the_end()
    uvicorns_drain[number](number, frame)


def is_uvicorns(handler: object) -> bool:
    return getattr(handler, "__module__", "").startswith("uvicorn.")


def drain_and_leave() -> None:
    """End as by SIGTERM, but wait for what is in flight however long it takes."""
    if drain := uvicorns_drain.get(signal.SIGTERM):
        drain(signal.SIGTERM, None)
    else:
        sys.exit(0)


@cache
def bound_the_end() -> None:
    """Whatever is still running in DRAIN_S is cut off, with 0 all the same: an SQL thread cannot be interrupted."""
    timer = threading.Timer(DRAIN_S, cut_off)
    timer.daemon = True
    timer.start()


def cut_off() -> None:
    print(f"datasette-guard: what was still in flight {DRAIN_S:.0f} s after the signal is cut off", file=sys.stderr)
    sys.stderr.flush()
    os._exit(0)
