"""A SigLIP of either version goes through the real bake: its towers agree with the oracle, its texts with its makers'."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import nasty
import reference
from conftest import quiet
from llm_clip_onnx import model_dir, siglip_tokenizer
from llm_clip_onnx.bake import bake, fidelity, open_checkpoint
from llm_clip_onnx.bake.samples import made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import InputError, ModelDirError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.text_readers import open_reader
from llm_clip_onnx.vectors import cosine
from siglip_checkpoint import LOGIT_BIAS, LOGIT_SCALE, write_siglip

WORDS = ["", "a photo of a cat", "Two RED hearts, and a star!", "猫の写真", "a very long caption " * 40]
PICTURES = ["rings", "fine noise", "house", "tall"]


class Baked:
    """A checkpoint, its float32 model directory and its engine."""

    def __init__(self, folder: Path, version: int):
        self.version, self.checkpoint, self.path = version, folder / "checkpoint", folder / "model"
        write_siglip(self.checkpoint, version)
        bake(str(self.checkpoint), self.path, "fp32", say=quiet)
        self.engine = Engine(self.path)

    @property
    def read(self):
        manifest = self.engine.manifest
        return open_reader(self.path, manifest.context_length, manifest.tokens)


@pytest.fixture(scope="module", params=[1, 2])
def baked(request, tmp_path_factory) -> Baked:
    return Baked(tmp_path_factory.mktemp(f"siglip-{request.param}"), request.param)


def oracle(baked: Baked) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings by tests/reference.py of WORDS and PICTURES, from our ids and pixels."""
    from safetensors.numpy import load_file

    sd = reference.siglip_names(load_file(baked.checkpoint / "model.safetensors"))
    heads = json.loads((baked.checkpoint / "config.json").read_text())["text_config"]["num_attention_heads"]
    texts = [reference.siglip_text(sd, baked.read(text), heads) for text in WORDS]
    steps = baked.engine.manifest.preprocess
    pixels = [to_pixels(made_images()[name], steps).astype(np.float64) for name in PICTURES]
    return np.array(texts), np.array([reference.siglip_image(sd, each, heads) for each in pixels])


def test_float32_towers_are_the_oracles(baked):
    texts, images = oracle(baked)
    found = baked.engine.embed_text(WORDS), baked.engine.embed_images([made_images()[name] for name in PICTURES])
    np.testing.assert_allclose(found[0], texts, atol=1e-5)  # float32 against float64
    np.testing.assert_allclose(found[1], images, atol=1e-5)


def test_8_bit_towers_pass_the_gates_and_stay_near_the_oracle(baked, tmp_path):
    bake(str(baked.checkpoint), tmp_path / "model", "int8", say=quiet)
    engine, (texts, images) = Engine(tmp_path / "model"), oracle(baked)
    for name, tower in engine.manifest.towers.items():
        assert tower.precision == "int8"
        assert tower.fidelity["int8 with fp32"].worst_centred >= fidelity.INT8_MINIMUM[name]
    assert min(map(cosine, engine.embed_text(WORDS), texts)) >= 0.995
    assert min(map(cosine, engine.embed_images([made_images()[n] for n in PICTURES]), images)) >= 0.99


