"""Reads the labels of a request, a label set's name or a list, into a classifier; and writes its matches as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from llm_clip_onnx import label_sets, zero_shot
from llm_clip_onnx.errors import InputError, cited, cited_json
from llm_clip_onnx.zero_shot import Classifier, Match

from .config import PLUGIN, Limits

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine  # imports onnxruntime, which Datasette's start does not wait for

CHARACTERS = 2 * zero_shot.MAX_CHARACTERS  # of a label in JSON
DIGITS = 6  # of probabilities and cosines, where float32 embeddings have no more to say


def classifier_of(
    engine: Engine, limits: Limits, labels: str | Sequence[str] | None, templates: Sequence[str] | None = None
) -> Classifier:
    """The classifier of a label set's name, or of labels as a JSON list or a sequence; None means the default set.

    Raises InputError for any other value and for too many labels, and ModelDirError.
    """
    if labels is None:
        labels = default_set(engine)
    if is_json_list(labels):
        if len(labels) > (limit := limits.prompts * CHARACTERS):
            raise InputError(f"labels is a JSON list of {len(labels)} characters; at most {limit} are read")
        try:
            labels = json.loads(labels)
        except (ValueError, RecursionError) as error:
            raise InputError(f"labels begins as a JSON list and is none: {error}") from error
    if not isinstance(labels, str | list | tuple):
        raise InputError(f"labels is {cited_json(labels)}; expected the name of a label set or a list of labels")
    if not isinstance(labels, str):
        return classifier_of_list(engine, limits, labels, templates or zero_shot.DEFAULT_TEMPLATES)
    if templates:
        raise InputError(f"label set {cited(labels)} has its own templates; templates go with labels given one by one")
    return engine.label_set(labels)


def is_json_list(labels: object) -> TypeGuard[str]:
    """True if labels are written as a JSON list, whose texts are embedded."""
    return isinstance(labels, str) and labels.lstrip().startswith("[")


def default_set(engine: Engine) -> str:
    """The label set imagenet if the model has it, else its first one. Raises InputError if it has none."""
    names = sets_of(engine)
    if not names:
        raise InputError("no labels are given, and this model has no label set; expected labels, one by one")
    return label_sets.IMAGENET if label_sets.IMAGENET in names else names[0]


def classifier_of_list(engine: Engine, limits: Limits, labels: Sequence[str], templates: Sequence[str]) -> Classifier:
    """The classifier of labels in a request. Raises InputError also for too many prompts."""
    if (prompts := len(labels) * len(templates)) > limits.prompts:
        raise InputError(
            f"{len(labels)} labels in {len(templates)} templates are {prompts} prompts; at most {limits.prompts} are "
            f"embedded for a request (plugins.{PLUGIN}.limits.prompts): bake a label set of them"
        )
    return engine.classifier(labels, templates)


def matches_json(matches: Sequence[Match], scores: str) -> list[dict]:
    """[{"label", "probability", "cosine"}...] as SQL and the endpoints return it. scores: see Manifest.

    Of a sigmoid DIGITS of a probability are kept from its first one on, because most are small and none is 0.
    """
    kind = "g" if scores == "sigmoid" else "f"
    return [
        {
            "label": match.label,
            "probability": float(f"{match.probability:.{DIGITS}{kind}}"),
            "cosine": round(match.cosine, DIGITS),
        }
        for match in matches
    ]


def sets_of(engine: Engine) -> list[str]:
    """Names of the label sets that this model can use, sorted."""
    return [name for name in label_sets.list_names(engine.path) if is_usable(engine, name)]


def is_usable(engine: Engine, name: str) -> bool:
    try:
        engine.label_set(name)
    except Exception:  # any: a client that names the set gets the sentence
        return False
    return True
