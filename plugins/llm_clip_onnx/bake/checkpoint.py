"""Defines what the readers in families/ make of a checkpoint: two towers, preprocessing, a tokenizer.

The shapes of their tensors are checked here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..errors import CheckpointError, shortened
from ..model_dir import Preprocess, Source, Tokens
from .tensors import Tensors
from .towers import Tower, clip_image, clip_text
from .towers.clip import ClipConfig

FLOATS = ("F16", "BF16", "F32", "F64", "float16", "bfloat16", "float32", "float64")  # of safetensors, and of torch


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that can be baked. tokenizer: its files in the model directory by name, and what is in them."""

    source: Source
    text: Tower
    image: Tower
    embed_dim: int
    log_logit_scale: float
    preprocess: Preprocess
    tokenizer: Mapping[str, str | bytes]
    tokens: Tokens
    context_length: int  # the most ids of a text
    logit_bias: float | None = None
    images: Source | None = None  # of the image tower, where it is another checkpoint's


def clip_checkpoint(
    source: Source,
    config: ClipConfig,
    tensors: Tensors,
    preprocess: Preprocess,
    tokenizer: Mapping[str, str],
    tokens: Tokens,
    context_length: int,
) -> Checkpoint:
    """The checkpoint of a CLIP with both its towers, from tensors that check_shapes has seen."""
    text, image = clip_text.tower(config, tensors), clip_image.tower(config, tensors)
    scale = float(tensors["logit_scale"])
    return Checkpoint(source, text, image, config.embed_dim, scale, preprocess, tokenizer, tokens, context_length)


def check_shapes(shapes: Iterable[tuple[str, tuple[int, ...]]], tensors: Tensors, file: str, source: str) -> None:
    """Raises CheckpointError for the first tensor that is missing, of another shape than it should be, or no float.

    shapes: names and shapes of those that a checkpoint must have by its config, which is in `file`.
    """
    for name, expected in shapes:
        if name not in tensors:
            raise CheckpointError(f"{source}: the weights have no tensor {name}, which {file} asks for")
        if (numbers := tensors.numbers(name)) not in FLOATS:
            raise CheckpointError(
                f"{source}: tensor {name} is stored as {shortened(numbers)}, so it is quantized or no weight; expected "
                "floats of 16, 32 or 64 bits"
            )
        if (found := tensors.shape(name)) != expected:
            raise CheckpointError(f"{source}: tensor {name} is {list(found)}, {file} makes it {list(expected)}")
