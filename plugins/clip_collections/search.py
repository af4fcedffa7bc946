"""Finds the rows of a collection with the largest cosines to a query's embedding, with or without an index.

Without an index, all rows are compared. With one, only the rows of its shortlist and those added after it. If too many
rows of the shortlist were deleted, or a rowid has another row now, all rows are compared.
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

from .collection import Collection, Id, cursor_of, from_clause, is_vector, quoted, quoted_key, rows
from .index.sign_bits import Chunk, shortlist
from .index.store import Index, current_index, id_crc

log = logging.getLogger("clip_collections")

CHUNK_BYTES = 2_000_000  # of vectors read at once
SEGMENTS = (100, 400, 1_600)  # ranks, each reached by exact cosines of ten times as many rows of a shortlist
EXACT_ROWS = 2_000  # if `where` holds for at most this many, all are compared without a shortlist
FETCH_ROWS = 500  # by rowid in one query
CHECKED_ROWS = 200  # at the end of an index, if its last row was deleted


@dataclass(frozen=True)
class Hit:
    """A row that was found. score: the cosine of its stored vector with the query, -1 to 1, computed in float64."""

    id: Id
    score: float
    rowid: int


@dataclass(frozen=True)
class Only:
    """Which rows of a collection can be found: those with these rowids, ascending, or those for which `where` holds."""

    where: str = ""
    parameters: Any = ()
    rowids: NDArray[np.int64] | None = None


def search(
    conn: Connection,
    collection: Collection,
    query: NDArray[np.float32],
    k: int,
    where: str = "",
    parameters: Any = (),
    skip: Items[Id] = (),
    offset: int = 0,
    among: NDArray[np.int64] | None = None,
) -> list[Hit]:
    """The k rows whose vectors have the largest cosine with `query` [embed_dim], after the first `offset`, best first.

    Rows with equal cosines are ordered by id. where: an SQL condition over the table with `parameters`; the caller has
    checked that the client may run it. skip: ids to leave out. among: rowids, ascending; no other row is found, and
    `where` is not read. Rows whose vector is NULL, zero, not finite or of
    another size are never found. May be called inside an SQL function, with the connection that runs it.
    Raises InputError for a k below 1 or an offset below 0, VectorError for a query without a direction.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected a whole number from 1, of the rows to answer")
    if offset < 0:
        raise InputError(f"offset is {offset}; expected a whole number from 0")
    wanted, unit_query = k + offset, unit_embedding(query)
    index = current_index(conn, collection, query.size)
    hits: list[Hit] = []
    only = Only(where, parameters) if among is None else Only(rowids=among)
    for end in SEGMENTS if index else ():  # fixed, so that a page's rows do not depend on k
        best = TopHits(min(end, wanted) - len(hits), unit_query, frozenset(skip) | {hit.id for hit in hits})
        if index is None or not search_index(conn, collection, index, best, 10 * end, only):
            break
        hits += best.hits
        if len(hits) == wanted or len(best.hits) < best.wanted:
            return hits[offset:]
    best = TopHits(wanted - len(hits), unit_query, frozenset(skip) | {hit.id for hit in hits})
    for chunk in scan(conn, collection, only, query.size):
        best.offer(chunk)
    if best.skipped:
        log.debug("collection %r: %d vectors cannot be compared", collection.name, best.skipped)
    return [*hits, *best.hits][offset:]


def search_index(conn: Connection, collection: Collection, index: Index, best: TopHits, exact: int, only: Only) -> bool:
    """Offer `best` a shortlist of `exact` rows, or all rows of `only` if they are few, and the rows after the index.

    False if the index is of no use: the table is small, or the index is out of date. Then not all rows were offered.
    """
    chunks = [chunk for _, chunk in index.chunks.values()]
    if exact > sum(map(len, chunks)):
        return False
    last = last_valid_rowid(conn, collection, index, chunks)
    if last is None:
        return False
    allowed = allowed_rowids(conn, collection, only, last)
    if allowed is not None and len(allowed) <= EXACT_ROWS:
        for part in batches(allowed):
            best.offer(fetch_rows(conn, collection, part))
    if allowed is None or len(allowed) > EXACT_ROWS:
        near = shortlist(chunks, index.facts.code, best.unit_query, exact, allowed)
        compared = 0
        expected = dict(zip(near.rowids.tolist(), near.id_crcs.tolist()))
        for part in batches(np.sort(near.rowids[near.rowids <= last])):
            fetched = fetch_rows(conn, collection, part)
            if any(id_crc(id) != expected[rowid] for rowid, id, _ in fetched):
                warn_once(index, f"rowids of collection {cited(collection.name)} are not those of its index any more")
                return False
            compared += best.offer(fetched)
        if compared < len(near.rowids) / 2:
            warn_once(index, f"many rows of collection {cited(collection.name)} that its index has are gone")
            return False
    for chunk in scan(conn, collection, only, best.unit_query.size, after=last):
        best.offer(chunk)
    return True


