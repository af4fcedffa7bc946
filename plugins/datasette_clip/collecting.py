"""Garbage is collected in a thread of its own, not in whichever thread happens to allocate next.

A query that failed leaves a cycle of exception, frame and cursor, and to free its statement is to wait for the SQLite
connection. Where that happened in an SQL function that held a lock, while the connection's next query waited in its
own function for that very lock, both waited for ever: seen with 50 clients at once whose queries all failed.
"""

from __future__ import annotations

import gc
import threading
from functools import cache

from .trimming import free_large_blocks_at_once, trim

EVERY_S = 1.0
soon = threading.Event()  # set by what may have left something large behind


@cache
def collect_apart() -> None:
    """From now on no thread collects garbage but one that holds no lock, and that nobody waits for."""
    gc.disable()
    free_large_blocks_at_once()
    threading.Thread(target=collect_for_ever, name="clip-collecting", daemon=True).start()


def collect_for_ever() -> None:
    while True:
        if soon.wait(EVERY_S):
            soon.clear()
            gc.collect(1)
            trim()
        else:
            collect_what_is_due()


def collect_what_is_due() -> None:
    """Collect the oldest generation that Python would, by its own thresholds."""
    for generation, (count, threshold) in reversed([*enumerate(zip(gc.get_count(), gc.get_threshold()))]):
        if count > threshold:
            gc.collect(generation)
            return
