"""Datasette's own table pages, on 0.65 and on the alpha: a filter by likeness, and cells with vectors and pictures."""

from __future__ import annotations

import asyncio
import html
import json
import re
import sqlite3
from contextlib import closing

import httpx
import pytest
from datasette.app import Datasette

from datasette_clip.tables import places
from llm_clip_onnx.vectors import to_blob
from nasty import photo, saved
from serving import BIN, environment, serving
from stored import llms_database, oracle

WORDS = ["cat", "dog", "red heart", "blue heart", "car", "train", "apple", "banana", "moon", "sun"]
LINKS = re.compile(r'(?:href|src)="([^"]*)"')


@pytest.fixture(scope="module")
def vectors(demo_engine) -> dict:
    return dict(zip(WORDS, demo_engine.embed_text(WORDS)))


@pytest.fixture(scope="module", params=["0.65", "1.0a"])
def server(request, demo_dir, vectors, alpha_bin, tmp_path_factory):
    """The address of a Datasette with llm's collections in l.db, and other tables with vectors in o.db."""
    folder = tmp_path_factory.mktemp("tables")
    llms = llms_database(str(folder / "l.db"), photos=vectors, others={"x": vectors["cat"]})
    llms.execute("update embeddings set content_blob = ? where id = 'cat'", [saved(photo(64, 48), "JPEG")])
    llms.commit()
    with sqlite3.connect(folder / "o.db") as conn:
        conn.executescript(
            "create table shop (sku text primary key, title text, vector blob, picture blob);"
            "create table plain (n integer, noise blob); insert into plain values (1, randomblob(2048));"
            "create table keyed (id text primary key, vector blob) without rowid;"
            "create table small (id integer primary key, vector blob);"
            "create table bare (title text, vector blob); create view seen as select * from shop"
        )
        for word, vector in vectors.items():
            conn.execute("insert into shop values (?, ?, ?, ?)", [word, word.upper(), to_blob(vector), b"no picture"])
            conn.execute("insert into bare values (?, ?)", [word, to_blob(vector)])
            conn.execute("insert into small (vector) values (?)", [to_blob(vector[:256])])
        conn.execute("insert into keyed values ('a', ?)", [to_blob(vectors["cat"])])
        conn.execute("update shop set picture = ? where sku = 'cat'", [saved(photo(64, 48), "PNG")])
    configured = {"o": {"faucets": {"table": "shop", "vector": "vector", "image": "picture"}}}
    metadata = folder / "metadata.json"
    described = {"databases": {"o": {"tables": {"shop": {"description_html": "Faucets &amp; <b>more</b>"}}}}}
    plugins = {"plugins": {"datasette-clip": {"collections": configured}}}
    metadata.write_text(json.dumps(described | plugins | {"license": "Licence of all"}))
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    bin = BIN if request.param == "0.65" else alpha_bin
    files = [str(folder / "l.db"), str(folder / "o.db"), "-m", str(metadata)]
    files += ["-c", str(metadata)] if request.param == "1.0a" else []
    with serving(*files, env=env, log=folder / "log", bin=bin) as url:
        yield url


def get(url: str, **fields) -> httpx.Response:
    return httpx.get(url, params=fields or None, follow_redirects=True)


def nearest(vectors: dict, query, k: int) -> set:
    return {id_ for id_, _ in oracle(vectors, query)[:k]}


@pytest.mark.parametrize(
    ("table", "key"), [("l/embeddings", "id"), ("o/shop", "sku"), ("o/bare", "title")], ids=lambda value: value
)
def test_a_table_is_filtered_to_the_nearest_rows(table, key, server, vectors, demo_engine):
    fields = {"_like": "red heart", "_like_k": 3, "_shape": "array"}
    fields |= {"collection_id": 1} if table == "l/embeddings" else {}
    found = get(f"{server}/{table}.json", **fields).json()
    expected = nearest(vectors, demo_engine.embed_item("red heart"), 3)
    assert [row[key] for row in found] == [word for word in sorted(WORDS, key=order_in(table)) if word in expected]


def order_in(table: str):
    """The order of Datasette's rows: by primary key, else by rowid."""
    return WORDS.index if table == "o/bare" else str


def test_a_stored_row_is_a_query_too_and_terms_add_up(server, vectors):
    found = get(f"{server}/o/shop.json", _like_id="cat", _like_k=2, _shape="array").json()
    assert {row["sku"] for row in found} == nearest(vectors, vectors["cat"], 2)
    added = get(f"{server}/o/shop.json", _like="id:cat - dog", _like_k=1, _shape="array").json()
    assert [row["sku"] for row in added] == ["cat"]


