"""/-/clip and /-/clip.json show the model or why there is none. A server without a model still serves its pages."""

from __future__ import annotations

import asyncio
import html
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import click
import pytest
from datasette.app import Datasette

from datasette_clip.model import text_opening
from llm_clip_onnx import model_dir
from patience import PATIENCE_S
from serving import environment

LOST = """
create table collections (id integer primary key, name text, model text);
create table embeddings (collection_id integer, id text, embedding blob, primary key (collection_id, id));
insert into collections values (1, 'photos', 'ada-002');
"""
# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def fresh_opening():
    """No tower has begun to open, as in a new process."""
    text_opening.cache_clear()
    yield
    text_opening.cache_clear()


def get(datasette: Datasette, path: str, **options):
    async def request():
        return await datasette.client.get(path, **options)

    return asyncio.run(request())


@pytest.fixture
def datasette(demo_dir, monkeypatch, fresh_opening) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette(memory=True, cors=True)


def test_the_json_gives_the_manifest_and_what_is_open(datasette, demo_dir):
    get(datasette, "/_memory.json?sql=select+llm_embed('clip','no+text+that+was+seen+before')")
    response = get(datasette, "/-/clip.json")
    facts = response.json()
    manifest = json.loads((demo_dir / "manifest.json").read_text())
    assert manifest.items() <= facts.items()
    assert (facts["ok"], facts["ready"], facts["why_not"], facts["models"]) == (True, True, None, ["clip"])
    assert "text" in facts["open_towers"]
    assert response.headers["access-control-allow-origin"] == "*"


@pytest.fixture
def catalogued(demo_dir, tmp_path, monkeypatch, fresh_opening) -> Datasette:
    """A Datasette whose one model directory has an id in the catalogue, which alone is on the list of models."""
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"id": "it's-b32"}))
    monkeypatch.setenv("CLIP_MODEL_DIR", str(path))
    return Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"models": ["it's-b32"]}}})


def test_the_one_model_answers_by_its_id_in_the_catalogue_alone(catalogued):
    assert get(catalogued, "/-/clip/embed.json?text=red").json()["model"] == "it's-b32"
    assert get(catalogued, "/-/clip/embed.json?text=red&model=clip").status_code == 400
    page = html.unescape(get(catalogued, "/-/clip").text)
    assert "The model <code>it's-b32</code> is <strong>ready</strong>" in page
    assert "select hex(llm_embed('it''s-b32', :q)) as x" in page
    url = re.search(r'href="[^"]*?(/_memory[^"]*\.json\?[^"]*)">as JSON', page)[1]
    assert len(get(catalogued, url).json()[0]["x"]) == 2 * 2048


def test_a_list_of_models_without_clip_hides_it_and_what_is_wrong_with_it(
    demo_dir, tiny_dir, tmp_path, monkeypatch, fresh_opening
):
    for name, directory in (("clip", demo_dir), ("tiny", tiny_dir)):
        shutil.copytree(directory, tmp_path / "models" / name)
    (tmp_path / "models" / "clip" / "text.bin").unlink()
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "models"))
    with sqlite3.connect(tmp_path / "lost.db") as connection:
        connection.executescript(LOST)
    datasette = Datasette([str(tmp_path / "lost.db")], metadata={"plugins": {"datasette-clip": {"models": ["tiny"]}}})
    get(datasette, "/lost.json?sql=select+1")  # waits until the towers that start with Datasette are open
    facts = get(datasette, "/-/clip.json").json()
    assert (facts["ready"], facts["why_not"], facts["models"]) == (True, None, ["tiny"])
    assert facts["source"] == json.loads((tiny_dir / "manifest.json").read_text())["source"]
    assert get(datasette, "/-/clip/health").status_code == 200
    assert get(datasette, "/-/clip/search/lost/photos.json?q=red").json()["error"] == (
        "collection 'photos' holds vectors of model 'ada-002', which is not here; there is 'tiny'"
    )


