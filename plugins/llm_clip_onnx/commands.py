"""What the commands `llm clip bake`, `info`, `verify`, `labels`, `embed` and `index` say; they do it elsewhere."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import ClipError, InputError, ModelDirError

if TYPE_CHECKING:
    from .collection import Collection
    from .embedding import Outcome
    from .model_dir import Manifest

TOLD = {  # what becomes of an entry, as it is said
    "embedded": "embedded",
    "copied": "copied from the same content",
    "there": "there already",
    "bad": "that could not be read",
}


class Sentences(click.Command):
    """A command whose refusals are sentences, not tracebacks."""

    def invoke(self, context: click.Context):
        try:
            return super().invoke(context)
        except ClipError as error:
            raise click.ClickException(str(error)) from error
        except sqlite3.Error as error:
            raise click.ClickException(f"SQLite cannot do this with the file: {error}") from error
        except ImportError as error:
            raise click.ClickException(
                f"{error.name or error} is not installed; `llm clip {self.name}` needs the extra that has it: "
                "in a clone of datasette-clip, pip install '.[bake]', or '.[reference]' to compare with llm-clip"
            ) from error


def clocked() -> Callable[[str], None]:
    """A `say` that begins each line with the seconds since now."""
    begun_s = time.monotonic()
    return lambda line: click.echo(f"{time.monotonic() - begun_s:6.1f} s  {line}", err=True)


@click.group()
def clip():
    "Bake, show and verify CLIP models that are served without torch"
    # datasette-clip's README is the manual


@clip.command(cls=Sentences)
@click.argument("source", default="sentence-transformers/clip-ViT-B-32")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="Model directory to write [default: $CLIP_MODEL_DIR, else clip-model beside llm's files]",
)
@click.option("--revision", help="Branch, tag or commit on the hub")
@click.option("--precision", type=click.Choice(["auto", "fp32", "int8"]), default="auto", show_default=True)
@click.option("--force", is_flag=True, help="Replace a model directory that is there")
def bake(source: str, to: Path | None, revision: str | None, precision: str, force: bool):
    """Turn a CLIP checkpoint into a model directory

    SOURCE is a hub id or a folder. A tower that does not agree with the reference is refused.
    """
    from .bake import bake as bake_it
    from .model_dir import default_path

    bake_it(source, to or default_path(), precision, revision, force, clocked())


@clip.command(cls=Sentences)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is")
def info(directory: Path | None, as_json: bool):
    "Show what is in a model directory"
    from .model_dir import default_path, read_manifest, tower_files

    directory = directory or default_path()
    manifest = read_manifest(directory)
    if as_json:
        click.echo(json.dumps(asdict(manifest), indent=2, ensure_ascii=False))
        return
    source = manifest.source
    rows = [
        ("model directory", str(directory)),
        ("source", source.id + (f" at {source.revision}" if source.revision else "")),
        *([("notice", source.notice)] if source.notice else []),
        *[(f"sha256 of {name}", sha256) for name, sha256 in source.weights_sha256.items()],
        ("embed_dim", f"{manifest.embed_dim}"),
        ("context_length", f"{manifest.context_length} ids"),
        ("image side", f"{manifest.preprocess.crop} pixels"),
        ("logit_scale", f"{manifest.logit_scale:.2f}"),
    ]
    for name, tower in manifest.towers.items():
        bytes_ = sum(manifest.files[file].bytes for file in tower_files(manifest, name, signed=False))
        rows.append((f"{name} tower", f"{tower.described}, {bytes_ / 1e6:.1f} MB when opened"))
        for what, result in tower.fidelity.items():
            figures = f"worst cosine {result.worst:.6f}, centred {result.worst_centred:.6f}, of {result.inputs} inputs"
            rows.append((f"  {what}", f"{figures}, {100 * result.neighbours:.1f} % of nearest ones the same"))
    rows += [(f"label set {name}", told) for name, told in label_set_rows(directory, manifest)]
    rows += [("baked", f"{manifest.baked_at} with " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def label_set_rows(directory: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Name of each label set, and its facts, or why it cannot be used."""
    from . import label_sets

    rows = []
    for name in label_sets.names_of(directory):
        try:
            facts = label_sets.read_facts(directory, manifest, name)
        except ModelDirError as error:
            rows.append((name, f"cannot be used: {error}"))
            continue
        templates = repr(facts.templates[0]) if len(facts.templates) == 1 else f"{len(facts.templates)} templates"
        figures = f"{len(facts.labels):,} labels of {facts.source}, {templates}"
        rows.append((name, f"{figures}, unrelated cosine {facts.unrelated_cosine:.3f}, baked {facts.baked_at}"))
    return rows


