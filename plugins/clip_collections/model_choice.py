"""Chooses the model that a command embeds with: the one that is named, else the collection's own, else the default one.

It opens no tower.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from llm_clip_onnx import models
from llm_clip_onnx.errors import InputError, ModelDirError, cited
from llm_clip_onnx.model_dir import default_path, read_manifest

from .collection import columns_of, has_llm_tables, incomparable, open_collection, rows
from .index.build import connect


def chosen_model(
    model_dir: Path | None, database: Path | None = None, collection: str | None = None, named: str | None = None
) -> tuple[str, Path]:
    """The id of the model and its directory. model_dir: a model directory, or a folder of several.

    Raises InputError for a model that is not here, and ModelDirError.
    """
    path = model_dir or default_path()
    known = model_of_collection(database, collection) if database and collection else None
    usual = models.default_id(path) if known else id_for_new(path)
    model_id = named or (known if known in models.directories(path) else usual)
    assert model_id is not None
    return model_id, models.path_of(model_id, path)


def id_for_new(path: Path) -> str:
    """The id that new collections get where no model is named: of one model directory, its id in the catalogue."""
    usual = models.default_id(path)
    return usual if models.members_of(path) else models.catalogue_id(path) or usual


def model_to_search(
    model_dir: Path | None, database: Path, collection: str, named: str | None = None
) -> tuple[str, Path]:
    """The id of a collection's model, and the directory of the model that embeds queries: that one, or `named`.

    Raises InputError if one of them is not here, or if their vectors cannot be compared, and as chosen_model.
    """
    path = model_dir or default_path()
    known = model_of_collection(database, collection)
    if known is not None and known not in models.directories(path):
        raise InputError(
            f"the collection {cited(collection)} is of the model {cited(known)}, which is not in {path}; "
            f"{models.listed(models.ids(path))}"
        )
    own, directory = chosen_model(model_dir, database, collection)
    if named in (None, own):
        return own, directory
    asked = models.path_of(named, path)
    if not models.exchangeable(read_manifest(directory), read_manifest(asked)):
        raise InputError(incomparable(collection, own, named))
    return own, asked


def model_of_collection(database: Path, name: str) -> str | None:
    """The id of the model of a collection of llm's; None if there is no such collection yet, or no such file."""
    with suppress(sqlite3.Error), closing(connect(str(database), reads_only=True)) as conn:
        if has_llm_tables(conn):
            for (model_id,) in rows(conn, "select model from main.collections where name = ?", [name]):
                return model_id
    return None  # what is wrong with the file is said when it is used


def check_needs_conversion(conn: sqlite3.Connection, name: str, model_id: str, model_dir: Path | None) -> None:
    """Raises InputError if another model is to embed a collection of images, and would give the same vectors."""
    path = model_dir or default_path()
    known = open_collection(conn, name).model or ""
    directories = models.directories(path).get(known, [])
    if known == model_id or len(directories) != 1 or not has_images_alone(conn, name):
        return
    with suppress(ModelDirError):
        if models.exchangeable(read_manifest(directories[0]), read_manifest(models.path_of(model_id, path))):
            raise InputError(
                f"the collection {cited(name)} is searched with the model {cited(model_id)} as it is: that embeds"
                f" images with the image tower of {cited(known)}, so a conversion would change nothing"
            )


def has_images_alone(conn: sqlite3.Connection, name: str) -> bool:
    """True if a collection of llm's has images, stored or of a folder, and no stored text."""
    sources = ["embeddings where content_blob is not null and", "clip_files where"]
    of_collection = "collection_id = (select id from main.collections where name = ?) limit 1"
    if rows(conn, f"select 1 from main.embeddings where content is not null and {of_collection}", [name]):
        return False
    there = [source for source in sources if columns_of(conn, source.split()[0])]
    return any(rows(conn, f"select 1 from main.{source} {of_collection}", [name]) for source in there)
