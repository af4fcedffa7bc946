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
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import label_sets, model_dir
from ..errors import CheckpointError, FidelityError, ModelDirError
from ..images.preprocess import pixels_of
from ..model_dir import Agreement, File, Manifest, Matrix, Tower
from ..tokenizer import ids_of, open_tokenizer
from ..towers import available_cores, multiplies_signed, open_tower, run_image, run_text
from . import fidelity, forward, smooth
from .checkpoint import Checkpoint, TowerConfig, open_checkpoint
from .quantize import rows_error
from .samples import CALIBRATION_TEXTS, TEXTS, calibration_images, made_images

PACKAGES = ("datasette-clip", "onnx", "onnxruntime", "numpy", "tokenizers", "pillow")
UNNAMED = f"{model_dir.MANIFEST}.part"  # the manifest until all is in place

Say = Callable[[str], None]


def bake(
    source: str, to: Path, precision: str = "auto", revision: str | None = None, force: bool = False, say: Say = print
) -> Manifest:
    """Bake `source`, a hub id or a folder, to the model directory `to`, and return its manifest.

    precision: "fp32", "int8", or "auto", which takes int8 for each tower where it agrees with the float32 one, else
    float32. In an int8 tower, matrices that 8 bits harm too much are float32 all the same. `say` hears what is
    being done, a line at a time.
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
    ours |= {f"{tower}{end}" for tower in ("text", "image") for end in model_dir.ENDS_OF_8_BITS}
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
    """The steps in order: tokenizer, probe, text tower, image tower, and last the facts for the manifest."""
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
    prefix: str  # of its tensors
    config: TowerConfig
    tensors: Mapping[str, NDArray]
    inputs: Sequence[str]
    reference: NDArray[np.float32]  # [n, embed_dim]
    write: Callable[[Mapping[str, NDArray], Collection[str], Path], None]  # tensors, eight_bit, graph
    embed: Callable[[Path], NDArray[np.float32]]  # graph -> its embeddings of the inputs, [n, embed_dim]
    calibrate: Callable[[forward.Watch], object]  # the reference's forward pass over the calibration inputs


def plan_text(work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """Raises FidelityError where the weights are said to be OpenAI's and are not."""
    from .graph import write_text_tower  # imports onnx, which `llm clip verify` does without

    config, tensors = checkpoint.config, checkpoint.tensors
    bpe = open_tokenizer(work / model_dir.VOCAB, work / model_dir.MERGES, config.context_length)
    ids, calibration = (
        [ids_of(bpe, text, config.context_length) for text in texts] for texts in (TEXTS, CALIBRATION_TEXTS)
    )

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_text(tower, one[None]) for one in ids])

    say(f"text tower: reference embeddings of {len(ids)} texts, in plain numpy")
    reference = forward.embed_text(config, tensors, ids)
    if checkpoint.source.id in fidelity.PUBLISHED_FOR:
        say("text tower: comparing with published embeddings")
        check_published(reference)
    write = partial(write_text_tower, config)
    calibrate = partial(forward.embed_text, config, tensors, calibration)
    return TowerPlan("text", "text_model", config.text, tensors, TEXTS, reference, write, embed, calibrate)


def plan_image(_work: Path, checkpoint: Checkpoint, say: Say) -> TowerPlan:
    """As plan_text, of the image tower."""
    from .graph import write_image_tower

    config, tensors, images = checkpoint.config, checkpoint.tensors, made_images()
    pixels, calibration = (
        np.stack([pixels_of(image, checkpoint.preprocess) for image in some])
        for some in (images.values(), calibration_images())
    )

    def embed(graph: Path) -> NDArray[np.float32]:
        tower = open_tower(graph, threads=available_cores())
        return np.concatenate([run_image(tower, one[None]) for one in pixels])

    say(f"image tower: reference embeddings of {len(images)} images, in plain numpy")
    reference = forward.embed_images(config, tensors, pixels)
    write = partial(write_image_tower, config)
    calibrate = partial(forward.embed_images, config, tensors, calibration)
    return TowerPlan("image", "vision_model", config.image, tensors, list(images), reference, write, embed, calibrate)


def bake_tower(plan: TowerPlan, work: Path, precision: str, say: Say) -> Tower:
    """Write the tower in float32, check it against the reference, then in 8 bits, and check that against float32.

    The files of the smaller that agrees are left in `work`. Raises FidelityError where one that was asked for does not
    agree.
    """
    float32 = write_and_embed(plan, work / "fp32", plan.tensors, ())
    with_reference = fidelity.agreement(float32, plan.reference, plan.inputs)
    say(f"{plan.name} tower: fp32, {described(with_reference)} with the reference")
    if not fidelity.float32_agrees(with_reference):
        raise fidelity.refusal(plan.name, "fp32", with_reference)
    tower = Tower("fp32", {"fp32 with reference": with_reference}, {})
    if precision != "fp32":
        matrices, with_float32 = bake_8_bit_tower(plan, work / "int8", float32, say)
        tower.fidelity["int8 with fp32"] = with_float32
        if fidelity.int8_agrees(plan.name, with_float32):
            check_signed(plan, work / "int8", work / model_dir.PROBE, say)
            tower = Tower("int8", tower.fidelity, matrices)
        elif precision == "int8":
            raise fidelity.refusal(plan.name, "int8", with_float32)
        else:
            least = fidelity.INT8_MINIMUM[plan.name]
            say(f"{plan.name} tower: int8 is not close enough (expected {least}), so it stays fp32")
    for file in (work / tower.precision).iterdir():
        file.rename(work / file.name)
    for kind in ("fp32", "int8"):
        shutil.rmtree(work / kind, ignore_errors=True)
    return tower


