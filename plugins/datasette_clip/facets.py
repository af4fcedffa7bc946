"""Counts the values of a collection's metadata for the search page: which there are, and how many rows have each.

filters.py reads those that the client has chosen. Nothing here needs the permission to run SQL.
"""

from __future__ import annotations

import calendar
import json
import sqlite3
import time
from collections import OrderedDict, defaultdict
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

from datasette.utils import sqlite_timelimit

from clip_collections.collection import Collection, from_clause, quoted, rows
from datasette_guard import per_datasette

from .collection_refs import CollectionRef
from .filters import KEY, TAKEN, RowFilters, value_of

SAMPLE_ROWS = 300  # at each end of a collection, whose metadata say which keys there are
MAX_KEYS = 6
MAX_VALUES = 40  # of one key
MAX_CHARACTERS = 80  # of one value
LEAST_SHARE = 0.1  # of a key with more values: the share of rows that the shown ones must have
LIMIT_MS = 300  # of all counting
FRESH_S = 30.0  # so long a count is kept, unless a row is added
KEPT = 200  # counts
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


@per_datasette
def cache_of(datasette) -> OrderedDict[tuple, tuple[float, object, list[Facet]]]:
    """Counts that are still fresh, by what was counted: when, the last rowid, and the facets."""
    return OrderedDict()


async def facets_of(datasette, ref: CollectionRef, filters: RowFilters, where: str) -> list[Facet]:
    """The facets of the rows for which `filters` and `where` hold; [] if counting them takes too long.

    The rows of a facet need not have those of its own values that are chosen, so that others can be chosen too.
    """
    if not ref.collection.metadata:
        return []
    limit_ms = min(LIMIT_MS, datasette.setting("sql_time_limit_ms"))
    count = partial(count_cached, cache_of(datasette), limit_ms, ref, filters, where)
    return await datasette.get_database(ref.database).execute_fn(count)


def count_cached(cache: OrderedDict, limit_ms: int, ref: CollectionRef, filters: RowFilters, where: str, conn) -> list:
    """What count_facets returns, kept for FRESH_S or until the table has a new last row."""
    key, now_s = (ref.database, ref.collection.name, filters, where), time.monotonic()
    [(last,)] = rows(conn, f"select max(rowid) from main.{quoted(ref.collection.table)}")
    kept = cache.get(key)
    if kept and kept[1] == last and now_s < kept[0] + FRESH_S:
        return kept[2]
    try:
        with sqlite_timelimit(conn, limit_ms):
            facets = count_facets(conn, ref.collection, filters, where)
    except sqlite3.Error:
        facets = []
    cache[key] = (now_s, last, facets)
    while len(cache) > KEPT:
        cache.pop(next(iter(cache)), None)
    return facets


def count_facets(conn, collection: Collection, filters: RowFilters, where: str) -> list[Facet]:
    """The facets of a collection: the years of TAKEN first, then other keys in the order of the metadata."""
    sampled = sample(conn, collection)
    keys = [key for key, values in sampled.items() if key != TAKEN and is_countable(key, values)][:MAX_KEYS]
    facets = [count_years(conn, collection, filters, where)] if TAKEN in sampled else []
    facets += [count_values(conn, collection, key, filters, where) for key in keys]
    return [facet for facet in facets if len(facet.values) > 1 or any(value.is_chosen for value in facet.values)]


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


def count_values(conn, collection: Collection, key: str, filters: RowFilters, where: str) -> Facet:
    """The facet of a key. It has no values if there are very many of them, each of few rows."""
    value = f"cast({value_of(collection, ':clip_key')} as text)"
    counts = count(conn, collection, value, {"clip_key": key}, filters.without(key), where, "2 desc, 1")
    shown, total = counts[:MAX_VALUES], sum(number for _, number in counts)
    if len(counts) > MAX_VALUES and sum(number for _, number in shown) < LEAST_SHARE * total:
        shown = []
    chosen = filters.values(key)
    shown += [(text, 0) for text in chosen if text not in dict(shown)]
    return Facet(key, [Value(text, number, text in chosen, filters.toggled(key, text)) for text, number in shown])


def count_years(conn, collection: Collection, filters: RowFilters, where: str) -> Facet:
    """The facet of the years in which photos were taken."""
    value = f"substr({value_of(collection, ':clip_key')}, 1, 4)"
    counts = count(conn, collection, value, {"clip_key": TAKEN}, filters.without(TAKEN), where, "1 desc")
    years = [(text, number) for text, number in counts if text.isascii() and text.isdigit() and int(text)]
    return Facet(TAKEN, [year_value(filters, int(text), number) for text, number in years[:MAX_VALUES]])


def year_value(filters: RowFilters, year: int, count: int) -> Value:
    """A year, which is chosen if the dates are its first and its last day."""
    days = (date(year, 1, 1), date(year, 12, calendar.monthrange(year, 12)[1]))
    is_chosen = (filters.first, filters.last) == days
    first, last = (None, None) if is_chosen else days
    return Value(str(year), count, is_chosen, replace(filters, first=first, last=last))


def count(
    conn, collection: Collection, value: str, parameters: dict, filters: RowFilters, where: str, order: str
) -> list[tuple[str, int]]:
    """The values of an SQL expression and how many rows have each."""
    condition, bound = filters.condition(collection, where)
    sql = f"select {value}, count(*) {from_clause(collection, condition)} group by 1 order by {order}"
    counts = rows(conn, sql, bound | parameters)
    return [(text, number) for text, number in counts if isinstance(text, str) and 0 < len(text) <= MAX_CHARACTERS]
