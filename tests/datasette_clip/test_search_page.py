"""/-/clip/search and its pages: as plain forms over HTTP, in a real browser, and with permissions."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import re
import shlex
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
from datasette.app import Datasette
from PIL import Image

from browser import chromium, drop_or_paste, new_context, upload, wait_until
from clip_collections import query
from clip_collections.query import Term
from conftest import ROOT
from datasette_clip.model import embedding_queue
from datasette_clip.pages import search as search_pages
from drawings import drawing
from page_forms import errors_in
from serving import environment, run_llm, serving

LIST = "/-/clip/search"
PAGE, JSON = f"{LIST}/photos/emoji", f"{LIST}/photos/emoji.json"
ROWS = 60
K = search_pages.ROWS
# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_collection(file: Path, rows: list[tuple], model: str = "clip") -> Path:
    """A SQLite file as `llm embed-multi` writes it, with the collection `emoji`: id, vector, content, blob, metadata."""
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("create table collections (id integer primary key, name text, model text)")
        db.execute(
            "create table embeddings (collection_id integer, id text, embedding blob, content text, content_blob blob,"
            " content_hash blob, metadata text, updated integer, primary key (collection_id, id))"
        )
        db.execute("insert into collections values (1, 'emoji', ?)", [model])
        db.executemany("insert into embeddings values (1, ?, ?, ?, ?, null, ?, 0)", rows)
    return file


@pytest.fixture(scope="module")
def photos(demo_engine, tmp_path_factory) -> Path:
    """A collection of ROWS emoji with their embeddings, hearts and cats first."""
    with closing(sqlite3.connect(ROOT / "demo/emoji.db")) as db:
        found = db.execute(
            """select id, label, "group", image from emoji
            order by label not like '%heart%' and label not like '%cat%', rowid limit ?""",
            [ROWS],
        ).fetchall()
    rows = [
        (id, demo_engine.embed_item(image).tobytes(), None, image, json.dumps({"label": label, "group": group}))
        for id, label, group, image in found
    ]
    return make_collection(tmp_path_factory.mktemp("photos") / "photos.db", rows)


def datasette_of(file: Path, **options) -> Datasette:
    return Datasette(files=[str(file)], memory=True, **options)


@pytest.fixture
def datasette(photos, demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return datasette_of(photos)


def call(datasette: Datasette, path: str, method: str = "GET", **options) -> httpx.Response:
    async def request() -> httpx.Response:
        await datasette.invoke_startup()
        return await datasette.client.request(method, path, **options)

    return asyncio.run(request())


def search_url(path: str = PAGE, **fields) -> str:
    return f"{path}?{urlencode(fields, doseq=True)}"


# Read from the HTML of a page


def hits_in(page: str) -> list[tuple[str, str]]:
    """Id and score of each hit."""
    found = re.findall(r'<span class="clip-marks" data-id="(.*?)">(?:<span class="clip-score">(.*?)</span>)?', page)
    return [(html.unescape(id), score) for id, score in found]


def hits_in_json(answer: dict) -> list[tuple[str, str]]:
    """Id and score of each hit of a JSON answer, as the page prints them."""
    return [(hit["id"], "" if hit["score"] is None else f"{hit['score']:.3f}") for hit in answer["results"]]


def links_in(page: str, pattern: str) -> list[str]:
    """The addresses of the links whose tags match."""
    tags = [tag for tag in re.findall(r"<a [^>]*>", page) if re.search(pattern, tag)]
    return [html.unescape(re.search(r'href="([^"]*)"', tag)[1]) for tag in tags]


def query_in(page: str) -> str:
    """The query in the search field."""
    return html.unescape(re.search(r'id="clip-q" name="q" value="([^"]*)"', page)[1])


# As a plain form


@pytest.mark.parametrize("q", ["", "a red heart", 'smiling face - "heart"', "- id:red_heart", '[{"text": "cat", "weight": 2}]'])  # fmt: skip
def test_the_page_shows_what_the_json_answers(q, datasette):
    page = call(datasette, search_url(q=q))
    assert page.status_code == 200
    assert hits_in(page.text) == hits_in_json(call(datasette, search_url(JSON, q=q, k=K)).json())
    assert len(hits_in(page.text)) == K
    assert query_in(page.text) == q


def test_a_row_has_its_picture_its_caption_and_links_that_search_on(datasette):
    page = call(datasette, search_url(q="a red heart")).text
    [(id, _), *_] = hits_in(page)
    first = re.search(r'<ol class="clip-tiles".*?</li>', page, re.DOTALL)[0]
    caption = re.search(r'alt="(.*?)" loading="lazy"', first)[1]
    assert caption == id.replace("_", " ") or caption in first
    picture = call(datasette, html.unescape(re.search(r'<img src="(.*?)"', first)[1]))
    assert Image.open(io.BytesIO(picture.content)).size == (72, 72) or picture.headers["content-type"].startswith(
        "image/"
    )
    assert first.count(f">{html.escape(caption)}<") == 1
    assert f"<h1>{html.escape(caption)}</h1>" in call(datasette, links_in(first, "data-view")[0]).text
    like, [plus, minus] = links_in(first, "clip-like")[0], links_in(first, "clip-sign")
    assert [parse_qs(urlsplit(url).query)["q"] for url in (like, plus, minus)] == [
        [f"id:{id}"],
        [f"a red heart + id:{id}"],
        [f"a red heart - id:{id}"],
    ]
    assert hits_in(call(datasette, like).text)[0] == (id, "1.000")
    assert id not in dict(hits_in(call(datasette, minus).text))


def test_the_page_says_whether_its_rows_are_all(datasette):
    def said(**fields) -> str:
        return re.search(r'id="clip-status".*?>(.*?)</span>', call(datasette, search_url(**fields)).text)[1]

    assert said() == f"The first {K} rows"
    assert said(q="cat") == f"The first {K} rows, best first"
    assert said(q="cat", k=1000) == f"{ROWS} rows, best first"
    assert said(q="cat", k=1, offset=ROWS - 1) == "1 row, best first"
    assert said(q="cat", offset=ROWS) == "No rows"
    assert said(q="cat", k="many") == ""


def test_the_way_to_the_page_is_home_and_the_collection(datasette):
    for path in (search_url(), search_url("/-/clip/view/photos/emoji", id="red_heart")):
        crumbs = re.search(r'<p class="crumbs">(.*?)</p>', call(datasette, path).text)[1]
        assert re.sub("<.*?>", "", crumbs) == "home / emoji"
        assert links_in(crumbs, "") == ["/", PAGE]
    assert '<a href="/photos">The database</a>' in call(datasette, search_url()).text


def test_further_rows_have_links_of_their_own(datasette):
    whole = hits_in_json(call(datasette, search_url(JSON, q="cat", k=1000)).json())
    url, found = search_url(q="cat"), []
    while url:
        page = call(datasette, url).text
        found += hits_in(page)
        url = (links_in(page, "data-more") or [None])[0]
    assert found == whole
    assert len(whole) == ROWS
    assert hits_in(call(datasette, links_in(page, r'href="[^"]*q=cat"')[0]).text) == whole[:K]


def kept_vector(page: str) -> str:
    """The picture of the query, which the form keeps as its vector."""
    return re.search(r'<input type="hidden" name="q" value="(vector:[^"]+)"', page)[1]


def test_a_picture_is_posted_and_its_vector_goes_on_in_links(datasette):
    page = call(datasette, PAGE, "POST", data={"q": ""}, files=[("image", ("heart.png", drawing("heart")))]).text
    kept = kept_vector(page)
    assert hits_in(page) == hits_in_json(call(datasette, search_url(JSON, q=kept, k=K)).json())
    assert "data:image/jpeg;base64," in page
    assert "img=" not in page.split("<main")[1]
    assert max(map(len, links_in(page, 'href="/-/clip/'))) < 3300
    again = call(datasette, search_url(q=["yellow face", kept])).text
    both = {"q": ["yellow face", kept]}
    assert hits_in(again) == hits_in_json(call(datasette, search_url(JSON, k=K, **both)).json()) != hits_in(page)
    more = links_in(again, "data-more")[0]
    assert hits_in(call(datasette, more).text)[0] == hits_in_json(call(datasette, search_url(JSON, k=K + 1, **both)).json())[-1]  # fmt: skip
    minus = call(datasette, links_in(again, "Less of")[0]).text
    assert len(parse_qs(urlsplit(links_in(again, "Less of")[0]).query)["q"]) == 2
    assert query_in(minus).startswith("yellow face - id:")
    assert hits_in(again)[0][0] not in dict(hits_in(minus)[:1])
    assert kept_vector(minus) == kept
    removed = call(datasette, links_in(minus, "data-remove")[0]).text
    assert parse_qs(urlsplit(links_in(minus, "data-remove")[0]).query)["q"] == [query_in(removed)]


def test_a_link_with_the_picture_itself_still_works(datasette):
    kept = kept_vector(
        call(datasette, PAGE, "POST", data={"q": ""}, files=[("image", ("heart.png", drawing("heart", 224, 224)))]).text
    )
    stream = io.BytesIO()
    Image.open(io.BytesIO(drawing("heart", 224, 224))).convert("RGB").save(stream, "JPEG", quality=90)
    img = base64.urlsafe_b64encode(stream.getvalue()).decode().rstrip("=")
    page = call(datasette, search_url(img=img)).text
    assert hits_in(page)[0] == hits_in(call(datasette, search_url(q=kept)).text)[0]
    assert kept_vector(page).startswith("vector:")


def test_json_curl_and_sql_of_the_page_give_the_same_rows(datasette):
    page = call(datasette, search_url(q='it\'s a "red" heart')).text
    wanted = hits_in(page)
    assert hits_in_json(call(datasette, links_in(page, "emoji.json")[0]).json()) == wanted
    curl = html.unescape(re.search(r"<h2>curl</h2>\n<pre[^>]*>(.*?)</pre>", page, re.DOTALL)[1])
    fields = [part for part in shlex.split(curl) if "=" in part]
    assert [tuple(part.split("=", 1)) for part in fields] == [("q", '"it\'s a \\"red\\" heart"'), ("k", str(K))]
    sql = links_in(page, "/photos.*sql=")[0].replace("/photos?", "/photos.json?")
    rows = call(datasette, sql + "&_shape=array").json()
    assert [(row["id"], f"{row['score']:.3f}") for row in rows] == wanted


def test_a_condition_leaves_only_some_rows(datasette):
    where = "metadata ->> 'label' like '%cat%'"
    page = call(datasette, search_url(q="a heart", where=where)).text
    assert hits_in(page) == hits_in_json(call(datasette, search_url(JSON, q="a heart", where=where, k=K)).json())
    assert 0 < len(hits_in(page)) < K
    assert html.unescape(re.search(r'name="where" value="([^"]*)"', page)[1]) == where
    assert all("where=" in link for link in links_in(page, "clip-like|clip-sign"))
    none = call(datasette, search_url(q="a heart", where="0")).text
    assert "No row of the collection meets this condition." in none


@pytest.mark.parametrize(
    ("fields", "status", "sentence"),
    [
        ({"q": "id:nobody"}, 400, "collection 'emoji' has no row with the id 'nobody'"),
        ({"q": "red - "}, 400, "query 'red - ' has nothing after character 6; expected a text, id: or image:"),
        ({"q": "[1"}, 400, "the query begins as JSON and is none: "),
        ({"q": "red", "where": "what is"}, 400, "where is no condition that SQLite can read: "),
        ({"q": "red", "k": "many"}, 400, "k is 'many'; expected a whole number from 1 to 1000"),
        ({"q": "red", "offset": "-1"}, 400, "offset is '-1'; expected a whole number from 0 to 1000000"),
        ({"q": "red", "img": "zzzz"}, 400, "the picture: "),
        ({"q": "red", "image": "cat.jpg"}, 400, "only the name of cat.jpg has come: an image is sent by the button under it"),
        ({"q": " + ".join("abcdefghijklmnopqr")}, 400, "the query has 18 terms; at most 16 are added up"),
        ({"q": "red - red"}, 400, "the terms of the query cancel out"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_a_sentence_that_loses_nothing_typed(fields, status, sentence, datasette):
    response = call(datasette, search_url(**fields))
    assert response.status_code == status
    [said] = errors_in(response.text)
    assert said.startswith(sentence)
    assert query_in(response.text) == fields["q"]
    assert html.escape(fields.get("where", "")) in response.text


def test_a_file_that_is_no_image_is_named(datasette):
    response = call(datasette, PAGE, "POST", data={"q": "red"}, files=[("image", ("notes.txt", b"abc"))])
    assert response.status_code == 400
    assert errors_in(response.text) == ["notes.txt: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"]  # fmt: skip
    assert query_in(response.text) == "red"


def test_a_crowded_server_says_so_on_the_page(photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(photos, metadata={"plugins": {"datasette-clip": {"limits": {"embedding": 1}}}})
    with embedding_queue(datasette).slot():
        response = call(datasette, search_url(q="red"))
    assert (response.status_code, query_in(response.text)) == (503, "red")
    assert errors_in(response.text)[0].endswith("(plugins.datasette-clip.limits.embedding)")


def test_without_a_model_rows_are_shown_and_a_search_says_what_to_run(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    datasette = datasette_of(photos)
    assert len(hits_in(call(datasette, PAGE).text)) == K
    response = call(datasette, search_url(q="red"))
    assert response.status_code == 503
    assert "there is no model directory" in errors_in(response.text)[0]


def test_a_search_that_takes_too_long_says_so(photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(photos, settings={"sql_time_limit_ms": 1000})
    slow = "(with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t)"
    response = call(datasette, search_url(q="red", where=slow))
    assert response.status_code == 400
    assert "took longer than 1000 ms" in errors_in(response.text)[0]


NASTY = "\"><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
QUOTED = query.format_query([Term("text", NASTY)])  # as a query


def test_whatever_the_database_holds_is_shown_as_text(demo_engine, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    vector = demo_engine.embed_item("red").tobytes()
    rows = [
        (NASTY, vector, None, drawing("heart", 50, 50), "{}"),
        ("by-label", vector, None, None, json.dumps({"label": NASTY})),
        ("by-name", vector, None, None, json.dumps({"label": 7, "name": ["x"], "title": NASTY})),
        ("by-content", vector, NASTY * 3, None, "not JSON"),
        ("svg", vector, "drawn", b"<svg xmlns='http://www.w3.org/2000/svg' onload='window.broken = 1'/>", "[1]"),
    ]
    datasette = datasette_of(make_collection(tmp_path / "photos.db", rows))
    for fields in ({}, {"q": QUOTED}, {"q": "red", "where": f"id is not '{NASTY.replace(chr(39), chr(39) * 2)}'"}):
        page = call(datasette, search_url(**fields)).text
        assert "<script>window" not in page
        assert "<img src=x" not in page
        assert hits_in(page)
    refused = call(datasette, search_url(q=NASTY))  # has no end of its quote
    assert (refused.status_code, "<script>window" in refused.text, "<img src=x" in refused.text) == (400, False, False)
    page = call(datasette, search_url(q="red")).text
    assert {id for id, _ in hits_in(page)} == {row[0] for row in rows}
    for link in links_in(page, "clip-like"):
        assert len(hits_in(call(datasette, link).text)) == len(rows)
    assert call(datasette, "/-/clip/thumbnail/photos/emoji?id=svg").status_code == 404


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://example.org/a.png", True),
        ("/static/a.png", True),
        ("javascript:alert(1)", False),
        ("JaVaScRiPt:alert(1)", False),
        ("data:text/html,<script>", False),
        (" javascript:alert(1)", False),
    ],
)
def test_a_picture_of_a_column_is_shown_where_it_is_an_address_of_one(
    url, shown, demo_engine, demo_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with closing(sqlite3.connect(tmp_path / "photos.db")) as db, db:
        db.execute("create table faucets (id integer primary key, name text, picture text, embedding blob)")
        db.execute("insert into faucets values (1, 'brass', ?, ?)", [url, demo_engine.embed_item("red").tobytes()])
    faucets = {"table": "faucets", "vector": "embedding", "image_url": "{picture}", "content": "name"}
    metadata = {"plugins": {"datasette-clip": {"collections": {"photos": {"faucets": faucets}}}}}
    page = call(datasette_of(tmp_path / "photos.db", metadata=metadata), f"{LIST}/photos/faucets?q=red").text
    assert hits_in(page)[0][0] == "1"
    assert (f'<img src="{html.escape(url)}" alt="brass"' in page) == shown
    assert ("<span>brass</span>" in page) != shown


# Weak matches


@pytest.fixture(scope="module")
def measured(photos, demo_dir, tmp_path_factory) -> Path:
    """The collection after `llm clip index`."""
    folder = tmp_path_factory.mktemp("measured")
    file = Path(shutil.copy(photos, folder / "photos.db"))
    run_llm("clip", "index", str(file), env=environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir)))
    return file


@pytest.mark.long
@pytest.mark.parametrize("q", ["red heart", "cat", "garbage collection", "a power of attorney", "heart - blue"])
def test_a_divider_stands_before_the_first_row_below_the_floor(q, measured, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(measured)
    answer = call(datasette, search_url(JSON, q=q, k=K)).json()
    strong = [hit["id"] for hit in answer["results"] if hit["score"] >= answer["floor"]]
    before, divider, _ = call(datasette, search_url(q=q)).text.partition('<li class="clip-weak">')
    assert [id for id, _ in hits_in(before)] == strong
    assert divider
    assert len(hits_in(call(datasette, search_url(q=q)).text)) == K


def test_what_fits_and_what_does_not_are_told_apart(measured, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(measured)
    nothing = "Perhaps nothing here fits these words: all of these are weak matches."
    assert nothing not in call(datasette, search_url(q="broken heart")).text
    assert nothing in call(datasette, search_url(q="the burden of proof")).text


@pytest.mark.parametrize("q", ["", "id:red_heart", "red heart + id:red_heart"])
def test_only_words_have_a_floor(q, measured, photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    assert "floor" not in call(datasette_of(measured), search_url(JSON, q=q)).json()
    assert "clip-weak" not in call(datasette_of(measured), search_url(q=q)).text
    assert "floor" not in call(datasette_of(photos), search_url(JSON, q="cat")).json()


# Lists and links


def test_the_list_the_home_page_and_the_menus_lead_to_each_collection(datasette):
    for path in (LIST, "/", "/photos", "/photos/embeddings"):
        page = call(datasette, path).text
        assert PAGE in links_in(page, "href"), path
        assert LIST in links_in(page, "href"), path
    assert PAGE not in links_in(call(datasette, "/photos/collections").text, "href")
    assert LIST in links_in(call(datasette, "/-/clip").text, "href")


def test_without_a_collection_nothing_is_linked_and_the_list_says_how_to_make_one(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True)
    assert "Search by text or image" not in call(datasette, "/").text
    page = call(datasette, LIST)
    assert page.status_code == 200
    assert "llm embed-multi" in page.text


def test_a_collection_of_another_model_is_not_on_the_list(photos, demo_engine, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    rows = [("a", demo_engine.embed_item("red").tobytes(), "red", None, None)]
    datasette = datasette_of(make_collection(tmp_path / "photos.db", rows, model="ada-002"))
    assert PAGE not in call(datasette, LIST).text
    assert "holds vectors of model 'ada-002'" in errors_in(call(datasette, search_url(q="red")).text)[0]


# Permissions

ME, OTHER = {"id": "me"}, {"id": "other"}
PRIVATE = {
    "database": {"databases": {"photos": {"allow": ME}}},
    "table": {"databases": {"photos": {"tables": {"embeddings": {"allow": ME}}}}},
    "instance": {"allow": ME},
}
WITHIN = [PAGE, search_url(q="red"), search_url(q="id:red_heart"), JSON, search_url(JSON, q="red"), "/-/clip/thumbnail/photos/emoji?id=red_heart"]  # fmt: skip
LISTS = [LIST, "/", "/-/clip", "/photos", "/_memory"]


def cookie(datasette: Datasette, actor: dict | None) -> dict:
    return {"cookies": {"ds_actor": datasette.sign({"a": actor}, "actor")}} if actor else {}


@pytest.mark.parametrize("what", PRIVATE)
@pytest.mark.parametrize("actor", [None, OTHER, ME])
def test_what_is_private_is_neither_searched_nor_shown_nor_listed_for_strangers(
    what, actor, photos, demo_dir, monkeypatch
):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(photos, metadata=PRIVATE[what])
    cookies = cookie(datasette, actor)
    for path in WITHIN:
        response = call(datasette, path, **cookies)
        assert response.status_code == (200 if actor == ME else 403), path
        if actor != ME:
            assert "red_heart" not in response.text.replace(path, "")
            assert b"\x89PNG" not in response.content
    posted = call(datasette, PAGE, "POST", files=[("image", ("a.png", drawing("heart")))], **cookies)
    assert posted.status_code == (200 if actor == ME else 403)
    for path in LISTS:
        page = call(datasette, path, **cookies).text
        if actor == ME and path in (LIST, "/", "/photos"):
            assert PAGE in page, path
        if actor != ME:
            assert PAGE not in page, path
            assert f'"{LIST}">Search by' not in page, path
    unknown = call(datasette, f"{LIST}/photos/nothing", **cookies)
    assert unknown.status_code in (403, 404)
    assert "emoji" not in unknown.text


def test_with_clip_token_everything_of_it_needs_the_token(photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setenv("CLIP_TOKEN", "a-secret")
    datasette = datasette_of(photos)
    for path in [*WITHIN, LIST]:
        assert call(datasette, path).status_code == 403, path
        assert call(datasette, path, headers={"authorization": "Bearer a-secret"}).status_code == 200, path


@pytest.mark.parametrize("metadata", [{"allow_sql": ME}, {"databases": {"photos": {"allow_sql": ME}}}])
def test_sql_needs_the_permission_to_run_it(metadata, photos, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(photos, metadata=metadata)
    for actor, may in ((None, False), (ME, True)):
        cookies = cookie(datasette, actor)
        page = call(datasette, search_url(q="red"), **cookies).text
        assert (len(hits_in(page)), 'id="clip-where"' in page, "sql=" in page) == (K, may, may)
        answer = call(datasette, search_url(q="red", where="1=1"), **cookies)
        assert answer.status_code == (200 if may else 403)
        if not may:
            assert errors_in(answer.text) == ["where is SQL, which you may not run here"]
            assert query_in(answer.text) == "red"


# In a browser


@pytest.fixture(scope="module")
def server(photos, demo_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(photos), "--memory", env=env, log=folder / "log") as url:
        yield url


def hits_by_json(server: str, **fields) -> list[tuple[str, str]]:
    """The hits that the JSON endpoint answers."""
    return hits_in_json(httpx.get(server + search_url(JSON, k=K, **fields)).json())


def hits_shown_on(page) -> list[tuple[str, str]]:
    return hits_in(page.inner_html("#clip-result"))


def first_hits_on(page) -> list[tuple[str, str]]:
    """The first K hits that are shown. More may have come meanwhile, because the page scrolls on by itself."""
    return hits_shown_on(page)[:K]


def wait_for_first(page, id: str) -> None:
    page.locator(f'#clip-grid > li:first-child [data-id="{id}"]').wait_for()


def wait_for_rows(page, rows: int) -> None:
    page.wait_for_function("rows => document.querySelectorAll('#clip-grid > li').length === rows", arg=rows)


def wait_for_title(page, begins: str) -> None:
    wait_until(page, "begins => document.title.startsWith(begins)", arg=begins)


@chromium
def test_typing_shows_what_the_json_answers(browser_page, server):
    browser_page.goto(server + PAGE)
    assert browser_page.evaluate("document.activeElement.id") == "clip-q"
    browser_page.keyboard.type("a red heart - blue")
    wait_for_title(browser_page, "a red heart - blue:")
    assert first_hits_on(browser_page) == hits_by_json(server, q="a red heart - blue")
    assert browser_page.inner_text("#clip-status") == f"The first {K} rows, best first"
    assert re.search(r"The server took [\d.]+ ms, there and back [\d.]+ ms", browser_page.inner_text("#clip-took"))
    assert browser_page.evaluate("document.activeElement.id") == "clip-q"
    for image in browser_page.locator("#clip-grid img").all()[:3]:
        image.scroll_into_view_if_needed()
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        assert image.get_attribute("alt")


@chromium
def test_more_like_this_more_of_this_and_less_of_this(browser_page, server):
    browser_page.goto(server + search_url(q="cat"))
    browser_page.locator(".clip-like").nth(2).click()
    id = hits_by_json(server, q="cat")[2][0]
    wait_for_first(browser_page, id)
    assert browser_page.input_value("#clip-q") == f"id:{id}"
    assert first_hits_on(browser_page) == hits_by_json(server, q=f"id:{id}")
    browser_page.fill("#clip-q", "a heart")
    wait_for_title(browser_page, "a heart:")
    best = hits_shown_on(browser_page)[0][0]
    browser_page.click("#clip-grid > li:first-child [aria-label^='Less of']")
    wait_for_title(browser_page, f"a heart - id:{best}:")
    assert browser_page.input_value("#clip-q") == f"a heart - id:{best}"
    assert first_hits_on(browser_page) == hits_by_json(server, q=f"a heart - id:{best}")
    other = hits_shown_on(browser_page)[0][0]
    browser_page.click("#clip-grid > li:first-child [aria-label^='More of']")
    wait_for_title(browser_page, f"a heart - id:{best} + id:{other}:")
    assert hits_shown_on(browser_page)[0][0] == other


@chromium
@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_is_shrunk_sent_and_kept_while_words_change(way, browser_page, server):
    sent = []
    browser_page.on("request", lambda request: sent.append((request.method, parse_qs(urlsplit(request.url).query))))
    browser_page.goto(server + PAGE)
    if way == "choose":
        upload(browser_page, ("heart.png", drawing("heart", 3000, 2000)))
    else:
        drop_or_paste(browser_page, way, "#clip-q", [("heart.png", drawing("heart", 3000, 2000))])
    browser_page.locator(".clip-kept img").wait_for()
    seen = browser_page.get_attribute(".clip-kept img", "src")
    assert Image.open(io.BytesIO(base64.b64decode(seen.partition(",")[2] + "=="))).size == (224, 224)
    assert [method for method, _ in sent if method != "GET"] == ["POST"]
    kept = browser_page.input_value("#clip-asked [name=q]")
    assert kept.startswith("vector:")
    assert first_hits_on(browser_page) == hits_by_json(server, q=kept)
    assert parse_qs(urlsplit(browser_page.url).query) == {"q": [kept]}
    browser_page.fill("#clip-q", "yellow")
    wait_for_title(browser_page, "yellow:")
    assert first_hits_on(browser_page) == hits_by_json(server, q=["yellow", kept])
    assert browser_page.locator(".clip-kept img").is_visible()
    assert [method for method, _ in sent if method != "GET"] == ["POST"]
    assert parse_qs(urlsplit(browser_page.url).query) == {"q": ["yellow", kept]}
    assert len(browser_page.url) < 3300
    browser_page.reload()
    assert browser_page.get_attribute(".clip-kept img", "src") == seen
    assert first_hits_on(browser_page) == hits_by_json(server, q=["yellow", kept])
    browser_page.click("text=Remove the picture")
    browser_page.wait_for_url(server + search_url(q="yellow"))
    score = hits_by_json(server, q="yellow")[0][1]
    browser_page.wait_for_function("score => document.querySelector('.clip-score').textContent === score", arg=score)
    assert browser_page.locator(".clip-kept").count() == 0


@chromium
def test_the_address_opened_afresh_shows_the_same(browser_page, chromium_process, server):
    browser_page.goto(server + PAGE)
    upload(browser_page, ("heart.png", drawing("heart")))
    browser_page.locator(".clip-kept img").wait_for()
    browser_page.fill("#clip-q", "yellow - blue")
    wait_for_title(browser_page, "yellow - blue:")
    with new_context(chromium_process) as another:
        page = another.new_page()
        page.goto(browser_page.url)
        assert hits_shown_on(page) == hits_shown_on(browser_page)
        assert page.input_value("#clip-q") == "yellow - blue"
        assert page.inner_text(".clip-kept").startswith("Rows like a picture.")  # whose vector alone is in the address


@chromium
def test_back_and_forward_go_from_question_to_question(browser_page, server):
    browser_page.goto(server + PAGE)
    empty = hits_shown_on(browser_page)
    browser_page.fill("#clip-q", "red heart")  # in one step: a slow machine would send two queries while keys are typed
    wait_for_title(browser_page, "red heart:")
    browser_page.locator("#clip-q").press("Enter")
    hearts = hits_shown_on(browser_page)
    browser_page.click("#clip-grid > li:nth-child(2) .clip-like")
    wait_for_first(browser_page, hearts[1][0])
    like = browser_page.title()
    browser_page.go_back()
    wait_for_title(browser_page, "red heart:")
    assert (browser_page.input_value("#clip-q"), hits_shown_on(browser_page)) == ("red heart", hearts)
    browser_page.go_back()
    wait_for_title(browser_page, "search emoji")
    assert (browser_page.input_value("#clip-q"), hits_shown_on(browser_page)) == ("", empty)
    browser_page.go_forward()
    browser_page.go_forward()
    wait_for_title(browser_page, like)
    assert browser_page.input_value("#clip-q") == f"id:{hearts[1][0]}"


@chromium
def test_further_rows_come_by_the_keyboard_until_there_are_none(browser_page, server):
    browser_page.goto(server + search_url(q="cat"))
    for rows, said in ((2 * K, f"The first {2 * K} rows, best first"), (ROWS, f"{ROWS} rows, best first")):
        browser_page.focus("#clip-more a")
        browser_page.keyboard.press("Enter")
        wait_for_rows(browser_page, rows)
        assert browser_page.inner_text("#clip-status") == said
        if rows == ROWS:
            break
    assert browser_page.locator("#clip-more").count() == 0
    assert hits_shown_on(browser_page) == hits_in_json(httpx.get(server + search_url(JSON, q="cat", k=1000)).json())


@chromium
def test_further_rows_come_while_one_scrolls_and_the_address_leads_to_as_many(browser_page, chromium_process, server):
    browser_page.set_viewport_size({"width": 800, "height": 400})  # the end of the first rows is far
    browser_page.goto(server + search_url(q="cat"))
    assert len(hits_shown_on(browser_page)) == K
    for rows in (2 * K, ROWS):
        browser_page.evaluate("document.querySelector('#clip-more').scrollIntoView()")
        wait_for_rows(browser_page, rows)
        browser_page.wait_for_url(server + search_url(q="cat", k=rows))
    with new_context(chromium_process, java_script_enabled=False) as another:
        page = another.new_page()
        page.goto(browser_page.url)
        assert hits_in(page.content()) == hits_shown_on(browser_page)
    browser_page.fill("#clip-q", "dog")
    wait_for_title(browser_page, "dog:")
    assert browser_page.url == server + search_url(q="dog")


@chromium
def test_a_picture_is_asked_for_once_whatever_is_typed(browser_page, server):
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.goto(server + search_url(q="cat"))
    browser_page.wait_for_load_state("networkidle")
    for q in ("cat a", "cat an", "cat and", "cat", "cat and dog"):
        browser_page.fill("#clip-q", q)
        wait_for_title(browser_page, f"{q}:")
    browser_page.wait_for_load_state("networkidle")
    pictures = [url for url in asked if "/-/clip/thumbnail/" in url]
    assert len(pictures) == len(set(pictures)) >= 12


@chromium
def test_chips_and_dates_filter_and_keep_words_focus_and_address(browser_page, server):
    browser_page.goto(server + search_url(q="heart"))
    chip = browser_page.locator(".clip-facet a", has_text="smileys & emotion")
    chip.focus()
    browser_page.keyboard.press("Enter")
    browser_page.locator(".clip-chip[aria-current]").wait_for()
    fields = {"q": "heart", "meta.group": "smileys & emotion"}
    assert browser_page.url == server + search_url(**fields)
    assert first_hits_on(browser_page) == hits_by_json(server, **fields)
    assert browser_page.evaluate("document.activeElement.textContent").startswith("smileys & emotion")
    browser_page.fill("#clip-q", "cat")
    wait_for_title(browser_page, "cat:")
    assert first_hits_on(browser_page) == hits_by_json(server, **fields | {"q": "cat"})
    browser_page.click("text=All rows again")
    browser_page.wait_for_url(server + search_url(q="cat"))
    browser_page.wait_for_function("() => !document.querySelector('.clip-chip[aria-current]')")
    assert first_hits_on(browser_page) == hits_by_json(server, q="cat")


@chromium
def test_an_old_answer_never_takes_the_place_of_a_newer_one(browser_page, server):
    """The first answer comes after the second, because this browser does not abort it."""
    held = []
    browser_page.add_init_script(
        "const real = window.fetch; window.fetch = (url, options) => real(url, {...options, signal: undefined})"
    )
    browser_page.route(lambda url: url.endswith("q=cat"), lambda route: held.append(route))
    browser_page.goto(server + PAGE)
    with browser_page.expect_request(lambda request: request.url.endswith("q=cat")):
        browser_page.fill("#clip-q", "cat")
    browser_page.fill("#clip-q", "red heart")
    wait_for_title(browser_page, "red heart:")
    wanted = hits_shown_on(browser_page)
    with browser_page.expect_response(lambda response: response.url.endswith("q=cat")) as late:
        held[0].continue_()
    late.value.finished()
    browser_page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert first_hits_on(browser_page) == wanted == hits_by_json(server, q="red heart")
    assert browser_page.title().startswith("red heart:")


@chromium
def test_errors_are_shown_above_the_earlier_rows_and_nothing_typed_is_lost(browser_page, server):
    browser_page.goto(server + search_url(q="cat"))
    before = hits_shown_on(browser_page)
    browser_page.fill("#clip-q", "id:nobody")
    browser_page.locator("[role=alert]", has_text="has no row with the id 'nobody'").wait_for()
    assert (browser_page.input_value("#clip-q"), hits_shown_on(browser_page)) == ("id:nobody", before)
    browser_page.context.set_offline(True)
    browser_page.fill("#clip-q", "dog")
    browser_page.locator("[role=alert]", has_text="The server cannot be reached").wait_for()
    browser_page.context.set_offline(False)
    browser_page.locator("#clip-q").press("Enter")
    wait_for_title(browser_page, "dog:")
    assert browser_page.locator("[role=alert]").count() == 0
    assert first_hits_on(browser_page) == hits_by_json(server, q="dog")
    upload(browser_page, ("notes.txt", b"abc"))
    browser_page.locator("[role=alert]", has_text="notes.txt: not an image").wait_for()
    assert browser_page.input_value("#clip-q") == "dog"


@chromium
def test_the_keyboard_alone_is_enough_and_its_focus_is_seen(browser_page, server):
    browser_page.goto(server + PAGE)
    browser_page.keyboard.type("cat")
    wait_for_title(browser_page, "cat:")
    order = []
    while not order or not order[-1].startswith("Less of"):
        browser_page.keyboard.press("Tab")
        name, outline = browser_page.evaluate(
            "(e => [e.id || e.getAttribute('aria-label') || e.type || e.textContent, getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        assert outline not in ("none", ""), name
        order.append(name)
    assert order[:2] == ["submit", "clip-files"]
    summary = order.index("Condition in SQL")
    assert all(re.match(r"[a-z& ]+ \d+$|\d+ more", one) for one in order[2:summary]), order  # the chips
    wanted = ["Show", "More like", "More of", "Less of"]
    assert [one.startswith(begins) for one, begins in zip(order[summary + 1 :], wanted, strict=True)] == [True] * 4
    browser_page.keyboard.press("Enter")
    wait_for_title(browser_page, "cat - id:")
    assert browser_page.evaluate("document.activeElement.id") == "clip-result"
    browser_page.focus("#clip-more a")
    browser_page.keyboard.press("Enter")
    wait_until(browser_page, f"document.querySelectorAll('#clip-grid > li').length === {2 * K}")


@chromium
def test_without_a_script_form_and_links_do_the_same(chromium_process, server):
    with new_context(chromium_process, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(server + PAGE)
        page.fill("#clip-q", "red heart")
        with page.expect_navigation():  # until all of the next page has come
            page.locator("#clip-q").press("Enter")
        assert hits_in(page.content()) == hits_by_json(server, q="red heart")
        with page.expect_navigation():
            page.click("#clip-more a")
        assert (
            hits_in(page.content())[0]
            == hits_in_json(httpx.get(server + search_url(JSON, q="red heart", k=K + 1)).json())[-1]
        )
        with page.expect_navigation():
            page.click("text=from the first")
        with page.expect_navigation():
            page.click("#clip-grid > li:first-child [aria-label^='Less of']")
        assert page.input_value("#clip-q").startswith("red heart - id:")
        upload(page, ("heart.png", drawing("heart")))
        page.fill("#clip-q", "yellow")
        with page.expect_navigation():
            page.click("text=Search by this image")
        assert page.locator(".clip-kept img").bounding_box()["width"] > 90
        kept = page.input_value("#clip-asked [name=q]")
        assert hits_in(page.content()) == hits_by_json(server, q=["yellow", kept])
        page.fill("#clip-q", "blue")
        with page.expect_navigation():
            page.click("input[type=submit]")
        assert hits_in(page.content()) == hits_by_json(server, q=["blue", kept])
        assert page.locator("[data-script]:visible").count() == 0


@chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window_and_asks_no_other_host(width, browser_page, server):
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.set_viewport_size({"width": width, "height": 800})

    def fits() -> bool:
        return browser_page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    browser_page.goto(server + PAGE)
    assert fits()
    browser_page.fill("#clip-q", "unpronounceable" * 20)
    wait_for_title(browser_page, "unpronounceable")
    browser_page.click("#clip-elsewhere summary")
    browser_page.click("text=Condition in SQL")
    upload(browser_page, ("heart.png", drawing("heart")))
    browser_page.locator(".clip-kept img").wait_for()
    assert fits()
    browser_page.goto(server + LIST)
    assert fits()
    assert all(url.startswith((server, "data:", "blob:")) for url in asked)


@chromium
def test_nothing_of_the_database_runs_in_the_browser(browser_page, demo_engine, demo_dir, tmp_path):
    vector = demo_engine.embed_item("red").tobytes()
    rows = [
        (NASTY, vector, None, drawing("heart", 50, 50), "{}"),
        ("label", vector, NASTY, None, json.dumps({"label": NASTY})),
    ]
    file = make_collection(tmp_path / "photos.db", rows)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), env=env, log=tmp_path / "log") as url:
        browser_page.goto(url + PAGE)
        browser_page.fill("#clip-q", QUOTED)
        wait_for_title(browser_page, QUOTED[:10])
        browser_page.click(f'[data-id="{NASTY.replace(chr(34), chr(92) + chr(34))}"] [aria-label^="More of"]')
        wait_for_title(browser_page, '"' + NASTY.replace('"', '\\"')[:5])  # the query is the text in quotes and an id
        browser_page.evaluate("new Promise(done => setTimeout(done, 200))")
        assert len(hits_shown_on(browser_page)) == 2
        assert browser_page.evaluate("window.broken") is None


# On Datasette's next version


def test_the_page_and_its_links_on_the_alpha(alpha_bin, photos, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(photos), "--memory", env=env, log=tmp_path / "log", bin=alpha_bin) as url:
        page = httpx.get(url + search_url(q="red heart"))
        assert page.status_code == 200
        assert hits_in(page.text) == hits_by_json(url, q="red heart")
        for path in (LIST, "/", "/photos", "/photos/embeddings"):
            assert PAGE in links_in(httpx.get(url + path).text, "href"), path
        sql = links_in(page.text, "sql=")[0].replace("/-/query?", "/-/query.json?")
        rows = httpx.get(url + sql + "&_shape=array").json()
        assert [(row["id"], f"{row['score']:.3f}") for row in rows] == hits_in(page.text)
        elsewhere = {"origin": "https://notebook.example", "sec-fetch-site": "cross-site", "cookie": "a=b"}
        assert httpx.post(url + PAGE, headers=elsewhere, data={"q": "red"}).status_code == 200


def test_what_is_private_on_the_alpha(alpha_bin, photos, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    for what, config in PRIVATE.items():
        (tmp_path / "config.json").write_text(json.dumps(config))
        arguments = [str(photos), "--memory", "-c", str(tmp_path / "config.json")]
        with serving(*arguments, env=env, log=tmp_path / "log", bin=alpha_bin) as url:
            for path in WITHIN:
                assert httpx.get(url + path).status_code == 403, (what, path)
            for path in LISTS:
                assert PAGE not in httpx.get(url + path).text, (what, path)
            assert "emoji" not in httpx.get(f"{url}{LIST}/photos/nothing").text, what
