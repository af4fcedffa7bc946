"""A known fault of Datasette gets 400 and a sentence. Every other exception stays 500, with its traceback in the log."""

from __future__ import annotations

import asyncio
import sqlite3

import httpx
import pytest
from datasette.app import Datasette
from datasette.utils.asgi import BadRequest

from datasette_guard.config import Limits
from datasette_guard.faults import FAULTS, translate

BUGS = """
from datasette import hookimpl

async def bug():
    raise KeyError("a bug of this plugin")

async def bad_sql(datasette):
    await datasette.get_database("_memory").execute("select nope")

def no_response():
    return ("a", "tuple")

@hookimpl
def register_routes():
    return [(r"^/bug$", bug), (r"^/bad_sql$", bad_sql), (r"^/no_response$", no_response)]

@hookimpl
def render_cell(column, value):
    if column == "broken":
        return {}[value]
"""


@pytest.fixture(autouse=True)
def without_rich(monkeypatch):
    monkeypatch.setattr("datasette.handle_exception.rich", None)  # a deployment has no rich


@pytest.fixture(scope="module")
def datasette(tmp_path_factory) -> Datasette:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "plugins").mkdir()
    (folder / "plugins/bugs.py").write_text(BUGS)
    with sqlite3.connect(folder / "t.db") as connection:
        connection.executescript(
            "create table photos (id integer primary key, name text, image blob);"
            "insert into photos (name, image) values ('a', x'00'); create view shown as select * from photos;"
        )
    metadata = {"databases": {"t": {"queries": {"named": "select 1 as one"}}}}
    return Datasette([str(folder / "t.db")], memory=True, plugins_dir=str(folder / "plugins"), metadata=metadata)


def ask(datasette: Datasette, path: str, method: str = "GET", **options) -> httpx.Response:
    async def request():
        return await datasette.client.request(method, path, **options)

    return asyncio.run(request())


@pytest.mark.parametrize(
    ("path", "trace"),
    [
        ("/bug", "KeyError: 'a bug of this plugin'"),
        ("/bad_sql", "no such column: nope"),
        ("/no_response", "'tuple' object has no attribute 'asgi_send'"),
        ("/t?sql=select+1+as+broken", "KeyError: 1"),
    ],
)
def test_a_bug_of_another_plugin_stays_500_with_its_traceback_in_the_log(path, trace, datasette, capsys):
    assert ask(datasette, path).status_code == 500
    log = capsys.readouterr().err
    assert "Traceback (most recent call last)" in log
    assert trace in log


@pytest.mark.parametrize(
    ("method", "path", "body", "sentence"),
    [
        ("GET", "/t/photos.json?_through={", None, '_through is no JSON such as {"table": "a", "column": "b", "value": "1"}'),
        ("GET", "/t/photos.json?_through=1", None, '_through is no JSON such as {"table": "a", "column": "b", "value": "1"}'),
        ("GET", "/t/photos.json?name__in=[", None, "a filter that takes several values has no JSON list: Expecting value: line 1 column 2 (char 1)"),
        ("GET", "/t/photos.json?_facet_array={", None, "a facet is neither a column nor JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
        ("GET", "/t/photos.json?_facet_date={}", None, 'a facet is neither a column nor JSON such as {"simple": "a"}'),
        ("GET", "/t/photos.json?_json_infinity=x", None, "a field is neither on nor off"),
        ("GET", "/t/photos.json?id__gt=99999999999999999999", None, "Python int too large to convert to SQLite INTEGER"),
        ("GET", "/t/photos.json?name=%00&a%00b=1", None, "the query contains a null character"),
        ("GET", "/t/photos.json?_sort=nope", None, "Cannot sort table by nope"),
        ("GET", "/t/photos.json?_timelimit=x", None, "a field is no whole number: invalid literal for int() with base 10: 'x'"),
        ("GET", "/t/named.json?_timelimit=x", None, "a field is no whole number: invalid literal for int() with base 10: 'x'"),
        ("GET", "/t/shown", None, "this page cannot show the BLOBs of a view; its .json can"),
        ("GET", "/-/allow-debug?actor=-1", None, "actor is no JSON object"),
        ("GET", "/_memory.csv", None, "there is no sql to answer as CSV"),
        ("POST", "/t/photos.json", b"x=1", "You may only POST to a canned query"),
        ("POST", "/t/named.db", b"x=1", "a canned query that only reads takes no POST"),
        ("POST", "/-/messages", b"\xff", "the body is a form that is not UTF-8"),
    ],
)  # fmt: skip
def test_a_known_fault_gets_400_and_its_sentence(method, path, body, sentence, datasette):
    response = ask(datasette, path, method, content=body)
    assert response.status_code == 400
    text = response.json()["error"] if ".json" in path else response.text.replace("&#34;", '"').replace("&#39;", "'")
    assert sentence in text


def test_the_table_names_functions_of_datasette():
    assert all(fault.place.startswith(("datasette.", "asgi_csrf:")) for fault in FAULTS)
    assert len({(str(fault.exceptions), fault.place) for fault in FAULTS}) == len(FAULTS)


def test_a_cookie_that_is_not_utf_8_gets_400_and_a_sentence(datasette):
    response = ask(datasette, "/", headers={"cookie": b"\xff"})
    assert (response.status_code, response.text) == (400, "the Cookie header is not UTF-8")


def test_a_form_with_files_gets_400_and_a_sentence(datasette):
    """asgi-csrf, which Datasette 0.65 comes with, cannot read it. Endpoints of ours that take files are not asked."""
    headers = {"content-type": "multipart/form-data; boundary=x", "cookie": "a=b"}
    response = ask(datasette, "/", "POST", headers=headers, content=b"--x--")
    assert (response.status_code, response.text) == (400, "a form with files is not taken here; send it url-encoded")


def test_a_form_without_a_boundary_gets_400_and_a_sentence(datasette):
    headers = {"cookie": "a=b", "content-type": "multipart/form-data"}
    response = ask(datasette, "/t", "POST", headers=headers, content=b"x")
    assert (response.status_code, response.text) == (400, "the body is a form without a boundary")


def test_memory_is_the_queries_fault_only_if_sqlites_is_bounded():
    assert isinstance(translate(MemoryError(), Limits(sqlite_bytes=1), in_flight=1), BadRequest)
    assert isinstance(translate(MemoryError(), Limits(), in_flight=2), MemoryError)
    spilling = sqlite3.OperationalError("disk I/O error")
    spilling.sqlite_errorcode = sqlite3.SQLITE_IOERR_NOMEM
    assert isinstance(translate(spilling, Limits(sqlite_bytes=1), in_flight=1), BadRequest)
    assert translate(spilling, Limits(), in_flight=2) is spilling
    crowded = translate(MemoryError(), Limits(sqlite_bytes=1), in_flight=2)
    assert (crowded.status, "the queries that run now need more" in str(crowded)) == (503, True)


def test_a_damaged_database_is_no_fault_of_the_request(tmp_path, caplog):
    with sqlite3.connect(tmp_path / "damaged.db") as connection:
        connection.execute("create table photos (id integer primary key, name text)")
        connection.executemany("insert into photos (name) values (?)", [("x" * 500,)] * 100)
    pages = bytearray((tmp_path / "damaged.db").read_bytes())
    pages[8192:] = b"\xff" * (len(pages) - 8192)
    (tmp_path / "damaged.db").write_bytes(pages)
    datasette = Datasette([str(tmp_path / "damaged.db")])
    response = ask(datasette, "/damaged/photos.json")
    assert (response.status_code, response.json()["error"]) == (500, "database disk image is malformed")
