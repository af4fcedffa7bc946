"""The commands `llm clip serve` and `llm clip search`: their options and what they print."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from llm_clip_onnx.commands import ClipCommand
from llm_clip_onnx.errors import InputError, printable

from .commands import check_name, existing_database

WEAK_FROM_HERE = "Weak matches from here."


@click.command(cls=ClipCommand)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-d",
    "--database",
    type=click.Path(dir_okay=False, path_type=Path),
    help="SQLite file [default: one for the folder, in llm's user folder]",
)
@click.option("-c", "--collection", callback=check_name, help="Collection to embed into [default: the folder's name]")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("--exclude", multiple=True, help="Pattern of files and folders to leave out; may be given again")
@click.option("--force", is_flag=True, help="Embed again what the collection has, as after a change of the model")
@click.option("-p", "--port", type=click.IntRange(0, 65535), help="Port [default: 8001, or the next one that is free]")
@click.option("--no-open", is_flag=True, help="Do not open the browser")
@click.option("--watch", is_flag=True, help="Go on looking for new photos")
@click.option(
    "--publish",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write this folder, to be deployed with Docker or Fly.io, instead of serving: with thumbnails, without places",
)
@click.option("--with-originals", is_flag=True, help="Publish the photos too, in full size, without their EXIF")
def serve(
    paths: tuple[Path, ...],
    database: Path | None,
    collection: str | None,
    model_dir: Path | None,
    exclude: tuple[str, ...],
    force: bool,
    port: int | None,
    no_open: bool,
    watch: bool,
    publish: Path | None,
    with_originals: bool,
):
    """Search your photos in the browser

    PATH is a folder of photos, or a database that `llm clip embed` has written. New photos are embedded while the
    others can be searched already. Nothing is written into the folder, and only this machine can open the pages.
    """
    from .serve import Options
    from .serve import serve as serve_paths

    if with_originals and publish is None:
        raise InputError("--with-originals is for --publish")
    options = Options(
        database, collection, model_dir, exclude, force, port, not no_open, watch, publish, with_originals
    )
    serve_paths(paths, options)


@click.command(cls=ClipCommand)
@click.argument("collection")
@click.argument("query", required=False)
@existing_database
@click.option("--model", "model_id", help="Model whose vectors can be compared [default: the collection's]")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("-n", "--number", type=click.IntRange(1, 10_000), default=10, show_default=True, help="Rows to print")
@click.option(
    "--image",
    "images",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Image file to search by; may be given again",
)
@click.option("--like", "likes", multiple=True, metavar="ID", help="Row to search by; may be given again")
@click.option("--json", "as_json", is_flag=True, help="Print an array of objects")
@click.option("--paths", is_flag=True, help="Print paths alone, or ids where no folder is known")
@click.option("-0", "--null", is_flag=True, help="End each path with NUL, not with a new line; implies --paths")
def search(
    collection: str,
    query: str | None,
    database: Path | None,
    model_id: str | None,
    model_dir: Path | None,
    number: int,
    images: tuple[Path, ...],
    likes: tuple[str, ...],
    as_json: bool,
    paths: bool,
    null: bool,
):
    """Find the photos that are most like a text, an image or another photo

    COLLECTION is the name of a collection, or the folder of photos that it was made of. QUERY may add and subtract:
    "red heart - blue", "id:cat.jpg + snow", 0.5*"old car". Prints scores and paths, best first, and where weak
    matches begin.
    """
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.images.limits import OWN_MACHINE

    from .model_choice import model_to_search
    from .photo_search import find_collection, find_rows, read_terms

    file, terms = find_collection(collection, database), read_terms(query, images, likes)
    own, path = model_to_search(model_dir, file.database, file.name, model_id)
    engine = Engine(path, OWN_MACHINE)
    is_own = model_id in (None, own)
    rows = find_rows(file, terms, number, engine.embed_item, engine.manifest.embed_dim, own, is_own)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif paths or null:
        print_paths([row["path"] or str(row["id"]) for row in rows], b"\0" if null else b"\n")
    else:
        print_rows(rows)


def print_rows(rows: list[dict]) -> None:
    """Print scores and paths, and a line before the first weak match."""
    weak = [row for row in rows if "floor" in row and row["score"] < row["floor"]]
    said = "Perhaps nothing here fits these words: all of these are weak matches." if weak == rows else WEAK_FROM_HERE
    for row in rows:
        if weak and row is weak[0]:
            click.echo(said)
        click.echo(f"{row['score']:.4f}  {printable(row['path'] or str(row['id']))}")


def print_paths(paths: list[str], end: bytes) -> None:
    """Print paths as their bytes, which need not be UTF-8."""
    for path in paths:
        click.echo(os.fsencode(path) + end, nl=False)
