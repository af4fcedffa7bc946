"""Defines the commands `llm clip bake`, `models`, `info`, `verify` and `labels`: their options and what they print."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .errors import ClipError, ModelDirError

if TYPE_CHECKING:
    from .model_dir import Manifest, Source


class ClipCommand(click.Command):
    """A click command that prints our errors as one sentence, without a traceback."""

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
                "in a clone of datasette-clip, pip install '.[bake]', or '.[reference]' to compare with other libraries"
            ) from error


def timestamped_echo() -> Callable[[str], None]:
    """A function that prints a line to stderr, after the seconds since the command began."""
    begun_s = time.monotonic() - process_age_s()
    return lambda line: click.echo(f"{time.monotonic() - begun_s:6.1f} s  {line}", err=True)


def process_age_s() -> float:
    """The seconds since this process began, the imports of all plugins among them; 0 where there is no /proc."""
    try:
        stat = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime
    except (OSError, AttributeError, LookupError, ValueError):
        return 0.0


@click.group()
def clip():
    "Bake, show and verify CLIP models that are served without torch"
    # docs/ is the manual


@clip.command(cls=ClipCommand)
@click.argument("source", default="clip")
@click.option(
    "--to",
    type=click.Path(path_type=Path),
    help="Model directory to write [default: $CLIP_MODEL_DIR, else clip-model beside llm's files]",
)
@click.option("--revision", help="Branch, tag or commit on the hub")
@click.option("--images", help="For a text tower alone: the checkpoint of its images, a hub id or a folder")
@click.option("--precision", type=click.Choice(["auto", "fp32", "int8"]), default="auto", show_default=True)
@click.option("--force", is_flag=True, help="Replace a model directory that is there")
def bake(source: str, to: Path | None, revision: str | None, images: str | None, precision: str, force: bool):
    """Turn a CLIP checkpoint into a model directory

    SOURCE is an id that llm clip models shows, a hub id, or a folder: ./clip if it has the name of an id. A tower that
    does not agree with the reference is refused.
    """
    from .bake import bake as bake_it
    from .model_dir import default_path

    bake_it(source, to or default_path(), precision, revision, force, timestamped_echo(), images)


@clip.command(cls=ClipCommand)
@click.option("--json", "as_json", is_flag=True, help="The same and the sources of the figures as JSON")
def models(as_json: bool):
    "Show the models that llm clip bake knows by an id"
    from .catalogue import CATALOGUE, published_lines

    if as_json:
        return click.echo(json.dumps([entry.to_dict() for entry in CATALOGUE], indent=2))
    rows = [entry.cells() for entry in CATALOGUE]
    widths = {title: max(len(title), *(len(row[title]) for row in rows)) for title in rows[0]}
    for row in [{title: title for title in widths}, *rows]:
        click.echo("  ".join(f"{cell:<{widths[title]}}" for title, cell in row.items()).rstrip())
    return click.echo("\n".join(["", *published_lines()]))


@clip.command(cls=ClipCommand)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="The manifest as it is; of several models, a list of them")
def info(directory: Path | None, as_json: bool):
    "Show what is in a model directory, or which models are in a folder of several"
    from . import models
    from .model_dir import default_path, read_manifest, tower_files

    directory = directory or default_path()
    if models.members_of(directory):
        return list_models(directory, as_json)
    manifest = read_manifest(directory)
    if as_json:
        click.echo(manifest.to_json(), nl=False)
        return
    source = manifest.source
    rows = [
        ("model directory", str(directory)),
        *([("model id", manifest.id)] if manifest.id else []),
        ("source", source.id + (f" at {source.revision}" if source.revision else "")),
        *([("notice", source.notice)] if source.notice else []),
        *[(f"sha256 of {name}", sha256) for name, sha256 in source.weights_sha256.items()],
        *(image_rows(manifest.images) if manifest.images else []),
        ("embed_dim", f"{manifest.embed_dim}"),
        ("context_length", f"{manifest.context_length} ids"),
        ("image side", f"{manifest.preprocess.crop} pixels"),
        ("logit_scale", f"{manifest.logit_scale:.2f}"),
        *([] if manifest.logit_bias is None else [("logit_bias", f"{manifest.logit_bias:.2f}")]),
    ]
    for name, tower in manifest.towers.items():
        bytes_ = sum(manifest.files[file].bytes for file in tower_files(manifest, name, signed=False))
        rows.append((f"{name} tower", f"{tower.summary}, {bytes_ / 1e6:.1f} MB when opened"))
        for what, result in tower.fidelity.items():
            figures = f"worst cosine {result.worst:.6f}, centred {result.worst_centred:.6f}, of {result.inputs} inputs"
            rows.append((f"  {what}", f"{figures}, {100 * result.neighbours:.1f} % of nearest ones the same"))
    rows += [(f"label set {name}", told) for name, told in label_set_rows(directory, manifest)]
    rows += [("baked", f"{manifest.baked_at} with " + ", ".join(f"{k} {v}" for k, v in manifest.versions.items()))]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def list_models(folder: Path, as_json: bool) -> None:
    """Print the id, the directory and the source of each model in a folder of several, or what is wrong with it."""
    members = list(member_facts(folder))
    if as_json:
        return click.echo(json.dumps(members, indent=2, ensure_ascii=False))
    width = max(len(member["id"]) for member in members)
    for member in members:
        told = member.get("error") or f"{member['directory']}, of {member['source']['id']}"
        click.echo(f"{member['id']:<{width}}  {told}")
    return None


def member_facts(folder: Path) -> Iterator[dict]:
    """{"id", "directory"} of each model directory in a folder of several, with its manifest, or with "error"."""
    from . import models
    from .model_dir import read_manifest

    for id, paths in models.directories(folder).items():
        for path in paths:
            facts = {"id": id, "directory": str(path)}
            try:
                yield read_manifest(models.path_of(id, folder)).to_dict() | facts
            except ClipError as error:
                yield facts | {"error": str(error)}


def chosen_directory(directory: Path | None) -> Path:
    """The model directory that a command is given, else that of the model that is used where none is named."""
    from . import models

    return directory or models.path_of(models.default_id())


def image_rows(source: Source) -> list[tuple[str, str]]:
    """Where the image tower came from, if it is another checkpoint's."""
    revision = f" at {source.revision}" if source.revision else ""
    return [
        ("images", f"{source.id}{revision}"),
        *[(f"sha256 of its {name}", sha256) for name, sha256 in source.weights_sha256.items()],
    ]


