"""The frame of our pages: their policy, their language and landmarks, plugins' scripts, static files, compression."""

from __future__ import annotations

import re

import pytest
from datasette import hookimpl
from datasette.app import Datasette
from datasette.plugins import pm

from conftest import ROOT
from datasette_clip.paths import ABOUT, CLASSIFY, COMPARE, EMBED, SEARCH
from page_forms import get, post

OURS = ("/", ABOUT, CLASSIFY, COMPARE, SEARCH)
POLICY = re.compile(
    r"default-src 'self'; script-src 'self' 'nonce-([\w-]{22})'; img-src 'self' data: blob:([^;]*); "
    r"style-src 'self' 'nonce-([\w-]{22})'; base-uri 'none'"
)


def policy_of(response) -> re.Match:
    """The Content-Security-Policy of a response, matched: nonce, hosts of images, nonce."""
    policy = POLICY.fullmatch(response.headers["content-security-policy"])
    assert policy
    return policy


class OtherPlugin:
    """Adds a style, scripts and a menu entry to every page."""

    @hookimpl
    def extra_css_urls(self):
        return ["https://other.example/a.css"]

    @hookimpl
    def extra_js_urls(self):
        return ["/other.js", {"url": "https://other.example/b.js", "module": True}]

    @hookimpl
    def extra_body_script(self):
        return {"script": "window.other = 1 < 2", "module": True}

    @hookimpl
    def menu_links(self):
        return [{"href": "/other", "label": "Other"}]


@pytest.fixture
def other_plugin():
    plugin = OtherPlugin()
    pm.register(plugin, name="other")
    yield plugin
    pm.unregister(plugin)


@pytest.mark.parametrize("path", OURS)
def test_our_pages_send_a_policy_which_nothing_in_them_breaks(path, datasette, other_plugin):
    response = get(datasette, path)
    nonce = policy_of(response)[1]
    assert policy_of(response)[3] == nonce
    scripts = re.findall(r"<script\b[^>]*>", response.text)
    inline = [script for script in scripts if "src=" not in script]
    assert inline  # that of the other plugin
    for script in scripts:
        assert f'nonce="{nonce}"' in script or re.search(r'src="/-/clip/static/', script)
    assert not re.search(r"<[^>]*\s(style|on\w+)=", response.text)
    assert "<style" not in response.text
    assert policy_of(get(datasette, path))[1] != nonce


@pytest.mark.parametrize("path", OURS)
def test_our_pages_keep_what_plugins_add(path, datasette, other_plugin):
    page = get(datasette, path).text
    nonce = re.search(r'nonce="([\w-]+)"', page)[1]
    assert f'<link rel="stylesheet" nonce="{nonce}" href="https://other.example/a.css">' in page
    assert f'<script nonce="{nonce}" src="/other.js"></script>' in page
    assert f'<script nonce="{nonce}" type="module" src="https://other.example/b.js"></script>' in page
    assert f'<script nonce="{nonce}" type="module">window.other = 1 < 2</script>' in page
    assert '<li><a href="/other">Other</a></li>' in page


@pytest.mark.parametrize("path", OURS)
def test_our_pages_name_their_language_and_their_landmarks(path, datasette):
    page = get(datasette, path).text
    assert '<html lang="en">' in page
    first_link = re.search(r"<body.*?<a [^>]*>", page, re.DOTALL)[0]
    assert first_link.endswith('<a class="clip-skip" href="#clip-content">')
    for landmark in ("<header", "<nav", '<main id="clip-content"', "<footer", "<h1"):
        assert page.count(landmark) == 1, landmark


@pytest.mark.parametrize("path", ["/_memory", "/-/versions", "/nothing", f"{ABOUT}.json", f"{EMBED}.json?text=a"])
def test_nothing_else_has_a_policy(path, datasette):
    assert "content-security-policy" not in get(datasette, path).headers


def test_a_refusal_on_our_pages_has_the_policy_too(datasette):
    response = post(datasette, CLASSIFY, [("notes.txt", b"abc")])
    assert response.status_code == 400
    assert policy_of(response)


def test_configured_hosts_of_images_are_in_the_policy(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    urls = {
        "a": "https://one.example:8443/{id}.jpg",
        "b": "https://{name}.two.example/{id}",
        "c": "/pictures/{id}.jpg",
        "d": "http://three.example/x/{id}",
    }
    tables = {name: {"table": "t", "vector": "v", "image_url": url} for name, url in urls.items()}
    metadata = {"plugins": {"datasette-clip": {"collections": {"photos": tables}}}}
    datasette = Datasette(memory=True, metadata=metadata)
    assert policy_of(get(datasette, ABOUT))[2] == " http://three.example https: https://one.example:8443"


def test_the_models_warning_stands_on_every_page_of_ours(datasette):
    for path in OURS:
        assert "It is not OpenAI&#39;s CLIP" in get(datasette, path).text, path


def static_paths(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(/-/clip/static/[^"]+)"', page)


@pytest.mark.parametrize("path", OURS)
def test_scripts_and_styles_are_cached_for_ever_by_their_content(path, datasette):
    found = static_paths(get(datasette, path).text)
    assert found
    for static in found:
        response = get(datasette, static)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert response.text == (ROOT / "plugins/datasette_clip/static" / static.split("/")[-1]).read_text()


def test_scripts_import_each_other_at_the_same_hash(datasette):
    [script] = [path for path in static_paths(get(datasette, CLASSIFY).text) if path.endswith("pages.js")]
    imported = re.findall(r'from "(\./[^"]+)"', get(datasette, script).text)
    assert imported
    for name in imported:
        assert "immutable" in get(datasette, script.replace("pages.js", name[2:])).headers["cache-control"]


def test_a_file_of_another_version_is_not_kept(datasette):
    response = get(datasette, "/-/clip/static/0123456789ab/clip.css")
    assert (response.status_code, response.headers["cache-control"]) == (200, "no-cache")
    again = get(datasette, "/-/clip/static/0123456789ab/clip.css", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for name in ("nothing.js", "__init__.py"):
        assert get(datasette, f"/-/clip/static/0123456789ab/{name}").status_code == 404


def raw(datasette, path: str, encoding: str | None, **headers: str):
    """The response to a GET with this Accept-Encoding."""
    return get(datasette, path, headers={"Accept-Encoding": encoding or "identity", **headers})


@pytest.mark.parametrize("path", [*OURS, f"{ABOUT}.json", f"{EMBED}.json?text=a"])
def test_our_text_is_compressed_where_the_client_takes_gzip(path, datasette):
    plain, packed = raw(datasette, path, None), raw(datasette, path, "br;q=1.0, gzip;q=0.8")
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < 0.7 * len(plain.content)
    assert packed.headers["vary"] == plain.headers["vary"]
    assert plain.headers["vary"].endswith("Accept-Encoding")


@pytest.mark.parametrize("encoding", ["gzip;q=0", "br", "identity, gzip;q=0.0"])
def test_a_client_that_refuses_gzip_gets_none(encoding, datasette):
    assert "content-encoding" not in raw(datasette, ABOUT, encoding).headers


def test_answers_of_sql_are_never_compressed(datasette):
    path = "/_memory.json?sql=select+hex(llm_embed('clip','purple+and+gold'))+as+x&_shape=array"
    plain, asked = raw(datasette, path, None), raw(datasette, path, "gzip")
    assert "content-encoding" not in asked.headers
    assert plain.content == asked.content


def test_a_page_with_a_csrf_token_is_not_compressed(datasette):
    response = raw(datasette, ABOUT, "gzip", Cookie="ds_csrftoken=abc")
    assert "content-encoding" not in response.headers
