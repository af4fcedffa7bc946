"""A misuse in SQL answers with our sentence, on both versions of Datasette, and no other answer ever has it."""

from __future__ import annotations

import asyncio
import html
import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from datasette.app import Datasette
from datasette.utils.sqlite import sqlite3 as datasettes_sqlite3

from datasette_guard.sentences import telling, with_sentence
from serving import BIN, environment, serving

HIDDEN = "user-defined function raised exception"
MODEL = "llm_embed: model 'gpt' is not on the list plugins.datasette-clip.models, ['clip']"
MISUSES = [
    ("llm_embed('gpt', 'a')", MODEL),
    ("llm_embed('clip', x'616263')", "llm_embed: not an image"),
    ("llm_embed_cosine(x'0000803f', x'0000803f0000803f')", "llm_embed_cosine: 1 and 2 dimensions; both vectors must come from one model"),
    ("llm_embed_decode('a')", "llm_embed_decode: str is not a vector blob: expected a BLOB of 4 bytes per dimension"),
    ("llm_embed_average('a')", "llm_embed_average: str is not a vector blob: expected a BLOB of 4 bytes per dimension"),
    ("clip_image('a')", "clip_image: a string of 1 characters is no image"),
    ("clip_similarity('a', x'00')", "clip_similarity: not an image"),
    ("clip_classify('a', 'emoji')", "clip_classify: str is neither an image nor a vector; expected a BLOB, as clip_image() makes of strings"),
    ("clip_classify(zeroblob(2048), 'emoji', 'x')", "clip_classify: k is 'x'; expected a whole number from 1, of the labels to answer"),
    ("clip_search('nope', 'red')", "clip_search: there is no collection 'nope'"),
    ("clip_search('nope', 'red', 0)", "clip_search: k is 0; expected a whole number from 1 to 1000, of the rows to answer"),
    ("replace(hex(zeroblob(4000000)), '0', 'aaaa')", "replace: the result is longer than 10000000 bytes"),
    (f"llm_embed('{'g' * 999}', 'a')", f"llm_embed: model '{'g' * 56}... is not on the list"),
    (f"clip_search('nope', 'red', '{'k' * 999}')", f"clip_search: k is '{'k' * 56}...; expected a whole number"),
    ("llm_embed('<b>', 'a')", "llm_embed: model '<b>' is not on the list"),
]  # fmt: skip


TABLES = """
create table t (a text); insert into t values ('x'), ('y');
create view misused as select a, llm_embed('gpt', a) as b from t;
create view half_misused as select a, case when a = 'y' then llm_embed('gpt', a) end as b from t;
"""
QUERIES = {
    "find": {"sql": "select llm_embed(:model, 'a') as x"},
    "fixed": {"sql": "select llm_embed('gpt', 'a') as x"},
    "note": {"sql": "insert into t values (llm_embed(:model, 'a'))", "write": True},
}
MAY_WRITE = dict.fromkeys(("execute-write-sql", "insert-row", "update-row", "delete-row"), True)
CONFIGURATION = {"permissions": MAY_WRITE, "databases": {"d": {"queries": QUERIES}}}


@pytest.fixture(scope="module", params=["0.65", "1.0a"])
def server(request, demo_dir, tmp_path_factory):
    """The address of SQL as JSON, but for the suffix, and of the table t, whose views raise. See QUERIES for its queries."""
    folder = tmp_path_factory.mktemp("server")
    with sqlite3.connect(folder / "d.db") as conn:
        conn.executescript(TABLES)
    (folder / "configuration.json").write_text(json.dumps(CONFIGURATION))
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    bin = BIN if request.param == "0.65" else request.getfixturevalue("alpha_bin")
    option = "-m" if request.param == "0.65" else "-c"
    arguments = [str(folder / "d.db"), option, str(folder / "configuration.json")]
    with serving(*arguments, env=env, log=folder / "log", bin=bin) as url:
        yield request.param, url, "/d/-/query" if request.param == "1.0a" else "/d"
    assert "Traceback" not in (folder / "log").read_text()  # a client's mistake is no bug of ours


@pytest.mark.parametrize(("sql", "sentence"), MISUSES)
def test_a_misuse_answers_400_with_its_sentence(sql, sentence, server):
    _, url, path = server
    for shape in ("array", "objects"):
        response = httpx.get(f"{url}{path}.json", params={"sql": f"select {sql} as x", "_shape": shape})
        assert (response.status_code, response.json()["ok"]) == (400, False)
        assert response.json()["error"].startswith(sentence)
    page = httpx.get(url + path, params={"sql": f"select {sql} as x"}).text
    assert html.escape(sentence).replace("&#x27;", "&#39;") in page
    assert "model '<b>'" not in page


@pytest.mark.parametrize("query", ["_where=llm_embed('gpt',a)+is+null", "_where=trim(llm_embed('gpt',a))=1"])
def test_a_table_too(query, server):
    response = httpx.get(f"{server[1]}/d/t.json?{query}")
    assert (response.status_code, response.json()["error"]) == (400, MODEL)


