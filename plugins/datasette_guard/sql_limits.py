"""Bounds what one SQL query may use of a small machine: its memory, and functions that the time limit cannot stop."""

from __future__ import annotations

from sys import getsizeof
from weakref import WeakKeyDictionary

from datasette.utils.sqlite import sqlite3

from . import sql_text
from .config import Limits
from .sentences import with_sentence


class ResultTooLarge(sqlite3.OperationalError):
    """The rows of a query are larger than plugins.datasette-guard.limits.result_bytes."""


PATTERN_BYTES = 200  # of LIKE and GLOB, which may search a text once for each


def bound(conn: sqlite3.Connection, limits: Limits) -> None:
    """Bound the values, the rows and the memory of a connection's queries, and have them sort in memory, not on disk.

    A value that is too long raises SQLite's `string or blob too big`, too much memory raises MemoryError.
    """
    conn.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limits.value_bytes)
    conn.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, PATTERN_BYTES)
    for name, (arguments, function) in sql_text.functions(limits.value_bytes).items():
        told = with_sentence(name, function, sql_text.TextError)
        conn.create_function(name, arguments, told, deterministic=True)
    conn.row_factory = bounded_rows(limits.result_bytes)
    if limits.sqlite_bytes:
        conn.execute("pragma temp_store = memory")  # which the next line bounds; /tmp may be memory as well
        conn.execute(f"pragma hard_heap_limit = {limits.sqlite_bytes}")  # of the process, and never raised again


def bounded_rows(result_bytes: int):
    """A row factory of sqlite3.Row that raises ResultTooLarge when the rows of a query exceed result_bytes."""
    sizes: WeakKeyDictionary[sqlite3.Cursor, int] = WeakKeyDictionary()

    def row_of(cursor: sqlite3.Cursor, values: tuple) -> sqlite3.Row:
        total = sizes.get(cursor, 0) + sum(map(getsizeof, values))
        if total > result_bytes:
            del values  # because the traceback would keep them
            raise ResultTooLarge(
                f"the result is larger than {result_bytes} bytes: ask for fewer rows or columns "
                "(plugins.datasette-guard.limits.result_bytes)"
            )
        sizes[cursor] = total
        return sqlite3.Row(cursor, values)

    return row_of