@clip.command(cls=Sentences)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option(
    "--reference",
    type=click.Choice(["llm-clip"]),
    help="Compare with llm-clip itself, on the checkpoint that was baked",
)
@click.option("--checkpoint", help="Where that checkpoint is now, if not where it was baked from: a hub id or a folder")
def verify(directory: Path | None, reference: str | None, checkpoint: str | None):
    "Open the towers as the server does and check their fidelity; ends with 1 if anything fails"
    from .model_dir import default_path
    from .verify import verify as checks_of

    checks = checks_of(directory or default_path(), reference, checkpoint)
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = click.style("ok    ", fg="green") if check.ok else click.style("FAILED", fg="red")
        click.echo(f"{verdict}  {check.name:<{width}}  {check.found}")
    sys.exit(0 if all(check.ok for check in checks) else 1)


@clip.group()
def labels():
    "Bake and list label sets, which pictures are classified by"


@labels.command("bake", cls=Sentences)
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--labels", "labels_file", type=click.Path(path_type=Path), help="File of labels, one a line")
@click.option(
    "--templates",
    "templates_file",
    type=click.Path(path_type=Path),
    help="File of prompt templates, one a line, each with {}",
)
@click.option("--force", is_flag=True, help="Replace a label set that is there")
def bake_labels(name: str, directory: Path | None, labels_file: Path | None, templates_file: Path | None, force: bool):
    """Make labels a label set of a model directory

    Without --labels, a set that is there is baked again from its own, and imagenet has OpenAI's 1000 names and 80
    templates, from the package open-clip-torch.
    """
    from .bake.labels import bake_labels as bake_them
    from .model_dir import default_path

    bake_them(directory or default_path(), name, labels_file, templates_file, force, clocked())


@labels.command("list", cls=Sentences)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
def list_labels(directory: Path | None):
    "Show the label sets of a model directory"
    from .model_dir import default_path, read_manifest

    directory = directory or default_path()
    rows = label_set_rows(directory, read_manifest(directory))
    width = max((len(name) for name, _ in rows), default=0)
    for name, told in rows:
        click.echo(f"{name:<{width}}  {told}")
    if not rows:
        click.echo(f"{directory} has no label sets; llm clip labels bake makes one", err=True)


@clip.command(cls=Sentences)
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.option("-d", "--database", type=click.Path(dir_okay=False, path_type=Path), required=True, help="SQLite file")
@click.option("-c", "--collection", required=True, help="Collection in it to embed into; made where there is none")
@click.option("--model-dir", type=click.Path(path_type=Path), help="Model directory [default: $CLIP_MODEL_DIR, ...]")
@click.option("--sql", help="Query for the rows, where SOURCE is a SQLite file")
@click.option("--image", help="Column with the paths of images, relative to SOURCE, or with BLOBs")
@click.option("--metadata", multiple=True, help="Column to keep as metadata, not to embed; may be given again")
@click.option("--store", is_flag=True, help="Keep the texts and images too, in content and content_blob")
@click.option("--orient", type=click.Choice(["exif"]), help="Turn photos upright as their EXIF says; llm-clip does not")
@click.option("--force", is_flag=True, help="Embed again what is there already")
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

    from .embedding import Embedding, entries_in
    from .engine import Engine
    from .model_dir import default_path

    engine = Engine(model_dir or default_path(), side_by_side=True)
    try:
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            to = Database(connection)
            count, entries = entries_in(source, to, sql, image, metadata)
            outcomes = Embedding(to, collection, engine, orient, store, force).embed(entries)
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


@clip.command(cls=Sentences)
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
    meanwhile. What is there already is kept, so that it can be ended and run again at any time.
    """
    from .collection import configured, names_of, open_collection
    from .indexing import connected

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
    from . import indexing, thumbnails
    from .collection import rows
    from .search import source

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
