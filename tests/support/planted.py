"""Plants outlier channels in random weights of ViT-B/32's shape, so that they are as hard to quantise as OpenAI's.

Real CLIP carries a large constant in a few channels of its residual stream: channels 133 and 312 of a text embedding
hold about half of its norm each, unrelated texts have a mean cosine of 0.75 to 0.85 and images of 0.4 to 0.7. The
planted checkpoint has the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS = {133: 1.0, 312: -1.0, 40: 0.6, 7: -0.4, 500: 0.5}  # channel: its share of the constant
CONSTANT = {"text_model": 11, "vision_model": 29}
UNITS, ALWAYS = [5, 17, 99], np.float32(10)  # hidden units of each layer, and about what they give for any input


def plant_outliers(tensors: dict[str, NDArray[np.float32]]) -> None:
    """Change the tensors in place. Token embeddings, layers and attention get larger, so that inputs still differ."""
    for tower, constant in CONSTANT.items():
        for channel, size in CHANNELS.items():
            tensors[f"{tower}.embeddings.position_embedding.weight"][:, channel] += constant * size
    tensors["text_model.embeddings.token_embedding.weight"] *= 30
    for name, tensor in tensors.items():
        if name.endswith("out_proj.weight"):
            tensor *= 2 if name.startswith("text") else 5
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            tensor *= 3 if name.startswith("text") else 2
        if name.endswith("fc1.bias"):
            tensor[UNITS] += ALWAYS
            fc2 = name.replace("fc1.bias", "fc2")
            tensors[f"{fc2}.bias"] -= ALWAYS * tensors[f"{fc2}.weight"][:, UNITS].sum(1)
