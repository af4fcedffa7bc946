"""What one SQL query may use of a small machine: memory, and no function that the time limit cannot stop."""

from __future__ import annotations

from sys import getsizeof
from weakref import WeakKeyDictionary

from datasette.utils.sqlite import sqlite3

from . import sql_text
from .config import Limits


class ResultTooLarge(sqlite3.OperationalError):
    """A query gave more than plugins.datasette-guard.limits.result_bytes."""


PATTERN_BYTES = 200  # of LIKE and GLOB, for each of which a text is gone through once more


def bound(conn: sqlite3.Connection, limits: Limits) -> None:
    """Bound the values, the rows and the memory of a connection's queries, and keep what they sort off the disk.

    A value that is too long raises SQLite's `string or blob too big`, too much memory MemoryError.
    """
    conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value_bytes)
    conn.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES)
    for name, (arguments, function) in sql_text.functions(limits.value_bytes).items():
        conn.create_function(name, arguments, function, deterministic=True)
    conn.row_factory = bounded_rows(limits.result_bytes)
    if limits.sqlite_bytes:
        conn.execute("pragma temp_store = memory")  # so that the next line bounds it: /tmp may be memory as well
        conn.execute(f"pragma hard_heap_limit = {limits.sqlite_bytes}")  # of the process, and never raised again


def bounded_rows(result_bytes: int):
    """A row factory that gives sqlite3.Row, and raises ResultTooLarge once a query has given too much."""
    given: WeakKeyDictionary[sqlite3.Cursor, int] = WeakKeyDictionary()

    def row_of(cursor: sqlite3.Cursor, values: tuple) -> sqlite3.Row:
        total = given.get(cursor, 0) + sum(map(getsizeof, values))
        if total > result_bytes:
            del values  # which the traceback would keep
            raise ResultTooLarge(
                f"the result is larger than {result_bytes} bytes: ask for fewer rows or columns "
                "(plugins.datasette-guard.limits.result_bytes)"
            )
        given[cursor] = total
        return sqlite3.Row(cursor, values)

    return row_of
