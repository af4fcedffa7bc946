"""Defines the sizes and the tensors of a CLIP, whose two towers are in clip_text.py and clip_image.py.

A tensor has the name that transformers gives it, whatever the layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import TowerConfig


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
