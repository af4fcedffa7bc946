"""A DistilBERT text tower is baked with another checkpoint's images: as sentence-transformers, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

import nasty
import reference
from conftest import quiet
from llm_clip_onnx import commands, model_dir
from llm_clip_onnx.bake import bake, fidelity, graph, open_checkpoint, smooth, verify, write_tokenizer
from llm_clip_onnx.bake.eight_bit import calibration_inputs
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.bake.tower_plan import TowerPlan, plan_text
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import CheckpointError, InputError
from llm_clip_onnx.text_readers import open_reader
from open_clip_checkpoint import write_open_clip
from plain_quantisation import per_tensor
from random_checkpoint import SMALL, write_checkpoint
from text_tower_checkpoint import TINY, write_text_tower

EMBED_DIM = SMALL["embed_dim"]
ODD_TEXTS = [
    "[CLS] a [SEP] b", "[MASK]ed", "[PAD]", "[UNK]", "[cls]", "un##able", "coeur cœur CŒUR", "лиловое сердце", "紫のハート",
    "E\u0301cole \u00c9cole", "a\u00adb", "\u200e\u202aright\u202c", "a\x1cb\x1fc", "\u3000wide\u3000", "ａｂｃ", "ß ẞ ſ",
]  # fmt: skip
KNOWN = [text for text in [*TEXTS, *nasty.TEXTS, *ODD_TEXTS] if text.encode(errors="replace").decode() == text]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("images") / "checkpoint", **SMALL)


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A tiny text tower. Not to be changed."""
    return write_text_tower(tmp_path_factory.mktemp("text") / "checkpoint", TINY, EMBED_DIM)


@pytest.fixture(scope="module")
def path(text, images, tmp_path_factory) -> Path:
    """The model directory of both, float32."""
    to = tmp_path_factory.mktemp("model") / "model"
    bake(str(text), to, "fp32", say=quiet, images=str(images))
    return to


def oracle(folder: Path, path: Path, texts: list[str]) -> np.ndarray:
    """The embeddings by tests/reference.py, computed in float64, of our ids."""
    manifest = model_dir.read_manifest(path)
    assert manifest.tokens
    read = open_reader(path, manifest.context_length, manifest.tokens)
    sd, dense = load_file(folder / "model.safetensors"), load_file(folder / "2_Dense/model.safetensors")
    heads = json.loads((folder / "config.json").read_text())["n_heads"]
    return np.array([reference.embed_distilbert(sd, dense["linear.weight"], read(t), heads) for t in texts])


def test_a_float32_tower_matches_the_oracle(text, path):
    np.testing.assert_allclose(Engine(path).embed_text(KNOWN), oracle(text, path, KNOWN), atol=1e-5)


def test_an_8_bit_tower_matches_the_oracle_as_closely_as_the_gate_says(text, images, tmp_path):
    manifest = bake(str(text), tmp_path / "model", "int8", say=quiet, images=str(images))
    tower = manifest.towers["text"]
    assert (tower.precision, len(tower.matrices), tower.kept_float32) == ("int8", 9, [])
    found, expected = Engine(tmp_path / "model").embed_text(TEXTS), oracle(text, tmp_path / "model", list(TEXTS))
    result = fidelity.agreement(found, expected.astype(np.float32), TEXTS)
    assert result.worst_centred >= fidelity.INT8_MINIMUM["text"]


UNCASED = {"do_lower_case": True}


