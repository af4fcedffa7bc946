"""A rewritten checkpoint computes the same and fits 8 bits better; matrices that are still too coarse stay float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from conftest import quiet
from llm_clip_onnx.bake import bake, fidelity, open_checkpoint, smooth, write_tokenizer
from llm_clip_onnx.bake import graph as graphs
from llm_clip_onnx.bake.eight_bit import calibration_inputs, choose_float32
from llm_clip_onnx.bake.quantize import product_in_8_bits, quantize_columns
from llm_clip_onnx.bake.samples import CALIBRATION_TEXTS, TEXTS, calibration_images, made_images
from llm_clip_onnx.bake.towers import Linear
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import FidelityError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.model_dir import Agreement, read_manifest
from llm_clip_onnx.towers import open_tower
from plain_quantisation import TOWERS, mean_cosine, per_tensor
from planted import plant_outliers
from random_checkpoint import TINY, VIT_B_32, write_checkpoint

FC1, FC2 = Linear("l.fc1", ("l.mlp.fc1",), "l.layer_norm2"), Linear("l.fc2", ("l.mlp.fc2",), None)


def plans(folder: Path, work: Path):
    checkpoint = open_checkpoint(str(folder))
    write_tokenizer(work, checkpoint)
    return {name: plan(work, checkpoint, quiet) for name, plan in TOWERS.items()}


def plant_small(tensors: dict) -> None:
    """As plant_outliers, in a tower of two layers of 64 channels, and in hidden units, so that fc2 is rewritten too."""
    for name, tensor in tensors.items():
        if name.endswith("position_embedding.weight"):
            tensor[:, [3, 40]] += 3
        if name.endswith("token_embedding.weight"):
            tensor *= 30
        if name.endswith("fc1.bias"):
            tensor[[5, 17]] += 20


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint", **TINY, change=plant_small)


def test_calibration_inputs_are_none_of_those_that_fidelity_is_measured_on():
    assert len(CALIBRATION_TEXTS) >= 24
    assert not set(CALIBRATION_TEXTS) & set(TEXTS)
    pictures = {image.tobytes() for image in made_images().values()}
    again = calibration_images()
    assert all(one.tobytes() == other.tobytes() for one, other in zip(calibration_images(), again, strict=True))
    assert len({image.tobytes() for image in again}) == 8
    assert not pictures & {image.tobytes() for image in again}


@pytest.mark.parametrize("name", TOWERS)
def test_rewritten_it_computes_the_same_in_float32(name, small, tmp_path):
    """The plain forward pass has no scale for fc2's input, so the test undoes that scale first."""
    plan = plans(small, tmp_path)[name]
    tensors, choices = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    rewritten = {linear.rsplit(".", 1)[1] for linear, choice in choices.items() if choice.strength is not None}
    assert rewritten == {"qkv", "out", "fc1", "fc2"}  # so that each kind is tried
    for linear in choices:
        scale = tensors.pop(f"{linear.replace('.fc2', '.mlp.fc2')}.{smooth.INPUT_SCALE}", None)
        if scale is not None:
            tensors[f"{linear.replace('.fc2', '.mlp.fc2')}.weight"] *= scale
    assert not [tensor for tensor in tensors if smooth.INPUT_SCALE in tensor]
    if name == "text":
        given = [np.array([49406, 320, 2368, 49407]), np.array([49406, 1929, 49407])]
    else:
        given = [*np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)]
    found, expected = (plan.tower.embed(t, given, None) for t in (tensors, plan.tower.tensors))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", TOWERS)
def test_the_graph_of_rewritten_tensors_agrees_with_the_reference_in_float32(name, small, tmp_path):
    plan = plans(small, tmp_path)[name]
    tensors, _ = smooth.smooth_tensors(plan.tower.tensors, plan.tower.linears, calibration_inputs(plan))
    result = fidelity.agreement(plan.write_and_embed(tmp_path / "graph", tensors, ()), plan.reference, plan.inputs)
    assert fidelity.float32_agrees(result)