def batches(rowids: NDArray[np.int64]) -> Iterator[list[int]]:
    for at in range(0, len(rowids), FETCH_ROWS):
        yield rowids[at : at + FETCH_ROWS].tolist()


def fetch_rows(conn: Connection, collection: Collection, rowids: Items[int]) -> list[tuple[int, Id, Any]]:
    """The rows with these rowids that exist: (rowid, id, value of the vector's column)."""
    condition = f"rowid in ({','.join(map(str, rowids))})"
    return rows(
        conn,
        f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} "
        + from_clause(collection, "", condition, hint=" not indexed"),
    )


def allowed_rowids(conn: Connection, collection: Collection, only: Only, last: int) -> NDArray[np.int64] | None:
    """Rowids up to `last` of the rows of `only`, ascending; None if it leaves none out."""
    if only.rowids is not None:
        return only.rowids[: np.searchsorted(only.rowids, last, "right")]
    if not only.where.strip():
        return None
    sql = f"select rowid {from_clause(collection, only.where, f'rowid <= {last}')}"
    cursor = cursor_of(conn).execute(sql, only.parameters)
    parts = [np.empty(0, np.int64)]
    while fetched := cursor.fetchmany(10_000):
        parts.append(np.fromiter((rowid for (rowid,) in fetched), np.int64, len(fetched)))
    return np.sort(np.concatenate(parts))


def last_valid_rowid(conn: Connection, collection: Collection, index: Index, chunks: Sequence[Chunk]) -> int | None:
    """The last rowid at which the index and the table have the same row. None if that holds for none of the last rows.

    A new row gets the rowid of the last one if that was deleted, and VACUUM may give all rows new rowids.
    """
    rowids = np.concatenate([chunk.rowids[-CHECKED_ROWS:] for chunk in chunks])[-CHECKED_ROWS:]
    crcs = np.concatenate([chunk.id_crcs[-CHECKED_ROWS:] for chunk in chunks])[-CHECKED_ROWS:]
    in_table = {rowid: id_crc(id) for rowid, id, _ in fetch_rows(conn, collection, rowids[-1:].tolist())}
    if len(rowids) and in_table.get(int(rowids[-1])) == crcs[-1]:
        return index.last
    in_table = {rowid: id_crc(id) for rowid, id, _ in fetch_rows(conn, collection, rowids.tolist())}
    valid = [rowid for rowid, crc in zip(rowids.tolist(), crcs.tolist()) if in_table.get(rowid) == crc]
    if not valid:
        warn_once(index, f"the last rows of collection {cited(collection.name)} are not those of its index any more")
        return None
    return max(valid)


_warned: set[tuple[int, int]] = set()


def warn_once(index: Index, reason: str) -> None:
    """Log why an index is of no use, once for each of its versions."""
    if (version := (index.facts.id, index.facts.version)) not in _warned:
        _warned.add(version)
        log.warning("%s, and search is slow until `llm clip index` is run again", reason)


