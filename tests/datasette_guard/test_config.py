"""The guard's configuration: each wrong key stops the start with a sentence that names it."""

from __future__ import annotations

import asyncio

import click
import pytest
from datasette.app import Datasette


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"refuse_crawlers": ["bots"]},
            "plugins.datasette-guard.refuse_crawlers is ['bots']; expected a list, empty to refuse none, of academic, advertising, ai-crawler, archiver, browser-automation, feed-reader, http-library, monitoring, scanner, search-engine, seo, social-preview",
        ),
        ({"suspend": 1}, "plugins.datasette-guard.suspend is 1; expected true, false or the path of a socket"),
        (
            {"limits": {"request": 3}},
            "plugins.datasette-guard.limits.request is not a key of this plugin; expected requests, queries, url_bytes, fields, sql_bytes, body_bytes, receiving_bytes, value_bytes, result_bytes, sqlite_bytes, sending_bytes, stalled_s",
        ),
        (
            {"limits": {"requests": 0}},
            "plugins.datasette-guard.limits.requests is 0; expected a whole number from 1 to 2147483647",
        ),
        (
            {"limits": {"requests": True}},
            "plugins.datasette-guard.limits.requests is True; expected a whole number from 1 to 2147483647",
        ),
        (
            {"token": ""},
            "plugins.datasette-guard.token is ''; expected a string that is not empty: set the variable that it names, or leave the key out for a public instance",
        ),
        (
            {"token": " "},
            "plugins.datasette-guard.token is ' '; expected a string that is not empty: set the variable that it names, or leave the key out for a public instance",
        ),
        (
            {"token": {"$env": "NO_SUCH_VARIABLE"}},
            "plugins.datasette-guard.token is None; expected a string that is not empty: set the variable that it names, or leave the key out for a public instance",
        ),
        (
            {"token": ["a"]},
            "plugins.datasette-guard.token is list; expected a string that is not empty: set the variable that it names, or leave the key out for a public instance",
        ),
    ],
)
def test_bad_configuration_stops_the_start_with_a_sentence_naming_the_key(config, sentence):
    with pytest.raises(click.ClickException) as raised:
        asyncio.run(Datasette(memory=True, metadata={"plugins": {"datasette-guard": config}}).client.get("/"))
    assert raised.value.message == sentence
