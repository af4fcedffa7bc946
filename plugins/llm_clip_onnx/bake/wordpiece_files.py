"""A checkpoint's WordPiece tokenizer, put together as transformers' BertTokenizer does, and written as tokenizer.json.

The vocabulary is tokenizer.json's, else vocab.txt's. Case, accents and Chinese characters are treated as
tokenizer_config.json says. A tokenizer.json that says otherwise is refused, because libraries differ in which they
follow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from .. import model_dir
from ..errors import CheckpointError, cited, shortened
from ..model_dir import Tokens
from .keys import (
    ADDED_TOKENS,
    SPECIAL_TOKENS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    check_keys,
    misfit,
    unfollowed,
)
from .kinds import SWITCH
from .layout import LAYOUTS, read_object, read_text
from .tokenizer_files import check_sides, checked_vocab, read_limit, read_tokens

VOCAB = "vocab.txt"
TOKENIZER_FILES = (TOKENIZER_CONFIG, TOKENIZER_JSON, VOCAB, ADDED_TOKENS, SPECIAL_TOKENS)
CLASSES = ("DistilBertTokenizer", "DistilBertTokenizerFast", "BertTokenizer", "BertTokenizerFast")
NAMED = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}
STEPS = {"do_lower_case": True, "tokenize_chinese_chars": True, "strip_accents": None}  # BertTokenizer's defaults
SWITCHES = dict.fromkeys(STEPS, SWITCH)
LIBRARY = "wordpiece"


@dataclass(frozen=True)
class WordPiece:
    """files: name and content of what a model directory holds. max_length: the most ids, None without a limit."""

    files: dict[str, str]
    tokens: Tokens
    max_length: int | None


def read_tokenizer(folder: Path, rows: int, source: str) -> WordPiece:
    """The tokenizer in `folder`, for a token table of so many rows. Raises CheckpointError naming a file or key."""
    settings = read_object(folder / TOKENIZER_CONFIG, source) if (folder / TOKENIZER_CONFIG).is_file() else {}
    serialized = read_object(folder / TOKENIZER_JSON, source) if (folder / TOKENIZER_JSON).is_file() else {}
    if (kind := settings.get("tokenizer_class")) not in (None, *CLASSES):
        raise unfollowed(TOKENIZER_CONFIG, "tokenizer_class", kind, source, CLASSES[0])
    check_keys(settings, TOKENIZER_CONFIG, source)
    check_keys(settings, TOKENIZER_CONFIG, source, kinds=SWITCHES)
    check_keys(serialized, TOKENIZER_JSON, source)
    check_sides(settings, serialized, source)
    vocab, file = read_vocab(folder, serialized, source)
    named, added = read_tokens(folder, settings, serialized, source, NAMED)
    start, end, unknown = (str(named[key]) for key in ("cls_token", "sep_token", "unk_token"))
    for token in (start, end, unknown):
        if token not in vocab:
            raise CheckpointError(f"{source}: {file} has no token {cited(token)}, which a WordPiece tokenizer needs")
    tokenizer = build(vocab, settings, start, end, unknown)
    tokenizer.add_tokens([tokenizers.AddedToken(**asdict(token)) for token in added])
    check_same(tokenizer, serialized, source)
    check_rows(tokenizer, rows, source)
    files = {model_dir.TOKENIZER: tokenizer.to_str()}
    return WordPiece(files, Tokens(start, end, unknown, (), LIBRARY), read_limit(settings))


def read_vocab(folder: Path, serialized: Mapping, source: str) -> tuple[dict[str, int], str]:
    """The vocabulary, and the file that it stands in."""
    if serialized:
        model = serialized.get("model") or {}
        vocab = model.get("vocab")
        # Files of older libraries say no type; merges tell a byte-pair tokenizer.
        if model.get("type", "WordPiece") != "WordPiece" or "merges" in model:
            raise misfit(TOKENIZER_JSON, "model.type", model.get("type", "BPE"), source, '"WordPiece", as BERT has it')
        if not isinstance(vocab, dict):
            raise misfit(TOKENIZER_JSON, "model.vocab", vocab, source, "an object")
        return checked_vocab(vocab, f"{TOKENIZER_JSON}'s model", source), TOKENIZER_JSON
    if not (folder / VOCAB).is_file():
        raise CheckpointError(f"{source}: there is no {TOKENIZER_JSON}, and no {VOCAB}; {LAYOUTS}")
    lines = read_text(folder / VOCAB, source).split("\n")
    tokens = [line.rstrip("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    return {token: number for number, token in enumerate(tokens)}, VOCAB


def build(vocab: Mapping[str, int], settings: Mapping, start: str, end: str, unknown: str) -> Tokenizer:
    """The tokenizer without its added tokens. Source: BertTokenizer, transformers/models/bert/tokenization_bert.py."""
    steps = {key: settings.get(key, default) for key, default in STEPS.items()}
    tokenizer = Tokenizer(models.WordPiece(dict(vocab), unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=steps["tokenize_chinese_chars"],
        strip_accents=steps["strip_accents"],
        lowercase=steps["do_lower_case"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocab[token]) for token in (start, end)]
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{start}:0 $A:0 {end}:0", f"{start}:0 $A:0 {end}:0 $B:1 {end}:1", ends
    )
    return tokenizer


def check_same(tokenizer: Tokenizer, serialized: Mapping, source: str) -> None:
    """Raises CheckpointError if tokenizer.json cleans, splits, cuts or ends a text otherwise than this tokenizer."""
    own = json.loads(tokenizer.to_str())
    for part in ("normalizer", "pre_tokenizer"):
        if serialized and serialized.get(part) != own[part]:
            raise unfollowed(TOKENIZER_JSON, part, serialized.get(part), source, own[part])
    model = serialized.get("model") or {}
    for key in ("unk_token", "continuing_subword_prefix", "max_input_chars_per_word"):
        if model.get(key, own["model"][key]) != own["model"][key]:
            raise unfollowed(TOKENIZER_JSON, f"model.{key}", model[key], source, own["model"][key])
    if serialized and single(serialized.get("post_processor")) != single(own["post_processor"]):
        found = shortened(json.dumps(serialized.get("post_processor")))
        raise unfollowed(TOKENIZER_JSON, "post_processor", found, source, "[CLS] $A [SEP]")


def single(post: Mapping | None) -> list[str]:
    """What a post-processor makes of one text, with $A for its own tokens."""
    post = post or {}
    if post.get("type") == "BertProcessing":
        return [post["cls"][0], "$A", post["sep"][0]]
    return [
        part["SpecialToken"]["id"] if "SpecialToken" in part else f"${part['Sequence']['id']}"
        for part in post.get("single") or ()
    ]


def check_rows(tokenizer: Tokenizer, rows: int, source: str) -> None:
    """Raises CheckpointError if a token has no row in the token table."""
    token, highest = max(tokenizer.get_vocab(True).items(), key=lambda item: item[1])
    if highest >= rows:
        raise CheckpointError(
            f"{source}: the tokenizer has the token {cited(token)} with id {highest}; config.json says vocab_size "
            f"{rows}, rows of the token table"
        )
