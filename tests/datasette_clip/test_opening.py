"""The first query that needs the image tower opens it outside SQL's time limit, whatever kind of query it is."""

from __future__ import annotations

import asyncio
import base64
import sqlite3
import threading
import time

import pytest
from datasette.app import Datasette

from datasette_clip import model
from llm_clip_onnx.engine import Engine, default_engine
from llm_clip_onnx.lazy import Lazy
from nasty import photo, saved

OUTSIDE_SQL = "asyncio"  # prefix of the thread names of asyncio.to_thread; Datasette's SQL threads have another
OPENING_S = 2  # longer than Datasette's limit of 1 s for SQL
JPEG = saved(photo(224, 224), "JPEG")
IMG = base64.urlsafe_b64encode(JPEG).decode()
LLMS_TABLES = """
create table collections (id integer primary key, name text, model text);
create table embeddings (collection_id integer, id text, embedding blob, primary key (collection_id, id));
insert into collections values (1, 'photos', 'clip');
create table pictures (id integer primary key, image blob);
create table numbers as with recursive n(x) as (select 1 union all select x + 1 from n limit 5000) select x from n;
"""
CANNED = {
    "databases": {
        "files": {"queries": {"similar": "select clip_similarity(image, :text) is not null as x from pictures"}}
    }
}
# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def openings(monkeypatch) -> list[str]:
    """The name prefixes of the threads that opened an image tower. Each opening takes OPENING_S."""
    threads: list[str] = []
    genuine = Engine._open_image

    def slowly(self):
        threads.append(threading.current_thread().name.partition("_")[0])
        time.sleep(OPENING_S)
        return genuine(self)

    monkeypatch.setattr(Engine, "_open_image", slowly)
    return threads


@pytest.fixture
def datasette(demo_dir, demo_engine, openings, tmp_path, monkeypatch) -> Datasette:
    """A Datasette with an engine of its own, whose text tower is open."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setattr("llm_clip_onnx.engine._engines", {})
    default_engine().open_text()
    with sqlite3.connect(tmp_path / "files.db") as connection:
        connection.executescript(LLMS_TABLES)
        connection.execute("insert into pictures values (1, ?)", [JPEG])
        connection.execute("insert into embeddings values (1, 'a', ?)", [demo_engine.embed_item(JPEG).tobytes()])
    return Datasette([str(tmp_path / "files.db")], memory=True, metadata=CANNED)


def get(datasette: Datasette, path: str, **parameters):
    async def request():
        return await datasette.client.get(path, params={"_shape": "arrays", **parameters})

    return asyncio.run(request())


SCAN = "select count(*) = 5000 from numbers where (select length(llm_embed('clip', image)) from pictures) = 2048"
FIRST_QUERIES = {
    "a scan, in which SQLite looks at the clock": ("/files.json", {"sql": SCAN}),
    "a stored BLOB": ("/files.json", {"sql": "select length(llm_embed('clip', image)) = 2048 from pictures"}),
    "clip_search": ("/files.json", {"sql": "select clip_search('photos', :q) like '%\"a\"%'", "q": f"image:{IMG}"}),
    "clip_search of a BLOB": (
        "/files.json",
        {"sql": "select clip_search('photos', image) like '%\"a\"%' from pictures"},
    ),
    "a canned query": ("/files/similar.json", {"text": "blue"}),
    "clip_classify": (
        "/_memory.json",
        {"sql": "select clip_classify(clip_image(:img), 'emoji', 1) like '[{%'", "img": IMG},
    ),
    "where of a table": ("/files/pictures.json", {"_where": "length(llm_embed('clip', image)) = 2048"}),
}


@pytest.mark.parametrize("name", FIRST_QUERIES)
def test_the_first_query_for_an_image_waits_outside_sql_for_its_tower(name, datasette, openings):
    path, parameters = FIRST_QUERIES[name]
    response = get(datasette, path, **parameters)
    assert response.status_code == 200, response.text
    assert response.json()["rows"][0][0] == 1
    assert openings == [OUTSIDE_SQL]
    get(datasette, path, **parameters)
    assert openings == [OUTSIDE_SQL]


def test_the_first_list_of_labels_waits_outside_sql_for_the_text_tower(datasette, openings, demo_engine, monkeypatch):
    assert (
        get(datasette, "/_memory.json", sql="select 1").status_code == 200
    )  # which opens what Datasette's start opens
    genuine, threads = default_engine()._open_text, []

    def noting():
        threads.append(threading.current_thread().name.partition("_")[0])
        return genuine()

    monkeypatch.setattr(default_engine(), "_text", Lazy(noting))
    vector = demo_engine.embed_item("red").tobytes().hex()
    sql = f"select clip_classify(x'{vector}', '[\"red\", \"blue\"]', 1) like '%\"red\"%'"
    assert get(datasette, "/_memory.json", sql=sql).json()["rows"] == [[1]]
    assert threads == [OUTSIDE_SQL]


def test_the_page_of_a_query_and_its_csv_wait_too(datasette, openings):
    sql = "select length(llm_embed('clip', image)) as size from pictures"
    assert get(datasette, "/files.csv", sql=sql).text.splitlines() == ["size", "2048"]
    assert openings == [OUTSIDE_SQL]


def test_two_queries_at_once_open_it_once(datasette, openings):
    sql = "select length(llm_embed('clip', image)) from pictures"

    async def both():
        paths = [datasette.client.get("/files.json", params={"sql": sql, "_shape": "arrays"}) for _ in range(2)]
        return [response.json()["rows"] for response in await asyncio.gather(*paths)]

    assert asyncio.run(both()) == [[[2048]]] * 2
    assert openings == [OUTSIDE_SQL]


def test_the_condition_of_a_search_waits_too_and_its_body_is_read_again(datasette, openings):
    where = "length(llm_embed('clip', (select image from pictures))) = 2048"

    async def post():
        form = {"q": "blue", "where": where}
        return await datasette.client.post("/-/clip/search/files/photos.json", data=form)

    assert [row["id"] for row in asyncio.run(post()).json()["results"]] == ["a"]
    assert openings == [OUTSIDE_SQL]


@pytest.mark.parametrize(("status", "runs"), [(200, 1), (400, 2)])
def test_a_request_in_flight_runs_again_only_if_it_failed(status, runs, datasette, openings, monkeypatch):
    """A successful response is sent, even if another request's SQL raised TowerClosed meanwhile."""
    calls, sent = [], []

    async def app(scope, receive, send):
        calls.append(scope)
        monkeypatch.setattr(model, "last_raised", -1)  # another request raises TowerClosed
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def send(message):
        sent.append(message["type"])

    asyncio.run(model.run_repeatable(app, {}, None, send))
    assert len(calls) == runs
    assert sent == ["http.response.start", "http.response.body"]


