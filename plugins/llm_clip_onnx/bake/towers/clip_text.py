"""CLIP's text tower: a pre-norm transformer that attends backwards, read at a text's <|endoftext|>."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import forward
from . import Array, Names, Tensors, Tower, Watch, pre_norm_linears
from .clip import ClipConfig

PREFIX = "text_model"
TOKENS = f"{PREFIX}.embeddings.token_embedding.weight"


def tower(config: ClipConfig, tensors: Tensors) -> Tower:
    linears = pre_norm_linears(PREFIX, config.text.layers)
    return Tower(config.text, tensors, linears, TOKENS, partial(embed, config), partial(write, config))


def embed(
    config: ClipConfig, tensors: Tensors, texts: Sequence[NDArray[np.int64]], watch: Watch | None = None
) -> Array:
    """ids of each text [t] to embeddings [n, embed_dim] float32."""
    tensors = {name: tensors[name] for name in tensors if name.startswith("text_")}
    tokens = tensors[TOKENS]
    positions = tensors[f"{PREFIX}.embeddings.position_embedding.weight"]
    embeddings = []
    for ids in texts:
        x = (tokens[ids] + positions[: len(ids)])[None]
        x = forward.layers(x, tensors, PREFIX, config.text, causal=True, watch=watch)[0]
        end = ids.argmax() if config.end_is_highest_id else (ids == config.end_id).argmax()
        x = forward.layer_norm(x[end], tensors, f"{PREFIX}.final_layer_norm", config.text.layer_norm_eps)
        embeddings.append(tensors["text_projection.weight"] @ x)
    return np.stack(embeddings)


def write(config: ClipConfig, tensors: Tensors, eight_bit: Names, graph: Path) -> None:
    """The graph: ids [n, t] int64 to embedding [n, embed_dim] float32.

    Source: encode_text, openai/CLIP clip/model.py; transformers' CLIPTextTransformer for the position of the end.
    """
    from onnx import TensorProto  # `llm clip verify` does without onnx

    from ..graph import Graph, first_positions, ids_input, token_rows, transformer

    g = Graph(graph)
    x = token_rows(g, tensors[TOKENS], "ids", eight_bit)
    x = g.node("Add", x, first_positions(g, tensors[f"{PREFIX}.embeddings.position_embedding.weight"]))
    # eos_token_id 2 means the highest id, as in openai/CLIP; any other means its own first position.
    ends = "ids" if config.end_is_highest_id else g.node("Equal", "ids", g.constant("end_id", np.array(config.end_id)))
    end = g.node("ArgMax", g.node("Cast", ends, to=TensorProto.INT32), axis=1, keepdims=1)  # [n, 1] int64

    def read(rows: str) -> str:
        return g.node("GatherND", rows, end, batch_dims=1)

    last_norm = f"{PREFIX}.final_layer_norm"
    x = transformer(g, tensors, PREFIX, config.text, eight_bit, x, last_norm, read, causal=True)
    g.node("MatMul", x, g.weight("projection", tensors["text_projection.weight"].T), outputs=["embedding"])
    g.finish("text tower", ids_input(), config.embed_dim)
