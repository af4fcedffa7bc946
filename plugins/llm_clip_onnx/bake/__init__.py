"""THE BAKE: makes a model directory from a CLIP checkpoint, step by step. Serving never imports this package.

The steps in order: find the checkpoint, read it, write the tokenizer, bake each tower and check that it agrees with the
reference, write the facts, put the directory in place.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from .. import __version__, label_sets, model_dir
from ..catalogue import entry_of
from ..errors import CheckpointError, ModelDirError
from ..model_dir import File, Manifest, Tower
from ..tokenizer import CLIP_TOKENS
from . import fidelity
from .checkpoint import Checkpoint
from .eight_bit import bake_8_bit_tower, check_signed
from .families import read_checkpoint
from .families.text_tower import IMAGES, TextCheckpoint
from .install import check_target, install, utc_now, work_folder
from .tower_plan import Say, TowerPlan, plan_image, plan_text

PACKAGES = ("onnx", "onnxruntime", "numpy", "tokenizers", "pillow")  # in the manifest, beside this one


def silent(_line: str) -> None:
    """Hear a line of a bake and say nothing."""


def bake(
    source: str,
    to: Path,
    precision: str = "auto",
    revision: str | None = None,
    force: bool = False,
    say: Say = print,
    images: str | None = None,
    images_revision: str | None = None,
) -> Manifest:
    """Bake `source`, an id of the catalogue, a hub id or a folder, to the model directory `to`; return its manifest.

    images: for a text tower alone, the checkpoint whose images it searches. revision, images_revision: of a hub id.
    precision: "fp32", "int8", or "auto", which takes int8 for each tower that agrees with its float32 form in it, else
    float32. In an int8 tower, matrices that 8 bits harm too much stay float32. `say` hears each step as a line.
    Raises CheckpointError, or FidelityError if a tower does not agree with its reference; `to` is then as it was.
    """
    to = Path(os.path.realpath(to))
    check_target(to, force)
    entry = entry_of(source)
    if entry and entry.id == source and Path(source).is_dir():
        say(f"{source} is the catalogue's; the folder of that name is ./{source}")
    say(f"reading {entry.source if entry else source}")
    of_images = images or (entry.images if entry else None)
    checkpoint = open_checkpoint(source, revision, of_images, say, images_revision)
    with work_folder(to) as work:
        id = entry.id if entry and images in (None, entry.images) else None  # other images are another model
        manifest = replace(bake_into(work, checkpoint, precision, say), id=id)
        install(work, to, manifest)
    say(f"{to} is ready, {sum(f.bytes for f in manifest.files.values()) / 1e6:.1f} MB")
    for name in label_sets.list_names(to):
        try:
            label_sets.read_facts(to, manifest, name)
        except ModelDirError as error:
            say(str(error))
    return manifest


def open_checkpoint(
    source: str,
    revision: str | None = None,
    images: str | None = None,
    say: Say = silent,
    images_revision: str | None = None,
) -> Checkpoint:
    """Find or fetch the checkpoint, and check that it can be baked; a text tower with the checkpoint of its images.

    source, images: ids of the catalogue, hub ids, or folders. Raises CheckpointError.
    """
    found = read_source(source, revision)
    if isinstance(found, TextCheckpoint):
        return with_images(found, images, images_revision, say)
    if images or images_revision:
        given = f"--images {images}" if images else f"--images-revision {images_revision}"
        raise CheckpointError(f"{given} goes with a text tower alone; {source} has an image tower")
    return found


def read_source(source: str, revision: str | None, option: str = "--revision") -> Checkpoint | TextCheckpoint:
    """The checkpoint of a hub id, of its revision, or of a folder. option: which gave the revision."""
    entry = entry_of(source)
    if entry is None and Path(source).is_dir():
        if revision:
            raise CheckpointError(f"{option} {revision} goes with a hub id; {source} is a folder")
        return read_checkpoint(Path(source), source, None)
    from .hub import fetch

    hub_id = entry.source if entry else source
    root, commit = fetch(hub_id, revision)
    return read_checkpoint(root, hub_id, commit)


def with_images(text: TextCheckpoint, images: str | None, revision: str | None, say: Say) -> Checkpoint:
    """The text tower with the image tower of the checkpoint `images`. Raises CheckpointError where they do not fit."""
    source = text.source.id
    if not images:
        say(f"{source} is a text tower; its images are those of {IMAGES}, as --images says none")
    say(f"reading {images or IMAGES} for its image tower")
    other = read_source(images or IMAGES, revision, "--images-revision")
    if isinstance(other, TextCheckpoint):
        raise CheckpointError(
            f"{images} is a text tower, as {source} is; expected a checkpoint with images in --images"
        )
    if other.embed_dim != text.embed_dim:
        raise CheckpointError(
            f"{source} makes vectors of {text.embed_dim} numbers and {other.source.id} of {other.embed_dim}; expected "
            "in --images the checkpoint whose vectors the text tower was trained for"
        )
    return replace(
        other,
        source=text.source,
        images=other.source,
        text=text.text,
        tokenizer=text.tokenizer,
        tokens=text.tokens,
        context_length=text.context_length,
    )


def bake_into(work: Path, checkpoint: Checkpoint, precision: str, say: Say) -> Manifest:
    """Write tokenizer, probe, text tower and image tower to the folder `work`, and return the facts of all of it."""
    from .graph import write_probe

    write_tokenizer(work, checkpoint)
    write_probe(work / model_dir.PROBE)
    towers = {}
    for plan_tower in (plan_text, plan_image):
        plan = plan_tower(work, checkpoint, say)
        np.save(work / f"{plan.name}.npy", plan.reference)
        towers[plan.name] = bake_tower(plan, work, precision, say)
    return Manifest(
        format=model_dir.FORMAT,
        source=checkpoint.source,
        embed_dim=checkpoint.embed_dim,
        context_length=checkpoint.context_length,
        log_logit_scale=checkpoint.log_logit_scale,
        preprocess=checkpoint.preprocess,
        towers=towers,
        files={f.name: File(f.stat().st_size, model_dir.sha256_of(f)) for f in sorted(work.iterdir())},
        versions={
            "datasette-clip": __version__,
            **{name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
        },
        baked_at=utc_now(),
        tokens=None if checkpoint.tokens == CLIP_TOKENS else checkpoint.tokens,
        logit_bias=checkpoint.logit_bias,
        images=checkpoint.images,
    )


def write_tokenizer(work: Path, checkpoint: Checkpoint) -> None:
    for name, content in checkpoint.tokenizer.items():
        (work / name).write_bytes(content.encode() if isinstance(content, str) else content)


def bake_tower(plan: TowerPlan, work: Path, precision: str, say: Say) -> Tower:
    """Write the tower in float32 and compare it with the reference, then in 8 bits and compare that with float32.

    The files of the smaller one that agrees stay in `work`. Raises FidelityError if the float32 tower does not agree,
    or the 8-bit one that was asked for.
    """
    float32 = plan.write_and_embed(work / "fp32", plan.tower.tensors, ())
    with_reference = fidelity.agreement(float32, plan.reference, plan.inputs)
    say(f"{plan.name} tower: fp32, {fidelity.summary(with_reference)} with the reference")
    if not fidelity.float32_agrees(with_reference):
        raise fidelity.disagreement(plan.name, "fp32", with_reference)
    tower = Tower("fp32", {"fp32 with reference": with_reference}, {})
    if precision != "fp32":
        matrices, with_float32 = bake_8_bit_tower(plan, work / "int8", float32, say)
        tower.fidelity["int8 with fp32"] = with_float32
        if fidelity.int8_agrees(plan.name, with_float32):
            check_signed(plan, work / "int8", work / model_dir.PROBE, say)
            tower = Tower("int8", tower.fidelity, matrices)
        elif precision == "int8":
            raise fidelity.disagreement(plan.name, "int8", with_float32)
        else:
            least = fidelity.INT8_MINIMUM[plan.name]
            say(f"{plan.name} tower: int8 is not close enough (expected {least}), so it stays fp32")
    for file in (work / tower.precision).iterdir():
        file.rename(work / file.name)
    for kind in ("fp32", "int8"):
        shutil.rmtree(work / kind, ignore_errors=True)
    return tower
