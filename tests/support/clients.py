"""Sends requests from many clients at once, each with one new text after the other over one connection.

    python tests/support/clients.py HOST:PORT --clients 25 --seconds 10      prints what they saw as JSON

Clients are threads with http.client, the lightest in Python, because they share the cores with the server. They run in
a process of their own (ask_from_outside), or in this one if they must connect from inside a container. This module
starts no server and measures nothing of it.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

EMBED = "select hex(llm_embed('clip', :q)) as x"
WORDS = ("red", "green", "blue", "purple", "golden", "black", "white", "silver")
CHARACTERS = 4096  # hexadecimal digits of a vector blob of 512 numbers


def new_text(seed: str, n: int) -> str:
    """A text of about 8 ids, a different one for each n, so that no cache answers."""
    return f"{seed} {WORDS[n % 8]} {WORDS[n // 8 % 8]} number {n}"


@dataclass
class Answers:
    """What clients saw: milliseconds of each answer, how many answers came within `seconds`, and every error."""

    seconds: float
    times_ms: list[float] = field(default_factory=list)
    in_time: int = 0
    errors: list[str] = field(default_factory=list)

    def summary(self) -> dict:
        """Answers per second, p50, p99 and maximum in milliseconds, the number of errors and the first one."""
        cuts = (
            statistics.quantiles(self.times_ms, n=100, method="inclusive")
            if len(self.times_ms) > 1
            else [float("nan")] * 99
        )
        return {
            "per_s": round(self.in_time / self.seconds, 1),
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
    sql: str = EMBED,
    characters: int = CHARACTERS,
    each_second: Callable[[], None] = lambda: None,
    inside: Callable[[], AbstractContextManager] = nullcontext,
) -> Answers:
    """Request from HOST:PORT with `clients` threads for so many seconds: what they saw. Each runs within `inside()`."""
    answers, numbers, end_s = Answers(seconds), itertools.count(), time.monotonic() + seconds

    def client() -> None:
        with inside():
            connection = http.client.HTTPConnection(address, timeout=60)
            while True:
                ask_one(connection, path_of(sql, new_text(seed, next(numbers))), characters, answers)
                if time.monotonic() >= end_s:
                    break
                answers.in_time = len(answers.times_ms)
            connection.close()

    threads = [threading.Thread(target=client, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end_s:
        each_second()
        time.sleep(1)
    for thread in threads:
        thread.join()
    return answers


def path_of(sql: str, text: str) -> str:
    return f"/_memory.json?{urlencode({'sql': sql, 'q': text, '_shape': 'array'}, quote_via=quote)}"


def ask_one(connection: http.client.HTTPConnection, path: str, characters: int, answers: Answers) -> None:
    """Request one row whose column x has so many characters, and note the time, or the error.

    The next request opens a failed connection again.
    """
    begun_s = time.perf_counter()
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return answers.errors.append(f"{type(error).__name__}: {error}")
    if response.status != 200 or len(str(json.loads(body)[0]["x"])) != characters:
        return answers.errors.append(f"HTTP {response.status}: {body[:200].decode()}")
    answers.times_ms.append((time.perf_counter() - begun_s) * 1000)
    return None


def ask_from_outside(
    address: str, clients: int, seconds: float, *, seed: str, sql: str = EMBED, characters: int = CHARACTERS
) -> dict:
    """The same from another process: its summary, with the CPU seconds that the clients used."""
    how = ["--clients", str(clients), "--seconds", str(seconds), "--seed", seed]
    how += ["--sql", sql, "--characters", str(characters)]
    done = subprocess.run([sys.executable, __file__, address, *how], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--clients", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", default="new")
    parser.add_argument("--sql", default=EMBED)
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    options = parser.parse_args()
    how = {"seed": options.seed, "sql": options.sql, "characters": options.characters}
    summary = ask(options.address, options.clients, options.seconds, **how).summary()
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps(summary | {"clients_cpu_s": round(used.ru_utime + used.ru_stime, 3)}))


if __name__ == "__main__":
    main()
