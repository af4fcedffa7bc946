"""Checkpoints go through the real bake: towers agree with the oracle, bad ones are refused, no unfinished one opens."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import reference
from conftest import DEMO_CHECKPOINT, quiet
from llm_clip_onnx import model_dir
from llm_clip_onnx.bake import bake, fidelity, open_checkpoint
from llm_clip_onnx.bake.samples import TEXTS, made_images
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.errors import CheckpointError, FidelityError, ModelDirError
from llm_clip_onnx.images.preprocess import to_pixels
from llm_clip_onnx.tokenizer import open_tokenizer, tokenize
from llm_clip_onnx.vectors import cosine
from random_checkpoint import write_checkpoint

WORDS = [TEXTS[k] for k in (0, 4, 26, 28, -1)]
PICTURES = ["rings", "fine noise", "house", "tall"]


def tower(width: int, layers: int, heads: int, **more) -> dict:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    } | more


SHAPES = {
    "patch 32, quick_gelu": {"text": tower(64, 2, 4), "vision": tower(64, 2, 2)},
    "patch 16, gelu, one layer": {
        "text": tower(32, 1, 2, hidden_act="gelu"),
        "vision": tower(96, 1, 3, hidden_act="gelu", patch_size=16, image_size=64),
        "embed_dim": 48,
    },
    "three layers, legacy end, short context": {
        "text": tower(64, 3, 1, eos_token_id=2, max_position_embeddings=16),
        "vision": tower(32, 3, 2, patch_size=16),
        "embed_dim": 640,
    },
    "patches that do not fill the side": {
        "text": tower(64, 1, 2),
        "vision": tower(64, 1, 2, image_size=70, patch_size=32),
    },
}


def oracle(folder: Path, path: Path) -> tuple[list, list]:
    """The embeddings by tests/reference.py of WORDS and PICTURES, from our ids and pixels."""
    checkpoint = open_checkpoint(str(folder))
    text, image, sd = checkpoint.text.config, checkpoint.image.config, reference.openai_names(checkpoint.text.tensors)
    acts = {"quick_gelu": reference.quick_gelu, "gelu": reference.gelu}
    bpe = open_tokenizer(path / "vocab.json", path / "merges.txt", checkpoint.context_length)
    texts = [reference.encode_text(sd, tokenize(bpe, t), text.heads, acts[text.activation]) for t in WORDS]
    pixels = [to_pixels(made_images()[name], checkpoint.preprocess).astype(np.float64) for name in PICTURES]
    return texts, [reference.encode_image(sd, p, image.heads, acts[image.activation]) for p in pixels]


def check_against_oracle(folder: Path, path: Path, text_minimum: float, image_minimum: float) -> None:
    engine = Engine(path)
    texts, images = oracle(folder, path)
    found = engine.embed_text(WORDS), engine.embed_images([made_images()[name] for name in PICTURES])
    assert found[0].shape == (len(WORDS), engine.manifest.embed_dim)
    assert min(map(cosine, found[0], np.array(texts))) >= text_minimum
    assert min(map(cosine, found[1], np.array(images))) >= image_minimum


@pytest.mark.parametrize("shape", SHAPES)
def test_float32_towers_of_many_shapes_match_the_oracle(shape, tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", **SHAPES[shape])
    bake(str(folder), tmp_path / "model", "fp32", say=quiet)
    # float32 against float64: rounding alone stays below 1e-6
    check_against_oracle(folder, tmp_path / "model", 1 - 1e-5, 1 - 1e-5)


def test_float32_embeddings_have_the_oracles_length_too(tiny_checkpoint, tiny_dir):
    texts, images = oracle(tiny_checkpoint, tiny_dir)
    np.testing.assert_allclose(Engine(tiny_dir).embed_text(WORDS), texts, atol=1e-5)
    np.testing.assert_allclose(Engine(tiny_dir).embed_images([made_images()[n] for n in PICTURES]), images, atol=1e-5)


def test_demo_model_matches_the_oracle_in_float32_and_in_8_bits(demo_float32_dir, demo_dir):
    check_against_oracle(DEMO_CHECKPOINT, demo_float32_dir, 1 - 1e-5, 1 - 1e-5)
    assert {t.precision for t in model_dir.read_manifest(demo_dir).towers.values()} == {"int8"}
    check_against_oracle(DEMO_CHECKPOINT, demo_dir, fidelity.INT8_MINIMUM["text"], fidelity.INT8_MINIMUM["image"])


def test_a_graph_takes_any_batch_of_texts_of_any_length(tiny_dir):
    from llm_clip_onnx.towers import open_tower, run_text

    engine = Engine(tiny_dir)
    bpe = open_tokenizer(tiny_dir / "vocab.json", tiny_dir / "merges.txt", 77)
    ids = [tokenize(bpe, text) for text in WORDS]
    longest = max(map(len, ids))
    batch = np.stack([np.pad(i, (0, longest - len(i)), constant_values=49407) for i in ids])
    found = run_text(open_tower(tiny_dir / "text.onnx", 1), batch)
    np.testing.assert_allclose(found, engine.embed_text(WORDS), atol=1e-5)


@pytest.fixture
def coarse(monkeypatch) -> None:
    """Reduces 8-bit matrices to three levels, so that each of them alone spoils the tower."""
    from llm_clip_onnx.bake import graph

    def columns(weight, genuine=graph.quantize_columns):
        levels, scale, zero_point = genuine(weight)
        return levels // 100 * 100, scale, zero_point

    monkeypatch.setattr(graph, "quantize_columns", columns)
    monkeypatch.setattr(graph, "quantize_rows", lambda table, genuine=graph.quantize_rows: coarser(*genuine(table)))


def coarser(levels: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return levels // 100 * 100, scale


def test_8_bit_towers_that_do_not_agree_are_refused_by_name_and_figure(coarse, tiny_checkpoint, tmp_path):
    with pytest.raises(FidelityError) as raised:
        bake(str(tiny_checkpoint), tmp_path / "model", "int8", say=quiet)
    sentence = str(raised.value)
    assert sentence.startswith("the int8 text tower does not agree with its reference: worst cosine ")
    assert any(repr(text[:60]) in sentence for text in TEXTS)
    assert sentence.endswith("expected at least 0.995; bake with --precision fp32, or auto")
    assert list(tmp_path.iterdir()) == []


def test_auto_keeps_float32_where_8_bits_fail_and_says_so(coarse, tiny_checkpoint, tmp_path):
    lines: list[str] = []
    manifest = bake(str(tiny_checkpoint), tmp_path / "model", "auto", say=lines.append)
    text = manifest.towers["text"]
    assert (text.precision, text.matrices, text.summary) == ("fp32", {}, "fp32")
    assert text.fidelity["int8 with fp32"].worst_centred < 0.995
    assert "text tower: int8 is not close enough (expected 0.995), so it stays fp32" in lines
    check_against_oracle(tiny_checkpoint, tmp_path / "model", 1 - 1e-5, 0.99)


def test_a_float32_tower_that_differs_from_the_reference_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    from llm_clip_onnx.bake import graph

    genuine = graph.linear
    monkeypatch.setattr(
        graph, "linear", lambda g, p, n, x, w, b=None: genuine(g, p, n, x, w * 0.9 if "fc2" in n else w, b)
    )
    with pytest.raises(FidelityError, match="the fp32 text tower does not agree"):
        bake(str(tiny_checkpoint), tmp_path / "model", say=quiet)
    assert list(tmp_path.iterdir()) == []


def digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_the_same_input_gives_the_same_bytes(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("a", "b"):
        bake(str(tiny_checkpoint), tmp_path / name, say=quiet)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert json.loads((tmp_path / "a" / "manifest.json").read_text())["baked_at"] == "2023-11-14T22:13:20Z"


def test_the_manifest_tells_source_sums_shape_precision_and_versions(tiny_checkpoint, tiny_dir):
    manifest = model_dir.read_manifest(tiny_dir)
    weights = tiny_checkpoint / "model.safetensors"
    assert Path(manifest.source.id).name == tiny_checkpoint.name  # baked by this run or an earlier one
    assert manifest.source.weights_sha256 == {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    assert (manifest.embed_dim, manifest.context_length) == (512, 77)
    assert manifest.log_logit_scale == pytest.approx(4.6052)
    assert manifest.logit_scale == pytest.approx(100, rel=1e-3)
    assert manifest.files.keys() == digests(tiny_dir).keys() - {"manifest.json"}
    assert {name: file.sha256 for name, file in manifest.files.items()}.items() <= digests(tiny_dir).items()
    assert manifest.towers["image"].fidelity["fp32 with reference"].inputs == 16
    assert manifest.towers["text"].fidelity["fp32 with reference"].inputs >= 64
    assert {"onnxruntime", "tokenizers", "python"} <= manifest.versions.keys()


def test_a_target_that_is_there_stays_without_force_and_is_replaced_with_it(tiny_checkpoint, demo_dir, tmp_path):
    to = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    before = digests(to)
    with pytest.raises(
        CheckpointError, match=r"model is there already; --force replaces it, --to bakes to another folder$"
    ):
        bake(str(tiny_checkpoint), to, say=quiet)
    assert digests(to) == before
    bake(str(tiny_checkpoint), to, "fp32", force=True, say=quiet)
    assert Engine(to).manifest.source.id == str(tiny_checkpoint)
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["precious", "manifest.json"])
def test_force_replaces_no_folder_that_is_not_a_model_directory(name, tiny_checkpoint, tmp_path):
    to = tmp_path / "photos"
    to.mkdir()
    (to / name).write_text("x")
    (to / "precious").write_text("x")
    with pytest.raises(
        CheckpointError, match=r"photos is there and is no model directory; --force replaces only those"
    ):
        bake(str(tiny_checkpoint), to, force=True, say=quiet)
    assert (to / "precious").read_text() == "x"


def test_force_on_a_file_is_refused_with_a_sentence(tiny_checkpoint, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"file is there and is no model directory; --force replaces only those"):
        bake(str(tiny_checkpoint), tmp_path / "file", force=True, say=quiet)


@pytest.mark.parametrize("moment", ["before", "baking", "part"])
def test_an_interrupted_replacement_leaves_what_was_there(moment, tiny_checkpoint, demo_dir, tmp_path, monkeypatch):
    """The bake is interrupted at each of the three renames that replace a directory."""
    to = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    before, genuine, hit = digests(to), Path.rename, []

    def rename(self: Path, target: Path):
        moves = {"before": self == to, "baking": ".baking-" in self.name, "part": self.name.endswith(".part")}
        if moves[moment] and not hit:
            hit.append(1)
            raise KeyboardInterrupt
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        bake(str(tiny_checkpoint), to, force=True, say=quiet)
    assert hit
    assert digests(to) == before
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("replacing", [False, True])
def test_until_the_very_last_rename_nothing_new_opens(replacing, tiny_checkpoint, demo_dir, tmp_path, monkeypatch):
    """Before each rename, the state that a kill would leave is checked: the old model may open, the new one may not."""
    to, genuine, seen = tmp_path / "model", Path.rename, []
    if replacing:
        shutil.copytree(demo_dir, to)

    def rename(self: Path, target: Path):
        for manifest in tmp_path.rglob("manifest.json"):
            seen.append(Engine(manifest.parent).manifest.source.id)
        return genuine(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    bake(str(tiny_checkpoint), to, force=replacing, say=quiet)
    assert set(seen) == ({str(DEMO_CHECKPOINT)} if replacing else set())
    assert Engine(to).manifest.source.id == str(tiny_checkpoint)


def test_what_a_kill_between_the_last_renames_leaves_can_be_baked_again(tiny_checkpoint, tiny_dir, tmp_path):
    to = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    (to / "manifest.json").rename(to / "manifest.json.part")
    with pytest.raises(ModelDirError, match="no model directory that a bake finished"):
        Engine(to)
    bake(str(tiny_checkpoint), to, "fp32", force=True, say=quiet)
    Engine(to).embed_text(["a"])


def test_a_bake_that_fails_with_force_leaves_what_was_there(coarse, tiny_checkpoint, tiny_dir, tmp_path):
    to = Path(shutil.copytree(tiny_dir, tmp_path / "model"))
    before = digests(to)
    with pytest.raises(FidelityError):
        bake(str(tiny_checkpoint), to, "int8", force=True, say=quiet)
    assert digests(to) == before
    assert os.listdir(tmp_path) == ["model"]


BAKE_AND_END = """
import os, signal, sys
from pathlib import Path
from llm_clip_onnx.bake import bake
to, end_at, changes = Path(sys.argv[2]), int(sys.argv[3]), 0
def count(event, arguments):
    global changes
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in ("os.mkdir", "os.rename", "os.remove")) and str(arguments[0]).startswith(str(to.parent)):
        changes += 1
        if changes == end_at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(count)
