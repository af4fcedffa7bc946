"""A new user with a folder of photos and a baked model finds and opens the right one after one command."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from browser import chromium, new_context
from conftest import ROOT
from first_mile import WAYS, walk
from made_photos import fill_folder
from running_serve import serve
from serving import environment

COUNT = 200
LABELS = ("red heart", "grinning cat", "sailboat")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of 200 pictures, of which the newest are emoji, each named by what it shows."""
    folder = fill_folder(tmp_path_factory.mktemp("mile") / "Pictures", COUNT - len(LABELS))
    for number in range(COUNT - len(LABELS)):
        os.utime(folder / f"{number}.jpg", (number, number))
    with closing(sqlite3.connect(ROOT / "demo/emoji.db")) as conn:
        for label in LABELS:
            [(image,)] = conn.execute("select image from emoji where label = ? limit 1", [label])
            (folder / f"{label}.png").write_bytes(image)
    return folder


@chromium
@pytest.mark.parametrize("way", WAYS)
def test_one_command_leads_from_a_folder_to_the_right_photo_large(way, photos, chromium_process, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    errors: list[str] = []
    with (
        serve(photos, env=env, output=tmp_path / "out") as running,
        new_context(chromium_process, **WAYS[way]) as context,
    ):
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        assert walk(page, running.url, "a red heart") == ("red heart.png", "red heart.png")
        original = httpx.URL(page.url).join(page.get_attribute(".clip-stage img", "src"))
        assert httpx.get(original).content == (photos / "red heart.png").read_bytes()
        running.prints(f"{COUNT} photos can be searched")
        assert walk(page, running.url, "a sailboat") == ("sailboat.png", "sailboat.png")
        assert running.end() == 0
    assert errors == []
