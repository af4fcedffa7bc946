"""Measures 25 clients at once on the stack people run today, on ours and on bare Datasette: answers/s, errors, p99.

    python -m bench.server.crowd [--pairs 3] [--seconds 20] [--clients 25] [--to FILE]

The stacks are those of bench/harness/stacks.py, all on one checkpoint with random weights of ViT-B/32's shape. In each
turn a new server answers one client for half of the seconds, then all clients, a new text each time. Errors are summed
over all pairs. Clients are a process of their own on the same cores, so a rate is a lower bound, and more so the faster
the server. Not measured: more than one instance, see load.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.stacks import STACKS, Server, Stack, prepare, served
from bench.harness.turns import Figures, Titles, compare, comparison_lines
from clients import ask_from_outside

WARM_S = 2  # not measured: the first seconds start threads
TITLES: Titles = {
    "one_per_s": ("one client, answers/s", 1),
    "one_p50_ms": ("  p50, ms", 1),
    "all_per_s": ("all clients, answers/s", 1),
    "all_p50_ms": ("  p50, ms", 1),
    "all_p99_ms": ("  p99, ms", 1),
    "p99_by_one": ("  p99 over the p50 of one client", 1),
    "cpu_ms": ("  CPU of the server for an answer, ms", 1),
    "peak_mb": ("  peak resident, MB (VmHWM)", 0),
}


def answers_of(server: Server, clients: int, seconds: float, seed: str) -> dict[str, Any]:
    """What clients see of a server, and the server's CPU milliseconds for an answer."""
    query, url = server.stack.query, server.client.base_url
    before_s = cpu_s(server)
    how = {"seed": seed, "sql": query.sql, "characters": query.characters}
    summary = ask_from_outside(f"{url.host}:{url.port}", clients, seconds, **how)
    return summary | {"cpu_ms": 1000 * (cpu_s(server) - before_s) / max(1, summary["answers"])}


def cpu_s(server: Server) -> float:
    """CPU seconds of a server, user and system, all its threads."""
    return sum(server.process.cpu_times()[:2])


def measure_stack(stack: Stack, place: Path, clients: int, seconds: float) -> Figures:
    """All figures of one stack, from one new server."""
    with served(stack, place) as server:
        answers_of(server, 2, WARM_S, "warm")
        one, every = answers_of(server, 1, seconds / 2, "one"), answers_of(server, clients, seconds, "all")
        figures = {"one_per_s": one["per_s"], "one_p50_ms": one["p50_ms"], "peak_mb": server.peak_mb()}
    figures |= {f"all_{name}": every[name] for name in ("per_s", "p50_ms", "p99_ms")}
    figures |= {"p99_by_one": every["p99_ms"] / one["p50_ms"], "cpu_ms": every["cpu_ms"]}
    if first := one["first_error"] or every["first_error"]:
        say(f"{stack.name}: {first}")
    return figures | {"errors": one["errors"] + every["errors"], "clients_cpu_s": every["clients_cpu_s"]}


def measure(place: Path, options: argparse.Namespace) -> Results:
    clients, seconds = options.clients, options.seconds
    results = {"clients": clients, "seconds": seconds} | prepare(place)
    results |= compare(
        list(STACKS),
        options.pairs,
        lambda name: measure_stack(STACKS[name], place, clients, seconds),
        (("ours", "recipe"), ("bare", "ours")),
    )
    errors = {name: sum(pair[name]["errors"] for pair in results["pairs"]) for name in STACKS}
    return results | {"errors": errors}


def table(results: Results) -> str:
    """Medians and ratios as plain text: a line for each figure, a column for each stack and ratio; then the source."""
    lines = comparison_lines(results, TITLES, ratio_digits=2)
    lines.append(f"{'errors, of all pairs':46}" + "".join(f"{count:>15}" for count in results["errors"].values()))
    lines += ["", f"{len(results['pairs'])} pairs, {results['clients']} clients for {results['seconds']:g} s each"]
    lines[-1] += f", {results['checkpoint']}, {load_words(results)}"
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, pairs=3, seconds=20.0, clients=25)
