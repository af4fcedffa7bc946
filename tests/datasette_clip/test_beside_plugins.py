"""Plugins that people install beside ours: each does its thing on each of our endpoints, and our answer is right.

They are in .venv-beside and in no environment: Datasette 0.65 loads every plugin that is installed, and datasette-gzip
would compress the answers of all other tests. Only the servers here have that folder in their path, before or after
what is installed, because that decides which plugin wraps which. All five load in Datasette 0.65.5 and 1.0a41.
What datasette-scale-to-zero does, which is no matter of endpoints, is tested in datasette_guard/test_idle.py.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import NamedTuple

import httpx
import numpy as np
import pytest

from conftest import ROOT
from nasty import photo, saved
from serving import BIN, environment, serving
from stored import llms_database

BESIDE = ROOT / ".venv-beside"
NAMES = {f"datasette-{name}" for name in ("auth-tokens", "block-robots", "cors", "gzip", "scale-to-zero")}
SHOP = "https://shop.example.com"
TOKEN = {"_auth_token": "of-the-robot"}
FROM_THE_SHOP = {"origin": SHOP, "sec-fetch-site": "cross-site", "cookie": "a=b"}
JPEG = saved(photo(300, 200), "JPEG")
METADATA = {
    "allow": {"id": "robot"},
    "plugins": {
        "datasette-auth-tokens": {
            "tokens": [{"token": TOKEN["_auth_token"], "actor": {"id": "robot"}}],
            "param": "_auth_token",
        },
        "datasette-block-robots": {"literal": "User-agent: *\nDisallow: /private"},
        "datasette-cors": {"hosts": [SHOP], "headers": ["content-type"], "methods": ["GET", "POST"]},
        "datasette-scale-to-zero": {"duration": "1h"},
    },
}
WITNESS = '''
"""Says in headers what code outside of all wrappers, code inside of them and Datasette's hooks see of a request."""

from hashlib import sha256

from datasette import hookimpl


def facts(scope):
    seen = (scope["headers"], scope["path"], scope["raw_path"], scope["query_string"], scope["method"])
    return sha256(repr(seen).encode()).hexdigest().encode()


def wrapper(place):
    def wrap(app):
        async def witness(scope, receive, send):
            body = sha256()

            async def receive_it():
                message = await receive()
                body.update(message.get("body", b""))
                return message

            async def send_it(message):
                if message["type"] == "http.response.start":
                    more = [(place + b"-scope", facts(scope)), (place + b"-body", body.hexdigest().encode())]
                    more += [(b"hook-scope", seen[0])] if (seen := scope.get("seen")) and place == b"outside" else []
                    message = {**message, "headers": [*message["headers"], *more]}
                await send(message)

            if scope["type"] == "http" and place == b"outside":
                scope["seen"] = []
            await app(scope, receive_it, send_it)

        return witness

    return wrap


@hookimpl(trylast=True, specname="asgi_wrapper")
def outside(datasette):
    return wrapper(b"outside")


@hookimpl(tryfirst=True, specname="asgi_wrapper")
def inside(datasette):
    return wrapper(b"inside")


@hookimpl
def actor_from_request(datasette, request):
    request.scope["seen"].append(facts(request.scope))
