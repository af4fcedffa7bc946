"""Measures 25 clients at once on the stack people run today, on ours and on bare Datasette: answers/s, errors, p99.

    python bench/crowd.py [--pairs 3] [--seconds 20] [--clients 25] [--to FILE]

The stacks are those of bench/recipe.py, all on one checkpoint with random weights of ViT-B/32's shape, and `bare`
answers `select 1`. In a pair they take turns, forwards or backwards, each as a new server that is asked first by one
client, then by all, a new text each time; a figure is the median over pairs, a ratio the median of the pairs' ratios,
and errors are all there were. Clients are a process of their own (bench/clients.py), on the same cores: a rate is a
lower bound, and the faster the server the more so. Not measured: more than one instance, for which bench/load.py is.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil

from clients import asked_from_outside
from recipe import (
    STACKS,
    TEXTS,
    keep,
    medians_of,
    origin,
    prepare,
    put_away_when_told_to_end,
    ratio,
    say,
    source_line,
    turns,
    versions,
)
from stacks import Server, Stack, served

WARM_S = 2  # not measured: the first seconds start threads
FIGURES = {  # figure: what the table calls it, digits after the point
    "one_per_s": ("one client, answers/s", 1),
    "one_p50_ms": ("  p50, ms", 1),
    "all_per_s": ("all clients, answers/s", 1),
    "all_p50_ms": ("  p50, ms", 1),
    "all_p99_ms": ("  p99, ms", 1),
    "p99_by_one": ("  p99 over the p50 of one client", 1),
    "cpu_ms": ("  CPU of the server for an answer, ms", 1),
    "peak_mb": ("  peak resident, MB (VmHWM)", 0),
}


def asked(server: Server, clients: int, seconds: float, seed: str) -> dict:
    """What clients see of a server, and the CPU milliseconds that it takes for an answer."""
    query, address = server.stack.query, f"{server.client.base_url.host}:{server.client.base_url.port}"
    before_s = cpu_s(server.process)
    found = asked_from_outside(address, clients, seconds, seed=seed, sql=query.sql, characters=query.characters)
    return found | {"cpu_ms": 1000 * (cpu_s(server.process) - before_s) / max(1, found["answers"])}


def cpu_s(process: psutil.Popen) -> float:
    """CPU seconds of a process, user and system, all its threads."""
    return sum(process.cpu_times()[:2])


def measure(stack: Stack, place: Path, clients: int, seconds: float) -> dict[str, float]:
    """All figures of one stack, from one new server."""
    with served(stack, place, TEXTS[0]) as server:
        asked(server, 2, WARM_S, "warm")
        one, every = asked(server, 1, seconds / 2, "one"), asked(server, clients, seconds, "all")
        figures = {"one_per_s": one["per_s"], "one_p50_ms": one["p50_ms"], "peak_mb": server.peak_mb()}
    figures |= {f"all_{name}": every[name] for name in ("per_s", "p50_ms", "p99_ms")}
    figures |= {"p99_by_one": every["p99_ms"] / one["p50_ms"], "cpu_ms": every["cpu_ms"]}
    if first := one["first_error"] or every["first_error"]:
        say(f"{stack.name}: {first}")
    return figures | {"errors": one["errors"] + every["errors"], "clients_cpu_s": every["clients_cpu_s"]}


def compared(figures: dict[str, float]) -> dict[str, float]:
    """Those of which a ratio means something; none is ever 0."""
    return {figure: figures[figure] for figure in FIGURES}


def run(place: Path, pairs: int, clients: int, seconds: float) -> dict:
    """Measure in the folder `place` and return all that was found."""
    found = origin() | {"versions": versions(), "clients": clients, "seconds": seconds} | prepare(place, None)
    each: list[dict] = [{} for _ in range(pairs)]
    for number, stack in turns(STACKS, pairs):
        say(f"pair {number + 1} of {pairs}: {stack.name}")
        each[number][stack.name] = measure(stack, place, clients, seconds)
    found["medians"] = {stack.name: medians_of([pair[stack.name] for pair in each]) for stack in STACKS}
    found["errors"] = {stack.name: sum(pair[stack.name]["errors"] for pair in each) for stack in STACKS}
    found["ratios"] = {
        f"{a} / {b}": medians_of([ratio(compared(pair[a]), compared(pair[b])) for pair in each])
        for a, b in (("ours", "recipe"), ("bare", "ours"))
    }
    return found | {"pairs": each}


def table(found: dict) -> str:
    """Medians and ratios as plain text: a line per figure, a column per stack and ratio; then where they are from."""
    lines = ["".join([f"{'':46}", *(f"{name:>15}" for name in (*found["medians"], *found["ratios"]))])]
    for figure, (title, digits) in FIGURES.items():
        cells = [f"{column[figure]:.{digits}f}" for column in found["medians"].values()]
        cells += [f"{column[figure]:.2f}" for column in found["ratios"].values()]
        lines.append("".join([f"{title:46}", *(f"{cell:>15}" for cell in cells)]))
    lines.append("".join([f"{'errors, of all pairs':46}", *(f"{count:>15}" for count in found["errors"].values())]))
    lines += ["", f"{len(found['pairs'])} pairs, {found['clients']} clients for {found['seconds']:g} s each"]
    lines[-1] += f", {found['checkpoint']}, load {found['machine']['load_average_at_start']:.1f} at the start"
    lines.append(source_line(found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="of all clients; of one, half of that")
    parser.add_argument("--clients", type=int, default=25)
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        found = run(Path(place), options.pairs, options.clients, options.seconds)
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
