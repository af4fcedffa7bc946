"""Everything of Datasette, uvicorn and datasette-scale-to-zero that is private or patched."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

T = TypeVar("T")


def per_datasette(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of a Datasette that is called once for each, and gives that result from then on.

    The result must not refer to the Datasette, because neither would then ever be freed.
    """
    results: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    @wraps(make)
    def of_datasette(datasette) -> T:
        if datasette not in results:
            results[datasette] = make(datasette)
        return results[datasette]

    return of_datasette


def connect(datasette, database: str) -> sqlite3.Connection:
    """A new read-only connection to a database, without the functions that plugins add.

    Raises KeyError for a database that Datasette does not know. The caller closes it.
    """
    return datasette.get_database(database).connect()
