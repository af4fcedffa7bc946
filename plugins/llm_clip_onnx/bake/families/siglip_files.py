"""Reads the tokenizer of a SigLIP and the steps of its images, by the files and defaults of transformers.

The tokenizer is that of tokenizer.json, with the end and the padding that tokenizer_config.json names. What makes a
text canonical is not in these files: see siglip_tokenizer.py.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from ...byte_pairs import tables
from ...errors import CheckpointError, cited, shortened
from ...model_dir import CHARACTERS, PAIRS, TOKENIZER, Preprocess, Tokens
from ...siglip_tokenizer import canonical
from ..image_processor import check_first, image_processor, three_numbers
from ..keys import OFF, TOKENIZER_CONFIG, TOKENIZER_JSON, as_json, misfit, unfollowed
from ..kinds import DEVIATIONS, LENGTH, MEANS, POSITIVE, Kind, is_filter, is_whole
from ..layout import read_object

SENTENCEPIECE = ("spiece.model", "tokenizer.model")
SPACE = "▁"
MERGED_WITH_PREVIOUS = {"behavior": "MergedWithPrevious", "invert": False}
MODELS = ("Unigram", "BPE")  # T5's, of SigLIP, and Gemma's, of SigLIP 2
NAMED = ("eos_token", "unk_token", "pad_token")
REFUSED_SETTINGS: dict[str, tuple] = {  # key of tokenizer_config.json -> the values that change nothing
    "do_lower_case": (None, True),
    "add_bos_token": OFF,
    "add_eos_token": (None, True),
    "padding_side": (None, "right"),
    "truncation_side": (None, "right"),
    "split_special_tokens": OFF,
}
DEFAULTS: dict[str, object] = {  # of transformers' SiglipImageProcessor
    "size": {"height": 224, "width": 224}, "resample": 3, "rescale_factor": 1 / 255, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip
KINDS = ("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil")
FILTER = Kind('the number of a filter, 0 to 5, or "bicubic"', is_filter)
STEP_KINDS: dict[str, Kind] = {
    "size": Kind("height and width, two equal whole numbers above 0", lambda value: square_side(value) is not None),
    **{"resample": FILTER, "rescale_factor": POSITIVE, "image_mean": MEANS, "image_std": DEVIATIONS},
}
REFUSED_STEPS: dict[str, tuple] = {  # key of preprocessor_config.json -> the values that change nothing
    **dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"), (None, True)),
    **dict.fromkeys(("do_center_crop", "do_pad"), OFF),
}


def read_tokenizer(
    folder: Path, vocab_size: int, context_length: int, source: str
) -> tuple[dict[str, str | bytes], Tokens]:
    """The tokenizer's file in a model directory, name and content, and its tokens. Raises CheckpointError.

    It is refused if it cannot be read by the `tokenizers` library, or has ids beyond the token table.
    """
    serialized = read_serialized(folder, source)
    settings = read_object(folder / TOKENIZER_CONFIG, source)
    check_settings(settings, context_length, source)
    content = json.dumps(
        serialized | dict.fromkeys(("truncation", "padding", "post_processor", "decoder")), ensure_ascii=False
    )
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content)
    except Exception as error:  # tokenizers raises this very class
        raise CheckpointError(
            f"{source}: {TOKENIZER_JSON} is no tokenizer that can be read: {shortened(error)}"
        ) from error
    vocab = tokenizer.get_vocab()
    highest = max(vocab, key=lambda token: vocab[token])
    if vocab[highest] >= vocab_size:
        raise CheckpointError(
            f"{source}: {TOKENIZER_JSON} has the token {cited(highest)} with id {vocab[highest]}; the token table has "
            f"{vocab_size} rows"
        )
    end, unknown, pad = (named_token(settings, key, vocab, source) for key in NAMED)
    if is_gemma(serialized):
        pairs, characters = tables(vocab, pairs_of(serialized), (end, pad))
        stream = io.BytesIO()
        np.save(stream, pairs)
        files: dict[str, str | bytes] = {
            PAIRS: stream.getvalue(),
            CHARACTERS: json.dumps(characters, ensure_ascii=False),
        }
        return files, Tokens("", end, unknown, (), "gemma", pad)
    return {TOKENIZER: content}, Tokens("", end, unknown, (), "big_vision", pad)


def read_serialized(folder: Path, source: str) -> dict:
    """The content of tokenizer.json. Raises CheckpointError if there is none, or it is of another family."""
    if not (folder / TOKENIZER_JSON).is_file():
        there = next((name for name in SENTENCEPIECE if (folder / name).is_file()), None)
        only = f", only {there}, which a bake does not read" if there else ""
        raise CheckpointError(
            f"{source}: there is no {TOKENIZER_JSON}{only}; transformers writes it: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    serialized = read_object(folder / TOKENIZER_JSON, source)
    found = serialized.get("model")
    model = found if isinstance(found, dict) else {}
    kind = model.get("type")
    if kind not in MODELS or (kind == "BPE" and not model.get("byte_fallback")):
        shown = f"{kind} without byte_fallback" if kind in MODELS else kind
        raise misfit(TOKENIZER_JSON, "model.type", shown, source, "Unigram, or BPE with byte_fallback, as SigLIPs have")
    if model.get("dropout"):
        raise unfollowed(TOKENIZER_JSON, "model.dropout", model["dropout"], source, None)
    return serialized


def is_gemma(serialized: Mapping) -> bool:
    """True if mapped merges give the ids of this tokenizer, as Gemma's do: words are apart, and each byte has a token.

    Words are apart if no merge has a space, ▁, anywhere but at the beginning, or between spaces.
    """
    model = serialized["model"]
    others = ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    steps = serialized.get("normalizer"), serialized.get("pre_tokenizer")
    return (
        model["type"] == "BPE"
        and not any(model.get(key) for key in others)
        and steps[0] == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        and steps[1] in (None, {"type": "Split", "pattern": {"String": " "}, **MERGED_WITH_PREVIOUS})
        and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
        and all(SPACE not in right or not left.strip(SPACE) for left, right in pairs_of(serialized))
        and all(token["content"] != canonical(token["content"]) for token in serialized.get("added_tokens") or ())
    )


def pairs_of(serialized: Mapping) -> Iterator[tuple[str, str]]:
    """The merges of a tokenizer.json, which has each as a list of two tokens or as a text with a space between them."""
    for merge in serialized["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def check_settings(settings: Mapping, context_length: int, source: str) -> None:
    """Raises CheckpointError for a key of tokenizer_config.json that asks for other ids."""
    for key, values in REFUSED_SETTINGS.items():
        if not any(settings.get(key) is value or settings.get(key) == value for value in values):
            raise unfollowed(TOKENIZER_CONFIG, key, settings[key], source, *values)
    length = settings.get("model_max_length")
    if length is not None and not LENGTH.holds(length):
        raise misfit(TOKENIZER_CONFIG, "model_max_length", length, source, LENGTH.expected)
    if length is not None and length < context_length:
        raise unfollowed(TOKENIZER_CONFIG, "model_max_length", length, source, context_length)


def named_token(settings: Mapping, key: str, vocab: Mapping[str, int], source: str) -> str:
    """The token that tokenizer_config.json gives a name. Raises CheckpointError if it is not in the vocabulary."""
    token = settings.get(key)
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str) or token not in vocab:
        raise misfit(TOKENIZER_CONFIG, key, settings.get(key), source, f"a token of {TOKENIZER_JSON}")
    return token


def read_preprocess(folder: Path, side: int, source: str) -> Preprocess:
    """The steps for images of `side` pixels. Raises CheckpointError naming a file or key that cannot be followed."""
    found, file = image_processor(folder, source)
    for key, values in REFUSED_STEPS.items():
        if found.get(key) not in values:
            raise unfollowed(file, key, found[key], source, *values)
    for key, kind in STEP_KINDS.items():
        if found.get(key) is not None and not kind.holds(found[key]):
            raise misfit(file, key, found[key], source, kind.expected)
    check_first((file, "image_processor_type", found), expected=KINDS, source=source)
    steps = DEFAULTS | {key: value for key, value in found.items() if value is not None}
    if square_side(steps["size"]) != side:
        raise CheckpointError(
            f"{source}: {file} has images resized to {as_json(steps['size'])}; expected {side} x {side}, as the weights"
        )
    mean, std = (three_numbers(steps, key) for key in ("image_mean", "image_std"))
    filter_ = steps["resample"]
    resample = int(Image.Resampling.BICUBIC) if isinstance(filter_, str) else filter_
    return Preprocess(side, side, resample, mean, std, float(steps["rescale_factor"]), resize="squash")


def square_side(size: Any) -> int | None:
    """The side of a square that is given by its height and width, or by one number; None if it is no square."""
    sides = [size.get("height"), size.get("width")] if isinstance(size, dict) else [size, size]
    return sides[0] if is_whole(sides[0]) and sides[0] == sides[1] else None