def test_other_filters_facets_and_csv_go_on(server):
    fields = {"_like": "red heart", "_like_k": 4, "sku__contains": "heart"}
    assert {row["sku"] for row in get(f"{server}/o/shop.json", _shape="array", **fields).json()} == {
        "red heart",
        "blue heart",
    }
    csv = get(f"{server}/o/shop.csv", _col="title", **fields)  # a BLOB in CSV is an error of the alpha's own
    assert csv.text.split() == ["sku,title", "blue", "heart,BLUE", "HEART", "red", "heart,RED", "HEART"]
    facets = get(f"{server}/o/shop.json", _facet="title", **fields).json()["facet_results"]
    results = facets.get("results", facets)["title"]["results"]
    assert {facet["value"] for facet in results} == {"RED HEART", "BLUE HEART"}


def test_the_page_says_how_many_and_leads_to_the_ranked_rows(server):
    page = html.unescape(get(f"{server}/o/shop", _like="red heart", _like_k=3).text)
    assert "the row is among the 3 nearest to red heart (in the table's order, not ranked)" in page
    above = page.partition('<table class="rows-and-columns">')[0]
    assert '<p class="clip-ranked"><a href="/-/clip/search/o/faucets?q=red+heart">Rank by likeness' in above
    assert "Faucets &amp; <b>more</b>" in get(f"{server}/o/shop", _like="red heart").text
    if "1.0" not in get(f"{server}/-/versions.json").json()["datasette"]["version"]:  # which inherits no licence
        assert "Licence of all" in above
    default = html.unescape(get(f"{server}/o/shop", _like="red heart").text)
    assert "among the 100 nearest" in default
    assert "Rank by likeness" not in get(f"{server}/o/shop").text


REFUSED = {
    "a view": ("o/seen", {"_like": "a"}, "'seen' is a view, whose rows have no rowid"),
    "no rowid": ("o/keyed", {"_like": "a"}, "which is WITHOUT ROWID; expected one with rowids"),
    "no vectors": ("o/plain", {"_like": "a"}, "table 'plain' has no column of vectors, so _like cannot filter it"),
    "two collections": ("l/embeddings", {"_like": "a"}, "several collections; expected _like_collection with the name"),
    "unknown collection": ("l/embeddings", {"_like": "a", "_like_collection": "b"}, "no collection of that name"),
    "unknown column": ("o/bare", {"_like": "a", "_like_column": "b"}, "'b'; table 'bare' has the columns"),
    "unknown id": ("o/shop", {"_like_id": "zebra"}, "'zebra'"),
    "no number": ("o/shop", {"_like": "a", "_like_k": "x"}, "_like_k is 'x'; expected a whole number from 1 to 1000"),
    "other size": ("o/small", {"_like": "a"}, "holds vectors of 256 dimensions, and 512 are asked"),
}


