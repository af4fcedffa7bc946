"""Reads a checkpoint of SigLIP, or of SigLIP 2 with a fixed size, in the layout of Hugging Face's transformers.

Both say model_type "siglip". Everything is checked here, so that the later steps can trust it. The tokenizer and the
steps of images are read in siglip_files.py.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import CheckpointError
from ...model_dir import Source, sha256_of
from ..checkpoint import Checkpoint, check_shapes
from ..keys import CONFIG, CONFIG_KEYS, TEXT_KEYS, VISION_KEYS, check_keys, unfollowed
from ..kinds import ANY_ACTIVATION, SWITCH, WHOLE, Kind
from ..layout import SHARDS, read_notice, read_object, read_shards, weight_files
from ..tensors import open_tensors
from ..towers import siglip_image, siglip_text
from ..towers.siglip import SiglipConfig, expected_shapes, split_head
from .hugging_face import one_side, tower_config
from .siglip_files import read_preprocess, read_tokenizer

MODEL_TYPE, FLEXIBLE = "siglip", "siglip2"
SIGLIP_TEXT_KEYS: dict[str, Kind] = TEXT_KEYS | {"hidden_act": ANY_ACTIVATION, "projection_size": WHOLE}
SIGLIP_VISION_KEYS: dict[str, Kind] = VISION_KEYS | {"hidden_act": ANY_ACTIVATION, "vision_use_head": SWITCH}
SIZES = {  # the defaults that transformers' SiglipTextConfig and SiglipVisionConfig have in common
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
}  # fmt: skip
TEXT_DEFAULTS = SIZES | {"vocab_size": 32000, "max_position_embeddings": 64}
IMAGE_DEFAULTS = SIZES | {"image_size": 224, "patch_size": 16}


def read_checkpoint(root: Path, source: str, commit: str | None) -> Checkpoint:
    """The checkpoint in the folder `root`. Raises CheckpointError."""
    config = read_config(root / CONFIG, source)
    names = {file.name for file in root.iterdir()}
    weights = [root / name for name in weight_files(names, lambda: read_shards(root / SHARDS, source), source)]
    tensors = open_tensors(weights, source)
    check_shapes(expected_shapes(config), tensors, CONFIG, source)
    tokenizer, tokens = read_tokenizer(root, config.vocab_size, config.context_length, source)
    named = split_head(config, tensors)
    return Checkpoint(
        source=Source(source, commit, {file.name: sha256_of(file) for file in weights}, read_notice(root, source)),
        text=siglip_text.tower(config, named),
        image=siglip_image.tower(config, named),
        embed_dim=config.embed_dim,
        log_logit_scale=tensors["logit_scale"].item(),
        preprocess=read_preprocess(root, config.side, source),
        tokenizer=tokenizer,
        tokens=tokens,
        context_length=config.context_length,
        logit_bias=tensors["logit_bias"].item(),
    )


def is_siglip(folder: Path, source: str) -> bool:
    """True for a folder whose config says that it is a SigLIP, also one that cannot be baked."""
    return (folder / CONFIG).is_file() and read_object(folder / CONFIG, source).get("model_type") in (
        MODEL_TYPE,
        FLEXIBLE,
    )


def read_config(file: Path, source: str) -> SiglipConfig:
    """The config of a checkpoint. Raises CheckpointError if it has a part that cannot be baked."""
    config = read_object(file, source)
    if config.get("model_type") == FLEXIBLE:
        raise CheckpointError(
            f"{source}: {CONFIG} says model_type {FLEXIBLE}, which reads images of any shape (NaFlex); a bake reads "
            "one size; expected a SigLIP 2 with its size in its name, such as google/siglip2-base-patch32-256"
        )
    check_keys(config, CONFIG, source, kinds=CONFIG_KEYS)
    text = part_of(config, "text_config", TEXT_DEFAULTS, SIGLIP_TEXT_KEYS, source)
    image = part_of(config, "vision_config", IMAGE_DEFAULTS, SIGLIP_VISION_KEYS, source)
    if image.get("vision_use_head") is False:
        raise unfollowed(CONFIG, "vision_use_head", False, source, True)
    projected = text.get("projection_size", text["hidden_size"])
    if projected != image["hidden_size"]:
        raise CheckpointError(
            f"{source}: {CONFIG}'s text_config says projection_size {projected}, its vision_config "
            f"hidden_size {image['hidden_size']}; expected one number, the embedding's"
        )
    return SiglipConfig(
        text=tower_config(text, "text_config", source),
        image=tower_config(image, "vision_config", source),
        vocab_size=text["vocab_size"],
        context_length=text["max_position_embeddings"],
        side=one_side(image["image_size"]),
        patch=one_side(image["patch_size"]),
    )


def part_of(config: dict, name: str, defaults: dict, kinds: dict[str, Kind], source: str) -> dict:
    """text_config or vision_config, with the defaults of what it does not give."""
    part = config.get(name) or {}
    check_keys(part, CONFIG, source, f"{CONFIG}'s {name}", kinds)
    return defaults | {key: value for key, value in part.items() if value is not None}
