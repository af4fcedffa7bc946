"""Defines what the readers in families/ make of a checkpoint: sizes, named tensors, preprocessing, tokenizer.

A tensor has the name that transformers gives it, whatever the layout. Its shape is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, shortened
from ..model_dir import Preprocess, Source, Tokens
from .tensors import Tensors

FLOATS = ("F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32", "float64")  # of safetensors, and of torch


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of a tower. hidden: width between the two products of a feed-forward layer."""

    width: int
    hidden: int
    layers: int
    heads: int
    activation: str  # "quick_gelu" or "gelu"
    layer_norm_eps: float


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP. side and patch in pixels; end_id as the checkpoint says it."""

    text: TowerConfig
    image: TowerConfig
    embed_dim: int
    vocab_size: int
    context_length: int
    end_id: int
    side: int
    patch: int

    @property
    def end_is_highest_id(self) -> bool:
        """Early checkpoints say eos_token_id 2 and mean the highest id of a text, as openai/CLIP does."""
        return self.end_id == 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be baked. merges: "left right", in order. context_length: the most ids of a text."""

    source: Source
    config: ClipConfig
    tensors: Mapping[str, NDArray[np.float32]]
    preprocess: Preprocess
    vocab: dict[str, int]
    merges: list[str]
    tokens: Tokens
    context_length: int


def expected_shapes(config: ClipConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that a checkpoint of this config has."""
    text, image, d = config.text, config.image, config.embed_dim
    yield "logit_scale", ()
    yield "text_model.embeddings.token_embedding.weight", (config.vocab_size, text.width)
    yield "text_model.embeddings.position_embedding.weight", (config.context_length, text.width)
    yield "text_projection.weight", (d, text.width)
    yield "vision_model.embeddings.class_embedding", (image.width,)
    yield "vision_model.embeddings.patch_embedding.weight", (image.width, 3, config.patch, config.patch)
    yield "vision_model.embeddings.position_embedding.weight", ((config.side // config.patch) ** 2 + 1, image.width)
    yield "visual_projection.weight", (d, image.width)
    norms = [
        ("text_model.final_layer_norm", text),
        ("vision_model.pre_layrnorm", image),
        ("vision_model.post_layernorm", image),
    ]
    for prefix, tower in (("text_model", text), ("vision_model", image)):
        for n in range(tower.layers):
            layer, width, hidden = f"{prefix}.encoder.layers.{n}", tower.width, tower.hidden
            norms += [(f"{layer}.layer_norm{k}", tower) for k in (1, 2)]
            for part, (rows, columns) in {
                **{f"self_attn.{p}_proj": (width, width) for p in ("q", "k", "v", "out")},
                "mlp.fc1": (hidden, width),
                "mlp.fc2": (width, hidden),
            }.items():
                yield f"{layer}.{part}.weight", (rows, columns)
                yield f"{layer}.{part}.bias", (rows,)
    for name, tower in norms:
        yield f"{name}.weight", (tower.width,)
        yield f"{name}.bias", (tower.width,)


def check_shapes(config: ClipConfig, tensors: Tensors, file: str, source: str) -> None:
    """Raises CheckpointError for the first tensor that is missing, of another shape than in the config, or no float.

    file: the config's name.
    """
    for name, expected in expected_shapes(config):
        if name not in tensors:
            raise CheckpointError(f"{source}: the weights have no tensor {name}, which {file} asks for")
        if (numbers := tensors.numbers(name)) not in FLOATS:
            raise CheckpointError(
                f"{source}: tensor {name} is stored as {shortened(numbers)}, so it is quantized or no weight; expected "
                "floats of 16, 32 or 64 bits"
            )
        if (found := tensors.shape(name)) != expected:
            raise CheckpointError(f"{source}: tensor {name} is {list(found)}, {file} makes it {list(expected)}")
