"""Measures the floor of a collection, the score below which a match is weak: what unrelated texts reach in it.

    clip_floors   a row per collection: its floor and margin, of how many texts, and when they were measured

A search by words whose best row is below the floor has found nothing. The caller gives the model as a function.

A score below the floor is weak only if it is also less than `margin` above the mean score of all rows: words that many
rows fit have a large mean, and unusual words low scores everywhere. demo/floor.py measures how often both are right.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.vectors import unit_embedding

from .collection import Collection, columns_of, rows
from .index.store import read_facts
from .search import search

SHARE = 0.9  # of the texts whose best row is below the floor, and below the margin
SCHEMA = """
create table if not exists main.clip_floors (
    collection text primary key, embed_dim integer, floor real, margin real, texts integer, made text
)
"""
EmbedText = Callable[[str], NDArray[np.float32]]  # -> [embed_dim], of the model that made a collection's vectors
TEXTS = (  # of things that pictures rarely show, in the forms of real queries
    *("the second law of thermodynamics", "quarterly tax return", "a clause about warranty", "corporate governance"),
    *("minutes of the annual meeting", "compound interest", "the subjunctive mood", "double-entry bookkeeping"),
    *("a proof by induction", "the offside rule explained", "monetary policy", "statute of limitations"),
    *("yesterday's rumour", "the price of electricity", "a slow internet connection", "freedom of speech"),
    *("inflation in the nineties", "the history of logic", "an unpaid invoice", "terms and conditions"),
    *("the smell of rain", "a headache", "homesickness", "the sound of a distant train", "boredom"),
    *("an alibi", "procrastination", "a guilty conscience", "second thoughts", "a promise that was not kept"),
    *("irregular verbs", "peer review", "a null hypothesis", "the central limit theorem", "garbage collection"),
    *("a memory leak", "regular expressions", "an off-by-one error", "quarterly earnings", "the burden of proof"),
    *("a change of address", "how to spell necessary", "what time is it in Lima", "the capital of Burkina Faso"),
    *("jurisprudence", "epistemology", "a footnote", "the passive voice", "supply and demand", "a power of attorney"),
)


def write_floor(conn: Connection, collection: Collection, embed_text: EmbedText) -> bool:
    """Measure the floor of an indexed collection and write it. False if it has no index, or no rows to compare."""
    scores = best_scores(conn, collection, embed_text)
    if not scores:
        return False
    floor, margin = np.quantile(np.array(scores), SHARE, axis=0).tolist()
    made = datetime.now(UTC).isoformat(timespec="seconds")
    conn.execute(SCHEMA)
    with conn:
        conn.execute(
            "insert or replace into main.clip_floors values (?, ?, ?, ?, ?, ?)",
            [collection.name, collection.embed_dim, floor, margin, len(scores), made],
        )
    return True


def best_scores(conn: Connection, collection: Collection, embed_text: EmbedText) -> list[tuple[float, float]]:
    """The score of the best row for each of TEXTS, and how far it is above the mean score of all rows."""
    scores = []
    for text in TEXTS:
        query = embed_text(text)
        mean, hits = mean_score(conn, collection, query), search(conn, collection, query, 1)
        if mean is not None and hits:
            scores.append((hits[0].score, hits[0].score - mean))
    return scores


def mean_score(conn: Connection, collection: Collection, query: NDArray[np.float32]) -> float | None:
    """The mean score of a collection's rows, by the mean vector of its index; None if it has none of this size."""
    facts = read_facts(conn, collection, query.size)
    return None if facts is None else float(unit_embedding(query) @ facts.code.mean.astype(np.float64))


def floor_of(conn: Connection, collection: Collection, query: NDArray[np.float32]) -> float | None:
    """The score below which rows are weak for the embedding of a text; None if it was not measured."""
    if "margin" not in columns_of(conn, "clip_floors"):
        return None
    sql = "select floor, margin from main.clip_floors where collection = ? and embed_dim = ?"
    floors = rows(conn, sql, [collection.name, query.size])
    mean = mean_score(conn, collection, query) if floors else None
    return None if mean is None else min(floors[0][0], mean + floors[0][1])
