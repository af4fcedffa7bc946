"""Quantises a matrix the plain way, and plans both towers of a bake: tests and the fidelity bench compare with them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.bake.quantize import quantize_columns
from llm_clip_onnx.bake.tower_plan import plan_image, plan_text
from llm_clip_onnx.vectors import unit

TOWERS = {"text": plan_text, "image": plan_image}


def per_tensor(weight: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
    """Quantise with one scale and zero point for the whole matrix, as plain dynamic quantisation does."""
    levels, scale, zero_point = quantize_columns(weight.reshape(-1, 1))
    return levels.reshape(weight.shape), scale.repeat(weight.shape[1]), zero_point.repeat(weight.shape[1])


def mean_cosine(embeddings: NDArray[np.float32]) -> float:
    """The mean cosine of two different rows of [n, d]."""
    cosines = unit(embeddings) @ unit(embeddings).T
    return float((cosines.sum() - len(cosines)) / (cosines.size - len(cosines)))
