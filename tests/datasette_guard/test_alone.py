"""The guard without CLIP: real servers in which no CLIP package can be imported."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from conftest import ROOT
from hold import Hold
from patience import PATIENCE_S
from serving import BIN, address_of, environment, started

NO_CLIP = """
import sys
from importlib.metadata import Distribution

no_clip = ("llm_clip_onnx", "clip_collections", "datasette_clip", "datasette_llm_embed", "llm", "onnxruntime")
for name in no_clip:
    sys.modules[name] = None  # importing it fails
all_entry_points = Distribution.entry_points.fget
Distribution.entry_points = property(lambda d: [e for e in all_entry_points(d) if e.value not in no_clip])
"""
GOOGLEBOT = {"user-agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}
BEARER = {"authorization": "Bearer a-secret"}


@contextmanager
def running(tmp_path: Path, bin: Path = BIN, idle: dict | None = None, **config) -> Iterator:
    """A server with only the guard, with this configuration: its address, its process and its log."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(NO_CLIP)
    metadata = {"plugins": {"datasette-guard": config, "datasette-scale-to-zero": idle or {}}}
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    env = environment(tmp_path / "llm", PYTHONPATH=str(tmp_path / "site"), SECRET="a-secret", NO_TIME="")
    log, arguments = tmp_path / "log", ["--memory", "-m", str(tmp_path / "metadata.json")]
    arguments += ["--plugins-dir", str(ROOT / "tests/plugins")]
    with started(*arguments, env=env, log=log, bin=bin) as process:
        yield address_of(process, log), process, log


def test_it_bounds_refuses_and_drains_without_clip(tmp_path):
    with (
        running(tmp_path, limits={"url_bytes": 100}, idle={"duration": {"$env": "NO_TIME"}}) as (url, process, log),
        ThreadPoolExecutor() as pool,
    ):
        assert httpx.get(f"{url}/-/clip").status_code == 404
        assert "no such function" in httpx.get(f"{url}/_memory.json?sql=select+llm_embed('a','b')").json()["error"]
        page = httpx.get(f"{url}/_memory.json?sql=select+1")
        assert (page.status_code, page.headers["x-robots-tag"]) == (200, "noindex")
        sentence = "query string of 101 bytes; at most 100 are accepted (plugins.datasette-guard.limits.url_bytes)"
        long = httpx.get(f"{url}/_memory.json?q={'x' * 99}")
        assert (long.status_code, long.json()["error"].partition(": ")[0]) == (414, sentence)
        assert httpx.get(url, headers=GOOGLEBOT).status_code == 403
        assert httpx.get(f"{url}/robots.txt", headers=GOOGLEBOT).status_code == 200
        assert httpx.get(url, cookies={"a": "b"}).status_code == 200
        assert httpx.get(f"{url}/_memory.json?sql=select+nope").status_code == 400
        hold = Hold(tmp_path / "hold")
        call = pool.submit(httpx.get, url + hold.page)
        hold.wait_for(1)
        process.terminate()
        hold.release()
        assert call.result().text == "done"
        assert process.wait(PATIENCE_S) == 0
    assert "Traceback (most recent call last):" not in log.read_text()
    assert "is not what it was" not in log.read_text()


def test_it_idles_and_ends_with_0_without_clip(tmp_path):
    with running(tmp_path, idle={"duration": "1s"}) as (_, process, _):
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("version", ["0.65", "1.0a"])
def test_a_token_of_the_configuration_protects_without_clip(version, tmp_path, request):
    bin = BIN if version == "0.65" else request.getfixturevalue("alpha_bin")
    with running(tmp_path, bin, token={"$env": "SECRET"}) as (url, _, log):
        versions = httpx.get(f"{url}/-/versions.json", headers=BEARER).json()
        assert versions["datasette"]["version"].startswith(version)
        for path in ("/", "/_memory.json", "/-/plugins.json"):
            assert httpx.get(url + path).status_code == 403
            assert httpx.get(url + path, headers={"authorization": "Bearer another"}).status_code == 403
            response = httpx.get(url + path, headers=BEARER)
            assert response.status_code == 200
            assert "a-secret" not in response.text
        assert httpx.get(f"{url}/robots.txt").status_code == 200
        for path in ("/-/metadata.json", "/-/config.json"):
            assert "a-secret" not in httpx.get(url + path, headers=BEARER).text
    assert "is not what it was" not in log.read_text()


@pytest.mark.parametrize("token", [{"$env": "NOT_SET"}, {"$env": "NO_TIME"}, "", None, 5, " "])
def test_a_token_that_is_empty_stops_the_start(token, tmp_path):
    with pytest.raises(AssertionError) as raised, running(tmp_path, token=token):
        pass
    assert "plugins.datasette-guard.token is " in str(raised.value)
    assert "expected a string that is not empty" in str(raised.value)
