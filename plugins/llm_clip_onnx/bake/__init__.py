"""BUILDING: a CLIP checkpoint in, a model directory out. Nothing in serving imports this package.

Everything is written to a fresh folder beside the target, renamed at the end, and given its manifest.json last: killed
at any moment, a bake leaves no directory that opens.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import label_sets, model_dir
from ..errors import CheckpointError, FidelityError, ModelDirError
from ..model_dir import Agreement, File, Manifest, Tower
from ..preprocess import pixels_of
from ..tokenizer import ids_of, open_tokenizer
from ..towers import available_cores, open_tower, run_image, run_text
from . import fidelity, forward
from .checkpoint import Checkpoint, open_checkpoint
from .samples import TEXTS, made_images

PACKAGES = ("datasette-clip", "onnx", "onnxruntime", "numpy", "tokenizers", "pillow")
UNNAMED = f"{model_dir.MANIFEST}.part"  # the manifest until all is in place

Say = Callable[[str], None]


def bake(
    source: str, to: Path, precision: str = "auto", revision: str | None = None, force: bool = False, say: Say = print
) -> Manifest:
    """Bake `source`, a hub id or a folder, to the model directory `to`, and return its manifest.

    precision: "fp32", "int8", or "auto", which takes int8 for each tower where it agrees with the float32 one, else
    float32. `say` hears what is being done, a line at a time.
    Raises CheckpointError, or FidelityError where a tower does not agree with its reference; `to` is then as it was.
    """
    to = Path(os.path.realpath(to))
    check_target(to, force)
    say(f"reading {source}")
    checkpoint = open_checkpoint(source, revision)
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{to.name}.baking-", dir=to.parent))
        try:
            manifest = bake_into(work, checkpoint, precision, say)
            keep_label_sets(to, work)
            work.chmod(0o755)  # mkdtemp makes it private; a server may run as another user
            put_in_place(work, to, manifest)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        where, why = error.filename or to, error.strerror or error
        make_room = "make room, or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        raise CheckpointError(
            f"{where} cannot be written: {why}; {make_room}choose another folder with --to"
        ) from error
    say(f"{to} is ready, {sum(f.bytes for f in manifest.files.values()) / 1e6:.1f} MB")
    for name in label_sets.names_of(to):
        try:
            label_sets.read_facts(to, manifest, name)
        except ModelDirError as error:
            say(str(error))
    return manifest


def check_target(to: Path, force: bool) -> None:
    """Raises CheckpointError where `to` is there and is not to be replaced."""
    if not to.exists():
        return
    if not force:
        raise CheckpointError(f"{to} is there already; --force replaces it")
    ours = {*model_dir.FILES, model_dir.MANIFEST, model_dir.LABELS, UNNAMED}
    if not to.is_dir() or {file.name for file in to.iterdir()} - ours:
        raise CheckpointError(f"{to} is there and is no model directory; --force replaces only those")


def keep_label_sets(to: Path, work: Path) -> None:
    """Copy the label sets of `to` to `work`: a copy, so that a kill at any moment leaves them where they were."""
    if (to / model_dir.LABELS).is_dir():
        shutil.copytree(to / model_dir.LABELS, work / model_dir.LABELS, ignore=shutil.ignore_patterns(".*"))


def put_in_place(work: Path, to: Path, manifest: Manifest) -> None:
    """Rename `work` to `to` and only then give it its manifest; what was there is moved away and deleted last.

    Where that fails, `to` is as it was; where the process is killed in between, it is in `.NAME.before-...`.
    """
    (work / UNNAMED).write_text(manifest.to_json(), encoding="utf-8")
    before = Path(tempfile.mkdtemp(prefix=f".{to.name}.before-", dir=to.parent)) / to.name if to.exists() else None
    try:
        if before:
            to.rename(before)
        work.rename(to)
        (to / UNNAMED).rename(to / model_dir.MANIFEST)
    except BaseException:
        if to.exists() and (to / UNNAMED).exists():
            to.rename(work)
        if before:
            if before.exists():
                before.rename(to)
            before.parent.rmdir()
        raise
    if before:
        shutil.rmtree(before.parent, ignore_errors=True)


def bake_into(work: Path, checkpoint: Checkpoint, precision: str, say: Say) -> Manifest:
    """The steps in order: tokenizer, text tower, image tower, and last the facts for the manifest."""
    write_tokenizer(work, checkpoint)
    towers = {}
    for plan_tower in (plan_text, plan_image):
        plan = plan_tower(work, checkpoint, say)
        np.save(work / f"{plan.name}.npy", plan.reference)
        towers[plan.name] = bake_tower(plan, work, precision, say)
    return Manifest(
        format=model_dir.FORMAT,
        source=checkpoint.source,
        embed_dim=checkpoint.config.embed_dim,
        context_length=checkpoint.config.context_length,
        log_logit_scale=float(checkpoint.tensors["logit_scale"]),
        preprocess=checkpoint.preprocess,
        towers=towers,
        files={f.name: File(f.stat().st_size, model_dir.sha256_of(f)) for f in sorted(work.iterdir())},
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        baked_at=now(),
    )


def write_tokenizer(work: Path, checkpoint: Checkpoint) -> None:
    vocab = json.dumps(checkpoint.vocab, ensure_ascii=False, separators=(",", ":"))
    (work / model_dir.VOCAB).write_text(vocab, encoding="utf-8")
    (work / model_dir.MERGES).write_text("\n".join(["#version: 0.2", *checkpoint.merges, ""]), encoding="utf-8")


@dataclass(frozen=True)
class TowerPlan:
    """What is to be baked and how it is judged: the fixed inputs' names, and the reference's embeddings of them."""

    name: str
    inputs: Sequence[str]
    reference: NDArray[np.float32]  # [n, embed_dim]
    write: Callable[[str, Path, Path], None]  # precision, graph, weights
    embed: Callable[[Path], NDArray[np.float32]]  # graph -> its embeddings of the inputs, [n, embed_dim]


def plan_text(work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """Raises FidelityError where the weights are said to be OpenAI's and are not."""
    from .graph import write_text_tower  # imports onnx, which `llm clip verify` does without

    config = checkpoint.config
    bpe = open_tokenizer(work / model_dir.VOCAB, work / model_dir.MERGES, config.context_length)
    ids = [ids_of(bpe, text, config.context_length) for text in TEXTS]

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_text(tower, one[None]) for one in ids])

    say(f"text tower: reference embeddings of {len(ids)} texts, in plain numpy")
    reference = forward.embed_text(config, checkpoint.tensors, ids)
    if checkpoint.source.id in fidelity.PUBLISHED_FOR:
        say("text tower: comparing with published embeddings")
        check_published(reference)
    return TowerPlan("text", TEXTS, reference, partial(write_text_tower, config, checkpoint.tensors), embed)


