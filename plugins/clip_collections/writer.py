"""Embeds the entries of a source and writes them into a collection, as `llm embed-multi` does, by any `llm` model.

One thread reads and writes, the others embed, one item a call, so that each embedding is the same as if it came alone.
Entries that are in the collection are not embedded again, so a run that was killed can be started again. It deletes
nothing: rows that have left the source stay.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import llm
import numpy as np
from numpy.typing import NDArray
from sqlite_utils import Database

from llm_clip_onnx.errors import InputError, shortened
from llm_clip_onnx.vectors import cosine, from_blob, to_blob

from .sources import Entry, content_of

WRITTEN_AT_ONCE = 32  # items; a run that is killed loses at most these
WRITTEN_BYTES = 32_000_000  # of contents that wait to be written
AHEAD = 4  # items per thread that are read ahead
SAME_MODEL = 0.98  # minimum cosine of an embedding with the same made on another machine; of another model about 0

INSERT = """
insert or replace into embeddings
    (collection_id, id, embedding, content, content_blob, content_hash, metadata, updated)
values (?, ?, ?, ?, ?, ?, ?, ?)
"""
KNOWN = "select embedding from embeddings where collection_id = ? and content_hash = ?"
THERE = """
select metadata, content is not null or content_blob is not null from embeddings
where collection_id = ? and id = ? and content_hash = ?
"""


class Embedder(NamedTuple):
    """An `llm` embedding model, and the function that embeds an item with it, called in `threads` threads at once.

    embed_item: content and orientation -> embedding [embed_dim] float32; it raises InputError for unreadable content.
    """

    model: llm.EmbeddingModel
    embed_dim: int
    embed_item: Callable[[str | bytes, str | None], NDArray[np.float32]]
    threads: int = 1


class Outcome(NamedTuple):
    """What became of an entry, and why, if it is bad."""

    id: str
    became: Literal["embedded", "copied", "there", "bad"]
    why: str = ""


class Embedding:
    """Embeds into one collection of a database, which it makes if there is none.

    store: keep the contents too. force: embed again what the collection has. Raises InputError for a collection of
    another model.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        embedder: Embedder,
        orient: str | None = None,
        store: bool = False,
        force: bool = False,
    ):
        self.db, self.embedder, self.orient, self.store, self.force = database, embedder, orient, store, force
        collection = llm.Collection(name, database, model=embedder.model)
        self.name, self.collection_id = name, collection.id
        [model] = self._one("select model from collections where id = ?", collection.id) or (None,)
        if model != embedder.model.model_id:
            raise InputError(
                f"the collection {shortened(name)} is of the model {shortened(model)}, to whose embeddings those of"
                f" {embedder.model.model_id} cannot be compared; choose another collection"
            )
        size = self._one("select length(embedding) / 4 from embeddings where collection_id = ?", self.collection_id)
        if size and size[0] != embedder.embed_dim and not force:
            raise self._of_another_model(f"embeddings of {size[0]} dimensions, not {embedder.embed_dim}")
        self._unwritten: list[tuple] = []
        self._checked = force

    def _one(self, sql: str, *parameters) -> tuple | None:
        return self.db.conn.execute(sql, parameters).fetchone()

    def _of_another_model(self, found: str) -> InputError:
        return InputError(
            f"the collection {shortened(self.name)} holds {found}: it was made with another model directory or"
            " --orient; --force embeds everything again, another collection keeps both"
        )

    def embed(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        """Embed and write entries: the outcome of each, in their order.

        Raises InputError if the collection holds another model's embeddings, ModelDirError and sqlite3.Error; the
        entries embedded until then are written.
        """
        pool = ThreadPoolExecutor(self.embedder.threads)
        begun: deque[tuple[Entry, str | bytes, bytes | Future | Outcome]] = deque()
        try:
            for entry in entries:
                begun.append(self._begin(entry, pool))
                if len(begun) > AHEAD * self.embedder.threads:
                    yield self._end(*begun.popleft())
            while begun:
                yield self._end(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._write()

    def _begin(self, entry: Entry, pool: ThreadPoolExecutor) -> tuple[Entry, str | bytes, bytes | Future | Outcome]:
        """The entry, its content, and its vector blob, the future of one, or its outcome."""
        try:
            content = content_of(entry)
        except InputError as error:
            return entry, b"", Outcome(entry.id, "bad", str(error))
        content_hash = llm.Collection.content_hash(content)
        known = self._one(KNOWN, self.collection_id, content_hash)
        if known and not self._checked:
            self._check(content, known[0])
        if known is None or self.force:
            return entry, content, pool.submit(self.embedder.embed_item, content, self.orient)
        if self._is_there(entry, content_hash):
            return entry, content, Outcome(entry.id, "there")
        return entry, content, known[0]

    def _is_there(self, entry: Entry, content_hash: bytes) -> bool:
        row = self._one(THERE, self.collection_id, entry.id, content_hash)
        if row is None or (self.store and not row[1]):
            return False
        return entry.metadata is None or row[0] == json.dumps(entry.metadata)

    def _check(self, content: str | bytes, known: bytes) -> None:
        """Raises InputError if the embedding of a content is far from the one that the collection has of it."""
        try:
            now = self.embedder.embed_item(content, self.orient)
        except InputError:
            return  # the next content is compared instead
        if (same := cosine(now, from_blob(known))) < SAME_MODEL:
            raise self._of_another_model(f"an embedding whose cosine to today's of the same content is {same:.3f}")
        self._checked = True

    def _end(self, entry: Entry, content: str | bytes, result: bytes | Future | Outcome) -> Outcome:
        if isinstance(result, Outcome):
            return result
        try:
            blob = result if isinstance(result, bytes) else to_blob(result.result())
        except InputError as error:
            return Outcome(entry.id, "bad", str(error))
        self._unwritten.append((self.collection_id, *row_of(entry, content, blob, self.store)))
        kept_bytes = sum(len(part) for row in self._unwritten for part in row[3:5] if part)
        if len(self._unwritten) >= WRITTEN_AT_ONCE or kept_bytes > WRITTEN_BYTES:
            self._write()
        return Outcome(entry.id, "copied" if isinstance(result, bytes) else "embedded")

    def _write(self) -> None:
        rows, self._unwritten = self._unwritten, []
        if rows:
            with self.db.atomic():
                self.db.conn.executemany(INSERT, rows)


def row_of(entry: Entry, content: str | bytes, blob: bytes, store: bool) -> tuple:
    """The values of INSERT for an entry, without the collection's id, as llm writes them."""
    kept = (content, None) if isinstance(content, str) else (None, content)
    metadata = json.dumps(entry.metadata) if entry.metadata else None
    content_hash = llm.Collection.content_hash(content)
    return entry.id, blob, *(kept if store else (None, None)), content_hash, metadata, int(time.time())
