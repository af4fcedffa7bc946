"""Embeds entries with any `llm` model and writes them into a collection, as `llm embed-multi` does.

One thread reads and writes; the others embed, one item a call, so that an embedding never depends on other items.
Entries that are in the collection are not embedded again, so a run that was killed can be started again. Nothing is
deleted: rows that are no longer in the source stay.
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

from .entry import Entry, NothingToEmbed, content_of

BATCH_ITEMS = 32  # in one transaction; a run that is killed loses at most these
BATCH_BYTES = 32_000_000  # of contents in one transaction
ITEMS_AHEAD = 4  # read before they are embedded, per thread
SAME_MODEL_COSINE = 0.98  # minimum for one content and model on two machines; two models have about 0

INSERT = """
insert or replace into main.embeddings
    (collection_id, id, embedding, content, content_blob, content_hash, metadata, updated)
values (?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT_SAME_CONTENT = "select embedding from main.embeddings where collection_id = ? and content_hash = ?"
SELECT_SAME_ENTRY = """
select metadata, content is not null or content_blob is not null from main.embeddings
where collection_id = ? and id = ? and content_hash = ?
"""


class Embedder(NamedTuple):
    """An `llm` embedding model and its function `embed_item`, which `threads` threads call at once.

    embed_item: content and orientation -> embedding [embed_dim] float32. It raises InputError for unreadable content.
    """

    model: llm.EmbeddingModel
    embed_dim: int
    embed_item: Callable[[str | bytes, str | None], NDArray[np.float32]]
    threads: int = 1


Became = Literal["embedded", "copied", "there", "empty", "bad"]


class Outcome(NamedTuple):
    """What happened to an entry. why: the reason if it was not embedded."""

    id: str
    became: Became
    why: str = ""


class CollectionWriter:
    """Embeds into one collection of a database, which is created if it does not exist.

    store: keep the contents too. force: embed entries again that the collection has. Raises InputError for a collection
    of another model.
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
        [model] = self._fetch_one("select model from main.collections where id = ?", collection.id) or (None,)
        if model != embedder.model.model_id:
            raise InputError(
                f"the collection {shortened(name)} is of the model {shortened(model)}, to whose embeddings those of"
                f" {embedder.model.model_id} cannot be compared; choose another collection"
            )
        sql = "select length(embedding) / 4 from main.embeddings where collection_id = ?"
        size = self._fetch_one(sql, self.collection_id)
        if size and size[0] != embedder.embed_dim and not force:
            raise self._other_model_error(f"embeddings of {size[0]} dimensions, not {embedder.embed_dim}")
        self._pending: list[tuple] = []
        self._is_checked = force

    def _fetch_one(self, sql: str, *parameters) -> tuple | None:
        return self.db.conn.execute(sql, parameters).fetchone()

    def _other_model_error(self, contents: str) -> InputError:
        return InputError(
            f"the collection {shortened(self.name)} holds {contents}: it was made with another model directory or"
            " --orient; --force embeds everything again, another collection keeps both"
        )

    def embed(self, entries: Iterable[Entry]) -> Iterator[Outcome]:
        """Embed and write entries, and yield the outcome of each, in their order.

        Raises InputError if the collection holds another model's embeddings, ModelDirError and sqlite3.Error. The
        entries that were embedded before are written.
        """
        pool = ThreadPoolExecutor(self.embedder.threads)
        started: deque[tuple[Entry, str | bytes, bytes | Future | Outcome]] = deque()
        try:
            for entry in entries:
                started.append(self._start(entry, pool))
                if len(started) > ITEMS_AHEAD * self.embedder.threads:
                    yield self._finish(*started.popleft())
            while started:
                yield self._finish(*started.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._write()

    def _start(self, entry: Entry, pool: ThreadPoolExecutor) -> tuple[Entry, str | bytes, bytes | Future | Outcome]:
        """The entry, its content, and its stored vector blob, the future of a new embedding, or its outcome."""
        try:
            content = content_of(entry)
        except InputError as error:
            became: Became = "empty" if isinstance(error, NothingToEmbed) else "bad"
            return entry, b"", Outcome(entry.id, became, str(error))
        content_hash = llm.Collection.content_hash(content)
        known = self._fetch_one(SELECT_SAME_CONTENT, self.collection_id, content_hash)
        if known and not self._is_checked:
            self._check_model(content, known[0])
        if known is None or self.force:
            return entry, content, pool.submit(self.embedder.embed_item, content, self.orient)
        if self._is_there(entry, content_hash):
            return entry, content, Outcome(entry.id, "there")
        return entry, content, known[0]

    def _is_there(self, entry: Entry, content_hash: bytes) -> bool:
        row = self._fetch_one(SELECT_SAME_ENTRY, self.collection_id, entry.id, content_hash)
        if row is None or (self.store and not row[1]):
            return False
        return entry.metadata is None or row[0] == json.dumps(entry.metadata)

    def _check_model(self, content: str | bytes, known: bytes) -> None:
        """Raises InputError if a content's embedding differs from the one in the collection, made by another model."""
        try:
            embedding = self.embedder.embed_item(content, self.orient)
        except InputError:
            return  # the next content is compared instead
        if (similarity := cosine(embedding, from_blob(known))) < SAME_MODEL_COSINE:
            raise self._other_model_error(
                f"an embedding whose cosine to today's of the same content is {similarity:.3f}"
            )
        self._is_checked = True

    def _finish(self, entry: Entry, content: str | bytes, result: bytes | Future | Outcome) -> Outcome:
        if isinstance(result, Outcome):
            return result
        try:
            blob = result if isinstance(result, bytes) else to_blob(result.result())
        except InputError as error:
            return Outcome(entry.id, "bad", str(error))
        self._pending.append((self.collection_id, *row_of(entry, content, blob, self.store)))
        kept_bytes = sum(len(part) for row in self._pending for part in row[3:5] if part)
        if len(self._pending) >= BATCH_ITEMS or kept_bytes > BATCH_BYTES:
            self._write()
        return Outcome(entry.id, "copied" if isinstance(result, bytes) else "embedded")

    def _write(self) -> None:
        rows, self._pending = self._pending, []
        if rows:
            with self.db.atomic():
                self.db.conn.executemany(INSERT, rows)


def row_of(entry: Entry, content: str | bytes, blob: bytes, store: bool) -> tuple:
    """An entry's values for INSERT after the collection's id, as llm writes them."""
    kept = (content, None) if isinstance(content, str) else (None, content)
    metadata = json.dumps(entry.metadata) if entry.metadata else None
    content_hash = llm.Collection.content_hash(content)
    return entry.id, blob, *(kept if store else (None, None)), content_hash, metadata, int(time.time())
