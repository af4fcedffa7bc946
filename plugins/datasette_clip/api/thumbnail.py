"""Small pictures of a collection's rows: thumbnails that `llm clip index` made, or images as they are stored.

It makes none: what is stored is shown where it is small.
"""

from __future__ import annotations

from collections.abc import Sequence

from clip_collections.collection import Collection, columns_of, quoted, rows
from clip_collections.search import quoted_key, source

LARGEST_BYTES = 100_000  # of an image that is shown as it is stored
KINDS = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}


def pictured(conn, of: Collection, rowids: Sequence[int]) -> set[int]:
    """Those of the rows that there is a small picture of, by rowid."""
    among, key = ",".join(str(int(rowid)) for rowid in rowids), quoted_key(of)
    found: set[int] = set()
    if "row" in columns_of(conn, "clip_thumbnails"):
        named = f"select rowid as row, {key} as id from {quoted(of.table)} where rowid in ({among})"
        made = (
            f"select row from ({named}) join clip_thumbnails using (id, row) where collection = ? and image is not null"
        )
        found |= {row for (row,) in rows(conn, made, [of.name])}
    if of.image:
        small = f"rowid in ({among}) and length({quoted(of.image)}) between 1 and {LARGEST_BYTES}"
        found |= {row for (row,) in rows(conn, f"select rowid {source(of, '', small, how=' not indexed')}")}
    return found


def picture_of(conn, of: Collection, id: str) -> tuple[bytes, str] | None:
    """The small picture of a row and its content type; None where there is none, or of a kind that browsers run."""
    from clip_collections import thumbnails  # here: Datasette's start does not wait for Pillow

    image = thumbnails.thumbnail_of(conn, of, id)
    if image is None and of.image:
        column = quoted(of.image)
        small = f"{quoted_key(of)} = ? and length({column}) between 1 and {LARGEST_BYTES}"
        stored = rows(conn, f"select {column} {source(of, '', small)} limit 1", [id])
        image = stored[0][0] if stored and isinstance(stored[0][0], bytes) else None
    kind = next((kind for begin, kind in KINDS.items() if image and image.startswith(begin)), None)
    return (image, kind) if image and kind else None
