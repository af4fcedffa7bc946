"""Finds the rows of a collection whose vectors have the largest cosine with a query's, with or without an index.

Without an index all of them are compared. With one, its shortlist is, and all rows that came after it; a row of the
shortlist that is gone or another one is noticed, and then all are compared again.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection as Items
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from sqlite3 import Connection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.vectors import LITTLE_FLOAT32, unit_embedding

from .collection import Collection, Id, cursor_of, is_vector, quoted, quoted_key, rows, source
from .index.sign_bits import Chunk, shortlist
from .index.store import Index, id_crc, index_of

log = logging.getLogger("clip_collections")

CHUNK_BYTES = 2_000_000  # of vectors read at once
SEGMENTS = (100, 400, 1_600)  # places, each found by comparing ten times as many rows of a shortlist exactly
FEW = 2_000  # rows for which `where` holds are compared exactly, without the index
PIECE = 500  # rows fetched by rowid at once
CHECKED = 200  # of the last rows of an index, where the very last is not there


@dataclass(frozen=True)
class Hit:
    """A row: its id, its cosine with the query, -1 to 1, computed in float64 of the stored vector, and its rowid."""

    id: Id
    score: float
    rowid: int


def search(
    conn: Connection,
    collection: Collection,
    query: NDArray[np.float32],
    k: int,
    where: str = "",
    parameters: Any = (),
    skip: Items[Id] = (),
    offset: int = 0,
) -> list[Hit]:
    """The k rows whose vectors have the largest cosine with `query` [embed_dim], after the first `offset`, best first.

    Of rows with one cosine the smaller id is first. `where` is an SQL condition over the table with `parameters`, which
    the caller has permitted; `skip` are ids that are not wanted. Rows whose vector is NULL, zero, not finite or of
    another size are not found. May be called inside an SQL function, with the connection that runs it.
    Raises InputError for a k below 1 or an offset below 0, VectorError for a query without a direction.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected a whole number from 1, of the rows to answer")
    if offset < 0:
        raise InputError(f"offset is {offset}; expected a whole number from 0")
    wanted, unit_query = k + offset, unit_embedding(query)
    index = index_of(conn, collection, query.size)
    hits: list[Hit] = []
    for end in SEGMENTS if index else ():  # so that a page's rows do not depend on how many pages are asked for
        best = Best(min(end, wanted) - len(hits), unit_query, frozenset(skip) | {hit.id for hit in hits})
        if index is None or not search_index(conn, collection, index, best, 10 * end, where, parameters):
            break
        hits += best.hits
        if len(hits) == wanted or len(best.hits) < best.wanted:
            return hits[offset:]
    best = Best(wanted - len(hits), unit_query, frozenset(skip) | {hit.id for hit in hits})
    for chunk in scan(conn, collection, where, parameters, query.size):
        best.offer(chunk)
    if best.skipped:
        log.debug("collection %r: %d vectors cannot be compared", collection.name, best.skipped)
    return [*hits, *best.hits][offset:]


def search_index(
    conn: Connection, collection: Collection, index: Index, best: Best, exact: int, where: str, parameters: Any
) -> bool:
    """Offer `best` the `exact` rows of the index's shortlist and what came after it.

    Not all of it, and False, where that is of no use: because rows are few, or many of the shortlist are gone.
    """
    chunks = [chunk for _, chunk in index.chunks.values()]
    if exact > sum(map(len, chunks)):
        return False
    last = last_that_is_there(conn, collection, index, chunks)
    if last is None:
        return False
    allowed = None
    if where.strip():
        allowed = allowed_rowids(conn, collection, where, parameters, last)
        if len(allowed) <= FEW:
            for part in pieces(allowed):
                best.offer(fetched(conn, collection, part))
    if allowed is None or len(allowed) > FEW:
        short = shortlist(chunks, index.facts.code, best.unit_query, exact, allowed)
        there, size = 0, 4 * best.unit_query.size
        expected = dict(zip(short.rowids.tolist(), short.ids.tolist()))
        for part in pieces(np.sort(short.rowids[short.rowids <= last])):
            found = fetched(conn, collection, part)
            if any(id_crc(id) != expected[rowid] for rowid, id, _ in found):
                tell(index, f"rowids of collection {cited(collection.name)} are not those of its index any more")
                return False
            there += sum(is_vector(value, size) for _, _, value in found)
            best.offer(found)
        if there < len(short.rowids) / 2:
            tell(index, f"many rows of collection {cited(collection.name)} that its index has are gone")
            return False
    for chunk in scan(conn, collection, where, parameters, best.unit_query.size, after=last):
        best.offer(chunk)
    return True


