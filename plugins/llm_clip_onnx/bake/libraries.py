"""What the libraries that a checkpoint is made for compute of a bake's fixed inputs: embeddings and probabilities.

Each library is imported where it is used, because none of them is needed to bake.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import CheckpointError, shortened
from ..model_dir import Manifest, Source
from ..siglip_tokenizer import canonical
from .samples import TEXTS


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is now, a folder or a hub id, and its revision there."""

    source: str
    revision: str | None


def found_source(source: Source, given: str | None, option: str) -> Checkpoint:
    """Where the checkpoint of a bake is now. Raises CheckpointError if it was a folder that is not here."""
    where = given or source.id
    if not given and source.revision is None and not Path(where).is_dir():
        raise CheckpointError(f"the folder {where} that was baked is not here; {option} says where it is")
    return Checkpoint(where, None if Path(where).is_dir() else source.revision)


def load(checkpoint: Checkpoint, library: str, option: str):
    """The checkpoint as sentence-transformers loads it.

    Raises CheckpointError if it cannot be loaded, ImportError if the library is not installed.
    """
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(checkpoint.source, revision=checkpoint.revision, device="cpu")
    except Exception as error:  # transformers raises many kinds, with many lines
        raise CheckpointError(
            f"{library} cannot load {checkpoint.source}: {str(error).splitlines()[0]}; {option} says where it is now"
        ) from error


def llm_clip_embeddings(text: Checkpoint, of_images: Checkpoint, images: list[bytes]) -> dict[str, NDArray[np.float32]]:
    """llm-clip's own embeddings of the fixed inputs, [n, embed_dim] float32 each, with its model loaded from `text`.

    Raises CheckpointError for a text tower whose images are another checkpoint's, because llm-clip has one for both.
    """
    import llm_clip

    if text != of_images:
        raise CheckpointError(
            f"{text.source} embeds no images, so llm-clip cannot load it; expected --reference sentence-transformers"
        )
    model = llm_clip.ClipEmbeddingModel()
    model._model = load(text, "llm-clip", "--checkpoint")
    return {
        kind: np.array(model.embed_batch(items), np.float32)
        for kind, items in (("text", list(TEXTS)), ("image", images))
    }


def sentence_transformers_embeddings(
    text: Checkpoint, of_images: Checkpoint, images: list[bytes]
) -> dict[str, NDArray[np.float32]]:
    """sentence-transformers' embeddings of the fixed inputs, [n, embed_dim] float32 each, one at a time."""
    towers = {"text": load(text, "sentence-transformers", "--checkpoint")}
    towers["image"] = towers["text"] if text == of_images else load(of_images, "sentence-transformers", "--images")
    items: dict[str, list] = {"text": list(TEXTS), "image": [Image.open(io.BytesIO(image)) for image in images]}
    return {
        kind: np.stack([np.asarray(tower.encode(item), np.float32) for item in items[kind]])
        for kind, tower in towers.items()
    }


def open_clip_embeddings(
    text: Checkpoint, of_images: Checkpoint, images: list[bytes]
) -> dict[str, NDArray[np.float32]]:
    """open_clip's embeddings of the fixed inputs, [n, embed_dim] float32 each, one at a time.

    Raises CheckpointError for a checkpoint that it cannot load.
    """
    import open_clip
    import torch

    from .hub import fetch

    root = Path(text.source) if Path(text.source).is_dir() else fetch(text.source, text.revision)[0]
    try:
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{root}")
    except Exception as error:  # it raises many kinds
        raise CheckpointError(
            f"open_clip cannot load {text.source}: {shortened(error)}; --checkpoint says where it is now"
        ) from error
    model.eval()
    pictures = [transform(Image.open(io.BytesIO(image)))[None] for image in images]
    with torch.no_grad():
        embeddings = {
            "text": [model.encode_text(tokenizer([one]))[0].numpy() for one in TEXTS],
            "image": [model.encode_image(picture)[0].numpy() for picture in pictures],
        }
    return {kind: np.stack(found) for kind, found in embeddings.items()}


def transformers_embeddings(text: Checkpoint, of_images: Checkpoint, images: list[bytes]) -> dict[str, NDArray]:
    """transformers' embeddings of the fixed inputs by a SigLIP, [n, embed_dim] float32 each, and its probabilities.

    The probabilities are [images, texts] float64. The texts are canonical before its tokenizer reads them, because its
    tokenizers leave case or punctuation in them. Raises CheckpointError for a checkpoint that is no SigLIP, or that it
    cannot load.
    """
    import torch
    from transformers import AutoModel, SiglipImageProcessorPil, SiglipModel

    if text != of_images:
        raise CheckpointError(f"the images of {text.source} are another checkpoint's; expected --reference own")
    try:
        model = AutoModel.from_pretrained(text.source, revision=text.revision, dtype=torch.float32).eval()
        processor = SiglipImageProcessorPil.from_pretrained(text.source, revision=text.revision)
        tokenizer = siglip_tokenizer(text)
    except Exception as error:  # it raises many kinds
        raise CheckpointError(
            f"transformers cannot load {text.source}: {shortened(error)}; --checkpoint says where it is now"
        ) from error
    if not isinstance(model, SiglipModel):
        raise CheckpointError(f"{text.source} is no SigLIP but a {type(model).__name__}; expected --reference own")
    length = model.config.text_config.max_position_embeddings
    texts = [canonical(one) for one in TEXTS]
    ids = tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")["input_ids"]
    pixels = processor([Image.open(io.BytesIO(image)) for image in images], return_tensors="pt")
    with torch.no_grad():
        found = model(input_ids=ids, **pixels)
    return {
        "text": found.text_model_output.pooler_output.numpy(),
        "image": found.vision_model_output.pooler_output.numpy(),
        "probabilities": torch.sigmoid(found.logits_per_image.double()).numpy(),  # in float32 0 below -104
    }


def siglip_tokenizer(checkpoint: Checkpoint):
    """transformers' tokenizer of a SigLIP, by its tokenizer.json.

    transformers' own class for T5's kind reads another file, by sentencepiece, which a bake does not read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    settings = get_tokenizer_config(checkpoint.source, revision=checkpoint.revision)
    reader = PreTrainedTokenizerFast if settings.get("tokenizer_class") == "SiglipTokenizer" else AutoTokenizer
    return reader.from_pretrained(checkpoint.source, revision=checkpoint.revision)


REFERENCES = {
    "llm-clip": llm_clip_embeddings,
    "sentence-transformers": sentence_transformers_embeddings,
    "open_clip": open_clip_embeddings,
    "transformers": transformers_embeddings,
}


def library_of(manifest: Manifest) -> str:
    """The library of REFERENCES that a model is compared with."""
    if manifest.images:
        return "sentence-transformers"
    if manifest.logit_bias is not None:
        return "transformers"
    return "open_clip" if manifest.preprocess.library == "open_clip" else "llm-clip"
