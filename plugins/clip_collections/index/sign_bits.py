"""Sign bits: one bit per dimension of a vector, and a few numbers, from which its cosine with a query is estimated.

With c the mean of the unit vectors, x a unit vector, b = sign(x - c) as -1 and 1, and q the unit query:

    <q, x>  =  <q - c, x - c> + <q, c> + <c, x> - <c, c>
    <q - c, x - c>  is about  <q - c, b> * |x - c|^2 / |x - c|_1

All CLIP vectors share a large mean, on which signs would be wasted. A query of the other tower is far from it in a few
dimensions, where the estimate would be worst: those have 8 bits instead, and are left out of the line above. (Of
300,000 made vectors, the best 200 estimates then have 0.98 of a text's 10 best images, else 0.78.)
Source of the estimate: RaBitQ, arXiv 2405.12497, here without its rotation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORD = 64  # bits
BY_MEAN, BY_DEVIATION = 8, 8  # dimensions with the largest of these have 8 bits
# Of 1,000,000 made vectors the 5,000 with the nearest bits have the 10 best of every query that was tried.
NEAR = 10_000  # vectors whose bits differ least from the query's: their cosines are estimated
SIGNS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1  # [256, 8]


@dataclass(frozen=True, eq=False)
class Code:
    """What the bits mean. mean: c, [embed_dim]. dims: dimensions that have 8 bits, and the steps that these count."""

    mean: NDArray[np.float32]
    dims: NDArray[np.int32]  # [d]
    steps: NDArray[np.float32]  # [d]


def code_of(mean: NDArray[np.floating], deviation: NDArray[np.floating]) -> Code:
    """The code for unit vectors of a mean and a standard deviation, [embed_dim] each."""
    dims = sorted({*np.argsort(-np.abs(mean))[:BY_MEAN].tolist(), *np.argsort(-deviation)[:BY_DEVIATION].tolist()})
    steps = np.maximum(deviation[dims] * (4 / 127), 1e-12)  # 4 standard deviations, more is cut
    return Code(mean.astype(np.float32), np.array(dims, np.int32), steps.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some rows of a collection, by rowid. `ids` tells them apart from others: the CRC of each id.

    A row is wherever the same position of each of these is. bits: [words, n], so that one word of all is together.
    """

    rowids: NDArray[np.int64]  # [n], ascending
    ids: NDArray[np.uint32]  # [n]
    bits: NDArray[np.uint64]  # [words, n]
    corrections: NDArray[np.float32]  # [2, n]: |x - c|^2 / |x - c|_1, and <c, x>
    large: NDArray[np.int8]  # [d, n]: (x - c) / step

    def __len__(self) -> int:
        return len(self.rowids)

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (self.rowids, self.ids, self.bits, self.corrections, self.large))

    def also_in(self, other: Chunk) -> NDArray[np.bool_]:
        """Which rows stand in the other chunk too, all alike: [n]."""
        if not len(other):
            return np.zeros(len(self), bool)
        at = np.minimum(np.searchsorted(other.rowids, self.rowids), len(other) - 1)
        there = taken(other, at)
        same = (self.rowids == there.rowids) & (self.ids == there.ids)
        for name in ("bits", "corrections", "large"):
            same &= (getattr(self, name) == getattr(there, name)).all(0)
        return same