bake(sys.argv[1], to, say=lambda line: None)
print(changes)
"""


def test_killed_at_any_moment_it_leaves_no_directory_that_opens(tiny_checkpoint, tmp_path):
    """The bake kills itself before its nth change of the file system: the first, the last, and some between."""

    def run(name: str, end_at: int) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            BAKE_AND_END,
            str(tiny_checkpoint),
            str(tmp_path / name / "model"),
            str(end_at),
        ]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True)

    changes = int(run("whole", 0).stdout)
    Engine(tmp_path / "whole" / "model").embed_text(["a"])
    assert changes > 8
    for end_at in sorted({*np.linspace(1, changes, 8).astype(int)}):
        assert run(f"{end_at}", end_at).returncode == -signal.SIGKILL
        for left in (tmp_path / f"{end_at}").glob("*"):
            with pytest.raises(ModelDirError, match="no model directory that a bake finished"):
                Engine(left)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda c: c.update(model_type="blip"),
            "config.json says 'blip'; only 'clip' and 'siglip', with both their towers, can be baked",
        ),
        (lambda c: (c.clear(), c.update(architectures=["BertModel"])), "config.json says 'BertModel'; only 'clip' and"),
        (
            lambda c: c["text_config"].update(hidden_act="relu"),
            'config.json\'s text_config says hidden_act "relu"; expected "quick_gelu" or "gelu"',
        ),
        (
            lambda c: c["text_config"].update(num_attention_heads=5),
            "config.json's text_config says hidden_size 64, no multiple of its num_attention_heads 5",
        ),
        (
            lambda c: c["vision_config"].update(num_channels=1),
            "config.json's vision_config says num_channels 1; expected 3",
        ),
        (
            lambda c: c.update(projection_dim=99),
            "tensor text_projection.weight is [512, 64], config.json makes it [99, 64]",
        ),
        (
            lambda c: c["text_config"].update(num_hidden_layers=3),
            "the weights have no tensor text_model.encoder.layers.2",
        ),
    ],
)
def test_what_is_no_clip_that_can_be_baked_is_refused_with_what_was_found(change, sentence, tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as raised:
        bake(str(folder), tmp_path / "model", say=quiet)
    assert sentence in str(raised.value)
    assert not (tmp_path / "model").exists()


def retold(folder: Path, part: str, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config[part] |= changes
    (folder / "config.json").write_text(json.dumps(config))


def reconfigured(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda f: (f / "config.json").unlink(), "there is no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights; expected model.safetensors"),
        (
            lambda f: os.truncate(f / "model.safetensors", 100_000),
            "the weights cannot be read, a file may be cut short",
        ),
        (lambda f: (f / "vocab.json").unlink(), "there is no tokenizer.json, and no vocab.json with merges.txt"),
        (
            lambda f: (f / "vocab.json").write_text('{"a": 0}'),
            "the tokenizer's vocabulary and merges do not fit: Error while initializing BPE: Token `i` out of",
        ),
        (lambda f: (f / "preprocessor_config.json").write_text('{"do_resize": false}'), "do_resize false"),
        (lambda f: (f / "preprocessor_config.json").write_text('{"crop_size": 300}'), "cropped to 300; expected"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json holds a JSON list; expected an object"),
        (lambda f: reconfigured(f, text_config="x"), 'config.json says text_config "x"; expected an object'),
        (
            lambda f: reconfigured(f, text_config={"num_attention_heads": 0}),
            "config.json's text_config says num_attention_heads 0; expected a whole number above 0",
        ),
        (
            lambda f: reconfigured(f, text_config={"layer_norm_eps": -1}),
            "config.json's text_config says layer_norm_eps -1; expected a number above 0",
        ),
        (
            lambda f: retold(f, "text_config", eos_token_id=5),
            "config.json's text_config says eos_token_id 5; expected <|endoftext|>, 49407, or the early checkpoints' 2",
        ),
        (
            lambda f: reconfigured(f, text_config={"eos_token_id": [1]}),
            "text_config says eos_token_id [1]; expected a whole number",
        ),
        (lambda f: (f / "vocab.json").write_text("[]"), "vocab.json holds a JSON list; expected an object"),
        (
            lambda f: (f / "preprocessor_config.json").write_text("[]"),
            "preprocessor_config.json holds a JSON list; expected an object",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"resample": 99}'),
            "says resample 99; expected the number of a filter, 0 to 5",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"image_std": [0, 1, 1]}'),
            "preprocessor_config.json says image_std [0, 1, 1]; expected three numbers above 0, or one for all channels",
        ),
        (
            lambda f: (f / "preprocessor_config.json").write_text('{"image_mean": [0, 1]}'),
            "preprocessor_config.json says image_mean [0, 1]; expected three numbers, or one for all channels",
        ),
        (
            lambda f: (f / "modules.json").write_text('[{"type": "x.Transformer"}, {"type": "x.Dense"}]'),
            "modules.json lists Transformer, Dense; expected CLIPModel alone",
        ),
        (lambda f: (f / "modules.json").write_text('[{"path": "../elsewhere"}]'), "points outside the checkpoint"),
    ],
)
def test_a_broken_checkpoint_is_refused_with_a_sentence(break_it, sentence, tiny_checkpoint, tmp_path):
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    break_it(folder)
    with pytest.raises(CheckpointError) as raised:
        bake(str(folder), tmp_path / "model", say=quiet)
    assert sentence in str(raised.value)
    assert str(raised.value).startswith(str(folder))


def test_both_layouts_shards_half_floats_and_tokenizer_json_give_the_same_towers(tiny_checkpoint, tiny_dir, tmp_path):
    """The other checkpoint has sentence-transformers' layout, shards of float16 and bfloat16, and a tokenizer.json."""
    import torch
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer

    inner = tmp_path / "st" / "0_CLIPModel"
    shutil.copytree(tiny_checkpoint, inner)
    (tmp_path / "st" / "modules.json").write_text(
        '[{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]'
    )
    tensors = load_file(inner / "model.safetensors")
    (inner / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": (names[::2], torch.float16), "b.safetensors": (names[1::2], torch.bfloat16)}
    for file, (some, kind) in parts.items():
        save_file({n: tensors[n].to(kind) for n in some}, inner / file)
    weight_map = {n: file for file, (some, _) in parts.items() for n in some}
    (inner / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    bpe: Tokenizer = open_tokenizer(inner / "vocab.json", inner / "merges.txt", 77)
    bpe.save(str(inner / "tokenizer.json"))
    for name in ("vocab.json", "merges.txt"):
        (inner / name).unlink()
    manifest = bake(str(tmp_path / "st"), tmp_path / "model", "fp32", say=quiet)
    assert manifest.source.weights_sha256.keys() == {"0_CLIPModel/a.safetensors", "0_CLIPModel/b.safetensors"}
    found, expected = Engine(tmp_path / "model").embed_text(WORDS), Engine(tiny_dir).embed_text(WORDS)
    assert min(map(cosine, found, expected)) > 0.9999  # bfloat16 keeps 8 bits of a weight
    assert (tmp_path / "model" / "merges.txt").read_bytes() == (tiny_dir / "merges.txt").read_bytes()


def test_pickled_weights_are_read_where_torch_is_and_named_where_it_is_not(
    tiny_checkpoint, tiny_dir, tmp_path, monkeypatch
):
    import torch
    from safetensors.torch import load_file

    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    bake(str(folder), tmp_path / "model", "fp32", say=quiet)
    assert (tmp_path / "model" / "text.bin").read_bytes() == (tiny_dir / "text.bin").read_bytes()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"the weights are in pytorch_model.bin, which only torch reads"):
        bake(str(folder), tmp_path / "again", say=quiet)


def test_nothing_of_the_baking_machine_is_in_the_graphs(tiny_checkpoint, tiny_dir):
    """The graphs have only operators of the ONNX standard and of onnxruntime's CPU provider, and no paths."""
    import onnx

    domains = set()
    for name in ("text.onnx", "image.onnx"):
        model = onnx.load(tiny_dir / name, load_external_data=False)
        domains |= {node.domain for node in model.graph.node}
        assert {node.op_type for node in model.graph.node} >= {
            "MultiHeadAttention",
            "SkipLayerNormalization",
            "QuickGelu",
        }
        layers = sum(node.op_type == "MultiHeadAttention" for node in model.graph.node)
        assert sum("qkv" in i for node in model.graph.node if node.op_type == "MatMul" for i in node.input) == layers
        assert str(tiny_checkpoint.parent).encode() not in (tiny_dir / name).read_bytes()
    assert domains == {"", "com.microsoft"}


def test_the_seconds_of_a_bake_count_from_the_start_of_its_process():
    """What `llm` imports before it calls the command takes many seconds where torch is among it."""
    code = "import time; time.sleep(1.1); from llm_clip_onnx.commands import timestamped_echo as e; e()('here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, said = done.stderr.strip().split(" s  ")
    assert float(seconds) >= 1
    assert said == "here"
