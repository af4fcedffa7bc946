"""How long tests wait for something that must happen. Only a hang reaches the limit, on a machine of any speed.

Tests do not measure speed, bench/ does; so they have no other time limit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
PATIENCE_S = 300


def until(ask: Callable[[], T]) -> T:
    """The first true value that `ask()` returns. Raises AssertionError after PATIENCE_S."""
    end_s = time.monotonic() + PATIENCE_S
    while not (answer := ask()):
        assert time.monotonic() < end_s, f"not in {PATIENCE_S} s"
        time.sleep(0.02)
    return answer


def has_ended(process: psutil.Process) -> bool:
    """True if a process has ended, even if it is still a zombie. One call, because it may end between two."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
