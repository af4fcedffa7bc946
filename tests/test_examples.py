"""Each example runs against a server of the demo model, with six pictures of its collection."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys

import pytest

from conftest import ROOT
from llm_clip_onnx.engine import Engine
from search_recall import collection
from serving import environment, serving

LABELS = ["cherries", "red apple", "banana", "police car", "blue heart", "dolphin"]
LLMS_TABLES = """
create table collections (id integer primary key, name text, model text);
create table embeddings (collection_id integer, id text, embedding blob, primary key (collection_id, id));
insert into collections values (1, 'emoji', 'clip');
"""


@pytest.fixture(scope="module")
def url(demo_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    images = dict(zip(*collection()))
    embeddings = Engine(demo_dir).embed_images([images[label] for label in LABELS])
    with sqlite3.connect(folder / "emoji.db") as connection:
        connection.executescript(LLMS_TABLES)
        rows = [(label, embedding.tobytes()) for label, embedding in zip(LABELS, embeddings)]
        connection.executemany("insert into embeddings values (1, ?, ?)", rows)
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(folder / "emoji.db"), env=env, log=folder / "log") as address:
        yield address


def run(*command: str, **env: str) -> str:
    return subprocess.run(command, cwd=ROOT, env=os.environ | env, check=True, capture_output=True, text=True).stdout


def test_search_finds_the_pictures_most_like_a_text(url):
    results = json.loads(run("sh", "examples/search.sh", "red apple", url))["results"]
    assert results[0]["id"] == "red apple"
    assert len(results) == 5


def test_closest_ranks_texts(url):
    lines = run(sys.executable, "examples/closest.py", "red apple", "police car", "an apple", CLIP_URL=url).splitlines()
    assert [line.split(maxsplit=1)[1] for line in lines] == ["an apple", "police car"]


def test_the_page_names_every_example():
    named = set(re.findall(r"examples/(\S+?) ", (ROOT / "examples/README.md").read_text()))
    assert named == {path.name for path in (ROOT / "examples").iterdir()} - {"README.md", "__pycache__"}
