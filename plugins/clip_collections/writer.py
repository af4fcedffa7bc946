"""Embeds entries with any `llm` model and writes them into a collection, as `llm embed-multi` does.

One thread reads and writes; the others embed, one item a call, so that an embedding never depends on other items.
Entries that are in the collection are not embedded again, so a run that was killed can be started again. Thumbnails are
written with the rows. Nothing is deleted, except that the row of a file that was moved gets its new id.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import llm
import numpy as np
from numpy.typing import NDArray
from sqlite_utils import Database

from llm_clip_onnx.errors import InputError, shortened
from llm_clip_onnx.vectors import cosine, from_blob, to_blob

from . import gone, origin
from .entry import Entry, NothingToEmbed, content_of
from .index.store import create_tables

if TYPE_CHECKING:
    from .thumbnails import Look

BATCH_ITEMS = 32  # in one transaction, after smaller ones; a run that is killed loses at most these
BATCH_BYTES = 32_000_000  # of contents in one transaction
ITEMS_AHEAD = 4  # read before they are embedded, per thread
SAME_MODEL_COSINE = 0.98  # minimum for one content and model on two machines; two models have about 0

INSERT = """
insert or replace into main.embeddings
    (collection_id, id, embedding, content, content_blob, content_hash, metadata, updated)
values (?, ?, ?, ?, ?, ?, ?, ?)
"""
INSERT_THUMBNAIL = """
insert or replace into main.clip_thumbnails (collection, id, image, row, content_hash)
select ?, id, ?, rowid, content_hash from main.embeddings where collection_id = ? and id = ?
"""
OF_CONTENT = "from main.embeddings where collection_id = ? and content_hash = ?"
SELECT_KNOWN = f"select embedding, metadata {OF_CONTENT} limit 1"
SELECT_IDS = f"select id {OF_CONTENT}"
SELECT_SAME_ENTRY = """
select metadata, content is not null or content_blob is not null from main.embeddings
where collection_id = ? and id = ? and content_hash = ?
"""
HAS_THUMBNAIL = """
exists (select 1 from main.clip_thumbnails where collection = (select name from main.collections
    where collections.id = embeddings.collection_id) and clip_thumbnails.id = embeddings.id and row = embeddings.rowid)
