"""A checkpoint in open_clip's layout bakes to the same towers, and what a bake cannot follow is refused by its key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import reference
from conftest import DEMO_CHECKPOINT, quiet
from llm_clip_onnx import model_dir
from llm_clip_onnx.bake import bake, open_checkpoint
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import CheckpointError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.text_readers import open_reader
from open_clip_checkpoint import write_open_clip
from random_checkpoint import TINY, write_checkpoint

ACTS = {"quick_gelu": reference.quick_gelu, "gelu": reference.gelu}
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def layout(tiny_checkpoint, tmp_path_factory) -> Path:
    """A tiny checkpoint in open_clip's layout. Not to be changed."""
    return write_open_clip(tmp_path_factory.mktemp("open-clip") / "checkpoint", tiny_checkpoint)


def check_against_oracle(folder: Path, path: Path) -> None:
    """Compare all embeddings of the bake's fixed inputs with those of tests/reference.py, computed in float64."""
    checkpoint, engine = open_checkpoint(str(folder)), Engine(path)
    sd = reference.openai_names(checkpoint.text.tensors)
    text, image = checkpoint.text.config, checkpoint.image.config
    act, read = ACTS[text.activation], open_reader(path, 77, checkpoint.tokens)
    texts = [reference.encode_text(sd, read(t), text.heads, act) for t in TEXTS]
    np.testing.assert_allclose(engine.embed_text(TEXTS), texts, atol=1e-5)
    images = [*made_images().values()][:6]
    pixels = [to_pixels(i, checkpoint.preprocess).astype(np.float64) for i in images]
    expected = [reference.encode_image(sd, p, image.heads, act) for p in pixels]
    np.testing.assert_allclose(engine.embed_images(images), expected, atol=1e-5)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("prefix", ["", "text."])
def test_float32_towers_match_the_oracle(activation, prefix, tmp_path):
    shape = {part: TINY[part] | {"hidden_act": activation} for part in ("text", "vision")}
    checkpoint = write_checkpoint(tmp_path / "hf", **shape)
    folder = write_open_clip(
        tmp_path / "checkpoint", checkpoint, prefix, {"custom_text": bool(prefix)} if prefix else {}
    )
    manifest = bake(str(folder), tmp_path / "model", "fp32", say=quiet)
    assert (manifest.tokens.library, manifest.preprocess.library) == ("open_clip", "open_clip")
    check_against_oracle(folder, tmp_path / "model")
    assert model_dir.read_manifest(tmp_path / "model") == manifest


def test_the_same_weights_have_the_same_tensors_in_both_layouts(tiny_checkpoint, layout):
    ours, theirs = (open_checkpoint(str(path)).text.tensors for path in (layout, tiny_checkpoint))
    assert {*ours} == {*theirs}
    for name in theirs:
        if name != "logit_scale":
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
        assert ours.shape(name) == theirs.shape(name)


def test_the_demo_model_keeps_its_vectors_and_its_8_bits(demo_dir, tmp_path):
    folder = write_open_clip(tmp_path / "checkpoint", DEMO_CHECKPOINT)
    manifest = bake(str(folder), tmp_path / "model", say=quiet)
    assert {tower.precision for tower in manifest.towers.values()} == {"int8"}
    texts = ["red heart", "a photo of a cat", "Purple and GOLD", "don't"]
    np.testing.assert_array_equal(Engine(tmp_path / "model").embed_text(texts), Engine(demo_dir).embed_text(texts))


