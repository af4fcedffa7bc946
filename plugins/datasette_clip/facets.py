"""Counts the values of a collection's metadata for the chips of the search page, and keeps the counts for a while.

filters.py reads those that the client has chosen. Nothing here needs the permission to run SQL.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np
from datasette.utils import sqlite_timelimit
from numpy.typing import NDArray

from clip_collections.collection import Collection, cursor_of, from_clause, quoted, rows
from datasette_guard import per_datasette

from .collection_refs import CollectionRef
from .filters import KEY, TAKEN, RowFilters

SAMPLE_ROWS = 300  # at each end of a collection, whose metadata say which keys there are
MAX_KEYS = 6
MAX_VALUES = 40  # of one key
MAX_CHARACTERS = 80  # of one value
LEAST_SHARE = 0.1  # of a key with more values: the share of rows that the shown ones must have
LIMIT_MS = 300  # of all counting
FRESH_S = 30.0  # so long a count is kept while the database is written to, unless a row is added
SETTLED_NS = 10**9  # two writes may have one time if they are close to each other
KEPT = 8  # counts of a collection, by condition
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")  # at the beginning of a value of TAKEN
NOT_COUNTED = ("width", "height", "bytes", "latitude", "longitude", "duration", "id", "url", "hash")


@dataclass(frozen=True)
class Value:
    """A value of a key, how many rows have it, and the filters with it chosen, or no longer chosen."""

    text: str
    count: int
    is_chosen: bool
    toggled: RowFilters


@dataclass(frozen=True)
class Facet:
    """A key of metadata and its values, those of most rows first; of TAKEN the years, the last first."""

    key: str
    values: list[Value]


@dataclass(frozen=True)
class Counts:
    """How many rows have which values of some keys together: `rows` [n], of n combinations.

    codes: [keys, n], the positions in `values` of what a combination has of each key. Of TAKEN the value is the day.
    None stands for a value that is missing.
    """

    keys: tuple[str, ...]
    values: list[list[str | None]]
    codes: NDArray[np.intp]
    rows: NDArray[np.intp]


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


async def facets_of(datasette, ref: CollectionRef, filters: RowFilters, where: str) -> list[Facet]:
    """The facets of the rows for which `filters` and `where` hold; without values if counting takes too long.

    TAKEN is one of them, with or without years, if the collection has more than one day.
    The rows of a facet need not have those of its own values that are chosen, so that others can be chosen too.
    """
    if not ref.collection.metadata:
        return []
    limit_ms = min(LIMIT_MS, datasette.setting("sql_time_limit_ms"))
    count = partial(count_rows, kept_of(datasette), limit_ms, ref, filters, where)
    counts, keys, has_days = await datasette.get_database(ref.database).execute_fn(count)
    facets = [facet_of(counts, key, filters) for key in keys] if counts else []
    shown = [facet for facet in facets if len(facet.values) > 1 or any(value.is_chosen for value in facet.values)]
    if has_days and all(facet.key != TAKEN for facet in shown):
        shown.insert(0, Facet(TAKEN, []))
    return shown


def count_rows(
    kept: dict[tuple[str, str], Kept], limit_ms: int, ref: CollectionRef, filters: RowFilters, where: str, conn
) -> tuple[Counts | None, list[str], bool]:
    """The counts of all that is a facet or chosen, None if that takes too long; the keys that are facets; has_days.

    They are kept until the table has a new last row, or for FRESH_S and then until the database is written to.
    """
    place, now_s, files = (ref.database, ref.collection.name), time.monotonic(), state_of_files(conn)
    [(last,)] = rows(conn, f"select max(rowid) from main.{quoted(ref.collection.table)}")
    known = kept.get(place)
    is_written = known is None or files is None or known.files != files
    if known is None or known.last != last or (is_written and now_s > known.until_s) or len(known.counts) > KEPT:
        sampled = sample(conn, ref.collection)
        has_days = len(days_in(sampled.get(TAKEN, []))) > 1
        known = kept[place] = Kept(last, files, now_s + FRESH_S, countable_keys(sampled), has_days, {})
    chosen = [key for key, _ in filters.metadata] + [TAKEN] * bool(filters.first or filters.last)
    keys = tuple(dict.fromkeys([*known.keys, *chosen]))
    if (where, keys) not in known.counts:
        known.counts[where, keys] = None
        with suppress(sqlite3.Error), sqlite_timelimit(conn, limit_ms):
            known.counts[where, keys] = count_together(conn, ref.collection, keys, where)
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
    values = [f"substr({column} ->> ?, 1, {10 if key == TAKEN else MAX_CHARACTERS + 1})" for key in keys]
    clause = from_clause(collection, where, f"json_valid({column})")
    cursor = cursor_of(conn).execute(f"select {', '.join(values)} {clause}", keys) if keys else ()
    return coded(keys, Counter(cursor))


def coded(keys: tuple[str, ...], together: Counter[tuple[str | None, ...]]) -> Counts:
    """Numbers of rows by the values of some keys, as arrays, because each request adds up all of them."""
    columns = list(zip(*together)) or [()] * len(keys)
    values = [list(dict.fromkeys(column)) for column in columns]
    places = [{value: at for at, value in enumerate(known)} for known in values]
    codes = [[place[value] for value in column] for place, column in zip(places, columns)]
    shape = (len(keys), len(together))
    return Counts(keys, values, np.array(codes, np.intp).reshape(shape), np.array(list(together.values()), np.intp))


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


def facet_of(counts: Counts, key: str, filters: RowFilters) -> Facet:
    """The facet of a key. It has no values if there are very many of them, each of few rows."""
    found = values_of(counts, key, filters.without(key))
    if key == TAKEN:
        years = sorted(year for year in found if len(year) == 4 and year.isascii() and year.isdigit() and int(year))
        return Facet(key, [year_value(filters, int(year), found[year]) for year in years[::-1][:MAX_VALUES]])
    shown = sorted(found.items(), key=lambda value: (-value[1], value[0]))[:MAX_VALUES]
    if len(found) > MAX_VALUES and sum(number for _, number in shown) < LEAST_SHARE * found.total():
        shown = []
    chosen = filters.values(key)
    shown += [(text, found[text]) for text in chosen if text not in dict(shown)]
    return Facet(key, [Value(text, number, text in chosen, filters.toggled(key, text)) for text, number in shown])


def values_of(counts: Counts, key: str, filters: RowFilters) -> Counter[str]:
    """How many of the rows for which filters hold have each value of a key, each year of TAKEN."""
    left = np.ones(len(counts.rows), bool)
    for name in {name for name, _ in filters.metadata}:
        left &= having(counts, name, set(filters.values(name)).__contains__)
    if filters.first or filters.last:
        first, last = str(filters.first or ""), str(filters.last or "\U0010ffff")
        left &= having(counts, TAKEN, lambda day: day is not None and first <= day <= last)
    at, found = counts.keys.index(key), Counter[str]()
    numbers = np.bincount(counts.codes[at, left], counts.rows[left], len(counts.values[at])).astype(int)
    for value, number in zip(counts.values[at], numbers.tolist()):
        if value and number and len(value) <= MAX_CHARACTERS:
            found[value[:4] if key == TAKEN else value] += number
    return found


def having(counts: Counts, key: str, fits: Callable[[str | None], bool]) -> NDArray[np.bool_]:
    """Which combinations [n] have a value of a key that fits."""
    at = counts.keys.index(key)
    return np.array([fits(value) for value in counts.values[at]], bool)[counts.codes[at]]


def year_value(filters: RowFilters, year: int, count: int) -> Value:
    """A year, which is chosen if the dates are its first and its last day."""
    days = (date(year, 1, 1), date(year, 12, 31))
    is_chosen = (filters.first, filters.last) == days
    first, last = (None, None) if is_chosen else days
    return Value(str(year), count, is_chosen, replace(filters, first=first, last=last))
