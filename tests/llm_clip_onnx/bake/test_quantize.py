"""Quantized numbers are off by at most half a scale, for any matrix."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from llm_clip_onnx.bake.quantize import quantize_columns, quantize_rows, rows_error

# No number but 0 is below 1e-30: a scale, which is 1/255 of the largest, is then a normal float32. Below 1.2e-38 float32
# has ever fewer digits, so that a scale there is rounded by more than SLACK. No weight of a model is so small.
NUMBERS = st.floats(-100, 100, width=32, allow_subnormal=False).map(lambda x: np.float32(0 if abs(x) < 1e-30 else x))
MATRICES = arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=NUMBERS)
SLACK = 1.001  # float32 rounding of the scale itself


@given(MATRICES)
def test_columns(weight):
    levels, scale, zero_point = quantize_columns(weight)
    assert (levels.dtype, scale.dtype, zero_point.dtype) == (np.uint8, np.float32, np.uint8)
    back = scale.astype(np.float64) * (levels.astype(np.int64) - zero_point)
    # The zero point is rounded too, so that at an end of the range a level may be a whole scale off.
    assert (np.abs(back - weight) <= scale * SLACK).all()
    assert np.mean(np.abs(back - weight) <= scale / 2 * SLACK) >= 0.5


@given(MATRICES)
def test_rows(table):
    levels, scale = quantize_rows(table)
    assert (levels.dtype, scale.dtype, scale.shape) == (np.int8, np.float32, (len(table), 1))
    assert (np.abs(scale.astype(np.float64) * levels - table) <= scale / 2 * SLACK).all()


def test_a_large_table_is_quantized_without_a_copy_of_it():
    """SigLIP 2's has 786 MB."""
    table = np.random.default_rng(0).standard_normal((60_000, 64)).astype(np.float32)
    levels, scale = quantize_rows(table)
    plain = np.linalg.norm(scale * levels - table) / np.linalg.norm(table - table.mean(0))
    tracemalloc.start()
    error = rows_error(table)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert error == pytest.approx(plain, rel=1e-4)
    assert peak_bytes < table.nbytes * 0.75  # a quarter is for the levels


@pytest.mark.parametrize("value", [0, 5, -5])
def test_a_constant_matrix_comes_back_whole(value):
    weight = np.full((4, 3), value, np.float32)
    levels, scale, zero_point = quantize_columns(weight)
    np.testing.assert_allclose(scale * (levels.astype(int) - zero_point), weight, rtol=1e-6)


def test_all_levels_are_used():
    random = np.random.default_rng(0)
    matrix = random.standard_normal((64, 16)).astype(np.float32)
    levels, _, _ = quantize_columns(matrix)
    assert (levels.max(0).astype(int) - levels.min(0) >= 254).all()
    levels, _ = quantize_rows(matrix)
    assert (np.abs(levels.astype(int)).max(1) == 127).all()
