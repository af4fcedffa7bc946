"""Keeps how a collection was made, and the state of its folder's files, in its database.

    clip_collection_facts   a row per collection: source, orient, model, places
    clip_files              a row per image of a folder: size and times of its file when it was read

No path of the folder is kept, only a hash that tells two folders apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from sqlite3 import Connection
from typing import Literal, NamedTuple

from llm_clip_onnx.errors import InputError, shortened
from llm_clip_onnx.model_dir import Manifest

from .collection import columns_of, rows
from .entry import FileState

SCHEMA = """
create table if not exists main.clip_collection_facts (
    collection_id integer primary key,
    source text,
    orient text,
    model text,
    places integer
);
create table if not exists main.clip_files (
    collection_id integer,
    id text,
    folder text,
    bytes integer,
    modified_ns integer,
    changed_ns integer,
    content_hash blob,
    primary key (collection_id, id)
);
"""
SELECT_STATES = """
select id, bytes, modified_ns, changed_ns from main.clip_files join main.embeddings
using (collection_id, id, content_hash) where collection_id = ?
"""
SourceKind = Literal["folder", "rows"]


class Origin(NamedTuple):
    """How a collection was made. source: from a folder or from rows. orient: see Engine.embed_images.

    model: sha256 of the image tower, None if not all of the collection is known to be of one. places: True if metadata
    has the places of photos.
    """

    source: SourceKind
    orient: str | None
    model: str | None
    places: bool


def read_origin(conn: Connection, collection_id: int) -> Origin | None:
    """How a collection was made; None for one that llm, llm-clip or an earlier version has made."""
    if "places" not in columns_of(conn, "clip_collection_facts"):
        return None
    sql = "select source, orient, model, places from main.clip_collection_facts where collection_id = ?"
    facts = rows(conn, sql, [collection_id])
    if not facts:
        return None
    source, orient, model, places = facts[0]
    return Origin(source, orient, model, bool(places))


def write_origin(conn: Connection, collection_id: int, origin: Origin) -> None:
    """Write how a collection was made. The caller commits."""
    sql = "insert or replace into main.clip_collection_facts values (?, ?, ?, ?, ?)"
    conn.execute(sql, [collection_id, *origin])


def next_origin(
    name: str,
    known: Origin | None,
    has_rows: bool,
    is_folder: bool,
    orient: str | None,
    places: bool | None,
    force: bool,
) -> Origin:
    """How the collection `name` is filled further: as it was made, or by the options that are given.

    orient: "exif", "none", or None if it is not given: then a new collection of a folder is read upright. Raises
    InputError if a collection with rows was made with another one, unless `force`.
    """
    usual = known.orient if known else "exif" if is_folder and not has_rows else None
    chosen = {"exif": "exif", "none": None}[orient] if orient else usual
    if known and has_rows and chosen != known.orient and not force:
        raise InputError(
            f"the collection {shortened(name)} was made with --orient {known.orient or 'none'}; --force embeds"
            " everything again, another collection keeps both"
        )
    made = known or Origin("folder" if is_folder else "rows", chosen, None, False)
    return made._replace(orient=chosen, places=made.places if places is None else places)


def model_key(manifest: Manifest) -> str:
    """The sha256 of a model directory's files, which tells whether embeddings are of the same model."""
    files = sorted((name, file.sha256) for name, file in manifest.files.items())
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def folder_key(folder: Path) -> str:
    """A hash of the folder's path, which says nothing of it but whether another one is the same."""
    return hashlib.sha256(str(folder.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]


def read_states(conn: Connection, collection_id: int, *conditions: str) -> dict[str, FileState]:
    """The states of the files, by id, whose rows are as they were written then and meet the SQL conditions."""
    sql = " and ".join([SELECT_STATES, *conditions])
    return {id: FileState(*state) for id, *state in rows(conn, sql, [collection_id])}


def write_states(
    conn: Connection, collection_id: int, folder: str | None, states: Iterable[tuple[str, FileState, bytes]]
) -> None:
    """Write the states of files: (id, state, content hash). The caller commits."""
    sql = "insert or replace into main.clip_files values (?, ?, ?, ?, ?, ?, ?)"
    conn.executemany(sql, [(collection_id, id, folder, *state, content_hash) for id, state, content_hash in states])
