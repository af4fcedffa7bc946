"""The chips of the search page: values of a collection's metadata, how many rows have each, and links with it chosen.

counts.py counts them. filters.py reads those that the client has chosen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import date
from functools import partial

import numpy as np

from .collection_refs import CollectionRef
from .counts import MAX_CHARACTERS, Counts, count_rows, fitting, kept_of
from .filters import TAKEN, RowFilters

MAX_VALUES = 40  # of one key
LEAST_SHARE = 0.1  # of a key with more values: the share of rows that the shown ones must have
LIMIT_MS = 500  # of all counting


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
    fits = fitting(counts, filters)
    at, found = counts.keys.index(key), Counter[str]()
    numbers = np.bincount(counts.codes[at, fits], counts.rows[fits], len(counts.values[at])).astype(int)
    for value, number in zip(counts.values[at], numbers.tolist()):
        if value and number and len(value) <= MAX_CHARACTERS:
            found[value[:4] if key == TAKEN else value] += number
    return found


def year_value(filters: RowFilters, year: int, count: int) -> Value:
    """A year, which is chosen if the dates are its first and its last day."""
    days = (date(year, 1, 1), date(year, 12, 31))
    is_chosen = (filters.first, filters.last) == days
    first, last = (None, None) if is_chosen else days
    return Value(str(year), count, is_chosen, replace(filters, first=first, last=last))
