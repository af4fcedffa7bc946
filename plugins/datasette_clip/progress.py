"""Reads how far a collection is that is being filled: the table clip_filling, which `llm clip serve` writes."""

from __future__ import annotations

import time

from clip_collections.collection import Collection, columns_of, from_clause, rows

STALE_S = 120.0  # a row that was written longer ago is of a process that has died


def filling_of(conn, collection: Collection) -> dict[str, int] | None:
    """How many images of a collection are done, of how many; bad ones; and how many are rows. None if it is full.

    The row of clip_filling is up to a second old, the rows are counted now: those that are stored are done.
    """
    if "updated_s" not in columns_of(conn, "clip_filling"):
        return None
    sql = "select done, total, bad from main.clip_filling where collection = ? and updated_s > ?"
    found = rows(conn, sql, [collection.name, time.time() - STALE_S])
    if not found:
        return None
    [(done, total, bad)] = found
    [(stored,)] = rows(conn, f"select count(*) {from_clause(collection)}")
    searchable = min(stored, total)  # the pictures of some rows may be gone
    return {"done": max(done, searchable), "total": total, "bad": bad, "searchable": searchable}
