"""DistilBERT as a text tower: a post-norm transformer that attends everywhere, the mean over its tokens, a projection.

Its tensors have the names of CLIP's text tower: layer_norm1 is behind the attention here, layer_norm2 behind the
feed-forward layer. A residual reads what a norm gives, as the next product does; so where that product's input is
rewritten, its norm is computed a second time, with a gain and a bias of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .. import forward
from ..smooth import OWN_NORM
from . import Array, Linear, Names, Tensors, Tower, TowerConfig, Watch

if TYPE_CHECKING:
    from ..graph import Graph

PREFIX = "text_model"
TOKENS = f"{PREFIX}.embeddings.token_embedding.weight"
POSITIONS = f"{PREFIX}.embeddings.position_embedding.weight"
FIRST_NORM = f"{PREFIX}.embeddings.layer_norm"
PROJECTION = "text_projection.weight"


@dataclass(frozen=True)
class DistilBertConfig:
    """Sizes of a DistilBERT and of the Dense layer behind it."""

    text: TowerConfig
    embed_dim: int
    vocab_size: int
    positions: int


def tower(config: DistilBertConfig, tensors: Tensors) -> Tower:
    linears = post_norm_linears(config.text.layers)
    return Tower(config.text, tensors, linears, TOKENS, partial(embed, config), partial(write, config))


def layer_names(layers: int) -> list[str]:
    return [f"{PREFIX}.encoder.layers.{n}" for n in range(layers)]


def post_norm_linears(layers: int) -> tuple[Linear, ...]:
    """The linear layers, four a layer. The products of q, k and v and of fc1 share their input with a residual."""
    linears, before = [], FIRST_NORM
    for layer in layer_names(layers):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = tuple(f"{attention}.{part}_proj" for part in "qkv")
        linears += [
            Linear(f"{layer}.qkv", qkv, before, shared=True),
            Linear(f"{layer}.out", (f"{attention}.out_proj",), f"{attention}.v_proj"),
            Linear(f"{layer}.fc1", (f"{mlp}.fc1",), f"{layer}.layer_norm1", shared=True),
            Linear(f"{layer}.fc2", (f"{mlp}.fc2",), None),
        ]
        before = f"{layer}.layer_norm2"
    return tuple(linears)


def expected_shapes(config: DistilBertConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of such a tower."""
    width, hidden = config.text.width, config.text.hidden
    yield TOKENS, (config.vocab_size, width)
    yield POSITIONS, (config.positions, width)
    yield PROJECTION, (config.embed_dim, width)
    norms = [FIRST_NORM]
    for layer in layer_names(config.text.layers):
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        square = {f"self_attn.{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
        for part, shape in {**square, "mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}.items():
            yield f"{layer}.{part}.weight", shape
            yield f"{layer}.{part}.bias", shape[:1]
    for name in norms:
        yield f"{name}.weight", (width,)
        yield f"{name}.bias", (width,)


def embed(
    config: DistilBertConfig, tensors: Tensors, texts: Sequence[NDArray[np.int64]], watch: Watch | None = None
) -> Array:
    """ids of each text [t] to embeddings [n, embed_dim] float32, in plain numpy."""
    tensors, text = {name: tensors[name] for name in tensors}, config.text
    embeddings = []
    for ids in texts:
        x = (tensors[TOKENS][ids] + tensors[POSITIONS][: len(ids)])[None]
        x = forward.layer_norm(x, tensors, FIRST_NORM, text.layer_norm_eps)
        for layer in layer_names(text.layers):
            x = x + forward.attention(x, tensors, f"{layer}.self_attn", text.heads, False, watch)
            x = forward.layer_norm(x, tensors, f"{layer}.layer_norm1", text.layer_norm_eps)
            hidden = forward.ACTIVATIONS[text.activation](forward.linear(x, tensors, f"{layer}.mlp.fc1", watch))
            x = x + forward.linear(hidden, tensors, f"{layer}.mlp.fc2", watch)
            x = forward.layer_norm(x, tensors, f"{layer}.layer_norm2", text.layer_norm_eps)
        embeddings.append(tensors[PROJECTION] @ x[0].mean(0))
    return np.stack(embeddings)


def write(config: DistilBertConfig, tensors: Tensors, eight_bit: Names, graph: Path) -> None:
    """The graph: ids [n, t] int64, of texts of one length, to embedding [n, embed_dim] float32.

    Source: DistilBertModel of transformers; Pooling and Dense of sentence-transformers.
    """
    from ..graph import Graph, first_positions, ids_input, norm, token_rows  # imports onnx

    g, epsilon = Graph(graph), config.text.layer_norm_eps
    x = g.node("Add", token_rows(g, tensors[TOKENS], "ids", eight_bit), first_positions(g, tensors[POSITIONS]))
    normed = norm(g, tensors, FIRST_NORM, x, epsilon)  # [n, t, width]
    for layer in layer_names(config.text.layers):
        normed, x = write_layer(g, tensors, layer, config.text, eight_bit, normed, x)
    mean = g.node("ReduceMean", normed, axes=[1], keepdims=0)  # [n, width]
    g.node("MatMul", mean, g.weight("projection", tensors[PROJECTION].T), outputs=["embedding"])
    g.finish("text tower", ids_input(), config.embed_dim)


def write_layer(
    g: Graph, tensors: Tensors, layer: str, tower: TowerConfig, eight_bit: Names, normed: str, x: str
) -> tuple[str, str]:
    """A layer on `normed`, which a norm has made of x: what its last norm gives, and that norm's input."""
    from ..graph import add_norm, attention, feed_forward, linear

    epsilon = tower.layer_norm_eps
    given = own_norm(g, tensors, f"{layer}.qkv", normed, x, epsilon)
    mixed = attention(g, tensors, layer, tower, eight_bit, given, causal=False)
    out = linear(g, eight_bit, f"{layer}.out", mixed, tensors[f"{layer}.self_attn.out_proj.weight"].T)
    bias = g.weight(f"{layer}.out.bias", tensors[f"{layer}.self_attn.out_proj.bias"])
    normed, x = add_norm(g, tensors, f"{layer}.layer_norm1", out, normed, bias, epsilon)
    given = own_norm(g, tensors, f"{layer}.fc1", normed, x, epsilon)
    out = feed_forward(g, tensors, layer, tower, eight_bit, given)
    bias = g.weight(f"{layer}.fc2.bias", tensors[f"{layer}.mlp.fc2.bias"])
    return add_norm(g, tensors, f"{layer}.layer_norm2", out, normed, bias, epsilon)


def own_norm(g: Graph, tensors: Tensors, linear: str, normed: str, x: str, epsilon: float) -> str:
    """The input of a linear layer: `normed`, or, if it was rewritten, the norm of x by a gain and bias of its own."""
    from ..graph import norm

    own = f"{linear}.{OWN_NORM}"
    return norm(g, tensors, own, x, epsilon) if f"{own}.weight" in tensors else normed
