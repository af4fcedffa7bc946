"""Builds or updates the index of a collection, as `llm clip index` does.

A run reads all rows once, in the order of their rowids, and rewrites only the chunks of the index that are outdated. So
a run that was killed goes on where it stopped. Each chunk is a short transaction of its own, between which other
connections read and write.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.vectors import LITTLE_FLOAT32, unit

from ..collection import Collection, Id, columns_of, from_clause, is_vector, quoted, quoted_key, rows
from .sign_bits import Chunk, join_chunks, make_chunk, make_code, take_rows
from .store import FORMAT, Facts, chunk_versions, create_tables, id_crc, read_chunk, read_facts, source_key

CHUNK_ROWS = 16_384
READ_ROWS = 1_000  # in one query
MEAN_VECTORS = 100_000  # the mean is that of the first of them
REBUILD_GROWTH = 4  # an index of few vectors is built again, with a new mean, when they are 4 times as many


@dataclass
class Report:
    """What a run did, in rows. vectors: in the index. new: of these, added or changed since the last run. gone: in the
    last index and no longer in the table. skipped: without a usable vector."""

    vectors: int = 0
    new: int = 0
    gone: int = 0
    skipped: int = 0


def connect(path: str, reads_only: bool = False) -> sqlite3.Connection:
    """A connection that waits up to 60 s for locks, and replaces bytes of texts that are not UTF-8."""
    name = f"{Path(path).resolve().as_uri()}?mode=ro" if reads_only else path
    conn = sqlite3.connect(name, timeout=60, isolation_level=None, uri=reads_only)
    conn.text_factory = lambda text: str(text, "utf-8", "replace")
    return conn


def index(
    conn: sqlite3.Connection, collection: Collection, on_rows: Callable[[int], object] = lambda count: None
) -> Report:
    """Build or update the index of a collection. `on_rows` is called with the number of rows of each query.

    Raises InputError if a collection has no vectors, or if another process indexes it at the same time.
    """
    if collection.embed_dim is None:
        raise InputError(f"collection {cited(collection.name)} has no vectors")
    conn.execute("pragma secure_delete = on")  # or pages freed now keep what `llm clip forget` removes later
    create_tables(conn)
    facts = read_facts(conn, collection, collection.embed_dim)
    if facts is None or needs_new_mean(conn, collection, facts):
        facts = create_index(conn, collection, collection.embed_dim)
    run = IndexRun(conn, collection, facts, on_rows)
    low = None
    lasts = list(chunk_versions(conn, facts.id))
    for last in lasts:
        stored, skipped = run.read_stored(last)
        has_room = last == lasts[-1] and len(stored) + skipped < CHUNK_ROWS  # so new rows are added to it
        low = run.update_chunk(low, None if has_room else last, last, stored, skipped)
    while (end := run.update_chunk(low, None)) is not None:
        low = end
    run.write_counts()
    return run.report


class IndexRun:
    """One run over a collection, with the version of the index that it wrote last."""

    def __init__(
        self, conn: sqlite3.Connection, collection: Collection, facts: Facts, on_rows: Callable[[int], object]
    ):
        self.conn, self.collection, self.facts, self.on_rows = conn, collection, facts, on_rows
        self.version = facts.version
        self.report = Report()
        no_units = np.empty((0, facts.embed_dim), np.float32)
        self.empty = make_chunk(np.empty(0, np.int64), np.empty(0, np.uint32), no_units, facts.code)

    def read_stored(self, last: int) -> tuple[Chunk, int]:
        """A chunk as it is stored, and how many rows it skipped."""
        stored = read_chunk(self.conn, self.facts, last)
        if stored is None:
            raise in_use_error(self.collection)
        [(skipped,)] = rows(
            self.conn,
            "select skipped from main.clip_index_chunks where index_id = ? and last = ?",
            [self.facts.id, last],
        )
        return stored[1], skipped

    def update_chunk(
        self, low: int | None, high: int | None, last: int | None = None, stored: Chunk | None = None, skipped: int = 0
    ) -> int | None:
        """Write the chunk of the rows after `low` up to `high`, or of the next CHUNK_ROWS if `high` is None.

        `stored` is the chunk that is stored under `last`; if it is the same, nothing is written. Returns the rowid up
        to which the index is now up to date, None if there are no rows.
        """
        chunk, ids, end, chunk_skipped = self.read_chunk(low, high)
        end = high if high is not None else end if end is not None else last
        if end is None:
            return None
        self.report.vectors += len(chunk)
        self.report.skipped += chunk_skipped
        old = stored if stored is not None else self.empty
        same = chunk.same_rows(old)
        if same.all() and (len(chunk), chunk_skipped, end) == (len(old), skipped, last):
            return end
        changed = [id for id, is_same in zip(ids, same.tolist()) if not is_same]
        self.report.new += len(changed)
        self.report.gone += len(old) - int(np.isin(old.rowids, chunk.rowids, assume_unique=True).sum())
        self.write(last, chunk, end, chunk_skipped, changed)
        return end

    def read_chunk(self, low: int | None, high: int | None) -> tuple[Chunk, list[Id], int | None, int]:
        """A chunk of the table's rows after `low`, their ids, the last rowid, and how many rows were skipped."""
        parts, ids, end, skipped = [self.empty], [], None, 0
        for batch in read_rows(self.conn, self.collection, low, high, CHUNK_ROWS if high is None else None):
            usable, units = usable_units(batch, self.facts.embed_dim)
            rowids = np.array([rowid for rowid, _, _ in usable], np.int64)
            crcs = np.array([id_crc(id) for _, id, _ in usable], np.uint32)
            parts.append(make_chunk(rowids, crcs, units, self.facts.code))
            ids += [id for _, id, _ in usable]
            end, skipped = batch[-1][0], skipped + len(batch) - len(usable)
            self.on_rows(len(batch))
        return join_chunks(parts), ids, end, skipped

    def write(self, last: int | None, chunk: Chunk, end: int, skipped: int, changed: list[Id]) -> None:
        """Replace the chunk stored under `last`, by several if it has become too long. Old thumbnails are deleted."""
        parts = [chunk]
        if len(chunk) > 2 * CHUNK_ROWS:
            starts = range(0, len(chunk), CHUNK_ROWS)
            parts = [take_rows(chunk, np.arange(at, min(at + CHUNK_ROWS, len(chunk)))) for at in starts]
        lasts = [int(part.rowids[-1]) for part in parts[:-1]] + [end]
        with self.transaction() as version:
            self.conn.execute(
                "delete from main.clip_index_chunks where index_id = ? and last = ?", [self.facts.id, last]
            )
            self.conn.executemany(
                "insert into main.clip_index_chunks values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (self.facts.id, part_last, version, skipped if part_last == end else 0, *chunk_blobs(part))
                    for part_last, part in zip(lasts, parts)
                ],
            )
            delete_outdated_thumbnails(self.conn, self.collection, changed)

    def write_counts(self) -> None:
        """Write how many rows of the collection have a usable vector, and how many have none."""
        counts = (self.report.vectors, self.report.skipped)
        if counts != (self.facts.vectors, self.facts.skipped):
            with self.transaction():
                self.conn.execute(
                    "update main.clip_index set vectors = ?, skipped = ? where id = ?", [*counts, self.facts.id]
                )

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """A short transaction and its new version. Raises InputError if another run has written since the last one."""
        self.conn.execute("begin immediate")
        with self.conn:
            version = max(time.time_ns(), self.version + 1)
            update = self.conn.execute(
                "update main.clip_index set version = ? where id = ? and version = ?",
                [version, self.facts.id, self.version],
            )
            if update.rowcount != 1:
                raise in_use_error(self.collection)
            yield version
        self.version = version


