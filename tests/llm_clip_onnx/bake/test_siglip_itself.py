"""A baked SigLIP beside transformers' SiglipModel on the same checkpoint: the same ids, pixels, embeddings and logits."""

from __future__ import annotations

import io
from importlib.metadata import distribution
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest
from PIL import Image

import nasty
from conftest import quiet
from llm_clip_onnx import siglip_tokenizer
from llm_clip_onnx.bake import bake
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.text_readers import open_reader
from own_mode_images import odd_files
from siglip_checkpoint import write_siglip

TOO_LONG = ("60000x1.png", "1x60000.png", "20000x1.png", "1x20000.png")  # gigabytes there


class Both:
    """Our engine of a checkpoint, and what transformers loads from its folder."""

    def __init__(self, folder: Path, version: int):
        from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
        from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

        self.version, checkpoint = version, str(write_siglip(folder / "checkpoint", version))
        bake(checkpoint, folder / "model", "fp32", say=quiet)
        self.engine = Engine(folder / "model")
        self.model = AutoModel.from_pretrained(checkpoint).eval()
        # transformers reads T5's kind only by sentencepiece, from another file; this is the same tokenizer.json.
        reader = AutoTokenizer if version == 2 else PreTrainedTokenizerFast
        self.tokenizer = reader.from_pretrained(checkpoint)
        # The real checkpoints say null here. The library then refuses images that are not RGB.
        self.processor = SiglipImageProcessorPil.from_pretrained(checkpoint, do_convert_rgb=True)

    @property
    def read(self):
        manifest = self.engine.manifest
        return open_reader(self.engine.path, manifest.context_length, manifest.tokens)

    def their_ids(self, text: str) -> list[int]:
        """transformers' ids of a text that is canonical already: its tokenizers do not all make it so."""
        canonical = siglip_tokenizer.canonical(text)
        return self.tokenizer(canonical, padding="max_length", max_length=64, truncation=True)["input_ids"]


@pytest.fixture(scope="module", params=[1, 2])
def both(request, tmp_path_factory) -> Both:
    return Both(tmp_path_factory.mktemp(f"siglip-itself-{request.param}"), request.param)


def test_it_is_the_class_for_a_fixed_size(both):
    from transformers import SiglipModel

    assert type(both.model) is SiglipModel


def test_ids_are_those_of_transformers(both):
    for text in [*TEXTS, *nasty.TEXTS, "x\u2581y", "<eos> </s> <pad>", "a\ufffdb", "\U0001f9ff" * 70]:
        assert both.read(text).tolist() == both.their_ids(text), repr(text)


def test_texts_are_made_canonical_as_open_clip_does(both):
    """Its function is a copy of big_vision's, and its SigLIPs of both versions use it."""
    file = distribution("open-clip-torch").locate_file("open_clip/tokenizer.py")
    canonicalize_text = run_path(str(file))["canonicalize_text"]
    for text in [*TEXTS, *nasty.TEXTS, "snake_case", "a\x1cb", "İ_ß!", "it's “quoted” – or not?"]:
        assert siglip_tokenizer.canonical(text) == canonicalize_text(text), repr(text)


def test_pixels_are_those_of_transformers(both):
    steps = both.engine.manifest.preprocess
    files = nasty.images() | {name: blob for name, blob in odd_files().items() if name not in TOO_LONG}
    same = []
    for name, blob in files.items():
        expected = both.processor(Image.open(io.BytesIO(blob)), return_tensors="np")["pixel_values"][0]
        off = np.abs(to_pixels(blob, steps) - expected).max() * 255 / 2  # levels
        assert off <= 1.001, name
        same.append(off < 1e-3)
    assert np.mean(same) >= 0.9  # the others are off by a level where an image is resized in strips


def test_embeddings_are_those_of_transformers(both):
    import torch

    ids = torch.tensor([both.their_ids(text) for text in [*TEXTS, *nasty.TEXTS]])
    pixels = both.processor([image.convert("RGB") for image in made_images().values()], return_tensors="pt")
    with torch.no_grad():
        texts = both.model.get_text_features(input_ids=ids).pooler_output.numpy()
        images = both.model.get_image_features(**pixels).pooler_output.numpy()
    np.testing.assert_allclose(both.engine.embed_text([*TEXTS, *nasty.TEXTS]), texts, atol=1e-5)
    np.testing.assert_allclose(both.engine.embed_images(list(made_images().values())), images, atol=1e-5)


def test_probabilities_are_those_of_transformers(both):
    import torch

    labels = ["cat", "dog", "red heart"]
    image = made_images()["rings"].convert("RGB")
    ids = torch.tensor([both.their_ids(f"a photo of a {label}.") for label in labels])
    with torch.no_grad():
        theirs = both.model(input_ids=ids, **both.processor(image, return_tensors="pt")).logits_per_image[0]
    matches = both.engine.classify(both.engine.classifier(labels), both.engine.embed_images([image])[0])
    found = {match.label: match.probability for match in matches}
    assert [found[label] for label in labels] == pytest.approx(torch.sigmoid(theirs).tolist(), rel=1e-3)
