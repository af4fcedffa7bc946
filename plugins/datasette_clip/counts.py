"""Chooses the keys of metadata that get chips, counts their values, and keeps for a while which rows have which.

facets.py shows the counts. A search with filters takes its rows from here while they are up to date, because reading
the metadata of 20,000 rows takes longer than the search. Nothing here needs the permission to run SQL.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from array import array
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from datasette.utils import sqlite_timelimit
from numpy.typing import NDArray

from clip_collections.collection import Collection, cursor_of, from_clause, quoted, rows
from datasette_guard import per_datasette

from .collection_refs import CollectionRef
from .filters import KEY, TAKEN, RowFilters, day_after

SAMPLE_ROWS = 300  # at each end of a collection, whose metadata say which keys there are
MAX_KEYS = 6
MAX_CHARACTERS = 80  # of one value
FRESH_S = 30.0  # so long a count is kept while the database is written to, unless a row is added
SETTLED_NS = 10**9  # two writes may have one time if they are close to each other
KEPT = 8  # counts of a collection, by condition
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # at the beginning of a value of TAKEN
NOT_COUNTED = ("width", "height", "bytes", "latitude", "longitude", "duration", "id", "url", "hash")


@dataclass(frozen=True)
class Counts:
    """How many rows have which values of some keys together: `rows` [n], of n combinations.

    codes: [keys, n]; codes[i, j] is the position in values[i] of what combination j has of key i. Of TAKEN the value is
    the day. None stands for a value that is missing. rowids: [rows], ascending; combinations: [rows], which one a row
    has. These two are empty where only the numbers are kept.
    """

    keys: tuple[str, ...]
    values: list[list[str | None]]
    codes: NDArray[np.intp]
    rows: NDArray[np.intp]
    rowids: NDArray[np.int64]
    combinations: NDArray[np.int32]

    def without_rows(self) -> Counts:
        """The numbers alone."""
        return replace(self, rowids=self.rowids[:0], combinations=self.combinations[:0])


@dataclass
class Kept:
    """What was counted of a collection, with its last rowid then and the state of the database's files.

    has_days: its rows are of more than one day. counts: by the condition in SQL and the keys.
    """

    last: int | None
    files: list[tuple[int, int]] | None
    until_s: float
    keys: list[str]
    has_days: bool
    counts: dict[tuple[str, tuple[str, ...]], Counts | None]


@per_datasette
def kept_of(datasette) -> dict[tuple[str, str], Kept]:
    """What was counted, by database and collection."""
    return {}


def count_rows(
    kept: dict[tuple[str, str], Kept], limit_ms: int, ref: CollectionRef, filters: RowFilters, where: str, conn
) -> tuple[Counts | None, list[str], bool]:
    """The counts of all that is a facet or chosen, None if that takes too long; the keys that are facets; has_days.

    They are kept until the table has a new last row, or for FRESH_S and then until the database is written to. What has
    taken too long is tried again after FRESH_S, because the machine may have been busy.
    """
    place, now_s, files = (ref.database, ref.collection.name), time.monotonic(), state_of_files(conn)
    [(last,)] = rows(conn, f"select max(rowid) from main.{quoted(ref.collection.table)}")
    known = kept.get(place)
    is_written = known is None or files is None or known.files != files
    is_over = now_s > known.until_s and (is_written or None in [*known.counts.values()]) if known else True
    if known is None or known.last != last or is_over or len(known.counts) > KEPT:
        sampled = sample(conn, ref.collection)
        has_days = len(days_in(sampled.get(TAKEN, []))) > 1
        known = kept[place] = Kept(last, files, now_s + FRESH_S, countable_keys(sampled), has_days, {})
    keys = tuple(dict.fromkeys([*known.keys, *filters.counted_keys]))
    if (where, keys) not in known.counts:
        counted = None
        with suppress(sqlite3.Error), sqlite_timelimit(conn, limit_ms):
            counted = count_together(conn, ref.collection, keys, where)
        is_of_all = not where and keys == tuple(known.keys)  # of these the rows are kept, 12 bytes each
        known.counts[where, keys] = counted if counted is None or is_of_all else counted.without_rows()
    return known.counts[where, keys], known.keys, known.has_days


def state_of_files(conn) -> list[tuple[int, int]] | None:
    """Sizes and times of the database's file and of its WAL, which a write changes; None if one was just written."""
    [file] = [file for _, schema, file in rows(conn, "pragma database_list") if schema == "main"]
    states = []
    for name in (file, f"{file}-wal") if file else ():
        with suppress(OSError):  # a WAL comes and goes
            states.append(os.stat(name))
    newest_ns = max((state.st_mtime_ns for state in states), default=time.time_ns())
    is_settled = time.time_ns() - newest_ns > SETTLED_NS
    return [(state.st_size, state.st_mtime_ns) for state in states] if is_settled else None


def days_in(values: list) -> set[str]:
    """The days among values of TAKEN."""
    return {value[:10] for value in values if isinstance(value, str) and DAY.match(value)}