def test_a_choice_has_the_least_error_of_what_was_tried():
    random = np.random.default_rng(0)
    weight = random.standard_normal((8, 24)).astype(np.float32)  # [in, out]
    even = [random.standard_normal((5, 8)).astype(np.float32) for _ in range(3)]
    uneven = [x * np.array([1, 1, 1, 1, 1, 1, 1, 200], np.float32) for x in even]
    shifted = [x + np.array([0, 0, 0, 90, 0, 0, 0, 0], np.float32) for x in even]
    tensors = {"l.mlp.fc1.weight": weight.T, "l.mlp.fc1.bias": np.zeros(24, np.float32)}
    for inputs, gain in ((uneven, 2), (shifted, 5)):
        choice = smooth.choose(FC1, tensors, inputs)
        assert choice.strength in smooth.STRENGTHS
        assert choice.error * gain < choice.error_as_it_was
    assert smooth.choose(FC1, tensors, shifted).shift.argmax() == 3


def test_a_scale_of_fc2_must_be_worth_its_step():
    random = np.random.default_rng(0)
    weight = random.standard_normal((24, 8)).astype(np.float32)
    tensors = {"l.mlp.fc2.weight": weight, "l.mlp.fc2.bias": np.zeros(24, np.float32)}
    even = [random.standard_normal((5, 8)).astype(np.float32) for _ in range(3)]
    assert smooth.choose(FC2, tensors, even).strength is None
    choice = smooth.choose(FC2, tensors, [x * np.array([1] * 7 + [300], np.float32) for x in even])
    assert choice.strength is not None
    assert not choice.shift.any()


def test_channels_that_never_vary_are_no_reason_to_overflow():
    assert np.isfinite(smooth.scales(np.array([0, 1, 1e6], np.float32), np.array([0, 0, 1], np.float32), 0.75)).all()
    assert (smooth.scales(np.zeros(3, np.float32), np.zeros(3, np.float32), 0.5) == 1).all()


def test_the_measured_product_is_onnxruntimes(tmp_path):
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((6, 64)).astype(np.float32), random.standard_normal((64, 48)).astype(np.float32)
    g = graphs.Graph(tmp_path / "g.onnx")
    levels, scale, zero_point = (g.constant(f"c{n}", part) for n, part in enumerate(quantize_columns(weight)))
    product = g.fused("DynamicQuantizeMatMul", "x", levels, scale, zero_point)
    g.node("Identity", product, outputs=["embedding"])
    g.finish("product", helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64]), 48)
    found = open_tower(tmp_path / "g.onnx", 1).run(None, {"x": x})[0]
    np.testing.assert_allclose(product_in_8_bits([x], weight), found, atol=1e-4)
    assert np.abs(x @ weight - found).max() > 1e-3  # else 8 bits were not used at all


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> Path:
    """A checkpoint of ViT-B/32's shape with planted outliers, 605 MB."""
    return write_checkpoint(
        tmp_path_factory.mktemp("planted") / "checkpoint", text=VIT_B_32, vision=VIT_B_32, change=plant_outliers
    )


def test_planted_outliers_are_like_the_real_ones_and_break_plain_8_bit_towers(planted, tmp_path, monkeypatch):
    alike = {"text": (0.75, 0.85), "image": (0.4, 0.7)}
    for name, plan in plans(planted, tmp_path).items():
        assert alike[name][0] < mean_cosine(plan.reference) < alike[name][1]
        everything = {graphs.TOKEN_TABLE, *(linear.name for linear in plan.tower.linears)}
        monkeypatch.setattr(graphs, "quantize_columns", per_tensor)
        plain = plan.write_and_embed(tmp_path / name, plan.tower.tensors, everything)
        result = fidelity.agreement(plain, plan.reference, plan.inputs)
        assert not fidelity.int8_agrees(name, result)
        assert result.worst > 0.995  # which plain cosine hides


def test_8_bit_towers_survive_planted_outliers(planted, tmp_path):
    manifest = bake(str(planted), tmp_path / "model", say=quiet)
    for name, least in (("text", 0.995), ("image", 0.99)):
        tower = manifest.towers[name]
        assert (tower.precision, tower.kept_float32) == ("int8", [])
        assert tower.fidelity["int8 with fp32"].worst_centred >= least
        assert len(tower.matrices) == (49 if name == "text" else 48)
        assert all(one.error <= one.error_as_it_was for one in tower.matrices.values())
        assert sum(one.strength is not None for one in tower.matrices.values()) > 36
    assert read_manifest(tmp_path / "model") == manifest


