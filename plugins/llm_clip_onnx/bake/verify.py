"""Checks a model directory as a server opens it: files, fidelity, published embeddings, and other libraries themselves.

The fixed inputs go through the engine, as text and as images. Their embeddings are compared with the reference's, which
the bake left in the directory, and with those of libraries.py.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import label_sets, model_dir, zero_shot
from ..engine import Engine
from ..errors import ModelDirError, cited
from ..model_dir import Manifest
from ..vectors import unit
from . import fidelity
from .libraries import REFERENCES, found_source, library_of
from .samples import TEXTS, made_images

PROBABILITY_TOLERANCE = 1e-3  # a share of each; float32 has logits, of 100 at most, to about 1e-5


@dataclass(frozen=True)
class Check:
    """One check: its name, its result, and the figures."""

    name: str
    ok: bool
    found: str


def verify(
    path: Path, reference: str | None = None, checkpoint: str | None = None, images: str | None = None
) -> list[Check]:
    """All checks of the model directory at `path`. Raises ModelDirError if it does not open.

    reference: a library of REFERENCES, or "own" for `library_of` the model: it is also compared with that, on
    `checkpoint` and on `images`, the checkpoint of a text tower's images, or else on the sources of the bake.
    """
    engine = Engine(path)
    manifest = engine.manifest
    model_dir.check_sha256(path, manifest, tuple(manifest.files))
    checks = [Check("files", True, f"{len(manifest.files)} files, every sha256 as the manifest says")]
    pngs = {name: png_bytes(image) for name, image in made_images().items()}
    embeddings = {"text": engine.embed_text(TEXTS), "image": engine.embed_images(list(pngs.values()))}
    inputs = {"text": list(TEXTS), "image": list(pngs)}
    for name, tower in manifest.towers.items():
        if tower.precision == "int8":
            checks += [matrices_check(name, tower), levels_check(path, name, str(engine.levels))]

    def compare(tower: str, with_what: str, expected: NDArray[np.float32]) -> Check:
        result = fidelity.agreement(embeddings[tower], expected, inputs[tower])
        precision = manifest.towers[tower].precision
        figures = (
            f"worst cosine {result.worst:.6f}, mean {result.mean:.6f}; centred {result.worst_centred:.6f}, "
            f"mean {result.mean_centred:.6f}; worst on {cited(result.worst_input)}; "
            f"{100 * result.neighbours:.1f} % of nearest inputs the same"
        )
        return Check(
            f"{tower} tower ({precision}) with {with_what}", fidelity.agrees(tower, precision, result), figures
        )

    stored = {"text": model_dir.TEXT_REFERENCE, "image": model_dir.IMAGE_REFERENCE}
    checks += [compare(tower, "the bake's reference", np.load(path / file)) for tower, file in stored.items()]
    text_reference = np.load(path / model_dir.TEXT_REFERENCE)
    is_openai = fidelity.is_openai(manifest, text_reference)
    if is_openai:
        checks += published_checks(fidelity.published_differences(TEXTS, text_reference))
    for name in label_sets.list_names(path):
        checks += label_set_checks(engine, name, is_openai)
    if reference:
        text = found_source(manifest.source, checkpoint, "--checkpoint")
        of_images = found_source(manifest.images, images, "--images") if manifest.images else text
        reference = library_of(manifest) if reference == "own" else reference
        theirs = REFERENCES[reference](text, of_images, list(pngs.values()))
        checks += [compare(tower, reference, theirs[tower]) for tower in embeddings]
        if "probabilities" in theirs:
            checks.append(probabilities_check(manifest, reference, theirs, embeddings))
    return checks


def matrices_check(name: str, tower: model_dir.Tower) -> Check:
    """The bake's choices for the matrices, and their cost in bytes. This check never fails."""
    rewritten = [choice for choice in tower.matrices.values() if choice.strength is not None]
    matrix, worst = max(tower.matrices.items(), key=lambda item: item[1].error)
    kept = f"{', '.join(tower.kept_float32)}, {tower.kept_float32_bytes / 1e6:.1f} MB more"
    return Check(
        f"{name} tower's matrices",
        True,
        f"{len(tower.matrices)}, {len(rewritten)} rewritten; largest error in 8 bits {worst.error:.4f}, as it was "
        f"{worst.error_as_it_was:.4f}, of {matrix}; float32: {kept if tower.kept_float32 else 'none'}",
    )


