"""Computes the steps of a tower's forward pass in plain numpy from named tensors: the reference for float32 towers.

They have nothing in common with the graphs: no fused operators, no joined q, k and v. The towers are in towers/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .towers import Array, TowerConfig, Watch


def layer_norm(x: Array, tensors: Mapping[str, Array], name: str, epsilon: float) -> Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((centred * centred).mean(-1, keepdims=True) + np.float32(epsilon))
    return centred / scale * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: Array, tensors: Mapping[str, Array], name: str, watch: Watch | None = None) -> Array:
    if watch:
        watch(name, x)
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def quick_gelu(x: Array) -> Array:
    return x / (1 + np.exp(-np.float32(1.702) * x))


def gelu(x: Array) -> Array:
    """x * Phi(x), with erf by its rational approximation, off by at most 1.5e-7 (Abramowitz and Stegun, 7.1.26)."""
    z = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.sign(x) * (1 - series * np.exp(-z * z))
    return (x * (1 + erf) / 2).astype(np.float32)


def tanh_gelu(x: Array) -> Array:
    """gelu by a hyperbolic tangent (Hendrycks and Gimpel, arXiv 1606.08415), off by up to 5e-4 from `gelu`."""
    return x / 2 * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": gelu,
    "gelu_pytorch_tanh": tanh_gelu,
}


def patches(pixels: Array, patch: int) -> Array:
    """Pixels [n, 3, side, side] as rows of patches [n, patches, 3 * patch * patch]; an unfilled edge is left out."""
    grid = pixels.shape[-1] // patch
    used = pixels[:, :, : grid * patch, : grid * patch].reshape(-1, 3, grid, patch, grid, patch)
    return used.transpose(0, 2, 4, 1, 3, 5).reshape(-1, grid * grid, 3 * patch * patch)


def attention(
    x: Array,
    tensors: Mapping[str, Array],
    name: str,
    heads: int,
    causal: bool,
    watch: Watch | None,
    query: Array | None = None,
) -> Array:
    """Attention of x [n, t, width] with itself, or with a query [n, q, width] of its own: [n, q, width]."""
    n, _, width = x.shape
    q, k, v = (
        linear(rows, tensors, f"{name}.{part}_proj", watch).reshape(n, -1, heads, width // heads).transpose(0, 2, 1, 3)
        for part, rows in zip("qkv", (x if query is None else query, x, x))
    )  # [n, heads, t, head width]
    scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(width // heads))
    if causal:
        scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    joined = mixed.transpose(0, 2, 1, 3).reshape(n, -1, width).astype(np.float32)
    return linear(joined, tensors, f"{name}.out_proj", watch)


def layers(
    x: Array, tensors: Mapping[str, Array], prefix: str, tower: TowerConfig, causal: bool, watch: Watch | None
) -> Array:
    """All pre-norm layers on x [n, t, width]: [n, t, width]."""
    for n in range(tower.layers):
        layer, epsilon = f"{prefix}.encoder.layers.{n}", tower.layer_norm_eps
        normed = layer_norm(x, tensors, f"{layer}.layer_norm1", epsilon)
        x = x + attention(normed, tensors, f"{layer}.self_attn", tower.heads, causal, watch)
        hidden = linear(layer_norm(x, tensors, f"{layer}.layer_norm2", epsilon), tensors, f"{layer}.mlp.fc1", watch)
        x = x + linear(ACTIVATIONS[tower.activation](hidden), tensors, f"{layer}.mlp.fc2", watch)
    return x
