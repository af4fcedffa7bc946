"""Embeds with open_clip itself, in an environment of its own (.venv-open-clip), where nothing of ours is installed.

    python tests/support/open_clip_itself.py CHECKPOINT INPUTS.npz OUTPUTS.npz

INPUTS: `texts` (JSON) and `image_0`, `image_1`... [height, width, 3] uint8. OUTPUTS: `ids`, `texts`, `pixels`, `images`.
"""

import json
import sys

import numpy as np
import open_clip
import torch
from PIL import Image


def main(checkpoint: str, given: str, to: str) -> None:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{checkpoint}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{checkpoint}")
    inputs = np.load(given)
    texts = json.loads(str(inputs["texts"]))
    images = [Image.fromarray(inputs[f"image_{n}"]) for n in range(len(inputs.files) - 1)]
    with torch.no_grad():
        ids = tokenizer(texts)
        pixels = torch.stack([transform(image) for image in images])
        model.eval()
        outputs = {"ids": ids, "texts": model.encode_text(ids), "pixels": pixels, "images": model.encode_image(pixels)}
    np.savez(to, **{name: tensor.numpy() for name, tensor in outputs.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
