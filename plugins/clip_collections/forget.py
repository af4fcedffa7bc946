"""Forgets rows of a collection: nothing of them stays in the database's file, in its index or in its WAL."""

from __future__ import annotations

import mmap
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .collection import Collection, columns_of, open_collection, rows
from .gone import delete_rows
from .index import build
from .index.store import source_key

LOOKED_FOR = 20  # ids whose bytes are looked for in the file afterwards
LEAST_BYTES = 6  # of an id that is looked for; shorter ones are everywhere
PIECE_BYTES = 48  # of a vector or an image, enough to tell it from others
PLACES = (0.5, 0.6, 0.7)  # of such pieces in it: images begin alike, and one piece may lie across two pages of the file

SELECT_ROW = """
select embedding, content, content_blob, content_hash from main.embeddings where collection_id = ? and id = ?
"""


class Forgotten(NamedTuple):
    """ids: that were forgotten. unknown: that the collection did not have. is_clean: False if another program keeps
    the WAL from being emptied, in which their bytes still are."""

    ids: list[str]
    unknown: list[str]
    is_clean: bool


def forget(conn: sqlite3.Connection, name: str, ids: Sequence[str]) -> Forgotten:
    """Remove the rows with these ids from a collection of llm's. `conn` is that of build.connect.

    The index is built anew, because its mean was made with the vectors too. Raises InputError if there is no such
    collection, and sqlite3.Error, after which nothing is removed or all.
    """
    collection = open_collection(conn, name)
    [(key,)] = rows(conn, "select id from main.collections where name = ?", [name])
    found = {id: row for id in dict.fromkeys(ids) if (row := read_row(conn, key, id))}
    conn.execute("pragma secure_delete = on")
    if found:
        remove(conn, collection, key, list(found))
    is_clean = empty_wal(conn)
    if found and has_traces(conn, found):  # pages that other programs wrote, which did not overwrite what they deleted
        conn.execute("vacuum")
        is_clean = empty_wal(conn)
    return Forgotten(list(found), [id for id in ids if id not in found], is_clean)


def ids_of(conn: sqlite3.Connection, name: str, texts: Sequence[str], folder: Path | None) -> list[str]:
    """The ids that texts mean: themselves, or those of files in a collection's folder, by their paths.

    What the collection does not have stays as it is. Raises InputError if there is no such collection.
    """
    open_collection(conn, name)
    [(key,)] = rows(conn, "select id from main.collections where name = ?", [name])
    return [next((id for id in possible_ids(text, folder) if read_row(conn, key, id)), text) for text in texts]


def possible_ids(text: str, folder: Path | None) -> Iterator[str]:
    """A text, and the path in the folder of the file that it names. A file that is a link is not followed."""
    yield text
    path = Path(os.path.abspath(text))
    for file in (path, path.parent.resolve() / path.name) if folder else ():
        if folder and file.is_relative_to(folder):
            yield file.relative_to(folder).as_posix()


def read_row(conn: sqlite3.Connection, key: int, id: str) -> tuple | None:
    """Vector, contents and content hash of a row, None if there is none of this id."""
    try:
        id.encode()
    except UnicodeEncodeError:
        return None
    found = rows(conn, SELECT_ROW, [key, id])
    return found[0] if found else None


def remove(conn: sqlite3.Connection, collection: Collection, key: int, ids: Sequence[str]) -> None:
    """Delete the rows and the index in one transaction, and build the index again if there was one."""
    conn.execute("begin immediate")
    with conn:
        has_index = bool(columns_of(conn, "clip_index")) and build.delete_index_rows(conn, source_key(collection))
        delete_rows(conn, collection.name, key, ids)
    remaining = open_collection(conn, collection.name)
    if has_index and remaining.embed_dim is not None:
        build.index(conn, remaining)


def empty_wal(conn: sqlite3.Connection) -> bool:
    """True if the WAL is empty now, or if there is none."""
    [(is_busy, _, _)] = rows(conn, "pragma wal_checkpoint(truncate)")
    return not is_busy


def has_traces(conn: sqlite3.Connection, found: dict[str, tuple]) -> bool:
    """True if the database's file has bytes of rows that were removed, and that no other row has."""
    file = next(path for _, schema, path in rows(conn, "pragma database_list") if schema == "main")
    traces = [piece for id, row in list(found.items())[:LOOKED_FOR] for piece in pieces_of(conn, id, row)]
    if not file or not traces:
        return False
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(content.find(piece) >= 0 for piece in traces)


def pieces_of(conn: sqlite3.Connection, id: str, row: tuple) -> list[bytes]:
    """Bytes by which a row that was removed is found in the file; none that another row has too."""
    *contents, content_hash = row
    name, pieces = id.encode(), []
    if len(name) >= LEAST_BYTES and not rows(conn, "select 1 from main.embeddings where instr(id, ?) limit 1", [id]):
        pieces.append(name)
    if not rows(conn, "select 1 from main.embeddings where content_hash = ? limit 1", [content_hash]):
        blobs = [content.encode() if isinstance(content, str) else content for content in contents if content]
        places = [(blob, int(len(blob) * place)) for blob in blobs for place in PLACES if len(blob) > 3 * PIECE_BYTES]
        pieces += [blob[at : at + PIECE_BYTES] for blob, at in places]
    return pieces
