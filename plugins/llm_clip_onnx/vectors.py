"""The vector blob, and the few things that are computed with one: unit, cosine, average.

A vector blob is one embedding as SQLite stores it: 4 * embed_dim bytes, little-endian float32, as `llm` writes it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .errors import VectorError

LITTLE_FLOAT32 = np.dtype("<f4")


def to_blob(embedding: NDArray[np.float32]) -> bytes:
    """The vector blob of one embedding [embed_dim]: 4 * embed_dim bytes."""
    return embedding.astype(LITTLE_FLOAT32, copy=False).tobytes()


def from_blob(blob: bytes) -> NDArray[np.float32]:
    """The embedding [embed_dim] float32 that a vector blob holds, read-only and without a copy.

    Raises VectorError for anything but bytes, for no bytes, and for a length that is no multiple of 4.
    """
    if not isinstance(blob, bytes):
        raise VectorError(f"{type(blob).__name__} is not a vector blob: expected a BLOB of 4 bytes per dimension")
    if not blob or len(blob) % 4:
        raise VectorError(f"a BLOB of {len(blob)} bytes is not a vector blob: expected 4 bytes per dimension")
    return np.frombuffer(blob, LITTLE_FLOAT32)


def unit(embeddings: NDArray[np.floating]) -> NDArray[np.floating]:
    """Embeddings [..., embed_dim] divided by their L2 norms; a zero embedding stays zero."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.where(norms == 0, 1, norms)


def cosine(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Cosine of two embeddings [embed_dim], computed in float64: -1 to 1.

    Raises VectorError where the dimensions differ, or where one of the two is zero or not finite and has no direction.
    """
    if a.shape != b.shape:
        raise VectorError(f"{a.size} and {b.size} dimensions; both vectors must come from one model")
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = math.sqrt(a.dot(a)) * math.sqrt(b.dot(b))
    if not 0 < norms < math.inf:
        raise VectorError("a vector of zeros, infinities or NaN has no direction, so no cosine")
    return max(-1.0, min(1.0, float(a.dot(b) / norms)))  # rounding may leave it 2e-16 beyond


class Average:
    """The mean of embeddings that come one by one, summed in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.float64] | None = None

    def add(self, embedding: NDArray[np.floating]) -> None:
        """Take one embedding [embed_dim] more. Raises VectorError where its dimensions differ from the first one's."""
        if self._sum is None:
            self._sum = np.zeros(embedding.shape, np.float64)
        if self._sum.shape != embedding.shape:
            raise VectorError(
                f"{self._sum.size} and {embedding.size} dimensions; all vectors of an average must come from one model"
            )
        self._sum += embedding.astype(np.float64)
        self.count += 1

    def mean(self) -> NDArray[np.float32] | None:
        """[embed_dim] float32, or None where nothing was added."""
        return None if self._sum is None else (self._sum / self.count).astype(np.float32)
