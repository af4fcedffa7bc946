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

from .errors import InputError
from .model_dir import Tokens
from .tokenizer import MAX_CHARACTERS, check_text

NO_PUNCTUATION = str.maketrans("_▁", "  ", string.punctuation.replace("_", ""))  # ▁ is a space in both vocabularies


def open_reader(file: Path, context_length: int, tokens: Tokens) -> Callable[[str], NDArray[np.int64]]:
    """A function from a text to its ids: [context_length] int64, the end behind the last word, then padding.

    A longer text is cut and keeps the end last. Raises InputError as `tokenize` does.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    end, pad = (tokenizer.token_to_id(token or "") for token in (tokens.end, tokens.pad))

    def read(text: str) -> NDArray[np.int64]:
        check_text(text)
        words = first_words(canonical(text), context_length)
        try:
            ids = tokenizer.encode(words, add_special_tokens=False).ids[: context_length - 1]
        except (TypeError, UnicodeEncodeError) as error:  # a str with half of a surrogate pair
            raise InputError("a lone surrogate is not text; expected Unicode that UTF-8 can hold") from error
        return np.array([*ids, end] + [pad] * (context_length - 1 - len(ids)), np.int64)

    return read


def canonical(text: str) -> str:
    """A text in lower case, without ASCII's punctuation, an underscore as a space, and white space folded."""
    return " ".join(text.translate(NO_PUNCTUATION).lower().split())


def first_words(text: str, words: int) -> str:
    """As many words of a canonical text as can count, because each gives at least one id. Raises InputError."""
    text = " ".join(text.split(" ", words)[:words])
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"text of {len(text):,} characters almost without spaces; at most {MAX_CHARACTERS:,} are read")
    return text
