"""Measures a whole-table `order by llm_embed_cosine(...)` with datasette-llm-embed's function and with ours.

    python -m bench.search.scan [--rows 20000] [--pairs 5] [--to FILE]

Both scan one table of random vectors in memory, in one process, in turns; medians of pairs. The query's vector is a
parameter. Not measured: how often the model runs.
"""

from __future__ import annotations

import argparse
import sqlite3
import time
from pathlib import Path

import datasette_llm_embed
import numpy as np

from bench.harness.command import Results, main, source_line
from bench.harness.turns import medians_of
from datasette_clip.config import Config
from datasette_clip.sql import functions as sql_functions

SEARCH = "select id from embeddings order by llm_embed_cosine(embedding, ?) desc limit 10"


def filled(rows: int) -> sqlite3.Connection:
    """A database in memory with the table embeddings(id, embedding): `rows` random vectors of 512 numbers."""
    connection = sqlite3.connect(":memory:")
    vectors = np.random.default_rng(0).standard_normal((rows, 512), np.float32)
    connection.execute("create table embeddings (id integer primary key, embedding blob)")
    connection.executemany("insert into embeddings values (?, ?)", ((n, v.tobytes()) for n, v in enumerate(vectors)))
    return connection


def search_ms(connection: sqlite3.Connection, query: bytes) -> tuple[float, list]:
    """Milliseconds of one search, and its rows."""
    begun_s = time.perf_counter()
    rows = connection.execute(SEARCH, [query]).fetchall()
    return 1000 * (time.perf_counter() - begun_s), rows


def measure(_: Path, options: argparse.Namespace) -> Results:
    theirs, ours = filled(options.rows), filled(options.rows)
    theirs.create_function("llm_embed_cosine", 2, datasette_llm_embed.llm_embed_cosine)
    sql_functions.register(ours, Config())
    query = np.random.default_rng(1).standard_normal(512, np.float32).tobytes()
    pairs = []
    for _ in range(options.pairs):
        (theirs_ms, expected), (ours_ms, rows) = search_ms(theirs, query), search_ms(ours, query)
        if rows != expected:
            raise RuntimeError(f"the two functions find different rows: {rows} and {expected}")
        pairs.append({"theirs_ms": theirs_ms, "ours_ms": ours_ms, "ratio": theirs_ms / ours_ms})
    return {"rows": options.rows, "medians": medians_of(pairs), "pairs": pairs}


def table(results: Results) -> str:
    line = "{rows:,} rows: {theirs_ms:.0f} ms with datasette-llm-embed's function, {ours_ms:.0f} ms with ours, "
    line += "ratio {ratio:.0f}"
    return line.format(rows=results["rows"], **results["medians"]) + f"\n{source_line(results)}"


if __name__ == "__main__":
    main(__doc__, measure, table, rows=20_000, pairs=5)
