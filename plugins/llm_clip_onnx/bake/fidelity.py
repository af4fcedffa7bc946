"""Measures how far a baked tower agrees with its reference on fixed inputs, and decides if that is enough.

Plain cosine flatters: all CLIP embeddings share a large part, so an error in the part that carries meaning hardly
shows. Centred cosine subtracts the mean of the reference's embeddings from both sides first; 8-bit towers are judged
by it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..errors import FidelityError, cited
from ..model_dir import Agreement, Manifest
from ..vectors import unit
from .samples import TEXTS

FLOAT32_MINIMUM = 0.9999  # worst cosine, plain and centred, with the independent forward pass
INT8_MINIMUM = {"text": 0.995, "image": 0.99}  # worst centred cosine with the float32 tower

# Published values of OpenAI's ViT-B/32. `at`: which numbers of the embedding; `unit`: of the unit embedding.
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
OPENAI_TOLERANCE = 1e-2  # weights this near are OpenAI's, wherever they came from; others are off by far more

# The unit class vector of one label of ImageNet, by the 80 templates of OpenAI's notebook.
PUBLISHED_CLASS = {
    "label": "tench",
    "templates_sha256": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",  # of all, one a line
    "values": (0.0053, 0.0009, 0.0161, -0.0071, 0.0136),  # its first numbers
    "source": "woctezuma/heroku-clip",
}
LABELS_MINIMUM = 0.9999  # cosine of a class vector with itself made again; another processor may round differently
# Of each number. At the edge of INT8_MINIMUM an 8-bit tower is off by 0.10 of the part that tells texts apart, which is
# about half of a unit embedding: 0.002 in each of 512 numbers (root mean square). Five times that is allowed. Random
# weights of ViT-B/32's shape were off by 0.0014 for a prompt and 0.0009 for a class vector. None of the other 999
# published class vectors comes as near.
CLASS_TOLERANCE = {"fp32": 1e-3, "int8": 1e-2}


def agreement(embeddings: NDArray[np.float32], reference: NDArray[np.float32], inputs: Sequence[str]) -> Agreement:
    """How far embeddings [n, embed_dim] agree row by row with the reference's; `inputs` names the rows."""
    plain = (unit(embeddings) * unit(reference)).sum(1, dtype=np.float64)
    middle = reference.mean(0)
    centred = (unit(embeddings - middle) * unit(reference - middle)).sum(1, dtype=np.float64)
    plain, centred = np.nan_to_num(plain, nan=-1.0), np.nan_to_num(centred, nan=-1.0)
    worst, mean, worst_centred, mean_centred = (
        round(float(figure), 6) for figure in (plain.min(), plain.mean(), centred.min(), centred.mean())
    )
    same = round(neighbours_in_common(embeddings, reference), 4)
    return Agreement(len(inputs), worst, mean, worst_centred, mean_centred, same, inputs[int(centred.argmin())])


def neighbours_in_common(embeddings: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """The share of each row's nearest others by cosine that both sets have in common, 0 to 1.

    Ten others are compared, or a quarter of the rows if that is fewer.
    """
    n = len(reference)
    k = max(1, min(10, n // 4))
    nearest = []
    for vectors in (embeddings, reference):
        cosines = np.nan_to_num(unit(vectors) @ unit(vectors).T, nan=-1)
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argsort(-cosines, axis=1, kind="stable")[:, :k].tolist())
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(*nearest)]))


def summary(result: Agreement) -> str:
    """The two figures that the bake reports for a tower."""
    return f"worst cosine {result.worst:.6f}, centred {result.worst_centred:.6f}"


def float32_agrees(result: Agreement) -> bool:
    return min(result.worst, result.worst_centred) >= FLOAT32_MINIMUM


def int8_agrees(tower: str, result: Agreement) -> bool:
    return result.worst_centred >= INT8_MINIMUM[tower]


def agrees(tower: str, precision: str, result: Agreement) -> bool:
    return float32_agrees(result) if precision == "fp32" else int8_agrees(tower, result)


def disagreement(tower: str, precision: str, result: Agreement) -> FidelityError:
    """The exception that says which tower failed, by how much and on which input."""
    minimum = FLOAT32_MINIMUM if precision == "fp32" else INT8_MINIMUM[tower]
    way_out = "" if precision == "fp32" else "; bake with --precision fp32, or auto"
    return FidelityError(
        f"the {precision} {tower} tower does not agree with its reference: worst cosine {result.worst:.4f}, "
        f"centred {result.worst_centred:.4f} on {cited(result.worst_input)}; expected at least {minimum}{way_out}"
    )


def published_differences(
    texts: Sequence[str], embeddings: NDArray[np.float32], published: Sequence[dict] = PUBLISHED
) -> list[float]:
    """For each published embedding, the largest difference of a number. embeddings: of `texts`, [n, embed_dim] float32.

    Only float32 towers are compared here, because 8-bit ones are compared with those in all numbers.
    """
    differences = []
    for golden in published:
        embedding = embeddings[list(texts).index(golden["text"])].astype(np.float64)
        embedding = unit(embedding) if golden["unit"] else embedding
        differences.append(float(np.abs(embedding[golden["at"]] - np.array(golden["values"])).max()))
    return differences


def is_openai(manifest: Manifest, text_reference: NDArray[np.float32]) -> bool:
    """True if the weights are OpenAI's ViT-B/32, by the name of their source or by their reference embeddings."""
    return manifest.source.id in PUBLISHED_FOR or max(published_differences(TEXTS, text_reference)) <= OPENAI_TOLERANCE


def published_class_difference(
    labels: Sequence[str], templates: Sequence[str], vectors: NDArray[np.float32]
) -> float | None:
    """The largest difference to PUBLISHED_CLASS in class vectors [c, embed_dim]; None for other labels or templates."""
    templates_sha256 = hashlib.sha256("\n".join(templates).encode()).hexdigest()
    if PUBLISHED_CLASS["label"] not in labels or templates_sha256 != PUBLISHED_CLASS["templates_sha256"]:
        return None
    expected = np.array(PUBLISHED_CLASS["values"])
    return float(np.abs(vectors[list(labels).index("tench"), : len(expected)] - expected).max())
