"""Brings a collection up to date with a source: embeds new entries, renames rows of moved files, removes gone ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from sqlite_utils import Database

from llm_clip_onnx.errors import InputError

from .collection import open_collection, rows
from .entry import Entry
from .gone import clean_index, delete_rows, gone_ids
from .sources import Source
from .writer import CollectionWriter, Outcome


class Fill:
    """One run that fills a collection. gone: after the run, ids of rows whose files are gone. pruned: True if they were
    removed.

    Raises InputError if `prune` is asked of what is no folder, or of a folder without images.
    """

    def __init__(self, writer: CollectionWriter, source: Source, prune: bool = False):
        self.writer, self.source, self.prune, self.pruned = writer, source, prune, False
        if source.folder is not None:
            entries = list(source.entries)
            writer.gone = gone_ids(writer.db.conn, writer.collection_id, source.folder, entries)
        if prune:
            check_prune(source, len(writer.gone))

    @property
    def gone(self) -> set[str]:
        return self.writer.gone

    def run(self) -> Iterator[Outcome]:
        """Embed the source, and yield the outcome of each entry, as CollectionWriter.embed does it."""
        has_moved = False
        for outcome in self.writer.embed(self.source.entries):
            has_moved = has_moved or outcome.became == "moved"
            yield outcome
        if self.prune and self.gone:
            with self.writer.db.atomic():
                delete_rows(self.writer.db.conn, self.writer.name, self.writer.collection_id, self.gone)
            self.pruned = True
        if self.pruned or has_moved:
            clean_index_of(self.writer.db, self.writer.name)

    @property
    def notes(self) -> list[str]:
        """Sentences for the end of the summary."""
        count = len(self.gone)
        if not count:
            return [*self.source.notes]
        if self.pruned:
            return [*self.source.notes, f"{count:,} gone from the folder, so removed from the collection"]
        return [*self.source.notes, f"{count:,} gone from the folder and still in the collection: --prune removes them"]


def check_prune(source: Source, gone: int) -> None:
    """Raises InputError if rows should not be removed for this source."""
    if source.folder is None:
        raise InputError("--prune is only for a folder: rows that are not in this source may come from another one")
    entries: Sequence[Entry] = list(source.entries)
    if not any(isinstance(entry.content, Path) for entry in entries):
        raise InputError(
            f"{source.folder} has no images, so --prune would remove all of its {gone:,} from the collection; is it the"
            " right folder, and is its disk there?"
        )


def clean_index_of(database: Database, name: str) -> None:
    """Take the rows that are gone out of the index of a collection, by a connection of its own."""
    from .index.build import connect

    file = next(path for _, schema, path in rows(database.conn, "pragma database_list") if schema == "main")
    if not file:
        return
    with closing(connect(file)) as conn:
        clean_index(conn, open_collection(conn, name))