def pieces(rowids: NDArray[np.int64]) -> Iterator[list[int]]:
    for at in range(0, len(rowids), PIECE):
        yield rowids[at : at + PIECE].tolist()


def fetched(conn: Connection, collection: Collection, rowids: Items[int]) -> list[tuple[int, Id, Any]]:
    """Those of some rows that are there: (rowid, id, vector blob or what else is there)."""
    among = f"rowid in ({','.join(map(str, rowids))})"
    return rows(
        conn,
        f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} "
        + source(collection, "", among, how=" not indexed"),
    )


def allowed_rowids(
    conn: Connection, collection: Collection, where: str, parameters: Any, last: int
) -> NDArray[np.int64]:
    """Rowids up to `last` for which `where` holds, ascending."""
    cursor = cursor_of(conn).execute(f"select rowid {source(collection, where, f'rowid <= {last}')}", parameters)
    parts = [np.empty(0, np.int64)]
    while found := cursor.fetchmany(10_000):
        parts.append(np.fromiter((rowid for (rowid,) in found), np.int64, len(found)))
    return np.sort(np.concatenate(parts))


def last_that_is_there(conn: Connection, collection: Collection, index: Index, chunks: Sequence[Chunk]) -> int | None:
    """The last rowid that the index is right about, None where none of its last rows are as it says.

    A new row may have the rowid of the last one, if that was deleted, and VACUUM may give all rows new rowids.
    """
    rowids = np.concatenate([chunk.rowids[-CHECKED:] for chunk in chunks])[-CHECKED:]
    ids = np.concatenate([chunk.ids[-CHECKED:] for chunk in chunks])[-CHECKED:]
    there = {rowid: id_crc(id) for rowid, id, _ in fetched(conn, collection, rowids[-1:].tolist())}
    if len(rowids) and there.get(int(rowids[-1])) == ids[-1]:
        return index.last
    there = {rowid: id_crc(id) for rowid, id, _ in fetched(conn, collection, rowids.tolist())}
    right = [rowid for rowid, crc in zip(rowids.tolist(), ids.tolist()) if there.get(rowid) == crc]
    if not right:
        tell(index, f"the last rows of collection {cited(collection.name)} are not those of its index any more")
        return None
    return max(right)


_told: set[tuple[int, int]] = set()


def tell(index: Index, what: str) -> None:
    """Say in the log, once for each version of an index, that it is of no use."""
    if (version := (index.facts.id, index.facts.version)) not in _told:
        _told.add(version)
        log.warning("%s, and search is slow until `llm clip index` is run again", what)