def plan_image(_work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """As plan_text, of the image tower."""
    from .graph import write_image_tower

    images = made_images()
    pixels = np.stack([pixels_of(image, checkpoint.preprocess) for image in images.values()])

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_image(tower, one[None]) for one in pixels])

    say(f"image tower: reference embeddings of {len(images)} images, in plain numpy")
    reference = forward.embed_images(checkpoint.config, checkpoint.tensors, pixels)
    write = partial(write_image_tower, checkpoint.config, checkpoint.tensors)
    return TowerPlan("image", list(images), reference, write, embed)


def bake_tower(plan: TowerPlan, work: Path, precision: str, say: Say) -> Tower:
    """Write the tower in float32, check it against the reference, then in 8 bits, and check that against float32.

    The smaller that agrees is left as NAME.onnx and NAME.bin. Raises FidelityError where one that was asked for does
    not agree.
    """
    float32 = write_and_embed(plan, work / "fp32", "fp32")
    with_reference = fidelity.agreement(float32, plan.reference, plan.inputs)
    say(f"{plan.name} tower: fp32, {described(with_reference)} with the reference")
    if not fidelity.float32_agrees(with_reference):
        raise fidelity.refusal(plan.name, "fp32", with_reference)
    chosen, measured = "fp32", {"fp32 with reference": with_reference}
    if precision != "fp32":
        int8 = write_and_embed(plan, work / "int8", "int8")
        measured["int8 with fp32"] = with_float32 = fidelity.agreement(int8, float32, plan.inputs)
        say(f"{plan.name} tower: int8, {described(with_float32)} with fp32")
        if fidelity.int8_agrees(plan.name, with_float32):
            chosen = "int8"
        elif precision == "int8":
            raise fidelity.refusal(plan.name, "int8", with_float32)
        else:
            least = fidelity.INT8_MINIMUM[plan.name]
            say(f"{plan.name} tower: int8 is not close enough (expected {least}), so it stays fp32")
    for file in (work / chosen).iterdir():
        file.rename(work / file.name)
    for kind in ("fp32", "int8"):
        shutil.rmtree(work / kind, ignore_errors=True)
    return Tower(chosen, measured)


def write_and_embed(plan: TowerPlan, folder: Path, precision: str) -> NDArray[np.float32]:
    folder.mkdir()
    graph = folder / f"{plan.name}.onnx"
    plan.write(precision, graph, folder / f"{plan.name}.bin")
    return plan.embed(graph)


def described(result: Agreement) -> str:
    return f"worst cosine {result.worst:.6f}, centred {result.worst_centred:.6f}"


def check_published(reference: NDArray[np.float32]) -> None:
    """Raises FidelityError where the embeddings of TEXTS are not those that others published of OpenAI's weights."""
    differences = fidelity.published_differences(TEXTS, reference)
    if max(differences) > fidelity.PUBLISHED_TOLERANCE:
        worst = fidelity.PUBLISHED[int(np.argmax(differences))]
        raise FidelityError(
            f"the embedding of {worst['text']!r} is off by {max(differences):.4f} from the one published in "
            f"{worst['source']}: these are not the weights of {' or '.join(fidelity.PUBLISHED_FOR)}"
        )


def now() -> str:
    """UTC, or the time that SOURCE_DATE_EPOCH says, for builds that must give the same bytes."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
