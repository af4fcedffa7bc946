"""The benches of a folder of photos make photos that differ, run commands as installed, and say what is missing."""

from __future__ import annotations

import io
import sys

import pytest
from PIL import Image

from bench.photos import beside_rclip, inputs


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
