"""Embeds a folder of photos into its collection while it is served, and writes how far it is into clip_filling."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import click
from sqlite_utils import Database

from llm_clip_onnx.errors import InputError

from .collection import open_collection
from .commands import index_one, report_outcomes
from .fill import Fill
from .floor import write_floor
from .folder import read_folder
from .index.build import connect
from .photo_folders import PhotoFolder
from .sources import Reading, Source, read_source
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


@contextmanager
def progress_of(photos: PhotoFolder, total: int) -> Iterator[Progress]:
    with closing(connect(str(photos.database))) as conn:
        progress = Progress(conn, photos.collection, total)
        try:
            yield progress
        finally:
            progress.delete()


def fill(
    photos: PhotoFolder, embedder: Embedder, exclude: tuple[str, ...], force: bool, stop: Event, begin: Callable
) -> None:
    """Bring a collection up to date with its folder, the newest photos first.

    force: embed again what the collection has. stop: ends the run after what is being embedded now, which is written.
    begin: called when the folder has been read.
    Raises InputError for a folder that is gone, or without photos: what is in the collection stays.
    """
    check_folder(photos.folder)
    with closing(sqlite3.connect(photos.database, timeout=60)) as conn:
        database = Database(conn)
        with read_source(photos.folder, database, Reading(exclude=exclude, newest_first=True)) as source:
            check_photos(photos.folder, source)
            name, folder = photos.collection, photos.folder
            writer = CollectionWriter(database, name, embedder, force=force, thumbnails=True, folder=folder)
            run, total = Fill(writer, source, prune=True), source.count or 0
            begin()
            with progress_of(photos, total) as progress:
                outcomes = followed(run.run(), progress, stop)
                report_outcomes(outcomes, total, "photo", lambda: [] if stop.is_set() else run.notes)


def check_folder(folder: Path) -> None:
    """Raises InputError for a folder that is gone."""
    if not folder.is_dir():
        raise InputError(f"the folder {folder} is gone; its photos stay in the collection until it is there again")


def check_photos(folder: Path, source: Source) -> None:
    """Raises InputError for a folder without photos, which may be a disk that is not there."""
    if not any(isinstance(entry.content, Path) for entry in source.entries):
        found = f" ({'; '.join(source.notes)})" if source.notes else ""
        raise InputError(f"there are no photos in {folder}{found}; what is in the collection stays")


def state_of(photos: PhotoFolder, exclude: tuple[str, ...]) -> list[tuple]:
    """The images of a folder with the states of their files, by which two looks at it are compared."""
    return [(entry.id, entry.state) for entry in read_folder(photos.folder, exclude).entries]


def followed(outcomes: Iterator[Outcome], progress: Progress, stop: Event) -> Iterator[Outcome]:
    """The outcomes until `stop`, each counted. What was embedded is written then."""
    with closing(outcomes):  # type: ignore[type-var]  # it is a generator
        for outcome in outcomes:
            progress.count(outcome)
            yield outcome
            if stop.is_set():
                return


def has_rows(photos: PhotoFolder) -> bool:
    """True if a collection has rows."""
    with closing(connect(str(photos.database))) as conn:
        return open_collection(conn, photos.collection).embed_dim is not None


def index_photos(photos: PhotoFolder, embedder: Embedder) -> None:
    """Index the collection and measure its floor, if it has vectors."""
    with closing(connect(str(photos.database))) as conn:
        collection = open_collection(conn, photos.collection)
        if collection.embed_dim is not None:
            index_one(conn, collection, True, "photo")
            write_floor(conn, collection, lambda text: embedder.embed_item(text, None))


def say_fault(photos: PhotoFolder, error: Exception) -> None:
    """Say why embedding has ended, and that nothing is lost."""
    reason = str(error)
    if isinstance(error, sqlite3.Error):
        reason = (
            f"{photos.database} cannot be written: {error}; what was embedded before is kept: free some space, and"
            " start again"
        )
    click.echo(f"{photos.collection}: {reason}", err=True)
