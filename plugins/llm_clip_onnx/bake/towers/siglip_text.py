"""SigLIP's text tower: a pre-norm transformer over a padded text, which attends everywhere, read at its last position.

There is no mask: the padding takes part, so every text has context_length ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import forward
from ..tensors import PickledTensors, SafeTensors
from . import Array, Names, Tensors, Tower, Watch, pre_norm_linears
from .siglip import SiglipConfig, tensors_of

PREFIX = "text_model"
TOKENS, POSITIONS = (f"{PREFIX}.embeddings.{name}_embedding.weight" for name in ("token", "position"))
LAST_NORM, HEAD = f"{PREFIX}.final_layer_norm", f"{PREFIX}.head"


def tower(config: SiglipConfig, stored: SafeTensors | PickledTensors) -> Tower:
    tensors = tensors_of(PREFIX, config, stored)
    linears = pre_norm_linears(PREFIX, config.text.layers)
    return Tower(config.text, tensors, linears, TOKENS, partial(embed, config), partial(write, config), padded=True)


def embed(
    config: SiglipConfig, tensors: Tensors, texts: Sequence[NDArray[np.int64]], watch: Watch | None = None
) -> Array:
    """ids of each text [context_length] to embeddings [n, embed_dim] float32."""
    tensors = dict(tensors)  # read once
    embeddings = []
    for ids in texts:
        x = (tensors[TOKENS][ids] + tensors[POSITIONS])[None]
        x = forward.layers(x, tensors, PREFIX, config.text, causal=False, watch=watch)[0]
        x = forward.layer_norm(x[-1], tensors, LAST_NORM, config.text.layer_norm_eps)
        embeddings.append(forward.linear(x, tensors, HEAD))
    return np.stack(embeddings)


def write(config: SiglipConfig, tensors: Tensors, eight_bit: Names, graph: Path) -> None:
    """The graph: ids [n, context_length] int64 to embedding [n, embed_dim] float32. The head stays float32.

    Source: SiglipTextModel, transformers modeling_siglip.py; big_vision models/proj/image_text/text_transformer.py.
    """
    from ..graph import Graph, ids_input, token_rows, transformer  # imports onnx, which `llm clip verify` does without

    g = Graph(graph)
    x = token_rows(g, tensors[TOKENS], "ids", eight_bit)
    x = g.node("Add", x, g.weight("positions", tensors[POSITIONS]))  # [n, context_length, width]
    last = g.constant("last", np.array(config.context_length - 1))

    def read(rows: str) -> str:
        return g.node("Gather", rows, last, axis=1)

    x = transformer(g, tensors, PREFIX, config.text, eight_bit, x, LAST_NORM, read, causal=False)
    x = g.node("MatMul", x, g.weight("head.weight", tensors[f"{HEAD}.weight"].T))
    g.node("Add", x, g.weight("head.bias", tensors[f"{HEAD}.bias"]), outputs=["embedding"])
    g.finish("text tower", ids_input(), config.embed_dim)
