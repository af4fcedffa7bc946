"""Reads and writes label sets: classifiers baked into a model directory, so that classifying needs no text tower.

    labels/NAME.npy    the unit embeddings of the labels, [c, embed_dim] float32
    labels/NAME.json   the facts below, written last

A set belongs to the checkpoint whose text tower made it, and is refused beside another.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, ModelDirError, cited, shortened
from .model_dir import LABELS, Manifest, sha256_of
from .zero_shot import Classifier

FORMAT = 1
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
IMAGENET = "imagenet"  # the one name whose labels need no file


@dataclass(frozen=True)
class LabelSet:
    """The facts of a label set. unrelated_cosine: see zero_shot.unrelated_cosine. source: of the labels."""

    format: int
    name: str
    labels: tuple[str, ...]
    templates: tuple[str, ...]
    unrelated_cosine: float
    source: str
    weights_sha256: dict[str, str]  # of the checkpoint, as in its manifest
    vectors_sha256: str
    baked_at: str  # UTC, ISO 8601


def check_name(name: str) -> None:
    """Raises InputError if `name` is not allowed for a label set."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{cited(name)} is no name of a label set; expected small letters, digits, - and _, at most 64"
        )


def list_names(path: Path) -> list[str]:
    """Names of the label sets in the model directory at `path`, sorted. Some may be unusable."""
    try:
        return sorted(file.stem for file in (path / LABELS).glob("*.json") if NAME.fullmatch(file.stem))
    except OSError:
        return []


def rebake_set_hint(path: Path, name: str) -> str:
    """A sentence that says how to bake label set `name` again from its stored labels."""
    return f"bake it again with llm clip labels bake {name} {path} --force"


def rebake_lost_set_hint(path: Path, name: str) -> str:
    """A sentence that says how to bake label set `name` again when its stored labels are lost."""
    return rebake_set_hint(path, name) + ("" if name == IMAGENET else " --labels FILE")


def stored_facts(path: Path, name: str) -> LabelSet:
    """The stored facts of label set `name`, whatever weights made it.

    Raises InputError where there is none of that name, ModelDirError where it cannot be read.
    """
    if name not in (names := list_names(path)):
        existing = f"there are {', '.join(names)}" if names else "there are none"
        raise InputError(f"there is no label set {cited(name)}; {existing}; llm clip labels bake makes one")
    file = path / LABELS / f"{name}.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        version = facts["format"]
        lists = {key: tuple(facts[key]) for key in ("labels", "templates")} if version == FORMAT else {}
        label_set = LabelSet(**facts | lists) if version == FORMAT else None
        if label_set and not has_valid_types(label_set):
            raise ValueError("a fact is of another kind than it should be")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {shortened(error)}"
        raise ModelDirError(f"{file} cannot be read ({reason}): {rebake_lost_set_hint(path, name)}") from error
    if label_set is None:
        raise ModelDirError(
            f"{file} says format {shortened(version)}, this version reads {FORMAT}: {rebake_lost_set_hint(path, name)}"
        )
    return label_set


def has_valid_types(facts: LabelSet) -> bool:
    """True if each fact has the declared type, which JSON does not guarantee."""
    texts = (facts.name, facts.source, facts.vectors_sha256, facts.baked_at, *facts.labels, *facts.templates)
    cosine = facts.unrelated_cosine
    return bool(
        all(isinstance(text, str) for text in texts)
        and isinstance(facts.weights_sha256, dict)
        and isinstance(cosine, int | float)
        and -1 <= cosine <= 1
        and facts.labels
        and facts.templates
    )


def read_facts(path: Path, manifest: Manifest, name: str) -> LabelSet:
    """The stored facts of a label set. Raises ModelDirError also if another checkpoint than the manifest's made it."""
    facts = stored_facts(path, name)
    if facts.weights_sha256 != manifest.source.weights_sha256:
        hint = rebake_set_hint(path, name)
        raise ModelDirError(f"label set {cited(name)} was made with another checkpoint's weights: {hint}")
    return facts


def read_classifier(path: Path, manifest: Manifest, name: str) -> Classifier:
    """The classifier of label set `name`. Raises as read_facts, and where it is damaged."""
    facts = read_facts(path, manifest, name)
    file = path / LABELS / f"{name}.npy"
    try:
        if sha256_of(file) != facts.vectors_sha256:
            raise ModelDirError(f"{file} is damaged, its sha256 is another: {rebake_set_hint(path, name)}")
        vectors = np.load(file)
    except OSError as error:
        raise ModelDirError(f"{file} cannot be read ({error.strerror}): {rebake_set_hint(path, name)}") from error
    if vectors.shape != (len(facts.labels), manifest.embed_dim):
        raise ModelDirError(
            f"{file} has vectors of shape {vectors.shape}, expected {(len(facts.labels), manifest.embed_dim)}: "
            f"{rebake_set_hint(path, name)}"
        )
    return Classifier(facts.labels, vectors, facts.unrelated_cosine, facts.templates)


def write(path: Path, facts: LabelSet, vectors: NDArray[np.float32]) -> None:
    """Write a label set, its vectors first and its facts, with their sha256, last; each is renamed into place whole.

    A set that was there and is replaced only in part is refused as damaged, and still has its labels. Raises OSError.
    """
    folder = path / LABELS
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{facts.name}.", dir=folder) as parts:
        npy, json_ = Path(parts) / "npy", Path(parts) / "json"
        with npy.open("wb") as stream:
            np.save(stream, vectors)
        facts = replace(facts, vectors_sha256=sha256_of(npy))
        written = json.dumps(asdict(facts), indent=1, ensure_ascii=False) + "\n"
        json_.write_text(written, encoding="utf-8")
        os.replace(npy, folder / f"{facts.name}.npy")
        os.replace(json_, folder / f"{facts.name}.json")