def test_the_manifest_says_how_texts_and_images_are_read_and_scored(baked):
    facts = json.loads((baked.path / "manifest.json").read_text())
    end, pad = ("</s>", "</s>") if baked.version == 1 else ("<eos>", "<pad>")
    library = "big_vision" if baked.version == 1 else "gemma"
    assert facts["tokens"] == {
        **{"start": "", "end": end, "unknown": "<unk>", "added": [], "library": library, "pad": pad}
    }
    side, resample = (64, 3) if baked.version == 1 else (96, 2)
    steps = {"shortest_side": side, "crop": side, "resample": resample, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert facts["preprocess"] == steps | {"scale": 1 / 255, "resize": "squash"}
    assert (facts["context_length"], facts["embed_dim"]) == (64, 64)
    assert facts["logit_bias"] == pytest.approx(LOGIT_BIAS)
    assert facts["log_logit_scale"] == pytest.approx(LOGIT_SCALE)
    known = {"vocab.json", "merges.txt", "tokenizer.json", "pairs.npy", "characters.json"}
    read = {"tokenizer.json"} if baked.version == 1 else {"pairs.npy", "characters.json"}
    assert known & {*facts["files"]} == read
    assert model_dir.Manifest.from_dict(facts) == baked.engine.manifest


def test_every_text_has_64_ids_the_end_behind_its_words_and_then_padding(baked):
    """Without the padding MNIST fell from 80 to 10 of 100 (mteb PR 1424)."""
    end, pad = (1, 1) if baked.version == 1 else (1, 0)
    for text in [*nasty.TEXTS, *WORDS]:
        ids = baked.read(text).tolist()
        assert len(ids) == 64
        words = ids.index(end)
        assert ids[words:] == [end] + [pad] * (63 - words), repr(text)
    assert baked.read("").tolist() == [end] + [pad] * 63


def test_a_long_text_is_cut_and_keeps_its_end(baked):
    ids = baked.read("red heart " * 200)
    assert ids[-1] == 1
    assert 1 not in ids[:-1]
    assert baked.read("red heart " * 500_000).tolist() == ids.tolist()


def test_the_padding_changes_embeddings_so_a_wrong_pad_id_would_too(baked):
    """A wrong pad id gives cosines of 0.81 to 0.90: the config's default, 1, is SigLIP 2's end."""
    from llm_clip_onnx.towers import run_text

    read, tower = baked.engine._text.get()
    ids = read("a photo of a cat")[None]
    words = ids[0].tolist().index(1)
    other = ids.copy()
    other[0, words + 1 :] = 1 if baked.version == 2 else 0
    assert cosine(run_text(tower, ids)[0], run_text(tower, other)[0]) < 0.99


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("A photo of a Cat.", "a photo of a cat"),
        ("Hello, World!?", "hello world"),
        ("snake_case and-dash", "snake case anddash"),  # big_vision makes a space of an underscore alone
        ("  spaces \t\n tabs\u00a0 ", "spaces tabs"),
        ("can't «quoted» “curly” —", "cant «quoted» “curly” —"),  # only ASCII's punctuation goes
        ("İSTANBUL ÉCOLE ΣΑΣ", "i̇stanbul école σας"),
        ("▁a▁", "a"),
        ("!!!", ""),
    ],
)
def test_texts_are_made_canonical_as_big_vision_does(text, canonical):
    assert siglip_tokenizer.canonical(text) == canonical


def test_case_and_punctuation_change_no_id(baked):
    """SigLIP 2's own tokenizer keeps both, which costs 12 points on ImageNet (RADIO PR 142, big_vision issue 187)."""
    assert baked.read("A Photo of a CAT.").tolist() == baked.read("a photo of a cat").tolist()
    own = Tokenizer.from_file(str(baked.checkpoint / "tokenizer.json"))
    if baked.version == 2:
        assert own.encode("A Photo.").ids != own.encode("a photo").ids  # so it is not the tokenizer that does it


def test_a_token_of_the_tokenizer_is_no_token_in_a_text(baked):
    assert baked.read("a <eos> b </s>").tolist() == baked.read("a eos b s").tolist()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a \ud800 b", "a lone surrogate is not text; expected Unicode that UTF-8 can hold"),
        ("x" * 60_000, "text of 60,000 characters almost without spaces; at most 50,000 are read"),
        ("data:image/png;base64,AAAA", "the text is a data URI or an image in base64; send it as an image"),
    ],
)
def test_what_is_no_text_is_refused(text, sentence, baked):
    with pytest.raises(InputError) as raised:
        baked.engine.embed_text([text])
    assert str(raised.value).startswith(f"texts[0]: {sentence}")


