"""Turns text into ids as open_clip's SimpleTokenizer does, which cleans a text otherwise than transformers does.

ftfy mends the text, HTML is unescaped twice, and only then come white space and lower case. open_clip pads with zeros,
which its text tower never reads; here a text has no padding.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Bpe

from .errors import ModelDirError
from .tokenizer import MAX_CHARACTERS, check_text

# open_clip ignores case. So the long s is an s, and U+0345, a mark whose upper case is the letter iota, is in no word.
WORDS = r"{start}|{end}|'[s\x{{17f}}]|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}\x{{0345}}]+"
EXTRA = "open-clip"


def open_reader(
    vocab: Path, merges: Path, context_length: int, start: str, end: str
) -> Callable[[str], NDArray[np.int64]]:
    """A function from a text to its ids: [t] int64, 2 <= t <= context_length, `start` first, `end` last.

    It reads MAX_CHARACTERS of a text, and raises InputError for an image in base64. ftfy makes a lone surrogate U+FFFD.
    Raises ModelDirError if ftfy is not installed.
    """
    fix_text = import_fix_text()
    words = pre_tokenizers.Split(Regex(WORDS.format(start=start, end=end)), behavior="removed", invert=True)
    bpe = Bpe(models.BPE.from_file(str(vocab), str(merges), unk_token=end, end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    first, last = (bpe.token_to_id(token) or 0 for token in (start, end))
    special = {start: [first], end: [last]}

    def ids_of(text: str) -> list[int]:
        if start not in text and end not in text:
            return bpe.encode(text).ids
        pieces = (word for word, _ in words.pre_tokenize_str(text))
        return [id for word in pieces for id in special.get(word) or bpe.encode(word).ids]

    def read(text: str) -> NDArray[np.int64]:
        check_text(text)
        ids = ids_of(clean(text[:MAX_CHARACTERS], fix_text))
        return np.array([first, *ids[: context_length - 2], last], np.int64)

    return read


def import_fix_text() -> Callable[[str], str]:
    """ftfy's function that mends a text. Raises ModelDirError if ftfy is not installed."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ModelDirError(
            f"a model of open_clip needs ftfy to read texts: pip install 'datasette-clip[{EXTRA}]'"
        ) from error
    return fix_text


def clean(text: str, fix_text: Callable[[str], str]) -> str:
    """The text that open_clip finds words in. Source: _clean_lower, open_clip/tokenizer.py."""
    return " ".join(html.unescape(html.unescape(fix_text(text))).split()).lower()
