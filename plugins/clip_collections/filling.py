"""Embeds a folder of photos into its collection while it is served, and writes how far it is into clip_filling."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import click
import llm
from sqlite_utils import Database

from llm_clip_onnx.errors import InputError

from .collection import open_collection
from .commands import index_one, report_outcomes
from .index.build import connect
from .photo_folders import PhotoFolder
from .sources import Reading, read_source
from .writer import CollectionWriter, Embedder, Outcome

SCHEMA = """
create table if not exists clip_filling (
    collection text primary key, done integer, total integer, bad integer, started_s real, updated_s real
)
"""
REPLACE = "insert or replace into main.clip_filling values (?, ?, ?, ?, ?, ?)"
EVERY_S = 1.0  # the row of clip_filling is written at most so often


class Progress:
    """The row of a collection in clip_filling: there while it is embedded, gone afterwards."""

    def __init__(self, conn: sqlite3.Connection, collection: str, total: int):
        self.conn, self.collection, self.total = conn, collection, total
        self.done = self.bad = 0
        self.started_s = time.time()
        self.written_s = 0.0
        conn.execute(SCHEMA)
        self.write()

    def write(self) -> None:
        self.written_s = time.time()
        values = (self.collection, self.done, self.total, self.bad, self.started_s, self.written_s)
        self.conn.execute(REPLACE, values)

    def count(self, outcome: Outcome) -> None:
        """Count an outcome, and write the row if the last time was EVERY_S ago."""
        self.done += 1
        self.bad += outcome.became == "bad"
        if time.time() >= self.written_s + EVERY_S:
            self.write()

    def delete(self) -> None:
        self.conn.execute("delete from main.clip_filling where collection = ?", [self.collection])


def create(photos: PhotoFolder, model: llm.EmbeddingModel) -> bool:
    """Create the database and the collection, empty, unless they exist. True if the collection has rows."""
    photos.database.parent.mkdir(parents=True, exist_ok=True)
    is_new = not photos.database.exists()
    with closing(sqlite3.connect(photos.database, timeout=60)) as conn:
        if is_new:
            conn.execute("pragma journal_mode = wal")  # so that searches and the embedding do not wait for each other
        return llm.Collection(photos.collection, Database(conn), model=model).count() > 0


@contextmanager
def progress_of(photos: PhotoFolder, total: int) -> Iterator[Progress]:
    with closing(connect(str(photos.database))) as conn:
        progress = Progress(conn, photos.collection, total)
        try:
            yield progress
        finally:
            progress.delete()


def fill(photos: PhotoFolder, embedder: Embedder, exclude: tuple[str, ...], stop: Event, begin: Callable) -> bool:
    """Embed what is new in a folder, and index it. True if the collection has changed.

    stop: ends the run after what is being embedded now, which is written. begin: called when the folder has been read.
    """
    check_folder(photos.folder)
    with closing(sqlite3.connect(photos.database, timeout=60)) as conn:
        database = Database(conn)
        with read_source(photos.folder, database, Reading(exclude=exclude)) as source:
            total = source.count or 0
            writer = CollectionWriter(database, photos.collection, embedder)
            begin(total)
            with progress_of(photos, total) as progress:
                outcomes = followed(writer.embed(source.entries), progress, stop)
                became = report_outcomes(outcomes, total, source.notes)
    return is_change(became)


def check_folder(folder: Path) -> None:
    """Raises InputError for a folder that is gone."""
    if not folder.is_dir():
        raise InputError(f"the folder {folder} is gone; its photos stay in the collection until it is there again")


def followed(outcomes: Iterator[Outcome], progress: Progress, stop: Event) -> Iterator[Outcome]:
    """The outcomes until `stop`, each counted. What was embedded is written then."""
    with closing(outcomes):  # type: ignore[type-var]  # it is a generator
        for outcome in outcomes:
            progress.count(outcome)
            yield outcome
            if stop.is_set():
                return


def is_change(became: Counter[str]) -> bool:
    return bool(became["embedded"] or became["copied"])


def index_photos(photos: PhotoFolder) -> None:
    """Index the collection, if it has vectors."""
    with closing(connect(str(photos.database))) as conn:
        collection = open_collection(conn, photos.collection)
        if collection.embed_dim is not None:
            index_one(conn, collection, True)


def say_fault(photos: PhotoFolder, error: Exception) -> None:
    """Say why embedding has ended, and that nothing is lost."""
    reason = str(error)
    if isinstance(error, sqlite3.Error):
        reason = f"{photos.database} cannot be written: {error}; what was embedded before is kept"
    click.echo(f"{photos.collection}: {reason}", err=True)
