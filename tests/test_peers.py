"""bench/peers.py measures for real what is installed here, and says of what is not why it did not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import psutil
import pytest

from conftest import ROOT
from patience import PATIENCE_S, has_ended, until
from random_checkpoint import TINY, write_checkpoint

RUN = [sys.executable, str(ROOT / "bench" / "peers.py"), "--starts", "1", "--rounds", "2", "--array-mb", "8"]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "plugins"), str(ROOT / "bench")])}


@pytest.fixture
def checkpoint(tmp_path):
    return write_checkpoint(tmp_path / "tiny", **TINY)


def test_peers_are_measured_and_agree(checkpoint, tmp_path):
    import peers

    to = tmp_path / "peers.json"
    only = ["--only", "ours", "sentence-transformers", "faster-clip"]
    done = subprocess.run(
        [*RUN, "--checkpoint", str(checkpoint), *only, "--to", str(to)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(to.read_text())
    for name in ("ours", "ours, float32", "sentence-transformers"):
        figures = found["peers"][name]
        assert figures.keys() >= peers.COLUMNS.keys(), name
        assert min(figures["text_cosine"], figures["image_cosine"]) > 0.99, name
        assert len(figures["measured"]["text_ms"]) == 2 * peers.TEXTS_A_TURN
    # Of texts it has another model; of images none where it is not installed, or none of this size.
    assert "text_ms" not in found["peers"]["faster-clip"]
    assert found["peers"]["faster-clip"]["why"] in done.stdout
    bound = found["bound"]
    assert bound["ratio"]["1"] == pytest.approx(bound["tower_ms"]["1"]["7"] / bound["least_ms"]["1"])
    assert done.stdout == peers.table(found) + "\n"


def test_the_weights_a_text_must_touch_are_those_of_its_layers(demo_dir):
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    import peers
    from embedders import text_graph

    graph = text_graph(demo_dir)
    weights, a_row = peers.weights_bytes(graph)
    model = onnx.load(graph, load_external_data=False)
    load_external_data_for_model(model, str(demo_dir))
    tensors = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    tables = [name for name in tensors if name.startswith(("token_table", "positions"))]
    assert weights == sum(tensor.nbytes for name, tensor in tensors.items() if name not in tables)
    assert a_row == sum(tensors[name][0].nbytes for name in tables)


@pytest.mark.parametrize("signed", [True, False])
def test_the_text_tower_that_is_timed_is_the_one_a_server_opens(signed, demo_dir, monkeypatch):
    from embedders import text_graph
    from llm_clip_onnx import engine

    opened = []
    monkeypatch.setattr(engine.towers, "multiplies_signed", lambda probe: signed)
    monkeypatch.setattr(engine.towers, "open_tower", lambda graph, threads, **more: opened.append(graph))
    engine.Engine(demo_dir).open_text()
    assert opened == [text_graph(demo_dir)]


def test_nothing_is_left_running_when_it_is_ended(checkpoint, tmp_path):
    only = ["--only", "sentence-transformers", "--to", str(tmp_path / "peers.json")]
    bench = psutil.Popen([*RUN, "--checkpoint", str(checkpoint), *only], env=environment(), stderr=subprocess.DEVNULL)
    until(lambda: any("serve" in command_of(child) for child in bench.children()))
    children = bench.children(recursive=True)
    bench.terminate()
    assert bench.wait(PATIENCE_S) == 143
    until(lambda: all(map(has_ended, children)))


def command_of(process: psutil.Process) -> list[str]:
    """The command line of a process, empty if it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def test_openais_layout_is_the_one_the_towers_are_written_for():
    """q, k and v are one matrix, in this order, and the projections multiply from the right."""
    from embedders import openai_tensors

    q, k, v, projection = (np.full((2, 2), n, np.float32) for n in (1, 2, 3, 4))
    projection[0, 1] = 5
    layer = "text_model.encoder.layers.3.self_attn"
    tensors = {f"{layer}.{name}_proj.weight": value for name, value in (("k", k), ("v", v), ("q", q))}
    tensors |= {"text_projection.weight": projection, "visual_projection.weight": projection}
    tensors |= {"logit_scale": np.float32(4), "vision_model.pre_layrnorm.weight": v}
    found = openai_tensors(tensors, np.concatenate, np.transpose)
    assert found.keys() == {
        *("logit_scale", "text_projection", "visual.proj", "visual.ln_pre.weight"),
        "transformer.resblocks.3.attn.in_proj_weight",
    }
    assert found["transformer.resblocks.3.attn.in_proj_weight"].tolist() == np.concatenate([q, k, v]).tolist()
    assert found["text_projection"][1, 0] == 5
