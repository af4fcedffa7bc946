"""The peers of families.py: our engine, and the library that each family of models is for.

    python -m bench.embedding.family_embedders build|serve NAME FOLDER     as embedders.py

FOLDER is named as the family, and holds `checkpoint`, and `images` where that is a text tower alone. Nothing here needs
more than the environment of a peer has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.embedding.embedders import OURS, Embed, Peer, main, open_clip_model, ours, picture


def open_clip(place: Path) -> tuple[Embed, Embed]:
    return open_clip_model(f"local-dir:{place / 'checkpoint'}")


def sentence_transformers(place: Path) -> tuple[Embed, None]:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(place / "checkpoint"), device="cpu").encode, None


def transformers(place: Path) -> tuple[Embed, Embed]:
    """transformers' SiglipModel, with texts filled up to 64 ids, and images read by Pillow."""
    import torch
    from transformers import AutoModel, PreTrainedTokenizerFast
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    checkpoint = place / "checkpoint"
    model = AutoModel.from_pretrained(checkpoint).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    processor = SiglipImageProcessorPil.from_pretrained(checkpoint, do_convert_rgb=True)

    def text(text: str) -> NDArray[np.float32]:
        ids = tokenizer(text, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            return model.get_text_features(input_ids=ids).pooler_output[0].numpy()

    def image(image: bytes) -> NDArray[np.float32]:
        pixels = processor(picture(image), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            return model.get_image_features(pixel_values=pixels).pooler_output[0].numpy()

    return text, image


def baked(folder: str, precision: str) -> Callable[[Path], None]:
    """A bake to `folder`; a text tower alone takes the images of place/images."""

    def build(place: Path) -> None:
        from llm_clip_onnx.bake import bake

        images = str(place / "images") if (place / "images").exists() else None
        bake(str(place / "checkpoint"), place / folder, precision, images=images)

    return build


OWN = (
    Peer("ours", ours(OURS), baked(OURS, "auto"), environment=""),
    Peer("ours, float32", ours("ours-float32"), baked("ours-float32", "fp32"), environment=""),
)
LIBRARIES = {
    "open_clip": Peer("open_clip", open_clip, environment=".venv-open-clip"),
    "multilingual": Peer("sentence-transformers", sentence_transformers, has_images=False),
    "siglip": Peer("transformers", transformers),
    "siglip2": Peer("transformers", transformers),
}


def peers_of(family: str) -> list[Peer]:
    """Ours, and last the library."""
    library = LIBRARIES[family]
    every = [*(replace(peer, has_images=library.has_images) for peer in OWN), library]
    return [replace(peer, module="bench.embedding.family_embedders") for peer in every]


if __name__ == "__main__":
    main({peer.name: peer for peer in peers_of(Path(sys.argv[3]).name)})
