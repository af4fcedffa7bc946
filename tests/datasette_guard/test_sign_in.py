"""A browser signs in to a private instance, on 0.65 and on the alpha: by a page, and a cookie for the token."""

from __future__ import annotations

import html
import re
from contextlib import contextmanager

import httpx
import pytest
from datasette.app import Datasette

from datasette_guard import sign_in
from serving import BIN, environment, serving

TOKEN = "a-secret-é"
HTML = {"accept": "text/html,*/*;q=0.8"}
FORM = "The token of this private instance"


@pytest.fixture(scope="module", params=["0.65", "1.0a"])
def serve(request, demo_dir, alpha_bin, tmp_path_factory):
    """Serves a private instance with a token: a context of its address."""
    folder = tmp_path_factory.mktemp("private")
    bin = BIN if request.param == "0.65" else alpha_bin

    @contextmanager
    def serve_with(token: str):
        env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir), CLIP_TOKEN=token)
        with serving("--memory", "--cors", env=env, log=folder / "log", bin=bin) as url:
            yield url

    return serve_with


@pytest.fixture(scope="module")
def url(serve):
    with serve(TOKEN) as address:
        yield address


def browser(url: str, cookies: httpx.Cookies | None = None) -> httpx.Client:
    return httpx.Client(base_url=url, headers=HTML, cookies=cookies)


def csrf_of(page: str) -> str:
    return re.search(r'name="csrftoken" value="([^"]*)"', page)[1]


def send(client: httpx.Client, path: str = sign_in.SIGN_IN, **fields: str) -> httpx.Response:
    """Fill in the form of a page and send it, as a browser does."""
    page = client.get(path).text
    origin = {"origin": str(client.base_url).rstrip("/"), "sec-fetch-site": "same-origin"}
    return client.post(path, data={"csrftoken": csrf_of(page), **fields}, headers=origin)


def test_a_browser_gets_the_page_and_a_program_does_not(url):
    page = browser(url).get("/_memory?sql=select+1")
    assert page.status_code == 403
    assert FORM in page.text
    assert 'name="next" value="/_memory?sql=select+1"' in page.text
    for program in (httpx.get(f"{url}/_memory.json?sql=select+1", headers=HTML), httpx.get(f"{url}/")):
        assert (program.status_code, FORM in program.text) == (403, False)


def test_the_token_signs_in_and_leads_on(url):
    with browser(url) as client:
        response = send(client, token=f" {TOKEN} ", next="/_memory?sql=select+1")
        assert (response.status_code, response.headers["location"]) == (302, "/_memory?sql=select+1")
        cookie = response.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
        assert f"max-age={sign_in.LASTS_S}" in cookie
        assert "secure" not in cookie
        assert client.get("/_memory?sql=select+1", follow_redirects=True).status_code == 200
        assert "Sign out" in client.get("/").text
        assert client.get(sign_in.SIGN_IN).status_code == 302


def test_behind_tls_the_cookie_is_secure(url):
    with browser(url) as client:
        page = client.get(sign_in.SIGN_IN).text
        headers = {"x-forwarded-proto": "https"}
        response = client.post(sign_in.SIGN_IN, data={"csrftoken": csrf_of(page), "token": TOKEN}, headers=headers)
        assert "; secure" in response.headers["set-cookie"].lower()


@pytest.mark.parametrize("wrong", ["", "another", TOKEN[:-1], TOKEN + "x"])
def test_another_token_does_not(wrong, url):
    with browser(url) as client:
        response = send(client, token=wrong)
        assert (response.status_code, sign_in.NOT_THE_TOKEN in response.text) == (403, True)
        assert client.get("/").status_code == 403


@pytest.mark.parametrize(
    "next",
    [
        "//evil.example",
        "/\\evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "",
        "/a\nSet-Cookie: b=c",
        "a",
    ],
)
def test_the_way_on_stays_on_this_instance(next, url):
    with browser(url) as client:
        assert send(client, token=TOKEN, next=next).headers["location"] == "/"


def test_signing_out_ends_it(url):
    with browser(url) as client:
        send(client, token=TOKEN)
        response = send(client, sign_in.SIGN_OUT)
        assert (response.status_code, response.headers["location"]) == (302, sign_in.SIGN_IN)
        assert client.get("/").status_code == 403


def test_pages_of_clip_sign_out_by_a_button_and_show_no_token(url):
    with browser(url) as client:
        send(client, token=TOKEN)
        page = client.get("/-/clip").text
        assert re.search(rf'<form action="{sign_in.SIGN_OUT}" method="post">\s*(<input[^>]*>\s*)?<button', page)
        assert TOKEN not in html.unescape(page)
        assert 'curl -H "Authorization: Bearer $CLIP_TOKEN" -s ' in html.unescape(page)
        response = client.post(
            sign_in.SIGN_OUT,
            data={"csrftoken": csrf_of(page)},
            headers={"origin": url, "sec-fetch-site": "same-origin"},
        )
        assert (response.status_code, client.get("/").status_code) == (302, 403)


def test_a_form_of_another_site_is_refused(url):
    elsewhere = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
    with browser(url) as client:
        send(client, token=TOKEN)
        assert client.post(sign_in.SIGN_OUT, headers=elsewhere, data={"csrftoken": "guessed"}).status_code == 403
        assert client.get("/").status_code == 200


def test_the_page_shows_no_token_and_runs_no_script(url):
    response = browser(url).get(sign_in.SIGN_IN)
    assert response.status_code == 200
    assert TOKEN not in response.text
    assert "<script" not in response.text
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert "no-store" in response.headers["cache-control"]


def test_the_cookie_survives_a_restart_and_ends_with_the_token(serve):
    with serve("first") as url, browser(url) as client:
        send(client, token="first")
        cookies = client.cookies
    kept = {sign_in.COOKIE: cookies[sign_in.COOKIE]}
    with serve("first") as url:
        assert httpx.get(f"{url}/", cookies=kept).status_code == 200
        altered = {sign_in.COOKIE: kept[sign_in.COOKIE][:-2] + "xx"}
        assert httpx.get(f"{url}/", cookies=altered).status_code == 403
    with serve("second") as url:
        assert httpx.get(f"{url}/", cookies=kept).status_code == 403


def test_a_cookie_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setenv("CLIP_TOKEN", TOKEN)
    datasette, cookie = Datasette(), sign_in.signer(TOKEN).dumps("in")
    assert sign_in.actor_of(datasette, {sign_in.COOKIE: cookie})
    monkeypatch.setattr(sign_in, "LASTS_S", -1)
    assert sign_in.actor_of(datasette, {sign_in.COOKIE: cookie}) is None


@pytest.mark.parametrize("bin", ["0.65", "1.0a"])
def test_a_public_instance_has_no_such_page(bin, alpha_bin, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", env=env, log=tmp_path / "log", bin=BIN if bin == "0.65" else alpha_bin) as address:
        for path in (sign_in.SIGN_IN, sign_in.SIGN_OUT):
            assert httpx.get(address + path).status_code == 404
        assert "Sign out" not in httpx.get(f"{address}/").text