"""
SELECT_THUMBNAIL = f"select {HAS_THUMBNAIL} from main.embeddings where collection_id = ? and id = ?"
SELECT_SAME_THUMBNAIL = """
select image from main.clip_thumbnails join main.embeddings
on clip_thumbnails.id = embeddings.id and clip_thumbnails.row = embeddings.rowid
where collection = ? and collection_id = ? and embeddings.content_hash = ? and image is not null
"""


class Embedder(NamedTuple):
    """An `llm` embedding model and its function `embed_item`, which `threads` threads call at once.

    embed_item: content and orientation -> embedding [embed_dim] float32. It raises InputError for unreadable content.
    embed_look: the same for an image, with a `render` of preprocess.decode as the third argument, so that the image is
    decoded once; without it, it is decoded twice. model_sha256: tells the model from another one.
    """

    model: llm.EmbeddingModel
    embed_dim: int
    embed_item: Callable[[str | bytes, str | None], NDArray[np.float32]]
    threads: int = 1
    embed_look: Callable[[bytes, str | None, Any], NDArray[np.float32]] | None = None
    model_sha256: str | None = None


Became = Literal["embedded", "copied", "moved", "there", "empty", "bad"]


class Outcome(NamedTuple):
    """What happened to an entry. why: the reason if it was not embedded."""

    id: str
    became: Became
    why: str = ""


class Known(NamedTuple):
    """What the collection has of a content: the vector blob and the metadata of one of its rows."""

    blob: bytes
    metadata: str | None


class Started(NamedTuple):
    """An entry whose content was read. work: what a thread does with it, None if there is nothing to do."""

    entry: Entry
    outcome: Outcome
    content: str | bytes = b""
    content_hash: bytes = b""
    known: Known | None = None
    moved_from: str | None = None
    thumbnail: bytes | None = None
    work: Future[tuple[NDArray[np.float32] | None, Look | None]] | None = None  # embedding, look


class Written(NamedTuple):
    """What is to be written of an entry. row: None if it stays. has_thumbnail: a thumbnail is written, None as NULL."""

    entry: Entry
    content_hash: bytes
    row: tuple | None
    has_thumbnail: bool
    thumbnail: bytes | None
    moved_from: str | None

    @property
    def kept_bytes(self) -> int:
        return sum(len(part) for part in (self.row or ())[2:4] if part) + len(self.thumbnail or b"")


class CollectionWriter:
    """Embeds into one collection of a database, which is created if it does not exist.

    store: keep the contents too. force: embed entries again that the collection has. thumbnails: write those of images.
    gone: ids of rows whose files are gone; a file of the same content is one that was moved, and its old id leaves the
    set. orient and places are as in origin.next_origin. folder: that of the entries, None if they are no files.
    Raises InputError for a collection of another model.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        embedder: Embedder,
        orient: str | None = None,
        store: bool = False,
        force: bool = False,
        thumbnails: bool = False,
        places: bool | None = None,
        folder: Path | None = None,
    ):
        self.db, self.embedder, self.store, self.force = database, embedder, store, force
        self.thumbnails, self.folder = thumbnails, origin.folder_key(folder) if folder else None
        self.gone: set[str] = set()
        collection = llm.Collection(name, database, model=embedder.model)
        self.name, self.collection_id = name, collection.id
        self._check_model_id()
        sql = "select length(embedding) / 4 from main.embeddings where collection_id = ?"
        size = self._fetch_one(sql, self.collection_id)
        if size and size[0] != embedder.embed_dim and not force:
            raise self._other_model_error(f"embeddings of {size[0]} dimensions, not {embedder.embed_dim}")
        known = origin.read_origin(database.conn, self.collection_id)
        self.origin = origin.next_origin(name, known, bool(size), folder is not None, orient, places, force)
        self._pending: list[Written] = []
        self._batch_items = 1  # so that the first item is there at once for a search
        self._is_same_model = not size or (known is not None and self._is_of_model(known.model))
        self._is_checked = force or self._is_same_model
        self._prepare()

    @property
    def orient(self) -> str | None:
        """How images are read, see Engine.embed_images."""
        return self.origin.orient

    def _is_of_model(self, model_sha256: str | None) -> bool:
        return model_sha256 is not None and model_sha256 == self.embedder.model_sha256

    def _prepare(self) -> None:
        """Create the tables, write how the collection is made, and read which files need not be read again."""
        self.db.conn.execute("pragma secure_delete = on")
        create_tables(self.db.conn)
        self.db.conn.executescript(origin.SCHEMA)
        self._write_origin(self.embedder.model_sha256 if self._is_same_model else None)
        conditions = ["content_blob is not null"] * self.store + [HAS_THUMBNAIL] * self.thumbnails
        self._states = origin.read_states(self.db.conn, self.collection_id, *conditions)

    def _write_origin(self, model_sha256: str | None) -> None:
        with self.db.atomic():
            origin.write_origin(self.db.conn, self.collection_id, self.origin._replace(model=model_sha256))
            self._check_model_id()  # after the first write, so that nobody changes it before the commit

    def _check_model_id(self) -> None:
        """Raises InputError if the collection is of another model, as `llm clip convert` makes it."""
        [model] = self._fetch_one("select model from main.collections where id = ?", self.collection_id) or (None,)
        if model != self.embedder.model.model_id:
            raise InputError(
                f"the collection {shortened(self.name)} is of the model {shortened(model)}, to whose embeddings those"
                f" of {self.embedder.model.model_id} cannot be compared; choose another collection"
            )

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
        started: deque[Started] = deque()
        try:
            for entry in entries:
                started.append(self._start(entry, pool))
                if len(started) > ITEMS_AHEAD * self.embedder.threads:
                    yield self._finish(started.popleft())
            while started:
                yield self._finish(started.popleft())
        finally:
            pool.shutdown(cancel_futures=True)
            self._write()
        if self._is_checked:
            self._write_origin(self.embedder.model_sha256)

    def _start(self, entry: Entry, pool: ThreadPoolExecutor) -> Started:
        """Read an entry, and let a thread embed it if the collection lacks it."""
        if self._is_unchanged(entry):
            return Started(entry, Outcome(entry.id, "there"))
        try:
            content = content_of(entry)
        except InputError as error:
            became: Became = "empty" if isinstance(error, NothingToEmbed) else "bad"
            return Started(entry, Outcome(entry.id, became, str(error)))
        content_hash = llm.Collection.content_hash(content)
        known = self._known(content_hash)
        if known and not self._is_checked:
            self._check_model(content, known.blob)
        is_there = known is not None and self._is_there(entry, content_hash)
        moved_from = self._take_gone(entry, content_hash) if known else None
        if known is None or self.force:
            work = pool.submit(self._embed, content, entry)
            return Started(entry, Outcome(entry.id, "embedded"), content, content_hash, None, moved_from, None, work)
        outcome = Outcome(entry.id, "there" if is_there else "moved" if moved_from is not None else "copied")
        started = Started(entry, outcome, content, content_hash, known, moved_from)
        if isinstance(content, str) or not self._lacks_thumbnail(entry, is_there):
            return started
        same = self._fetch_one(SELECT_SAME_THUMBNAIL, self.name, self.collection_id, content_hash)
        if same:
            return started._replace(thumbnail=same[0])
        return started._replace(work=pool.submit(self._look, content, entry))

    def _is_unchanged(self, entry: Entry) -> bool:
        """True if the file of an entry is as it was when its row was written, and nothing of it is missing."""
        is_known = self._is_checked and not self.force and entry.state is not None
        return is_known and self._states.get(entry.id) == entry.state

    def _known(self, content_hash: bytes) -> Known | None:
        row = self._fetch_one(SELECT_KNOWN, self.collection_id, content_hash)
        return Known(*row) if row else None

    def _take_gone(self, entry: Entry, content_hash: bytes) -> str | None:
        """The id of a row of this content whose file is gone, which then no other file is moved from."""
        if not self.gone:  # a content may have very many rows
            return None
        ids = [id for (id,) in self.db.conn.execute(SELECT_IDS, [self.collection_id, content_hash])]
        moved_from = None if entry.id in ids else next((id for id in ids if id in self.gone), None)
        self.gone.discard(moved_from or "")
        return moved_from

    def _is_there(self, entry: Entry, content_hash: bytes) -> bool:
        row = self._fetch_one(SELECT_SAME_ENTRY, self.collection_id, entry.id, content_hash)
        if row is None or (self.store and not row[1]):
            return False
        return entry.metadata is None or row[0] == json.dumps(entry.metadata)

    def _lacks_thumbnail(self, entry: Entry, is_there: bool) -> bool:
        found = self._fetch_one(SELECT_THUMBNAIL, self.collection_id, entry.id) if is_there else None
        return self.thumbnails and not (found and found[0])

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

    def _embed(self, content: str | bytes, entry: Entry) -> tuple[NDArray[np.float32] | None, Look | None]:
        """The embedding of a content, and what is seen of an image meanwhile. Raises InputError."""
        if isinstance(content, str) or not (self.thumbnails or entry.state):
            return self.embedder.embed_item(content, self.orient), None
        if self.embedder.embed_look is None:
            return self.embedder.embed_item(content, self.orient), self._look(content, entry)[1]
        look = self._new_look(entry)
        embedding = self.embedder.embed_look(content, self.orient, look.render)
        look.encode()
        return embedding, look

    def _look(self, content: bytes, entry: Entry) -> tuple[NDArray[np.float32] | None, Look | None]:
        """What is seen of an image that is not embedded; nothing if it cannot be decoded."""
        look = self._new_look(entry)
        look.decode(content)
        look.encode()
        return None, look

    def _new_look(self, entry: Entry) -> Look:
        from .thumbnails import Look  # here: texts are embedded without Pillow

        return Look(self.thumbnails, entry.state is not None, self.origin.places)

    def _finish(self, started: Started) -> Outcome:
        if not started.content_hash:
            return started.outcome
        try:
            embedding, look = started.work.result() if started.work else (None, None)
        except InputError as error:
            return Outcome(started.entry.id, "bad", str(error))
        self._pending.append(self._written(started, embedding, look))
        kept_bytes = sum(written.kept_bytes for written in self._pending)
        if len(self._pending) >= self._batch_items or kept_bytes > BATCH_BYTES:
            self._batch_items = min(2 * self._batch_items, BATCH_ITEMS)
            self._write()
        return started.outcome

    def _written(self, started: Started, embedding: NDArray[np.float32] | None, look: Look | None) -> Written:
        entry, content, known = started.entry, started.content, started.known
        thumbnail = look.thumbnail if look else started.thumbnail
        has_thumbnail = self.thumbnails and (look is not None or thumbnail is not None)
        row = None
        if started.outcome.became != "there":
            blob = to_blob(embedding) if embedding is not None else known.blob if known else b""
            metadata = metadata_of(entry, look, known)
            row = row_of(entry.id, content, started.content_hash, blob, metadata, self.store)
        return Written(entry, started.content_hash, row, has_thumbnail, thumbnail, started.moved_from)

    def _write(self) -> None:
        """Write what is pending, in one transaction: rows, their thumbnails, the states of files, and moves."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        conn, key = self.db.conn, self.collection_id
        states = [(done.entry.id, done.entry.state, done.content_hash) for done in pending if done.entry.state]
        moved = [done.moved_from for done in pending if done.moved_from is not None]
        with self.db.atomic():
            conn.executemany(INSERT, [(key, *done.row) for done in pending if done.row])
            thumbnails = [(self.name, done.thumbnail, key, done.entry.id) for done in pending if done.has_thumbnail]
            conn.executemany(INSERT_THUMBNAIL, thumbnails)
            origin.write_states(conn, key, self.folder, states)
            gone.delete_rows(conn, self.name, key, moved)
            self._check_model_id()


def metadata_of(entry: Entry, look: Look | None, known: Known | None) -> str | None:
    """An entry's metadata as JSON. An image of a folder has the facts of its photo, its bytes and its folder."""
    if entry.state is None:
        return json.dumps(entry.metadata) if entry.metadata else None
    facts = facts_in(known.metadata) if known and known.metadata else look.facts if look else {}
    if not facts:
        return known.metadata if known else None
    folder = entry.id.rpartition("/")[0]
    facts = {name: value for name, value in facts.items() if name not in ("bytes", "folder")}
    return json.dumps(facts | {"bytes": entry.state.bytes} | ({"folder": folder} if folder else {}))


def facts_in(metadata: str) -> dict[str, Any]:
    """The object that metadata are, {} if they are none: another program may have written them."""
    try:
        facts = json.loads(metadata)
    except (ValueError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def row_of(id: str, content: str | bytes, content_hash: bytes, blob: bytes, metadata: str | None, store: bool) -> tuple:
    """The values for INSERT after the collection's id, as llm writes them."""
    kept = (content, None) if isinstance(content, str) else (None, content)
    return id, blob, *(kept if store else (None, None)), content_hash, metadata, int(time.time())
