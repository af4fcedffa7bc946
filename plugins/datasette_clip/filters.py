"""Filters of a search that need no permission to run SQL: values in the metadata, dates, and one id.

Keys and values are bound as parameters. A condition in SQL, which needs that permission, is the field `where`.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from clip_collections.collection import Collection, quoted, quoted_key
from clip_collections.condition import expression
from llm_clip_onnx.errors import InputError, cited

from .items import FormFields

PREFIX = "meta."  # meta.camera=...: rows whose metadata have this value
FROM, TO = "from", "to"  # dates of TAKEN
FIELD_NAMES = (FROM, TO, f"{PREFIX}KEY")  # for messages
TAKEN = "taken"  # the key of metadata with the time at which a photo was taken, ISO 8601
KEY = re.compile(r"[^\W\d][\w -]{0,60}")  # of metadata; `->>` would read one with a $ as a path
MAX_VALUES = 50  # of all keys


@dataclass(frozen=True)
class RowFilters:
    """metadata: (key, value) pairs; of one key any value fits. first, last: days on which a photo was taken, or None.

    id: of the only row that fits, None for all.
    """

    metadata: tuple[tuple[str, str], ...] = ()
    first: date | None = None
    last: date | None = None
    id: str | int | None = None

    def __bool__(self) -> bool:
        return self != RowFilters()

    def fields(self) -> list[tuple[str, Any]]:
        """The filters as fields of a URL. `id` has none."""
        dates = [(FROM, self.first), (TO, self.last)]
        return [(PREFIX + key, value) for key, value in self.metadata] + [(name, day) for name, day in dates if day]

    @property
    def counted_keys(self) -> list[str]:
        """The keys of metadata that the filters read."""
        return [key for key, _ in self.metadata] + [TAKEN] * bool(self.first or self.last)

    def values(self, key: str) -> list[str]:
        """The values of a key of metadata that are chosen."""
        return [value for name, value in self.metadata if name == key]

    def toggled(self, key: str, value: str) -> RowFilters:
        """The filters with one value more, or without it if it is chosen."""
        pair = (key, value)
        chosen = self.metadata
        kept = tuple(one for one in chosen if one != pair) if pair in chosen else (*chosen, pair)
        return replace(self, metadata=kept)

    def without(self, key: str) -> RowFilters:
        """The filters without those of a key of metadata, and without dates if it is TAKEN."""
        kept = replace(self, metadata=tuple(pair for pair in self.metadata if pair[0] != key))
        return replace(kept, first=None, last=None) if key == TAKEN else kept

    def condition(self, collection: Collection, where: str = "") -> tuple[str, dict[str, Any]]:
        """An SQL condition of these filters and of `where`, and its parameters. Raises InputError."""
        conditions, parameters = [expression(where)], dict[str, Any]()
        if (self.metadata or self.first or self.last) and not collection.metadata:
            raise InputError(
                f"collection {cited(collection.name)} has no metadata; expected no {FROM}, {TO}, {PREFIX}KEY"
            )
        for number, key in enumerate(dict.fromkeys(key for key, _ in self.metadata)):
            names = {f"clip_{number}_{at}": value for at, value in enumerate(self.values(key))}
            parameters |= {f"clip_{number}": key, **names}
            among = ", ".join(f":{name}" for name in names)
            conditions.append(f"cast({value_of(collection, f':clip_{number}')} as text) in ({among})")
        if self.first or self.last:  # any text is at least the empty one, and no number is
            conditions.append(f"{value_of(collection, ':clip_taken')} >= :clip_first")
            parameters |= {"clip_taken": TAKEN, "clip_first": str(self.first or "")}
        if self.last:
            conditions.append(f"{value_of(collection, ':clip_taken')} < :clip_end")
            parameters["clip_end"] = day_after(self.last)
        if self.id is not None:
            conditions.append(f"{quoted_key(collection)} = :clip_id")
            parameters["clip_id"] = self.id
        return " and ".join(part for part in conditions if part), parameters


def value_of(collection: Collection, key: str) -> str:
    """SQL for the value of a key in the metadata, NULL if they are no JSON. key: an SQL parameter."""
    column = quoted(collection.metadata or "")
    return f"case when json_valid({column}) then {column} ->> {key} end"


def day_after(day: date) -> str:
    """The next day in ISO 8601; after the last day of the calendar a text that follows all dates."""
    return (day + timedelta(1)).isoformat() if day < date.max else "A"


def is_filter(name: str) -> bool:
    """True if a field of a request is a value of metadata or a date."""
    return name.startswith(PREFIX) or name in (FROM, TO)


def read_filters(fields: FormFields) -> RowFilters:
    """The filters in the fields of a search. Empty ones do not count. Raises InputError naming a field."""
    pairs: dict[tuple[str, str], None] = {}
    for name, values in fields.options.items():
        if not name.startswith(PREFIX):
            continue
        key = name.removeprefix(PREFIX)
        if not KEY.fullmatch(key):
            raise InputError(f"{cited(name)} names no key of metadata; expected {PREFIX} and a name")
        pairs |= {(key, value): None for value in values if value}
    if len(pairs) > MAX_VALUES:
        raise InputError(f"there are {len(pairs)} values of metadata; at most {MAX_VALUES} are read")
    return RowFilters(tuple(pairs), read_date(fields, FROM), read_date(fields, TO))


def readable_filters(fields: FormFields) -> RowFilters:
    """Those filters in the fields of a search that can be read."""
    names = [name for name in fields.options if name.startswith(PREFIX) and KEY.fullmatch(name.removeprefix(PREFIX))]
    pairs = dict.fromkeys((name.removeprefix(PREFIX), value) for name in names for value in fields.all(name) if value)
    days: dict[str, date | None] = {}
    for name in (FROM, TO):
        with suppress(InputError):
            days[name] = read_date(fields, name)
    return RowFilters(tuple(pairs)[:MAX_VALUES], days.get(FROM), days.get(TO))


def read_date(fields: FormFields, name: str) -> date | None:
    """The date in a field, None if it is empty. Raises InputError."""
    text = fields.last(name).strip()
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise InputError(f"{name} is {cited(text)}; expected a date such as 2019-07-14") from None
