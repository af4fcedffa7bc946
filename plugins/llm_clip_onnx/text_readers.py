"""Opens what turns a text into ids, by the library whose rules a checkpoint's texts are read by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import open_clip_tokenizer, siglip_tokenizer, wordpiece_tokenizer
from .model_dir import MERGES, TOKENIZER, VOCAB, Tokens
from .tokenizer import open_tokenizer, tokenize


def open_reader(folder: Path, context_length: int, tokens: Tokens) -> Callable[[str], NDArray[np.int64]]:
    """A function from a text to its ids, by the library that `tokens` names: as `tokenize`, and as its errors.

    folder: a model directory, whose tokenizer_files are read.
    """
    if tokens.library in ("big_vision", "gemma"):
        return siglip_tokenizer.open_reader(folder, context_length, tokens)
    if tokens.library == "wordpiece":
        return wordpiece_tokenizer.open_reader(folder / TOKENIZER, context_length)
    vocab, merges = folder / VOCAB, folder / MERGES
    if tokens.library == "open_clip":
        return open_clip_tokenizer.open_reader(vocab, merges, context_length, tokens.start, tokens.end)
    bpe = open_tokenizer(vocab, merges, context_length, tokens)
    return lambda text: tokenize(bpe, text, context_length)
