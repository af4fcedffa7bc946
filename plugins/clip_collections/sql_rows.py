"""Runs the query of --sql on a SQLite file, which it cannot change, and yields its rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlite_utils import Database

from llm_clip_onnx.errors import InputError
from llm_clip_onnx.images.signatures import LOOKED_AT, name_of

from .condition import TOKEN
from .file_format import UNDECODABLE
from .rows import Row, decoded, unique_names

SQLITE = b"SQLite format 3\0"
DENIED = ("not authorized", "authorization denied")  # what SQLite says of what `authorize` denies
READING_PRAGMAS = {  # without a value; virtual tables run some of them
    *("table_info", "table_xinfo", "table_list", "index_list", "index_info", "index_xinfo", "foreign_key_list"),
    *("database_list", "compile_options", "collation_list", "function_list", "module_list", "pragma_list"),
    *("data_version", "schema_version", "user_version", "application_id", "encoding", "page_size", "page_count"),
}


@contextmanager
def connection_to(source: Path, database: Database) -> Iterator[sqlite3.Connection]:
    """A connection that reads the source: that of `database` if it is the same file, because another would lock it.

    Raises InputError if the source is no SQLite file. The connection could write, so that SQLite removes its files -wal
    and -shm at the end; run_query holds that it does not.
    """
    with source.open("rb") as stream:
        head = stream.read(LOOKED_AT)
    if not head.startswith(SQLITE):
        raise InputError(f"{source} is {name_of(head) if head else 'empty'}; --sql reads a SQLite file")
    file = next(row[2] for row in database.conn.execute("pragma database_list") if row[1] == "main")
    if source.samefile(file):
        yield database.conn
        return
    with closing(sqlite3.connect(f"{source.resolve().as_uri()}?mode=rw", uri=True)) as connection:
        yield connection


def has_rows(database: sqlite3.Connection, sql: str) -> bool:
    """True if a query gives a row. It ends then, because an open one locks tables. Raises InputError as query_rows."""
    with closing(query_rows(database, sql)) as rows:
        return next(rows, None) is not None


def query_rows(database: sqlite3.Connection, sql: str) -> Generator[Row]:
    """The rows of a query. Raises InputError if it cannot be run or does more than read."""
    try:
        cursor = run_query(database, sql)
        names = unique_names(column[0] for column in cursor.description or ())
        for number, values in enumerate(cursor, 1):
            yield decoded(Row(f"row {number}", dict(zip(names, values))), "UTF-8")
    except (sqlite3.Error, sqlite3.Warning, UnicodeError) as error:
        reason = "it may only read" if str(error).startswith(DENIED) else error
        raise InputError(f"--sql cannot be run: {reason}") from error
    if not names:
        raise InputError("--sql cannot be run: it is no query that gives rows")


def run_query(database: sqlite3.Connection, sql: str) -> sqlite3.Cursor:
    """The cursor of a query, run as it is and not as a part of another. Raises sqlite3.Error for one that writes."""
    database.text_factory = lambda text: text.decode("utf-8", UNDECODABLE)
    database.execute("pragma query_only = 1")
    database.set_authorizer(authorize)
    try:
        return database.execute(without_end(sql))
    finally:
        database.set_authorizer(None)
        database.execute("pragma query_only = 0")


def authorize(action: int, name: str | None, value: str | None, *_) -> int:
    """Denies what query_only does not: ATTACH and VACUUM INTO, which make files, and PRAGMA that changes something."""
    if action == sqlite3.SQLITE_PRAGMA:
        is_reading = name in READING_PRAGMAS and (value is None or name.endswith(("_info", "_xinfo", "_list")))
        return sqlite3.SQLITE_OK if is_reading else sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_DENY if action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH) else sqlite3.SQLITE_OK


def without_end(sql: str) -> str:
    """A query without the semicolons, comments and spaces before and after it."""
    tokens = TOKEN.findall(sql)
    while tokens and is_no_part(tokens[-1]):
        tokens.pop()
    while tokens and is_no_part(tokens[0]):
        tokens.pop(0)
    return "".join(tokens)


def is_no_part(token: str) -> bool:
    return not token.strip(";") or token.isspace() or token.startswith(("--", "/*"))