def scan(
    conn: Connection, collection: Collection, only: Only, embed_dim: int, after: int | None = None
) -> Iterator[list[tuple[int, Id, Any]]]:
    """The rows of a collection that `only` leaves, in lists of (rowid, id, value of the vector's column).

    after: only rows with larger rowids. They are read by rowid, not by an index of the table.
    """
    if only.rowids is not None:
        rowids = only.rowids if after is None else only.rowids[only.rowids > after]
        yield from (fetch_rows(conn, collection, part) for part in batches(rowids))
        return
    clause = from_clause(collection, only.where)
    if after is not None:
        clause = from_clause(collection, only.where, f"rowid > {after}", hint=" not indexed")
    cursor = cursor_of(conn).execute(
        f"select rowid, {quoted_key(collection)}, {quoted(collection.vector)} {clause}", only.parameters
    )
    while chunk := cursor.fetchmany(max(64, CHUNK_BYTES // (4 * embed_dim))):
        yield chunk


class TopHits:
    """The `wanted` best of the rows that are offered. skipped: how many of them cannot be compared."""

    def __init__(self, wanted: int, unit_query: NDArray[np.float64], skip: frozenset[Id] = frozenset()):
        self.wanted, self.unit_query, self.skip = wanted, unit_query, skip
        self.unit_query_32 = unit_query.astype(np.float32)
        self.hits: list[Hit] = []
        self.skipped = 0

    def offer(self, chunk: Sequence[tuple[int, Id, Any]]) -> int:
        """Compare rows (rowid, id, vector blob) and keep the best. Returns how many have a vector."""
        size = 4 * self.unit_query.size
        usable = [row for row in chunk if is_vector(row[2], size)]
        self.skipped += len(chunk) - len(usable)
        if not usable:
            return 0
        vectors = np.frombuffer(b"".join(blob for _, _, blob in usable), LITTLE_FLOAT32).reshape(-1, size // 4)
        near = self._near(vectors)
        scores = cosines(vectors[near], self.unit_query)
        self.skipped += int(np.isnan(scores).sum())
        self.hits += [
            Hit(usable[at][1], score, usable[at][0])
            for at, score in zip(near.tolist(), scores.tolist())
            if not math.isnan(score) and usable[at][1] not in self.skip
        ]
        self.hits.sort(key=sort_key)
        del self.hits[self.wanted :]
        return len(usable)

    def _near(self, vectors: NDArray[np.float32]) -> NDArray[np.intp]:
        """Positions of the vectors that may be among the best, by cosines in float32, which are faster."""
        slack = vectors.shape[1] * 2.0**-23  # the largest error of a cosine summed in float32
        with np.errstate(all="ignore"):
            squares = np.vecdot(vectors, vectors)
            # Not `@`, because its threads wait for each other on busy cores: 7 ms instead of 0.05.
            scores = np.vecdot(vectors, self.unit_query_32) / np.sqrt(squares)
        is_exact = (squares > 1e-20) & (squares < 1e30)  # elsewhere float32 may overflow or underflow
        scores[~is_exact] = -2.0
        low = self.hits[-1].score - slack if len(self.hits) == self.wanted else -2.0
        needed = self.wanted + len(self.skip)
        if needed < len(scores):
            low = max(low, float(np.partition(scores, -needed)[-needed]) - 2 * slack)
        return np.flatnonzero(~is_exact | (scores >= low))


def cosines(vectors: NDArray[np.floating], unit_query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosines of vectors [n, embed_dim] with a unit query: [n] float64, NaN for a vector without a direction.

    Equal vectors have equal cosines at every position, which a matrix product's rounding would not give.
    """
    vectors = vectors.astype(np.float64)
    with np.errstate(all="ignore"):
        scores = (vectors * unit_query).sum(1) / np.sqrt((vectors * vectors).sum(1))
    scores[~np.isfinite(scores)] = np.nan
    return np.clip(scores, -1, 1)


def sort_key(hit: Hit) -> tuple:
    """Orders hits by score, the largest first, then by id as SQLite does: NULL, numbers, texts, BLOBs."""
    kind = next((at for at, type_ in enumerate((int | float, str, bytes), 1) if isinstance(hit.id, type_)), 0)
    return (-hit.score, kind, hit.id if kind else 0)


def stored_vector(conn: Connection, collection: Collection, id: Id) -> NDArray[np.float32]:
    """The stored vector [embed_dim] of a row. Raises InputError if there is no such row or it has no vector."""
    matches = rows(
        conn,
        f"select {quoted(collection.vector)} {from_clause(collection, '', f'{quoted_key(collection)} = ?')} limit 1",
        [id],
    )
    if not matches:
        raise InputError(f"collection {cited(collection.name)} has no row with the id {cited(id)}")
    blob = matches[0][0]
    if not isinstance(blob, bytes) or not blob or len(blob) % 4:
        raise InputError(f"the row with the id {cited(id)} of collection {cited(collection.name)} has no vector")
    return np.frombuffer(blob, LITTLE_FLOAT32)