@pytest.mark.parametrize(
    ("settings", "files"),
    [
        ({}, "vocab.txt"),
        pytest.param(UNCASED, "vocab.txt", marks=pytest.mark.slow),
        pytest.param(UNCASED, "tokenizer.json", marks=pytest.mark.slow),
        pytest.param(UNCASED, "prefixed", marks=pytest.mark.slow),
        pytest.param(
            UNCASED | {"strip_accents": False, "tokenize_chinese_chars": False}, "vocab.txt", marks=pytest.mark.slow
        ),
        pytest.param({"strip_accents": True, "model_max_length": 40}, "vocab.txt", marks=pytest.mark.slow),
    ],
)
def test_ids_and_embeddings_are_sentence_transformers(settings, files, images, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = write_text_tower(tmp_path / "checkpoint", TINY, EMBED_DIM, **settings)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 60} if not settings else {}))
    if files == "tokenizer.json":
        bake(str(folder), tmp_path / "model", "fp32", say=quiet, images=str(images))
        shutil.copy(tmp_path / "model/tokenizer.json", folder)
        (folder / "vocab.txt").unlink()
    elif files == "prefixed":
        tensors = load_file(folder / "model.safetensors")
        save_file({f"distilbert.{k}": v for k, v in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    bake(str(folder), tmp_path / "model", "fp32", force=True, say=quiet, images=str(images))
    engine = Engine(tmp_path / "model")
    tokens, length = engine.manifest.tokens, engine.manifest.context_length
    assert tokens
    assert length == (60 if not settings else settings.get("model_max_length", 512))
    read = open_reader(engine.path, length, tokens)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    for one in KNOWN:
        assert read(one).tolist() == model.preprocess([one])["input_ids"][0].tolist(), repr(one)
    theirs = np.stack([model.encode(one) for one in KNOWN])
    np.testing.assert_allclose(engine.embed_text(KNOWN), theirs, atol=1e-5)


def test_the_files_of_the_image_tower_are_those_of_the_other_model(text, images, tmp_path):
    whole = bake(str(images), tmp_path / "whole", say=quiet)
    both = bake(str(text), tmp_path / "both", say=quiet, images=str(images))
    of_images = [name for name in whole.files if name.startswith(("image", "probe"))]
    assert len(of_images) == 7
    for name in of_images:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert (both.preprocess, both.logit_scale) == (whole.preprocess, whole.logit_scale)
    assert (both.source.id, both.images) == (str(text), whole.source)
    pictures = list(made_images().values())[:3]
    np.testing.assert_array_equal(
        Engine(tmp_path / "both").embed_images(pictures), Engine(tmp_path / "whole").embed_images(pictures)
    )


def test_the_manifest_says_whose_the_images_are_and_a_clips_own_says_nothing(text, images, path, tmp_path):
    manifest = model_dir.read_manifest(path)
    assert manifest.to_dict()["images"]["id"] == str(images)
    assert {"tokenizer.json"} == {name for name in manifest.files if name.startswith(("tok", "vocab", "merges"))}
    assert model_dir.rebake_hint(path, manifest).endswith(f"bake {text} --images {images} --to {path} --force")
    told = CliRunner().invoke(commands.clip, ["info", str(path)]).output
    assert ["images", str(images)] in [line.split() for line in told.splitlines()]
    assert "images" not in bake(str(images), tmp_path / "whole", "fp32", say=quiet).to_dict()


def test_a_damaged_tokenizer_is_named(path, tmp_path):
    shutil.copytree(path, tmp_path / "model")
    file = tmp_path / "model/tokenizer.json"
    file.write_text(file.read_text().replace("hello", "hallo"))
    with pytest.raises(model_dir.ModelDirError, match=r"tokenizer\.json has sha256"):
        Engine(tmp_path / "model").embed_text(["a"])
    file.unlink()
    with pytest.raises(model_dir.ModelDirError, match=r"tokenizer\.json cannot be read"):
        Engine(tmp_path / "model")


def test_a_long_text_is_cut_before_its_end_token(path):
    tokens = model_dir.read_manifest(path).tokens
    assert tokens
    read = open_reader(path, 128, tokens)
    ids = read("a " * 1_000_000)
    assert (len(ids), ids[0], ids[-1]) == (128, 2, 3)
    assert read("  \n hello world\t ").tolist() == read("hello world").tolist()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("data:image/png;base64,AAAA", "the text is a data URI or an image in base64"),
        ("a \ud800 b", "a lone surrogate"),
    ],
)
def test_what_is_no_text_is_refused(given, sentence, path):
    with pytest.raises(InputError, match=sentence):
        Engine(path).embed_text([given])