def scan(
    conn: Connection, collection: Collection, where: str, parameters: Any, embed_dim: int, after: int | None = None
) -> Iterator[list[tuple[int, Id, Any]]]:
    """All rows of a collection for which `where` holds, as lists of (rowid, id, vector blob or what else is there).

    `after` is the rowid after which to begin, for which the table's own order is used and no index.
    """
    place = (
        source(collection, where)
        if after is None
        else (source(collection, where, f"rowid > {after}", how=" not indexed"))
    )
    cursor = cursor_of(conn).execute(
        f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} {place}", parameters
    )
    while chunk := cursor.fetchmany(max(64, CHUNK_BYTES // (4 * embed_dim))):
        yield chunk


class Best:
    """The `wanted` best of rows that come in chunks; `skipped` counts those that cannot be compared."""

    def __init__(self, wanted: int, unit_query: NDArray[np.float64], skip: frozenset[Id] = frozenset()):
        self.wanted, self.unit_query, self.skip = wanted, unit_query, skip
        self.unit_query_32 = unit_query.astype(np.float32)
        self.hits: list[Hit] = []
        self.skipped = 0

    def offer(self, chunk: Sequence[tuple[int, Id, Any]]) -> None:
        """Take rows (rowid, id, vector blob)."""
        size = 4 * self.unit_query.size
        usable = [row for row in chunk if is_vector(row[2], size)]
        self.skipped += len(chunk) - len(usable)
        if not usable:
            return
        vectors = np.frombuffer(b"".join(blob for _, _, blob in usable), LITTLE_FLOAT32).reshape(-1, size // 4)
        near = self._near(vectors)
        scores = cosines(vectors[near], self.unit_query)
        self.skipped += int(np.isnan(scores).sum())
        self.hits += [
            Hit(usable[at][1], score, usable[at][0])
            for at, score in zip(near.tolist(), scores.tolist())
            if not math.isnan(score) and usable[at][1] not in self.skip
        ]
        self.hits.sort(key=order)
        del self.hits[self.wanted :]

    def _near(self, vectors: NDArray[np.float32]) -> NDArray[np.intp]:
        """Positions of those that may be among the best, by float32, which is all that most of them need."""
        slack = vectors.shape[1] * 2.0**-23  # a cosine in float32 is less than this off, in whatever order it is summed
        with np.errstate(all="ignore"):
            squares = np.vecdot(vectors, vectors)
            # Not `@`, whose threads wait for each other where other work keeps the cores busy: 7 ms instead of 0.05.
            scores = np.vecdot(vectors, self.unit_query_32) / np.sqrt(squares)
        sure = (squares > 1e-20) & (squares < 1e30)  # elsewhere float32 may have run over or under
        scores[~sure] = -2.0
        low = self.hits[-1].score - slack if len(self.hits) == self.wanted else -2.0
        needed = self.wanted + len(self.skip)
        if needed < len(scores):
            low = max(low, float(np.partition(scores, -needed)[-needed]) - 2 * slack)
        return np.flatnonzero(~sure | (scores >= low))


def cosines(vectors: NDArray[np.floating], unit_query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of vectors [n, embed_dim] with a unit query: [n] float64, NaN for a vector without a direction.

    A vector has the same one wherever it stands (a matrix product's rounding depends on that), so ties are ties.
    """
    vectors = vectors.astype(np.float64)
    with np.errstate(all="ignore"):
        scores = (vectors * unit_query).sum(1) / np.sqrt((vectors * vectors).sum(1))
    scores[~np.isfinite(scores)] = np.nan
    return np.clip(scores, -1, 1)


def order(hit: Hit) -> tuple:
    """By score, the largest first; of one score by id, as SQLite orders them: NULL, numbers, texts, BLOBs."""
    kind = next((at for at, type_ in enumerate((int | float, str, bytes), 1) if isinstance(hit.id, type_)), 0)
    return (-hit.score, kind, hit.id if kind else 0)


def vector_of(conn: Connection, collection: Collection, id: Id) -> NDArray[np.float32]:
    """The stored vector [embed_dim] of a row, for "more like this". Raises InputError where there is none."""
    found = rows(
        conn,
        f"select {quoted(collection.vector)} {source(collection, '', f'{quoted_key(collection)} = ?')} limit 1",
        [id],
    )
    if not found:
        raise InputError(f"collection {cited(collection.name)} has no row with the id {cited(id)}")
    blob = found[0][0]
    if not isinstance(blob, bytes) or not blob or len(blob) % 4:
        raise InputError(f"the row with the id {cited(id)} of collection {cited(collection.name)} has no vector")
    return np.frombuffer(blob, LITTLE_FLOAT32)
