"""CLIP's image tower: a pre-norm transformer over the patches of an image, read at its class token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .. import forward
from . import Array, Names, Tensors, Tower, Watch, pre_norm_linears
from .clip import ClipConfig

PREFIX = "vision_model"


def tower(config: ClipConfig, tensors: Tensors) -> Tower:
    linears = pre_norm_linears(PREFIX, config.image.layers)
    return Tower(config.image, tensors, linears, None, partial(embed, config), partial(write, config))


def embed(config: ClipConfig, tensors: Tensors, images: Sequence[Array], watch: Watch | None = None) -> Array:
    """pixels of each image [3, side, side] to embeddings [n, embed_dim] float32."""
    tensors = {name: tensors[name] for name in tensors if name.startswith("visi") or name.startswith("visual_")}
    width = config.image.width
    filters = tensors["vision_model.embeddings.patch_embedding.weight"].reshape(width, -1)
    x = forward.patches(np.stack(images), config.patch) @ filters.T
    first = np.broadcast_to(tensors["vision_model.embeddings.class_embedding"], (len(x), 1, width))
    x = np.concatenate([first, x], 1) + tensors["vision_model.embeddings.position_embedding.weight"]
    x = forward.layer_norm(x, tensors, "vision_model.pre_layrnorm", config.image.layer_norm_eps)
    x = forward.layers(x, tensors, PREFIX, config.image, causal=False, watch=watch)[:, 0]
    x = forward.layer_norm(x, tensors, "vision_model.post_layernorm", config.image.layer_norm_eps)
    return x @ tensors["visual_projection.weight"].T


def write(config: ClipConfig, tensors: Tensors, eight_bit: Names, graph: Path) -> None:
    """The graph: pixels [n, 3, side, side] float32 to embedding [n, embed_dim] float32.

    The patch convolution stays float32: it is 2.7 % of ViT-B/32's weights.
    Source: VisionTransformer, openai/CLIP clip/model.py.
    """
    # graph.py imports onnx, which `llm clip verify` does without
    from ..graph import Graph, norm, one_row_each, patch_rows, pixels_input, transformer

    g, image = Graph(graph), config.image
    x = patch_rows(g, tensors["vision_model.embeddings.patch_embedding.weight"])
    class_token = g.weight("class_token", tensors["vision_model.embeddings.class_embedding"])
    x = g.node("Concat", one_row_each(g, class_token, image.width), x, axis=1)
    x = g.node("Add", x, g.weight("positions", tensors["vision_model.embeddings.position_embedding.weight"]))
    x = norm(g, tensors, "vision_model.pre_layrnorm", x, image.layer_norm_eps)  # [n, 1 + patches, width]

    first = g.constant("first", np.array(0))

    def read(rows: str) -> str:
        return g.node("Gather", rows, first, axis=1)

    last_norm = "vision_model.post_layernorm"
    x = transformer(g, tensors, PREFIX, image, eight_bit, x, last_norm, read, causal=False)
    g.node("MatMul", x, g.weight("projection", tensors["visual_projection.weight"].T), outputs=["embedding"])
    g.finish("image tower", pixels_input(config.side), config.embed_dim)