def bake_8_bit_tower(
    plan: TowerPlan, folder: Path, float32: NDArray[np.float32], say: Say
) -> tuple[dict[str, Matrix], Agreement]:
    """Write the tower in 8 bits: how each of its matrices was baked, and how far the tower agrees with float32.

    Where it does not agree with every matrix in 8 bits, those that it needs for that are kept float32.
    """
    say(f"{plan.name} tower: fitting its linear layers to 8 bits")
    tensors, choices = smooth.smoothed(plan.tensors, plan.prefix, plan.config, calibration_inputs(plan))
    matrices = matrix_facts(plan, tensors, choices)

    @cache
    def write(kept: frozenset[str]) -> Agreement:
        embeddings = write_and_embed(plan, folder, tensors, matrices.keys() - kept)
        result = fidelity.agreement(embeddings, float32, plan.inputs)
        but_for = f" but for {', '.join(sorted(name.split('layers.')[-1] for name in kept))}" if kept else ""
        say(f"{plan.name} tower: int8{but_for}, {described(result)} with fp32")
        return result

    kept: frozenset[str] = frozenset()
    if not fidelity.int8_agrees(plan.name, write(kept)):
        say(f"{plan.name} tower: looking for the matrices that must stay float32")
        sizes = {name: matrix.bytes for name, matrix in matrices.items()}
        kept = kept_float32(sizes, write, lambda result: fidelity.int8_agrees(plan.name, result))
        write_and_embed(plan, folder, tensors, matrices.keys() - kept)  # what was tried last may be another
    facts = {
        name: replace(one, precision="fp32", bytes=4 * one.bytes) for name, one in matrices.items() if name in kept
    }
    return matrices | facts, write(kept)


def kept_float32(
    sizes: Mapping[str, int], write: Callable[[frozenset[str]], Agreement], agrees: Callable[[Agreement], bool]
) -> frozenset[str]:
    """Which matrices must stay float32 for a tower to agree, of `sizes`, their bytes; none where it takes them all.

    Each is tried alone. Those that help most are taken until the tower agrees, and then each that it does without is
    taken back, the largest first.
    """

    def alone(name: str) -> tuple[float, float]:
        result = write(frozenset([name]))
        return result.worst_centred, result.mean_centred

    order = sorted(sizes, key=alone, reverse=True)
    # That more of them in float32 agree no worse holds but for chance: so halving finds how many it takes.
    enough = bisect_left(range(1, len(order)), True, key=lambda count: agrees(write(frozenset(order[:count])))) + 1
    if enough == len(order):
        return frozenset()
    kept = frozenset(order[:enough])
    for name in sorted(kept, key=lambda name: -sizes[name]):
        if len(kept) > 1 and agrees(write(kept - {name})):
            kept -= {name}
    return kept


def check_signed(plan: TowerPlan, folder: Path, probe: Path, say: Say) -> None:
    """Where this processor can tell, see that the tower of signed levels gives what that of unsigned ones does.

    They are sums of the same whole numbers, so they may not differ at all; that the levels are the same is what
    `llm clip verify` sees on any processor. Raises FidelityError.
    """
    if not multiplies_signed(probe):
        return say(f"{plan.name} tower: signed levels overflow on this processor, and were not tried")
    unsigned, signed = (plan.embed(folder / f"{plan.name}{end}") for end in (".onnx", model_dir.SIGNED_TOWER))
    if not np.array_equal(unsigned, signed):
        raise FidelityError(f"the {plan.name} towers of signed and of unsigned levels differ, which they never may")


def calibration_inputs(plan: TowerPlan) -> smooth.Inputs:
    """What goes into each linear layer while the reference embeds the calibration inputs.

    Of images it is every third row, beginning with the class token's, for the time that all would take; the worst
    centred cosine of random weights was 0.9962 either way. It is that in the last layer too, of which a tower computes
    but one row.
    """
    inputs: dict[str, list[NDArray[np.float32]]] = {}
    step = 1 if plan.name == "text" else 3
    plan.calibrate(lambda name, x: inputs.setdefault(name, []).extend(x[:, ::step].copy()))
    return inputs


def matrix_facts(
    plan: TowerPlan, tensors: Mapping[str, NDArray], choices: Mapping[str, smooth.Choice]
) -> dict[str, Matrix]:
    """What the manifest says of each matrix where all are in 8 bits, the token table, of texts, last."""
    from .graph import TOKEN_TABLE

    def fact(size: int, strength: float | None, error: float, as_it_was: float) -> Matrix:
        return Matrix("int8", size, strength, round(error, 6), round(as_it_was, 6))

    sizes = {name: sum(tensors[f"{part}.weight"].size for part in smooth.tensor_names(name)) for name in choices}
    facts = {
        name: fact(sizes[name], choice.strength, choice.error, choice.error_as_it_was)
        for name, choice in choices.items()
    }
    if plan.name == "text":
        table = tensors[f"{plan.prefix}.embeddings.token_embedding.weight"]
        error = rows_error(table)
        facts[TOKEN_TABLE] = fact(table.size, None, error, error)
    return facts


def write_and_embed(
    plan: TowerPlan, folder: Path, tensors: Mapping[str, NDArray], eight_bit: Collection[str]
) -> NDArray[np.float32]:
    folder.mkdir(exist_ok=True)
    graph = folder / f"{plan.name}.onnx"
    plan.write(tensors, eight_bit, graph)
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
