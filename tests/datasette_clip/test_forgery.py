"""Pages of other origins may POST to what only reads, with whatever cookie; tests/test_alpha.py asks the same of 1.0."""

from __future__ import annotations

import asyncio

import pytest
from datasette.app import Datasette

READ_ONLY = ["/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/classify", "/-/clip/compare"]
READ_ONLY += ["/-/clip/search/photos/emoji", "/-/clip/search/photos/emoji.json"]  # where there are none too
FROM_ELSEWHERE = {"origin": "https://notebook.example", "sec-fetch-site": "cross-site", "cookie": "a=b"}


def status_of_post(path: str, base_url: str) -> int:
    async def post() -> int:
        datasette = Datasette(memory=True, settings={"base_url": base_url})
        return (await datasette.client.post(path, headers=FROM_ELSEWHERE)).status_code

    return asyncio.run(post())


@pytest.mark.parametrize("base_url", ["/", "/clip/"])
@pytest.mark.parametrize("path", READ_ONLY)
def test_what_only_reads_is_not_refused_for_want_of_a_token(path, base_url):
    assert status_of_post(path, base_url) != 403


@pytest.mark.parametrize("base_url", ["/", "/clip/"])
@pytest.mark.parametrize("path", ["/_memory", "/-/clip", "/-/clip/embed.json/", "/-/clip/search", "/-/messages"])
def test_anything_else_is(path, base_url):
    assert status_of_post(path, base_url) == 403
