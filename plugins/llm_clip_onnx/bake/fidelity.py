"""How far a baked tower agrees with its reference, on fixed inputs, and whether that is enough.

Plain cosine flatters: all CLIP embeddings share a large part, so an error in the part that carries meaning hardly
shows. Centred cosine takes the mean of the reference's embeddings off both sides first, and is what 8-bit towers are
judged by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import FidelityError
from ..model_dir import Agreement, Manifest
from ..vectors import unit
from .samples import TEXTS

FLOAT32_MINIMUM = 0.9999  # worst cosine, plain and centred, with the independent forward pass
INT8_MINIMUM = {"text": 0.995, "image": 0.99}  # worst centred cosine with the float32 tower

# Values that others published for OpenAI's ViT-B/32. `at` says which numbers of the embedding; unit ones are of norm 1.
PUBLISHED_FOR = ("sentence-transformers/clip-ViT-B-32", "openai/clip-vit-base-patch32")
PUBLISHED: tuple[dict, ...] = (
    {
        "text": "hello world",
        "unit": True,
        "at": slice(0, 5),
        "values": (0.0083, 0.0103, -0.0138, 0.0199, -0.0069),
        "source": "qdrant/fastembed tests",
    },
    {
        "text": "she smiled, with pain",
        "unit": False,
        "at": slice(0, 3),
        "values": (-0.09136295, 0.42720157, -0.05784469),
        "source": "jina clip-as-service documentation",
    },
    {
        "text": "she smiled, with pain",
        "unit": False,
        "at": slice(-3, None),
        "values": (-0.42873043, 0.04472527, 0.4437953),
        "source": "jina clip-as-service documentation",
    },
)
PUBLISHED_TOLERANCE = 1e-3  # of each number, in float32
RECOGNISED = 1e-2  # so near, they are OpenAI's weights wherever they came from: others are off by far more

# The unit class vector of one label of ImageNet, by the 80 templates of OpenAI's notebook.
PUBLISHED_CLASS = {
    "label": "tench",
    "templates_sha256": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",  # of all, one a line
    "values": (0.0053, 0.0009, 0.0161, -0.0071, 0.0136),  # its first numbers
    "source": "woctezuma/heroku-clip",
}
LABELS_MINIMUM = 0.9999  # cosine of a class vector with the same made again: rounding may differ on another processor
# Of each number. At the edge of INT8_MINIMUM an 8-bit tower is off by 0.10 of what tells texts apart, about half of a
# unit embedding: by 0.002 for each of 512 numbers (root mean square), and five times that is allowed. Random weights of
# ViT-B/32's shape were off by 0.0014 for a prompt, and 0.0009 for a class vector, for not all errors average out.
# Of the other 999 class vectors published there none comes as near.
CLASS_TOLERANCE = {"fp32": 1e-3, "int8": 1e-2}


def agreement(found: NDArray[np.float32], reference: NDArray[np.float32], inputs: Sequence[str]) -> Agreement:
    """How far embeddings [n, embed_dim] agree with the reference's, row by row; `inputs` names the rows."""
    plain = (unit(found) * unit(reference)).sum(1, dtype=np.float64)
    middle = reference.mean(0)
    centred = (unit(found - middle) * unit(reference - middle)).sum(1, dtype=np.float64)
    plain, centred = np.nan_to_num(plain, nan=-1.0), np.nan_to_num(centred, nan=-1.0)
    worst, mean, worst_centred, mean_centred = (
        round(float(figure), 6) for figure in (plain.min(), plain.mean(), centred.min(), centred.mean())
    )
    same = round(neighbours_in_common(found, reference), 4)
    return Agreement(len(inputs), worst, mean, worst_centred, mean_centred, same, inputs[int(centred.argmin())])


def neighbours_in_common(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Of each row's nearest others by cosine, ten or a quarter of the rows, the share that both sets have; 0 to 1."""
    n = len(reference)
    k = max(1, min(10, n // 4))
    nearest = []
    for embeddings in (found, reference):
        cosines = np.nan_to_num(unit(embeddings) @ unit(embeddings).T, nan=-1)
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k].tolist())
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*nearest)]))


def float32_agrees(result: Agreement) -> bool:
    return min(result.worst, result.worst_centred) >= FLOAT32_MINIMUM


def int8_agrees(tower: str, result: Agreement) -> bool:
    return result.worst_centred >= INT8_MINIMUM[tower]


def agrees(tower: str, precision: str, result: Agreement) -> bool:
    return float32_agrees(result) if precision == "fp32" else int8_agrees(tower, result)


def refusal(tower: str, precision: str, result: Agreement) -> FidelityError:
    """The exception that says which tower failed, by how much and on which input."""
    minimum = FLOAT32_MINIMUM if precision == "fp32" else INT8_MINIMUM[tower]
    way_out = "" if precision == "fp32" else "; bake with --precision fp32, or auto"
    return FidelityError(
        f"the {precision} {tower} tower does not agree with its reference: worst cosine {result.worst:.4f}, "
        f"centred {result.worst_centred:.4f} on {result.worst_input[:60]!r}; expected at least {minimum}{way_out}"
    )


def published_differences(
    texts: Sequence[str], embeddings: NDArray[np.float32], published: Sequence[dict] = PUBLISHED
) -> list[float]:
    """For each published value, by how much a number is off. `embeddings` [n, embed_dim] float32 are those of `texts`.

    8-bit towers are not compared here: that they agree with the float32 one is measured on all numbers.
    """
    differences = []
    for golden in published:
        embedding = embeddings[list(texts).index(golden["text"])].astype(np.float64)
        embedding = unit(embedding) if golden["unit"] else embedding
        differences.append(float(np.abs(embedding[golden["at"]] - np.array(golden["values"])).max()))
    return differences


def are_openais(manifest: Manifest, text_reference: NDArray[np.float32]) -> bool:
    """Whether the weights of a model directory are OpenAI's ViT-B/32: it says so, or its reference embeddings do."""
    return manifest.source.id in PUBLISHED_FOR or max(published_differences(TEXTS, text_reference)) <= RECOGNISED


def published_class_difference(
    labels: Sequence[str], templates: Sequence[str], vectors: NDArray[np.float32]
) -> float | None:
    """By how much a number of PUBLISHED_CLASS is off in class vectors [c, embed_dim]; None where they are others."""
    of_templates = hashlib.sha256("\n".join(templates).encode()).hexdigest()
    if PUBLISHED_CLASS["label"] not in labels or of_templates != PUBLISHED_CLASS["templates_sha256"]:
        return None
    expected = np.array(PUBLISHED_CLASS["values"])
    return float(np.abs(vectors[list(labels).index("tench"), : len(expected)] - expected).max())
