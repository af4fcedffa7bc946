"""Splits lines of CSV into records of cells, each with the number of its first line. A broken one ends no other."""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator

from llm_clip_onnx.errors import InputError

from .entry import is_blank

SEP = re.compile(r'"?sep=(.)"?[\r\n]', re.IGNORECASE)  # Excel's own first line
MOST_OF_A_CELL = 10_000_000  # characters; csv's own limit, 131,072, is too small for images in base64


def table_records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | InputError]]:
    """The records of a table, the names of its columns first: without blank ones and without comments before it."""
    for number, cells in records(blank_out_comments(lines, delimiter), delimiter):
        if isinstance(cells, InputError) or not is_blank("".join(cells)):
            yield number, cells


def blank_out_comments(lines: Iterable[str], delimiter: str) -> Iterator[str]:
    """The lines, with an empty one for Excel's "sep=;" and for each comment before the first other line."""
    has_begun = False
    for number, line in enumerate(lines, 1):
        if not has_begun and (is_comment(line, delimiter) or (number == 1 and SEP.match(line))):
            yield "\n"
        else:
            has_begun = has_begun or not is_blank(line)
            yield line


def is_comment(line: str, delimiter: str) -> bool:
    """True for "# exported in May" and "#made by a shop", False for names of columns: "#,title" and "#id,title"."""
    first, found, _ = line.partition(delimiter)
    if not line.startswith("#") or (found and first.strip() == "#"):
        return False
    return not found or line[1] in " \t#!"


def records(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str] | InputError]]:
    """Of each record of CSV the number of its first line, and its cells or the reason why it cannot be read.

    After a record that cannot be read, such as one with a quote that is never closed, the next line begins another.
    """
    source, number = Lines(lines), 1
    while True:
        source.taken = []
        try:
            cells: list[str] | InputError = next_record(source, delimiter)
        except StopIteration:
            return
        except csv.Error as error:
            source.give_back(source.taken[1:])
            cells = InputError(f"it is not CSV: {error}")
        yield number, cells
        number += len(source.taken)


def next_record(source: Iterator[str], delimiter: str) -> list[str]:
    """The cells of the next record. Raises StopIteration and csv.Error. csv's limit is the process's, and put back."""
    limit = csv.field_size_limit(MOST_OF_A_CELL)
    try:
        return next(csv.reader(source, delimiter=delimiter, strict=True))
    finally:
        csv.field_size_limit(limit)


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
