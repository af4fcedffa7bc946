"""The home page: a box that searches, pictures, ways in, databases without internal tables, and only what one may see."""

from __future__ import annotations

import html
import json
import re
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
from datasette.app import Datasette
from datasette.utils import tilde_encode

from clip_collections.collection import open_collection
from conftest import ROOT
from datasette_clip.pages import home, samples
from datasette_clip.paths import CLASSIFY, COMPARE
from page_forms import bars_in, cells_in, errors_in, get, hidden_fields_in
from pictured import INTERNAL, LABELS, make_photos
from stored import llms_database

# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def photos(demo_engine, tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("home") / "photos.db", demo_engine.embed_item)


@pytest.fixture
def served(photos, demo_dir, monkeypatch):
    """A function that makes a Datasette with the collections."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return lambda **options: Datasette([str(photos)], memory=True, **options)


def shelves_in(page: str) -> dict[str, str]:
    """The part of the page of each collection, by its name."""
    parts = re.findall(r'<section class="clip-shelf" .*?</section>', page, re.DOTALL)
    return {re.search(r"Search (.*?):", part)[1]: part for part in parts}


def test_each_collection_has_a_box_that_searches_it_without_a_script(served):
    datasette = served()
    shelves = shelves_in(get(datasette, "/").text)
    assert list(shelves) == ["photos", "words"]
    for name, shelf in shelves.items():
        action = re.search(r'<form [^>]*role="search"[^>]* action="([^"]+)" method="get">', shelf)[1]
        field = re.search(r'<input type="search" id="(clip-q-\d)" name="(\w+)"', shelf)
        assert f'<label for="{field[1]}">' in shelf
        response = get(datasette, f"{action}?{field[2]}=a+red+heart")
        assert response.status_code == 200
        assert f"Search {name}" in response.text
        assert 'class="clip-score"' in response.text


def test_pictures_of_a_collection_lead_to_those_like_them(served):
    datasette = served()
    shelves = shelves_in(get(datasette, "/").text)
    strip = re.findall(
        r'<li><a href="([^"]+)" [^>]*><img src="([^"]+)" alt="([^"]+)" loading="lazy" width', shelves["photos"]
    )
    assert [html.unescape(alt) for _, _, alt in strip] == [f"More like {label}" for label in LABELS]
    for link, image, _ in strip:
        assert get(datasette, html.unescape(image)).headers["content-type"] == "image/png"
        assert 'class="clip-score"' in get(datasette, html.unescape(link)).text
    assert "<img" not in shelves["words"]


def test_sample_queries_are_captions_that_are_queries_else_such_as_fit_photos(served):
    datasette = served()
    samples = {
        name: re.findall(r'<a href="([^"#]+\?q=[^"]+)">(.*?)</a>', shelf.split("Try")[1].split("</p>")[0])
        for name, shelf in shelves_in(get(datasette, "/").text).items()
    }
    assert [text for _, text in samples["photos"]] == ["a yellow face", "a red heart", "a blue circle"]
    assert [text for _, text in samples["words"]] == list(home.PHOTO_SAMPLES)
    for link, text in samples["photos"] + samples["words"]:
        assert f'value="{text}"' in get(datasette, html.unescape(link)).text


def test_pictures_come_from_all_over_a_collection(tmp_path):
    rng = np.random.default_rng(1)
    stored = {name: {f"{name}{n}": rng.standard_normal(8) for n in range(1000)} for name in ("a", "b")}
    with closing(llms_database(**stored)) as conn:
        for name, first in (("a", 0), ("b", 1000)):
            spread = samples.spread_rows(conn, open_collection(conn, name), 5)
            assert [rowid - first for rowid in spread] == [1, 250, 500, 750, 1000]
            assert all(id.startswith(name) for id in spread.values())
        assert samples.spread_rows(conn, open_collection(conn, "a"), 1) == {1: "a0"}
        conn.execute("delete from embeddings where collection_id = 2 and rowid > 1002")
        assert list(samples.spread_rows(conn, open_collection(conn, "b"), 5)) == [1001, 1002]
        conn.execute("delete from embeddings")
        assert samples.spread_rows(conn, open_collection(conn, "a"), 5) == {}


def test_the_page_leads_to_everything_else(served):
    datasette = served()
    page = get(datasette, "/").text
    cards = re.search(r'<ul class="clip-cards">(.*?)</ul>', page, re.DOTALL)[1]
    links = re.findall(r'href="([^"]+)"', cards)
    assert links == ["/-/clip/classify", "/-/clip/compare", "/-/clip", "/_memory"]
    assert {get(datasette, link).status_code for link in links} == {200}
    [call] = re.findall(r"<pre[^>]*>(curl .*?)</pre>", page)
    url = shlex.split(html.unescape(call))[-1].replace("http://localhost", "")
    assert re.fullmatch(r"[0-9A-F]{4096}", get(datasette, url).json()[0]["x"])


def test_databases_are_listed_without_internal_tables_and_without_memory(served):
    datasette = served()
    listed = re.search(r'<ul class="clip-databases">(.*?)</ul>', get(datasette, "/").text, re.DOTALL)[1]
    assert re.findall(r"<a [^>]*>(.*?)</a>", listed) == ["photos", "embeddings", "collections"]
    tables = get(datasette, "/photos.json").json()["tables"]
    assert {table["name"] for table in tables if table["hidden"]} == {*INTERNAL}
    assert get(datasette, "/photos/clip_index").status_code == 200


def test_a_configured_table_is_not_hidden_by_its_name(photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    settings = {"collections": {"photos": {"other": {"table": "clip_other", "vector": "id"}}}}
    datasette = Datasette([str(photos)], metadata={"plugins": {"datasette-clip": settings}})
    tables = get(datasette, "/photos.json").json()["tables"]
    assert {table["name"] for table in tables if table["hidden"]} == {*INTERNAL} - {"clip_other"}


@pytest.mark.parametrize(
    ("metadata", "shelves", "sql"),
    [
        ({"databases": {"photos": {"allow": {"id": "root"}}}}, [], True),
        ({"databases": {"photos": {"tables": {"embeddings": {"allow": False}}}}}, [], True),
        ({"allow_sql": False}, ["photos", "words"], False),
    ],
)
def test_the_page_shows_only_what_the_visitor_may_see(metadata, shelves, sql, served):
    page = get(served(metadata=metadata), "/").text
    assert list(shelves_in(page)) == shelves
    assert ("curl -s" in page) == ('href="/_memory"' in page) == sql
    assert ("llm clip serve" in page) == (not shelves)


def test_without_a_collection_the_page_says_what_to_run(datasette):
    page = get(datasette, "/").text
    assert '<pre tabindex="0">llm clip serve ~/Pictures</pre>' in page
    assert "<h2>Databases</h2>" not in page  # _memory alone


def test_an_instance_has_its_own_title_and_description(served):
    page = get(served(metadata={"title": "My birds", "description": "All of <2020>."}), "/").text
    assert "<title>My birds</title>" in page
    assert "<h1>My birds</h1>" in page
    assert "All of &lt;2020&gt;." in page
    assert "<h1>Search pictures by words</h1>" in get(served(), "/").text


def test_without_a_model_the_page_says_why(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(
        "datasette_clip.pages.home.text_opening", lambda: type("Done", (), {"done": lambda self: True})()
    )
    monkeypatch.setattr("datasette_clip.api.health.text_opening", home.text_opening)
    page = get(Datasette([str(photos)], memory=True), "/").text
    assert "The model is not ready: " in page
    assert "there is no model directory" in page


def test_many_collections_are_links(tmp_path, demo_dir, demo_engine, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    vector = demo_engine.embed_text(["a"])[0]
    names = [f"c{n}" for n in range(home.SHELVES + 2)]
    llms_database(str(tmp_path / "many.db"), **{name: {"one": vector} for name in names}).close()
    page = get(Datasette([str(tmp_path / "many.db")]), "/").text
    assert list(shelves_in(page)) == names[: home.SHELVES]
    assert re.findall(r'<a href="[^"]+">(\w+)</a>', page.split("More collections:")[1].split("</p>")[0]) == names[-2:]


def test_a_database_whose_rows_cannot_be_read_has_its_box_all_the_same(served, monkeypatch):
    def broken(*arguments):
        raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr("datasette_clip.pages.samples.spread_rows", broken)
    page = get(served(), "/").text
    assert list(shelves_in(page)) == ["photos", "words"]
    assert "clip-strip" not in page


def test_shipped_metadata_leads_to_pages_that_exist(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    for file, options in (
        ("metadata.json", {"memory": True}),
        ("demo/metadata.json", {"files": [str(ROOT / "demo/emoji.db")]}),
    ):
        metadata = json.loads((ROOT / file).read_text())
        metadata["plugins"].get("datasette-guard", {}).clear() if "plugins" in metadata else None
        datasette = Datasette(metadata=metadata, **options)
        for link in re.findall(r'href="([^"]+)"', metadata["description_html"]):
            assert get(datasette, f"/{html.unescape(link)}").status_code == 200, (file, link)


def test_a_form_offers_pictures_of_a_collection_to_try(served):
    datasette = served()
    classify = get(datasette, CLASSIFY).text
    tries = re.findall(r'<li><a href="([^"]+\?sample=[^"]+)" title="Try (.*?)"><img src="([^"]+)"', classify)
    assert [html.unescape(label) for _, label, _ in tries] == LABELS
    page = get(datasette, html.unescape(tries[1][0])).text
    assert bars_in(page)
    assert hidden_fields_in(page)["name"] == ["id 1"]
    compare = re.search(r'<a href="([^"]+)">try some pictures', get(datasette, COMPARE).text)[1]
    page = get(datasette, html.unescape(compare)).text
    assert [len(row) for row in cells_in(page)] == [3] * len(LABELS)


@pytest.mark.parametrize(
    ("sample", "metadata", "status", "sentence"),
    [
        ("photos/photos/id 9", {}, 404, "there is no small picture of 'id 9'"),
        ("photos/words/one", {}, 404, "there is no small picture of 'one'"),
        ("photos/nothing/one", {}, 404, "there is no collection 'nothing' in database 'photos'"),
        ("nothing/photos/one", {}, 404, "there is no database 'nothing'"),
        ("_internal/photos/one", {}, 404, "there is no database '_internal'"),
        ("one", {}, 400, "sample is 'one'; expected DATABASE/COLLECTION/ID"),
        ("photos/photos/id 1", {"databases": {"photos": {"allow": False}}}, 403, "view-database"),
    ],
)
@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_a_picture_to_try_is_one_that_the_visitor_may_see(path, sample, metadata, status, sentence, served):
    datasette = served(metadata=metadata)
    field = "/".join(map(tilde_encode, sample.split("/")))
    response = get(datasette, f"{path}?{urlencode({'sample': field})}")
    assert response.status_code == status
    assert errors_in(response.text) == [sentence]
    assert ("?sample=" in response.text) == (not metadata)


@pytest.mark.parametrize("path", ["/", "/-/clip"])
def test_examples_name_no_database_that_the_client_may_not_see(path, demo_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    files = [str(tmp_path / f"{name}.db") for name in ("a-secret", "open")]
    for file in files:
        llms_database(file).close()
    metadata = {"databases": {"a-secret": {"allow": {"id": "root"}}}}
    page = get(Datasette(files, metadata=metadata), path).text
    assert "a-secret" not in page
    assert "/open.json?sql=" in html.unescape(page)