def label_set_rows(directory: Path, manifest: Manifest) -> list[tuple[str, str]]:
    """Name of each label set, and its facts, or why it cannot be used."""
    from . import label_sets

    rows = []
    for name in label_sets.list_names(directory):
        try:
            facts = label_sets.read_facts(directory, manifest, name)
        except ModelDirError as error:
            rows.append((name, f"cannot be used: {error}"))
            continue
        templates = repr(facts.templates[0]) if len(facts.templates) == 1 else f"{len(facts.templates)} templates"
        figures = f"{len(facts.labels):,} labels of {facts.source}, {templates}"
        rows.append((name, f"{figures}, unrelated cosine {facts.unrelated_cosine:.3f}, baked {facts.baked_at}"))
    return rows


@clip.command(cls=ClipCommand)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
@click.option(
    "--reference",
    type=click.Choice(["own", "llm-clip", "sentence-transformers", "open_clip", "transformers"]),
    help="Compare with that library itself, or with the model's own, on the checkpoint that was baked",
)
@click.option("--checkpoint", help="Where that checkpoint is now, if not where it was baked from: a hub id or a folder")
@click.option("--images", help="The same for the checkpoint of its images, where that is another one")
def verify(directory: Path | None, reference: str | None, checkpoint: str | None, images: str | None):
    "Open the towers as the server does and check their fidelity; ends with 1 if anything fails"
    from .bake.verify import verify as checks_of

    checks = checks_of(chosen_directory(directory), reference, checkpoint, images)
    width = max(len(check.name) for check in checks)
    for check in checks:
        verdict = click.style("ok    ", fg="green") if check.ok else click.style("FAILED", fg="red")
        click.echo(f"{verdict}  {check.name:<{width}}  {check.found}")
    sys.exit(0 if all(check.ok for check in checks) else 1)


@clip.group()
def labels():
    "Bake and list label sets, which pictures are classified by"


@labels.command("bake", cls=ClipCommand)
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
    from .bake.label_set import bake_labels as bake_them

    bake_them(chosen_directory(directory), name, labels_file, templates_file, force, timestamped_echo())


@labels.command("list", cls=ClipCommand)
@click.argument("directory", type=click.Path(path_type=Path), required=False)
def list_labels(directory: Path | None):
    "Show the label sets of a model directory"
    from .model_dir import read_manifest

    directory = chosen_directory(directory)
    rows = label_set_rows(directory, read_manifest(directory))
    width = max((len(name) for name, _ in rows), default=0)
    for name, told in rows:
        click.echo(f"{name:<{width}}  {told}")
    if not rows:
        click.echo(f"{directory} has no label sets; llm clip labels bake makes one", err=True)
