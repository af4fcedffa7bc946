"""Finds the rows of a collection that are most like a query, for `llm clip search`, with the files that they are of."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from sqlite3 import Connection

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx import MODEL_ID
from llm_clip_onnx.errors import InputError, cited, shortened
from llm_clip_onnx.images.signatures import format_of, sentence_of
from llm_clip_onnx.vectors import from_blob

from . import query, search
from .collection import Collection, Id, check_model, from_clause, open_collection, quoted, quoted_key, rows
from .entry import read_file
from .floor import floor_of
from .index.build import connect
from .photo_folders import all_photo_folders, folders_of
from .query import Term

DIGITS = 4  # of a score and of the floor
EmbedOne = Callable[[str | bytes], NDArray[np.float32]]
EmbedItem = Callable[[str | bytes, str | None], NDArray[np.float32]]  # with the orientation


@dataclass(frozen=True)
class CollectionFile:
    """A collection in a database, and the folder that its photos are in, None if that is not known."""

    database: Path
    name: str
    folder: Path | None

    def path_of(self, id: Id) -> Path | None:
        """The file of a row, None if the folder is not known."""
        return self.folder / str(id) if self.folder else None


def find_collection(name: str, database: Path | None) -> CollectionFile:
    """The collection of this folder, or of this name: in the database that is given, else in one of `llm clip serve`.

    Raises InputError if there is none, or if it is in several databases.
    """
    if database is not None:
        folders = folders_of(database)
        of_folder = [one for one, folder in folders.items() if is_folder(name, folder)]
        chosen = name if name in folders else next(iter(of_folder), name)
        return CollectionFile(database, chosen, folders.get(chosen))
    known = list(all_photo_folders())
    matches = [one for one in known if is_folder(name, one.folder)] or [one for one in known if one.collection == name]
    if not matches:
        raise InputError(missing(name, [one.collection for one in known]))
    if len(matches) > 1:
        raise InputError(
            f"the collection {cited(name)} is in {len(matches)} databases; choose one: "
            + ", ".join(f"-d {one.database}" for one in matches)
        )
    return CollectionFile(matches[0].database, matches[0].collection, matches[0].folder)


def is_folder(name: str, folder: Path) -> bool:
    return Path(name).resolve() == folder


def missing(name: str, known: Sequence[str]) -> str:
    """The sentence about a collection that no database of `llm clip serve` has."""
    if Path(name).is_dir():
        return f"the photos of {name} are not embedded yet: `llm clip serve {name}` does it, and so does llm clip embed"
    named = f"there are {', '.join(map(cited, known))}" if known else "there are none"
    return f"there is no collection {cited(name)} of `llm clip serve`; {named}. -d names the database of any other"


def read_terms(text: str | None, images: Sequence[Path], likes: Sequence[str]) -> tuple[Term, ...]:
    """The terms of a query, of image files and of rows by their ids. Raises InputError if there are none."""
    terms = [*(query.parse(text) if text is not None and text.strip() else ())]
    terms += [Term("image", read_image(image)) for image in images]
    terms += [Term("id", like) for like in likes]
    if not terms:
        raise InputError("there is nothing to search for; expected a query, --image or --like")
    return query.check_terms(terms)


def read_image(file: Path) -> bytes:
    """The bytes of an image file. Raises InputError that names it."""
    content = read_file(file)
    if format_of(content) is None:
        raise InputError(f"{file}: {sentence_of(content)}")
    return content


def find_rows(
    file: CollectionFile,
    terms: Sequence[Term],
    count: int,
    embed_item: EmbedItem,
    dim: int,
    model_id: str = MODEL_ID,
    is_own: bool = True,
) -> list[dict]:
    """The rows most like the terms, best first: {"id", "score", "path", "metadata"}, path None if it is not known.

    model_id: of the collection's vectors. is_own: False if `embed_item` is another model's; the floor was measured with
    the collection's own. Each row has "floor" too, the score below which a match is weak, if the terms are words and it
    was measured.
    Raises InputError and VectorError.
    """
    with closing(connect(str(file.database), reads_only=True)) as conn:
        collection = open_collection(conn, file.name)
        check_model(collection, model_id, dim)
        embed = partial(embed_term, conn, collection, lambda item: embed_item(item, collection.orient), dim)
        embedding = query.combine(terms, embed)
        hits = search.search(conn, collection, embedding, count)
        has_floor = is_own and all(term.kind == "text" for term in terms)
        floor = floor_of(conn, collection, embedding) if has_floor else None
        metadata = {hit.id: metadata_of(conn, collection, hit.id) for hit in hits}
    return [
        {
            "id": hit.id,
            "score": round(hit.score, DIGITS),
            "path": str(path) if (path := file.path_of(hit.id)) else None,
            "metadata": metadata[hit.id],
        }
        | ({} if floor is None else {"floor": round(floor, DIGITS)})
        for hit in hits
    ]


def embed_term(
    conn: Connection, collection: Collection, embed_item: EmbedOne, dim: int, term: Term
) -> NDArray[np.float32]:
    """The embedding [embed_dim] of one term. Raises InputError."""
    if term.kind == "id":
        return search.stored_vector(conn, collection, str(term.value))
    if term.kind == "text":
        return embed_item(term.value)
    content = term.value if isinstance(term.value, bytes) else decode_base64(term.value)
    return embed_item(content) if term.kind == "image" else from_blob(content, dim)


def decode_base64(text: str) -> bytes:
    """The bytes in base64url, as the pages' links have them. Raises InputError."""
    try:
        return base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError as error:
        raise InputError(f"{cited(text)} is not base64url: {shortened(error)}") from error


def metadata_of(conn: Connection, collection: Collection, id: Id) -> dict | None:
    """What is stored about a row, None if there is nothing."""
    if collection.metadata is None:
        return None
    where = f"{quoted_key(collection)} = ?"
    [(text,)] = rows(conn, f"select {quoted(collection.metadata)} {from_clause(collection, '', where)} limit 1", [id])
    return json.loads(text) if text else None
