"""The vectors of support/clip_vectors.py are like real CLIP vectors, no easier to search, and the same each time."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import clip_vectors

SEEDS = [0, 1, 2]


def thousand(seed: int) -> np.ndarray:
    return np.concatenate(list(clip_vectors.made(1000, seed)))


@pytest.mark.parametrize("seed", SEEDS)
def test_two_dimensions_hold_half_of_the_norm_each(seed):
    mean = thousand(seed).mean(0)
    assert np.linalg.norm(mean) == pytest.approx(clip_vectors.REAL_MEAN_NORM, abs=0.01)
    assert mean[[133, 312]] == pytest.approx(0.497, abs=0.01)
    assert np.argsort(-np.abs(mean))[:2].tolist() in ([133, 312], [312, 133])


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_left_of_the_mean_lies_in_about_as_many_dimensions_as_the_real_one(seed):
    vectors = thousand(seed)
    centred = vectors - vectors.mean(0)
    variance = np.linalg.eigvalsh(centred.T @ centred)
    assert variance.sum() ** 2 / (variance**2).sum() == pytest.approx(56, rel=0.15)  # of the real ones: 56


@pytest.mark.parametrize("seed", SEEDS)
def test_they_are_no_easier_to_search_than_the_real_ones(seed):
    made, real = clip_vectors.hardness(thousand(seed)), clip_vectors.REAL
    assert made.keys() == real.keys()
    assert made["mean_cosine"] == pytest.approx(real["mean_cosine"], abs=0.015)
    assert made["nearest"] - made["tenth"] == pytest.approx(real["nearest"] - real["tenth"], abs=0.01)
    for figure in ("nearest", "tenth", "bits_10", "bits_20", "bits_40", "bits_80"):
        assert made[figure] <= real[figure], figure
        assert made[figure] > 0.8 * real[figure], figure  # nor far from it


def test_hardness_is_one_where_the_signs_say_it_all():
    """For the corners of a cube the cosine follows from the sign bits, and each has ten neighbours one bit away."""
    corners = np.ones((11, clip_vectors.DIM), np.float32)
    corners[np.arange(11), np.arange(11)] = -1
    found = clip_vectors.hardness(clip_vectors.unit(corners), (5, 10))
    assert (found["bits_5"], found["bits_10"]) == (0.5, 1)
    assert found["nearest"] == found["tenth"] == pytest.approx(1 - 4 / clip_vectors.DIM)


def test_the_same_seed_makes_the_same_vectors_and_another_seed_others():
    first, again, other = thousand(3), thousand(3), thousand(4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    chunks = list(clip_vectors.made(clip_vectors.CHUNK + 5, 3))
    assert [chunk.shape for chunk in chunks] == [(clip_vectors.CHUNK, 512), (5, 512)]
    assert np.concatenate(chunks).dtype == np.float32
    assert len(np.unique(np.concatenate(chunks), axis=0)) == clip_vectors.CHUNK + 5


def test_memory_is_that_of_a_few_chunks_however_many_are_made(monkeypatch):
    monkeypatch.setattr(clip_vectors, "CHUNK", 500)
    peaks = []
    for count in (1_000, 10_000):
        tracemalloc.start()
        made = sum(len(chunk) for chunk in clip_vectors.made(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert made == count
    assert peaks[1] < 1.05 * peaks[0]


def test_queries_are_of_the_same_law_and_none_of_them_is_in_the_set():
    vectors, queries = thousand(0), clip_vectors.queries(100)
    cosines = queries @ vectors.T
    assert cosines.mean() == pytest.approx(clip_vectors.REAL["mean_cosine"], abs=0.02)
    assert cosines.max() < 0.999
    assert np.linalg.norm(queries, axis=1) == pytest.approx(1, abs=1e-5)


def test_queries_of_the_other_modality_lie_in_another_cone():
    """Unrelated vectors of two modalities have cosines of about 0.2, as images and texts have."""
    queries = clip_vectors.other_modality(200)
    assert queries.dtype == np.float32
    cosines = queries @ thousand(0).T
    assert cosines.mean() == pytest.approx(0.19, abs=0.03)
    assert 0.3 < np.max(cosines, axis=1).mean() < 0.5
