"""Turns text into ids by a model directory's tokenizer.json, as BERT's tokenizer in transformers does.

White space, control characters and, where the checkpoint says so, case and accents go first; then words are cut into
the longest pieces that the vocabulary has.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from .errors import InputError
from .tokenizer import MAX_CHARACTERS, check_text


def open_reader(file: Path, context_length: int) -> Callable[[str], NDArray[np.int64]]:
    """A function from a text to its ids: [t] int64, 2 <= t <= context_length, [CLS] first, [SEP] last.

    It reads MAX_CHARACTERS of a text without the white space around it, and raises InputError for an image in base64
    and for a lone surrogate.
    """
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(context_length)

    def read(text: str) -> NDArray[np.int64]:
        check_text(text)
        try:
            return np.array(tokenizer.encode(text.strip()[:MAX_CHARACTERS]).ids, np.int64)
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError("a lone surrogate is not text; expected Unicode that UTF-8 can hold") from error

    return read
