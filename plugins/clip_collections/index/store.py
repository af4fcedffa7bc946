"""Reads an index from its tables in the collection's file, and keeps a copy in memory.

    clip_index          a row per collection: its facts
    clip_index_chunks   a row per chunk of some thousand rows of the collection, by rowid
    clip_thumbnails     small images for pages, see thumbnails.py

An index can be out of date: search.py reads the row itself before it returns it. build.py writes these tables.
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
from .sign_bits import Chunk, Code, words_per_vector

FORMAT = 1
CACHE_BYTES = 250_000_000  # 100 bytes a vector of 512 dimensions; the last used index stays even if it is larger

SCHEMA = """
create table if not exists main.clip_index (
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
create table if not exists main.clip_index_chunks (
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
create table if not exists main.clip_thumbnails (
    collection text,
    id,
    image blob,
    row integer,
    content_hash blob,
    primary key (collection, id)
);
"""
LATER_COLUMNS = {"row": "integer", "content_hash": "blob"}  # of clip_thumbnails, which earlier versions made without


@dataclass(frozen=True, eq=False)
class Facts:
    """A row of clip_index. id: a new one for each new index. code: made from the first `mean_vectors` vectors. version:
    changes with each write. vectors, skipped: rows with and without a usable vector, None until a run has ended."""

    id: int
    embed_dim: int
    code: Code
    mean_vectors: int
    version: int
    vectors: int | None
    skipped: int | None


@dataclass(frozen=True, eq=False)
class Index:
    """An index in memory: its chunks by the last rowid that each covers."""

    facts: Facts
    chunks: dict[int, tuple[int, Chunk]]  # last -> version, chunk

    @property
    def last(self) -> int:
        return max(self.chunks)

    @property
    def bytes(self) -> int:
        return sum(chunk.bytes for _, chunk in self.chunks.values())


def create_tables(conn: Connection) -> None:
    """Create the tables that are missing, and the columns that tables of earlier versions lack."""
    conn.executescript(SCHEMA)
    for name, kind in LATER_COLUMNS.items():
        if name not in columns_of(conn, "clip_thumbnails"):
            conn.execute(f"alter table main.clip_thumbnails add column {name} {kind}")


def source_key(collection: Collection) -> str:
    """The table, column and condition of a collection's vectors: the same for all names of a collection."""
    return f"{quoted(collection.table)}.{quoted(collection.vector)} where {collection.condition or 'true'}"


def id_crc(id: object) -> int:
    return zlib.crc32(str(id).encode(errors="replace"))


def read_facts(conn: Connection, collection: Collection, embed_dim: int) -> Facts | None:
    """The facts of a collection's index. None if it has none, or one of another format or embed_dim."""
    if "version" not in columns_of(conn, "clip_index"):
        return None
    indexes = rows(
        conn,
        "select id, embed_dim, mean, dims, steps, mean_of, version, vectors, skipped from main.clip_index "
        "where source = ? and format = ? and embed_dim = ?",
        [source_key(collection), FORMAT, embed_dim],
    )
    if not indexes:
        return None
    id, dim, mean, dims, steps, *others = indexes[0]
    code = Code(np.frombuffer(mean, "<f4"), np.frombuffer(dims, "<i4"), np.frombuffer(steps, "<f4"))
    return Facts(id, dim, code, *others)


def chunk_versions(conn: Connection, index_id: int) -> dict[int, int]:
    """The version of each chunk of an index, by the last rowid that it covers, in ascending order."""
    sql = "select last, version from main.clip_index_chunks where index_id = ? order by last"
    return dict(rows(conn, sql, [index_id]))


def read_chunk(conn: Connection, facts: Facts, last: int) -> tuple[int, Chunk] | None:
    """Version and content of a chunk. None if it was deleted or renamed meanwhile."""
    chunks = rows(
        conn,
        "select version, rowids, ids, bits, corrections, large"
        " from main.clip_index_chunks where index_id = ? and last = ?",
        [facts.id, last],
    )
    if not chunks:
        return None
    version, rowids, ids, bits, corrections, large = chunks[0]
    n = len(rowids) // 8
    return version, Chunk(
        np.frombuffer(rowids, "<i8"),
        np.frombuffer(ids, "<u4"),
        np.frombuffer(bits, "<u8").reshape(words_per_vector(facts.embed_dim), n),
        np.frombuffer(corrections, "<f4").reshape(2, n),
        np.frombuffer(large, "i1").reshape(len(facts.code.dims), n),
    )


_cache: OrderedDict[tuple[str, str], Index] = OrderedDict()
_cache_lock = threading.Lock()
_locks: dict[tuple[str, str], threading.Lock] = {}


def current_index(conn: Connection, collection: Collection, embed_dim: int) -> Index | None:
    """The index of a collection as it is in its file now, None if there is none. Reads only changed chunks."""
    facts = read_facts(conn, collection, embed_dim)
    if facts is None:
        return None
    path = next(file for _, name, file in rows(conn, "pragma database_list") if name == "main")
    if not path:
        return read_index(conn, facts, None)
    key = (str(Path(path)), source_key(collection))
    with _cache_lock:
        lock = _locks.setdefault(key, threading.Lock())
    with lock:
        cached = _cache.get(key)
        if cached is None or (cached.facts.id, cached.facts.version) != (facts.id, facts.version):
            cached = read_index(conn, facts, cached)
    if cached is not None:
        cache_index(key, cached)
    return cached


def cache_index(key: tuple[str, str], index: Index) -> None:
    with _cache_lock:
        _cache[key] = index
        _cache.move_to_end(key)
        while len(_cache) > 1 and sum(cached.bytes for cached in _cache.values()) > CACHE_BYTES:
            _cache.popitem(last=False)


def read_index(conn: Connection, facts: Facts, cached: Index | None) -> Index | None:
    """An index from its tables, with the chunks of `cached` that are unchanged. None if it has no chunk yet."""
    same = cached.chunks if cached is not None and cached.facts.id == facts.id else {}
    chunks: dict[int, tuple[int, Chunk]] = {}
    for last, version in chunk_versions(conn, facts.id).items():
        entry = same.get(last)
        chunk = entry if entry is not None and entry[0] == version else read_chunk(conn, facts, last)
        if chunk is None:  # another process is building the index again
            return None
        chunks[last] = chunk
    return Index(facts, chunks) if chunks else None
