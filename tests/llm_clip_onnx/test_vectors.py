"""Vector blobs are those that `llm` writes, and calculations with them are right or refused."""

from __future__ import annotations

import math
import struct

import llm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_clip_onnx import vectors
from llm_clip_onnx.errors import VectorError

FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20)


@given(FLOATS)
def test_a_blob_is_llms_own(numbers):
    blob = vectors.to_blob(np.array(numbers, np.float32))
    assert blob == llm.encode(numbers) == struct.pack(f"<{len(numbers)}f", *numbers)
    assert vectors.from_blob(blob).tolist() == list(llm.decode(blob))


def test_big_endian_numbers_are_written_little_endian():
    assert vectors.to_blob(np.array([1.0], ">f4")) == b"\x00\x00\x80?"


@pytest.mark.parametrize(
    ("blob", "sentence"),
    [
        (b"", "a BLOB of 0 bytes is not a vector blob: expected 4 bytes per dimension"),
        (b"abcde", "a BLOB of 5 bytes is not a vector blob: expected 4 bytes per dimension"),
        ("abcd", "str is not a vector blob: expected a BLOB of 4 bytes per dimension"),
    ],
)
def test_what_is_no_vector_blob_is_refused(blob, sentence):
    with pytest.raises(VectorError) as raised:
        vectors.from_blob(blob)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [([1, 0], [0, 2], 0), ([3, 4], [3, 4], 1), ([1, 1], [-2, -2], -1), ([1, 0], [1, 1], math.sqrt(0.5))],
)
def test_cosine(a, b, expected):
    assert vectors.cosine(np.float32(a), np.float32(b)) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("a", "b", "sentence"),
    [
        ([1] * 512, [1] * 768, "512 and 768 dimensions; both vectors must come from one model"),
        ([0, 0], [1, 0], "a vector of zeros, infinities or NaN has no direction, so no cosine"),
        ([math.nan, 0], [1, 0], "a vector of zeros, infinities or NaN has no direction, so no cosine"),
    ],
)
def test_cosine_refuses_what_has_none(a, b, sentence):
    with pytest.raises(VectorError) as raised:
        vectors.cosine(np.float32(a), np.float32(b))
    assert str(raised.value) == sentence


def test_a_blob_of_another_size_than_the_models_is_refused_with_both_numbers():
    blob = vectors.to_blob(np.ones(512, np.float32))
    assert vectors.from_blob(blob, 512).tolist() == [1] * 512
    with pytest.raises(VectorError) as raised:
        vectors.from_blob(blob, 768)
    assert str(raised.value) == "512 dimensions; vectors of this model have 768"


@pytest.mark.parametrize("function", [vectors.check_direction, vectors.unit_embedding, vectors.norm])
@pytest.mark.parametrize("numbers", [[0, 0], [math.inf, 1], [math.nan, 1]])
def test_a_vector_without_a_direction_is_refused(numbers, function):
    with pytest.raises(VectorError, match="a vector of zeros, infinities or NaN has no direction, so no cosine"):
        function(np.float32(numbers))


def test_the_smallest_vector_has_a_direction():
    assert vectors.unit_embedding(np.float32([1e-45, 0])).tolist() == [1, 0]


def test_unit_and_a_zero_vector():
    np.testing.assert_allclose(vectors.unit(np.float32([[3, 4], [0, 0]])), [[0.6, 0.8], [0, 0]], atol=1e-7)


def test_average():
    average = vectors.Average()
    assert average.mean() is None
    average.add(np.float32([1, 2]))
    average.add(np.float32([3, 6]))
    mean = average.mean()
    assert mean.tolist() == [2, 4]
    assert mean.dtype == np.float32
    with pytest.raises(VectorError, match="2 and 3 dimensions; all vectors of an average must come from one model"):
        average.add(np.float32([1, 2, 3]))
