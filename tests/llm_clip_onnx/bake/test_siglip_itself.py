"""A baked SigLIP beside transformers' SiglipModel on the same checkpoint: the same ids, pixels, embeddings and logits."""

from __future__ import annotations

import io
from collections.abc import Callable
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
from llm_clip_onnx.bake.libraries import REFERENCES
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.bake.verify import verify
from llm_clip_onnx.commands import clip
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import CheckpointError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.text_readers import open_reader
from own_mode_images import odd_files
from random_checkpoint import TINY, write_checkpoint
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


def verdicts(model: Path, *reference: str) -> list[tuple[str, bool]]:
    """The checks of a model directory that its library makes, and if they are passed."""
    return [(check.name, check.ok) for check in verify(model, *reference) if "transformers" in check.name]


COMPARED = (
    "text tower (fp32) with transformers",
    "image tower (fp32) with transformers",
    "probabilities with transformers",
)


def test_verify_compares_with_transformers_itself(both):
    passed = [(name, True) for name in COMPARED]
    assert verdicts(both.engine.path, "own") == verdicts(both.engine.path, "transformers") == passed


def test_8_bit_towers_are_compared_with_transformers_too(both, tmp_path):
    bake(both.engine.manifest.source.id, tmp_path / "model", "int8", say=quiet)
    found = verdicts(tmp_path / "model", "own")
    assert found == [(name.replace("fp32", "int8"), True) for name in COMPARED]


def shifted(name: str, by: float) -> Callable[[dict], None]:
    """A change of a checkpoint's tensors: one number of one of them."""

    def change(tensors: dict) -> None:
        tensors[name].flat[0] += by

    return change


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (shifted("text_model.head.bias", 3), "text tower"),
        (shifted("text_model.encoder.layers.0.mlp.fc1.bias", 30), "text tower"),
        (shifted("vision_model.head.probe", 30), "image tower"),
        (shifted("vision_model.post_layernorm.bias", 3), "image tower"),
        (shifted("logit_scale", 0.01), "probabilities"),
        (shifted("logit_bias", 0.01), "probabilities"),
    ],
)
def test_one_number_of_the_weights_that_is_another_fails_what_it_is_for(both, change, failed, tmp_path):
    other = write_siglip(tmp_path / "other", both.version, change=change)
    found = verdicts(both.engine.path, "own", str(other))
    assert [name for name, ok in found if not ok] == [name for name in COMPARED if name.startswith(failed)]


def test_a_folder_that_is_no_siglip_is_said_to_be_none(both, tmp_path):
    write_checkpoint(tmp_path / "clip", **TINY)
    with pytest.raises(CheckpointError, match=r"/clip is no SigLIP but a CLIPModel; expected --reference own$"):
        verify(both.engine.path, "own", str(tmp_path / "clip"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"^transformers cannot load .*/empty: .*--checkpoint says where it is"):
        verify(both.engine.path, "own", str(tmp_path / "empty"))


def test_the_command_offers_every_library(both):
    (option,) = (one for one in clip.commands["verify"].params if one.name == "reference")
    assert {*option.type.choices} == {"own", *REFERENCES}
