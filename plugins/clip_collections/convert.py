"""Embeds a collection again with another model, beside its vectors, and puts the new ones in their place at the end.

    clip_conversion   a row per row that was embedded: its vector, what it was embedded from, model and orientation

The contents are those that are stored, else the files, else the thumbnails. A run that was ended is gone on with, and
vectors of thumbnails are made anew if better may be there then. Until all rows have their new vectors, the collection
stays as it is; then all change in one transaction.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from sqlite3 import Connection
from typing import Literal, NamedTuple

import llm
import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, cited, counted
from llm_clip_onnx.vectors import to_blob

from .collection import Collection, columns_of, open_collection, orient_of, rows
from .entry import read_file
from .index.build import delete_index_rows
from .index.store import read_facts, source_key
from .photo_folders import path_within

BATCH_ROWS = 32  # in one transaction; a run that is killed loses at most these
SCHEMA = """
create table if not exists main.clip_conversion (
    collection_id integer, id text, content_hash blob, model text, made_from text, embedding blob,
    primary key (collection_id, id)
)
"""
IS_CONVERTED = """
exists (select 1 from main.clip_conversion as new where new.collection_id = embeddings.collection_id
    and new.id = embeddings.id and new.content_hash is embeddings.content_hash)
"""
DELETE_OUTDATED = """
delete from main.clip_conversion where collection_id = ?1
and (model <> ?2 or made_from = 'thumbnail' and (?3 or exists (
    select 1 from main.embeddings where embeddings.collection_id = ?1 and embeddings.id = clip_conversion.id
        and (content is not null or content_blob is not null))))
"""  # by another model or orientation, or from a thumbnail where the file or the content may be there now
SELECT_ROWS = f"""
select rowid, id, content, content_blob, content_hash from main.embeddings
where collection_id = ? and rowid > ? and not {IS_CONVERTED} order by rowid limit {BATCH_ROWS}
"""
KEEP = """
insert or replace into main.clip_conversion
select collection_id, id, content_hash, ?, ?, ? from main.embeddings where rowid = ? and content_hash is ?
"""
SELECT_THUMBNAIL = """
select image from main.clip_thumbnails join main.embeddings
on clip_thumbnails.id = embeddings.id and clip_thumbnails.row = embeddings.rowid
where collection = ? and embeddings.rowid = ? and image is not null
"""
COUNT_MADE = """
select made_from, count(*) from main.embeddings join main.clip_conversion using (collection_id, id)
where collection_id = ? group by 1
"""
SWAP = """
update main.embeddings set embedding = (select new.embedding from main.clip_conversion as new
    where new.collection_id = embeddings.collection_id and new.id = embeddings.id)
