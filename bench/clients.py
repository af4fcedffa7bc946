"""Many clients at once: each asks one new text after the other over one connection.

They are threads of the process that measures, with http.client: the lightest that Python brings, for they share the
cores with what they ask. It starts no server and says nothing of what the server uses.
"""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

EMBED = "select hex(llm_embed('clip', :q)) as x"
WORDS = ("red", "green", "blue", "purple", "golden", "black", "white", "silver")
CHARACTERS = 4096  # of the hexadecimal digits of a vector of 512 numbers


def new_text(seed: str, n: int) -> str:
    """A text of about 8 ids, another for each n, so that no cache answers."""
    return f"{seed} {WORDS[n % 8]} {WORDS[n // 8 % 8]} number {n}"


def free_address() -> str:
    """HOST:PORT on this machine where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return ":".join(map(str, free.getsockname()))


@dataclass
class Answers:
    """What clients saw in `seconds`: milliseconds of each answer, and every error in words."""

    seconds: float
    times_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict:
        """Answers per second, milliseconds at p50, p99 and most, and errors with the first of them."""
        cuts = statistics.quantiles(self.times_ms, n=100) if len(self.times_ms) > 1 else [float("nan")] * 99
        return {
            "per_s": round(len(self.times_ms) / self.seconds, 1),
            "p50_ms": round(cuts[49], 1),
            "p99_ms": round(cuts[98], 1),
            "most_ms": round(max(self.times_ms, default=float("nan")), 1),
            "answers": len(self.times_ms),
            "errors": len(self.errors),
            "first_error": next(iter(self.errors), None),
        }


def ask(
    address: str,
    clients: int,
    seconds: float,
    *,
    seed: str,
    each_second: Callable[[], None] = lambda: None,
    inside: Callable[[], AbstractContextManager] = nullcontext,
) -> Answers:
    """Let `clients` ask the server at HOST:PORT for so many seconds, each `inside` a context: what they saw."""
    found, numbers, end_s = Answers(seconds), itertools.count(), time.monotonic() + seconds

    def client() -> None:
        with inside():
            connection = http.client.HTTPConnection(address, timeout=60)
            while time.monotonic() < end_s:
                ask_one(connection, new_text(seed, next(numbers)), found)
            connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end_s:
        each_second()
        time.sleep(1)
    for thread in threads:
        thread.join()
    return found


def ask_one(connection: http.client.HTTPConnection, text: str, found: Answers) -> None:
    """Ask for the embedding of a text, and note the time or the error; a connection that failed is opened anew."""
    path = f"/_memory.json?{urlencode({'sql': EMBED, 'q': text, '_shape': 'array'}, quote_via=quote)}"
    begun_s = time.perf_counter()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return found.errors.append(f"{type(error).__name__}: {error}")
    if response.status != 200 or len(json.loads(body)[0]["x"]) != CHARACTERS:
        return found.errors.append(f"HTTP {response.status}: {body[:200].decode()}")
    found.times_ms.append((time.perf_counter() - begun_s) * 1000)
    return None
