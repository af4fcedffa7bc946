"""How long a test waits for what must come: only what hangs is given up, however busy the machine is.

No test says how fast something is; bench/ does. So no other time limit stands in a test.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
PATIENCE_S = 300


def until(ask: Callable[[], T]) -> T:
    """What `ask()` returns, as soon as that is true. Raises AssertionError if it never is."""
    end_s = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < end_s, f"not in {PATIENCE_S} s"
        time.sleep(0.02)
    return answer


def has_ended(process: psutil.Process) -> bool:
    """True if a process does not run any more. A zombie does not; the one question cannot meet it half way."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