def words_of(embed_dim: int) -> int:
    return -(-embed_dim // WORD)


def bits_of(centred: NDArray[np.floating]) -> NDArray[np.uint64]:
    """The signs of vectors [n, embed_dim]: [n, words], what is beyond embed_dim 0."""
    packed = np.packbits(centred > 0, axis=1)  # [n, bytes]
    padded = np.zeros((len(packed), 8 * words_of(centred.shape[1])), np.uint8)
    padded[:, : packed.shape[1]] = packed
    return padded.view("<u8")


def chunk_of(rowids: NDArray[np.int64], ids: NDArray[np.uint32], units: NDArray[np.float32], code: Code) -> Chunk:
    """The chunk of unit vectors [n, embed_dim]."""
    centred = units - code.mean
    large = np.clip(np.rint(centred[:, code.dims] / code.steps), -127, 127).astype(np.int8)
    bits = bits_of(centred)
    centred[:, code.dims] = 0
    lengths = np.abs(centred).sum(1)
    factors = np.vecdot(centred, centred) / np.where(lengths == 0, 1, lengths)
    corrections = np.stack([factors, np.vecdot(units, code.mean)])
    return Chunk(rowids, ids, np.ascontiguousarray(bits.T), corrections, np.ascontiguousarray(large.T))


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Chunks, one or more, as one."""
    return Chunk(
        np.concatenate([chunk.rowids for chunk in chunks]),
        np.concatenate([chunk.ids for chunk in chunks]),
        np.concatenate([chunk.bits for chunk in chunks], axis=1),
        np.concatenate([chunk.corrections for chunk in chunks], axis=1),
        np.concatenate([chunk.large for chunk in chunks], axis=1),
    )


def taken(chunk: Chunk, at: NDArray[np.intp]) -> Chunk:
    """Some rows of a chunk."""
    return Chunk(
        chunk.rowids[at],
        chunk.ids[at],
        np.take(chunk.bits, at, axis=1),
        np.take(chunk.corrections, at, axis=1),
        np.take(chunk.large, at, axis=1),
    )


def shortlist(
    chunks: Sequence[Chunk],
    code: Code,
    unit_query: NDArray[np.float64],
    wanted: int,
    allowed: NDArray[np.int64] | None = None,
) -> Chunk:
    """The rows whose estimated cosines are the largest: `wanted` or fewer, in the order they stand in.

    `allowed` [m] are the only rowids to look at, ascending.
    """
    centred = (unit_query - code.mean).astype(np.float32)
    masks = None
    if allowed is not None:
        masks = [np.isin(chunk.rowids, allowed, assume_unique=True) for chunk in chunks]
    positions = nearest_bits(chunks, bits_of(centred[None])[0], max(NEAR, 4 * wanted), masks)
    near = joined([taken(chunk, at) for chunk, at in zip(chunks, positions)])
    if wanted >= len(near):
        return near
    best = np.argpartition(-estimates(near, code, centred), wanted)[:wanted]
    return taken(near, np.sort(best))


def estimates(chunk: Chunk, code: Code, centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """About the cosine of each row with a query, from which the mean was taken, but for what is the same for all."""
    small = centred.copy()
    small[code.dims] = 0
    of_large = (centred[code.dims] * code.steps) @ chunk.large.astype(np.float32)
    return dots(chunk.bits, small) * chunk.corrections[0] + chunk.corrections[1] + of_large


def dots(bits: NDArray[np.uint64], centred: NDArray[np.float32]) -> NDArray[np.float32]:
    """<centred, b> for the bits [words, n] of n vectors: [n]; by a table of what each value of each byte gives."""
    padded = np.zeros(WORD * len(bits), np.float32)
    padded[: centred.size] = centred
    table = np.ascontiguousarray((SIGNS @ padded.reshape(-1, 8).T).T)  # [bytes, 256]
    total = np.zeros(bits.shape[1], np.float32)
    for word, of_word in zip(bits, table.reshape(-1, 8, 256)):
        bytes_ = np.ascontiguousarray(word.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8).T)  # [8, n]
        for byte, of_byte in zip(bytes_, of_word):
            total += of_byte[byte]
    return total


def nearest_bits(
    chunks: Sequence[Chunk], query: NDArray[np.uint64], wanted: int, masks: Sequence[NDArray[np.bool_]] | None
) -> list[NDArray[np.intp]]:
    """Of each chunk the positions of the rows whose bits differ least from the query's [words], in their order.

    At most `wanted`; of those that differ alike the first.
    """
    n = sum(map(len, chunks))
    if n <= wanted:
        return [np.arange(len(c)) if masks is None else np.flatnonzero(masks[at]) for at, c in enumerate(chunks)]
    distances = far_from(query, chunks, masks)  # in two threads it takes as long
    counts = np.sum([np.bincount(d, minlength=WORD * len(query) + 2) for d in distances], axis=0)[:-1]
    below = np.cumsum(counts)
    limit = int(np.searchsorted(below, wanted))
    if limit == len(below):  # all that is allowed is wanted
        return [np.flatnonzero(d < limit) for d in distances]
    room = wanted - (int(below[limit - 1]) if limit else 0)
    positions = []
    for distance in distances:
        alike = np.flatnonzero(distance == limit)[:room]
        room -= len(alike)
        positions.append(np.sort(np.concatenate([np.flatnonzero(distance < limit), alike])))
    return positions


def far_from(
    query: NDArray[np.uint64], chunks: Sequence[Chunk], masks: Sequence[NDArray[np.bool_]] | None
) -> list[NDArray[np.uint16]]:
    """How many bits of each row differ from the query's; one more than there are where a mask does not allow it."""
    longest = max(map(len, chunks), default=0)
    xor, ones = np.empty(longest, np.uint64), np.empty(longest, np.uint8)
    distances = []
    for number, chunk in enumerate(chunks):
        n = len(chunk)
        distance = np.zeros(n, np.uint16)
        for column, word in zip(chunk.bits, query):
            np.bitwise_xor(column, word, out=xor[:n])
            np.bitwise_count(xor[:n], out=ones[:n])
            distance += ones[:n]
        if masks is not None:
            distance[~masks[number]] = WORD * len(query) + 1
        distances.append(distance)
    return distances
