"""Opens a value once, on first use, also from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lazy(Generic[T]):
    """The result of `open_it()`, called at the first `get`. Concurrent calls wait for it; later calls take no lock.

    If `open_it` raises, so does `get`, and the next call tries again. So does the next call after `close`.
    """

    def __init__(self, open_it: Callable[[], T]):
        self._open, self._lock = open_it, threading.Lock()
        self._opened: T | None = None

    def get(self) -> T:
        opened = self._opened
        if opened is None:
            with self._lock:
                opened = self._opened
                if opened is None:
                    opened = self._opened = self._open()
        return opened

    def close(self) -> None:
        """Forget the result. A call that has it already keeps it."""
        self._opened = None

    @property
    def is_open(self) -> bool:
        return self._opened is not None
