"""Writes a folder that can be deployed: copies of databases without anything private, the models, and a Dockerfile.

In a clone the folder is what the clone's own Dockerfile needs, which bakes the models again. Elsewhere it has a smaller
Dockerfile, which installs this version and copies the model directories.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain, count
from pathlib import Path

import click
from PIL import Image, ImageOps

from llm_clip_onnx import __version__
from llm_clip_onnx.errors import InputError, cited, counted
from llm_clip_onnx.images.limits import OWN_MACHINE
from llm_clip_onnx.images.preprocess import open_image

from .collection import columns_of, llm_collection_names, open_collection, rows
from .entry import read_file
from .index import build
from .photo_folders import PhotoFolder, folders_of, home, path_within
from .published_models import CLONE, DEMO, Served, build_arguments, copy_models, reads_as_open_clip

PUBLISHED = Path(__file__).parent / "published"
OF_CLONE = (  # what .dockerignore lets through, and what it needs beside that
    *("Dockerfile", ".dockerignore", "fly.toml", "pyproject.toml", "README.md", "LICENSE", "metadata.json"),
    *("plugins", "deploy", "demo/checkpoint", "demo/emoji.txt"),
)
NOT_COPIED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.db", "*.db-*", "*.sqlite*", ".*.swp")
# Hashes of folders and the times of files; how far embedding was; vectors and ids of an unfinished conversion.
PRIVATE_TABLES = ("clip_files", "clip_filling", "clip_conversion")
PLACES = ("latitude", "longitude")  # keys of metadata
HASH = re.compile("-[0-9a-f]{8}$")  # see photo_folders.database_of
SELECT_IDS = """
select collections.id, embeddings.id from main.embeddings join main.collections on collections.id = collection_id
where collections.name = ?
"""
DEPLOY = """{folder} can be deployed, with Docker or on Fly.io under a name that you choose:
  docker build -t photos {argument}
  fly apps create YOUR-NAME
  fly deploy {argument} --app YOUR-NAME --ha=false"""
QUALITY = 90  # of published originals


def is_clone() -> bool:
    """True if this runs from a clone of the repository."""
    return (CLONE / "Dockerfile").is_file() and (CLONE / DEMO).is_dir()


def publish(
    databases: Iterable[Path], photos: Sequence[PhotoFolder], served: Served, to: Path, with_originals: bool
) -> None:
    """Write the folder `to`, which check_destination has allowed. served: the models by their ids."""
    place = copy_clone(served, to) if is_clone() else copy_package(served, to)
    for database, name in public_names(databases).items():
        originals = folders_to_show(database, photos) if with_originals else []
        publish_database(database, place / f"{name}.db", originals)
    click.echo(DEPLOY.format(folder=to, argument=shlex.quote(str(to))), err=True)


def check_destination(to: Path, folders: Iterable[Path]) -> None:
    """Raises InputError if nothing may be written into `to`: it holds something else, or is among these photos."""
    for folder in folders:
        if to.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{to} is inside of {folder}, and nothing is written among the photos: choose another")
    there = next(path for path in [to.absolute(), *to.absolute().parents] if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{to} cannot be written: {there} allows no new files")
    if there == to.absolute() and any(to.iterdir()) and not (to / "fly.toml").is_file():
        raise InputError(f"{to} is not empty, and was not written by --publish: choose another folder")


def folders_to_show(database: Path, photos: Iterable[PhotoFolder] = ()) -> list[PhotoFolder]:
    """The folders of a database whose originals are published: those of `photos`, else all that are remembered.

    Raises InputError if there are none.
    """
    given = [one for one in photos if one.database == database]
    remembered = [PhotoFolder(folder, database, name) for name, folder in folders_of(database).items()]
    if found := given or [one for one in remembered if one.folder.is_dir()]:
        return found
    raise InputError(
        f"{database} has no folder that is known and there, so --with-originals finds no photos: "
        "name the folder too, with -d and -c, or leave --with-originals out"
    )


def public_names(databases: Iterable[Path]) -> dict[Path, str]:
    """Names for the copies of databases: their own, without the hash of a folder's path."""
    names: dict[Path, str] = {}
    for database in databases:
        name = HASH.sub("", database.stem) if database.parent == home().resolve() else database.stem
        numbered = (f"{name}_{number}" for number in count(2))
        names[database] = next(each for each in chain([name], numbered) if each not in names.values())
    return names


def copy_clone(served: Served, to: Path) -> Path:
    """Copy what the clone's Dockerfile needs, to bake the same models. Returns the folder of databases."""
    arguments = build_arguments(served, to)  # which may refuse
    for name in OF_CLONE:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (CLONE / name).is_dir():
            shutil.copytree(CLONE / name, to / name, ignore=NOT_COPIED, dirs_exist_ok=True)
        else:
            shutil.copy(CLONE / name, to / name)
    toml, dockerfile = to / "fly.toml", to / "Dockerfile"
    give_memory(served, toml)
    lines = "\n".join(f"  {name} = {json.dumps(value)}" for name, value in arguments.items())
    without_name = toml.read_text().replace(line_of("app =", toml) + "\n", "")  # it is that of the clone's own server
    toml.write_text(without_name.replace(line_of("  CLIP_MODEL =", toml), lines))
    for name, value in arguments.items():  # so that docker build needs no arguments
        dockerfile.write_text(
            dockerfile.read_text().replace(
                line_of(f"ARG {name}=", dockerfile), f"ARG {name}={quoted_argument(value)}", 1
            )
        )
    return to / "deploy" / "databases"


