"""Where an index is kept: its tables in the collection's file, and the copy that a process holds in memory.

    clip_index          a row per collection: the facts
    clip_index_chunks   some thousand rows of the collection each, by rowid
    clip_thumbnails     small JPEGs, for pages; see thumbnails.py

What the index says is never believed without a look at the row itself; where it cannot be used, search does without.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection

import numpy as np

from ..collection import Collection, columns_of, quoted, rows
from .sign_bits import Chunk, Code, words_of

FORMAT = 1
HELD_BYTES = 250_000_000  # of indexes in memory, 100 bytes a vector of 512 dimensions; the last used one is held anyway

SCHEMA = """
create table if not exists clip_index (
    id integer primary key,
    source text unique,
    collection text,
    format integer,
    embed_dim integer,
    mean blob,
    dims blob,
    steps blob,
    mean_of integer,
    version integer,
    vectors integer,
    skipped integer,
    made text
);
create table if not exists clip_index_chunks (
    index_id integer,
    last integer,
    version integer,
    skipped integer,
    rowids blob,
    ids blob,
    bits blob,
    corrections blob,
    large blob,
    primary key (index_id, last)
);
create table if not exists clip_thumbnails (
    collection text,
    id,
    image blob,
    row integer,
    primary key (collection, id)
);
"""


@dataclass(frozen=True, eq=False)
class Facts:
    """id: another one for each index that is made anew. code: by the first `mean_of` unit vectors. version: of the last
    change. vectors, skipped: rows that can be found, and that have no usable vector, at the last whole run."""

    id: int
    embed_dim: int
    code: Code
    mean_of: int
    version: int
    vectors: int | None
    skipped: int | None


@dataclass(frozen=True, eq=False)
class Index:
    """An index as it is held: chunks by the last rowid that each is about."""

    facts: Facts
    chunks: dict[int, tuple[int, Chunk]]  # last -> version, chunk

    @property
    def last(self) -> int:
        return max(self.chunks)

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for _, chunk in self.chunks.values())


def source_of(collection: Collection) -> str:
    """What the vectors of a collection are, whatever its name."""
    return f"{quoted(collection.table)}.{quoted(collection.vector)} where {collection.condition or 'true'}"


def id_crc(id: object) -> int:
    return zlib.crc32(str(id).encode(errors="replace"))


def read_facts(conn: Connection, collection: Collection, embed_dim: int) -> Facts | None:
    """The facts of a collection's index, None where there is none that can be used."""
    if "version" not in columns_of(conn, "clip_index"):
        return None
    found = rows(
        conn,
        "select id, embed_dim, mean, dims, steps, mean_of, version, vectors, skipped from clip_index "
        "where source = ? and format = ? and embed_dim = ?",
        [source_of(collection), FORMAT, embed_dim],
    )
    if not found:
        return None
    id, dim, mean, dims, steps, *others = found[0]
    code = Code(np.frombuffer(mean, "<f4"), np.frombuffer(dims, "<i4"), np.frombuffer(steps, "<f4"))
    return Facts(id, dim, code, *others)


def versions_of(conn: Connection, index_id: int) -> dict[int, int]:
    """Version of each chunk of an index, by the last rowid that it is about, in their order."""
    return dict(rows(conn, "select last, version from clip_index_chunks where index_id = ? order by last", [index_id]))


def read_chunk(conn: Connection, facts: Facts, last: int) -> tuple[int, Chunk] | None:
    """Version and content of a chunk, None where it has gone in the meantime."""
    found = rows(
        conn,
        "select version, rowids, ids, bits, corrections, large from clip_index_chunks where index_id = ? and last = ?",
        [facts.id, last],
    )
    if not found:
        return None
    version, rowids, ids, bits, corrections, large = found[0]
    n = len(rowids) // 8
    return version, Chunk(
        np.frombuffer(rowids, "<i8"),
        np.frombuffer(ids, "<u4"),
        np.frombuffer(bits, "<u8").reshape(words_of(facts.embed_dim), n),
        np.frombuffer(corrections, "<f4").reshape(2, n),
        np.frombuffer(large, "i1").reshape(len(facts.code.dims), n),
    )


_held: OrderedDict[tuple[str, str], Index] = OrderedDict()
_held_lock = threading.Lock()
_locks: dict[tuple[str, str], threading.Lock] = {}


def index_of(conn: Connection, collection: Collection, embed_dim: int) -> Index | None:
    """The index of a collection as it now is in its file, None where there is none. What was read is kept."""
    facts = read_facts(conn, collection, embed_dim)
    if facts is None:
        return None
    path = next(file for _, name, file in rows(conn, "pragma database_list") if name == "main")
    if not path:
        return read_index(conn, facts, None)
    key = (str(Path(path)), source_of(collection))
    with _held_lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        known = _held.get(key)
        if known is None or (known.facts.id, known.facts.version) != (facts.id, facts.version):
            known = read_index(conn, facts, known)
    if known is not None:
        hold(key, known)
    return known


def hold(key: tuple[str, str], index: Index) -> None:
    with _held_lock:
        _held[key] = index
        _held.move_to_end(key)
        while len(_held) > 1 and sum(held.bytes for held in _held.values()) > HELD_BYTES:
            _held.popitem(last=False)


def read_index(conn: Connection, facts: Facts, known: Index | None) -> Index | None:
    """An index as it is stored, with the chunks of `known` that are still the same; None where it has no chunk yet."""
    same = known.chunks if known is not None and known.facts.id == facts.id else {}
    chunks: dict[int, tuple[int, Chunk]] = {}
    for last, version in versions_of(conn, facts.id).items():
        of_known = same.get(last)
        chunk = of_known if of_known is not None and of_known[0] == version else read_chunk(conn, facts, last)
        if chunk is None:  # it is being made anew
            return None
        chunks[last] = chunk
    return Index(facts, chunks) if chunks else None
