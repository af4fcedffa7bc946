"""A SigLIP that cannot be baked, whole or in part, is refused with a sentence that names the file, the key and a way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conftest import DEMO_CHECKPOINT
from llm_clip_onnx.bake import open_checkpoint
from llm_clip_onnx.errors import CheckpointError
from siglip_checkpoint import write_siglip


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("siglips")
    return {version: write_siglip(folder / f"{version}", version) for version in (1, 2)}


def edited(file: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    """A change of a JSON file of the checkpoint."""

    def edit(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        change(content)
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    return edit


def config(change):
    return edited("config.json", change)


def settings(**values):
    return edited("tokenizer_config.json", lambda content: content.update(values))


def steps(**values):
    return edited("preprocessor_config.json", lambda content: content.update(values))


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return edit


def only_sentencepiece(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "spiece.model")


def clips_tokenizer(folder: Path) -> None:
    vocab = json.loads((DEMO_CHECKPOINT / "vocab.json").read_text())
    merges = [line for line in (DEMO_CHECKPOINT / "merges.txt").read_text().splitlines()[1:] if line]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}}))


def half(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


REFUSED = {
    "NaFlex": (config(lambda c: c.update(model_type="siglip2")), "config.json says model_type siglip2, which reads images of any shape (NaFlex)"),
    "no head": (config(lambda c: c["vision_config"].update(vision_use_head=False)), "config.json says vision_use_head false, which a bake cannot follow"),
    "two sizes": (config(lambda c: c["text_config"].update(projection_size=32)), "config.json's text_config says projection_size 32, its vision_config hidden_size 64; expected one number"),
    "activation": (config(lambda c: c["text_config"].update(hidden_act="relu")), 'config.json\'s text_config says hidden_act "relu"; expected "gelu_pytorch_tanh", "gelu" or "quick_gelu"'),
    "heads": (config(lambda c: c["vision_config"].update(num_attention_heads=5)), "config.json's vision_config says hidden_size 64, no multiple of its num_attention_heads 5"),
    "a part of another kind": (config(lambda c: c.update(text_config=[])), 'config.json says text_config []; expected an object'),
    "more layers than weights": (config(lambda c: c["text_config"].update(num_hidden_layers=3)), "the weights have no tensor text_model.encoder.layers.2.self_attn.q_proj.weight, which config.json asks for"),
    "quantized": (config(lambda c: c.update(quantization_config={"bits": 4})), "config.json says quantization_config"),
    "no bias": (weights(lambda t: t.pop("logit_bias")), "the weights have no tensor logit_bias, which config.json asks for"),
    "no probe": (weights(lambda t: t.pop("vision_model.head.probe")), "the weights have no tensor vision_model.head.probe, which config.json asks for"),
    "a head of another shape": (weights(lambda t: t.update({"vision_model.head.attention.in_proj_weight": np.zeros((64, 64), np.float32)})), "tensor vision_model.head.attention.in_proj_weight is [64, 64], config.json makes it [192, 64]"),
    "a class token": (weights(lambda t: t.update({"vision_model.embeddings.position_embedding.weight": np.zeros((17, 64), np.float32)})), "tensor vision_model.embeddings.position_embedding.weight is [17, 64], config.json makes it ["),
    "half of the weights": (half, "the weights cannot be read, a file may be cut short"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "there is no tokenizer.json; transformers writes it: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"),
    "only sentencepiece's": (only_sentencepiece, "there is no tokenizer.json, only spiece.model, which a bake does not read; transformers writes it"),
    "CLIP's tokenizer": (clips_tokenizer, 'tokenizer.json says model.type "BPE without byte_fallback"; expected Unigram, or BPE with byte_fallback'),
    "BERT's tokenizer": (edited("tokenizer.json", lambda c: c["model"].update(type="WordPiece")), 'tokenizer.json says model.type "WordPiece"; expected Unigram'),
    "no model": (edited("tokenizer.json", lambda c: c.update(model=None)), "tokenizer.json says model.type null; expected Unigram"),
    "half a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text('{"model"'), "tokenizer.json is not JSON"),
    "a broken tokenizer": (edited("tokenizer.json", lambda c: c["model"].update(vocab=3)), "tokenizer.json is no tokenizer that can be read"),
    "no settings": (lambda folder: (folder / "tokenizer_config.json").unlink(), "there is no tokenizer_config.json"),
    "no padding token": (settings(pad_token=None), "tokenizer_config.json says pad_token null; expected a token of tokenizer.json"),
    "an unknown end": (settings(eos_token="<end>"), 'tokenizer_config.json says eos_token "<end>"; expected a token of tokenizer.json'),
    "padded left": (settings(padding_side="left"), 'tokenizer_config.json says padding_side "left", which a bake cannot follow'),
    "with case": (settings(do_lower_case=False), "tokenizer_config.json says do_lower_case false, which a bake cannot follow"),
    "a token before": (settings(add_bos_token=True), "tokenizer_config.json says add_bos_token true, which a bake cannot follow"),
    "shorter texts": (settings(model_max_length=32), "tokenizer_config.json says model_max_length 32, which a bake cannot follow"),
    "no steps": (lambda folder: (folder / "preprocessor_config.json").unlink(), "there is no preprocessor_config.json"),
    "another size": (steps(size={"height": 128, "width": 128}), 'preprocessor_config.json has images resized to {"height": 128, "width": 128}; expected '),
    "no square": (steps(size={"height": 64, "width": 96}), 'preprocessor_config.json says size {"height": 64, "width": 96}; expected height and width, two equal whole numbers'),
    "cropped": (steps(do_center_crop=True), "preprocessor_config.json says do_center_crop true, which a bake cannot follow"),
    "not normalised": (steps(do_normalize=False), "preprocessor_config.json says do_normalize false, which a bake cannot follow"),
    "CLIP's steps": (steps(image_processor_type="CLIPImageProcessor"), 'preprocessor_config.json says image_processor_type "CLIPImageProcessor", which a bake cannot follow'),
}  # fmt: skip


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_baked_is_refused(name, version, written, tmp_path):
    change, sentence = REFUSED[name]
    folder = tmp_path / "checkpoint"
    shutil.copytree(written[version], folder)
    change(folder)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(str(folder))
    assert str(raised.value).startswith(f"{folder}: {sentence}")


@pytest.mark.parametrize("version", [1, 2])
def test_a_tokenizer_with_more_tokens_than_the_table_has_rows_is_refused(version, written, tmp_path):
    folder = tmp_path / "checkpoint"
    rows = json.loads((written[version] / "config.json").read_text())["text_config"]["vocab_size"]
    shutil.copytree(written[version], folder)
    config(lambda c: c["text_config"].update(vocab_size=rows - 1))(folder)
    name = "text_model.embeddings.token_embedding.weight"
    weights(lambda t: t.update({name: np.ascontiguousarray(t[name][:-1])}))(folder)
    with pytest.raises(
        CheckpointError, match=rf"tokenizer.json has the token .* with id {rows - 1}; the token table has"
    ):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("version", [1, 2])
def test_the_padding_is_that_of_the_tokenizer_and_not_of_the_config(version, written, tmp_path):
    """transformers' SiglipTextConfig says pad_token_id 1 by default, which is SigLIP 2's end."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(written[version], folder)
    config(lambda c: c["text_config"].update(pad_token_id=7, eos_token_id=49407))(folder)
    assert open_checkpoint(str(folder)).tokens.pad == ("</s>" if version == 1 else "<pad>")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    "change",
    [
        settings(pad_token={"content": "<unk>", "lstrip": True}, model_max_length=int(1e30)),
        steps(do_convert_rgb=True, crop_size={"height": 1, "width": 1}, resample="bicubic"),
        config(lambda c: c["vision_config"].update(vision_use_head=True, num_channels=3)),
        config(lambda c: c["text_config"].update(projection_size=64)),
    ],
)
def test_other_ways_to_say_the_same_are_read(change, version, written, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(written[version], folder)
    change(folder)
    assert open_checkpoint(str(folder)).context_length == 64