def test_labels_are_scored_by_the_sigmoid(baked):
    classifier = baked.engine.classifier(["cat", "dog", "red heart"])
    embedding = baked.engine.embed_images([made_images()["rings"]])[0]
    found = {match.label: match.probability for match in baked.engine.classify(classifier, embedding)}
    sure = {label: cosine(embedding, vector) for label, vector in zip(classifier.labels, classifier.vectors)}
    for label, probability in found.items():
        logit = np.exp(LOGIT_SCALE) * sure[label] + LOGIT_BIAS
        assert probability == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-3)


def test_a_label_set_is_baked_of_it(baked, tmp_path):
    from llm_clip_onnx.bake.label_set import bake_labels

    shutil.copytree(baked.path, tmp_path / "model")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    bake_labels(tmp_path / "model", "pets", tmp_path / "names.txt", say=quiet)
    vectors = Engine(tmp_path / "model").label_set("pets").vectors
    np.testing.assert_allclose(vectors, baked.engine.classifier(["cat", "dog"]).vectors, atol=1e-6)


def test_verify_finds_it_as_it_was_baked(baked):
    from llm_clip_onnx.bake.verify import verify

    checks = list(verify(baked.path))
    assert [check.name for check in checks if not check.ok] == []
    assert len(checks) == 3  # files, texts, images


def test_it_is_baked_over_itself_and_over_a_clip(baked, tiny_dir, tmp_path):
    for before in (baked.path, tiny_dir):
        target = tmp_path / before.name
        shutil.copytree(before, target)
        bake(str(baked.checkpoint), target, "fp32", force=True, say=quiet)
        assert Engine(target).manifest.files == baked.engine.manifest.files


def test_a_tower_of_float16_weights_is_that_of_their_float32(baked, tmp_path):
    from safetensors.numpy import load_file, save_file

    shutil.copytree(baked.checkpoint, tmp_path / "half")
    halves = {name: t.astype(np.float16) for name, t in load_file(baked.checkpoint / "model.safetensors").items()}
    save_file(halves, tmp_path / "half/model.safetensors")
    checkpoint, whole = open_checkpoint(str(tmp_path / "half")), open_checkpoint(str(baked.checkpoint))
    name = "vision_model.head.attention.v_proj.weight"
    assert checkpoint.image.tensors[name].dtype == np.float32
    np.testing.assert_allclose(checkpoint.image.tensors[name], whole.image.tensors[name], rtol=1e-3, atol=1e-6)
    assert np.shape(checkpoint.image.tensors[name]) == (64, 64)


def test_a_damaged_tokenizer_is_named(baked, tmp_path):
    names = model_dir.tokenizer_files(baked.engine.manifest.tokens)
    assert len(names) == baked.version
    for name in names:
        shutil.copytree(baked.path, tmp_path / name)
        content = bytearray((baked.path / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(ModelDirError, match=rf"{name} has sha256 .*the file is damaged"):
            Engine(tmp_path / name).embed_text(["a"])


def test_a_tokenizer_of_byte_pairs_that_is_not_gemmas_keeps_its_file_and_its_ids(tmp_path):
    folder = write_siglip(tmp_path / "checkpoint", 2)
    serialized = json.loads((folder / "tokenizer.json").read_text())
    serialized["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, serialized["normalizer"]]}
    (folder / "tokenizer.json").write_text(json.dumps(serialized))
    checkpoint = open_checkpoint(str(folder))
    assert ([*checkpoint.tokenizer], checkpoint.tokens.library) == (["tokenizer.json"], "big_vision")
    (tmp_path / "tokenizer.json").write_text(checkpoint.tokenizer["tokenizer.json"])
    read = open_reader(tmp_path, 64, checkpoint.tokens)
    library = Tokenizer.from_str(json.dumps(serialized))
    assert read("a red heart").tolist()[:9] == [*library.encode("a red heart").ids, *[0] * 9][:9]
