"""The commands `llm clip embed` and `llm clip index`: their options, their progress and what they say."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_clip_onnx.commands import ClipCommand
from llm_clip_onnx.errors import InputError

if TYPE_CHECKING:
    from .collection import Collection
    from .writer import Outcome

TOLD = {  # what becomes of an entry, as it is said
    "embedded": "embedded",
    "copied": "copied from the same content",
    "there": "there already",
    "bad": "that could not be read",
}


@click.command(cls=ClipCommand)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("-d", "--database", type=click.Path(dir_okay=False, path_type=Path), required=True, help="SQLite file")
@click.option("-c", "--collection", required=True, help="Collection in it to embed into; made where there is none")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("--sql", help="Query for the rows, where SOURCE is a SQLite file")
@click.option("--image", help="Column with the paths of images, relative to SOURCE, or with BLOBs")
@click.option("--metadata", multiple=True, help="Column to keep as metadata, not to embed; may be given again")
@click.option("--store", is_flag=True, help="Keep the texts and images too, in content and content_blob")
@click.option("--orient", type=click.Choice(["exif"]), help="Turn photos upright as their EXIF says; llm-clip does not")
@click.option("--force", is_flag=True, help="Embed again the entries that the collection has")
def embed(
    source: Path,
    database: Path,
    collection: str,
    model_dir: Path | None,
    sql: str | None,
    image: str | None,
    metadata: tuple[str, ...],
    store: bool,
    orient: str | None,
    force: bool,
):
    """Embed a folder of images, or rows, into a collection

    SOURCE is a folder, or a CSV, TSV, JSON or JSONL file of rows with the id first, or a SQLite file with --sql. What
    the collection has already is not embedded again. What cannot be read is left out, named at the end, and ends the
    command with 1.
    """
    from sqlite_utils import Database

    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.images.limits import OWN_MACHINE
    from llm_clip_onnx.llm_model import CLIP
    from llm_clip_onnx.model_dir import default_path
    from llm_clip_onnx.towers import available_cores

    from .sources import entries_in
    from .writer import Embedder, Embedding

    engine = Engine(model_dir or default_path(), OWN_MACHINE)
    embedder = Embedder(CLIP, engine.manifest.embed_dim, engine.embed_item, available_cores())
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            to = Database(connection)
            count, entries = entries_in(source, to, sql, image, metadata)
            outcomes = Embedding(to, collection, embedder, orient, store, force).embed(entries)
            bad = tell_of(outcomes, count)
    except sqlite3.Error as error:
        raise InputError(f"{database}: {error}") from error
    if bad:
        raise click.ClickException(f"{bad:,} of {count:,} could not be embedded")


def tell_of(outcomes: Iterable[Outcome], count: int) -> int:
    """Show how far embedding is, then what became of all and why some are bad: how many of those."""
    became: Counter[str] = Counter()
    bad, begun_s = [], time.monotonic()

    def rate(_) -> str:
        return f"{became['embedded'] / (time.monotonic() - begun_s):.1f} a second"

    bar = click.progressbar(outcomes, count, "Embedding", show_pos=True, item_show_func=rate, file=sys.stderr)
    with bar as shown:
        for outcome in shown:
            became[outcome.became] += 1
            bad += [outcome] * (outcome.became == "bad")
    for outcome in bad:
        click.echo(f"{outcome.id}: {outcome.why}", err=True)
    told = ", ".join(f"{became[key]:,} {said}" for key, said in TOLD.items() if became[key] or key == "embedded")
    click.echo(f"{told}; {rate(None)}, {time.monotonic() - begun_s:.1f} s", err=True)
    return len(bad)


@click.command(cls=ClipCommand)
@click.argument("database", type=click.Path(exists=True, dir_okay=False))
@click.option("-c", "--collection", "names", multiple=True, help="Collection to index [default: all of llm's]")
@click.option("--table", help="Table with a column of vectors that is no collection of llm's; -c names it")
@click.option("--vector", help="Its column of vectors")
@click.option("--id", "key", help="Its column of ids [default: the primary key]")
@click.option("--image", help="Its column of images")
@click.option("--no-thumbnails", is_flag=True, help="Make no thumbnails of the images that are stored")
def index(
    database: str,
    names: tuple[str, ...],
    table: str | None,
    vector: str | None,
    key: str | None,
    image: str | None,
    no_thumbnails: bool,
):
    """Make search in a collection fast

    Writes sign bits of the vectors, and thumbnails of the images, into tables of the same file, which may be served
    meanwhile. A run that was ended goes on from where it stopped when it is run again.
    """
    from .collection import configured, names_of, open_collection
    from .index.build import connected

    with closing(connected(database)) as conn:
        if table is not None or vector is not None or key is not None or image is not None:
            given = {"table": table, "vector": vector, "id": key, "image": image}
            given = {name: value for name, value in given.items() if value is not None}
            collections = [configured(conn, name, given) for name in names or [table or vector or "?"]]
        else:
            collections = [open_collection(conn, name) for name in names or names_of(conn)]
        if not collections:
            raise InputError(f"{database} has no collections; llm embed-multi and llm clip embed make one")
        for collection in collections:
            index_one(conn, collection, not no_thumbnails)


def index_one(conn: sqlite3.Connection, collection: Collection, thumbnails_too: bool) -> None:
    """Index one collection, and say what was done."""
    from . import thumbnails
    from .collection import rows, source
    from .index import build as indexing

    begun_s = time.monotonic()
    if collection.embed_dim is None:
        click.echo(f"{collection.name}: no vectors", err=True)
        return
    [(count,)] = rows(conn, f"select count(*) {source(collection)}")
    with click.progressbar(length=count, label=f"{collection.name}: vectors", file=sys.stderr, show_pos=True) as bar:
        report = indexing.index(conn, collection, bar.update)
    took_s = time.monotonic() - begun_s
    click.echo(
        f"{collection.name}: {report.vectors:,} vectors in the index, {report.new:,} of them new, {report.gone:,} gone"
        f", {report.skipped:,} rows without a usable vector, {count / max(took_s, 1e-3):,.0f} rows a second",
        err=True,
    )
    if not thumbnails_too:
        return
    begun_s, wanted = time.monotonic(), thumbnails.missing(conn, collection)
    thumbnails.forget_what_is_gone(conn, collection)
    if wanted:
        label = f"{collection.name}: thumbnails"
        with click.progressbar(length=len(wanted), label=label, file=sys.stderr, show_pos=True) as bar:
            thumbnails.make(conn, collection, wanted, bar.update)
        rate = len(wanted) / max(time.monotonic() - begun_s, 1e-3)
        click.echo(f"{collection.name}: {len(wanted):,} thumbnails made, {rate:,.0f} a second", err=True)
    if bad := thumbnails.unreadable(conn, collection):
        click.echo(f"{collection.name}: {bad:,} images cannot be read and have none", err=True)
