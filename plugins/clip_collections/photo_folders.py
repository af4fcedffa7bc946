"""Names and creates the database and the collection of a folder of photos, and remembers which folder it is of.

Both are in `llm`'s user folder: nothing is written among the photos, and no path of a folder into a database.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import unicodedata
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_clip_onnx.errors import InputError, cited

if TYPE_CHECKING:
    from llm import EmbeddingModel

MOST_LETTERS = 40  # of a folder's name in that of its database


@dataclass(frozen=True)
class PhotoFolder:
    """A folder of photos, and the database and the collection that its photos are embedded into."""

    folder: Path
    database: Path
    collection: str


def home() -> Path:
    """The folder of databases in `llm`'s user folder; made if there is none."""
    import llm

    try:
        path = llm.user_dir() / "clip"
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be made ({error.strerror}); set LLM_USER_PATH or -d") from error
    return path


def path_within(folder: Path, id: str) -> Path | None:
    """The file that an id names in a folder, links followed. None if it is outside of it, or if there is none."""
    if not id or Path(id).is_absolute() or ".." in Path(id).parts:
        return None
    try:
        inside = folder.resolve(strict=True)
        path = (inside / id).resolve(strict=True)
        return path if path.is_relative_to(inside) and path.is_file() else None
    except (OSError, ValueError, RuntimeError):  # NUL, lone surrogates, links in a circle
        return None


def hash_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:8]


def database_of(folder: Path) -> Path:
    """The database of a folder if none is named: in `home()`, by the folder's name and its path."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in folder.name)[:MOST_LETTERS].strip("-")
    return home() / f"{letters or 'photos'}-{hash_of(folder)}.db"


def name_of(folder: Path, parents: int = 0) -> str:
    """A name for a folder's collection, with those of so many parents before it: "photos", "2019/photos"."""
    name = "/".join(folder.parts[-1 - parents :]).lstrip("/")
    shown = "".join("_" if unicodedata.category(letter) in ("Cc", "Cs") else letter for letter in name)
    return shown if shown.strip() else "photos"


def new_name(folder: Path, taken: set[str]) -> str:
    """A name that no collection of another folder has: the folder's own, or with as many parents as it needs."""
    names = [name_of(folder, parents) for parents in range(len(folder.parts))]
    return next((name for name in names if name not in taken), f"{names[0]} {hash_of(folder)}")


def record_of(database: Path) -> Path:
    """The file that remembers the folders of a database's collections."""
    return home() / f"folders-{hash_of(database.resolve())}.json"


def read_record(file: Path) -> tuple[Path, dict[str, Path]]:
    """The database and the folders of its collections in a file that remembers them. Raises OSError, ValueError."""
    record = json.loads(file.read_text())
    return Path(record["database"]), {name: Path(folder) for name, folder in record["folders"].items()}


def folders_of(database: Path) -> dict[str, Path]:
    """The folders of a database's collections by the collections' names, as far as they are remembered."""
    with suppress(OSError, ValueError, LookupError):
        return read_record(record_of(database))[1]
    return {}


def all_photo_folders() -> Iterator[PhotoFolder]:
    """Every folder that is remembered, with its database that still exists."""
    for file in sorted(home().glob("folders-*.json")):
        with suppress(OSError, ValueError, LookupError):
            database, folders = read_record(file)
            if database.exists():
                yield from (PhotoFolder(folder, database, name) for name, folder in folders.items())


def remember(photos: PhotoFolder) -> None:
    """Remember the folder of a collection."""
    folders = folders_of(photos.database) | {photos.collection: photos.folder}
    record = {
        "database": str(photos.database.resolve()),
        "folders": {name: str(path) for name, path in folders.items()},
    }
    file = record_of(photos.database)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(record, indent=1))
    unfinished.replace(file)


def photo_folder(folder: Path, database: Path | None, name: str | None) -> PhotoFolder:
    """The database and the collection of a folder: those it had before, the ones that are given, or new ones.

    Raises InputError if the collection that is named is another folder's.
    """
    folder = folder.resolve()
    database = (database or database_of(folder)).resolve()
    known = folders_of(database)
    if name is not None and known.get(name, folder) != folder:
        raise InputError(
            f"the collection {cited(name)} of {database} is of the folder {known[name]}; choose another with -c or -d"
        )
    names = [collection for collection, path in known.items() if path == folder]
    taken = {photos.collection for photos in all_photo_folders() if photos.folder != folder}
    return PhotoFolder(folder, database, name or next(iter(names), None) or new_name(folder, taken))


def create(photos: PhotoFolder, model: EmbeddingModel) -> None:
    """Create the database and the collection, empty, unless they exist."""
    import llm
    from sqlite_utils import Database

    photos.database.parent.mkdir(parents=True, exist_ok=True)
    is_new = not photos.database.exists()
    with closing(sqlite3.connect(photos.database, timeout=60)) as conn:
        if is_new:
            conn.execute("pragma journal_mode = wal")  # so that searches and the embedding do not wait for each other
        llm.Collection(photos.collection, Database(conn), model=model)


@contextmanager
def only_writer(database: Path) -> Iterator[bool]:
    """A context with True if no other `llm clip serve` embeds into a database meanwhile. It ends with the process.

    The lock is SQLite's own on an empty file, because that is released on every system when a process is killed.
    """
    file = home() / f"lock-{hash_of(database.resolve())}"
    lock = sqlite3.connect(file, timeout=0, isolation_level=None)
    try:
        try:
            lock.execute("begin exclusive")
        except sqlite3.OperationalError:
            yield False
        else:
            yield True
    finally:
        lock.close()
