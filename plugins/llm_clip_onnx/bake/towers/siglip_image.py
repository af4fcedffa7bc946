"""SigLIP's image tower: a pre-norm transformer over the patches of an image, pooled by a head with a learned probe.

The head is an attention whose one query is the probe, and a feed-forward layer. There is no class token, no norm before
the first layer and no projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from .. import forward
from . import Array, Linear, Names, Tensors, Tower, Watch, pre_norm_linears
from .siglip import HEAD, SiglipConfig

PREFIX = "vision_model"
PATCHES, POSITIONS = f"{PREFIX}.embeddings.patch_embedding", f"{PREFIX}.embeddings.position_embedding.weight"
LAST_NORM, ATTENTION, MLP = f"{PREFIX}.post_layernorm", f"{HEAD}.attention", f"{HEAD}.mlp"
HEAD_LINEARS = (
    Linear(f"{HEAD}.kv", (f"{ATTENTION}.k_proj", f"{ATTENTION}.v_proj"), LAST_NORM),
    Linear(f"{HEAD}.out", (f"{ATTENTION}.out_proj",), f"{ATTENTION}.v_proj"),
    Linear(f"{HEAD}.fc1", (f"{MLP}.fc1",), f"{HEAD}.layernorm"),
    Linear(f"{HEAD}.fc2", (f"{MLP}.fc2",), None),
)


def tower(config: SiglipConfig, tensors: Tensors) -> Tower:
    linears = (*pre_norm_linears(PREFIX, config.image.layers), *HEAD_LINEARS)
    return Tower(config.image, tensors, linears, None, partial(embed, config), partial(write, config))


def embed(config: SiglipConfig, tensors: Tensors, images: Sequence[Array], watch: Watch | None = None) -> Array:
    """pixels of each image [3, side, side] to embeddings [n, embed_dim] float32."""
    tensors = {name: tensors[name] for name in tensors if name.startswith(PREFIX)}
    width, patch, epsilon = config.image.width, config.patch, config.image.layer_norm_eps
    filters = tensors[f"{PATCHES}.weight"].reshape(width, -1)
    x = forward.patches(np.stack(images), patch) @ filters.T + tensors[f"{PATCHES}.bias"] + tensors[POSITIONS]
    x = forward.layers(x, tensors, PREFIX, config.image, causal=False, watch=watch)
    x = forward.layer_norm(x, tensors, LAST_NORM, epsilon)  # [n, patches, width]
    probe = np.broadcast_to(tensors[f"{HEAD}.probe"], (len(x), 1, width))
    x = forward.attention(x, tensors, ATTENTION, config.image.heads, causal=False, watch=watch, query=probe)
    hidden = forward.linear(forward.layer_norm(x, tensors, f"{HEAD}.layernorm", epsilon), tensors, f"{MLP}.fc1", watch)
    x = x + forward.linear(forward.ACTIVATIONS[config.image.activation](hidden), tensors, f"{MLP}.fc2", watch)
    return x[:, 0]


def write(config: SiglipConfig, tensors: Tensors, eight_bit: Names, graph: Path) -> None:
    """The graph: pixels [n, 3, side, side] float32 to embedding [n, embed_dim] float32.

    Source: SiglipVisionModel, transformers modeling_siglip.py; MAPHead, big_vision models/vit.py.
    """
    # graph.py imports onnx, which `llm clip verify` does without
    from ..graph import Graph, feed_forward, linear, norm, one_row_each, patch_rows, pixels_input, transformer

    g, image = Graph(graph), config.image
    x = patch_rows(g, tensors[f"{PATCHES}.weight"], tensors[f"{PATCHES}.bias"])
    x = g.node("Add", x, g.weight("positions", tensors[POSITIONS]))  # [n, patches, width]
    x = transformer(g, tensors, PREFIX, image, eight_bit, x, LAST_NORM, lambda rows: rows, causal=False)

    probe = tensors[f"{HEAD}.probe"] @ tensors[f"{ATTENTION}.q_proj.weight"].T  # [1, 1, width], of every image
    q = one_row_each(g, g.weight("probe", probe), image.width)
    keys_values = np.concatenate([tensors[f"{ATTENTION}.{part}_proj.weight"].T for part in "kv"], 1)
    k, v = g.node("Split", linear(g, eight_bit, f"{HEAD}.kv", x, keys_values), outputs=2, axis=-1)
    bias = g.weight(f"{HEAD}.qkv.bias", np.concatenate([tensors[f"{ATTENTION}.{part}_proj.bias"] for part in "qkv"]))
    x = g.fused("MultiHeadAttention", q, k, v, bias, num_heads=image.heads)
    x = g.node("Gather", x, g.constant("first", np.array(0)), axis=1)  # [n, width]
    out = tensors[f"{ATTENTION}.out_proj.weight"].T
    x = linear(g, eight_bit, f"{HEAD}.out", x, out, tensors[f"{ATTENTION}.out_proj.bias"])
    hidden = norm(g, tensors, f"{HEAD}.layernorm", x, image.layer_norm_eps)
    hidden = feed_forward(g, tensors, HEAD, image, eight_bit, hidden)
    hidden = g.node("Add", hidden, g.weight(f"{HEAD}.fc2.bias", tensors[f"{MLP}.fc2.bias"]))
    g.node("Add", x, hidden, outputs=["embedding"])
    g.finish("image tower", pixels_input(config.side), config.embed_dim)