def test_pickles_of_torch_are_read(text, images, path, tmp_path):
    torch = pytest.importorskip("torch")
    folder = shutil.copytree(text, tmp_path / "checkpoint")
    for place in (folder, folder / "2_Dense"):
        tensors = load_file(place / "model.safetensors")
        (place / "model.safetensors").unlink()
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, place / "pytorch_model.bin")
    manifest = bake(str(folder), tmp_path / "model", "fp32", say=quiet, images=str(images))
    assert {*manifest.source.weights_sha256} == {"pytorch_model.bin", "2_Dense/pytorch_model.bin"}
    for name in ("text.onnx", "text.bin", "text.npy", "tokenizer.json"):
        assert (tmp_path / "model" / name).read_bytes() == (path / name).read_bytes(), name


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """A function that changes keys of a JSON file of a checkpoint; None removes one."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content |= changes
        (folder / name).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))

    return change


def modules(*kinds: str, package: str = "sentence_transformers.models") -> Callable[[Path], None]:
    paths = ("", "1_Pooling", "2_Dense", "3_More")
    listed = [{"path": path, "type": f"{package}.{kind}"} for path, kind in zip(paths, kinds)]
    return lambda folder: (folder / "modules.json").write_text(json.dumps(listed)) and None


def weights(name: str, **changes: np.ndarray | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / name) | {key.replace("__", "."): value for key, value in changes.items()}
        save_file({k: v for k, v in tensors.items() if v is not None}, folder / name)

    return change


def serialized(**changes: Any) -> Callable[[Path], None]:
    """A function that adds a tokenizer.json of another kind."""

    def change(folder: Path) -> None:
        lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
        made = Tokenizer.from_str(
            json.dumps({"model": {"type": "WordPiece", "vocab": {t: n for n, t in enumerate(lines)}, "unk_token": "[UNK]",
                                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
                        "added_tokens": []})
        )  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(json.loads(made.to_str()) | changes))

    return change


ZEROS = np.zeros((3, 3), np.float32)
QUANTIZED = np.zeros((64,), np.int8)
POOLING, DENSE = "1_Pooling/config.json", "2_Dense/config.json"
CANNOT = "which a bake cannot follow; it would give other results than the checkpoint's own libraries; expected"
REFUSED: list[tuple[Callable[[Path], Any], str]] = [
    (modules("Transformer", "Pooling"), "modules.json lists Transformer, Pooling; expected CLIPModel alone, or Transformer, Pooling and Dense"),
    (modules("Transformer", "Pooling", "Dense", "Normalize"), "modules.json lists Transformer, Pooling, Dense, Normalize; expected"),
    (modules("Transformer", "Pooling", "Dense", package="mine"), "modules.json lists Transformer, Pooling, Dense; expected"),
    (lambda f: shutil.rmtree(f / "2_Dense"), "modules.json says path \"2_Dense\"; expected the folder of a module"),
    (lambda f: (f / "1_Pooling/config.json").unlink(), "there is no config.json; expected a checkpoint in"),
    (lambda f: (f / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
    (lambda f: (f / "2_Dense/model.safetensors").unlink(), "2_Dense has no weights; expected model.safetensors or pytorch_model.bin"),
    (edit("config.json", model_type="xlm-roberta"), "config.json says 'xlm-roberta'; of text towers only 'distilbert' can be baked"),
    (edit("config.json", activation="relu"), 'config.json says activation "relu"; expected "quick_gelu" or "gelu"'),
    (edit("config.json", dim=65), "config.json says dim 65, no multiple of its n_heads 4"),
    (edit("config.json", hidden_size=128), f"config.json says hidden_size 128, {CANNOT} 64"),
    (edit("config.json", n_layers=3), "the weights have no tensor transformer.layer.2.attention.q_lin.weight, which config.json asks"),
    (edit("config.json", vocab_size=699), "tensor embeddings.word_embeddings.weight is [700, 64], config.json makes it [699, 64]"),
    (edit("config.json", max_position_embeddings=100), "tensor embeddings.position_embeddings.weight is [512, 64], config.json makes"),
    (edit("config.json", quantization_config={"bits": 4}), "config.json says quantization_config"),
    (edit(POOLING, pooling_mode_cls_token=True), f"{POOLING} says pooling_mode_cls_token true, {CANNOT} null or false"),
    (edit(POOLING, pooling_mode="max"), f'{POOLING} says pooling_mode "max", {CANNOT} null or "mean"'),
    (edit(POOLING, pooling_mode_mean_tokens=False), f"{POOLING} says pooling_mode_mean_tokens false, {CANNOT} null or true"),
    (edit(POOLING, word_embedding_dimension=32), f"{POOLING} says word_embedding_dimension 32, {CANNOT} 64"),
    (edit(DENSE, in_features=32), f"{DENSE} says in_features 32, {CANNOT} 64"),
    (edit(DENSE, bias=True), f"{DENSE} says bias true, {CANNOT} false"),
    (edit(DENSE, bias=...), f"{DENSE} says bias null; expected true or false"),
    (edit(DENSE, activation_function="torch.nn.modules.activation.Tanh"), f'{DENSE} says activation_function "torch.nn.modules.activation.Tanh", {CANNOT}'),
    (edit(DENSE, use_residual=True), f"{DENSE} says use_residual true, {CANNOT} null or false"),
    (edit(DENSE, out_features=17), f"tensor linear.weight is [16, 64], {DENSE} makes it [17, 64]"),
    (edit("sentence_bert_config.json", do_lower_case=True), f"sentence_bert_config.json says do_lower_case true, {CANNOT} null or false"),
    (edit("sentence_bert_config.json", max_seq_length=513), f"sentence_bert_config.json says max_seq_length 513, {CANNOT} 512"),
    (weights("model.safetensors", embeddings__LayerNorm__bias=None), "the weights have no tensor embeddings.LayerNorm.bias"),
    (weights("model.safetensors", embeddings__LayerNorm__bias=QUANTIZED), "tensor embeddings.LayerNorm.bias is stored as I8"),
    (weights("2_Dense/model.safetensors", linear__weight=ZEROS), f"tensor linear.weight is [3, 3], {DENSE} makes it [16, 64]"),
    (edit("tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer"), f'tokenizer_config.json says tokenizer_class "XLMRobertaTokenizer", {CANNOT} "DistilBertTokenizer"'),
    (edit("tokenizer_config.json", do_lower_case="no"), 'tokenizer_config.json says do_lower_case "no"; expected true or false'),
    (edit("tokenizer_config.json", truncation_side="left"), "tokenizer_config.json says truncation_side"),
    (edit("tokenizer_config.json", cls_token="<s>"), "vocab.txt has no token '<s>', which a WordPiece tokenizer needs"),
    (edit("tokenizer_config.json", mask_token="<mask>"), "the tokenizer has the token '<mask>' with id 700; config.json says vocab_size 700"),
    (lambda f: (f / "vocab.txt").unlink(), "there is no tokenizer.json, and no vocab.txt; expected a checkpoint in"),
    (serialized(), f'tokenizer.json says normalizer null, {CANNOT} {{"type": "BertNormalizer"'),
    (serialized(model={"type": "Unigram", "vocab": []}), 'tokenizer.json says model.type "Unigram"; expected "WordPiece", as BERT has it'),
    (serialized(model={"vocab": {}, "merges": []}), 'tokenizer.json says model.type "BPE"; expected "WordPiece", as BERT has it'),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), REFUSED, ids=[sentence[:60] for _, sentence in REFUSED])
def test_a_text_tower_that_cannot_be_followed_is_refused_with_the_reason(change, sentence, text, images, tmp_path):
    folder = shutil.copytree(text, tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(str(folder), images=str(images))
    assert str(raised.value).startswith(f"{folder}: {sentence}")


def test_a_tokenizer_json_that_agrees_is_read_and_one_that_does_not_is_refused(text, images, path, tmp_path):
    folder = shutil.copytree(text, tmp_path / "checkpoint")
    shutil.copy(path / "tokenizer.json", folder)
    assert open_checkpoint(str(folder), images=str(images)).tokenizer["tokenizer.json"] == (
        path / "tokenizer.json"
    ).read_text(encoding="utf-8")
    for part, value, sentence in (
        ("pre_tokenizer", {"type": "Whitespace"}, "tokenizer.json says pre_tokenizer"),
        ("post_processor", None, "tokenizer.json says post_processor"),
    ):
        content = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
        (folder / "tokenizer.json").write_text(json.dumps(content | {part: value}))
        with pytest.raises(CheckpointError, match=sentence):
            open_checkpoint(str(folder), images=str(images))


def test_images_that_do_not_fit_are_refused_with_the_reason(text, images, tmp_path):
    def refusal(source: Path, of_images: Path) -> str:
        with pytest.raises(CheckpointError) as raised:
            open_checkpoint(str(source), images=str(of_images))
        return str(raised.value)

    other = write_text_tower(tmp_path / "other", TINY, 24)
    assert refusal(other, images) == (
        f"{other} makes vectors of 24 numbers and {images} of 16; expected in --images the checkpoint whose vectors the "
        "text tower was trained for"
    )
    assert refusal(text, other) == (
        f"{other} is a text tower, as {text} is; expected a checkpoint with images in --images"
    )
    assert refusal(images, images) == f"--images {images} goes with a text tower alone; {images} has an image tower"
    shutil.copytree(images, tmp_path / "broken")
    (tmp_path / "broken/config.json").write_text('{"model_type": "vit"}')
    assert refusal(text, tmp_path / "broken") == (
        f"{tmp_path}/broken: config.json says 'vit'; only 'clip' and 'siglip', with both their towers, can be baked"
    )


def test_images_may_be_those_of_open_clips_layout(tiny_checkpoint, tmp_path):
    layout = write_open_clip(tmp_path / "open-clip", tiny_checkpoint)
    text = write_text_tower(tmp_path / "text", TINY)
    found = open_checkpoint(str(text), images=str(layout))
    assert (found.preprocess.library, found.tokens.library) == ("open_clip", "wordpiece")


def test_without_images_the_bake_says_whose_it_takes(text, images, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_clip_onnx.bake.IMAGES", str(images))
    lines: list[str] = []
    manifest = bake(str(text), tmp_path / "model", "fp32", say=lines.append)
    assert lines[:3] == [
        f"reading {text}",
        f"{text} is a text tower; its images are those of {images}, as --images says none",
        f"reading {images} for its image tower",
    ]
    assert manifest.images
    assert manifest.images.id == str(images)


def test_verify_compares_both_towers_with_sentence_transformers(text, images, path, tmp_path):
    pytest.importorskip("sentence_transformers")
    checks = verify.verify(path, "sentence-transformers")
    assert [(c.name, c.ok) for c in checks][-2:] == [
        ("text tower (fp32) with sentence-transformers", True),
        ("image tower (fp32) with sentence-transformers", True),
    ]
    other = write_text_tower(tmp_path / "other", TINY, EMBED_DIM, seed=9)
    assert not verify.verify(path, "sentence-transformers", checkpoint=str(other))[-2].ok
    with pytest.raises(
        CheckpointError, match="embeds no images, so llm-clip cannot load it; expected --reference sent"
    ):
        verify.verify(path, "llm-clip")


def plan_of(folder: Path, images: Path, work: Path) -> TowerPlan:
    work.mkdir(exist_ok=True)
    checkpoint = open_checkpoint(str(folder), images=str(images))
    write_tokenizer(work, checkpoint)
    return plan_text(work, checkpoint, quiet)


def plant_outliers(tensors: dict) -> None:
    """A constant in two channels, which the gains of all later norms carry on, and hidden units that are always large.

    What follows a unit is made smaller by what it always adds. Inputs then have a mean cosine of 0.99.
    """
    constant, always = np.float32(25), np.float32(20)
    tensors["embeddings.LayerNorm.bias"][[3, 40]] += [constant, -constant]
    for name, tensor in tensors.items():
        if name.endswith("layer_norm.weight"):
            tensor *= np.sqrt(1 + 2 * constant**2 / TINY["dim"])
        if name.endswith("lin1.bias"):
            tensor[[5, 17]] += always
        if name.endswith("lin2.bias"):
            tensor -= always * tensors[name.replace("bias", "weight")][:, [5, 17]].sum(1)
        if name.endswith(("q_lin.weight", "k_lin.weight")):
            tensor *= 2


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    return write_text_tower(tmp_path_factory.mktemp("planted") / "checkpoint", TINY, EMBED_DIM, change=plant_outliers)


def test_rewritten_it_computes_the_same_in_float32(planted, images, tmp_path):
    plan = plan_of(planted, images, tmp_path / "work")
    tensors, choices = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    rewritten = {linear.rsplit(".", 1)[1] for linear, choice in choices.items() if choice.strength is not None}
    assert rewritten == {"qkv", "out", "fc1", "fc2"}  # so that each kind is tried
    found = plan.write_and_embed(tmp_path / "graph", tensors, ())
    np.testing.assert_allclose(found, plan.reference, atol=1e-4 * np.abs(plan.reference).max())


def test_planted_outliers_break_plain_8_bit_towers_and_not_a_baked_one(planted, images, tmp_path, monkeypatch):
    plan = plan_of(planted, images, tmp_path / "work")
    everything = {graph.TOKEN_TABLE, *(linear.name for linear in plan.tower.linears)}

    def agrees(name: str) -> bool:
        embeddings = plan.write_and_embed(tmp_path / name, plan.tower.tensors, everything)
        result = fidelity.agreement(embeddings, plan.reference, plan.inputs)
        assert result.worst > 0.995  # which plain cosine hides
        return fidelity.int8_agrees("text", result)

    assert not agrees("per column")
    with monkeypatch.context() as patch:
        patch.setattr(graph, "quantize_columns", per_tensor)
        assert not agrees("per matrix")
    tower = bake(str(planted), tmp_path / "model", "int8", say=quiet, images=str(images)).towers["text"]
    assert tower.kept_float32 == []
    assert tower.fidelity["int8 with fp32"].worst_centred >= fidelity.INT8_MINIMUM["text"]
    assert all(one.error <= one.error_as_it_was for one in tower.matrices.values())
