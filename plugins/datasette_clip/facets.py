"""Counts the values of a collection's metadata for the search page: which there are, and how many rows have each.

filters.py reads those that the client has chosen. Nothing here needs the permission to run SQL.
"""

from __future__ import annotations

import json
import re
import sqlite3
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from datasette.utils import sqlite_timelimit

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
FRESH_S = 30.0  # so long a count is kept, unless a row is added
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
    """How many rows have which values of some keys together: values, in the order of the keys -> rows.

    Of TAKEN the value is the day. None stands for a value that is missing or too long.
    """

    keys: tuple[str, ...]
    rows: Counter[tuple[str | None, ...]]


@dataclass
class Kept:
    """What was counted of a collection, with its last rowid then.

    has_days: its rows are of more than one day. counts: by the condition in SQL and the keys.
    """

    last: int | None
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

    They are kept for FRESH_S or until the table has a new last row.
    """
    place, now_s = (ref.database, ref.collection.name), time.monotonic()
    [(last,)] = rows(conn, f"select max(rowid) from main.{quoted(ref.collection.table)}")
    known = kept.get(place)
    if known is None or known.last != last or now_s > known.until_s or len(known.counts) > KEPT:
        sampled = sample(conn, ref.collection)
        has_days = len(days_in(sampled.get(TAKEN, []))) > 1
        known = kept[place] = Kept(last, now_s + FRESH_S, countable_keys(sampled), has_days, {})
    chosen = [key for key, _ in filters.metadata] + [TAKEN] * bool(filters.first or filters.last)
    keys = tuple(dict.fromkeys([*known.keys, *chosen]))
    if (where, keys) not in known.counts:
        known.counts[where, keys] = None
        with suppress(sqlite3.Error), sqlite_timelimit(conn, limit_ms):
            known.counts[where, keys] = count_together(conn, ref.collection, keys, where)
    return known.counts[where, keys], known.keys, known.has_days


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
    return Counts(keys, Counter(cursor))


def sample(conn, collection: Collection) -> dict[str, list]:
    """The values of each key in the metadata of the first and of the last rows."""
    column, values = quoted(collection.metadata or ""), defaultdict[str, list](list)
    for order in ("asc", "desc"):
        clause = from_clause(collection, "", f"{column} is not null")
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
    at, found = counts.keys.index(key), Counter[str]()
    wanted = [(counts.keys.index(name), set(filters.values(name))) for name in {name for name, _ in filters.metadata}]
    first, last = (str(day) if day else None for day in (filters.first, filters.last))
    taken = counts.keys.index(TAKEN) if first or last else 0
    for values, number in counts.rows.items():
        value, day = values[at], str(values[taken])
        is_left = all(values[place] in allowed for place, allowed in wanted)
        is_in_time = (not first or (values[taken] is not None and day >= first)) and (not last or day <= last)
        if value and len(value) <= MAX_CHARACTERS and is_left and is_in_time:
            found[value[:4] if key == TAKEN else value] += number
    return found


def year_value(filters: RowFilters, year: int, count: int) -> Value:
    """A year, which is chosen if the dates are its first and its last day."""
    days = (date(year, 1, 1), date(year, 12, 31))
    is_chosen = (filters.first, filters.last) == days
    first, last = (None, None) if is_chosen else days
    return Value(str(year), count, is_chosen, replace(filters, first=first, last=last))
