"""A database with a collection of pictures that have labels, one without pictures, and tables that lists leave out."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from drawings import FILES, drawing
from llm_clip_onnx.vectors import to_blob
from stored import llms_database

LABELS = ["a yellow face", "a red heart", "IMG_0001.jpg", "id:face", "sad - face", "a blue circle"]
INTERNAL = ("_sqlite_migrations", "clip_index", "clip_thumbnails", "clip_other")


def make_photos(file: Path, embed) -> Path:
    """A database with the collections `photos`, of pictures with labels, and `words`, which has no pictures."""
    with closing(llms_database(str(file), photos={}, words={"one": embed(drawing("face"))})) as db, db:
        for number, label in enumerate(LABELS):
            picture = FILES[number % len(FILES)][1]
            row = [f"id {number}", to_blob(embed(picture)), picture, json.dumps({"label": label})]
            db.execute(
                "insert into embeddings (collection_id, id, embedding, content_blob, metadata) values (1, ?, ?, ?, ?)",
                row,
            )
        for name in INTERNAL:
            db.execute(f"create table {name} (id integer)")
    return file
