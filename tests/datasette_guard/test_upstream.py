"""Private names of other projects: if one is missing, the server warns once and answers without it."""

from __future__ import annotations

import asyncio
import logging
import signal
from types import SimpleNamespace

import datasette_scale_to_zero
import pytest
import uvicorn
from datasette.app import Datasette
from datasette.database import Database

from datasette_guard import connect, upstream


@pytest.fixture(autouse=True)
def no_earlier_warnings(monkeypatch):
    monkeypatch.setattr(upstream, "warned", set())


def status_of_home(datasette: Datasette) -> int:
    async def ask() -> int:
        upstream.check_at_start(datasette)
        return (await datasette.client.get("/")).status_code

    return asyncio.run(ask())


def remove_private_name(monkeypatch, name: str) -> None:
    """Remove a private name of another project, and call the part of the guard that uses it, which must not raise."""
    datasette_names = {"start_that_loop", "get_config", "do_exit"}
    attribute = name.rpartition(".")[2]
    if attribute in datasette_names:
        rest = {n: getattr(datasette_scale_to_zero, n) for n in datasette_names - {attribute}}
        monkeypatch.setattr(upstream, "datasette_scale_to_zero", SimpleNamespace(**rest))
        upstream.take_over_scale_to_zero(print)
        upstream.tell_shutdown_url(None) if attribute == "do_exit" else None
    elif name == "Database.execute_fn":

        class Database(type("Database", (), {"connect": print})):
            """Without it."""

        monkeypatch.setattr("datasette.database.Database", Database)
        upstream.wrap_runs(print)
    elif name == "Database.connect":
        monkeypatch.setattr("datasette.database.Database", type("Database", (), {"execute_fn": print}))
    elif name == upstream.ORIGIN_CHECK:  # which Datasette 0.65 lacks and does without
        monkeypatch.setattr("datasette.__version__", "1.0")
    elif name.startswith("datasette."):
        monkeypatch.delattr(name)
    else:
        server = uvicorn.Server(uvicorn.Config(app=print))
        if attribute == "h11_max_incomplete_event_size":
            del server.config.h11_max_incomplete_event_size
            upstream.accept_long_urls({signal.SIGTERM: server.handle_exit})
        elif attribute == "handle_exit":
            monkeypatch.setattr(signal, "getsignal", lambda number: print)
            assert upstream.uvicorn_handlers([signal.SIGTERM]) == {}
        else:
            record = logging.LogRecord("uvicorn.access", 20, "", 1, "%s", ("x" * 1000,), None)
            assert upstream.shorten_url(record)
            assert len(record.getMessage()) == 1000


@pytest.mark.parametrize("name", upstream.PRIVATE)
def test_without_it_the_server_warns_once_and_answers(name, monkeypatch, caplog):
    datasette = Datasette(memory=True)
    asyncio.run(datasette.invoke_startup())
    if name == "Datasette._metadata_local":
        del datasette._metadata_local
        datasette.metadata = lambda key=None, **_: None if key else {}  # in 0.65, it reads _metadata_local
        assert upstream.local_metadata(datasette) == {}
    else:
        remove_private_name(monkeypatch, name)
    assert status_of_home(datasette) == 200
    assert status_of_home(datasette) == 200
    private = upstream.PRIVATE[name]
    warnings = [record.getMessage() for record in caplog.records if record.name == "datasette_guard"]
    assert warnings == [f"{name} is not what it was in {private.seen_in}: this server has no {private.lacks}"]


def test_the_installed_versions_have_every_private_name(caplog):
    assert status_of_home(Datasette(memory=True)) == 200
    server = uvicorn.Server(uvicorn.Config(app=print))
    upstream.accept_long_urls({signal.SIGTERM: server.handle_exit})
    assert server.config.h11_max_incomplete_event_size == upstream.URL_BYTES
    assert not [record for record in caplog.records if record.name == "datasette_guard"]


@pytest.mark.parametrize("name", ["datasette.gone.Exception", "datasette.database.Gone"])
def test_an_exception_that_datasette_no_longer_has_matches_nothing(name):
    assert not isinstance(ValueError(), upstream.class_of(name))


def test_only_the_origin_check_does_not_see_where_a_request_to_what_only_reads_comes_from(monkeypatch):
    """Of Datasette 1.0, in whose stead a class with the same two names stands here; tests/test_alpha.py has the real."""
    seen: list[tuple] = []

    class OriginCheck:
        def __init__(self, app, datasette):
            self.app, self.datasette = app, datasette

        async def __call__(self, scope, receive, send):
            seen.append(("check", scope["headers"]))
            await self.app(scope | {"csrftoken": "t"}, receive, send)

    async def app(scope, receive, send):
        seen.append(("app", scope["headers"], scope["csrftoken"]))

    monkeypatch.setattr(upstream, "class_of", lambda name: OriginCheck)
    upstream.exempt_from_origin_check(lambda datasette, scope: scope["path"] == "/read")
    headers = [(b"Origin", b"https://a.example"), (b"sec-fetch-site", b"cross-site"), (b"cookie", b"a=b")]
    for path in ("/read", "/write"):
        scope = {"type": "http", "path": path, "headers": headers}
        asyncio.run(OriginCheck(app, None)(scope, None, None))
        assert scope["headers"] is headers
    assert seen == [("check", headers[2:]), ("app", headers, "t"), ("check", headers), ("app", headers, "t")]


def test_a_connection_reads_a_database_and_one_that_cannot_be_made_has_a_sentence(monkeypatch):
    datasette = Datasette(memory=True)
    conn = connect(datasette, "_memory")
    assert conn.execute("select 1").fetchone()[0] == 1
    conn.close()
    with pytest.raises(KeyError):
        connect(datasette, "nope")
    monkeypatch.delattr(Database, "connect")
    with pytest.raises(RuntimeError, match=r"Database\.connect is gone"):
        connect(datasette, "_memory")


def test_an_unknown_path_gets_404_where_rich_is_installed_and_rich_prints_nothing(monkeypatch):
    printed = SimpleNamespace(get_console=lambda: pytest.fail("rich prints"))
    monkeypatch.setattr("datasette.handle_exception.rich", printed)
    datasette = Datasette(memory=True)
    asyncio.run(datasette.invoke_startup())
    assert asyncio.run(datasette.client.get("/nope")).status_code == 404


def test_state_of_a_datasette_is_freed_with_it():
    import gc
    import weakref

    kept = upstream.per_datasette(lambda datasette: [1])
    one = type("Datasette", (), {})()
    assert kept(one) is kept(one)
    reference = weakref.ref(one)
    del one
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize(("empty", "duration"), [("duration", None), ("max_age", None), ("max-age", None)])
def test_an_empty_duration_is_none(empty, duration, monkeypatch):
    monkeypatch.setenv("FOR_SO_LONG", "")
    settings = {empty: {"$env": "FOR_SO_LONG"}}
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-scale-to-zero": settings}})
    assert status_of_home(datasette) == 200
    assert upstream.idle_durations(datasette) == (None, None)
