"""Turns text into ids as SigLIP was trained: canonical text, then always as many ids as the tower has positions.

A text is made canonical as its authors do it for their evaluations, whatever its tokenizer.json or transformers would
leave of case and punctuation: SigLIP 2's published tokenizer does neither by itself.
Source: canonicalize_text, big_vision evaluators/proj/image_text/prompt_engineering.py; eos="sticky", pp/ops_text.py.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .byte_pairs import BytePairs
from .errors import InputError
from .model_dir import CHARACTERS, PAIRS, TOKENIZER, Tokens
from .tokenizer import MAX_CHARACTERS, check_text

Reader = tuple[Callable[[str], list[int]], Callable[[str], int | None]]
NO_PUNCTUATION = str.maketrans("_▁", "  ", string.punctuation.replace("_", ""))  # ▁ is a space in both vocabularies


def open_reader(folder: Path, context_length: int, tokens: Tokens) -> Callable[[str], NDArray[np.int64]]:
    """A function from a text to its ids: [context_length] int64, the end behind the last word, then padding.

    A longer text is cut and keeps the end last. Raises InputError as `tokenize` does. folder: a model directory.
    """
    reader = mapped_reader(folder) if tokens.library == "gemma" else serialized_reader(folder / TOKENIZER)
    ids_of, id_of = reader
    end, pad = id_of(tokens.end), id_of(tokens.pad or "")

    def read(text: str) -> NDArray[np.int64]:
        check_text(text)
        words = first_words(canonical(text), context_length)
        try:
            ids = ids_of(words)[: context_length - 1]
        except (TypeError, UnicodeEncodeError) as error:  # a str with half of a surrogate pair
            raise InputError("a lone surrogate is not text; expected Unicode that UTF-8 can hold") from error
        return np.array([*ids, end] + [pad] * (context_length - 1 - len(ids)), np.int64)

    return read


def serialized_reader(file: Path) -> Reader:
    """Two functions: from a canonical text to the ids of its words, and of a named token to its id."""
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids, tokenizer.token_to_id


def mapped_reader(folder: Path) -> Reader:
    """The same by mapped tables. No merge reaches from a word into the next one, so each word goes alone."""
    pairs = BytePairs(folder / PAIRS, folder / CHARACTERS)
    ids_of = pairs.ids_of
    return lambda text: [id for word in text.replace(" ", " ▁").split(" ") for id in ids_of(word)], pairs.named.get


def canonical(text: str) -> str:
    """A text in lower case, without ASCII's punctuation, an underscore as a space, and white space folded."""
    return " ".join(text.translate(NO_PUNCTUATION).lower().split())


def first_words(text: str, words: int) -> str:
    """As many words of a canonical text as can count, because each gives at least one id. Raises InputError."""
    text = " ".join(text.split(" ", words)[:words])
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"text of {len(text):,} characters almost without spaces; at most {MAX_CHARACTERS:,} are read")
    return text
