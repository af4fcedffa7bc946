"""Every model of the catalogue has a shape that is measured, and results are kept shape by shape."""

from __future__ import annotations

import argparse
import copy

import pytest

from bench.embedding import models, shapes
from bench.harness import tables
from bench.harness.command import machine
from llm_clip_onnx import measured
from llm_clip_onnx.bake import bake
from llm_clip_onnx.catalogue import CATALOGUE
from llm_clip_onnx.model_dir import read_manifest
from random_checkpoint import SMALL, TINY, write_checkpoint
from siglip_checkpoint import write_siglip

FAMILIES = {"CLIP": ("ViT", "TinyCLIP"), "DistilBERT text": "DistilBERT", "SigLIP 2": "SigLIP2"}


def test_every_entry_of_the_catalogue_has_a_shape_of_its_family_that_can_be_written():
    assert [*shapes.SHAPE_OF] == [entry.id for entry in CATALOGUE]
    assert {*shapes.SHAPE_OF.values()} == {*shapes.WRITERS}
    for entry in CATALOGUE:
        assert shapes.SHAPE_OF[entry.id].startswith(FAMILIES[entry.family])


def test_the_catalogue_has_the_figures_of_the_kept_results():
    """`python -m bench.harness.tables` writes them."""
    assert measured.FILE.read_text() == tables.catalogue_figures()
    assert measured.figures().keys() == ({*shapes.SHAPE_OF} if "models" in tables.results_of("embedding") else set())


@pytest.mark.parametrize(
    ("write", "ids"),
    [(lambda folder: write_checkpoint(folder, **SMALL), 7), (lambda folder: write_siglip(folder, 2), 64)],
)
def test_a_text_has_as_many_ids_as_its_family_gives_it(write, ids, tmp_path):
    bake(str(write(tmp_path / "checkpoint")), tmp_path / "model", "fp32", say=lambda line: None)
    assert models.ids_of_a_text(read_manifest(tmp_path / "model")) == ids


def test_a_run_that_is_ended_keeps_the_shapes_that_it_has_measured(tmp_path, monkeypatch):
    """The checkpoints are tiny ones; the bake, the server and the child are those of every run."""

    def write(folder, shape):
        if shape == "ViT-B-16":
            raise KeyboardInterrupt
        return [str(write_checkpoint(folder, **TINY))]

    kept = []
    monkeypatch.setattr(models, "write_checkpoint", write)
    options = argparse.Namespace(
        shapes=["ViT-B-32", "ViT-B-16"], rounds=2, keep=lambda found: kept.append(copy.deepcopy(found))
    )
    with pytest.raises(KeyboardInterrupt):
        models.measure(tmp_path, options)
    [results] = kept
    assert [*results["shapes"]] == ["ViT-B-32"]
    figures = results["shapes"]["ViT-B-32"]
    assert len(figures["turns"]) == 1
    assert all(figures[figure] > 0 for figure in models.COLUMNS)
    assert models.measured(results).keys() == {"clip", "laion2b-b32", "datacomp-b32"}
    assert models.measured(results)["clip"]["peak_mb"] == round(figures["peak_mb"], 1)
    printed = models.table(results | {"date": "", "command": "", "machine": machine()})
    assert "clip, laion2b-b32, datacomp-b32" in printed
