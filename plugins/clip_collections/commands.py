"""The commands `llm clip embed`, `index`, `convert` and `forget`: their options, their progress and what they say."""

from __future__ import annotations

import sqlite3
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_clip_onnx.commands import ClipCommand
from llm_clip_onnx.errors import InputError, cited, counted, printable

from .entry import is_blank

if TYPE_CHECKING:
    from .collection import Collection
    from .forget import Forgotten
    from .sources import Source
    from .writer import Outcome

existing_database = click.option(
    "-d",
    "--database",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="SQLite file [default: the one in which `llm clip serve` keeps the collection]",
)

OUTCOMES = {  # the words of the summary for each Outcome.became
    "embedded": "embedded",
    "copied": "with the same content as another",
    "moved": "moved",
    "there": "there already",
    "empty": "without a text",
    "bad": "that could not be read",
}
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t"}


def check_name(context: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    """The name that was given. Raises BadParameter for a blank one and for control characters, which no page shows."""
    if name is None:
        return None
    if is_blank(name) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
        raise click.BadParameter(f"{cited(name)}; expected a name that is not blank and has no control characters")
    return name


def read_delimiter(context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    """The delimiter that was given, `tab` as a tab. Raises BadParameter if it is not one character."""
    delimiter = DELIMITER_NAMES.get(given, given) if given is not None else None
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise click.BadParameter(f"{cited(delimiter)}; expected one character, or tab")
    return delimiter


@click.command(cls=ClipCommand)
@click.argument("source", type=click.Path(exists=True, allow_dash=True, path_type=Path))
@click.option("-d", "--database", type=click.Path(dir_okay=False, path_type=Path), required=True, help="SQLite file")
@click.option(
    "-c", "--collection", required=True, callback=check_name, help="Collection to embed into; made if there is none"
)
@click.option("--model", "model_id", help="Model, where there are several [default: the collection's, else clip]")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("--sql", help="Query for the rows, where SOURCE is a SQLite file")
@click.option("--image", help="Column with images: paths of files, relative to SOURCE's folder, BLOBs or data URIs")
@click.option("--metadata", multiple=True, help="Column to keep as metadata, not to embed; may be given again")
@click.option("--delimiter", callback=read_delimiter, help="Delimiter of CSV, or tab [default: told from its lines]")
@click.option("--encoding", help="Encoding of a file of rows [default: UTF-8, UTF-16 or cp1252, told from its bytes]")
@click.option("--exclude", multiple=True, help="Pattern of files and folders to leave out; may be given again")
@click.option("--store", is_flag=True, help="Keep the texts and images too, in content and content_blob")
@click.option("--no-thumbnails", is_flag=True, help="Write no thumbnails of the images")
@click.option(
    "--gps/--no-gps",
    default=None,
    help="Keep the places of a folder's photos in metadata, or not [default: as before, at first not]",
)
@click.option("--prune", is_flag=True, help="Remove the rows of files that are gone from the folder")
@click.option(
    "--orient",
    type=click.Choice(["exif", "none"]),
    help="Turn photos upright as their EXIF says, or read them as llm-clip does [default: as the collection was made; a"
    " new one of a folder: exif]",
)
@click.option("--force", is_flag=True, help="Embed again the entries that the collection has")
def embed(
    source: Path,
    database: Path,
    collection: str,
    model_id: str | None,
    model_dir: Path | None,
    sql: str | None,
    image: str | None,
    metadata: tuple[str, ...],
    delimiter: str | None,
    encoding: str | None,
    exclude: tuple[str, ...],
    store: bool,
    no_thumbnails: bool,
    gps: bool | None,
    prune: bool,
    orient: str | None,
    force: bool,
):
    """Embed a folder of images, or rows, into a collection

    SOURCE is a folder, or a CSV, TSV, JSON or JSONL file of rows with the id first, or - for such rows from standard
    input, or a SQLite file with --sql. What the collection has already is not embedded again. What cannot be read is
    left out, named at the end, and ends the command with 1. Images get thumbnails, and those of a folder metadata: when
    and with which camera they were taken, their size and folder.
    """
    from sqlite_utils import Database

    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.images.limits import OWN_MACHINE
    from llm_clip_onnx.llm_model import model_of
    from llm_clip_onnx.towers import available_cores

    from .fill import Fill
    from .model_choice import chosen_model
    from .origin import model_key
    from .sources import Reading, read_source
    from .writer import CollectionWriter, Embedder

    model_id, path = chosen_model(model_dir, database, collection, model_id)
    engine = Engine(path, OWN_MACHINE, image_threads=1)  # because available_cores() images are embedded at once
    embed_item, model = engine.embed_item, model_key(engine.manifest)
    embedder = Embedder(model_of(model_id), engine.manifest.embed_dim, embed_item, available_cores(), embed_item, model)
    try:
        with connected(database) as connection:
            to = Database(connection)
            reading = Reading(sql, image, metadata, delimiter, encoding, exclude)
            with read_source(source, to, reading) as found:
                if not prune:  # which has a sentence of its own
                    check_images(found)
                writer = CollectionWriter(
                    to, collection, embedder, orient, store, force, not no_thumbnails, gps, found.folder
                )
                fill = Fill(writer, found, prune)
                noun = "row" if found.folder is None else "image"
                became = report_outcomes(fill.run(), found.count, noun, lambda: fill.notes)
    except sqlite3.Error as error:
        raise InputError(f"{database}: {error}") from error
    check_outcomes(became)


@contextmanager
def connected(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection that writes. A new file in which nothing was written is removed."""
    is_new = not database.exists()
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            yield connection
    finally:
        if is_new and database.exists() and not database.stat().st_size:
            database.unlink()


def report_outcomes(
    outcomes: Iterable[Outcome], count: int | None, noun: str, notes: Callable[[], Sequence[str]]
) -> Counter[str]:
    """Show the progress of embedding, then the reasons of bad entries and a summary. Returns numbers by Outcome.became.

    count: of the entries, None if unknown. noun: what one of them is called. notes: called at the end, sentences for
    the summary.
    """
    became: Counter[str] = Counter()
    bad, start_s = [], time.monotonic()

    def rate(_) -> str:
        return f"{became['embedded'] / (time.monotonic() - start_s):.1f} a second"

    bar = click.progressbar(outcomes, count, "Embedding", show_pos=True, item_show_func=rate, file=sys.stderr)
    with bar as shown:
        for outcome in shown:
            became[outcome.became] += 1
            bad += [outcome] * (outcome.became == "bad")
    for outcome in bad:
        click.echo(printable(f"{outcome.id}: {outcome.why}"), err=True)
    click.echo("; ".join([summary_of(became, noun, time.monotonic() - start_s), *notes()]), err=True)
    return became


def summary_of(became: Counter[str], noun: str, took_s: float) -> str:
    """How many entries became what: "9 photos: 7 embedded in 0.5 s (14 a second), 2 there already"."""
    total, rate = counted(became.total(), noun), became["embedded"] / max(took_s, 1e-3)
    if not became.keys() - {"there"}:
        return f"nothing new in {total}"
    words = OUTCOMES | {"embedded": f"embedded in {took_s:.1f} s ({rate:,.{0 if rate >= 10 else 1}f} a second)"}
    if len(became) == 1:
        return f"{total} {words[next(iter(became))]}"
    return f"{total}: " + ", ".join(f"{became[key]:,} {words[key]}" for key in OUTCOMES if became[key])


def check_images(source: Source) -> None:
    """Raises ClickException if the source is a folder without images."""
    if source.folder is not None and not source.count:
        nothing = f"there is nothing to embed: no file in {source.folder} is an image"
        raise click.ClickException("; ".join([nothing, *source.notes]))


def check_outcomes(became: Counter[str]) -> None:
    """Raises ClickException if an entry is bad, and if no row has a text."""
    if became["bad"]:
        raise click.ClickException(f"{became['bad']:,} of {became.total():,} could not be embedded")
    if became["empty"] and became["empty"] == became.total():
        raise click.ClickException("there is nothing to embed: no row has a text beside its id and its metadata")


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

    Writes sign bits of the vectors, thumbnails of the images, and the score that unrelated texts reach, into tables of
    the same file, which may be served meanwhile. A run that was ended goes on from where it stopped when it is run
    again.
    """
    from .collection import llm_collection_names, open_collection, table_collection
    from .index.build import connect

    if any(not name.strip() for name in names):
        raise InputError("a name after -c is blank; expected the name of a collection")
    with closing(connect(database)) as conn:
        if table is not None or vector is not None or key is not None or image is not None:
            given = {"table": table, "vector": vector, "id": key, "image": image}
            given = {name: value for name, value in given.items() if value is not None}
            collections = [table_collection(conn, name, given) for name in names or [table or vector or "?"]]
        else:
            collections = [open_collection(conn, name) for name in names or llm_collection_names(conn)]
        if not collections:
            raise InputError(f"{database} has no collections; llm embed-multi and llm clip embed make one")
        for collection in collections:
            index_one(conn, collection, not no_thumbnails)
            measure_floor(conn, collection)


def measure_floor(conn: sqlite3.Connection, collection: Collection) -> None:
    """Measure the floor of a collection, if its model is here; search works without."""
    from llm_clip_onnx import models
    from llm_clip_onnx.engine import engine_of
    from llm_clip_onnx.errors import ModelDirError

    from .floor import write_floor

    with suppress(ModelDirError, ImportError):
        if collection.model in models.ids():
            engine = engine_of(collection.model)
            if engine.manifest.embed_dim == collection.embed_dim:
                write_floor(conn, collection, engine.embed_item)


def index_one(conn: sqlite3.Connection, collection: Collection, with_thumbnails: bool, noun: str = "row") -> None:
    """Index one collection, and say what was done. noun: what one of its rows is called."""
    if collection.embed_dim is None:
        click.echo(f"{collection.name}: there is nothing to index", err=True)
        return
    index_vectors(conn, collection, noun)
    if with_thumbnails:
        make_thumbnails(conn, collection)


def index_vectors(conn: sqlite3.Connection, collection: Collection, noun: str) -> None:
    """Write the sign bits of a collection, and say how many, and how many rows search leaves out."""
    from .collection import from_clause, rows
    from .index import build

    start_s = time.monotonic()
    [(count,)] = rows(conn, f"select count(*) {from_clause(collection)}")
    with click.progressbar(length=count, label=f"{collection.name}: indexing", file=sys.stderr, show_pos=True) as bar:
        report = build.index(conn, collection, bar.update)
    new = f", {report.new:,} of them new" if 0 < report.new < report.vectors else ""
    gone = f", {report.gone:,} gone" if report.gone else ""
    took = f"indexed in {time.monotonic() - start_s:.1f} s"
    click.echo(f"{collection.name}: {counted(report.vectors, noun)} can be searched{new}{gone}; {took}", err=True)
    if report.skipped:
        click.echo(
            f"{collection.name}: search leaves out {counted(report.skipped, noun)} without a usable vector: NULL, of"
            " another size, all zeros, or with infinities or NaN",
            err=True,
        )


def make_thumbnails(conn: sqlite3.Connection, collection: Collection) -> None:
    """Make the thumbnails that are missing, remove those of rows that are gone, and say how many."""
    from . import thumbnails

    start_s, wanted = time.monotonic(), thumbnails.rows_without_thumbnail(conn, collection)
    thumbnails.delete_stale_thumbnails(conn, collection)
    if wanted:
        label = f"{collection.name}: making thumbnails"
        with click.progressbar(length=len(wanted), label=label, file=sys.stderr, show_pos=True) as bar:
            thumbnails.write_thumbnails(conn, collection, wanted, bar.update)
        took = f"in {time.monotonic() - start_s:.1f} s"
        click.echo(f"{collection.name}: {counted(len(wanted), 'thumbnail')} made {took}", err=True)
    if bad := thumbnails.count_unreadable(conn, collection):
        click.echo(f"{collection.name}: no thumbnail of {counted(bad, 'image')} that cannot be read", err=True)


@click.command(cls=ClipCommand)
@click.argument("collection")
@click.option("--model", "model_id", required=True, help="Model to embed with from now on")
@existing_database
@click.option("--model-dir", type=click.Path(path_type=Path), help="Folder of models [default: $CLIP_MODEL_DIR, ...]")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of the files [default: the one that `llm clip serve` remembers]",
)
def convert(collection: str, model_id: str, database: Path | None, model_dir: Path | None, folder: Path | None):
    """Embed a collection anew with another model

    COLLECTION is the name of a collection, or the folder of photos that it was made of. Rows are embedded from their
    stored contents, else from their files, else from their thumbnails, whose vectors are less faithful. A run that was
    ended goes on where it was. The collection keeps its vectors until all are embedded.
    """
    from .index.build import connect
    from .photo_folders import only_writer
    from .photo_search import find_collection

    found = find_collection(collection, database)
    with only_writer(found.database) as is_ours, closing(connect(str(found.database))) as conn:
        if not is_ours:
            raise InputError(f"`llm clip serve` or another conversion writes into {found.database}; end it first")
        run_conversion(conn, found.name, model_id, model_dir, folder or found.folder)


def run_conversion(
    conn: sqlite3.Connection, name: str, model_id: str, model_dir: Path | None, folder: Path | None
) -> None:
    """Convert a collection, say from what, and build its index again if it had one."""
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.images.limits import OWN_MACHINE
    from llm_clip_onnx.towers import available_cores

    from .collection import open_collection
    from .convert import Conversion, Target, has_index
    from .floor import write_floor
    from .model_choice import check_needs_conversion, chosen_model
    from .origin import model_key

    model_id, path = chosen_model(model_dir, named=model_id)
    check_needs_conversion(conn, name, model_id, model_dir)
    engine = Engine(path, OWN_MACHINE, image_threads=1)  # because available_cores() rows are embedded at once
    target = Target(model_id, model_key(engine.manifest), engine.embed_item, available_cores())
    conversion = Conversion(conn, name, target, folder)
    was_indexed = has_index(conn, conversion.collection)
    with click.progressbar(
        length=conversion.count(), label=f"{name}: embedding", file=sys.stderr, show_pos=True
    ) as bar:
        for count in conversion.embed():
            bar.update(count)
    say_converted(name, model_id, conversion.swap())
    if was_indexed:
        after = open_collection(conn, name)
        index_one(conn, after, with_thumbnails=False)
        write_floor(conn, after, engine.embed_item)


def say_converted(name: str, model_id: str, made_from: Counter[str]) -> None:
    """Say which model a collection is of now, and from what its rows were embedded."""
    words = {
        "content": "from stored contents",
        "file": "from files",
        "thumbnail": "from thumbnails, whose vectors are less faithful",
    }
    told = ", ".join(f"{made_from[key]:,} {words[key]}" for key in words if made_from[key])
    click.echo(f"{name}: {counted(made_from.total(), 'row')} embedded with {model_id}: {told}", err=True)


@click.command(cls=ClipCommand)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@existing_database
@click.option("-c", "--collection", required=True, help="Collection to remove them from, or the folder it was made of")
def forget(ids: tuple[str, ...], database: Path | None, collection: str):
    """Remove pictures or texts from a collection, with all that is kept of them

    ID is a row's, or the path of a photo, as `llm clip search --paths` prints it. Vector, thumbnail, content, metadata
    and index entry are overwritten in the file. The photo's own file is not touched: `llm clip embed` and `llm clip
    serve` add it again, unless it is gone or --exclude names it.
    """
    from .forget import forget as forget_rows
    from .forget import ids_of
    from .index.build import connect
    from .photo_search import find_collection

    found = find_collection(collection, database)
    with closing(connect(str(found.database))) as conn:
        forgotten = forget_rows(conn, found.name, ids_of(conn, found.name, ids, found.folder))
    say_forgotten(forgotten, found.name, found.database)
    if forgotten.unknown:
        raise click.ClickException(
            f"{len(forgotten.unknown):,} of {len(ids):,} not found in the collection {found.name}"
        )


def say_forgotten(forgotten: Forgotten, collection: str, database: Path) -> None:
    """Say what was forgotten and what was not, and what may bring it back."""
    for id in forgotten.unknown:
        click.echo(printable(f"{collection} has no {cited(id)}"), err=True)
    if forgotten.ids:
        click.echo(
            f"{len(forgotten.ids):,} forgotten; llm clip embed and llm clip serve add those again whose files are still"
            " in the folder: delete the files first, or name them with --exclude",
            err=True,
        )
    if not forgotten.is_clean:
        click.echo(
            f"another program keeps their bytes in {database}-wal; end it, and run sqlite3 {database} 'pragma"
            " wal_checkpoint(truncate)'",
            err=True,
        )
