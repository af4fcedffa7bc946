"""Defines what a kind of tower gives the bake; each kind is a module here, with its forward pass and its graph.

The steps of a bake work with a Tower and need not know which kind it is. What several kinds share is in forward.py, in
plain numpy, and in graph.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Tensors = Mapping[str, Array]
Names = Collection[str]  # of the matrices that are baked in 8 bits: linear layers, and graph.TOKEN_TABLE
Watch = Callable[[str, Array], None]  # is called with the name and the input [n, t, in] of each linear layer


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
class Linear:
    """A linear layer that may be baked in 8 bits.

    tensors: names, without .weight and .bias, of the tensors that it joins, because they have the same input.
    before: the same of the layer norm, or of the attention's values, that its input comes from; None where there is no
    such step, as behind an activation.
    shared: something else, a residual, reads what `before` gives too.
    """

    name: str
    tensors: tuple[str, ...]
    before: str | None
    shared: bool = False


@dataclass(frozen=True)
class Tower:
    """A tower of a checkpoint, and what its kind can do with its tensors, also with rewritten ones.

    embed: ids of each text [t], or pixels of each image [3, side, side], to embeddings [n, embed_dim].
    write: the graph, with these matrices in 8 bits.
    """

    config: TowerConfig
    tensors: Tensors
    linears: tuple[Linear, ...]  # in the order in which they are computed
    token_table: str | None  # the name of its tensor
    embed: Callable[[Tensors, Sequence[NDArray], Watch | None], Array]
    write: Callable[[Tensors, Names, Path], None]
    padded: bool = False  # every text has as many ids as there are positions


def pre_norm_linears(prefix: str, layers: int) -> tuple[Linear, ...]:
    """The linear layers of a transformer that normalises before attention and feed-forward, four a layer."""
    linears = []
    for layer in (f"{prefix}.encoder.layers.{n}" for n in range(layers)):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        qkv = tuple(f"{attention}.{part}_proj" for part in "qkv")
        linears += [
            Linear(f"{layer}.qkv", qkv, f"{layer}.layer_norm1"),
            Linear(f"{layer}.out", (f"{attention}.out_proj",), f"{attention}.v_proj"),
            Linear(f"{layer}.fc1", (f"{mlp}.fc1",), f"{layer}.layer_norm2"),
            Linear(f"{layer}.fc2", (f"{mlp}.fc2",), None),
        ]
    return tuple(linears)