def delete_outdated_thumbnails(conn: sqlite3.Connection, collection: Collection, changed: list[Id]) -> None:
    """Delete the thumbnails of rows that have changed, but for those that were written with the row as it is now."""
    unless = ""
    if "content_hash" in columns_of(conn, collection.table):
        same = ("content_hash = clip_thumbnails.content_hash", "rowid = clip_thumbnails.row")
        unless = f" and not exists (select 1 {from_clause(collection, '', f'{quoted_key(collection)} = ?2', *same)})"
    conn.executemany(
        f"delete from main.clip_thumbnails where collection = ?1 and id = ?2{unless}",
        [(collection.name, id) for id in changed],
    )


def in_use_error(collection: Collection) -> InputError:
    return InputError(
        f"collection {cited(collection.name)} is being indexed by another `llm clip index`: let it finish"
    )


def chunk_blobs(chunk: Chunk) -> tuple[bytes, ...]:
    """The BLOBs of a chunk, in the order of the table's columns."""
    return (
        chunk.rowids.astype("<i8").tobytes(),
        chunk.id_crcs.astype("<u4").tobytes(),
        chunk.bits.astype("<u8").tobytes(),
        chunk.corrections.astype("<f4").tobytes(),
        chunk.levels.tobytes(),
    )


def read_rows(
    conn: sqlite3.Connection, collection: Collection, low: int | None, high: int | None, most: int | None
) -> Iterator[list[tuple]]:
    """Rows (rowid, id, vector blob) after `low` up to `high`, at most `most`, by rowid, in lists of READ_ROWS.

    Each list has a query of its own, because an open one keeps other connections from writing.
    """
    while most is None or most > 0:
        bounds = [f"rowid > {low}"] * (low is not None) + [f"rowid <= {high}"] * (high is not None)
        batch = rows(
            conn,
            f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} "
            f"{from_clause(collection, '', *bounds, hint=' not indexed')} order by rowid "
            f"limit {READ_ROWS if most is None else min(READ_ROWS, most)}",
        )
        if not batch:
            return
        yield batch
        low = batch[-1][0]
        most = None if most is None else most - len(batch)