'''


class Call(NamedTuple):
    """A request to an endpoint of ours, and True of its response if the answer is right."""

    method: str
    path: str
    sent: dict
    is_right: Callable[[httpx.Response, dict], bool]


def first(response: httpx.Response) -> dict:
    return response.json()["results"][0]


def is_embedding(of: str) -> Callable[[httpx.Response, dict], bool]:
    return lambda response, right: np.array_equal(np.float32(first(response)["embedding"]), right[of])


def is_classified(response: httpx.Response, right: dict) -> bool:
    """Several labels are long enough for datasette-gzip, which leaves 500 bytes alone."""
    return first(response)["vector"] == base64.urlsafe_b64encode(right["photo"].tobytes()).decode().rstrip("=")


def is_found(response: httpx.Response, right: dict) -> bool:
    return first(response)["id"] == "photo"


SEARCH, LABELS = "/-/clip/search/photos/things", {"labels": '["a photo", "a drawing"]'}
AS_JSON = {"json": {"images": [base64.b64encode(JPEG).decode()]}}
CALLS = {
    "embed.json": Call("GET", "/-/clip/embed.json?text=purple", {}, is_embedding("text")),
    "embed.json, a body": Call("POST", "/-/clip/embed.json", {"content": JPEG}, is_embedding("photo")),
    "embed.json, JSON": Call("POST", "/-/clip/embed.json", AS_JSON, is_embedding("photo")),
    "embed.json, a file": Call("POST", "/-/clip/embed.json", {"files": {"a": ("a.jpg", JPEG)}}, is_embedding("photo")),
    "classify.json": Call("POST", "/-/clip/classify.json", {"files": {"a": JPEG}, "data": LABELS}, is_classified),
    "search .json": Call("GET", f"{SEARCH}.json?q=id:photo&k=20", {}, is_found),
    "search .json, a body": Call("POST", f"{SEARCH}.json", {"json": {"q": "id:photo"}}, is_found),
    "search page": Call("GET", f"{SEARCH}?q=id:photo", {}, lambda response, right: "purple thing" in response.text),
    "search page, a file": Call("POST", SEARCH, {"files": {"image": JPEG}}, lambda response, right: "purple thing" in response.text),
    "thumbnail": Call("GET", "/-/clip/thumbnail/photos/things?id=photo", {}, lambda response, right: response.content == JPEG),
    "/-/clip": Call("GET", "/-/clip", {}, lambda response, right: "is <strong>ready</strong>" in response.text),
    "/-/clip.json": Call("GET", "/-/clip.json", {}, lambda response, right: response.json()["ready"] is True),
    "SQL": Call(
        "GET",
        "/photos/-/query.json?sql=select+hex(llm_embed('clip','purple'))+as+x&_shape=array",
        {},
        lambda response, right: response.json() == [{"x": right["text"].tobytes().hex().upper()}],
    ),
}  # fmt: skip
each_call = pytest.mark.parametrize("name", CALLS)


@pytest.fixture(scope="module")
def right(demo_engine) -> dict[str, np.ndarray]:
    return {"text": demo_engine.embed_item("purple"), "photo": demo_engine.embed_item(JPEG)}


@pytest.fixture(scope="module")
def database(right, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "photos.db"
    conn = llms_database(str(path), things={f"thing {n}": right["text"] for n in range(9)} | {"photo": right["photo"]})
    conn.execute("update embeddings set content_blob = ? where id = 'photo'", [JPEG])
    conn.execute("update embeddings set content = 'a purple thing', metadata = '{}'")
    conn.commit()
    return path


def path_of_python(folder, beside: str) -> str:
    """A PYTHONPATH that puts .venv-beside before what is installed, or after it."""
    if beside == "first":
        return str(BESIDE)
    (folder / "site").mkdir()
    (folder / "site/sitecustomize.py").write_text(f"import sys\nsys.path.append({str(BESIDE)!r})\n")
    return str(folder / "site")


@pytest.fixture(scope="module", params=[(v, b) for v in ("0.65", "1.0a") for b in ("first", "last")], ids=" ".join)
def server(request, database, demo_dir, tmp_path_factory):
    """A server with all five, and the witness: its version and its address."""
    assert (BESIDE / "ready").exists(), "there is no finished .venv-beside: `make test` makes it"
    (version, beside), folder = request.param, tmp_path_factory.mktemp("server")
    (folder / "plugins").mkdir()
    (folder / "plugins/witness.py").write_text(WITNESS)
    (folder / "metadata.json").write_text(json.dumps(METADATA))
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir), PYTHONPATH=path_of_python(folder, beside))
    arguments = [str(database), "-m", str(folder / "metadata.json"), "--plugins-dir", str(folder / "plugins")]
    arguments += ["-c", str(folder / "metadata.json")] if version == "1.0a" else []
    bin = BIN if version == "0.65" else request.getfixturevalue("alpha_bin")
    with serving(*arguments, env=env, log=folder / "log", bin=bin) as url:
        yield version, url


def send(server: tuple[str, str], name: str, method: str = "", token: dict = TOKEN, **more) -> httpx.Response:
    """The response to a call by its name, with the token in the query string."""
    (version, url), call = server, CALLS[name]
    path = call.path.replace("/photos/-/query.json", "/photos.json") if version == "0.65" else call.path
    url = httpx.URL(url + path).copy_merge_params(token)
    return httpx.request(method or call.method, url, **({} if method else call.sent), **more)


def test_all_five_are_loaded_and_robots_are_blocked(server):
    version, url = server
    loaded = {plugin["name"] for plugin in httpx.get(f"{url}/-/plugins.json", params=TOKEN).json()}
    assert loaded >= NAMES
    assert httpx.get(f"{url}/-/versions.json", params=TOKEN).json()["datasette"]["version"].startswith(version)
    assert httpx.get(f"{url}/robots.txt").text == "User-agent: *\nDisallow: /private"


@each_call
def test_cors_lets_the_shop_read_what_it_asked_for_and_no_other_origin(name, server, right):
    response = send(server, name, headers=FROM_THE_SHOP)
    assert (response.status_code, CALLS[name].is_right(response, right)) == (200, True), response.text[:500]
    assert response.headers["access-control-allow-origin"] == SHOP
    response = send(server, name, headers=FROM_THE_SHOP | {"origin": "https://other.example"})
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if ".json" in call.path])
def test_cors_allows_a_preflight(name, server):
    asks = {"access-control-request-method": CALLS[name].method, "access-control-request-headers": "content-type"}
    response = send(server, name, "OPTIONS", headers=FROM_THE_SHOP | asks)
    assert response.status_code in (200, 204)
    assert response.headers["access-control-allow-origin"] == SHOP
    assert response.headers["access-control-allow-headers"] == "content-type"
    assert response.headers["access-control-allow-methods"] == "GET, POST"


@each_call
def test_gzip_compresses_and_the_answer_is_the_same(name, server, right):
    response = send(server, name, headers={"accept-encoding": "gzip"})
    assert (response.status_code, CALLS[name].is_right(response, right)) == (200, True)
    assert (response.headers.get("content-encoding") == "gzip") == (len(response.content) >= 500)
    plain = send(server, name, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert CALLS[name].is_right(plain, right)


@each_call
def test_auth_tokens_decides_who_may_see_it(name, server, right):
    assert send(server, name, token={}).status_code == 403
    assert send(server, name, token={"_auth_token": "of-nobody"}).status_code == 403
    response = send(server, name, token={}, headers={"authorization": "Bearer of-the-robot"})
    assert (response.status_code, CALLS[name].is_right(response, right)) == (200, True)


@each_call
def test_with_all_of_them_it_stays_out_of_search_engines(name, server):
    assert send(server, name).headers["x-robots-tag"] == "noindex"


@each_call
def test_plugins_see_the_request_that_was_sent_outside_and_inside_of_our_wrappers_and_in_hooks(name, server):
    headers = send(server, name, headers=FROM_THE_SHOP).headers
    assert headers["inside-scope"] == headers["outside-scope"]
    assert {*headers["hook-scope"].split(", ")} == {headers["outside-scope"]}
    assert headers["inside-body"] == headers["outside-body"]