def test_a_body_is_kept_only_while_its_request_may_run_again(datasette, openings, monkeypatch):
    """In the end nothing but the test itself refers to a message, neither where the request passes nor in its second run."""
    kept: list[list[dict]] = []

    class Spy(model.Recorder):
        def __init__(self, receive):
            super().__init__(receive)
            kept.append(self.messages)

    async def receive():
        return {"type": "http.request", "body": b"x" * 1000}

    def app_of(status):
        async def app(scope, receive, send):
            await receive()
            monkeypatch.setattr(model, "last_raised", -status)
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})
            await receive()
            lengths.append(len(kept[-1]))

        return app

    async def send(message):
        pass

    monkeypatch.setattr(model, "Recorder", Spy)
    for status, expected in ((200, [0]), (400, [2, 0])):
        lengths: list[int] = []
        asyncio.run(model.run_repeatable(app_of(status), {}, receive, send))
        assert lengths == expected


def test_queries_without_an_image_open_no_image_tower(datasette, openings):
    sql = "select length(llm_embed('clip', 'a')), clip_image(:img) is not null"
    assert get(datasette, "/_memory.json", sql=sql, img=IMG).json()["rows"] == [[2048, 1]]
    assert get(datasette, "/_memory.json", sql="select llm_embed('clip', x'616263')").status_code == 400
    assert openings == []


def test_a_tower_that_cannot_be_opened_is_tried_once_outside_sql_and_its_sentence_is_logged(
    datasette, monkeypatch, caplog
):
    def damaged():
        raise RuntimeError("image.onnx is damaged")

    monkeypatch.setattr(default_engine(), "_image", Lazy(damaged))
    sql = "select llm_embed('clip', image) from pictures"
    assert get(datasette, "/files.json", sql=sql).status_code == 400
    assert caplog.messages.count("llm_embed: image.onnx is damaged") == 1
    assert default_engine() in model.unopenable["image"]
    assert get(datasette, "/files.json", sql="select 1").status_code == 200
