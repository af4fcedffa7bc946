"""Chooses the model that a command embeds with: the one that is named, else the collection's own, else the default one.

It opens no tower.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from llm_clip_onnx import models
from llm_clip_onnx.model_dir import default_path

from .collection import has_llm_tables, rows
from .index.build import connect


def chosen_model(
    model_dir: Path | None, database: Path | None = None, collection: str | None = None, named: str | None = None
) -> tuple[str, Path]:
    """The id of the model and its directory. model_dir: a model directory, or a folder of several.

    Raises InputError for a model that is not here, and ModelDirError.
    """
    path = model_dir or default_path()
    known = model_of_collection(database, collection) if database and collection else None
    model_id = named or (known if known in models.directories(path) else models.default_id(path))
    assert model_id is not None
    return model_id, models.path_of(model_id, path)


def model_of_collection(database: Path, name: str) -> str | None:
    """The id of the model of a collection of llm's; None if there is no such collection yet, or no such file."""
    with suppress(sqlite3.Error), closing(connect(str(database), reads_only=True)) as conn:
        if has_llm_tables(conn):
            for (model_id,) in rows(conn, "select model from main.collections where name = ?", [name]):
                return model_id
    return None  # what is wrong with the file is said when it is used
