"""Puts models into a folder to deploy: the Dockerfile's arguments that bake them again, or copies of their directories.

A container with one model serves it under the id `clip` and its id in the catalogue; with several, each under its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import click

from llm_clip_onnx import MODEL_ID, models
from llm_clip_onnx.errors import ClipError, InputError, cited
from llm_clip_onnx.model_dir import MANIFEST, Manifest, Source, read_manifest, sha256_of

from .collection import has_llm_tables, rows
from .index.build import connect
from .model_choice import chosen_model

CLONE = Path(__file__).parents[2]
DEMO = Path("demo/checkpoint")
RENAME = "convert its collections to a model with an id of the catalogue"
Served = Mapping[str, Path]  # model id -> its model directory


def needed_models(databases: Iterable[Path], model_dir: Path) -> dict[str, Path]:
    """The models that the collections of these databases are of; the default one if none of them is here.

    model_dir: a model directory, whose model is `clip`, or a folder of several. Named are a collection whose model is
    not here, and models that could search the collections but are not published. Raises ClipError if the default one
    is not here either.
    """
    needed: dict[str, Path] = {}
    for database in databases:
        for name, model_id in collection_models(database):
            try:
                path = models.path_of(model_id, model_dir)
                read_manifest(path)
            except ClipError as error:
                click.echo(f"{cited(name)} is published without its model, {cited(model_id)}: {error}", err=True)
                continue
            needed[MODEL_ID if path == model_dir else model_id] = path  # one model directory has two ids
    if not needed:
        model_id, path = chosen_model(model_dir)
        needed[MODEL_ID if path == model_dir else model_id] = path
    for model_id in left_out(needed, model_dir):
        click.echo(f"{cited(model_id)} is not published, as no collection is of it", err=True)
    return needed


def left_out(needed: Served, model_dir: Path) -> list[str]:
    """The models of a folder that are not needed but could search what is published, because vectors are the same."""
    manifests = [read_manifest(path) for path in needed.values()]
    others = {id: models.path_of(id, model_dir) for id in models.choices(model_dir) if id not in needed}
    found = []
    for id, path in others.items():
        with suppress(ClipError):
            other = read_manifest(path)
            found += [id] if any(models.exchangeable(other, manifest) for manifest in manifests) else []
    return found


def collection_models(database: Path) -> list[tuple[str, str]]:
    """Names of llm's collections of a database, and the ids of their models."""
    with closing(connect(str(database), reads_only=True)) as conn:
        sql = "select name, model from main.collections where model is not null order by id"
        return rows(conn, sql) if has_llm_tables(conn) else []


def is_single(served: Served) -> bool:
    """True for `clip` alone. One model by another id is a folder of one, where nothing is `clip`."""
    return [*served] == [MODEL_ID]


def build_arguments(served: Served, to: Path) -> dict[str, str]:
    """The Dockerfile's arguments that bake these models again. Local checkpoints are copied. Raises InputError."""
    manifests = {id: read_manifest(path) for id, path in served.items()}
    if is_single(served):
        [manifest] = manifests.values()
        return bake_arguments(manifest, to)
    for id, manifest in manifests.items():
        if manifest.source.revision:
            click.echo(
                f"the Dockerfile bakes the newest revision of {cited(id)}, which is {manifest.source.revision} here",
                err=True,
            )
    arguments = {"CLIP_MODELS": " ".join(model_argument(id, manifest, to) for id, manifest in manifests.items())}
    has_demo = any(map(is_demo, manifests.values()))
    return arguments | ({"LABELS": "demo/emoji.txt", "VERIFY": "0"} if has_demo else {})


def model_argument(id: str, manifest: Manifest, to: Path) -> str:
    """A model as CLIP_MODELS names it, so that it gets its id again. Raises InputError where that cannot be."""
    if manifest.id:
        return manifest.id
    if manifest.images:
        raise InputError(
            f"the Dockerfile bakes {cited(id)} with the images of another checkpoint only if it is alone: {RENAME}"
        )
    argument = checkpoint_argument(manifest.source, to, id)
    if Path(argument).name != id or len(argument.split()) != 1:
        raise InputError(f"the container would serve {cited(id)} as {cited(Path(argument).name)}: {RENAME}")
    return argument


def bake_arguments(manifest: Manifest, to: Path) -> dict[str, str]:
    """The Dockerfile's arguments that bake a model again. A local checkpoint is copied. Raises InputError."""
    source = manifest.source
    if is_demo(manifest):
        return {"CLIP_MODEL": DEMO.as_posix(), "LABELS": "demo/emoji.txt", "VERIFY": "0"}
    arguments = {"CLIP_MODEL": checkpoint_argument(source, to)}
    if source.revision:
        arguments["CLIP_REVISION"] = source.revision
    if manifest.images:
        images = checkpoint_argument(manifest.images, to, f"{Path(manifest.images.id).name}-images")
        arguments |= {"CLIP_IMAGES": images, "REFERENCE": "sentence-transformers"}
        if manifest.images.revision:
            arguments["CLIP_IMAGES_REVISION"] = manifest.images.revision
    if manifest.logit_bias is not None:  # a SigLIP, for which the prompts of ImageNet take long
        arguments["LABELS"] = ""
    return arguments


def is_demo(manifest: Manifest) -> bool:
    """True for the demo model, whose checkpoint every clone has."""
    return manifest.source.weights_sha256.get("model.safetensors") == sha256_of(CLONE / DEMO / "model.safetensors")


def checkpoint_argument(source: Source, to: Path, name: str = "") -> str:
    """A checkpoint as the Dockerfile names it. A local one is copied, to the folder `name`, or its own.

    Raises InputError.
    """
    checkpoint = Path(source.id)
    if checkpoint.is_dir():
        name = name or checkpoint.name
        shutil.copytree(checkpoint, to / "deploy" / "checkpoints" / name, dirs_exist_ok=True)
        return f"deploy/checkpoints/{name}"
    if checkpoint.is_absolute():
        raise InputError(f"the model was baked from {source.id}, which is gone: bake it again")
    return source.id


def copy_models(served: Served, to: Path) -> None:
    """Copy model directories to `to`, or one that is alone to `to` itself, in place of what was copied before.

    A model that is read from there, because it was copied before, is not lost.
    """
    made = to.with_name(f".{to.name}-being-copied")
    shutil.rmtree(made, ignore_errors=True)
    for path in served.values():
        place = made if is_single(served) else made / path.name
        shutil.copytree(path, place)
        (place / MANIFEST).write_text(without_folders(read_manifest(path)).to_json(), encoding="utf-8")
    shutil.rmtree(to, ignore_errors=True)
    made.rename(to)


def reads_as_open_clip(path: Path) -> bool:
    """True for a model directory whose texts are read as open_clip does, which needs ftfy."""
    tokens = read_manifest(path).tokens
    return tokens is not None and tokens.library == "open_clip"


def without_folders(manifest: Manifest) -> Manifest:
    """The manifest with the names alone of checkpoints that are folders, which are no one's business."""
    source, images = public_source(manifest.source), manifest.images and public_source(manifest.images)
    return replace(manifest, source=source, images=images)


def public_source(source: Source) -> Source:
    return replace(source, id=Path(source.id).name) if is_local(source) else source


def is_local(source: Source) -> bool:
    """True if a checkpoint is a folder, also one that is gone; False for a hub id."""
    return Path(source.id).is_absolute() or Path(source.id).is_dir()