def quoted_argument(value: str) -> str:
    """A value as ARG of a Dockerfile has it."""
    return json.dumps(value) if " " in value else value


def give_memory(served: Served, toml: Path) -> None:
    """Let a machine of several models have twice the memory, because the towers of two are open at once."""
    if len(served) > 1:
        toml.write_text(toml.read_text().replace('memory = "512mb"', 'memory = "1gb"'))


def line_of(beginning: str, file: Path) -> str:
    """The first line of a file that begins so."""
    return next(line for line in file.read_text().splitlines() if line.startswith(beginning))


def copy_package(served: Served, to: Path) -> Path:
    """Copy the models and the package's Dockerfile. Returns the folder of databases."""
    (to / "srv").mkdir(parents=True, exist_ok=True)
    copy_models(served, to / "model")
    extra = "[open-clip]" if any(map(reads_as_open_clip, served.values())) else ""
    dockerfile = (PUBLISHED / "Dockerfile").read_text().replace("==VERSION", f"{extra}=={__version__}")
    (to / "Dockerfile").write_text(dockerfile)
    shutil.copy(PUBLISHED / "fly.toml", to)
    give_memory(served, to / "fly.toml")
    for name in ("metadata.json", "settings.json"):
        shutil.copy(PUBLISHED / name, to / "srv")
    return to / "srv"


def publish_database(database: Path, to: Path, originals: Sequence[PhotoFolder]) -> None:
    """Copy a database without places, private tables and originals, but for those of these folders, and index it."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    with closing(build.connect(str(database), reads_only=True)) as conn:
        conn.execute("vacuum into ?", [str(to)])
    with closing(build.connect(str(to))) as conn:
        conn.execute("pragma secure_delete = on")
        remove_private(conn)
        for photos in originals:
            store_originals(conn, photos)
        conn.execute("vacuum")
        renumber_thumbnails(conn)
        for name in llm_collection_names(conn):
            if (collection := open_collection(conn, name)).embed_dim is not None:
                build.index(conn, collection)
        conn.execute("pragma journal_mode = delete")


def remove_private(conn: sqlite3.Connection) -> None:
    """Delete places, originals, and the tables that only filling needs."""
    for table in PRIVATE_TABLES:
        conn.execute(f"drop table if exists main.{table}")
    if columns_of(conn, "clip_collection_facts"):
        conn.execute("update main.clip_collection_facts set places = 0")
    if {"metadata", "content_blob"} <= columns_of(conn, "embeddings").keys():
        conn.execute("update main.embeddings set content_blob = null where content_blob is not null")
        paths = ", ".join(f"'$.{key}'" for key in PLACES)
        conn.execute(f"update main.embeddings set metadata = json_remove(metadata, {paths}) where json_valid(metadata)")


def store_originals(conn: sqlite3.Connection, photos: PhotoFolder) -> None:
    """Store a folder's photos in content_blob: upright, in full size, without what is written in them beside pixels."""
    leading_out = 0
    for key, id in rows(conn, SELECT_IDS, [photos.collection]):
        file = path_within(photos.folder, id)
        if file is None and os.path.exists(photos.folder / id):
            leading_out += 1
            continue
        try:
            image = public_image(read_file(file or photos.folder / id))
        except InputError as error:
            click.echo(f"{cited(id)} is published without its original: {error}", err=True)
            continue
        conn.execute("update main.embeddings set content_blob = ? where collection_id = ? and id = ?", [image, key, id])
    if leading_out:
        click.echo(
            f"{photos.collection}: {counted(leading_out, 'photo')} published without the original, which is outside of"
            " the folder",
            err=True,
        )


def public_image(content: bytes) -> bytes:
    """An image as a JPEG, upright, without EXIF, XMP and comments. Raises InputError."""
    try:
        upright = ImageOps.exif_transpose(open_image(content, OWN_MACHINE)).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"it cannot be read: {error}") from error
    clean = Image.new("RGB", upright.size)
    clean.paste(upright)
    stream = io.BytesIO()
    clean.save(stream, "JPEG", quality=QUALITY, icc_profile=upright.info.get("icc_profile"))
    return stream.getvalue()


def renumber_thumbnails(conn: sqlite3.Connection) -> None:
    """Give the thumbnails of llm's collections the rowids that VACUUM has given to their rows."""
    if not columns_of(conn, "clip_thumbnails") or not columns_of(conn, "collections"):
        return
    conn.execute(
        "update main.clip_thumbnails set row = (select embeddings.rowid from main.embeddings"
        " join main.collections on collections.id = embeddings.collection_id"
        " where collections.name = clip_thumbnails.collection and embeddings.id = clip_thumbnails.id)"
        " where collection in (select name from main.collections)"
    )
