"""Collections as `llm embed-multi` writes them, made by plain SQL, and an oracle for searching them."""

from __future__ import annotations

import sqlite3

import numpy as np

from clip_collections.search import Hit
from llm_clip_onnx.vectors import to_blob

LLMS_SCHEMA = """
create table collections (id integer primary key, name text, model text);
create table embeddings (
    collection_id integer references collections(id), id text, embedding blob, content text, content_blob blob,
    content_hash blob, metadata text, updated integer, primary key (collection_id, id)
);
"""


def llms_database(path: str = ":memory:", **collections: dict[str, object]) -> sqlite3.Connection:
    """A database with these collections: name -> {id: vector}, or any other value to store instead of the vector."""
    conn = sqlite3.connect(path)
    conn.executescript(LLMS_SCHEMA)
    for name, stored in collections.items():
        number = conn.execute("insert into collections (name, model) values (?, 'clip')", [name]).lastrowid
        fill(conn, number, stored)
    conn.commit()
    return conn


def fill(conn: sqlite3.Connection, number: int, stored: dict[str, object]) -> None:
    conn.executemany(
        "insert or replace into embeddings (collection_id, id, embedding, updated) values (?, ?, ?, 1700000000)",
        [(number, id, to_blob(v) if isinstance(v, np.ndarray) else v) for id, v in stored.items()],
    )


def oracle(stored: dict[object, object], query: np.ndarray) -> list[tuple[object, float]]:
    """Ids and cosines of all vectors that have a cosine with the query, best first, by plain numpy one at a time."""
    found = []
    for id, v in stored.items():
        if isinstance(v, np.ndarray) and v.size == query.size:
            a, b = v.astype(np.float64), query.astype(np.float64)
            norm = np.sqrt((a * a).sum())
            if 0 < norm < np.inf:
                found.append((id, float((a * b).sum() / norm / np.sqrt((b * b).sum()))))
    return sorted(found, key=lambda item: (-round(item[1], 12), item[0]))  # of equal cosines, the smaller id


def random_vectors(n: int, dim: int = 64, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def ids(hits: list[Hit]) -> list[object]:
    return [hit.id for hit in hits]
