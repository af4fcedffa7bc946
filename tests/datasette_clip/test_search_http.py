"""Search by SQL and by JSON: rows and order match a numpy oracle, and clients without permission get nothing."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest
from datasette.app import Datasette
from PIL import Image

from clip_collections.collection import open_collection
from clip_collections.index.build import index
from clip_collections.thumbnails import rows_without_thumbnail, write_thumbnails
from conftest import ROOT
from datasette_clip.api.thumbnail import rowids_with_picture
from llm_clip_onnx.vectors import unit
from nasty import photo, saved, turned
from serving import environment, serving
from stored import llms_database

# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SEARCH = "/-/clip/search/photos/emoji.json"
LLMS_TABLES = """
create table collections (id integer primary key, name text, model text);
create unique index idx_collections_name on collections (name);
create table embeddings (collection_id integer references collections(id), id text, embedding blob, content text,
    content_blob blob, content_hash blob, metadata text, updated integer, primary key (collection_id, id));
insert into collections values (1, 'emoji', 'clip'), (2, 'other', 'clip'), (3, 'words', 'ada-002'), (4, 'empty', 'clip');
"""


@pytest.fixture(scope="module")
def stored(demo_engine) -> dict[str, tuple[np.ndarray, dict]]:
    """120 emoji: id -> embedding and metadata."""
    with sqlite3.connect(ROOT / "demo/emoji.db") as connection:
        rows = connection.execute('select id, label, "group", image from emoji order by id limit 120').fetchall()
    return {
        id_: (demo_engine.embed_item(image), {"label": label, "group": group}, image)
        for id_, label, group, image in rows
    }


@pytest.fixture(scope="module")
def database(stored, tmp_path_factory) -> Path:
    """A database as `llm embed-multi` writes it, plus rows that `llm` never writes."""
    path = tmp_path_factory.mktemp("files") / "photos.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(LLMS_TABLES)
        for id_, (embedding, metadata, image) in stored.items():
            row = (id_, embedding.tobytes(), image, json.dumps(metadata))
            connection.execute("insert into embeddings values (1, ?, ?, null, ?, null, ?, 0)", row)
        connection.execute("insert into embeddings (collection_id, id) values (1, 'no vector')")
        connection.execute("insert into embeddings (collection_id, id, embedding) values (1, 'short', x'0000803f')")
        near = next(iter(stored.values()))[0]
        connection.execute(
            "insert into embeddings (collection_id, id, embedding) values (2, 'else', ?)", [near.tobytes()]
        )
        connection.execute("insert into embeddings (collection_id, id, embedding) values (3, 'a', ?)", [bytes(6144)])
        connection.execute("create table faucets (sku text primary key, vec blob, photo text)")
        for number, (embedding, *_) in enumerate(list(stored.values())[:20]):
            connection.execute(
                "insert into faucets values (?, ?, ?)", (f"f{number}", embedding.tobytes(), f"p{number}")
            )
    return path


FAUCETS = {"table": "faucets", "vector": "vec", "image_url": "https://img.example/{photo}.jpg"}


def datasette_of(database: Path, **metadata) -> Datasette:
    """A Datasette that serves a database, with a collection of its table `faucets`."""
    collections = {"photos": {"faucets": FAUCETS}}
    plugins = {"plugins": {"datasette-clip": {"collections": collections} | metadata.pop("clip", {})}}
    return Datasette([str(database)], memory=True, cors=True, metadata=plugins | metadata)


@pytest.fixture
def datasette(database, demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr("datasette.handle_exception.rich", None)  # a deployment has no rich
    return datasette_of(database)


def ask(datasette: Datasette, path: str, method: str = "GET", **sent) -> httpx.Response:
    async def request() -> httpx.Response:
        return await datasette.client.request(method, path, **sent)

    path = path.removeprefix("http://localhost")
    return asyncio.run(request())


def ranked(stored, query: np.ndarray) -> list[str]:
    """All ids by their cosine with a query, the largest first."""
    query = query.astype(np.float64)
    scores = {
        id_: e.astype(np.float64) @ query / np.linalg.norm(e.astype(np.float64)) for id_, (e, *_) in stored.items()
    }
    return sorted(scores, key=lambda id_: (-scores[id_], id_))


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["id"] for result in response.json()["results"]]


def query_of(engine, stored, *terms: tuple[float, str, str]) -> np.ndarray:
    """The weighted sum of unit embeddings. A term is (weight, "text" or "id", value)."""
    weighted = [
        w * unit((engine.embed_item(v) if kind == "text" else stored[v][0]).astype(np.float64)) for w, kind, v in terms
    ]
    return np.sum(weighted, axis=0)


def first_id(stored) -> str:
    return next(iter(stored))


QUERIES = [
    ("red heart", [(1, "text", "red heart")]),
    ("sad face - blue", [(1, "text", "sad face"), (-1, "text", "blue")]),
    ('0.5*"fruit" + 2*animal', [(0.5, "text", "fruit"), (2, "text", "animal")]),
    ("id:FIRST", [(1, "id", "FIRST")]),
    ('id:FIRST - 0.3*"face"', [(1, "id", "FIRST"), (-0.3, "text", "face")]),
    ('[{"id": "FIRST"}, {"text": "green", "weight": 0.7}]', [(1, "id", "FIRST"), (0.7, "text", "green")]),
]


@pytest.mark.parametrize(("query", "terms"), QUERIES, ids=[query for query, _ in QUERIES])
def test_sql_and_json_find_what_numpy_finds(query, terms, datasette, stored, demo_engine):
    query = query.replace("FIRST", first_id(stored))
    terms = [(w, kind, v.replace("FIRST", first_id(stored))) for w, kind, v in terms]
    expected = ranked(stored, query_of(demo_engine, stored, *terms))
    assert ids(ask(datasette, SEARCH, params={"q": query, "k": 30})) == expected[:30]
    sql = "select value ->> 'id' as id, value ->> 'score' as score from json_each(clip_search('emoji', :q, 30))"
    rows = ask(datasette, "/photos.json", params={"sql": sql, "q": query, "_shape": "array"}).json()
    assert [row["id"] for row in rows] == expected[:30]
    best = unit(stored[expected[0]][0].astype(np.float64))
    assert rows[0]["score"] == pytest.approx(best @ unit(query_of(demo_engine, stored, *terms)), abs=2e-6)


def test_an_image_finds_what_is_like_it_whichever_way_it_is_sent(datasette, stored, demo_engine):
    wanted = first_id(stored)
    image = stored[wanted][2]
    expected = ranked(stored, stored[wanted][0])[:20]
    text = base64.urlsafe_b64encode(image).decode()
    assert expected[0] == wanted
    for sent in (
        {"params": {"img": text}},
        {"params": {"q": f"image:{text}"}},
        {"method": "POST", "content": image, "headers": {"content-type": "image/webp"}},
        {"method": "POST", "files": {"image": ("a.webp", image)}},
        {"method": "POST", "json": {"q": json.dumps({"image": text})}},
    ):
        assert ids(ask(datasette, SEARCH, **sent)) == expected
    sql = "select json_extract(clip_search('emoji', {}, 1), '$[0].id')"
    for blob in ("clip_image(:img)", "llm_embed('clip', clip_image(:img))"):
        response = ask(datasette, "/photos.json", params={"sql": sql.format(blob), "img": text, "_shape": "arrayfirst"})
        assert response.json() == [wanted]


def test_an_image_and_words_are_added(datasette, stored, demo_engine):
    wanted = first_id(stored)
    terms = query_of(demo_engine, stored, (1, "id", wanted), (-0.5, "text", "face"))
    sent = {"files": {"image": ("a.webp", stored[wanted][2])}, "data": {"q": "-0.5*face".replace("-", "- ")}}
    assert ids(ask(datasette, SEARCH, "POST", **sent)) == ranked(stored, terms)[:20]


def test_pages_follow_each_other_without_a_gap_or_a_double(datasette, stored, demo_engine):
    expected = ranked(stored, demo_engine.embed_item("face"))
    found, path = [], f"{SEARCH}?q=face&k=50"
    while path:
        answer = ask(datasette, path).json()
        found += [result["id"] for result in answer["results"]]
        path = answer["next_url"]
    assert found == expected
    sent = {"files": {"image": ("a.webp", stored[first_id(stored)][2])}, "data": {"k": "50"}}
    after = ask(datasette, SEARCH, "POST", **sent).json()["next_url"]
    assert ids(ask(datasette, after)) == ranked(stored, stored[first_id(stored)][0])[50:100]


def test_rows_come_with_links_to_them_and_their_pictures(datasette, stored):
    wanted = first_id(stored)
    [result] = ask(datasette, SEARCH, params={"id": wanted, "k": 1}).json()["results"]
    assert result["metadata"] == stored[wanted][1]
    row = ask(datasette, result["url"] + ".json?_shape=array")
    assert row.json()[0]["id"] == wanted
    picture = ask(datasette, result["image"])
    assert picture.content == stored[wanted][2]
    assert (picture.headers["content-type"], picture.headers["x-content-type-options"]) == ("image/webp", "nosniff")


def test_without_a_query_the_first_rows_come(datasette, stored):
    answer = ask(datasette, SEARCH, params={"k": 3}).json()
    assert [(result["id"], result["score"]) for result in answer["results"]] == [
        (id_, None) for id_ in list(stored)[:3]
    ]


def test_a_condition_keeps_what_it_holds_for(datasette, stored, demo_engine):
    group = stored[first_id(stored)][1]["group"]
    expected = [i for i in ranked(stored, demo_engine.embed_item("red")) if stored[i][1]["group"] == group]
    where = f"metadata ->> 'group' = '{group}'"
    assert ids(ask(datasette, SEARCH, params={"q": "red", "where": where, "k": 500})) == expected
    joined = "id in (select sku from faucets) or id like 'z%'"
    found = ids(ask(datasette, SEARCH, params={"q": "red", "where": joined, "k": 500}))
    assert found == [i for i in ranked(stored, demo_engine.embed_item("red")) if i.startswith("z")]


@pytest.mark.parametrize("q", ["red", ""])
@pytest.mark.parametrize("where", ["id < 'b';", "id < 'b' -- letters", "id < 'b'; /* letters"])
def test_a_condition_may_end_in_a_semicolon_or_a_comment(q, where, datasette):
    expected = ids(ask(datasette, SEARCH, params={"q": q, "where": "id < 'b'", "k": 500}))
    assert ids(ask(datasette, SEARCH, params={"q": q, "where": where, "k": 500})) == expected


@pytest.mark.parametrize(
    "name", ["a/b", "/", ".", "..", "../x", "x.json", "~2F", "%2F", "a?b#c", "a&b=c", "'\"<b>", "æ 日本", "+"]
)
def test_a_collection_of_any_name_is_listed_and_its_links_lead_to_it(name, demo_dir, tmp_path, monkeypatch, stored):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with sqlite3.connect(tmp_path / "p.db") as connection:
        connection.executescript(LLMS_TABLES)
        connection.execute("insert into collections values (9, ?, 'clip')", [name])
        blob = next(iter(stored.values()))[0].tobytes()
        connection.execute("insert into embeddings (collection_id, id, embedding) values (9, 'of 9', ?)", [blob])
    datasette = Datasette([str(tmp_path / "p.db")])
    links = re.findall(r'href="(/-/clip/search/p/[^"]+)"', ask(datasette, "/-/clip/search").text)
    answers = [ask(datasette, f"{html.unescape(link)}.json") for link in links]
    assert ["of 9"] in [ids(answer) for answer in answers]
    assert {ask(datasette, html.unescape(link)).status_code for link in links} == {200}


def test_any_table_with_vectors_is_a_collection_by_configuration(datasette, stored, demo_engine):
    expected = ranked(dict(list(stored.items())[:20]), demo_engine.embed_item("red"))
    numbers = {id_: number for number, id_ in enumerate(stored)}
    answer = ask(datasette, "/-/clip/search/photos/faucets.json", params={"q": "red"})
    assert ids(answer) == [f"f{numbers[id_]}" for id_ in expected]
    first = answer.json()["results"][0]
    assert first["image"] == f"https://img.example/p{first['id'][1:]}.jpg"
    assert ask(datasette, first["url"]).status_code == 200


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/-/clip/search/photos/cats.json", 404, "there is no collection 'cats' in database 'photos'"),
        ("/-/clip/search/nope/cats.json", 404, "there is no database 'nope'"),
        ("/-/clip/search/_memory/cats.json", 404, "there is no collection 'cats' in database '_memory'"),
        ("/-/clip/search/photos/words.json?q=a", 400, "collection 'words' holds vectors of model 'ada-002', which is not here; there is 'clip'"),
        (f"{SEARCH}?q=id:nobody", 400, "collection 'emoji' has no row with the id 'nobody'"),
        (f"{SEARCH}?q=id:no+vector", 400, "the row with the id 'no vector' of collection 'emoji' has no vector"),
        (f"{SEARCH}?q=image:zzzz", 400, "not an image but binary data (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"),
        (f"{SEARCH}?q=a+-+a", 400, "the terms of the query cancel out, or have no direction, so nothing is more like it"),
        (f"{SEARCH}?q=a+-+", 400, "query 'a - ' has nothing after character 4; expected a text, id: or image:"),
        (f"{SEARCH}?q=a&k=0", 400, "k is '0'; expected a whole number from 1 to 1000"),
        (f"{SEARCH}?q=a&k=1001", 400, "k is '1001'; expected a whole number from 1 to 1000"),
        (f"{SEARCH}?q=a&offset=-1", 400, "offset is '-1'; expected a whole number from 0 to 1000000"),
        (f"{SEARCH}?q=a&where=nope", 400, "where is no condition that SQLite can read: no such column: nope"),
        (f"{SEARCH}?q=a&where=1)+or+(1", 400, "where is no condition that SQLite can read: it closes a parenthesis that is not open"),
        (f"{SEARCH}?text=red", 400, "'text' is not a field of a search; expected q, id, img, k, offset, where"),
        (f"{SEARCH}?vector=00&k=1", 400, "'vector' is not a field of a search; expected q, id, img, k, offset, where"),
        (f"{SEARCH}?q=a&where=clip_image('?')", 400, "where: clip_image: a string of 1 characters is no image; "),
        (f"{SEARCH}?where=clip_image('?')", 400, "where: clip_image: a string of 1 characters is no image; "),
        (f"{SEARCH}?q=a&where=1;drop+table+x", 400, "where is no condition that SQLite can read: "),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_gets_its_sentence(path, status, sentence, datasette):
    response = ask(datasette, path)
    assert (response.status_code, response.json()["ok"]) == (status, False)
    assert response.json()["error"].startswith(sentence)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("clip_search('cats', 'a')", "clip_search: there is no collection 'cats' in this database"),
        ("clip_search('words', 'a')", "clip_search: collection 'words' holds vectors of model 'ada-002', which is not here; there is 'clip'"),
        ("clip_search('emoji', 'a', 0)", "clip_search: k is 0; expected a whole number from 1 to 1000, of the rows to answer"),
        ("clip_search('emoji', 'a', '0')", "clip_search: k is 0; expected a whole number from 1 to 1000, of the rows to answer"),
        ("clip_search('emoji', x'89504e470d0a1a0a')", "clip_search: begins as PNG and cannot be opened as one (8 bytes)"),
        ("clip_search('emoji', 'id:nobody')", "clip_search: collection 'emoji' has no row with the id 'nobody'"),
        ("clip_search('emoji', x'00')", "clip_search: not an image but binary data (1 byte); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF, or a vector blob of this model, 2048 bytes"),
    ],
)  # fmt: skip
def test_misuse_of_clip_search_raises_with_its_sentence(sql, sentence, datasette, caplog):
    with caplog.at_level(logging.WARNING, "datasette_clip"):
        assert ask(datasette, "/photos.json", params={"sql": f"select {sql}"}).status_code == 400
    assert sentence in caplog.messages


@pytest.mark.parametrize(
    "sql", ["clip_search(null, 'a')", "clip_search('emoji', null)", "clip_search('emoji', 'a', null)"]
)
def test_null_in_null_out(sql, datasette):
    response = ask(datasette, "/photos.json", params={"sql": f"select {sql} as x", "_shape": "array"})
    assert response.json() == [{"x": None}]


@pytest.mark.parametrize(
    ("function", "k"), [("clip_search('emoji', 'red', :k)", "2"), ("clip_classify(zeroblob(2048), 'emoji', :k)", "x")]
)
def test_the_number_of_rows_may_come_from_the_url(function, k, datasette):
    """Datasette binds each field of a URL as a text."""
    params = {"sql": f"select json_array_length({function}) as n", "k": k, "_shape": "array"}
    response = ask(datasette, "/photos.json", params=params)
    assert response.json() == [{"n": 2}] if k == "2" else "k is 'x'" in response.json()["error"]


def test_the_scores_join_to_the_table(datasette, stored, demo_engine):
    sql = (
        "select e.id, e.metadata ->> 'label' as label from json_each(clip_search('emoji', 'red', 4)) s "
        "join embeddings e on e.rowid = s.value ->> 'rowid' order by s.value ->> 'score' desc"
    )
    expected = ranked(stored, demo_engine.embed_item("red"))[:4]
    rows = ask(datasette, "/photos.json", params={"sql": sql, "_shape": "array"}).json()
    assert [(row["id"], row["label"]) for row in rows] == [(id_, stored[id_][1]["label"]) for id_ in expected]


def test_the_canned_query_of_the_demo_hides_that_it_is_json(
    database, stored, demo_engine, demo_dir, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    (tmp_path / "emoji.db").write_bytes(database.read_bytes())
    metadata = json.loads((ROOT / "demo/metadata.json").read_text())
    datasette = Datasette([str(tmp_path / "emoji.db")], metadata=metadata)
    rows = ask(datasette, "/emoji/search.json?query=sad+face&_shape=array").json()
    expected = ranked(stored, demo_engine.embed_item("sad face"))[:20]
    assert [(row["id"], row["label"]) for row in rows] == [(id_, stored[id_][1]["label"]) for id_ in expected]


HIDDEN = [
    {"allow": {"id": "root"}},
    {"databases": {"photos": {"allow": {"id": "root"}}}},
    {"databases": {"photos": {"tables": {"embeddings": {"allow": {"id": "root"}}}}}},
]


@pytest.mark.parametrize("metadata", HIDDEN, ids=["instance", "database", "table"])
def test_what_is_private_is_not_searched_by_strangers(metadata, database, stored, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr("datasette.handle_exception.rich", None)
    datasette = datasette_of(database, **metadata)
    picture = f"/-/clip/thumbnail/photos/emoji?id={first_id(stored)}"
    for path in (f"{SEARCH}?q=red", SEARCH, picture):
        response = ask(datasette, path)
        assert response.status_code == 403
        assert first_id(stored) not in response.text
    cookies = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    assert len(ids(ask(datasette, f"{SEARCH}?q=red", cookies=cookies))) == 20
    assert ask(datasette, picture, cookies=cookies).status_code == 200


def test_a_condition_is_for_who_may_run_sql(database, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(database, allow_sql=False)
    response = ask(datasette, f"{SEARCH}?q=red&where=1")
    assert (response.status_code, response.json()["error"]) == (403, "where is SQL, which you may not run here")
    assert len(ids(ask(datasette, f"{SEARCH}?q=red"))) == 20


@pytest.mark.parametrize(
    ("collections", "sentence"),
    [
        (["x"], "plugins.datasette-clip.collections is ['x']; expected an object of databases and their collections"),
        ({"photos": 3}, "plugins.datasette-clip.collections.photos is 3; expected an object of names and collections"),
        ({"photos": {"a": 3}}, "plugins.datasette-clip.collections.photos.a is 3; expected an object with table and vector"),
    ],
)  # fmt: skip
def test_collections_that_cannot_be_read_stop_the_start(collections, sentence, database):
    import click

    with pytest.raises(click.ClickException) as raised:
        ask(datasette_of(database, clip={"collections": collections}), "/")
    assert raised.value.message == sentence


def test_a_configured_table_that_is_not_there_is_named_in_the_log(database, demo_dir, monkeypatch, caplog):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr("datasette.handle_exception.rich", None)
    datasette = datasette_of(database, clip={"collections": {"photos": {"taps": FAUCETS | {"table": "taps"}}}})
    with caplog.at_level(logging.WARNING, "datasette_clip"):
        response = ask(datasette, "/-/clip/search/photos/taps.json?q=a")
    assert response.status_code == 404
    assert "photos: table of collection 'taps' is 'taps'; the database has no such table" in caplog.messages


def test_pages_of_other_origins_may_search(datasette):
    assert ask(datasette, f"{SEARCH}?q=red").headers["access-control-allow-origin"] == "*"


@pytest.mark.long
def test_a_server_searches_a_file_of_others_beside_its_own(database, stored, demo_dir, demo_engine, tmp_path):
    """End to end. The file is read-only, as in the container."""
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("-i", str(database), "--memory", env=env, log=tmp_path / "log") as url:
        response = httpx.get(url + SEARCH, params={"q": "red heart"})
        sql = "select json_extract(clip_search('emoji', 'red heart', 1), '$[0].id') as id"
        row = httpx.get(f"{url}/photos.json", params={"sql": sql, "_shape": "array"}).json()
    expected = ranked(stored, demo_engine.embed_item("red heart"))
    assert ids(response) == expected[:20]
    assert row == [{"id": expected[0]}]


@pytest.fixture
def odd(demo_engine, tmp_path) -> Path:
    """A database with four rows that `llm` would not write, each invalid in another way."""
    path, vector = tmp_path / "odd.db", demo_engine.embed_item("red").tobytes()
    with sqlite3.connect(path) as connection:
        connection.executescript(LLMS_TABLES)
        connection.execute("insert into collections values (5, null, 'clip')")
        rows = [(b"\0id", "a", None), ("blob", b"\xff", None), ("deep", "a", "[" * 100_000), ("nan", "a", '{"x": NaN}')]
        for id_, content, metadata in rows:
            row = (id_, vector, content, metadata)
            connection.execute("insert into embeddings values (1, ?, ?, ?, null, null, ?, 0)", row)
    return path


def test_rows_that_are_odd_are_answered_all_the_same(odd, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(odd)
    response = ask(datasette, "/-/clip/search/odd/emoji.json?q=red")
    assert response.status_code == 200
    strict = json.loads(response.text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert {"$base64": True, "encoded": "AGlk"} in [result["id"] for result in strict["results"]]
    sql = "select json_array_length(clip_search('emoji', 'red')) as n"
    assert ask(datasette, "/odd.json", params={"sql": sql, "_shape": "array"}).json() == [{"n": 4}]
    for path in ("/", "/odd", "/-/clip/search", "/-/clip/search/odd/emoji"):
        assert ask(datasette, path).status_code == 200


@pytest.mark.parametrize(
    "tables",
    [
        "create table collections (id text, name text, model text); insert into collections values (\"'x' or 1\", 'c', 'clip');"
        "create table embeddings (collection_id text, id text, embedding blob)",
        "create table collections (id integer, name text, model text); insert into collections values (1, 'c', 'clip');"
        "create table embeddings (collection_id integer, id text primary key, embedding blob) without rowid",
        "create table collections (id integer, name text, model text); insert into collections values (1, 'c', 'clip');"
        "create table t (collection_id, id, embedding); create view embeddings as select * from t",
    ],
    ids=["ids that are SQL", "without rowid", "view"],
)
def test_tables_that_only_look_like_llms_are_no_collections(tables, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr("datasette.handle_exception.rich", None)
    with sqlite3.connect(tmp_path / "odd.db") as connection:
        connection.executescript(tables)
    datasette = datasette_of(tmp_path / "odd.db")
    assert ask(datasette, "/-/clip/search/odd/c.json?q=red").status_code == 404
    assert "/-/clip/search/odd/c" not in ask(datasette, "/").text


@pytest.mark.parametrize("name", ["q", "id", "where"])
def test_an_unpaired_surrogate_is_refused(name, datasette):
    response = ask(
        datasette, SEARCH, "POST", content=f'{{"{name}": "\\ud800"}}', headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert "which is no character" in response.json()["error"]


@pytest.mark.parametrize(
    ("url", "image"),
    [
        ("https://x.example/{sku}.jpg", "https://x.example/a%20b%23%2F.jpg"),
        ("{photo}", "https://y.example/p#1"),
        ("{bad}", None),
        ("https://x.example/{none}", None),
    ],
)
def test_addresses_of_images_are_quoted_and_none_that_runs(url, image, demo_engine, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with sqlite3.connect(tmp_path / "photos.db") as connection:
        connection.execute("create table faucets (sku text primary key, vec blob, photo text, bad text, none text)")
        row = ("a b#/", demo_engine.embed_item("red").tobytes(), "https://y.example/p#1", "javascript:alert(1)")
        connection.execute("insert into faucets values (?, ?, ?, ?, null)", row)
    clip = {"collections": {"photos": {"faucets": FAUCETS | {"image_url": url}}}}
    [result] = ask(datasette_of(tmp_path / "photos.db", clip=clip), "/-/clip/search/photos/faucets.json?q=red").json()[
        "results"
    ]
    assert result["image"] == image


def test_an_uploaded_image_is_not_among_its_own_hits(datasette):
    """An uploaded image is not stored and needs no id."""
    assert (
        len(ids(ask(datasette, SEARCH, "POST", content=saved(photo(), "JPEG"), headers={"content-type": "image/jpeg"})))
        == 20
    )


@pytest.mark.long
def test_thumbnails_that_were_made_are_shown_in_place_of_images(database, stored, demo_dir, monkeypatch, tmp_path):
    import shutil

    from serving import run_llm

    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    copy = Path(shutil.copy(database, tmp_path / "photos.db"))
    run_llm("clip", "index", str(copy), "-c", "emoji", env=environment(tmp_path / "llm"))
    with sqlite3.connect(copy) as conn:
        conn.execute("update embeddings set content_blob = zeroblob(200000) where id = ?", [first_id(stored)])
    datasette = datasette_of(copy)
    [result] = ask(datasette, SEARCH, params={"id": first_id(stored), "k": 1}).json()["results"]
    picture = ask(datasette, result["image"])
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/webp")
    assert picture.content.startswith(b"RIFF")
    assert len(picture.content) <= 30_000


def test_a_small_picture_is_the_middle_square_of_the_thumbnail_in_fewer_bytes(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    stored = {"photo": saved(photo(600, 400), "JPEG") + bytes(100_000), "drawing": saved(photo(72, 72), "PNG")}
    with closing(llms_database(str(tmp_path / "photos.db"), things=dict.fromkeys(stored, np.ones(512, "f4")))) as conn:
        conn.executemany("update embeddings set content_blob = ? where id = ?", [(b, i) for i, b in stored.items()])
        collection = open_collection(conn, "things")
        index(conn, collection)
        write_thumbnails(
            conn, collection, [row for row in rows_without_thumbnail(conn, collection) if row[1] == "photo"]
        )
        conn.commit()
    datasette = datasette_of(tmp_path / "photos.db", clip={"collections": {}})
    whole, small = (ask(datasette, "/-/clip/thumbnail/photos/things?id=photo" + size) for size in ("", "&size=small"))
    assert (whole.status_code, small.status_code) == (200, 200)
    assert len(small.content) < len(whole.content)
    assert small.headers["etag"] != whole.headers["etag"]
    tag = {"if-none-match": small.headers["etag"]}
    assert ask(datasette, "/-/clip/thumbnail/photos/things?id=photo&size=small", headers=tag).status_code == 304
    with Image.open(io.BytesIO(whole.content)) as image, Image.open(io.BytesIO(small.content)) as square:
        assert (image.size, square.size, square.format) == ((320, 213), (213, 213), "WEBP")
        middle = np.asarray(image.convert("RGB").crop((53, 0, 266, 213)), float)
        assert (
            np.abs(middle - np.asarray(square.convert("RGB"), float)).mean() < 20
        )  # WebP of a noisy photo; of another part it is above 60
    drawing = ask(datasette, "/-/clip/thumbnail/photos/things?id=drawing&size=small")
    assert drawing.content == stored["drawing"]


def test_pictures_of_some_rows_are_found_without_reading_those_of_all():
    vectors = dict.fromkeys((f"p{number:05}" for number in range(5000)), np.ones(8, "f4"))
    with closing(llms_database(things=vectors)) as conn:
        collection = open_collection(conn, "things")
        index(conn, collection)
        conn.execute("insert into clip_thumbnails select 'things', id, zeroblob(9), rowid, null from embeddings")
        steps = []
        conn.set_progress_handler(lambda: steps.append(1), 100)  # called every 100 steps of SQLite's machine
        assert rowids_with_picture(conn, collection, [7, 4000], made=True) == {7, 4000}
        assert len(steps) < 10


@pytest.mark.parametrize("orient", ["exif", None])
def test_an_image_is_read_as_the_images_of_the_collection_were(orient, demo_dir, demo_engine, tmp_path, monkeypatch):
    picture = turned()
    with sqlite3.connect(tmp_path / "photos.db") as connection:
        connection.executescript(LLMS_TABLES)
        blob = demo_engine.embed_item(picture, orient).tobytes()
        connection.execute("insert into embeddings (collection_id, id, embedding) values (1, 'a', ?)", [blob])
        connection.execute("create table clip_collection_facts (collection_id, orient)")
        connection.execute("insert into clip_collection_facts values (1, ?)", [orient])
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = datasette_of(tmp_path / "photos.db", clip={"collections": {}})
    [sent] = ask(datasette, SEARCH, "POST", files={"image": ("a.jpg", picture)}).json()["results"]
    assert sent["score"] == pytest.approx(1, abs=1e-4)
    sql = "select clip_search('emoji', clip_image(:image), 1) as hits"
    query = {"sql": sql, "image": base64.b64encode(picture).decode(), "_shape": "array"}
    [row] = ask(datasette, "/photos.json?" + str(httpx.QueryParams(query))).json()
    assert json.loads(row["hits"])[0]["score"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "id", "sentence"),
    [
        ("things", "", "there is no id; expected ?id= and the id of a row"),
        ("things", "nope", "collection 'things' has no row with the id 'nope'"),
        ("things", "x" * 80, "collection 'things' has no row with the id '" + "x" * 56 + "..."),
        ("things", "words", "the row with the id 'words' of collection 'things' has no image"),
        ("things", "empty", "the row with the id 'empty' of collection 'things' has no image"),
        ("things", "number", "the row with the id 'number' of collection 'things' has no image"),
        ("things", "pdf", "the row with the id 'pdf' of collection 'things' has an image that cannot be read; no small picture can be made of it"),
        ("things", "cut", "the row with the id 'cut' of collection 'things' has an image that cannot be read; no small picture can be made of it"),
        ("things", "new", "the row with the id 'new' of collection 'things' has no small picture yet; llm clip index makes it"),
        ("shop", "words", "the row with the id 'words' of collection 'shop' has no small picture here, because its image is at another URL (image_url)"),
    ],
)  # fmt: skip
def test_why_a_row_has_no_small_picture_is_said(name, id, sentence, demo_engine, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    large = saved(photo(), "JPEG") + bytes(200_000)
    images = {"words": None, "empty": b"", "number": 5, "pdf": b"%PDF-1.7", "cut": large[:200] + bytes(200_000)}
    vector = demo_engine.embed_item("red")
    conn = llms_database(str(tmp_path / "photos.db"), things=dict.fromkeys([*images, "new"], vector))
    conn.executemany("update embeddings set content_blob = ? where id = ?", [(b, i) for i, b in images.items()])
    collection = open_collection(conn, "things")
    index(conn, collection)
    write_thumbnails(conn, collection, rows_without_thumbnail(conn, collection))
    conn.execute("update embeddings set content_blob = ? where id = 'new'", [large])
    conn.commit()
    conn.close()
    shop = {"table": "embeddings", "vector": "embedding", "id": "id", "image_url": "https://img.example/{id}.jpg"}
    datasette = datasette_of(tmp_path / "photos.db", clip={"collections": {"photos": {"shop": shop}}})
    response = ask(datasette, f"/-/clip/thumbnail/photos/{name}", params={"id": id})
    assert response.status_code == 404
    assert html.escape(sentence).replace("&#x27;", "&#39;") in response.text
