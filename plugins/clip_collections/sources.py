"""Reads the entries to embed: the images of a folder, the rows of a file, or the rows of an SQL query."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sqlite_utils import Database
from sqlite_utils.utils import Format, RowError, RowsFromFileError, rows_from_file

from llm_clip_onnx.errors import InputError, cited, shortened
from llm_clip_onnx.images.signatures import SUFFIXES

FORMATS = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".json": Format.JSON,
    ".jsonl": Format.NL,
    ".ndjson": Format.NL,
    ".nl": Format.NL,
}
MAX_BYTES = 100_000_000  # of an image file; what needs more is no image that is read


class Entry(NamedTuple):
    """One thing to embed. content: a text, the bytes of an image, or the file of one. metadata: None is none."""

    id: str
    content: str | bytes | Path | None
    metadata: dict | None = None


def images_in(folder: Path) -> list[Entry]:
    """The images in a folder and the folders in it, by their relative paths; hidden ones and other files left out."""
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files = [Path(root, name) for name in sorted(names) if not name.startswith(".")]
        found += [Entry(file.relative_to(folder).as_posix(), file) for file in files if file.suffix.lower() in SUFFIXES]
    return found


def rows_in(file: Path) -> Iterator[dict]:
    """The rows of a CSV, TSV, JSON or newline-delimited JSON file. Raises InputError where it cannot be read as one."""
    if file.suffix.lower() not in FORMATS:
        raise InputError(
            f"{file} is neither a folder of images nor a file of rows, which ends with {', '.join(FORMATS)};"
            " rows of a SQLite file are named with --sql"
        )
    try:
        with file.open("rb") as stream:
            yield from rows_from_file(stream, FORMATS[file.suffix.lower()])[0]
    except (OSError, ValueError, csv.Error, RowError, RowsFromFileError) as error:
        raise InputError(f"{file} cannot be read as {file.suffix[1:].upper()}: {error}") from error


def rows_of(database: sqlite3.Connection, sql: str) -> Iterator[dict]:
    """The rows that a query gives. Raises InputError where it cannot be run."""
    try:
        cursor = database.execute(sql)
        names = [column[0] for column in cursor.description or ()]
        for row in cursor:
            yield dict(zip(names, row))
    except sqlite3.Error as error:
        raise InputError(f"--sql cannot be run: {shortened(error)}") from error


def entry_of(row: dict, image: str | None, metadata: Sequence[str], folder: Path) -> Entry:
    """The entry of a row: its first column is the id; the others are the text, joined as `llm embed-multi` does it.

    A BLOB is an image, and so is the file, relative to `folder`, that the column `image` names. Columns in `metadata`
    are kept and not embedded. Raises InputError for a row without these columns.
    """
    if not isinstance(row, dict):
        raise InputError(f"{json.dumps(row)[:60]} is not a row; expected an object of columns")
    for name in (*metadata, *([image] if image else [])):
        if name not in row:
            raise InputError(f"there is no column {cited(name)} among {', '.join(map(shortened, row))}")
    (_, id_), *others = row.items()
    values = [row[image]] if image else [value for name, value in others if name not in metadata]
    content: str | bytes | Path | None = None
    if [type(value) for value in values] == [bytes]:
        [content] = values
    elif any(isinstance(value, bytes) for value in values):
        raise InputError(f"row {cited(id_)} has a BLOB beside other columns; name the image's with --image")
    elif not image:
        content = " ".join("" if value is None else str(value) for value in values)
    elif path := row[image]:
        content = folder / str(path)
    return Entry(str(id_), content, {name: row[name] for name in metadata} or None)


def entries_in(
    source: Path, database: Database, sql: str | None = None, image: str | None = None, metadata: Sequence[str] = ()
) -> tuple[int, Iterable[Entry]]:
    """How many entries a source has, and the entries: a folder's images, a file's rows, or a SQLite file's by `sql`.

    Raises InputError, of rows also while they are read. `database` is the one to write to, which may be the source.
    """
    if source.is_dir():
        if sql or image or metadata:
            raise InputError(f"{source} is a folder; --sql, --image and --metadata are for rows")
        images = images_in(source)
        return len(images), images
    if sql:
        connection = connection_to(source, database)
        [counted] = rows_of(connection, f"select count(*) as n from ({sql})")
        count, rows = counted["n"], rows_of(connection, sql)
    else:
        count, rows = sum(1 for _ in rows_in(source)), rows_in(source)
    return count, (entry_of(row, image, metadata, source.parent) for row in rows)


def connection_to(source: Path, database: Database) -> sqlite3.Connection:
    """One that only reads; where the source is the database that is written to, that one's, which would lock it out."""
    file = next(row[2] for row in database.conn.execute("pragma database_list") if row[1] == "main")
    if source.samefile(file):
        return database.conn
    return sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)


def content_of(entry: Entry) -> str | bytes:
    """What is to be embedded, files read. Raises InputError where there is nothing, or nothing that can be read."""
    try:
        entry.id.encode()
        content = read_file(entry.content) if isinstance(entry.content, Path) else entry.content
        if isinstance(content, str):
            content.encode()
    except UnicodeEncodeError as error:
        raise InputError("its name or text is not UTF-8, so SQLite cannot hold it; rename it") from error
    if content is None:
        raise InputError("there is no image; expected the path of a file, or a BLOB")
    return content


def read_file(file: Path) -> bytes:
    """The bytes of a file that may be an image. Raises InputError."""
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise InputError(f"{file} has {size:,} bytes; of an image at most {MAX_BYTES:,} are read")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error
