"""Splits lines of CSV into records of cells, each with the number of its first line. A broken one ends no other."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterable, Iterator

from llm_clip_onnx.errors import InputError

MOST_OF_A_CELL = 10_000_000  # characters; csv's own limit, 131,072, is too small for images in base64


def records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | InputError]]:
    """Of each record of CSV the number of its first line, and its cells or the reason why it cannot be read.

    After a record that cannot be read, such as one with a quote that is never closed, the next line begins another.
    """
    csv.field_size_limit(MOST_OF_A_CELL)
    source, number = Lines(lines), 1
    while True:
        source.taken = []
        try:
            cells: list[str] | InputError = next(csv.reader(source, delimiter=delimiter, strict=True))
        except StopIteration:
            return
        except csv.Error as error:
            source.give_back(source.taken[1:])
            cells = InputError(f"it is not CSV: {error}")
        yield number, cells
        number += len(source.taken)


class Lines:
    """Lines one after another. `taken` are the last ones, which can be given back."""

    def __init__(self, lines: Iterable[str]):
        self.lines, self.back, self.taken = iter(lines), deque[str](), list[str]()

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        line = self.back.popleft() if self.back else next(self.lines)
        self.taken.append(line)
        return line

    def give_back(self, lines: list[str]) -> None:
        self.back.extendleft(reversed(lines))
        del self.taken[len(self.taken) - len(lines) :]
