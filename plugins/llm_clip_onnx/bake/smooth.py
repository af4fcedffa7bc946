"""Rewrites linear layers so that their inputs fit 8 bits, while in float32 the tower computes the same.

8-bit activations share one scale over a whole call. CLIP has outlier channels: a few that carry a large constant, and
beside them that scale is much too coarse for all others. So the input x of a linear layer becomes (x - shift) / scale,
with one shift and one scale per channel; its matrix W becomes scale * W, and its bias b becomes b + shift @ W. The
layer norm before it, or the values of the attention before it, give the new x without another step. A layer behind an
activation needs a product for the scale and has no shift. Where a residual reads x too, the layer norm is computed
twice. The measured error chooses the layers and the strength.

It keeps no quantized matrix and knows no graph. Source: SmoothQuant (arXiv 2211.10438) for the scale, Outlier
Suppression+ (arXiv 2304.09145) for the shift.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from .quantize import product_in_8_bits
from .towers import Array, Linear

Inputs = Mapping[str, Sequence[Array]]  # tensor of a linear layer -> its inputs, [t, in] for each text or image

# Share of a channel's range that moves into the matrix. Of 0.3 to 0.85 the best lay between these two.
STRENGTHS = (0.5, 0.75)
STEP_ERROR_SHARE = 0.7  # the error must fall to this share where a rewritten layer costs another step
INPUT_SCALE = "input_scale"  # name of the tensor by which the input of such a layer is multiplied, if it is rewritten
OWN_NORM = "norm"  # behind the name of a layer that has a norm of its own: the name of that norm


@dataclass(frozen=True)
class Choice:
    """How a linear layer is rewritten. error: of its 8-bit product, relative to the varying part of the exact one."""

    strength: float | None  # None: not rewritten
    error: float
    error_as_it_was: float
    shift: Array  # [in]
    scale: Array  # [in]


def smooth_tensors(
    tensors: Mapping[str, Array], linears: Sequence[Linear], inputs: Inputs
) -> tuple[ChainMap[str, Array], dict[str, Choice]]:
    """The tensors, some of them rewritten, and the choice for each linear layer by its name.

    Those that are not rewritten are still read on access: SigLIP 2's token table takes 786 MB. inputs: measured on the
    original tensors, because rewriting one layer does not change the products of the next.
    """
    rewritten: ChainMap[str, Array] = ChainMap({}, tensors)  # type: ignore[arg-type]  # only the first is written to
    choices = {}
    for linear in linears:
        choices[linear.name] = choice = choose(linear, rewritten, inputs[linear.tensors[0]])
        if choice.strength is not None:
            rewrite(rewritten, linear, choice)
    return rewritten, choices


def choose(linear: Linear, tensors: Mapping[str, Array], inputs: Sequence[Array]) -> Choice:
    """The choice with the smallest error: to leave a linear layer as it is, or to rewrite it by one of STRENGTHS."""
    weight = np.concatenate([tensors[f"{name}.weight"] for name in linear.tensors]).T  # [in, out]
    rows = np.concatenate(inputs)  # [all t, in]
    exact = rows @ weight
    varies = max(float(np.linalg.norm(exact - exact.mean(0))), 1e-30)

    def error(shift: Array, scale: Array) -> float:
        product = product_in_8_bits([(x - shift) / scale for x in inputs], scale[:, None] * weight)
        return float(np.linalg.norm(product + shift @ weight - exact)) / varies

    no_shift, no_scale = np.zeros(len(weight), np.float32), np.ones(len(weight), np.float32)
    as_it_was = error(no_shift, no_scale)
    best = Choice(None, as_it_was, as_it_was, no_shift, no_scale)
    costs_a_step = linear.before is None or linear.shared
    limit = as_it_was * STEP_ERROR_SHARE if costs_a_step else as_it_was
    shift = ((rows.max(0) + rows.min(0)) / 2).astype(np.float32) if linear.before else no_shift
    for strength in STRENGTHS:
        scale = scales(np.abs(rows - shift).max(0), np.abs(weight).max(1), strength)
        if (new_error := error(shift, scale)) < min(limit, best.error):
            best = Choice(strength, new_error, as_it_was, shift, scale)
    return best


def scales(activations: Array, weights: Array, strength: float) -> Array:
    """The scale of each channel, [in], with geometric mean 1, from its largest activation and weight.

    Channels that never vary, or are never used, count as 1e-5 of the largest, so that nothing overflows.
    """
    a, w = (np.log(np.maximum(each, max(float(each.max()), 1e-30) * 1e-5)) for each in (activations, weights))
    logs = strength * a - (1 - strength) * w
    return np.exp(logs - logs.mean()).astype(np.float32)


def rewrite(tensors: MutableMapping[str, Array], linear: Linear, choice: Choice) -> None:
    """Replace the tensors of a linear layer and of the step before it as `choice` says. Exact but for rounding."""
    shift, scale = choice.shift, choice.scale
    for name in linear.tensors:
        weight = tensors[f"{name}.weight"]  # [out, in]
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + weight @ shift
        tensors[f"{name}.weight"] = weight * scale
    if linear.before is None:
        tensors[f"{linear.tensors[0]}.{INPUT_SCALE}"] = np.reciprocal(scale)
        return
    to = f"{linear.name}.{OWN_NORM}" if linear.shared else linear.before
    by_channel = tensors[f"{linear.before}.weight"].T / scale  # a gain [in], or the values' matrix [width, in]
    tensors[f"{to}.weight"] = by_channel.T
    tensors[f"{to}.bias"] = (tensors[f"{linear.before}.bias"] - shift) / scale
