"""Defines the sizes and the tensors of a SigLIP, whose two towers are in siglip_text.py and siglip_image.py.

A tensor has the name that transformers gives it. SigLIP 2 of a fixed size is the same model with another vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..tensors import Part, PickledTensors, RenamedTensors, SafeTensors
from . import TowerConfig

HEAD = "vision_model.head"
JOINED = f"{HEAD}.attention.in_proj_"  # q, k and v in one tensor, as torch's MultiheadAttention has them

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class SiglipConfig:
    """Sizes of a SigLIP. The image tower's output is not projected, so embed_dim is its width."""

    text: TowerConfig
    image: TowerConfig
    vocab_size: int
    context_length: int  # ids of every text, with its padding
    side: int  # pixels
    patch: int

    @property
    def embed_dim(self) -> int:
        return self.image.width


def expected_shapes(config: SiglipConfig) -> Shapes:
    """Name and shape of every tensor that a checkpoint of this config has."""
    text, image, patches = config.text, config.image, (config.side // config.patch) ** 2
    yield "logit_scale", (1,)
    yield "logit_bias", (1,)
    yield "text_model.embeddings.token_embedding.weight", (config.vocab_size, text.width)
    yield "text_model.embeddings.position_embedding.weight", (config.context_length, text.width)
    yield from linear_shapes("text_model.head", config.embed_dim, text.width)
    yield "vision_model.embeddings.patch_embedding.weight", (image.width, 3, config.patch, config.patch)
    yield "vision_model.embeddings.patch_embedding.bias", (image.width,)
    yield "vision_model.embeddings.position_embedding.weight", (patches, image.width)
    for prefix, tower, last_norm in (
        ("text_model", text, "final_layer_norm"),
        ("vision_model", image, "post_layernorm"),
    ):
        yield from norm_shapes(f"{prefix}.{last_norm}", tower.width)
        for n in range(tower.layers):
            layer = f"{prefix}.encoder.layers.{n}"
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield from linear_shapes(f"{layer}.self_attn.{part}", tower.width, tower.width)
            yield from norm_shapes(f"{layer}.layer_norm1", tower.width)
            yield from norm_shapes(f"{layer}.layer_norm2", tower.width)
            yield from mlp_shapes(f"{layer}.mlp", tower)
    yield f"{HEAD}.probe", (1, 1, image.width)
    yield f"{JOINED}weight", (3 * image.width, image.width)
    yield f"{JOINED}bias", (3 * image.width,)
    yield from linear_shapes(f"{HEAD}.attention.out_proj", image.width, image.width)
    yield from norm_shapes(f"{HEAD}.layernorm", image.width)
    yield from mlp_shapes(f"{HEAD}.mlp", image)


def linear_shapes(name: str, rows: int, columns: int) -> Shapes:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def norm_shapes(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def mlp_shapes(name: str, tower: TowerConfig) -> Shapes:
    yield from linear_shapes(f"{name}.fc1", tower.hidden, tower.width)
    yield from linear_shapes(f"{name}.fc2", tower.width, tower.hidden)


def split_head(config: SiglipConfig, tensors: SafeTensors | PickledTensors) -> RenamedTensors:
    """The tensors, with the head's q, k and v apart, named as those of the layers are."""
    parts = {name: Part(name) for name, _ in expected_shapes(config) if not name.startswith(JOINED)}
    for end in ("weight", "bias"):
        parts |= {f"{HEAD}.attention.{letter}_proj.{end}": Part(f"{JOINED}{end}", n) for n, letter in enumerate("qkv")}
    return RenamedTensors(tensors, parts)
