"""Opens a SOURCE and makes entries of it; decides what of a row is the id, the text, the image and the metadata.

SOURCE is a folder (folder.py), a file or standard input (file_format.py, then rows.py), or a query (sql_rows.py).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from sqlite_utils import Database

from llm_clip_onnx.errors import InputError, cited, shortened

from .entry import Entry, is_blank
from .file_format import SUFFIXES, file_format_of
from .folder import read_folder
from .rows import RepeatedName, Row, first_line, read_rows
from .sql_rows import connection_to, has_rows, query_rows

STANDARD_INPUT = Path("-")
DATA_URI = re.compile(r"\s*data:([^,]{0,200}),", re.IGNORECASE)
WEB_ADDRESS = re.compile(r"\s*https?://", re.IGNORECASE)
NO_IDS = {bytes: "", float: "a number with a point, ", bool: "true or false, ", list: "a list, ", dict: "an object, "}


@dataclass(frozen=True)
class Source:
    """The entries of a source. count: the number of entries, None if unknown. notes: sentences for the summary.

    folder: where the entries are files, which then are a list.
    """

    entries: Iterable[Entry]
    count: int | None
    notes: Sequence[str] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Reading:
    """How a source is read: options of `llm clip embed`, None or () if they are not given."""

    sql: str | None = None
    image: str | None = None
    metadata: Sequence[str] = ()
    delimiter: str | None = None
    encoding: str | None = None
    exclude: Sequence[str] = ()
    newest_first: bool = False

    def columns(self) -> tuple[str, ...]:
        """The names of columns that options name."""
        return (*self.metadata, *((self.image,) if self.image is not None else ()))

    def refuse(self, source: str, *names: str) -> None:
        """Raises InputError if one of these options is given, because it is not for such a source."""
        if given := [f"--{name}" for name in names if getattr(self, name) not in (None, ())]:
            raise InputError(f"{source}; {', '.join(given)} cannot be used with it")


@contextmanager
def read_source(source: Path, database: Database, reading: Reading) -> Iterator[Source]:
    """The entries of a folder, of a file, of standard input, or of a SQLite file by a query.

    Raises InputError, also while entries are read. `database` is the one that is written to, which may be the source.
    """
    if source == STANDARD_INPUT:
        reading.refuse("standard input has rows", "sql", "exclude")
        with tempfile.NamedTemporaryFile() as copy:  # it is read more than once
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            yield read_file_of_rows(Path(copy.name), "standard input", Path(), reading)
    elif source.is_dir():
        reading.refuse(f"{source} is a folder", "sql", "image", "metadata", "delimiter", "encoding")
        contents = read_folder(source, reading.exclude, reading.newest_first)
        yield Source(contents.entries, len(contents.entries), contents.notes(), source)
    elif not source.is_file():
        raise InputError(f"{source} is no regular file; send its rows to standard input, with - as SOURCE")
    elif reading.sql is not None:
        reading.refuse(f"{source} is read by a query", "delimiter", "encoding", "exclude")
        with connection_to(source, database) as connection:
            if not has_rows(connection, reading.sql):
                raise nothing(f"the query of {source} gives no row")
            yield Source(entries_of(query_rows(connection, reading.sql), reading, source.parent), None)
    else:
        reading.refuse(f"{source} is a file of rows", "exclude")
        if source.suffix.lower() not in SUFFIXES:
            raise InputError(
                f"{source} is neither a folder of images nor a file of rows, which ends with {', '.join(SUFFIXES)};"
                " rows of a SQLite file are named with --sql"
            )
        yield read_file_of_rows(source, str(source), source.parent, reading)


def nothing(why: str) -> InputError:
    return InputError(f"there is nothing to embed: {why}")


def read_file_of_rows(file: Path, name: str, folder: Path, reading: Reading) -> Source:
    """The entries of a file of rows. Raises InputError if no row of it can be read."""
    try:
        format = file_format_of(file, reading.delimiter, reading.encoding)
        count, rows, more = read_rows(file, format)
    except (OSError, UnicodeError, InputError) as error:
        raise InputError(f"{name} cannot be read: {error}") from error
    if not count:
        names = first_line(file, format) if format.format == "CSV" else ""
        where = f" below its first line, {cited(names)}" if names else ""
        raise nothing(f"{name} was read as {format.format} and has no row{where}")
    return Source(entries_of(rows, reading, folder), count, [*format.guesses, *([more] if more else [])])


def entries_of(rows: Iterable[Row], reading: Reading, folder: Path) -> Iterator[Entry]:
    """The entries of rows. The first column of the first row is the id in all of them.

    A row that cannot be read, or has the id of an earlier one, becomes an entry with the reason. Raises InputError if
    the first row lacks a column that an option names.
    """
    key, places = None, dict[str, str]()
    for place, row in rows:
        if key is None and isinstance(row, dict):
            key = key_of(row, reading)
        try:
            entry = entry_of(row, key or "", reading, folder)
            if (earlier := places.setdefault(entry.id, place)) != place:
                raise InputError(f"its id {cited(entry.id)} is that of {earlier} too")
        except InputError as error:
            entry = Entry(place, error)
        yield entry


def key_of(row: dict[str, Any], reading: Reading) -> str:
    """The name of the first column. Raises InputError if a column that an option names is not there, or is twice."""
    for name in reading.columns():
        if name not in row:
            raise InputError(f"there is no column {cited(name)} among {shortened(', '.join(row))}")
    check_names(row, reading)
    return next(iter(row))


def check_names(row: dict[str, Any], reading: Reading) -> None:
    """Raises InputError if two columns have a name that an option names."""
    for column in row:
        if isinstance(column, RepeatedName) and column.original in reading.columns():
            raise InputError(f"two columns have the name {cited(column.original)}, which an option names; rename one")


def entry_of(row: dict[str, Any] | InputError, key: str, reading: Reading, folder: Path) -> Entry:
    """The entry of a row: its other columns are the text, joined by spaces as `llm embed-multi` does it.

    A BLOB is an image, and so is what the column --image names. Raises InputError.
    """
    if isinstance(row, InputError):
        raise row
    for name in (key, *reading.columns()):
        if name not in row:
            raise InputError(f"it has no column {cited(name)}")
    check_names(row, reading)
    id_ = id_of(row[key])
    metadata = metadata_of({name: row[name] for name in reading.metadata})
    if reading.image is not None:
        return Entry(id_, image_of(row[reading.image], folder), metadata)
    others = [value for name, value in row.items() if name != key and name not in reading.metadata]
    return Entry(id_, content_in(others), metadata)


def id_of(value: Any) -> str:
    """A text or a whole number as an id. Raises InputError for anything else, NULL and blank texts too."""
    if value is None or (isinstance(value, str) and is_blank(value)):
        raise InputError("it has no id in its first column")
    if type(value) in NO_IDS:
        raise InputError(f"its id is {NO_IDS[type(value)]}{cited(value)}; expected a text or a whole number")
    return str(value)


def content_in(values: Sequence[Any]) -> str | bytes:
    """The text of some columns, or the one BLOB. Raises InputError for a BLOB beside others."""
    if [type(value) for value in values] == [bytes]:
        return values[0]
    if any(isinstance(value, bytes) for value in values):
        raise InputError("it has a BLOB beside other columns; name the image's with --image")
    return " ".join(map(text_of, values))


def text_of(value: Any) -> str:
    """A value as text: NULL, NaN and infinities as nothing, and lists, objects, true and false as JSON."""
    if isinstance(value, float) and not isfinite(value):
        return ""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def image_of(value: Any, folder: Path) -> bytes | Path | InputError:
    """The image that a column holds: a BLOB, a data URI, or the path of a file from `folder`; or why it holds none."""
    if isinstance(value, bytes):
        return value
    if value is None or (isinstance(value, str) and is_blank(value)):
        return InputError("there is no image; expected the path of a file, or a BLOB")
    if not isinstance(value, str):
        return InputError(f"the image is {cited(value)}; expected the path of a file, or a BLOB")
    if WEB_ADDRESS.match(value):
        return InputError(f"the image {cited(value)} is on the web; expected the path of a file")
    return bytes_of(value) if DATA_URI.match(value) else folder / value


def bytes_of(data_uri: str) -> bytes | InputError:
    """The bytes in a data URI, or why there are none."""
    head, _, body = data_uri.partition(",")
    try:
        return b64decode(unquote_to_bytes(body)) if head.lower().endswith(";base64") else unquote_to_bytes(body)
    except ValueError as error:
        return InputError(f"the data URI {cited(data_uri)} is not base64: {error}")


def metadata_of(columns: dict[str, Any]) -> dict[str, Any] | None:
    """Columns to keep, None if there are none. Raises InputError for what JSON cannot hold."""
    for name, value in columns.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"column {cited(name)} is {cited(value)}, which metadata cannot hold") from error
    return columns or None
