"""A private instance: with CLIP_TOKEN or datasette-auth-tokens, every page but two needs a token."""

from __future__ import annotations

import asyncio
import json
import re

import click
import httpx
import pytest
from datasette.app import Datasette

from conftest import ROOT, shipped_metadata
from datasette_guard import access
from serving import environment, serving

GUARD = (ROOT / "docs/guard.md").read_text()
EMBED = "select hex(llm_embed('clip', :q)) as x"
QUERY = f"/_memory.json?{httpx.QueryParams({'sql': EMBED, 'q': 'purple', '_shape': 'array'})}"
GUARDED = ["/", "/_memory", QUERY, "/_memory/embed.json?text=a", "/-/clip", "/-/clip.json", "/-/plugins.json"]
OPEN = ["/-/clip/health", "/robots.txt"]


def ask(datasette: Datasette, path: str, **options) -> httpx.Response:
    async def request():
        return await datasette.client.get(path, **options)

    return asyncio.run(request())


def bearer(token: str) -> dict:
    return {"headers": {"authorization": f"Bearer {token}".encode()}}


@pytest.fixture
def private(demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setenv("CLIP_TOKEN", "a-secret-é")
    return Datasette(memory=True, cors=True, metadata=shipped_metadata())


@pytest.mark.parametrize("path", GUARDED)
def test_with_clip_token_set_everything_needs_it(path, private):
    for wrong in (
        {},
        bearer("another"),
        bearer(""),
        bearer("a-secret-"),
        {"headers": {"authorization": "a-secret-é".encode()}},
    ):
        assert ask(private, path, **wrong).status_code == 403, wrong
    assert ask(private, path, **bearer("a-secret-é")).status_code == 200


@pytest.mark.parametrize("path", OPEN)
def test_health_and_robots_txt_stay_open(path, private):
    asyncio.run(private.invoke_startup())
    assert ask(private, path).status_code in (200, 503)


def test_without_it_nothing_does(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.delenv("CLIP_TOKEN", raising=False)
    datasette = Datasette(memory=True)
    for path in ("/", QUERY, "/-/clip.json"):
        assert ask(datasette, path).status_code == 200
        assert ask(datasette, path, **bearer("whatever")).status_code == 200


@pytest.mark.parametrize("token", ["", " ", "\n\t"])
def test_a_variable_that_is_set_to_nothing_stops_the_start(token, monkeypatch):
    monkeypatch.setenv("CLIP_TOKEN", token)
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-guard": {"token": "of-the-file"}}})
    with pytest.raises(click.ClickException) as raised:
        asyncio.run(datasette.invoke_startup())
    assert raised.value.message == (
        f"CLIP_TOKEN is {token!r}; expected a string that is not empty: "
        "give the variable a value, or unset it for a public instance"
    )


def test_white_space_around_the_variables_token_does_not_count(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_TOKEN", " a-secret\n")
    assert ask(Datasette(memory=True), "/", **bearer("a-secret")).status_code == 200


def test_the_token_is_never_shown(private):
    for path in ("/-/metadata.json", "/-/plugins.json", "/-/actor.json", "/-/settings.json", "/-/clip.json", "/-/clip"):
        assert "a-secret" not in ask(private, path, **bearer("a-secret-é")).text


def test_an_actor_of_any_other_kind_does_as_well(private):
    """The actor of `datasette --root` or of a login plugin, from Datasette's signed cookie."""
    cookie = private.sign({"a": {"id": "root"}}, "actor")
    assert ask(private, QUERY, cookies={"ds_actor": cookie}).status_code == 200
    assert ask(private, QUERY, cookies={"ds_actor": f"{cookie}x"}).status_code == 403


def test_the_environments_token_overrules_the_configurations(monkeypatch):
    metadata = {"plugins": {"datasette-guard": {"token": "of-the-file"}}}
    monkeypatch.delenv("CLIP_TOKEN", raising=False)
    datasette = Datasette(memory=True, metadata=metadata)
    assert [ask(datasette, "/").status_code, ask(datasette, "/", **bearer("of-the-file")).status_code] == [403, 200]
    monkeypatch.setenv("CLIP_TOKEN", "of-the-environment")
    datasette = Datasette(memory=True, metadata=metadata)
    assert ask(datasette, "/", **bearer("of-the-file")).status_code == 403
    assert ask(datasette, "/", **bearer("of-the-environment")).status_code == 200


def test_where_the_token_would_not_hold_the_start_is_refused(private, monkeypatch):
    monkeypatch.setattr(access, "permission", lambda datasette, actor: None)
    with pytest.raises(click.ClickException) as raised:
        asyncio.run(private.invoke_startup())
    assert raised.value.message == (
        "CLIP_TOKEN is set, but this version of Datasette lets everybody in: no plugin is asked for permission"
    )


@pytest.mark.long
def test_the_manuals_configuration_of_datasette_auth_tokens(demo_dir, tmp_path):
    """The configuration of docs/guard.md, in a real server with every installed plugin."""
    metadata = json.loads(re.search(r"```json\n(.*?)```", GUARD.split("datasette-auth-tokens", 1)[1], re.DOTALL)[1])
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), NOTEBOOK_TOKEN="for-the-notebook")
    with serving("--memory", "-m", str(tmp_path / "metadata.json"), env=env, log=tmp_path / "log") as url:
        for path in (QUERY, "/-/clip.json"):
            assert httpx.get(url + path).status_code == 403
            assert httpx.get(url + path, headers={"authorization": "Bearer for-the-notebook"}).status_code == 200


def test_without_sql_for_visitors_canned_queries_and_our_pages_are_left(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    settings = {"default_allow_sql": False}
    datasette = Datasette(memory=True, metadata=shipped_metadata(), settings=settings)
    assert ask(datasette, QUERY).status_code == 403
    assert ask(datasette, "/_memory?sql=select+1").status_code == 403
    assert len(ask(datasette, "/_memory/embed.json?text=a&_shape=array").json()[0]["x"]) == 4096
    assert ask(datasette, "/-/clip.json").json()["ready"] is True
    assert "sql=" not in ask(datasette, "/-/clip").text
