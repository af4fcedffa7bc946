"""Runs the query of --sql on a SQLite file, which it cannot write, and yields its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.utils import dedupe_keys

from llm_clip_onnx.errors import InputError

from .file_format import UNDECODABLE
from .rows import Row, decoded


def query_rows(database: sqlite3.Connection, sql: str) -> Iterator[Row]:
    """The rows of a query. Raises InputError if it cannot be run or writes."""
    try:
        cursor = run_query(database, sql)
        names = dedupe_keys(column[0] for column in cursor.description or ())
        for number, values in enumerate(cursor, 1):
            yield decoded(Row(f"row {number}", dict(zip(names, values))), "UTF-8")
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise InputError(f"--sql cannot be run: {error}") from error
    if not names:
        raise InputError("--sql cannot be run: it is no query that gives rows")


def run_query(database: sqlite3.Connection, sql: str) -> sqlite3.Cursor:
    """The cursor of a query, run as it is and not as a part of another. Raises sqlite3.Error for one that writes."""
    database.text_factory = lambda text: text.decode("utf-8", UNDECODABLE)
    database.execute("pragma query_only = 1")
    try:
        return database.execute(sql)
    finally:
        database.execute("pragma query_only = 0")


def connection_to(source: Path, database: Database) -> sqlite3.Connection:
    """A connection that reads the source: that of `database` if it is the same file, because another would lock it."""
    file = next(row[2] for row in database.conn.execute("pragma database_list") if row[1] == "main")
    if source.samefile(file):
        return database.conn
    return sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)
