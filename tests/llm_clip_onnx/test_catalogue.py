"""The catalogue's ids, hub ids and figures are what the command and the manual show, and name one model each."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest

import facts
from conftest import ROOT
from llm_clip_onnx import measured
from llm_clip_onnx.bake import bake
from llm_clip_onnx.bake.families.text_tower import IMAGES
from llm_clip_onnx.catalogue import CATALOGUE, entry_of, published_lines
from llm_clip_onnx.errors import CheckpointError
from llm_clip_onnx.model_dir import read_manifest
from serving import environment, run_llm

IDS = [entry.id for entry in CATALOGUE]


@pytest.fixture
def env(tmp_path):
    return environment(tmp_path / "llm")


def test_each_id_and_each_source_names_one_entry():
    assert len(set(IDS)) == len({entry.source for entry in CATALOGUE}) == len(CATALOGUE)
    for entry in CATALOGUE:
        assert entry_of(entry.id) is entry_of(entry.source) is entry
        assert re.fullmatch("[a-z0-9-]+", entry.id)
        assert entry.vectors in IDS
    assert (IDS[0], CATALOGUE[0].source) == ("clip", "sentence-transformers/clip-ViT-B-32")
    assert entry_of("owner/name") is None


def test_the_multilingual_text_tower_searches_the_vectors_of_clip():
    entry = entry_of("multilingual")
    assert entry
    assert (entry.images, entry.vectors) == (CATALOGUE[0].source, "clip")
    assert entry.images == IMAGES  # what a bake of its hub id takes without --images
    assert entry.cells()["hub id"] == f"{entry.source} + {entry.images}"


def test_the_command_shows_every_entry_with_its_figures(env):
    printed = run_llm("clip", "models", env=env).stdout
    lines = printed.splitlines()
    assert [line.split()[0] for line in lines[1 : 1 + len(IDS)]] == IDS
    line = next(line for line in lines if line.startswith("datacomp-b32-256 "))
    assert re.search(r"CLIP +MIT +English +72.8 +39.9 / 57.9 .*laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K$", line)
    assert printed.endswith("\n".join([*published_lines(), ""]))


def test_the_command_says_the_same_as_json(env):
    told = json.loads(run_llm("clip", "models", "--json", env=env).stdout)
    assert told == [entry.to_dict() for entry in CATALOGUE]
    assert (told[3]["imagenet"], told[3]["coco_image"], told[3]["coco_text"]) == (72.8, 39.9, 57.9)


def test_the_manual_shows_the_same_cells_as_the_command():
    """cog writes them; this fails where the page was not written anew."""
    page = (ROOT / "docs" / "models.md").read_text()
    for entry in CATALOGUE:
        rows = [line for line in page.splitlines() if line.startswith(f"| `{entry.id}` |")]
        assert [cell.strip("` ") for cell in rows[0].split("|")[2:-1]] == [*entry.cells().values()][1:]


def test_every_published_figure_has_its_source():
    told = "\n".join(published_lines())
    assert [e.id for e in CATALOGUE if e.published and f"{e.published}: " in told and e.id in told] == [
        e.id for e in CATALOGUE if e.imagenet or e.coco_image or e.coco_text
    ]


def test_an_entry_shows_what_it_takes_here_and_nothing_where_it_was_not_measured(monkeypatch):
    found = measured.Figures(text_ms=3.44, image_ms=16.2, text_mb=173.6, peak_mb=287.2)
    monkeypatch.setattr(measured, "figures", lambda: {"clip": found})
    clip, laion = CATALOGUE[:2]
    assert (clip.cells()["ms"], clip.cells()["MB"]) == ("3.4 / 16.2", "174 / 287")
    assert (laion.cells()["ms"], laion.cells()["MB"]) == ("", "")
    figures = {"text_ms": 3.44, "image_ms": 16.2, "text_mb": 173.6, "peak_mb": 287.2}
    assert (clip.to_dict()["measured"], laion.to_dict()["measured"]) == (figures, None)
    head, _, clip_row, laion_row = facts.machines().splitlines()[:4]
    assert head == "| model | texts | texts and images |"
    assert clip_row == "| `clip` | 174 MB: 256 MB | 287 MB: 512 MB |"
    assert laion_row == "| `laion2b-b32` |  |  |"


@pytest.mark.parametrize(
    ("mb", "expected"), [(204, "256 MB"), (205, "512 MB"), (500, "1 GB"), (1638, "2 GB"), (1639, "more")]
)
def test_a_machine_has_a_fifth_of_its_memory_left(mb, expected):
    assert measured.machine(mb) == expected


def test_a_name_that_nothing_has_is_refused_with_the_ids(env, tmp_path):
    done = run_llm("clip", "bake", "datacomp", "--to", str(tmp_path / "model"), env=env, ok=False)
    assert done.stderr == (
        "Error: 'datacomp' is no model of the catalogue, no folder that is there, and no hub id such as owner/name; "
        f"the catalogue has {', '.join(IDS)}\n"
    )


def test_a_folder_is_baked_by_its_path_even_where_an_entry_has_its_name(tiny_checkpoint, tmp_path, monkeypatch, env):
    monkeypatch.chdir(tmp_path)
    for path in ("clip", "openai/clip-vit-base-patch16", "other"):
        shutil.copytree(tiny_checkpoint, path, copy_function=os.link)
    assert entry_of("clip") is CATALOGUE[0]
    for source in ("./clip", "openai/clip-vit-base-patch16", "other"):
        assert entry_of(source) is None
    bake("./clip", Path("model"), "fp32", say=lambda line: None)
    manifest = read_manifest(Path("model"))
    assert (manifest.id, manifest.source.id) == (None, "./clip")
    assert "model id" not in run_llm("clip", "info", "model", env=env).stdout


def test_info_shows_the_id(demo_dir, tmp_path, env):
    model = shutil.copytree(demo_dir, tmp_path / "model")
    facts = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(facts | {"id": "datacomp-b32"}))
    assert re.search("^model id +datacomp-b32$", run_llm("clip", "info", str(model), env=env).stdout, re.MULTILINE)


def test_a_revision_goes_with_the_hub_and_not_with_a_folder(tiny_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="--revision v1 goes with a hub id"):
        bake(str(tiny_checkpoint), tmp_path / "model", revision="v1", say=lambda line: None)
