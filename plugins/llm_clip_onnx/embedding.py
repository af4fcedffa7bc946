"""Embedding many: the images of a folder, or the rows of a file, become a collection as `llm embed-multi` writes it.

Reading and writing are one thread's, decoding and embedding one's for each core, an item a call: each embedding is the
same as if it came alone. What is in the collection already is not embedded again, so that a run which was ended can be
started again. It removes nothing: what is no longer in the source stays.
"""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from llm import Collection
from sqlite_utils import Database
from sqlite_utils.utils import Format, RowError, RowsFromFileError, rows_from_file

from . import MODEL_ID
from .engine import Engine
from .errors import InputError
from .llm_model import CLIP
from .towers import available_cores
from .vectors import cosine, from_blob, to_blob

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".avif", ".heic", ".heif"}
FORMATS = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".json": Format.JSON,
    ".jsonl": Format.NL,
    ".ndjson": Format.NL,
    ".nl": Format.NL,
}
MAX_BYTES = 100_000_000  # of an image file; what needs more is no image that is read
WRITTEN_AT_ONCE = 32  # items; a run that is killed loses no more than were not yet written
WRITTEN_BYTES = 32_000_000  # of contents kept for that
AHEAD = 4  # items a core that are read before they can be embedded
SAME_MODEL = 0.98  # least cosine of an embedding with itself on another machine; of another model it is about 0

INSERT = """
insert or replace into embeddings
    (collection_id, id, embedding, content, content_blob, content_hash, metadata, updated)
values (?, ?, ?, ?, ?, ?, ?, ?)
"""
KNOWN = "select embedding from embeddings where collection_id = ? and content_hash = ?"
THERE = """
select metadata, content is not null or content_blob is not null from embeddings
where collection_id = ? and id = ? and content_hash = ?
"""


class Entry(NamedTuple):
    """One thing to embed. content: a text, the bytes of an image, or the file of one. metadata: None is none."""

    id: str
    content: str | bytes | Path | None
    metadata: dict | None = None


class Outcome(NamedTuple):
    """What became of an entry, and of a bad one, why."""

    id: str
    became: Literal["embedded", "copied", "there", "bad"]
    why: str = ""


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
        raise InputError(f"--sql cannot be run: {error}") from error


def entry_of(row: dict, image: str | None, metadata: Sequence[str], folder: Path) -> Entry:
    """The entry of a row: its first column is the id; the others are the text, joined as `llm embed-multi` does it.

    A BLOB is an image, and so is the file, relative to `folder`, that the column `image` names. Columns in `metadata`
    are kept and not embedded. Raises InputError for a row without these columns.
    """
    if not isinstance(row, dict):
        raise InputError(f"{json.dumps(row)[:60]} is not a row; expected an object of columns")
    for name in (*metadata, *([image] if image else [])):
        if name not in row:
            raise InputError(f"there is no column {name!r} among {', '.join(map(str, row))}")
    (_, id_), *others = row.items()
    values = [row[image]] if image else [value for name, value in others if name not in metadata]
    content: str | bytes | Path | None = None
    if [type(value) for value in values] == [bytes]:
        [content] = values
    elif any(isinstance(value, bytes) for value in values):
        raise InputError(f"row {id_!r} has a BLOB beside other columns; name the image's with --image")
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