@pytest.mark.parametrize(
    "path",
    [
        *("misused.json", "misused.json?_facet=b", "misused.json?_facet=a", "half_misused.json?_facet=b"),
        *("t.json?_facet=a&_where=llm_embed('gpt',a)+is+null", "find.json?model=gpt", "fixed.json"),
    ],
)
def test_views_facets_and_stored_queries_too(path, server):
    response = httpx.get(f"{server[1]}/d/{path}")
    assert (response.status_code, response.json()["error"]) == (400, MODEL)


@pytest.mark.parametrize("sent", [{"json": {"model": "gpt"}}, {"data": {"model": "gpt"}}])
def test_a_stored_query_that_writes_too(sent, server):
    """Datasette 1.0 first reads what such a query does, by a connection that has no functions of plugins."""
    answer = httpx.post(f"{server[1]}/d/note?_json=1", **sent).json()
    assert answer["ok"] is False
    if server[0] == "0.65":
        assert answer["message"] == MODEL
    else:
        assert answer["error"] == "no such function: llm_embed"


def test_execute_write_of_1_0_says_that_it_has_no_functions(server):
    version, url, _ = server
    response = httpx.post(f"{url}/d/-/execute-write", json={"sql": "insert into t values (llm_embed('gpt', 'a'))"})
    if version == "0.65":
        assert response.status_code == 405
    else:
        sentence = "Could not analyze query: no such function: llm_embed"
        assert (response.status_code, response.json()["error"]) == (400, sentence)


def test_csv_of_1_0_too(server):
    """Datasette 0.65 answers every error of SQL in CSV with 200 and nothing."""
    version, url, path = server
    text = httpx.get(f"{url}{path}.csv", params={"sql": "select llm_embed('gpt', 'a')"}).text.strip()
    assert text == (MODEL if version == "1.0a" else "")


@pytest.mark.parametrize("sql", ["select nope", "select json('{')", "select sum(9223372036854775807) from t"])
def test_other_errors_keep_their_own(sql, server):
    _, url, path = server
    httpx.get(f"{url}{path}.json", params={"sql": "select llm_embed('gpt', 'a')"})
    assert "llm_embed" not in httpx.get(f"{url}{path}.json", params={"sql": sql}).json()["error"]


def test_each_of_many_requests_at_once_gets_its_own(server):
    _, url, path = server

    def error_of(number: int) -> str | None:
        sql = f"select llm_embed('gpt{number}', 'a')" if number % 3 else "select 1 as x"
        return httpx.get(f"{url}{path}.json", params={"sql": sql}).json().get("error")

    with ThreadPoolExecutor(16) as pool:
        for number, error in enumerate(pool.map(error_of, range(90))):
            assert (error or "").startswith(f"llm_embed: model 'gpt{number}'" if number % 3 else "")
            assert number % 3 or not error


def connection() -> sqlite3.Connection:
    """With `ours`, which says why it raises, and `theirs`, which does not."""

    def refuse(value):
        raise ValueError(f"not {value}")

    conn = datasettes_sqlite3.connect(":memory:")
    conn.create_function("ours", 1, with_sentence("ours", refuse, ValueError))
    conn.create_function("theirs", 1, refuse)
    return conn


def error_of(run) -> str:
    with pytest.raises(datasettes_sqlite3.OperationalError) as raised:
        telling(run)(connection())
    return str(raised.value)


def swallowing(conn, sql: str) -> None:
    with suppress(datasettes_sqlite3.OperationalError):
        conn.execute(sql).fetchall()


def test_only_the_call_that_raised_gets_the_sentence():
    def ours_then_theirs(conn):
        swallowing(conn, "select ours(1)")
        conn.execute("select theirs(2)")

    assert error_of(lambda conn: conn.execute("select ours(1)")) == "ours: not 1"
    assert error_of(lambda conn: conn.execute("select theirs(1)")) == HIDDEN
    assert error_of(ours_then_theirs) == HIDDEN
    assert telling(lambda conn: swallowing(conn, "select ours(1)"))(connection()) is None
    assert error_of(lambda conn: conn.execute("select theirs(1)")) == HIDDEN


def test_a_facet_that_raises_changes_nothing(demo_dir, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with sqlite3.connect(tmp_path / "d.db") as conn:
        conn.executescript(
            "create table t (a text); insert into t values ('x'); create view v as select a, 1 as b from t"
        )
    datasette = Datasette([str(tmp_path / "d.db")], memory=True)

    async def ask():
        await datasette.invoke_startup()
        with pytest.raises(datasettes_sqlite3.OperationalError, match="llm_embed: model 'gpt'"):
            await datasette.get_database("d").execute("select llm_embed('gpt', 'a')")
        return await datasette.client.get("/d/v.json?_facet=b")

    response = asyncio.run(ask())
    assert (response.status_code, "llm_embed" in response.text) == (200, False)