def test_a_pickle_is_read_as_open_clip_reads_it(layout, tmp_path):
    torch = pytest.importorskip("torch")
    shutil.copytree(layout, tmp_path / "checkpoint")
    tensors = load_file(tmp_path / "checkpoint" / WEIGHTS)
    (tmp_path / "checkpoint" / WEIGHTS).unlink()
    torch.save(
        {k: torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "checkpoint/open_clip_pytorch_model.bin"
    )
    expected, found = open_checkpoint(str(layout)), open_checkpoint(str(tmp_path / "checkpoint"))
    for name in expected.text.tensors:
        np.testing.assert_array_equal(found.text.tensors[name], expected.text.tensors[name])


def test_merges_in_the_folder_do_where_the_package_is_not_installed(layout, monkeypatch, tmp_path):
    from llm_clip_onnx.bake.families import open_clip

    monkeypatch.setattr(open_clip, "merges_of_package", lambda: [])
    with pytest.raises(CheckpointError, match="pip install --no-deps open-clip-torch, or put it into the folder"):
        open_checkpoint(str(layout))
    shutil.copytree(layout, tmp_path / "checkpoint")
    shutil.copy(DEMO_CHECKPOINT / "merges.txt", tmp_path / "checkpoint")
    vocab = json.loads((DEMO_CHECKPOINT / "vocab.json").read_text(encoding="utf-8"))
    found = json.loads(open_checkpoint(str(tmp_path / "checkpoint")).tokenizer["vocab.json"])
    assert [*found][:-2] == sorted(vocab, key=vocab.__getitem__)[:-2]
    assert [*found][-2:] == ["<start_of_text>", "<end_of_text>"]


def test_merges_in_the_folder_win_over_the_packages_and_must_be_clips(layout, monkeypatch, tmp_path):
    from llm_clip_onnx.bake.families import open_clip

    shutil.copytree(layout, tmp_path / "checkpoint")
    lines = (DEMO_CHECKPOINT / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = tmp_path / "checkpoint/merges.txt"
    merges.write_text("\n".join([*lines[:-2], lines[-1], lines[-2]]), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"checkpoint: merges.txt has other merges than CLIP's, which open_clip"):
        open_checkpoint(str(tmp_path / "checkpoint"))
    merges.write_text("\n".join(lines), encoding="utf-8")
    by_the_package = open_checkpoint(str(layout)).tokenizer
    monkeypatch.setattr(open_clip, "merges_of_package", lambda: ["o ther"])
    assert open_checkpoint(str(tmp_path / "checkpoint")).tokenizer == by_the_package


def keys(part: str, **values):
    def edit(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text())
        (content.setdefault(part, {}) if part == "preprocess_cfg" else content["model_cfg"] if part == "model_cfg"
         else content["model_cfg"][part]).update(values)  # fmt: skip
        (folder / CONFIG).write_text(json.dumps(content))

    return edit


def written(content: object):
    return lambda folder: (folder / CONFIG).write_text(json.dumps(content))


def tensors(change):
    def edit(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS)

    return edit


REFUSED = {
    "vision_cfg.timm_model_name": keys("vision_cfg", timm_model_name="vit_base"),
    "vision_cfg.layers": keys("vision_cfg", layers=[3, 4, 6, 3]),
    "vision_cfg.pool_type": keys("vision_cfg", pool_type="avg"),
    "vision_cfg.no_ln_pre": keys("vision_cfg", no_ln_pre=True),
    "vision_cfg.attentional_pool": keys("vision_cfg", attentional_pool=True),
    "vision_cfg.norm_kwargs": keys("vision_cfg", norm_kwargs={"eps": 1e-6}),
    "vision_cfg.image_size": keys("vision_cfg", image_size=[224, 112]),
    "vision_cfg.made_up": keys("vision_cfg", made_up=1),
    "text_cfg.hf_model_name": keys("text_cfg", hf_model_name="xlm-roberta-base"),
    "text_cfg.hf_tokenizer_name": keys("text_cfg", hf_tokenizer_name="timm/ViT-B-16-SigLIP"),
    "text_cfg.tokenizer_kwargs": keys("text_cfg", tokenizer_kwargs={"clean": "canonicalize"}),
    "text_cfg.no_causal_mask": keys("text_cfg", no_causal_mask=True),
    "text_cfg.pool_type": keys("text_cfg", pool_type="last"),
    "text_cfg.proj_bias": keys("text_cfg", proj_bias=True),
    "text_cfg.vocab_size": keys("text_cfg", vocab_size="many"),
    "model_cfg.init_logit_bias": keys("model_cfg", init_logit_bias=-10),
    "model_cfg.embed_dim": keys("model_cfg", embed_dim=None),
    "model_cfg.quick_gelu": keys("model_cfg", quick_gelu="yes"),
    "model_cfg.text_cfg": keys("model_cfg", text_cfg=[1]),
    "preprocess_cfg.resize_mode": keys("preprocess_cfg", resize_mode="crop"),
    "preprocess_cfg.interpolation": keys("preprocess_cfg", interpolation="lanczos"),
    "preprocess_cfg.mode": keys("preprocess_cfg", mode="L"),
    "preprocess_cfg.mean": keys("preprocess_cfg", mean=[0.5, 0.5]),
    "preprocess_cfg.fill_color": keys("preprocess_cfg", fill_color=256),
    "says model_cfg null": written({"embed_dim": 512}),
    "holds a JSON list": written([1]),
    "has the tensor visual.ls_1.gamma": tensors(
        lambda found: found.update({"visual.ls_1.gamma": np.ones(3, np.float32)})
    ),
    "no tensor vision_model.pre_layrnorm.bias": tensors(lambda found: found.pop("visual.ln_pre.bias")),
    "tensor text_projection.weight is": tensors(
        lambda found: found.update(text_projection=np.ones((64, 7), np.float32))
    ),
    "is [128, 64], open_clip_config.json makes it [64, 64]": tensors(
        lambda found: found.update({"transformer.resblocks.0.attn.in_proj_weight": np.ones((128, 64), np.float32)})
    ),
    "no weights; expected open_clip_model.safetensors": lambda folder: (folder / WEIGHTS).unlink(),
    "may be cut short": lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:5000]),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_a_bake_cannot_follow_is_refused_by_name(sentence, layout, tmp_path):
    folder = shutil.copytree(layout, tmp_path / "checkpoint")
    REFUSED[sentence](folder)
    with pytest.raises(CheckpointError) as raised:
        bake(str(folder), tmp_path / "model", say=quiet)
    assert sentence in str(raised.value)
    assert str(raised.value).startswith(f"{folder}: ")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "edit",
    [
        keys("vision_cfg", patch_dropout=0.5, pool_type="tok", act_kwargs=None),
        keys("text_cfg", pad_id=0, eos_id=2, output_tokens=False, pool_type="argmax"),
        keys("model_cfg", custom_text=True, init_logit_scale=2.6),
        keys("preprocess_cfg", size=[224, 224], mean=None, made_up=1),
    ],
)
def test_keys_that_change_no_vector_are_followed(edit, layout, tmp_path):
    folder = shutil.copytree(layout, tmp_path / "checkpoint")
    edit(folder)
    found, expected = open_checkpoint(str(folder)), open_checkpoint(str(layout))
    assert (found.text.config, found.image.config) == (expected.text.config, expected.image.config)
    assert found.preprocess == expected.preprocess


def test_where_transformers_config_is_there_too_it_is_read(tiny_checkpoint, layout, tmp_path):
    folder = shutil.copytree(layout, tmp_path / "checkpoint")
    shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
    assert open_checkpoint(str(folder)).preprocess.library == "transformers"
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch32_clip_224"}))  # timm's
    assert open_checkpoint(str(folder)).preprocess.library == "open_clip"
