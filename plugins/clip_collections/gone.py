"""Finds the rows of a collection whose files are gone from its folder, and deletes rows with all that belongs to them.

A row is only taken for gone if it came from this folder, and if its file is neither there nor in a place that cannot
be read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from sqlite3 import Connection

from llm_clip_onnx.errors import InputError

from .collection import Collection, columns_of, rows
from .entry import Entry
from .origin import folder_key

SELECT_ORIGINS = """
select embeddings.id, clip_files.folder from main.embeddings left join main.clip_files using (collection_id, id)
where collection_id = ?
"""


def gone_ids(conn: Connection, collection_id: int, folder: Path, entries: Sequence[Entry]) -> set[str]:
    """The ids of the collection's rows whose files are gone. entries: of the whole folder, now."""
    listed = {entry.id for entry in entries}
    unreadable = {entry.id for entry in entries if isinstance(entry.content, InputError)}
    if "." in unreadable:
        return set()
    missing = ids_of_folder(conn, collection_id, folder_key(folder), listed) - listed
    return {id for id in missing if is_gone(folder, id, unreadable)}


def ids_of_folder(conn: Connection, collection_id: int, key: str, listed: set[str]) -> set[str]:
    """The ids of the rows that came from the folder.

    Rows that came from a folder of another path, or of which that is not known, count if at least half of them are
    listed: the folder was moved, or an earlier version has read it.
    """
    by_folder: dict[str | None, set[str]] = defaultdict(set)
    for id, of in rows(conn, SELECT_ORIGINS, [collection_id]):
        by_folder[of].add(id)
    ours = [ids for of, ids in by_folder.items() if of == key or 2 * len(ids & listed) >= len(ids)]
    return set().union(*ours)


def is_gone(folder: Path, id: str, unreadable: set[str]) -> bool:
    """True if there is no file of this id in the folder, and no folder on its path is unreadable."""
    path = PurePosixPath(id)
    if path.is_absolute() or ".." in path.parts or "\0" in id:
        return False
    if not unreadable.isdisjoint([id, *map(str, path.parents)]):
        return False
    try:
        (folder / path).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def delete_rows(conn: Connection, collection: str, collection_id: int, ids: Iterable[str]) -> None:
    """Delete rows, and their thumbnails, file states and converted vectors, but for the index. The caller commits."""
    keys = [(collection_id, id) for id in ids]
    for table in ("embeddings", "clip_files", "clip_conversion"):
        if columns_of(conn, table):
            conn.executemany(f"delete from main.{table} where collection_id = ? and id = ?", keys)
    if columns_of(conn, "clip_thumbnails"):
        named = [(collection, id) for _, id in keys]
        conn.executemany("delete from main.clip_thumbnails where collection = ? and id = ?", named)


def clean_index(conn: Connection, collection: Collection) -> None:
    """Take the rows that are gone out of the collection's index, if it has one. `conn` is that of build.connect."""
    from .index import build
    from .index.store import source_key

    if not columns_of(conn, "clip_index"):
        return
    if rows(conn, "select 1 from main.clip_index where source = ?", [source_key(collection)]):
        if collection.embed_dim is None:
            build.delete_index(conn, collection)
        else:
            build.index(conn, collection)
