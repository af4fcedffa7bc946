"""Turns text into ids: CLIP's byte-pair encoding, by the `tokenizers` library.

The steps are those of transformers' CLIPTokenizer, which llm-clip uses: NFC, white space folded, lower case. Unlike
openai/CLIP it neither unescapes HTML nor runs ftfy.
"""

from __future__ import annotations

import itertools
import re
from base64 import b64decode
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Bpe

from .errors import InputError
from .images.signatures import format_of
from .model_dir import AddedToken, Tokens

MAX_CHARACTERS = 50_000  # of the words that can count; 0.2 s to tokenize
DATA_URI = re.compile(r"\s*data:(image/[^,]{0,200}|[^,\s]{0,200};base64),", re.IGNORECASE)
BASE64 = re.compile(r"\s*([A-Za-z0-9+/_-]{60})")  # no word is that long
START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_TOKENS = Tokens(  # of a checkpoint whose files name no others
    START,
    END,
    END,
    tuple(AddedToken(token, False, False, False, normalized=False, special=True) for token in (START, END)),
)
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def open_tokenizer(vocab: Path, merges: Path, context_length: int, tokens: Tokens = CLIP_TOKENS) -> Bpe:
    """CLIP's tokenizer over a vocabulary (JSON, token to id) and merges (text, one a line, after a version line).

    It cuts to `context_length` ids, <|endoftext|> last. Built from these two files it takes 26 MB less than from the
    same tokenizer's tokenizer.json.
    """
    bpe = Bpe(models.BPE.from_file(str(vocab), str(merges), unk_token=tokens.unknown, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizer()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    add_tokens(bpe, tokens)
    start, end = ((token, bpe.token_to_id(token) or 0) for token in (tokens.start, tokens.end))  # both have an id now
    bpe.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    bpe.enable_truncation(context_length)
    return bpe


def normalizer() -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def add_tokens(bpe: Bpe, tokens: Tokens) -> None:
    """Add the tokens that are found in a text before its words. One that is no word of the vocabulary gets a new id."""
    bpe.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in tokens.added])


def tokenize(bpe: Bpe, text: str, context_length: int = 77) -> NDArray[np.int64]:
    """The ids of one text: [t] int64, 2 <= t <= context_length, <|startoftext|> first, <|endoftext|> last.

    Raises InputError if `text` holds a lone surrogate, is an image in base64, or is too long to tokenize.
    """
    check_text(text)
    if len(text) > context_length:
        words = words_in_a_token(bpe)
        text = first_words(text, context_length * words)
        if len(text) > MAX_CHARACTERS and words == 1:
            text = " ".join(text.split())
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"text of {len(text):,} characters almost without spaces; at most {MAX_CHARACTERS:,} are read")
    try:
        return np.array(bpe.encode(text).ids, np.int64)
    except (TypeError, UnicodeEncodeError) as error:  # a str with half of a surrogate pair
        raise InputError("a lone surrogate is not text; expected Unicode that UTF-8 can hold") from error


def check_text(text: str) -> None:
    """Raises InputError for a text that is an image in base64."""
    if is_image_in_text(text):
        raise InputError(
            "the text is a data URI or an image in base64; send it as an image: images in JSON, img in a form,"
            " clip_image(...) in SQL, --image of llm clip embed"
        )


def is_image_in_text(text: str) -> bool:
    """True if a text is a data URI, or begins as base64 of an image. Such a text has no words."""
    if DATA_URI.match(text):
        return True
    digits = BASE64.match(text)
    return (
        digits is not None
        and format_of(b64decode(digits[1], b"-_" if set(digits[1]) & {"-", "_"} else None)) is not None
    )


def words_in_a_token(bpe: Bpe) -> int:
    """The most words that give only one id. More than 1 if an added token has white space in it."""
    return max((len(token.content.split()) for token in bpe.get_added_tokens_decoder().values()), default=1) or 1


def first_words(text: str, words: int) -> str:
    """`text` up to the end of its first `words` words, for `words` that give as many ids as count.

    The tokenizer would read the whole text and hold the GIL: 12 s for 4,000,000 characters.
    """
    if len(text) <= words:
        return text
    ends = (match.end() for match in re.finditer(r"\S+", text))
    return text[: next(itertools.islice(ends, words - 1, None), len(text))]
