"""Makes any number of vectors that are distributed as CLIP's, to test and measure search at scale.

    made(1_000_000)         chunks of unit vectors [m, 512] float32, the same for the same seed
    queries(100)            more vectors of the same distribution; none of them is in the set
    other_modality(100)     queries as the other tower gives them: images lie in another cone than texts

The constants were measured on OpenAI's ViT-B/32: on its text vectors of ImageNet's 1,000 classes, each the mean over
the 80 published templates, as several projects publish them in one file of [512, 1000]. `hardness` measures how well
sign bits find the nearest vectors of a set; a thousand made vectors are no easier than the real ones
(tests/llm_clip_onnx/test_clip_vectors.py). 1,000 vectors do not tell how dense a million lie; here they are of 20,000 things, some
common and some rare, of 300 kinds. Of 20,000 made vectors the best 40 by sign bits hold 0.97 of the 10 nearest, of
1,000,000 they hold 0.59; of the 1,000 real ones 0.91 (bench/search). No two vectors are near duplicates, as photos of a
real collection often are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

DIM = 512
CHUNK = 10_000
SHORTLISTS = (10, 20, 40, 80)  # lengths of the shortlists that `hardness` measures

# The direction of the mean, as a unit vector: two dimensions hold 0.627 of it each (about 0.5 of each vector's norm),
# the next ones a tenth; the other 498 are noise of standard deviation REST.
OUTLIERS = {133: 0.627, 312: 0.626, 92: -0.163, 329: -0.148, 121: -0.131, 7: -0.098, 493: 0.097, 305: -0.079}
OUTLIERS |= {390: -0.072, 504: 0.070, 93: 0.053, 423: -0.051, 211: 0.047, 220: 0.047}
REST = 0.0145

# A vector's ray meets the plane that touches the unit ball at the mean direction: share of vectors -> their largest
# distance there from the point of touch.
DISTANCES = {0: 0.433, 0.01: 0.482, 0.1: 0.562, 0.25: 0.614, 0.5: 0.697}
DISTANCES |= {0.75: 0.845, 0.9: 1.123, 0.99: 1.675, 1: 2.207}

# j -> share of that plane's variance along the j-th principal axis; between these j the logarithm is interpolated.
SPECTRUM = {0: 0.1, 1: 0.046, 2: 0.028, 5: 0.021, 10: 0.016, 20: 0.0097, 50: 0.0045, 100: 0.0022, 150: 0.0012}
SPECTRUM |= {200: 7.6e-4, 250: 4.5e-4, 300: 2.6e-4, 350: 1.4e-4, 400: 7e-5, 450: 2.8e-5, 500: 8.6e-7, 510: 2e-9}

# Clusters: a vector is of a thing, a thing is of a kind. The shares of the variance that kind and thing explain are
# chosen so that among 1,000 vectors the cosines to the nearest and to the 10th are about the real ones, and no higher.
KINDS, THINGS = 300, 20_000
KIND_SHARE, THING_SHARE = 0.5, 0.1

# The cosine of the two towers' mean directions. The cosine of an image and an unrelated text is about 0.2, that of a
# pair about 0.3 (OpenAI's own examples of ViT-B/32).
GAP_COSINE = 0.3

# `hardness` of the real vectors, and the norm of their mean.
REAL = {"mean_cosine": 0.627, "nearest": 0.853, "tenth": 0.778}
REAL |= {"bits_10": 0.620, "bits_20": 0.805, "bits_40": 0.910, "bits_80": 0.962}
REAL_MEAN_NORM = 0.792


class Law:
    """The distribution of the vectors: mean direction, axes and centres, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng([seed, 0])
        self.mean = random.standard_normal(DIM).astype(np.float32) * REST  # [512]
        self.mean[list(OUTLIERS)] = list(OUTLIERS.values())
        self.mean /= np.linalg.norm(self.mean)
        axes = np.linalg.qr(random.standard_normal((DIM, DIM)))[0].astype(np.float32)  # [512, 512] rows are axes
        axes -= np.outer(axes @ self.mean, self.mean)  # into the plane
        shares = np.exp(np.interp(np.arange(DIM), list(SPECTRUM), np.log(list(SPECTRUM.values()))))
        self.axes = (np.sqrt(shares / shares.sum())[:, None] * axes).astype(np.float32)
        self.kinds = random.standard_normal((KINDS, DIM), np.float32)
        self.things = random.standard_normal((THINGS, DIM), np.float32)

    def draw(self, count: int, random: np.random.Generator) -> NDArray[np.float32]:
        """`count` unit vectors: [count, 512] float32."""
        return unit(self.mean + self.offsets(count, random))

    def offsets(self, count: int, random: np.random.Generator) -> NDArray[np.float32]:
        """`count` positions in the plane, relative to the mean direction: [count, 512] float32."""
        thing = (THINGS * random.random(count) ** 2).astype(np.int64)  # the first are common, the last are rare
        place = random.standard_normal((count, DIM), np.float32) * np.float32(np.sqrt(1 - KIND_SHARE - THING_SHARE))
        place += np.sqrt(np.float32(KIND_SHARE)) * self.kinds[thing % KINDS]
        place += np.sqrt(np.float32(THING_SHARE)) * self.things[thing]
        distance = np.interp(random.random((count, 1)), list(DISTANCES), list(DISTANCES.values()))
        return unit(place @ self.axes) * distance.astype(np.float32)


def unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made(count: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    """`count` unit vectors in chunks of at most CHUNK: each [m, 512] float32.

    Memory is a few chunks (20 MB each) and the law's 42 MB for any count. A larger count begins with the same whole
    chunks.
    """
    law = Law(seed)
    for number, start in enumerate(range(0, count, CHUNK)):
        yield law.draw(min(CHUNK, count - start), np.random.default_rng([seed, 1, number]))


def queries(count: int, seed: int = 0) -> NDArray[np.float32]:
    """`count` other unit vectors of the law of `made(..., seed)`: [count, 512] float32."""
    return Law(seed).draw(count, np.random.default_rng([seed, 2]))


def other_modality(count: int, seed: int = 0) -> NDArray[np.float32]:
    """`count` unit vectors as the other tower gives them: [count, 512] float32. The same law about another mean."""
    law, random = Law(seed), np.random.default_rng([seed, 3])
    away = random.standard_normal(DIM).astype(np.float32)
    away -= away @ law.mean * law.mean
    mean = GAP_COSINE * law.mean + np.float32(np.sqrt(1 - GAP_COSINE**2)) * away / np.linalg.norm(away)
    return unit(mean + law.offsets(count, random))


def nearest(vectors: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """For each unit vector of a set [n, 512], cosines to all others, highest first, and their rows: both [n, n - 1]."""
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :-1]
    return np.take_along_axis(cosines, order, axis=1), order


def hardness(vectors: NDArray[np.float32], shortlists: Sequence[int] = SHORTLISTS) -> dict[str, float]:
    """How hard a small set of unit vectors [n, 512] is to search; each vector is a query for the others.

    mean_cosine     mean cosine of two vectors
    nearest, tenth  cosine to the nearest and to the 10th nearest, mean over queries
    bits_10 ...     share of the true 10 nearest among the 10 ... that differ in the fewest sign bits
    """
    cosines, true = nearest(vectors)
    figures = {"mean_cosine": cosines.mean(), "nearest": cosines[:, 0].mean(), "tenth": cosines[:, 9].mean()}
    agreeing = signs_agreeing(vectors, vectors)
    np.fill_diagonal(agreeing, -DIM)
    shares = in_shortlists(agreeing, true[:, :10], shortlists)
    return {name: float(figure) for name, figure in figures.items()} | shares


def signs_agreeing(queries: NDArray[np.float32], vectors: NDArray[np.float32]) -> NDArray[np.int16]:
    """Agreeing minus differing signs of queries [q, 512] and vectors [n, 512]: [q, n] int16, -512 to 512."""
    a, b = (np.where(some > 0, np.float32(1), np.float32(-1)) for some in (queries, vectors))
    return (a @ b.T).astype(np.int16)


def in_shortlists(
    agreeing: NDArray[np.int16], true: NDArray[np.intp], shortlists: Sequence[int] = SHORTLISTS
) -> dict[str, float]:
    """Share of the true columns [q, 10] in shortlists of the largest `agreeing` [q, n]. Ties go to the first column."""
    figures = {}
    order = np.argsort(-agreeing, axis=1, kind="stable")[:, : max(shortlists)]
    for length in shortlists:
        shares = [np.isin(wanted, row[:length]).mean() for wanted, row in zip(true, order)]
        figures[f"bits_{length}"] = float(np.mean(shares))
    return figures