def needs_new_mean(conn: sqlite3.Connection, collection: Collection, facts: Facts) -> bool:
    """True if the mean is that of few vectors, and the table has REBUILD_GROWTH times as many rows now."""
    if facts.mean_vectors >= MEAN_VECTORS // REBUILD_GROWTH:
        return False
    enough = REBUILD_GROWTH * facts.mean_vectors
    return len(rows(conn, f"select 1 {from_clause(collection)} limit {enough}")) == enough


def usable_units(batch: list[tuple], embed_dim: int) -> tuple[list[tuple], NDArray[np.float32]]:
    """The rows (rowid, id, vector blob) whose vector has a direction, and their unit vectors [n, embed_dim]."""
    usable = [row for row in batch if is_vector(row[2], 4 * embed_dim)]
    vectors = np.frombuffer(b"".join(row[2] for row in usable), LITTLE_FLOAT32).reshape(-1, embed_dim)
    with np.errstate(all="ignore"):
        squares = np.vecdot(vectors, vectors)
        is_exact = (squares > 1e-20) & (squares < 1e30)  # elsewhere float32 may overflow or underflow
        units = vectors / np.sqrt(squares)[:, None]
    if not is_exact.all():
        with np.errstate(all="ignore"):  # of infinities
            units[~is_exact] = unit(vectors[~is_exact].astype(np.float64))
        has_direction = np.isfinite(units).all(1) & units.any(1)
        usable = [row for row, keep in zip(usable, has_direction.tolist()) if keep]
        units = units[has_direction]
    return usable, units


def create_index(conn: sqlite3.Connection, collection: Collection, embed_dim: int) -> Facts:
    """Replace a collection's index by one without chunks, whose mean is that of the first vectors."""
    total, squares, count = np.zeros(embed_dim), np.zeros(embed_dim), 0
    for batch in read_rows(conn, collection, None, None, None):
        _, units = usable_units(batch, embed_dim)
        units = units[: MEAN_VECTORS - count]
        total += units.sum(0, dtype=np.float64)
        squares += (units * units).sum(0, dtype=np.float64)
        count += len(units)
        if count == MEAN_VECTORS:
            break
    mean = total / max(1, count)
    code = make_code(mean, np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0)))
    id, source = random.SystemRandom().getrandbits(62), source_key(collection)
    conn.execute("begin immediate")
    with conn:
        delete_index_rows(conn, source)
        conn.execute(
            "insert into main.clip_index "
            "(id, source, collection, format, embed_dim, mean, dims, steps, mean_of, version, made)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            [
                id,
                source,
                collection.name,
                FORMAT,
                embed_dim,
                code.mean.astype("<f4").tobytes(),
                code.dims.astype("<i4").tobytes(),
                code.steps.astype("<f4").tobytes(),
                count,
                datetime.now(UTC).isoformat(timespec="seconds"),
            ],
        )
    return Facts(id, embed_dim, code, count, 0, None, None)


def delete_index(conn: sqlite3.Connection, collection: Collection) -> None:
    """Delete a collection's index."""
    conn.execute("begin immediate")
    with conn:
        delete_index_rows(conn, source_key(collection))


def delete_index_rows(conn: sqlite3.Connection, source: str) -> bool:
    """Delete the index of a source, see source_key. True if there was one. The caller commits."""
    of_source = "select id from main.clip_index where source = ?"
    conn.execute(f"delete from main.clip_index_chunks where index_id in ({of_source})", [source])
    return conn.execute("delete from main.clip_index where source = ?", [source]).rowcount > 0