def countable_keys(sampled: dict[str, list]) -> list[str]:
    """The keys of metadata that are facets: TAKEN first, then others in the order of the metadata."""
    keys = [key for key, values in sampled.items() if key != TAKEN and is_countable(key, values)]
    return [TAKEN] * (TAKEN in sampled) + keys[:MAX_KEYS]


def count_together(conn, collection: Collection, keys: tuple[str, ...], where: str) -> Counts:
    """Count the rows of a collection, all keys in one pass, because reading JSON is what takes the time."""
    column = quoted(collection.metadata or "")
    values = [day_of(column) if key == TAKEN else f"substr({column} ->> ?, 1, {MAX_CHARACTERS + 1})" for key in keys]
    parameters = [key for key in keys for _ in range(2 if key == TAKEN else 1)]
    clause = from_clause(collection, where, f"json_valid({column})")
    cursor = cursor_of(conn).execute(f"select {', '.join(['rowid', *values])} {clause}", parameters) if keys else ()
    rowids, combinations, numbers = array("q"), array("q"), dict[tuple[str | None, ...], int]()
    for rowid, *row in cursor:
        rowids.append(rowid)
        combinations.append(numbers.setdefault(tuple(row), len(numbers)))
    return coded(keys, list(numbers), np.array(rowids, np.int64), np.array(combinations, np.int32))


def day_of(column: str) -> str:
    """SQL for the first ten characters of a text in the metadata, with two parameters that are its key."""
    return f"case typeof({column} ->> ?) when 'text' then substr({column} ->> ?, 1, 10) end"


def coded(
    keys: tuple[str, ...],
    found: list[tuple[str | None, ...]],
    rowids: NDArray[np.int64],
    combinations: NDArray[np.int32],
) -> Counts:
    """The combinations that were found, as arrays, because each request adds up all of them."""
    columns = list(zip(*found)) or [()] * len(keys)
    values = [list(dict.fromkeys(column)) for column in columns]
    places = [{value: at for at, value in enumerate(known)} for known in values]
    codes = [[place[value] for value in column] for place, column in zip(places, columns)]
    order = np.argsort(rowids)
    return Counts(
        keys,
        values,
        np.array(codes, np.intp).reshape(len(keys), len(found)),
        np.bincount(combinations, minlength=len(found)),
        rowids[order],
        combinations[order],
    )


def fitting(counts: Counts, filters: RowFilters) -> NDArray[np.bool_]:
    """Which combinations [n] have the values and days of `filters`, whose keys have been counted."""
    fits = np.ones(len(counts.rows), bool)
    for name in {name for name, _ in filters.metadata}:
        fits &= having(counts, name, set(filters.values(name)).__contains__)
    if filters.first or filters.last:
        first, end = str(filters.first or ""), day_after(filters.last) if filters.last else "\U0010ffff"
        fits &= having(counts, TAKEN, lambda day: day is not None and first <= day < end)
    return fits


def having(counts: Counts, key: str, fits: Callable[[str | None], bool]) -> NDArray[np.bool_]:
    """Which combinations [n] have a value of a key that fits."""
    at = counts.keys.index(key)
    return np.array([fits(value) for value in counts.values[at]], bool)[counts.codes[at]]


def counted_rowids(
    kept: dict[tuple[str, str], Kept], ref: CollectionRef, filters: RowFilters, conn
) -> NDArray[np.int64] | None:
    """The rowids for which `filters` hold, ascending; None if they were not counted since the last write."""
    known, files = kept.get((ref.database, ref.collection.name)), state_of_files(conn)
    if known is None or files is None or known.files != files or filters.id is not None:
        return None
    # Of a longer value and of TAKEN only the beginning is counted.
    is_whole = all(key != TAKEN and len(value) <= MAX_CHARACTERS for key, value in filters.metadata)
    counts = known.counts.get(("", tuple(known.keys)))
    if counts is None or not is_whole or not {*filters.counted_keys} <= {*counts.keys}:
        return None
    return counts.rowids[fitting(counts, filters)[counts.combinations]]


def sample(conn, collection: Collection) -> dict[str, list]:
    """The values of each key in the metadata of the first and of the last rows."""
    column, values = quoted(collection.metadata or ""), defaultdict[str, list](list)
    for order, end in (("asc", "rowid >= (select min(rowid)"), ("desc", "rowid <= (select max(rowid)")):
        # From its first row on in the order of the table: by an index SQLite would read and sort all rows.
        of_it = f"{end} {from_clause(collection)})"
        clause = from_clause(collection, "", f"{column} is not null", of_it, hint=" not indexed")
        for (text,) in rows(conn, f"select {column} {clause} order by rowid {order} limit {SAMPLE_ROWS}"):
            try:
                metadata = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                continue
            for key, value in metadata.items() if isinstance(metadata, dict) else ():
                values[key].append(value)
    return values


def is_countable(key: str, values: list) -> bool:
    """True if a key can be a facet: its values are short, and of the sampled ones not most are different."""
    if key in NOT_COUNTED or not KEY.fullmatch(key):
        return False
    short = [value for value in values if isinstance(value, str | int) and 0 < len(str(value)) <= MAX_CHARACTERS]
    return bool(short) and len(set(map(str, short))) <= max(10, len(values) / 3)
