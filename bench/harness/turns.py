"""Compares things that take turns: medians over rounds, the median of each round's ratios, and their table.

Noise that lasts longer than a turn hits all that are compared, and moves a ratio within one round least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from bench.harness.command import say

T = TypeVar("T")
Figures = dict[str, float]
Titles = dict[str, tuple[str, int]]  # figure: its title in the table, digits after the point


def turns(compared: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """The number of a round, from 0, and the next in turn. In every other round they come backwards."""
    for number in range(rounds):
        for one in compared[:: -1 if number % 2 else 1]:
            yield number, one


def compare(
    names: Sequence[str], rounds: int, measure: Callable[[str], Figures], ratios: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Measure each name once a round: {"medians", "ratios", "pairs"}, where a pair has the figures of one round."""
    pairs: list[dict[str, Figures]] = [{} for _ in range(rounds)]
    for number, name in turns(names, rounds):
        say(f"round {number + 1} of {rounds}: {name}")
        pairs[number][name] = measure(name)
    return {
        "medians": {name: medians_of([pair[name] for pair in pairs]) for name in names},
        "ratios": {f"{a} / {b}": medians_of([ratio(pair[a], pair[b]) for pair in pairs]) for a, b in ratios},
        "pairs": pairs,
    }


def medians_of(rounds: Sequence[Figures]) -> Figures:
    """Figure -> median over rounds, for the figures that every round has."""
    shared = [figure for figure in rounds[0] if all(figure in one for one in rounds)]
    return {figure: float(np.median([one[figure] for one in rounds])) for figure in shared}


def ratio(a: Figures, b: Figures) -> Figures:
    """Figure -> its value in `a` over that in `b`, for the figures of both that are not 0 in `b`."""
    return {figure: a[figure] / b[figure] for figure in a.keys() & b.keys() if b[figure]}


def comparison_lines(results: dict[str, Any], titles: Titles, ratio_digits: int = 1) -> list[str]:
    """The results of `compare` as lines of text: a line for each figure, a column for each name and ratio."""
    columns = {**results["medians"], **results["ratios"]}
    lines = [f"{'':46}" + "".join(f"{name:>{width(name)}}" for name in columns)]
    for figure, (title, digits) in titles.items():
        line = f"{title:46}"
        for name, column in columns.items():
            places = ratio_digits if name in results["ratios"] else digits
            cell = f"{column[figure]:.{places}f}" if figure in column else ""
            line += f"{cell:>{width(name)}}"
        lines.append(line.rstrip())
    return lines


def width(column: str) -> int:
    return max(15, len(column) + 2)