class Embedding:
    """Embeds into one collection of a database, which it makes where there is none.

    With `store` the contents are kept too, with `force` what is there is embedded all the same. Raises InputError for a
    collection of another model.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        engine: Engine,
        orient: str | None = None,
        store: bool = False,
        force: bool = False,
    ):
        self.db, self.engine, self.orient, self.store, self.force = database, engine, orient, store, force
        collection = Collection(name, database, model=CLIP)
        self.name, self.collection_id = name, collection.id
        [model] = self._one("select model from collections where id = ?", collection.id) or (None,)
        if model != MODEL_ID:
            raise InputError(
                f"the collection {name} is of the model {model}, to whose embeddings clip's cannot be"
                " compared; choose another collection"
            )
        size = self._one("select length(embedding) / 4 from embeddings where collection_id = ?", self.collection_id)
        if size and size[0] != engine.manifest.embed_dim and not force:
            raise self._of_another_model(f"embeddings of {size[0]} dimensions, not {engine.manifest.embed_dim}")
        self._unwritten: list[tuple] = []
        self._checked = force

    def _one(self, sql: str, *parameters) -> tuple | None:
        return self.db.conn.execute(sql, parameters).fetchone()

    def _of_another_model(self, found: str) -> InputError:
        return InputError(
            f"the collection {self.name} holds {found}: it was made with another model directory or --orient;"
            " --force embeds everything again, another collection keeps both"
        )

    def embed(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        """Embed and write entries, and say of each, in their order, what became of it.

        Raises InputError where the collection holds another model's embeddings, ModelDirError and sqlite3.Error; what
        was embedded until then is written.
        """
        pool = ThreadPoolExecutor(cores := available_cores())
        begun: deque[tuple[Entry, str | bytes, bytes | Future | Outcome]] = deque()
        try:
            for entry in entries:
                begun.append(self._begin(entry, pool))
                if len(begun) > AHEAD * cores:
                    yield self._end(*begun.popleft())
            while begun:
                yield self._end(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._write()

    def _begin(self, entry: Entry, pool: ThreadPoolExecutor) -> tuple[Entry, str | bytes, bytes | Future | Outcome]:
        """The entry, its content, and the vector blob that is known of it or will be, or what became of it."""
        try:
            content = content_of(entry)
        except InputError as error:
            return entry, b"", Outcome(entry.id, "bad", str(error))
        content_hash = Collection.content_hash(content)
        known = self._one(KNOWN, self.collection_id, content_hash)
        if known and not self._checked:
            self._check(content, known[0])
        if known is None or self.force:
            return entry, content, pool.submit(self.engine.embed_item, content, self.orient)
        if self._is_there(entry, content_hash):
            return entry, content, Outcome(entry.id, "there")
        return entry, content, known[0]

    def _is_there(self, entry: Entry, content_hash: bytes) -> bool:
        row = self._one(THERE, self.collection_id, entry.id, content_hash)
        if row is None or (self.store and not row[1]):
            return False
        return entry.metadata is None or row[0] == json.dumps(entry.metadata)

    def _check(self, content: str | bytes, known: bytes) -> None:
        """Raises InputError where a content's embedding is not, about, the one that the collection has of it."""
        try:
            now = self.engine.embed_item(content, self.orient)
        except InputError:
            return  # another will do
        if (found := cosine(now, from_blob(known))) < SAME_MODEL:
            raise self._of_another_model(f"an embedding whose cosine to today's of the same content is {found:.3f}")
        self._checked = True

    def _end(self, entry: Entry, content: str | bytes, result: bytes | Future | Outcome) -> Outcome:
        if isinstance(result, Outcome):
            return result
        try:
            blob = result if isinstance(result, bytes) else to_blob(result.result())
        except InputError as error:
            return Outcome(entry.id, "bad", str(error))
        self._unwritten.append((self.collection_id, *row_of(entry, content, blob, self.store)))
        kept_bytes = sum(len(part) for row in self._unwritten for part in row[3:5] if part)
        if len(self._unwritten) >= WRITTEN_AT_ONCE or kept_bytes > WRITTEN_BYTES:
            self._write()
        return Outcome(entry.id, "copied" if isinstance(result, bytes) else "embedded")

    def _write(self) -> None:
        rows, self._unwritten = self._unwritten, []
        if rows:
            with self.db.atomic():
                self.db.conn.executemany(INSERT, rows)


def row_of(entry: Entry, content: str | bytes, blob: bytes, store: bool) -> tuple:
    """What INSERT writes of an entry after the collection, as llm writes it."""
    kept = (content, None) if isinstance(content, str) else (None, content)
    metadata = json.dumps(entry.metadata) if entry.metadata else None
    content_hash = Collection.content_hash(content)
    return entry.id, blob, *(kept if store else (None, None)), content_hash, metadata, int(time.time())
