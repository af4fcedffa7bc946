"""Reads and writes vector blobs, and computes with embeddings: norm, unit embedding, cosine, average.

A vector blob is one embedding as SQLite stores it: 4 * embed_dim bytes, little-endian float32, as `llm` writes it.
Only here two vectors of different sizes, and vectors without a direction, are refused.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import VectorError, cited

LITTLE_FLOAT32 = np.dtype("<f4")


def to_blob(embedding: NDArray[np.float32]) -> bytes:
    """The vector blob of one embedding [embed_dim]: 4 * embed_dim bytes."""
    return embedding.astype(LITTLE_FLOAT32, copy=False).tobytes()


def from_blob(blob: bytes, embed_dim: int | None = None) -> NDArray[np.float32]:
    """The embedding [embed_dim] float32 that a vector blob holds, read-only and without a copy.

    Raises VectorError for anything but bytes, for no bytes, for a length that is no multiple of 4, and for a vector of
    another size if `embed_dim` is given.
    """
    if not isinstance(blob, bytes):
        raise VectorError(f"{type(blob).__name__} is not a vector blob: expected a BLOB of 4 bytes per dimension")
    if not blob or len(blob) % 4:
        raise VectorError(f"{cited(blob)} is not a vector blob: expected 4 bytes per dimension")
    embedding = np.frombuffer(blob, LITTLE_FLOAT32)
    if embed_dim is not None and embedding.size != embed_dim:
        raise VectorError(f"{embedding.size} dimensions; vectors of this model have {embed_dim}")
    return embedding


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
    """Unit embeddings of embeddings [..., embed_dim], of the same shape and dtype; a zero embedding stays zero."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.where(norms == 0, 1, norms)


def norm(embedding: NDArray[np.floating]) -> float:
    """The L2 norm of an embedding [embed_dim], summed in float64.

    Raises VectorError if it is zero or not finite, because such a vector has no direction.
    """
    wide = embedding.astype(np.float64)
    length = math.sqrt(wide.dot(wide))
    if not 0 < length < math.inf:
        raise VectorError("a vector of zeros, infinities or NaN has no direction, so no cosine")
    return length


def check_direction(embedding: NDArray[np.floating]) -> None:
    """Raises VectorError if an embedding [embed_dim] has no direction."""
    norm(embedding)


def unit_embedding(embedding: NDArray[np.floating]) -> NDArray[np.float64]:
    """The unit embedding [embed_dim] float64 of one embedding. Raises VectorError if it has no direction."""
    return embedding.astype(np.float64) / norm(embedding)


def check_same_size(a: int, b: int) -> None:
    """Raises VectorError with both numbers if two vectors of `a` and `b` dimensions cannot be compared."""
    if a != b:
        raise VectorError(f"{a} and {b} dimensions; both vectors must come from one model")


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Cosine of two embeddings [embed_dim], computed in float64: -1 to 1.

    Raises VectorError if their sizes differ, or if one of them has no direction.
    """
    check_same_size(a.size, b.size)
    product = a.astype(np.float64).dot(b.astype(np.float64))
    return max(-1.0, min(1.0, float(product) / (norm(a) * norm(b))))  # rounding may give 2e-16 more than 1


class Average:
    """The mean of embeddings that are added one by one, summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.float64] | None = None

    def add(self, embedding: NDArray[np.floating]) -> None:
        """Add one embedding [embed_dim]. Raises VectorError if it is not of the size of the first one."""
        if self._sum is None:
            self._sum = np.zeros(embedding.shape, np.float64)
        if self._sum.shape != embedding.shape:
            raise VectorError(
                f"{self._sum.size} and {embedding.size} dimensions; all vectors of an average must come from one model"
            )
        self._sum += embedding.astype(np.float64)
        self.count += 1

    def mean(self) -> NDArray[np.float32] | None:
        """The mean [embed_dim] float32, or None if nothing was added."""
        return None if self._sum is None else (self._sum / self.count).astype(np.float32)