@pytest.mark.parametrize(("table", "fields", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_filtered_is_refused_with_a_sentence(table, fields, sentence, server):
    response = get(f"{server}/{table}.json", **fields)
    assert response.status_code == 400
    assert sentence in response.json()["error"]
    page = get(f"{server}/{table}", **fields)
    assert (page.status_code, sentence in html.unescape(page.text)) == (400, True)


def test_a_collection_is_chosen_by_its_name(server):
    found = get(f"{server}/l/embeddings.json", _like="a", _like_collection="others", _shape="array").json()
    assert [row["id"] for row in found] == ["x"]


@pytest.mark.parametrize("page", ["l/embeddings", "o/shop", "o/bare", "o/shop/cat", "l/embeddings/1,cat"])
def test_cells_show_vectors_with_links_that_answer(page, server):
    text = get(f"{server}/{page}").text
    cells = re.findall(r"<td[^>]*>((?:(?!</td>).)*more like this.*?)</td>", text, re.DOTALL)
    assert len(cells) == (1 if page.endswith("cat") else 11 if page == "l/embeddings" else 10)
    assert all("512 numbers" in cell for cell in cells)
    for link in {html.unescape(link) for cell in cells for link in LINKS.findall(cell)}:
        assert get(server + link).status_code == 200, link


@pytest.mark.parametrize(
    ("page", "src"),
    [("l/embeddings", "/-/clip/thumbnail/l/photos?id=cat"), ("o/shop", "/-/clip/thumbnail/o/faucets?id=cat")],
)
def test_a_stored_picture_is_shown(page, src, server):
    text = get(f"{server}/{page}").text
    assert f'<img src="{src}"' in text
    assert get(server + src).headers["content-type"].startswith("image/")


def test_other_blobs_stay_datasettes(server):
    assert "Binary:&nbsp;2,048&nbsp;bytes" in get(f"{server}/o/plain").text


def test_a_row_of_1_0_has_the_link_in_its_menu(server):
    version = get(f"{server}/-/versions.json").json()["datasette"]["version"]
    text = get(f"{server}/o/shop/cat").text
    assert ("More like this in faucets" in text) == version.startswith("1.")


@pytest.fixture(params=["collections", "embeddings"])
def private(request, demo_dir, vectors, monkeypatch, tmp_path) -> tuple[Datasette, str]:
    """A Datasette in which only root may view one of llm's tables, and the name of that table."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    llms_database(str(tmp_path / "l.db"), secret=vectors).close()
    tables = {request.param: {"allow": {"id": "root"}}}
    return Datasette([str(tmp_path / "l.db")], metadata={"databases": {"l": {"tables": tables}}}), request.param


def test_a_stranger_filters_no_private_collection_and_reads_no_name(private):
    datasette, table = private

    async def answers():
        return [await datasette.client.get(path) for path in ("/l/embeddings?_like=cat", "/l/embeddings")]

    filtered, plain = asyncio.run(answers())
    assert filtered.status_code == 403
    assert plain.status_code == (403 if table == "embeddings" else 200)
    assert "/-/clip/search/l/secret" not in plain.text  # the label of its foreign key is Datasette's own
    assert "secret" not in filtered.text
    if table == "collections":
        assert "/l/embeddings?collection_id=1&amp;_like_id=cat" in plain.text


def test_a_page_asks_once_if_names_may_be_shown(vectors, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    llms_database(str(tmp_path / "l.db"), photos=vectors).close()
    asked, ask = [], places.may_view_table
    monkeypatch.setattr(places, "may_view_table", lambda *about: asked.append(about[2:]) or ask(*about))
    page = asyncio.run(Datasette([str(tmp_path / "l.db")]).client.get("/l/embeddings"))
    assert page.text.count("more like this") == len(vectors)
    assert asked == [("l", "collections")]


@pytest.mark.parametrize("order", ["", "?_sort_desc=id"])
def test_thumbnails_of_rows_are_looked_for_ahead(order, vectors, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with closing(llms_database(str(tmp_path / "l.db"), photos=vectors)) as conn:
        conn.execute("create table clip_thumbnails (collection text, id text, image blob, row integer)")
        shown = ["apple", "moon", "cat"]
        conn.executemany("insert into clip_thumbnails values ('photos', ?, x'00', 0)", [(word,) for word in shown])
        conn.commit()
    asked, read = [], places.read_thumbnails
    monkeypatch.setattr(places, "read_thumbnails", lambda *of: asked.append(of[-1]) or read(*of))
    page = asyncio.run(Datasette([str(tmp_path / "l.db")]).client.get(f"/l/embeddings{order}"))
    assert sorted(re.findall(r'src="/-/clip/thumbnail/l/photos\?id=(\w+)"', page.text)) == sorted(shown)
    assert len(asked) == (len(vectors) if order else 1)


def test_two_columns_of_vectors_have_the_ids_of_their_own_collections(vectors, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    blob = to_blob(vectors["cat"])
    with sqlite3.connect(tmp_path / "o.db") as conn:
        conn.execute("create table shop (sku text primary key, title text, front blob, back blob)")
        conn.execute("insert into shop values ('a1', 'A cat', ?, ?)", [blob, blob])
    configured = {
        "fronts": {"table": "shop", "vector": "front", "id": "sku"},
        "backs": {"table": "shop", "vector": "back", "id": "title"},
    }
    metadata = {"plugins": {"datasette-clip": {"collections": {"o": configured}}}}
    page = asyncio.run(Datasette([str(tmp_path / "o.db")], metadata=metadata).client.get("/o/shop")).text
    assert re.findall(r"/-/clip/search/o/(\w+)\?q=([^\"]+)", page) == [
        ("fronts", "id%3Aa1"),
        ("backs", "id%3AA+cat"),
    ]


def test_a_thumbnail_is_never_said_to_be_missing_while_it_is_read(tmp_path, monkeypatch):
    """Cells are rendered at once: another one may read what is kept between any two steps."""
    page, seen = places.Page(0), []
    with sqlite3.connect(tmp_path / "o.db") as conn:
        conn.execute("create table clip_thumbnails (collection text, id text, row text, image blob)")
        conn.execute("insert into clip_thumbnails values ('shop', 'a1', '', x'00')")
        genuine = places.rows
        monkeypatch.setattr(places, "rows", lambda *query: seen.append(dict(page.thumbnails)) or genuine(*query))
        places.read_thumbnails(conn, page, "shop", ["a1", "b2"])
    assert seen == [{}]
    assert page.thumbnails == {("shop", "a1"): True, ("shop", "b2"): False}
