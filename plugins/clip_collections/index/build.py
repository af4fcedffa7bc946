"""Builds the index of a collection, or updates the one that is there, as `llm clip index` does.

It goes through all rows once, in the order of their rowids, and writes a chunk of the index where it is not as it
should be: after a kill, or when rows came, went or changed, it has little to write. Each chunk is a short transaction
of its own, between which others read and write.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.vectors import LITTLE_FLOAT32, unit

from ..collection import Collection, Id, is_vector, quoted, quoted_key, rows, source
from .sign_bits import Chunk, chunk_of, code_of, joined, taken
from .store import FORMAT, SCHEMA, Facts, id_crc, read_chunk, read_facts, source_of, versions_of

CHUNK = 16_384  # rows
READ = 1_000  # vectors at once
MEAN_OF = 100_000  # first vectors, of which the mean is taken
GROWN = 4  # times as many vectors as the mean is of, and fewer than MEAN_OF: it is taken again, and the index made anew


@dataclass
class Report:
    """What a run did: vectors in the index, those of them that were new to it, rows that are not there any more, and
    rows without a usable vector."""

    vectors: int = 0
    new: int = 0
    gone: int = 0
    skipped: int = 0


def connected(path: str) -> sqlite3.Connection:
    """A connection that waits for others, and reads ids that are no UTF-8."""
    conn = sqlite3.connect(path, timeout=60, isolation_level=None)
    conn.text_factory = lambda text: str(text, "utf-8", "replace")
    return conn


def index(
    conn: sqlite3.Connection, collection: Collection, on_rows: Callable[[int], object] = lambda count: None
) -> Report:
    """Make or mend the index of a collection. `on_rows` is called with numbers of rows that were gone through.

    Raises InputError where a collection has no vectors, or where another process indexes it at the same time.
    """
    if collection.embed_dim is None:
        raise InputError(f"collection {cited(collection.name)} has no vectors")
    conn.executescript(SCHEMA)
    facts = read_facts(conn, collection, collection.embed_dim)
    if facts is None or is_outgrown(conn, collection, facts):
        facts = begun(conn, collection, collection.embed_dim)
    run = Run(conn, collection, facts, on_rows)
    low = None
    lasts = list(versions_of(conn, facts.id))
    for last in lasts:
        stored, skipped = run.stored(last)
        room = last == lasts[-1] and len(stored) + skipped < CHUNK  # for what came since
        low = run.mend(low, None if room else last, last, stored, skipped)
    while (end := run.mend(low, None)) is not None:
        low = end
    run.finish()
    return run.report


class Run:
    """One run of the indexing of a collection."""

    def __init__(
        self, conn: sqlite3.Connection, collection: Collection, facts: Facts, on_rows: Callable[[int], object]
    ):
        self.conn, self.collection, self.facts, self.on_rows = conn, collection, facts, on_rows
        self.version = facts.version
        self.report = Report()
        none = np.empty((0, facts.embed_dim), np.float32)
        self.nothing = chunk_of(np.empty(0, np.int64), np.empty(0, np.uint32), none, facts.code)

    def stored(self, last: int) -> tuple[Chunk, int]:
        """A chunk as it is stored, and how many rows it passed over."""
        found = read_chunk(self.conn, self.facts, last)
        if found is None:
            raise in_use(self.collection)
        [(skipped,)] = rows(
            self.conn,
            "select skipped from clip_index_chunks where index_id = ? and last = ?",
            [self.facts.id, last],
        )
        return found[1], skipped

    def mend(
        self, low: int | None, high: int | None, last: int | None = None, stored: Chunk | None = None, skipped: int = 0
    ) -> int | None:
        """Make the chunk of the rows after `low` be what they are: all up to `high`, or CHUNK rows where that is None.

        `stored` is what is there under the name `last`. The rowid up to which the index then is right, None where there
        are no rows.
        """
        made, ids, end, passed = self.read(low, high)
        end = high if high is not None else end if end is not None else last
        if end is None:
            return None
        self.report.vectors += len(made)
        self.report.skipped += passed
        old = stored if stored is not None else self.nothing
        same = made.also_in(old)
        if same.all() and (len(made), passed, end) == (len(old), skipped, last):
            return end
        changed = [id for id, known in zip(ids, same.tolist()) if not known]
        self.report.new += len(changed)
        self.report.gone += len(old) - int(np.isin(old.rowids, made.rowids, assume_unique=True).sum())
        self.write(last, made, end, passed, changed)
        return end

    def read(self, low: int | None, high: int | None) -> tuple[Chunk, list[Id], int | None, int]:
        """The chunk of the rows after `low`, their ids, the last rowid, and how many were passed over."""
        parts, ids, end, passed = [self.nothing], [], None, 0
        for found in read_rows(self.conn, self.collection, low, high, CHUNK if high is None else None):
            usable, units = units_of(found, self.facts.embed_dim)
            rowids = np.array([rowid for rowid, _, _ in usable], np.int64)
            crcs = np.array([id_crc(id) for _, id, _ in usable], np.uint32)
            parts.append(chunk_of(rowids, crcs, units, self.facts.code))
            ids += [id for _, id, _ in usable]
            end, passed = found[-1][0], passed + len(found) - len(usable)
            self.on_rows(len(found))
        return joined(parts), ids, end, passed

    def write(self, last: int | None, made: Chunk, end: int, passed: int, changed: list[Id]) -> None:
        """Put a chunk, or several where rows came in between, in the place of the one that is named `last`."""
        pieces = [made]
        if len(made) > 2 * CHUNK:
            pieces = [taken(made, np.arange(at, min(at + CHUNK, len(made)))) for at in range(0, len(made), CHUNK)]
        lasts = [int(piece.rowids[-1]) for piece in pieces[:-1]] + [end]
        with self.transaction() as version:
            self.conn.execute("delete from clip_index_chunks where index_id = ? and last = ?", [self.facts.id, last])
            self.conn.executemany(
                "insert into clip_index_chunks values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (self.facts.id, name, version, passed if name == end else 0, *stored_form(piece))
                    for name, piece in zip(lasts, pieces)
                ],
            )
            self.conn.executemany(
                "delete from clip_thumbnails where collection = ? and id = ?",
                [(self.collection.name, id) for id in changed],
            )

    def finish(self) -> None:
        """Write what was found of the whole collection."""
        found = (self.report.vectors, self.report.skipped)
        if found != (self.facts.vectors, self.facts.skipped):
            with self.transaction():
                self.conn.execute(
                    "update clip_index set vectors = ?, skipped = ? where id = ?", [*found, self.facts.id]
                )

    @contextmanager
    def transaction(self) -> Iterator[int]:
        """A short transaction, and the version that it makes. Raises InputError where another run was in between."""
        self.conn.execute("begin immediate")
        with self.conn:
            version = max(time.time_ns(), self.version + 1)
            done = self.conn.execute(
                "update clip_index set version = ? where id = ? and version = ?",
                [version, self.facts.id, self.version],
            )
            if done.rowcount != 1:
                raise in_use(self.collection)
            yield version
        self.version = version


def in_use(collection: Collection) -> InputError:
    return InputError(
        f"collection {cited(collection.name)} is being indexed by another `llm clip index`: let it finish"
    )


def stored_form(chunk: Chunk) -> tuple[bytes, ...]:
    return (
        chunk.rowids.astype("<i8").tobytes(),
        chunk.ids.astype("<u4").tobytes(),
        chunk.bits.astype("<u8").tobytes(),
        chunk.corrections.astype("<f4").tobytes(),
        chunk.large.tobytes(),
    )


def read_rows(
    conn: sqlite3.Connection, collection: Collection, low: int | None, high: int | None, most: int | None
) -> Iterator[list[tuple]]:
    """Rows (rowid, id, vector blob) after `low` up to `high`, at most `most`, by rowid, READ at once.

    Each time by a query of its own: one that is open keeps others from writing.
    """
    while most is None or most > 0:
        bounds = [f"rowid > {low}"] * (low is not None) + [f"rowid <= {high}"] * (high is not None)
        found = rows(
            conn,
            f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} "
            f"{source(collection, '', *bounds, how=' not indexed')} order by rowid "
            f"limit {READ if most is None else min(READ, most)}",
        )
        if not found:
            return
        yield found
        low = found[-1][0]
        most = None if most is None else most - len(found)


def is_outgrown(conn: sqlite3.Connection, collection: Collection, facts: Facts) -> bool:
    if facts.mean_of >= MEAN_OF // GROWN:
        return False
    enough = GROWN * facts.mean_of
    return len(rows(conn, f"select 1 {source(collection)} limit {enough}")) == enough


def units_of(found: list[tuple], embed_dim: int) -> tuple[list[tuple], NDArray[np.float32]]:
    """Those of some rows (rowid, id, vector blob) that have a direction, and their unit vectors [n, embed_dim]."""
    usable = [row for row in found if is_vector(row[2], 4 * embed_dim)]
    vectors = np.frombuffer(b"".join(row[2] for row in usable), LITTLE_FLOAT32).reshape(-1, embed_dim)
    with np.errstate(all="ignore"):
        squares = np.vecdot(vectors, vectors)
        sure = (squares > 1e-20) & (squares < 1e30)
        units = vectors / np.sqrt(squares)[:, None]
    if not sure.all():
        wide = unit(vectors[~sure].astype(np.float64))
        units[~sure] = wide
        good = np.isfinite(units).all(1) & units.any(1)
        usable, units = [row for row, ok in zip(usable, good.tolist()) if ok], units[good]
    return usable, units


def begun(conn: sqlite3.Connection, collection: Collection, embed_dim: int) -> Facts:
    """An index without chunks, in place of one that was there: its mean is of the first vectors."""
    total, squares, count = np.zeros(embed_dim), np.zeros(embed_dim), 0
    for found in read_rows(conn, collection, None, None, None):
        _, units = units_of(found, embed_dim)
        units = units[: MEAN_OF - count]
        total += units.sum(0, dtype=np.float64)
        squares += (units * units).sum(0, dtype=np.float64)
        count += len(units)
        if count == MEAN_OF:
            break
    mean = total / max(1, count)
    code = code_of(mean, np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0)))
    id = random.SystemRandom().getrandbits(62)
    conn.execute("begin immediate")
    with conn:
        conn.execute(
            "delete from clip_index_chunks where index_id in (select id from clip_index where source = ?)",
            [source_of(collection)],
        )
        conn.execute("delete from clip_index where source = ?", [source_of(collection)])
        conn.execute(
            "insert into clip_index "
            "(id, source, collection, format, embed_dim, mean, dims, steps, mean_of, version, made)"
            " values (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?)",
            [
                id,
                source_of(collection),
                collection.name,
                FORMAT,
                embed_dim,
                code.mean.astype("<f4").tobytes(),
                code.dims.astype("<i4").tobytes(),
                code.steps.astype("<f4").tobytes(),
                count,
                now(),
            ],
        )
    return Facts(id, embed_dim, code, count, 0, None, None)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
