"""Fills a small vocabulary up to the size of a real one, because the memory of a server depends on that size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, islice, product

SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnpqrstvwxyz" for vowel in "aeiou"]


def filled(tokens: Sequence[str], count: int) -> list[str]:
    """`count` tokens: those given, then single Chinese characters, then words of one to four syllables."""
    known = set(tokens)
    letters = map(chr, range(0x4E00, 0x4E00 + 20_000))
    words = ("".join(parts) for length in (1, 2, 3, 4) for parts in product(SYLLABLES, repeat=length))
    return [*tokens, *islice((token for token in chain(letters, words) if token not in known), count - len(tokens))]
