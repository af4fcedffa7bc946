"""The benches of a folder of photos make photos that differ, run commands as installed, and say what is missing."""

from __future__ import annotations

import io
import sys

import pytest
from PIL import Image

from bench.photos import beside_rclip, bulk, inputs


def test_photos_that_repeat_differ_as_files_and_are_jpegs(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "DIFFERENT", 2)
    files = sorted(inputs.write_photos(tmp_path / "photos", 1040, 80, 5).iterdir())
    contents = [file.read_bytes() for file in files]
    assert [Image.open(io.BytesIO(content)).size for content in contents] == 5 * [(1040, 80)]
    assert len({*contents}) == 5
    assert contents[2].startswith(contents[0])


def test_a_command_keeps_its_compiled_modules_and_a_failure_says_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    env = inputs.as_installed(tmp_path)
    figures, printed = inputs.run([sys.executable, "-c", "import this"], env)
    assert "Beautiful is better than ugly." in printed
    assert min(figures.values()) > 0
    assert list((tmp_path / "compiled").rglob("this.*.pyc"))
    with pytest.raises(RuntimeError, match=r"ended with 3: no photos$"):
        inputs.run([sys.executable, "-c", "import sys; print('no photos', file=sys.stderr); sys.exit(3)"], env)


def test_ours_are_measured_alone_where_rclip_is_not_installed(tiny_dir, tmp_path):
    for folder in beside_rclip.OURS.values():
        (tmp_path / folder).symlink_to(tiny_dir)
    photos = inputs.write_photos(tmp_path / "photos", 64, 48, 3)
    ours = [beside_rclip.Contestant(name, tmp_path) for name in beside_rclip.OURS]
    results = beside_rclip.measure_folder(ours, photos, 1)
    assert results["worst_cosine"] == pytest.approx(1)
    assert results["ratios"] == {}
    for figures in results["medians"].values():
        assert figures.keys() == beside_rclip.TITLES.keys()
        assert min(figures.values()) > 0
    size = {"width": 64, "height": 48, "count": 3}
    facts = {"date": "today", "command": "python -m bench", "machine": {"cpu": "a", "cpu_flags": "b", "cores": 2}}
    facts["machine"]["load_average_at_start"] = 0.1
    more = {
        "why": {"rclip": "not installed"},
        "model": "tiny",
        "rounds": 1,
        "small": size | results,
        "large": size | results,
    }
    assert "\nrclip: not installed\n" in beside_rclip.table(facts | more)


def with_made_times(embed):
    """The genuine `embed` with made times: beyond the start, half a second a photo, and a quarter of CPU."""

    def embed_with_made_times(self, photos):
        count = len(list(photos.iterdir()))
        return embed(self, photos) | {"wall_s": 1 + count / 2, "cpu_s": 2 + count / 4}

    return embed_with_made_times


def test_photos_a_second_are_those_beyond_the_start_and_a_peer_that_fails_is_named(tiny_dir, tmp_path, monkeypatch):
    for folder in bulk.OURS.values():
        (tmp_path / folder).symlink_to(tiny_dir)
    monkeypatch.setitem(bulk.PEERS, "rclip", "/bin/false")
    monkeypatch.setattr(bulk, "FEW", 2)
    few, photos = (inputs.write_photos(tmp_path / f"photos{n}", 64, 48, n) for n in (2, 12))
    monkeypatch.setattr(bulk.Contestant, "embed", with_made_times(bulk.Contestant.embed))
    contestants = [bulk.Contestant(name, tmp_path) for name in (*bulk.OURS, "rclip")]
    results = bulk.measure_folder(contestants, few, photos, 1, cores=2)
    assert results["why"] == {"rclip": "false ended with 1: "}
    assert results["medians"].keys() == bulk.OURS.keys()
    figures = results["medians"]["ours"]
    assert figures.keys() == bulk.TITLES.keys()
    assert (figures["per_s"], figures["cpu_ms"], figures["busy_percent"]) == pytest.approx((2, 250, 25))
    assert (figures["wall_s"], figures["few_wall_s"]) == (7, 2)
    assert results["worst_cosine"] == pytest.approx(1)
    steps_ms = bulk.steps_of(photos, contestants[0])
    assert steps_ms.keys() == bulk.STEPS.keys()
    assert min(steps_ms.values()) > 0
    folder = {"width": 64, "height": 48, "count": 12, "steps_ms": steps_ms} | results
    machine = {"cpu": "a", "cpu_flags": "b", "cores": 2, "load_average_at_start": 0.1}
    facts = {"date": "today", "command": "python -m bench", "machine": machine, "model": "tiny", "rounds": 1}
    lines = bulk.table(facts | {"why": results["why"], "small": folder, "large": folder}).splitlines()
    assert "rclip: false ended with 1: " in lines
    assert lines[1].startswith("photos a second ")


def test_embeddings_of_another_model_are_no_peers(tiny_dir, demo_dir, tmp_path):
    for folder, model in zip(bulk.OURS.values(), (tiny_dir, demo_dir)):
        (tmp_path / folder).symlink_to(model)
    photos = inputs.write_photos(tmp_path / "photos", 64, 48, 2)
    contestants = [bulk.Contestant(name, tmp_path) for name in bulk.OURS]
    for one in contestants:
        one.embed(photos)
    with pytest.raises(RuntimeError, match=r"^ours, float32: cosine -?0\.\d+ to ours of one photo, expected 0\.98$"):
        bulk.checked_cosine(contestants)