def test_there_is_no_cors_header_unless_datasette_is_told_so(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    assert "access-control-allow-origin" not in get(Datasette(memory=True), "/-/clip.json").headers


def test_the_page_shows_the_facts_and_links_that_work_on_this_very_instance(datasette, demo_dir):
    get(datasette, "/_memory.json?sql=select+1")
    page = get(datasette, "/-/clip", headers={"host": "clip.example"}).text
    manifest = model_dir.read_manifest(demo_dir)
    assert "is <strong>ready</strong>" in page
    for fact in (
        *manifest.source.weights_sha256.values(),
        *(f.sha256 for f in manifest.files.values()),
        "int8",
        manifest.baked_at,
    ):
        assert fact in page
    links = [html.unescape(link) for link in re.findall(r'href="([^"]+)"', page)]
    queries = [link for link in links if "sql=" in link]
    assert len(queries) == 2
    for link in queries:
        response = get(datasette, link.replace("http://clip.example", ""))
        assert response.status_code == 200
        assert re.search(r"[0-9A-F]{2000}", response.text)  # pages truncate long cells
    assert any(link.startswith("http://clip.example/_memory.json?sql=") for link in queries)
    assert "const embedding = new Float32Array(bytes.buffer);" in page


def test_the_menu_of_every_page_leads_there(datasette):
    assert 'href="/-/clip"' in get(datasette, "/").text


def test_a_checkpoint_with_a_notice_says_it_in_plain_words(datasette):
    assert "This is the demo model" in get(datasette, "/-/clip").text


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (shutil.rmtree, "there is no model directory; make one with `llm clip bake --to "),
        (
            lambda path: (path / "text.bin").write_bytes(bytes((path / "text.bin").stat().st_size)),
            "the file is damaged; bake again",
        ),
    ],
)
def test_without_a_sound_model_the_server_starts_says_why_and_serves_its_pages(
    break_it, sentence, demo_dir, tmp_path, monkeypatch, fresh_opening
):
    path = Path(shutil.copytree(demo_dir, tmp_path / "model"))
    break_it(path)
    monkeypatch.setenv("CLIP_MODEL_DIR", str(path))
    datasette = Datasette(memory=True)
    assert get(datasette, "/_memory.json?sql=select+1+as+one&_shape=array").json() == [{"one": 1}]
    facts = get(datasette, "/-/clip.json").json()
    assert facts["ready"] is False
    assert sentence in facts["why_not"]
    assert sentence in html.unescape(get(datasette, "/-/clip").text)
    assert get(datasette, "/_memory.json?sql=select+llm_embed('clip','a')").status_code == 400
    assert get(datasette, "/_memory").status_code == 200


def test_a_model_baked_while_the_server_runs_is_found(demo_dir, tmp_path, monkeypatch, fresh_opening):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "model"))
    datasette = Datasette(memory=True)
    get(datasette, "/_memory.json?sql=select+1")
    assert "there is no model directory" in get(datasette, "/-/clip.json").json()["why_not"]
    shutil.copytree(demo_dir, tmp_path / "model")
    facts = get(datasette, "/-/clip.json").json()
    assert (facts["ready"], facts["why_not"], facts["open_towers"]) == (True, None, ["text"])


