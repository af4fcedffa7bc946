"""Pages of other origins may POST to paths that only read, with any cookie; tests/test_alpha.py tests 1.0."""

from __future__ import annotations

import asyncio

import pytest
from datasette.app import Datasette

READ_ONLY = ["/v1/embeddings", "/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/classify", "/-/clip/compare"]
READ_ONLY += ["/-/clip/search/photos/emoji", "/-/clip/search/photos/emoji.json"]  # also if no such collection exists
FROM_ELSEWHERE = {"origin": "https://notebook.example", "sec-fetch-site": "cross-site", "cookie": "a=b"}


def status_of_post(path: str, base_url: str) -> int:
    async def post() -> int:
        datasette = Datasette(memory=True, settings={"base_url": base_url})
        return (await datasette.client.post(path, headers=FROM_ELSEWHERE)).status_code

    return asyncio.run(post())


@pytest.mark.parametrize("base_url", ["/", "/clip/"])
@pytest.mark.parametrize("path", READ_ONLY)
def test_a_path_that_only_reads_needs_no_csrf_token(path, base_url):
    assert status_of_post(path, base_url) != 403


@pytest.mark.parametrize("base_url", ["/", "/clip/"])
@pytest.mark.parametrize("path", ["/_memory", "/-/clip", "/-/clip/embed.json/", "/-/clip/search", "/-/messages"])
def test_every_other_path_needs_a_csrf_token(path, base_url):
    assert status_of_post(path, base_url) == 403
