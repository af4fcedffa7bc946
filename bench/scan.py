"""Measures a whole-table `order by llm_embed_cosine(...)` with datasette-llm-embed's function and with ours.

    python bench/scan.py [--rows 20000] [--pairs 5] [--to FILE]

Both on one table of random vectors in memory, in one process, taking turns; medians of pairs. The query's vector is a
parameter: how often the model runs is not measured here.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from pathlib import Path

import datasette_llm_embed
import numpy as np

from datasette_clip.config import Config
from datasette_clip.sql import functions as sql_functions
from recipe import keep, origin

SEARCH = "select id from embeddings order by llm_embed_cosine(embedding, ?) desc limit 10"


def filled(rows: int) -> sqlite3.Connection:
    """A database in memory with the table embeddings(id, embedding): `rows` random vectors of 512 numbers."""
    connection = sqlite3.connect(":memory:")
    vectors = np.random.default_rng(0).standard_normal((rows, 512), np.float32)
    connection.execute("create table embeddings (id integer primary key, embedding blob)")
    connection.executemany("insert into embeddings values (?, ?)", ((n, v.tobytes()) for n, v in enumerate(vectors)))
    return connection


def search_ms(connection: sqlite3.Connection, query: bytes) -> tuple[float, list]:
    begun_s = time.perf_counter()
    found = connection.execute(SEARCH, [query]).fetchall()
    return 1000 * (time.perf_counter() - begun_s), found


def table(found: dict) -> str:
    line = "{theirs_ms:.0f} ms as datasette-llm-embed does it, {ours_ms:.0f} ms as we do, ratio {ratio:.0f}"
    return line.format(**found["medians"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--to", type=Path)
    args = parser.parse_args()
    theirs, ours = filled(args.rows), filled(args.rows)
    theirs.create_function("llm_embed_cosine", 2, datasette_llm_embed.llm_embed_cosine)
    sql_functions.register(ours, Config())
    query = np.random.default_rng(1).standard_normal(512, np.float32).tobytes()
    pairs = []
    for _ in range(args.pairs):
        (theirs_ms, expected), (ours_ms, found) = search_ms(theirs, query), search_ms(ours, query)
        if found != expected:
            raise RuntimeError(f"the two functions find different rows: {found} and {expected}")
        pairs.append({"theirs_ms": theirs_ms, "ours_ms": ours_ms, "ratio": theirs_ms / ours_ms})
    medians = {figure: float(np.median([pair[figure] for pair in pairs])) for figure in pairs[0]}
    keep(origin() | {"rows": args.rows, "medians": medians, "pairs": pairs}, args.to, table)


if __name__ == "__main__":
    main()
