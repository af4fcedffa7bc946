"""Merges byte pairs by tables that are mapped from a file, for vocabularies that take long to read, such as Gemma's.

The `tokenizers` library reads 256,000 tokens and their merges whenever a process starts; here they are opened as they
are. The ids are the same, see `merged`. White space is siglip_tokenizer's.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Find = Callable[[int, int], int]
ID_BITS = 32
ID = (1 << ID_BITS) - 1
RECENT_PAIRS = 20_000
NONE = (1 << 64) - 1  # the value of a pair that is not merged


class BytePairs:
    """A vocabulary in two files.

    pairs: [2, merges] uint64, of each merge its two ids, sorted, and beneath them its rank and the id that it makes;
    of two numbers each, the first is in the upper 32 bits. characters: JSON, the ids of the tokens of one character, of
    the 256 bytes that stand for all other characters, and of named tokens.
    """

    def __init__(self, pairs: Path, characters: Path):
        self._keys, self._values = np.load(pairs, mmap_mode="r")
        content = json.loads(characters.read_text(encoding="utf-8"))
        self._characters, self._bytes = content["characters"], content["bytes"]
        self.named: dict[str, int] = content["named"]
        self.find: Find = lru_cache(RECENT_PAIRS)(self._find)

    def ids_of(self, word: str) -> list[int]:
        """The ids of a word. Raises UnicodeEncodeError for a lone surrogate."""
        ids: list[int] = []
        for letter in word:
            known = self._characters.get(letter)
            ids += [self._bytes[byte] for byte in letter.encode()] if known is None else [known]
        return merged(ids, self.find)

    def _find(self, left: int, right: int) -> int:
        """Rank and id of the merge of two ids, as one number; NONE if they are not merged."""
        key = np.uint64(left << ID_BITS | right)  # of another type, searchsorted would convert the whole table
        at = int(self._keys.searchsorted(key))
        return int(self._values[at]) if at < len(self._keys) and self._keys[at] == key else NONE


def merged(ids: list[int], find: Find) -> list[int]:
    """Ids, merged as long as there is a pair to merge: the one of the lowest rank first, of equal ones the leftmost.

    Each id knows the place of the next one, so that a merge takes no longer in a long word. Source: Word::merge_all,
    huggingface/tokenizers models/bpe/word.rs.
    """
    if len(ids) < 2:
        return ids
    following, before = [*range(1, len(ids) + 1)], [*range(-1, len(ids) - 1)]
    end, gone = len(ids), -1
    ids = list(ids)
    waiting: list[tuple[int, int]] = []

    def push(at: int) -> None:
        if at >= 0 and following[at] < end and (value := find(ids[at], ids[following[at]])) != NONE:
            heapq.heappush(waiting, (value, at))

    for at in range(end - 1):
        push(at)
    while waiting:
        value, at = heapq.heappop(waiting)
        right = following[at] if ids[at] != gone else end
        if right == end or find(ids[at], ids[right]) != value:
            continue  # one of the two was merged with another since
        ids[at], ids[right], following[at] = value & ID, gone, following[right]
        if following[at] < end:
            before[following[at]] = at
        push(before[at])
        push(at)
    return [id for id in ids if id != gone]


def tables(
    vocab: Mapping[str, int], merges: Iterable[tuple[str, str]], named: Iterable[str]
) -> tuple[NDArray[np.uint64], dict]:
    """What the two files of a vocabulary hold. Raises KeyError for a merge or a byte that is no token."""
    values = {
        vocab[left] << ID_BITS | vocab[right]: rank << ID_BITS | vocab[left + right]
        for rank, (left, right) in enumerate(merges)
    }
    pairs = np.array([[*values.keys()], [*values.values()]], np.uint64).reshape(2, -1)
    characters = {token: id for token, id in sorted(vocab.items()) if len(token) == 1}
    return pairs[:, pairs[0].argsort()], {
        "characters": characters,
        "bytes": [vocab[f"<0x{byte:02X}>"] for byte in range(256)],
        "named": {token: vocab[token] for token in named},
    }
