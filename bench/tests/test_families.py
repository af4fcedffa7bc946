"""Each family is measured beside its library, and a row that embeds something else is an error."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import replace

import pytest

from bench.embedding import families, family_embedders, peers
from random_checkpoint import TINY, write_checkpoint
from siglip_checkpoint import write_siglip
from text_tower_checkpoint import TINY as TINY_TEXT
from text_tower_checkpoint import write_text_tower

OPTIONS = argparse.Namespace(rounds=2, starts=1)
FACTS = {"machine": {"cpu": "a", "cpu_flags": "b", "cores": 2, "load_average_at_start": 0.1}, "date": "today"}


def write_tiny_multilingual(folder) -> None:
    write_text_tower(folder / "checkpoint", TINY_TEXT)
    write_checkpoint(folder / "images", **TINY)


@pytest.mark.parametrize("family", ["multilingual", "siglip2"])
def test_a_family_is_measured_and_agrees_with_its_library(family, tmp_path, monkeypatch):
    tiny = {"multilingual": write_tiny_multilingual, "siglip2": lambda to: write_siglip(to / "checkpoint", 2)}
    monkeypatch.setitem(families.FAMILIES, family, tiny[family])
    measured = families.measure_family(family, tmp_path / family, OPTIONS)
    assert [*measured["peers"]] == ["ours", "ours, float32", family_embedders.LIBRARIES[family].name]
    for name, figures in measured["peers"].items():
        assert "why" not in figures, figures
        expected = {"text_ms", "start_s", "text_peak_mb", "text_cosine"}
        expected |= {"image_ms", "peak_mb", "image_cosine"} if family == "siglip2" else set()
        assert figures.keys() - {"start_cpu_s", "measured"} == expected, name
    assert measured["peers"]["ours, float32"]["text_cosine"] == pytest.approx(1, abs=1e-5)
    assert measured["precision"].keys() == {"text", "image"}
    results = FACTS | {"rounds": 2, "starts": 1, "command": "python -m a", "families": {family: measured}}
    lines = families.table(results).splitlines()
    assert lines[0].startswith(f"{family}  ")
    assert lines[1].startswith("ours  ")


def test_a_row_of_other_embeddings_is_an_error(tmp_path, monkeypatch):
    """The library reads another checkpoint than the one that was baked."""

    def write(folder) -> None:
        write_tiny_multilingual(folder)
        monkeypatch.setattr(peers, "build", build_and_change)

    def build_and_change(peer, place) -> None:
        genuine(peer, place)
        write_text_tower(place / "checkpoint", TINY_TEXT, seed=9)

    genuine = peers.build
    monkeypatch.setitem(families.FAMILIES, "multilingual", write)
    only_ours = [replace(peer) for peer in family_embedders.peers_of("multilingual") if peer.name != "ours, float32"]
    monkeypatch.setattr(families, "peers_of", lambda family: only_ours)
    measured = families.measure_family("multilingual", tmp_path / "multilingual", OPTIONS)
    assert measured["peers"]["ours"].keys() == {"why", "measured"}
    assert measured["peers"]["ours"]["why"].endswith("to sentence-transformers, expected 0.98 or more")
    assert "text_ms" in measured["peers"]["sentence-transformers"]


def test_an_unknown_family_is_refused():
    done = subprocess.run(
        [sys.executable, "-m", "bench.embedding.families", "--only", "siglip3"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "--only siglip3: there are open_clip, multilingual, siglip, siglip2\n"
