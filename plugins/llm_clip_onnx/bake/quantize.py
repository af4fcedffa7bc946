"""Quantizes float32 matrices to 8 bits: linear layers per output column, the token table per row.

graph.py writes the results; eight_bit.py chooses the matrices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

BLOCK_ROWS = 4096


def quantize_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """A matrix [in, out] as levels [in, out] uint8, scale [out] float32 and zero_point [out] uint8.

    weight is about scale * (levels - zero_point): off by half a scale, at the ends of its range by up to one. Unsigned,
    because signed levels overflow in the 16-bit sums of CPUs without VNNI.
    """
    low, high = np.minimum(weight.min(0), 0), np.maximum(weight.max(0), 0)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale[scale == 0] = 1
    zero_point = np.clip(np.round(-low / scale), 0, 255).astype(np.uint8)
    levels = np.clip(np.round(weight / scale) + zero_point, 0, 255).astype(np.uint8)
    return levels, scale, zero_point


def quantize_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table [rows, width] as levels [rows, width] int8 and scale [rows, 1] float32: table is about scale * levels."""
    largest = np.maximum(table.max(1, keepdims=True), -table.min(1, keepdims=True))
    scale = (largest / np.float32(127)).astype(np.float32)
    scale[scale == 0] = 1
    levels = np.empty(table.shape, np.int8)
    for rows in blocks(table):
        levels[rows] = np.round(table[rows] / scale[rows])
    return levels, scale


def blocks(table: NDArray) -> Iterator[slice]:
    """The rows of a table, some thousand at a time: SigLIP 2's has 256,000, and a copy of it takes 786 MB."""
    for first in range(0, len(table), BLOCK_ROWS):
        yield slice(first, first + BLOCK_ROWS)


def rows_error(table: NDArray[np.float32]) -> float:
    """Root mean square error of a table in 8 bits, relative to its variation around the mean row."""
    levels, scale = quantize_rows(table)
    mean, off, varies = table.mean(0), 0.0, 0.0
    for rows in blocks(table):
        off += float(np.square(scale[rows] * levels[rows] - table[rows]).sum(dtype=np.float64))
        varies += float(np.square(table[rows] - mean).sum(dtype=np.float64))
    return (off / max(varies, 1e-60)) ** 0.5


def round_to_8_bits(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Activations as DynamicQuantizeMatMul rounds them: one scale and zero point for all of x; its range includes 0."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255 or 1)
    zero_point = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero_point, 0, 255) - zero_point) * scale


def product_in_8_bits(calls: Sequence[NDArray[np.float32]], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """x @ weight as an 8-bit linear layer computes it for each x [t, in] of `calls`, stacked: [all t, out]."""
    levels, scale, zero_point = quantize_columns(weight)
    back = levels.astype(np.float32)
    back -= zero_point
    back *= scale
    return np.concatenate([round_to_8_bits(x) for x in calls]) @ back
