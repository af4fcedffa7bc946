"""Datasette's 1.0 alpha, in the environment .venv-alpha that `make test` makes: what holds on 0.65 holds there too."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from conftest import ROOT
from datasette_guard.config import Limits
from hold import serving_notes, takes_a_turn
from llm_clip_onnx.engine import Engine
from nasty import photo, saved
from patience import PATIENCE_S
from pictured import INTERNAL, LABELS, make_photos
from serving import address_of, environment, serving, started

METADATA = str(ROOT / "metadata.json")
WITH_METADATA = ["--memory", "--cors", "-m", METADATA, "-c", METADATA]
RECIPE = "/_memory.json?sql=select+hex(llm_embed('clip',+:q))+as+x&q=purple+and+gold&_shape=array"
QUERY = "/_memory/-/query.json"
FROM_ELSEWHERE = {"origin": "https://notebook.example", "sec-fetch-site": "cross-site", "cookie": "a=b"}


@pytest.fixture(scope="module")
def alpha_url(alpha_bin, demo_dir, tmp_path_factory):
    """The address of an alpha that serves the demo model with metadata.json. Checks of endpoints belong here."""
    folder = tmp_path_factory.mktemp("alpha")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(*WITH_METADATA, env=env, log=folder / "log", bin=alpha_bin) as url:
        yield url


@pytest.fixture(scope="module")
def private_url(alpha_bin, demo_dir, tmp_path_factory):
    """The address of one with CLIP_TOKEN."""
    folder = tmp_path_factory.mktemp("private")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir), CLIP_TOKEN="a-secret")
    with serving(*WITH_METADATA, env=env, log=folder / "log", bin=alpha_bin) as url:
        yield url


def get(url: str, **options) -> httpx.Response:
    return httpx.get(url, follow_redirects=True, **options)


def embedding(demo_dir) -> str:
    return Engine(demo_dir).embed_item("purple and gold").tobytes().hex().upper()


def test_it_is_an_alpha_of_1_with_the_plugins_of_a_deployment(alpha_url):
    assert get(f"{alpha_url}/-/versions.json").json()["datasette"]["version"].startswith("1.0a")
    names = {plugin["name"] for plugin in get(f"{alpha_url}/-/plugins.json").json()}
    assert {"datasette-clip", "datasette-llm-embed", "datasette-scale-to-zero", "datasette-block-robots"} <= names
    assert "Disallow: /" in get(f"{alpha_url}/robots.txt").text


def test_the_recipes_call_gives_the_engines_bytes_where_it_redirects_to(alpha_url, demo_dir):
    first = httpx.get(alpha_url + RECIPE)
    assert (first.status_code, first.headers["access-control-allow-origin"]) == (302, "*")
    response = get(alpha_url + RECIPE)
    assert response.json() == [{"x": embedding(demo_dir)}]
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["x-robots-tag"] == "noindex"


def test_the_canned_query_of_metadata_json(alpha_url, demo_dir):
    found = get(f"{alpha_url}/_memory/embed.json", params={"text": "purple and gold", "_shape": "array"}).json()
    assert found[0]["x"] == embedding(demo_dir)
    assert 'name="text"' in get(f"{alpha_url}/_memory/embed").text


def test_health_and_json_say_that_it_is_ready(alpha_url):
    assert get(f"{alpha_url}/-/clip/health").json() == {"ok": True, "error": None, "status": 200}
    facts = get(f"{alpha_url}/-/clip.json")
    assert (facts.json()["ready"], facts.json()["models"]) == (True, ["clip"])
    assert facts.headers["access-control-allow-origin"] == "*"


def test_the_addresses_on_the_page_answer_without_a_redirect(alpha_url):
    assert get(f"{alpha_url}/_memory").text.count('href="/-/clip"')
    page = get(f"{alpha_url}/-/clip").text
    assert "is <strong>ready</strong>" in page
    links = [link.replace("&amp;", "&") for link in re.findall(r'href="([^"]*sql=[^"]*)"', page)]
    assert len(links) == 2
    for link in links:
        response = httpx.get(httpx.URL(alpha_url).join(link))
        assert response.status_code == 200
        assert re.search(r"[0-9A-F]{100}", response.text)


@pytest.mark.parametrize("path", ["/", "/-/clip", "/-/clip/classify", "/-/clip/compare", "/-/clip/search"])
def test_our_pages_have_their_policy_and_what_the_alpha_gives_plugins(path, alpha_url):
    response = get(alpha_url + path)
    nonce = re.search(r"'nonce-([\w-]{22})'", response.headers["content-security-policy"])[1]
    scripts = re.findall(r"<script\b[^>]*>", response.text)
    assert any("datasette-manager.js" in script for script in scripts)
    assert all(f'nonce="{nonce}"' in script or "/-/clip/static/" in script for script in scripts)
    [style] = re.findall(r'href="([^"]+clip\.css)"', response.text)
    assert "immutable" in get(alpha_url + style).headers["cache-control"]


def test_internal_tables_are_in_no_list_and_the_home_page_shows_pictures(alpha_bin, demo_dir, demo_engine, tmp_path):
    file = make_photos(tmp_path / "photos.db", demo_engine.embed_item)
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), env=env, log=tmp_path / "log", bin=alpha_bin) as url:
        tables = get(f"{url}/photos.json").json()["tables"]
        assert {table["name"] for table in tables if table["hidden"]} == {*INTERNAL}
        page = get(url).text
        assert page.count('alt="More like ') == len(LABELS)
        assert 'href="/photos/-/query"' in page


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        (f"{QUERY}?sql={'a' * 60_000}", 414, "query string of 60004 bytes; at most 60000 are accepted (plugins.datasette-guard.limits.url_bytes)"),
        (f"{QUERY}?sql={'a' * 20_001}", 400, "sql of 20001 bytes; at most 20000 are accepted (plugins.datasette-guard.limits.sql_bytes)"),
        (f"{QUERY}?{'a&' * 100}", 400, "query string of 101 fields; at most 100 are accepted (plugins.datasette-guard.limits.fields)"),
        (f"{QUERY}?sql=select+randomblob(20000000)", 400, "string or blob too big"),
        (f"{QUERY}?sql=select+zeroblob(4000000)+union+all+select+zeroblob(4000001)", 400, "the result is larger than 5000000 bytes: ask for fewer rows or columns (plugins.datasette-guard.limits.result_bytes)"),
        (f"{QUERY}?sql=with+recursive+c(x)+as+(select+1+union+all+select+x%2B1+from+c)+select+randomblob(999999)+x+from+c+order+by+x", 400, "the query needs more than the 32000000 bytes of memory (plugins.datasette-guard.limits.sqlite_bytes)"),
        (f"{QUERY}?sql=select+llm_embed('gpt','a')", 400, "llm_embed: model 'gpt' is not on the list plugins.datasette-clip.models, ['clip']"),
    ],
)  # fmt: skip
def test_limits_have_their_sentences_and_statuses(path, status, sentence, alpha_url):
    response = httpx.get(alpha_url + path)
    assert response.status_code == status
    assert response.json()["error"].startswith(sentence)


def test_a_body_that_is_too_long_is_refused(alpha_url):
    limit = Limits(**json.loads(Path(METADATA).read_text())["plugins"]["datasette-guard"]["limits"]).body_bytes
    response = httpx.post(f"{alpha_url}{QUERY}", content=b"a" * (limit + 1))
    assert response.status_code == 413
    sentence = f"body of {limit + 1} bytes; at most {limit} are accepted (plugins.datasette-guard.limits.body_bytes)"
    assert response.json()["error"] == sentence


def test_a_query_without_end_is_stopped(alpha_url):
    sql = "with recursive t(n) as (select 1 union all select n + 1 from t) select max(n) from t"
    assert get(f"{alpha_url}{QUERY}", params={"sql": sql, "_timelimit": "500"}).status_code == 400


def test_a_crawler_is_refused(alpha_url):
    response = httpx.get(alpha_url, headers={"user-agent": "GPTBot/1.0"})
    assert response.status_code == 403
    assert response.text.startswith("crawlers and AI bots are not served here")


@pytest.mark.parametrize("path", ["/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/classify", "/-/clip/compare"])
def test_what_only_reads_may_be_posted_to_from_another_origin(path, alpha_url):
    assert httpx.post(alpha_url + path, headers=FROM_ELSEWHERE).status_code != 403


@pytest.mark.parametrize(
    "path", ["/_memory/embed", "/-/clip", "/-/clip/embed.json/", "/-/clip%2Fembed.json", "/-/create-token"]
)
def test_nothing_else_may_be(path, alpha_url):
    response = httpx.post(alpha_url + path, headers=FROM_ELSEWHERE)
    assert response.status_code == 403
    assert "Sec-Fetch-Site was &#39;cross-site&#39;" in response.text


def test_the_pages_answer_a_form_there_too(alpha_url):
    picture = saved(photo(224, 224), "JPEG")
    classified = httpx.post(
        f"{alpha_url}/-/clip/classify", files={"image": ("a.jpg", picture)}, data={"labels": "emoji"}
    )
    assert classified.status_code == 200
    answer = httpx.post(f"{alpha_url}/-/clip/classify.json", content=picture).json()
    assert html.escape(answer["results"][0]["matches"][0]["label"]) in classified.text
    compared = httpx.post(
        f"{alpha_url}/-/clip/compare", files={"image": ("a.jpg", picture)}, data={"texts": "cat\ndog"}
    )
    assert compared.status_code == 200
    assert "<table" in compared.text


GUARDED = ["/", "/.json", "/_memory", "/_memory.json", RECIPE, f"{QUERY}?sql=select+1", "/_memory/-/query.csv?sql=select+1", "/_memory/embed.json?text=a", "/_memory/embed/-/definition", "/_memory/-/schema.json", "/-/clip", "/-/clip.json", "/-/plugins.json", "/-/config.json", "/-/databases.json"]  # fmt: skip


@pytest.mark.parametrize("path", GUARDED)
def test_with_clip_token_everything_needs_it(path, private_url):
    for wrong in ({}, {"authorization": "Bearer another"}, {"authorization": "Bearer"}):
        assert get(private_url + path, headers=wrong).status_code == 403, wrong
    assert get(private_url + path, headers={"authorization": "Bearer a-secret"}).status_code == 200


@pytest.mark.parametrize("path", ["/-/clip/health", "/robots.txt", "/-/static/app.css"])
def test_what_stays_open_is_open(path, private_url):
    assert get(private_url + path).status_code == 200


@pytest.mark.parametrize(
    ("path", "key"),
    [("/-/jump.json", "matches"), ("/-/queries.json", "queries"), ("/_memory/-/queries.json", "queries"), ("/-/schema.json", "schemas")],
)  # fmt: skip
def test_lists_that_the_alpha_shows_to_all_are_empty_without_the_token(path, key, private_url):
    assert get(private_url + path).json()[key] == []


def refusal(alpha_bin, tmp_path, *arguments: str, **env: str) -> str:
    """The last line of an alpha that must refuse to start."""
    command = [str(alpha_bin / "datasette"), "serve", "--memory", "-p", "0", *arguments]
    own = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(tmp_path), **env)
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("metadata", "place"),
    [({"allow_sql": False}, "allow_sql"), ({"databases": {"x": {"allow_sql": {"id": "a"}}}}, "databases.x.allow_sql")],
)
def test_metadata_that_would_no_longer_close_sql_stops_the_start(metadata, place, alpha_bin, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    sentence = f"Error: {place} is in the metadata, where Datasette 1.0 does not look for it: give the file with -c too"
    assert refusal(alpha_bin, tmp_path, "-m", str(tmp_path / "metadata.json")) == sentence


def test_where_the_token_would_not_hold_the_start_is_refused(alpha_bin, tmp_path):
    """A plugin takes our answers away, as a version of Datasette would that asks for them in other words."""
    (tmp_path / "plugins").mkdir()
    deaf = "from datasette_guard import access\naccess.allowed_resources = lambda datasette, actor: None\n"
    (tmp_path / "plugins" / "deaf.py").write_text(deaf)
    found = refusal(alpha_bin, tmp_path, "--plugins-dir", str(tmp_path / "plugins"), CLIP_TOKEN="a-secret")
    assert found == (
        "Error: CLIP_TOKEN is set, but this version of Datasette lets everybody in: no plugin is asked for permission"
    )


def test_without_sql_for_visitors_canned_queries_are_left(alpha_bin, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = [*WITH_METADATA, "--setting", "default_allow_sql", "off"]
    with serving(*arguments, env=env, log=tmp_path / "log", bin=alpha_bin) as url:
        assert get(f"{url}{QUERY}?sql=select+1").status_code == 403
        assert get(url + RECIPE).status_code == 403
        assert len(get(f"{url}/_memory/embed.json?text=a&_shape=array").json()[0]["x"]) == 4096
        assert "sql=" not in get(f"{url}/-/clip").text


def test_a_path_under_base_url_may_be_posted_to_from_another_origin_too(alpha_bin, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = ["--memory", "--setting", "base_url", "/clip/"]
    with serving(*arguments, env=env, log=tmp_path / "log", bin=alpha_bin) as url:
        assert httpx.post(f"{url}/clip/-/clip/embed.json", headers=FROM_ELSEWHERE).status_code != 403
        assert httpx.post(f"{url}/clip/_memory", headers=FROM_ELSEWHERE).status_code == 403


def test_sql_that_writes_takes_a_turn(alpha_bin, demo_dir, tmp_path):
    """By /-/execute-write and by a stored query."""
    note = "insert into notes values (:a)"
    configuration = {
        "permissions": dict.fromkeys(("execute-write-sql", "insert-row", "update-row", "delete-row"), True),
        "databases": {"t": {"queries": {"note": {"sql": note, "write": True}}}},
    }
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving_notes(tmp_path, configuration, "-c", env, alpha_bin) as url:
        takes_a_turn(url, "/t/-/execute-write", tmp_path / "execute", json={"sql": note, "params": {"a": "1"}})
        takes_a_turn(url, "/t/note?_json=1", tmp_path / "stored", json={"a": "2"})
        assert get(f"{url}/t/notes.json?_shape=array").json() == [{"rowid": 1, "note": "1"}, {"rowid": 2, "note": "2"}]


def test_bad_configuration_in_metadata_ends_it_with_its_sentence(alpha_bin, tmp_path):
    (tmp_path / "metadata.json").write_text('{"plugins": {"datasette-clip": {"models": "clip"}}}')
    found = refusal(alpha_bin, tmp_path, "-m", str(tmp_path / "metadata.json"))
    assert found == "Error: plugins.datasette-clip.models is 'clip'; expected a list of model ids such as [\"clip\"]"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, None])
def test_it_ends_with_0_by_a_signal_and_when_nobody_asks(by, alpha_bin, demo_dir, tmp_path):
    log, sleeps = tmp_path / "log", {} if by else {"SLEEP_AFTER": "2s"}
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), **sleeps)
    with started("--memory", "-m", METADATA, env=env, log=log, bin=alpha_bin) as process:
        address_of(process, log)
        if by:
            process.send_signal(by)
        assert process.wait(PATIENCE_S) == 0
    assert "Traceback" not in log.read_text()
