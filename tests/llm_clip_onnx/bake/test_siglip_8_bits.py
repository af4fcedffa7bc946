"""SigLIP's towers with planted outlier channels: rewriting is exact, 8 bits pass the gates, and without it they agree less."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import quiet
from llm_clip_onnx.bake import bake, eight_bit, fidelity, open_checkpoint, smooth, write_tokenizer
from llm_clip_onnx.bake.eight_bit import calibration_inputs
from llm_clip_onnx.model_dir import read_manifest
from plain_quantisation import TOWERS
from siglip_checkpoint import write_siglip

CHANNELS, UNITS = {3: 1.0, 40: -1.0, 17: 0.6}, [5, 17]  # channels with their share of a constant; hidden units
CONSTANT, ALWAYS = 5, 8  # about 5 times what else is in a channel; what a hidden unit gives for any input
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # in fewer channels chance decides more


def plant(tensors: dict) -> None:
    """Put a large constant in a few channels of both residual streams, of the head's pooled row, and in hidden units."""
    for name, tensor in tensors.items():
        if name.endswith("position_embedding.weight"):
            for channel, share in CHANNELS.items():
                tensor[:, channel] += CONSTANT * share
        if name == "vision_model.head.attention.out_proj.bias":
            for channel, share in CHANNELS.items():
                tensor[channel] += CONSTANT * share
        if name.endswith("fc1.bias"):
            tensor[UNITS] += ALWAYS
            fc2 = name.replace("fc1.bias", "fc2")
            tensors[f"{fc2}.bias"] -= ALWAYS * tensors[f"{fc2}.weight"][:, UNITS].sum(1)


@pytest.fixture(scope="module", params=[1, 2])
def planted(request, tmp_path_factory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("planted") / "checkpoint", request.param, WIDE, WIDE, change=plant)


def plans(folder: Path, work: Path):
    checkpoint = open_checkpoint(str(folder))
    write_tokenizer(work, checkpoint)
    return {name: plan(work, checkpoint, quiet) for name, plan in TOWERS.items()}


@pytest.mark.parametrize("name", TOWERS)
def test_rewritten_it_computes_the_same_in_float32(name, planted, tmp_path):
    """The plain forward pass has no scale for fc2's input, so the test undoes that scale first."""
    plan = plans(planted, tmp_path)[name]
    tensors, choices = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    rewritten = {linear.split("layers.0.")[-1] for linear, choice in choices.items() if choice.strength is not None}
    assert {"qkv", "fc1", "fc2"} <= rewritten
    if name == "image":
        assert {"vision_model.head.kv", "vision_model.head.fc1", "vision_model.head.fc2"} <= rewritten
    for linear in plan.tower.linears:
        scale = tensors.pop(f"{linear.tensors[0]}.{smooth.INPUT_SCALE}", None)
        if scale is not None:
            tensors[f"{linear.tensors[0]}.weight"] *= scale
    assert not [tensor for tensor in tensors if smooth.INPUT_SCALE in tensor]
    random = np.random.default_rng(0)
    side = 64 if 'image_size": 64' in (planted / "config.json").read_text() else 96
    given = [*random.integers(5, 500, (2, 64))] if name == "text" else [*random.standard_normal((2, 3, side, side))]
    given = [each.astype(np.int64 if name == "text" else np.float32) for each in given]
    found, expected = (plan.tower.embed(t, given, None) for t in (tensors, plan.tower.tensors))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_every_linear_layer_is_baked_in_8_bits(planted, tmp_path):
    bake(str(planted), tmp_path / "model", say=quiet)
    towers = read_manifest(tmp_path / "model").towers
    layers = [f"encoder.layers.{n}.{part}" for n in range(2) for part in ("qkv", "out", "fc1", "fc2")]
    assert [*towers["text"].matrices] == [*(f"text_model.{layer}" for layer in layers), "token_table"]
    head = [f"head.{part}" for part in ("kv", "out", "fc1", "fc2")]
    assert [*towers["image"].matrices] == [f"vision_model.{name}" for name in (*layers, *head)]
    for name, tower in towers.items():
        assert tower.precision == "int8"
        assert tower.fidelity["int8 with fp32"].worst_centred >= fidelity.INT8_MINIMUM[name]
        assert tower.kept_float32 == []


def test_without_rewriting_a_tower_agrees_less(planted, tmp_path, monkeypatch):
    """So it is the rewriting that keeps the outliers from harming the towers."""
    for name, plan in plans(planted, tmp_path).items():
        float32 = plan.write_and_embed(tmp_path / "fp32", plan.tower.tensors, ())
        _, rewritten = eight_bit.bake_8_bit_tower(plan, tmp_path / f"{name}-rewritten", float32, quiet)
        with monkeypatch.context() as patch:
            patch.setattr(smooth, "STRENGTHS", ())
            patch.setattr(eight_bit, "choose_float32", lambda *_: frozenset())
            _, plain = eight_bit.bake_8_bit_tower(plan, tmp_path / f"{name}-plain", float32, quiet)
        assert 1 - plain.worst_centred > 1.3 * (1 - rewritten.worst_centred)


@pytest.mark.parametrize(("name", "kept"), [("text", range(62, 0, -3)), ("image", range(1, 63, 3))])
def test_the_row_that_is_read_is_among_those_that_matrices_are_fitted_to(name, kept):
    """A SigLIP's text is read at the last position, an image at the first; here of 62 positions, each with its number."""
    rows = np.arange(1, 63, dtype=np.float32)[None, :, None]
    plan = SimpleNamespace(name=name, tower=SimpleNamespace(padded=name == "text"), calibrate=lambda w: w("fc1", rows))
    assert np.concatenate(calibration_inputs(plan)["fc1"]).ravel().tolist() == [*kept]