def sharpen(tensors: dict) -> None:
    """Makes the attention of layer 1 so sharp that the rounding to 8 bits decides where it looks."""
    for name, tensor in tensors.items():
        if name.endswith(("layers.1.self_attn.q_proj.weight", "layers.1.self_attn.k_proj.weight")):
            tensor *= 20
        if name.endswith(("token_embedding.weight", "out_proj.weight", "fc2.weight", "patch_embedding.weight")):
            tensor *= 10


def test_matrices_that_8_bits_harm_stay_float32_and_their_cost_is_told(tmp_path):
    four = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    folder = write_checkpoint(tmp_path / "checkpoint", text=four, vision=four, change=sharpen)
    lines: list[str] = []
    manifest = bake(str(folder), tmp_path / "model", "int8", say=lines.append)
    image = manifest.towers["image"]
    assert image.kept_float32 == ["vision_model.encoder.layers.1.qkv"]
    assert image.matrices[image.kept_float32[0]].bytes == 4 * 64 * 192
    assert image.summary == "int8, 1 of 16 matrices float32, 0.0 MB more"
    assert any(line.startswith("image tower: int8 but for 1.qkv, worst cosine") for line in lines)
    assert 0 < len(manifest.towers["text"].kept_float32) < 8
    # What was written is what was measured, with those matrices in float32 and in no other precision.
    found = Engine(tmp_path / "model").embed_images(list(made_images().values()))
    checkpoint = open_checkpoint(str(folder))
    pixels = [to_pixels(picture, checkpoint.preprocess) for picture in made_images().values()]
    expected = checkpoint.image.embed(checkpoint.image.tensors, pixels, None)
    result = fidelity.agreement(found, expected, list(made_images()))
    assert result.worst_centred == pytest.approx(image.fidelity["int8 with fp32"].worst_centred, abs=1e-4)


def of(worst: float) -> Agreement:
    return Agreement(1, worst, worst, worst, worst, 1, "")


@pytest.mark.parametrize(
    ("needed", "expected"), [({"b"}, {"b"}), ({"b", "table"}, {"b", "table"}), ({"a", "b", "c", "table"}, set())]
)
def test_no_more_is_kept_float32_than_it_takes(needed, expected):
    """A tower that agrees where `needed` are float32; each alone helps a little, and one that is not needed most."""
    helps = {"a": 0.3, "b": 0.2, "c": 0.1, "table": 0.2}
    asked = []

    def write(kept: frozenset[str]) -> Agreement:
        asked.append(kept)
        return of(1 if needed <= kept else 0.1 + sum(helps[name] for name in kept) / 2)

    sizes = {"a": 4, "b": 3, "c": 2, "table": 1}
    assert choose_float32(sizes, write, lambda result: result.worst_centred == 1) == expected
    assert len(asked) < 20


def test_a_token_table_that_8_bits_harm_stays_float32(tmp_path):
    """The rows share a large constant in one channel, so one scale a row rounds off most of their differences."""

    def change(tensors: dict) -> None:
        tensors["text_model.embeddings.token_embedding.weight"][:, 5] += 4

    folder = write_checkpoint(tmp_path / "checkpoint", **TINY, change=change)
    text = bake(str(folder), tmp_path / "model", "int8", say=quiet).towers["text"]
    assert "token_table" in text.kept_float32
    assert text.fidelity["int8 with fp32"].worst_centred >= 0.995


def test_towers_whose_signed_levels_differ_are_refused(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "SIGN_BIT", 0x81)  # another bit is turned too
    monkeypatch.setattr("llm_clip_onnx.bake.eight_bit.multiplies_signed", lambda probe: True)
    with pytest.raises(FidelityError, match="the text towers of signed and of unsigned levels differ"):
        bake(str(tiny_checkpoint), tmp_path / "model", "int8", say=quiet)
    assert not (tmp_path / "model").exists()


def test_a_processor_that_cannot_try_signed_levels_says_so(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_clip_onnx.bake.eight_bit.multiplies_signed", lambda probe: False)
    lines: list[str] = []
    bake(str(tiny_checkpoint), tmp_path / "model", "int8", say=lines.append)
    assert "text tower: signed levels overflow on this processor, and were not tried" in lines