def levels_check(path: Path, name: str, used: str) -> Check:
    """Compares the signed and the unsigned levels of a tower's 8-bit matrices, which must be the same."""
    suffixes = (model_dir.UNSIGNED_SUFFIX, model_dir.SIGNED_SUFFIX)
    forms = [np.fromfile(path / f"{name}{suffix}", np.uint8) for suffix in suffixes]
    same = np.array_equal(forms[0] ^ model_dir.SIGN_BIT, forms[1])
    figures = f"signed and unsigned ones {'agree' if same else 'differ'}; the {used} are used here"
    return Check(f"{name} tower's levels", same, figures)


def published_checks(differences: list[float]) -> list[Check]:
    tolerance = fidelity.PUBLISHED_TOLERANCE
    return [
        Check(
            f"{cited(golden['text'])} as published in {golden['source']}",
            off <= tolerance,
            f"off by {off:.5f}, {tolerance} is allowed",
        )
        for golden, off in zip(fidelity.PUBLISHED, differences)
    ]


def label_set_checks(engine: Engine, name: str, is_openai: bool) -> list[Check]:
    """Checks a label set: its files, three vectors computed again, and the published vector of OpenAI's weights."""
    title = f"label set {name}"
    try:
        facts = label_sets.read_facts(engine.path, engine.manifest, name)
        vectors = label_sets.read_classifier(engine.path, engine.manifest, name).vectors
    except ModelDirError as error:
        return [Check(title, False, str(error))]
    positions = sorted({0, len(vectors) // 2, len(vectors) - 1})
    again = zero_shot.class_vectors(engine.embed_text, [facts.labels[k] for k in positions], facts.templates)
    worst = float((vectors[positions] * again).sum(1, dtype=np.float64).min())
    figures = f"{len(vectors):,} labels, worst cosine {worst:.6f} of {len(positions)} made again"
    checks = [Check(title, worst >= fidelity.LABELS_MINIMUM, figures)]
    off = fidelity.published_class_difference(facts.labels, facts.templates, vectors)
    if is_openai and off is not None:
        golden = fidelity.PUBLISHED_CLASS
        allowed = fidelity.CLASS_TOLERANCE[engine.manifest.towers["text"].precision]
        named = f"class vector of {cited(golden['label'])} in {name} as published in {golden['source']}"
        checks += [Check(named, off <= allowed, f"off by {off:.5f}, {allowed} is allowed")]
    return checks


def probabilities_check(
    manifest: Manifest, library: str, theirs: dict[str, NDArray], embeddings: dict[str, NDArray[np.float32]]
) -> Check:
    """Compares a SigLIP's sigmoid, scale and bias with the library's, on the embeddings of the library.

    On those, because 8 bits move a cosine a little, which the scale, about 100, makes a lot; that is only shown.
    """

    def ours(of: dict[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        cosines = unit(of["image"]) @ unit(of["text"]).T
        return zero_shot.probabilities(cosines, manifest.logit_scale, manifest.logit_bias)

    expected = theirs["probabilities"]
    off = float(np.abs(ours(theirs) / expected - 1).max())
    moved = float(np.abs(ours(embeddings) - expected).max())
    allowed = PROBABILITY_TOLERANCE
    figures = (
        f"differ by a share of {off:.6f} ({allowed} is allowed) on its embeddings, by {moved:.6f} on the towers' own"
    )
    return Check(f"probabilities with {library}", off <= allowed, figures)


def png_bytes(image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()
