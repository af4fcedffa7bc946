"""A server with names of its own refuses requests under other names, on every path and with both versions' settings."""

from __future__ import annotations

import asyncio

import click
import pytest
from datasette.app import Datasette

HOSTS = ["127.0.0.1", "[::1]", "Photos.example"]


def get(path: str, host: str | None, hosts: list[str] | None = HOSTS):
    """The answer to GET with this Host header, of a Datasette that has these names."""
    guard = {} if hosts is None else {"hosts": hosts}
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-guard": guard}})
    return asyncio.run(datasette.client.get(path, headers={} if host is None else {"host": host}))


@pytest.mark.parametrize("path", ["/", "/_memory.json?sql=select+1", "/robots.txt", "/-/clip/health", "/none"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8001", "127.0.0.1.evil.example", "[::2]:8001", "127.0.0.1:a", "", "::1"]
)
def test_a_foreign_name_is_refused(path, host):
    response = get(path, host)
    assert response.status_code == 421
    assert "this server is not called" in response.text
    assert "expected 127.0.0.1 or [::1] or photos.example (plugins.datasette-guard.hosts)" in response.text


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:8001", "[::1]:80", "PHOTOS.example", "photos.example:", "localhost:1", None]
)
def test_its_own_names_pass_with_any_port(host):
    assert get("/_memory.json?sql=select+1", host).status_code == 200


def test_without_the_setting_every_name_passes():
    assert get("/_memory.json?sql=select+1", "evil.example", None).status_code == 200


@pytest.mark.parametrize("hosts", [[], "127.0.0.1", [1], [""]])
def test_a_wrong_setting_stops_the_start(hosts):
    with pytest.raises(click.ClickException, match=r"plugins\.datasette-guard\.hosts is .*; expected a list of names"):
        get("/", None, hosts)