where collection_id = ?
"""

MadeFrom = Literal["content", "file", "thumbnail"]
EmbedItem = Callable[[str | bytes, str | None], NDArray[np.float32]]  # with the orientation


class Target(NamedTuple):
    """The model to convert to. sha256: tells it from another one, see origin.model_key."""

    model_id: str
    sha256: str
    embed_item: EmbedItem
    threads: int


class Row(NamedTuple):
    """A row to embed. Of an id that is not UTF-8 some bytes are replaced, so rows are told apart by their rowids."""

    rowid: int
    id: str
    text: str | None
    blob: bytes | None
    content_hash: bytes | None


class Conversion:
    """The conversion of one collection of llm's. folder: that of its files, None if it is not known.

    Raises InputError if there is no such collection, or if it is of the model already.
    """

    def __init__(self, conn: Connection, name: str, target: Target, folder: Path | None):
        self.conn, self.name, self.target, self.folder = conn, name, target, folder
        self.collection = open_collection(conn, name)
        if self.collection.model == target.model_id:
            lacks_index = "" if has_index(conn, self.collection) else ", and has no index: llm clip index makes it"
            raise InputError(
                f"the collection {cited(name)} is of the model {cited(target.model_id)} already{lacks_index}"
            )
        [(self.key,)] = rows(conn, "select id from main.collections where name = ?", [name])
        self.orient = orient_of(conn, self.key)
        self.missing: list[str] = []  # ids of rows that cannot be embedded
        conn.execute("pragma secure_delete = on")
        conn.execute(SCHEMA)
        self.model = f"{target.sha256} {self.orient}"
        conn.execute(DELETE_OUTDATED, [self.key, self.model, folder is not None])

    def count(self) -> int:
        """How many rows are still to be embedded."""
        sql = f"select count(*) from main.embeddings where collection_id = ? and not {IS_CONVERTED}"
        return rows(self.conn, sql, [self.key])[0][0]

    def embed(self) -> Iterator[int]:
        """Embed the rows that are not yet, and yield how many were looked at, batch by batch."""
        last, self.missing = -(2**63), []
        with ThreadPoolExecutor(self.target.threads) as pool:
            while batch := [Row(*row) for row in rows(self.conn, SELECT_ROWS, [self.key, last])]:
                read = [self.read(row) for row in batch]
                self.write(batch, read, list(pool.map(self.embedded, [content for _, content in read])))
                last = batch[-1].rowid
                yield len(batch)

    def read(self, row: Row) -> tuple[MadeFrom, str | bytes | None]:
        """The content of a row and where it is from; None if there is none any more."""
        if (content := row.text if row.text is not None else row.blob) is not None:
            return "content", content
        if (content := self.read_own_file(row)) is not None:
            return "file", content
        return "thumbnail", self.read_thumbnail(row)

    def read_own_file(self, row: Row) -> bytes | None:
        """The file of a row, None if it is not known, not there, or no longer what was embedded."""
        path = path_within(self.folder, row.id) if self.folder else None
        try:
            content = read_file(path) if path else None
        except InputError:
            return None
        return content if content and llm.Collection.content_hash(content) == row.content_hash else None

    def read_thumbnail(self, row: Row) -> bytes | None:
        if "row" not in columns_of(self.conn, "clip_thumbnails"):
            return None
        images = rows(self.conn, SELECT_THUMBNAIL, [self.name, row.rowid])
        return images[0][0] if images else None

    def embedded(self, content: str | bytes | None) -> bytes | None:
        """The vector blob of a content, None if it cannot be read."""
        try:
            return None if content is None else to_blob(self.target.embed_item(content, self.orient))
        except InputError:
            return None

    def write(self, batch: Sequence[Row], read: Sequence[tuple], blobs: Sequence[bytes | None]) -> None:
        """Keep the vectors of a batch in clip_conversion, but for rows that are gone or changed meanwhile."""
        done = [
            (self.model, made_from, blob, row.rowid, row.content_hash)
            for row, (made_from, _), blob in zip(batch, read, blobs)
            if blob is not None
        ]
        self.missing += [row.id for row, blob in zip(batch, blobs) if blob is None]
        self.conn.execute("begin immediate")
        with self.conn:
            self.conn.executemany(KEEP, done)

    def swap(self) -> Counter[str]:
        """Put the new vectors in place of the old ones, and return from what how many were made.

        The index and the floor are removed with them: they are of the other model. Raises InputError if rows lack a
        vector, also if they came meanwhile; then nothing has changed.
        """
        self.conn.execute("begin immediate")
        with self.conn:
            if lacking := self.count():
                raise InputError(self.lacking(lacking))
            made_from = Counter(dict(rows(self.conn, COUNT_MADE, [self.key])))
            self.conn.execute(SWAP, [self.key])
            self.conn.execute("update main.collections set model = ? where id = ?", [self.target.model_id, self.key])
            self.conn.execute("delete from main.clip_conversion where collection_id = ?", [self.key])
            if not rows(self.conn, "select 1 from main.clip_conversion limit 1"):
                self.conn.execute("drop table main.clip_conversion")
            self.forget_model()
        return made_from

    def lacking(self, count: int) -> str:
        """The sentence about rows without a new vector."""
        if not self.missing:
            return f"{counted(count, 'row')} came while the others were embedded: run it again"
        return (
            f"{counted(count, 'row')}, such as {cited(self.missing[0])}, cannot be embedded, because neither a stored "
            f"content nor the file nor a thumbnail is there, so the collection {cited(self.name)} stays as it is; "
            "--folder names the folder of the files, and llm clip forget removes rows"
        )

    def forget_model(self) -> None:
        """Remove what belongs to the old vectors, and note the new model. The caller commits."""
        if columns_of(self.conn, "clip_index"):
            delete_index_rows(self.conn, source_key(self.collection))
        if columns_of(self.conn, "clip_floors"):
            self.conn.execute("delete from main.clip_floors where collection = ?", [self.name])
        if columns_of(self.conn, "clip_collection_facts"):
            sql = "update main.clip_collection_facts set model = ? where collection_id = ?"
            self.conn.execute(sql, [self.target.sha256, self.key])


def has_index(conn: Connection, collection: Collection) -> bool:
    """True if a collection has an index of its vectors."""
    return collection.embed_dim is not None and read_facts(conn, collection, collection.embed_dim) is not None