@pytest.mark.parametrize(
    "metadata",
    [
        {"allow_sql": False},
        {"databases": {"_memory": {"allow_sql": False}}},
        {"plugins": {"datasette-clip": {"models": ["x"]}}},
    ],
)
def test_no_example_is_shown_to_an_actor_who_may_not_run_it(metadata, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    assert "sql=" not in get(Datasette(memory=True, metadata=metadata), "/-/clip").text


def test_a_private_instance_shows_its_model_to_nobody(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"allow": {"id": "root"}})
    assert get(datasette, "/-/clip").status_code == 403
    assert get(datasette, "/-/clip.json").status_code == 403


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"modles": ["clip"]},
            "plugins.datasette-clip.modles is not a key of this plugin; expected models, collections, limits",
        ),
        (
            {"models": "clip"},
            "plugins.datasette-clip.models is 'clip'; expected a list of model ids such as [\"clip\"]",
        ),
        ({"models": []}, 'plugins.datasette-clip.models is []; expected a list of model ids such as ["clip"]'),
        ({"models": [3]}, 'plugins.datasette-clip.models is [3]; expected a list of model ids such as ["clip"]'),
        (
            ["clip"],
            "plugins.datasette-clip is list; expected an object with models, collections, limits",
        ),
        (
            {"limits": {"item": 3}},
            "plugins.datasette-clip.limits.item is not a key of this plugin; expected embedding, items, inputs, prompts, text_bytes, models_bytes",
        ),
        (
            {"limits": {"items": 0}},
            "plugins.datasette-clip.limits.items is 0; expected a whole number from 1 to 2147483647",
        ),
        (
            {"limits": {"requests": 3}},
            "plugins.datasette-clip.limits.requests has moved: write it as plugins.datasette-guard.limits.requests",
        ),
        ({"suspend": True}, "plugins.datasette-clip.suspend has moved: write it as plugins.datasette-guard.suspend"),
    ],
)
def test_bad_configuration_stops_the_start_with_a_sentence_naming_the_key(config, sentence):
    with pytest.raises(click.ClickException) as raised:
        get(Datasette(memory=True, metadata={"plugins": {"datasette-clip": config}}), "/")
    assert raised.value.message == sentence


def test_requests_that_may_run_sql_wait_outside_it_until_the_tower_is_open(datasette, monkeypatch):
    tower: Future = Future()
    monkeypatch.setattr("datasette_clip.model.text_opening", lambda: tower)

    async def both():
        query = asyncio.ensure_future(datasette.client.get("/_memory.json?sql=select+1+as+one&_shape=array"))
        facts = (await datasette.client.get("/-/versions.json")).status_code
        await asyncio.sleep(0.2)
        waiting = not query.done()
        tower.set_result(None)
        return facts, waiting, (await query).json()

    assert asyncio.run(both()) == (200, True, [{"one": 1}])


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (["x"], "plugins.datasette-llm-embed.keys is no object; expected model ids and their keys"),
        ({"keys": ["x"]}, "plugins.datasette-llm-embed.keys is no object; expected model ids and their keys"),
        ({"keys": {"x": 3}}, "plugins.datasette-llm-embed.keys.x is no string; expected the key of that model"),
    ],
)
def test_keys_that_cannot_be_used_stop_the_start_too(config, sentence):
    with pytest.raises(click.ClickException) as raised:
        get(Datasette(memory=True, metadata={"plugins": {"datasette-llm-embed": config}}), "/")
    assert raised.value.message == sentence


def test_a_key_in_an_environment_variable_that_is_not_set_stops_nothing(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    keys = {"keys": {"x": {"$env": "NO_SUCH_VARIABLE"}}}
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-llm-embed": keys}})
    get(datasette, "/_memory.json?sql=select+1")  # waits until the tower is open
    assert get(datasette, "/-/clip.json").json()["ready"] is True


NO_ONNXRUNTIME = """
import asyncio, sys
sys.modules["onnxruntime"] = None
from datasette.app import Datasette
async def main():
    datasette = Datasette(memory=True)
    for path in ("/-/versions.json", "/-/clip", "/-/clip.json"):
        response = await datasette.client.get(path)
        print(response.status_code)
    print(response.json()["ready"], response.json()["why_not"])
asyncio.run(main())
"""


@pytest.mark.long
def test_where_onnxruntime_cannot_be_imported_the_page_says_so(demo_dir, tmp_path):
    env = environment(tmp_path, CLIP_MODEL_DIR=str(demo_dir))
    done = subprocess.run(
        [sys.executable, "-c", NO_ONNXRUNTIME], env=env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["200"] * 3, done.stderr
    assert lines[3].startswith("False ")
    assert "onnxruntime" in lines[3]
