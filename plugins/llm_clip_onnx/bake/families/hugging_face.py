"""Reads a checkpoint in the layouts of Hugging Face's transformers and of sentence-transformers.

Everything is checked here, so that the later steps can trust it: anything but a CLIP is refused. Its files are found by
layout.py and fetched by hub.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ...errors import CheckpointError, cited, shortened
from ...model_dir import Source, sha256_of
from ..checkpoint import Checkpoint, check_shapes, clip_checkpoint
from ..image_processor import read_preprocess
from ..keys import (
    CONFIG,
    CONFIG_KEYS,
    MODULES,
    TEXT_KEYS,
    TOKENIZER_CONFIG,
    VISION_KEYS,
    check_keys,
    misfit,
    unfollowed,
)
from ..kinds import NO_LIMIT, Kind
from ..layout import SHARDS, clip_folder, read_modules, read_notice, read_object, read_shards, weight_files
from ..modules import read_max_length
from ..tensors import open_tensors
from ..tokenizer_files import CheckpointTokenizer, bpe_files, read_tokenizer
from ..towers import TowerConfig
from ..towers.clip import ClipConfig, expected_shapes

# The defaults of transformers' CLIPTextConfig and CLIPVisionConfig.
TEXT_DEFAULTS = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "vocab_size": 49408, "max_position_embeddings": 77,
    "eos_token_id": 49407,
}  # fmt: skip
IMAGE_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "image_size": 224, "patch_size": 32, "num_channels": 3,
}  # fmt: skip


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    folder = root / (path := clip_folder(root, source))
    if path and not os.path.isdir(folder):
        raise misfit(MODULES, "path", path, source, "the folder of a CLIP")
    settings, config = read_object(folder / CONFIG, source), read_config(folder / CONFIG, source)
    names = {file.name for file in folder.iterdir()}
    weights = [folder / name for name in weight_files(names, lambda: read_shards(folder / SHARDS, source), source)]
    tensors = open_tensors(weights, source)
    check_shapes(expected_shapes(config), tensors, CONFIG, source)
    tokenizer = read_tokenizer(folder, settings, source)
    check_ends(config, tokenizer, source)
    length = read_context_length(root, folder, settings, config, tokenizer, source)
    preprocess = read_preprocess(folder, settings, config.side, source)
    sha256 = {str(file.relative_to(root)): sha256_of(file) for file in weights}
    origin = Source(source, commit, sha256, read_notice(root, source))
    files = bpe_files(tokenizer.vocab, tokenizer.merges)
    return clip_checkpoint(origin, config, tensors, preprocess, files, tokenizer.tokens, length)


def check_ends(config: ClipConfig, tokenizer: CheckpointTokenizer, source: str) -> None:
    """Raises CheckpointError if the model would not find the end of a text where the tokenizer puts it."""
    end = f"{shortened(tokenizer.tokens.end)}, {tokenizer.end_id}"
    if tokenizer.highest_id >= config.vocab_size:
        raise CheckpointError(
            f"{source}: {tokenizer.highest_file} has the token {cited(tokenizer.highest)} with id "
            f"{tokenizer.highest_id}; {CONFIG}'s text_config says vocab_size {config.vocab_size}, rows of the token "
            "table"
        )
    if config.end_id not in (2, tokenizer.end_id):
        raise CheckpointError(
            f"{source}: {CONFIG}'s text_config says eos_token_id {config.end_id}; expected {end}, or the early "
            "checkpoints' 2"
        )
    if config.end_is_highest_id and tokenizer.pad_id > tokenizer.end_id:
        raise CheckpointError(
            f"{source}: {CONFIG} says eos_token_id 2, which ends a text at its highest id, and {TOKENIZER_CONFIG} a "
            f"pad_token of a higher id than {end}; so a text's vector would depend on its neighbours; expected "
            f"eos_token_id {tokenizer.end_id}"
        )


def read_context_length(
    root: Path, folder: Path, settings: Mapping, config: ClipConfig, tokenizer: CheckpointTokenizer, source: str
) -> int:
    """The most ids of a text. Raises CheckpointError if it depends on how the libraries are called."""
    file, key, limit = TOKENIZER_CONFIG, "model_max_length", tokenizer.max_length
    if module := read_modules(root, source):
        name, own = read_max_length(root, folder, str(module.get("type")), source)
        file, key, limit = (name, "max_seq_length", own) if own else (file, key, limit)
    if limit and config.context_length < limit <= NO_LIMIT:
        raise unfollowed(file, key, limit, source, config.context_length)
    length = min(limit or config.context_length, config.context_length)
    top = settings.get("max_position_embeddings")
    for file, key, value in [(CONFIG, "max_position_embeddings", top), *filter(None, [tokenizer.call_length])]:
        if value is not None and min(value, config.context_length) != length:
            raise unfollowed(file, key, value, source, length)
    return length


def read_config(file: Path, source: str) -> ClipConfig:
    """The config of a checkpoint. Raises CheckpointError if it is no CLIP, or has a part that cannot be baked."""
    config = read_object(file, source)
    if config.get("model_type") != "clip":
        kind, names = config.get("model_type"), config.get("architectures")
        kind = kind or (", ".join(map(str, names)) if isinstance(names, list) else names) or "no model_type"
        raise CheckpointError(
            f"{source}: {CONFIG} says {cited(kind)}; only 'clip' and 'siglip', with both their towers, can be baked"
        )
    check_keys(config, CONFIG, source, kinds=CONFIG_KEYS)
    text = part_of(config, "text_config", TEXT_DEFAULTS, TEXT_KEYS, source)
    image = part_of(config, "vision_config", IMAGE_DEFAULTS, VISION_KEYS, source)
    return ClipConfig(
        text=tower_config(text, "text_config", source),
        image=tower_config(image, "vision_config", source),
        embed_dim=config.get("projection_dim") or 512,
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        end_id=text["eos_token_id"],
        side=image["image_size"],
        patch=image["patch_size"],
    )


def part_of(config: Mapping, name: str, defaults: dict, kinds: Mapping[str, Kind], source: str) -> dict:
    """text_config or vision_config. Where the same name with _dict is there, its values and the defaults win."""
    values = dict(defaults)
    for key in (name, f"{name}_dict"):
        part = config.get(key)
        if part is not None:
            check_keys(part, CONFIG, source, f"{CONFIG}'s {key}", kinds)
            values |= (defaults if key != name else {}) | given(part)
    return values | {key: one_side(values[key]) for key in ("image_size", "patch_size") if key in defaults}


def one_side(size: int | list[int]) -> int:
    """The side of a square that may be given by its height and width."""
    return size[0] if isinstance(size, list) else size


def given(values: dict | None) -> dict:
    """The values that a part of a config gives, without those that are null."""
    return {key: value for key, value in (values or {}).items() if value is not None}


def tower_config(values: dict, part: str, source: str) -> TowerConfig:
    """The sizes of a tower. Raises CheckpointError if its heads do not divide its width."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    if width % heads:
        raise CheckpointError(
            f"{source}: {CONFIG}'s {part} says hidden_size {width}, no multiple of its num_attention_heads {heads}"
        )
    return TowerConfig(
        width,
        values["intermediate_size"],
        values["num_hidden_layers"],
        heads,
        values["hidden_act"],
        float(values["layer_norm_eps"]),
    )
