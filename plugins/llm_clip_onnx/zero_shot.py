"""Classifies zero-shot: makes a classifier of labels and prompt templates, and ranks its labels for an embedding.

A classifier is one unit embedding per label, the mean of its prompts' unit embeddings, made unit again.
Source: zeroshot_classifier in openai/CLIP notebooks/Prompt_Engineering_for_ImageNet.ipynb.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, cited, cited_json
from .vectors import check_same_size, unit, unit_embedding

DEFAULT_TEMPLATES = ("a photo of a {}.",)
PLACEHOLDER = "{}"
ARTICLE_BEFORE = re.compile(r"\b(?:an?|the)\s+\{\}", re.IGNORECASE)
WITH_ARTICLE = re.compile(r"\s*(?:an?|the)\s+\S", re.IGNORECASE)
MAX_CHARACTERS = 300  # of a label or a template, which is more than 77 ids


@dataclass(frozen=True, eq=False)
class Classifier:
    """labels: c of them. vectors: their unit embeddings, [c, embed_dim] float32. unrelated_cosine: see below.

    templates: of the prompts.
    """

    labels: tuple[str, ...]
    vectors: NDArray[np.float32]
    unrelated_cosine: float
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """A label with its probability, 0 to 1, as `probabilities` has it, and its cosine, -1 to 1."""

    label: str
    probability: float
    cosine: float


def check_labels(labels: Sequence[str], templates: Sequence[str]) -> None:
    """Raises InputError naming the first label or template that cannot be used, or if there is none."""
    for name, items in (("labels", labels), ("templates", templates)):
        if not items:
            raise InputError(f"there are no {name}; expected at least one")
        for position, item in enumerate(items):
            if not isinstance(item, str) or not item.strip():
                raise InputError(f"{name}[{position}] is {cited_json(item)}; expected a text that is not empty")
            if len(item) > MAX_CHARACTERS:
                raise InputError(
                    f"{name}[{position}] has {len(item)} characters; at most {MAX_CHARACTERS} are accepted"
                )
    for position, template in enumerate(templates):
        if PLACEHOLDER not in template:
            raise InputError(f"templates[{position}] is {cited(template)}; expected {PLACEHOLDER} where the label goes")


def prompts_of(label: str, templates: Sequence[str]) -> list[str]:
    """The prompts of a label, one per template. A label's own article takes the place of the template's.

    So "a red heart" is in "a photo of a red heart.", and not in "a photo of a a red heart."
    """
    if WITH_ARTICLE.match(label):
        templates = [ARTICLE_BEFORE.sub(PLACEHOLDER, template) for template in templates]
    return [template.replace(PLACEHOLDER, label) for template in templates]


def ensemble_prompts(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """The unit embedding [embed_dim] of a label, of the embeddings [t, embed_dim] of its prompts."""
    return unit(unit(embeddings).mean(0))


def class_vectors(
    embed_text: Callable[[Sequence[str]], NDArray[np.float32]], labels: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """The unit embeddings of labels: [c, embed_dim] float32, in their order. Raises InputError as check_labels does."""
    check_labels(labels, templates)
    return np.stack([ensemble_prompts(embed_text(prompts_of(label, templates))) for label in labels])


def unrelated_cosine(vectors: NDArray[np.float32], images: NDArray[np.float32]) -> float:
    """The cosine that the best of these labels reaches with an image that shows none of them: the median over images.

    `images` [n, embed_dim] are the embeddings of the bake's made images, noise and shapes. A picture whose best label
    stays below this fits no label better than those do.
    """
    return round(float(np.median((unit(images) @ vectors.T).max(1))), 6)


def probabilities(
    cosines: NDArray[np.floating], logit_scale: float, logit_bias: float | None = None
) -> NDArray[np.float64]:
    """Softmax of logit_scale * cosines [..., c] over the labels: the same shape, each row adds up to 1.

    With a bias, which SigLIP has, the sigmoid of logit_scale * cosine + logit_bias instead: each label on its own.
    Source: SigLIP, arXiv 2303.15343.
    """
    logits = logit_scale * cosines.astype(np.float64)
    if logit_bias is not None:
        return np.exp(-np.logaddexp(0, -(logits + logit_bias)))  # 1 / (1 + exp(-logit)) without an overflow
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def classify(
    classifier: Classifier,
    embedding: NDArray[np.float32],
    logit_scale: float,
    k: int = 5,
    logit_bias: float | None = None,
) -> list[Match]:
    """The k labels that fit an embedding [embed_dim] best, the most probable first.

    A label that occurs more than once comes once, with the best of its cosines and its probabilities added, or with a
    bias the best of them. Raises VectorError for an embedding of another size or without a direction, InputError for a
    k below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; expected a whole number from 1, of the labels to answer")
    check_same_size(embedding.size, classifier.vectors.shape[1])
    cosines = np.clip(classifier.vectors.astype(np.float64) @ unit_embedding(embedding), -1, 1)
    merged: dict[str, Match] = {}
    for label, probability, cosine in zip(classifier.labels, probabilities(cosines, logit_scale, logit_bias), cosines):
        known = merged.get(label, Match(label, 0.0, -1.0))
        both = (known.probability, float(probability))
        merged[label] = Match(label, sum(both) if logit_bias is None else max(both), max(known.cosine, float(cosine)))
    return sorted(merged.values(), key=lambda match: (-match.probability, -match.cosine))[:k]


def is_none_of_these(classifier: Classifier, best: Match) -> bool:
    """True if the best label fits no better than labels fit pictures that show none of them."""
    return best.cosine < classifier.unrelated_cosine
