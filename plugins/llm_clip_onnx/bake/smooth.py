"""A checkpoint rewritten so that what goes into its linear layers fits 8 bits, while in float32 it computes the same.

8-bit activations share one scale over a whole call, and CLIP has outlier channels: a few that carry a large constant,
beside which that scale is much too coarse for all others. So what goes into a linear layer, x, is made
(x - shift) / scale, with a number of each per channel, the layer's matrix scale * W and its bias b + shift @ W. The
layer norm before, or the values of the attention before, give that x without another step; only fc2, behind an
activation, wants a product for the scale, and has no shift. What is rewritten, and how far, is chosen by its error.

It quantizes nothing for good, and knows no graph. Source: SmoothQuant (arXiv 2211.10438) for the scale, Outlier
Suppression+ (arXiv 2304.09145) for the shift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .checkpoint import TowerConfig
from .quantize import product_in_8_bits

Array = NDArray[np.float32]
Inputs = Mapping[str, Sequence[Array]]  # linear layer -> what went into it, [t, in] for each text or image

# How much of a channel's range moves into the matrix: 0 none, 1 all. The best of 0.3 to 0.85 lay between these two.
STRENGTHS = (0.5, 0.75)
WORTH_A_STEP = 0.7  # for fc2 the error must fall to this share of what it was, for the scale costs a product
INPUT_SCALE = "input_scale"  # the tensor of fc2 that its input is multiplied by, where there is one


@dataclass(frozen=True)
class Choice:
    """How what goes into a linear layer is rewritten. `error`: of the 8-bit product, relative to what varies in it."""

    strength: float | None  # None: it is left as it is
    error: float
    error_as_it_was: float
    shift: Array  # [in]
    scale: Array  # [in]


def linears(prefix: str, tower: TowerConfig) -> list[str]:
    """The linear layers of a tower in order, four a layer; `qkv` is three that get the same."""
    return [f"{prefix}.encoder.layers.{n}.{part}" for n in range(tower.layers) for part in ("qkv", "out", "fc1", "fc2")]


def tensor_names(linear: str) -> list[str]:
    """The checkpoint's names, without .weight and .bias, of what a linear layer is made of."""
    layer, part = linear.rsplit(".", 1)
    if part == "qkv":
        return [f"{layer}.self_attn.{one}_proj" for one in "qkv"]
    return [f"{layer}.self_attn.out_proj" if part == "out" else f"{layer}.mlp.{part}"]


def smoothed(
    tensors: Mapping[str, Array], prefix: str, tower: TowerConfig, inputs: Inputs
) -> tuple[dict[str, Array], dict[str, Choice]]:
    """The tensors with some replaced, and what was chosen for each linear layer.

    `inputs` are of the tensors as they were: what is rewritten before a layer does not change what is measured there.
    """
    tensors, choices = dict(tensors), {}
    for linear in linears(prefix, tower):
        choices[linear] = choice = choose(linear, tensors, inputs[tensor_names(linear)[0]])
        if choice.strength is not None:
            rewrite(tensors, linear, choice)
    return tensors, choices


def choose(linear: str, tensors: Mapping[str, Array], inputs: Sequence[Array]) -> Choice:
    """Of leaving a linear layer as it is, and of rewriting it by each of STRENGTHS, what has the smallest error."""
    weight = np.concatenate([tensors[f"{name}.weight"] for name in tensor_names(linear)]).T  # [in, out]
    behind_activation = linear.endswith(".fc2")
    rows = np.concatenate(inputs)  # [all t, in]
    exact = rows @ weight
    varies = max(float(np.linalg.norm(exact - exact.mean(0))), 1e-30)

    def error(shift: Array, scale: Array) -> float:
        found = product_in_8_bits([(x - shift) / scale for x in inputs], scale[:, None] * weight)
        return float(np.linalg.norm(found + shift @ weight - exact)) / varies

    none, one = np.zeros(len(weight), np.float32), np.ones(len(weight), np.float32)
    as_it_was = error(none, one)
    best = Choice(None, as_it_was, as_it_was, none, one)
    limit = as_it_was * WORTH_A_STEP if behind_activation else as_it_was
    shift = none if behind_activation else ((rows.max(0) + rows.min(0)) / 2).astype(np.float32)
    for strength in STRENGTHS:
        scale = scales(np.abs(rows - shift).max(0), np.abs(weight).max(1), strength)
        if (found := error(shift, scale)) < min(limit, best.error):
            best = Choice(strength, found, as_it_was, shift, scale)
    return best


def scales(activations: Array, weights: Array, strength: float) -> Array:
    """What each channel is divided by, [in]: of geometric mean 1, from its largest activation and weight.

    Channels that are always the same, or never used, count as 1e-5 of the largest, so that nothing overflows.
    """
    a, w = (np.log(np.maximum(each, max(float(each.max()), 1e-30) * 1e-5)) for each in (activations, weights))
    logs = strength * a - (1 - strength) * w
    return np.exp(logs - logs.mean()).astype(np.float32)


def rewrite(tensors: dict[str, Array], linear: str, choice: Choice) -> None:
    """Replace the tensors of a linear layer, and of what is before it, as `choice` says. Exact but for rounding."""
    layer, part = linear.rsplit(".", 1)
    shift, scale = choice.shift, choice.scale
    for name in tensor_names(linear):
        weight = tensors[f"{name}.weight"]  # [out, in]
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + weight @ shift
        tensors[f"{name}.weight"] = weight * scale
    if part == "fc2":
        tensors[f"{layer}.mlp.fc2.{INPUT_SCALE}"] = np.reciprocal(scale)
        return
    before = {"qkv": "layer_norm1", "out": "self_attn.v_proj", "fc1": "layer_norm2"}[part]
    by_channel = tensors[f"{layer}.{before}.weight"].T / scale  # a gain [in], or the values' matrix [width, in]
    tensors[f"{layer}.{before}.weight"] = by_channel.T
    tensors[f"{layer}.{before}.bias"] = (tensors[f"{layer}.{before}.bias"] - shift) / scale
