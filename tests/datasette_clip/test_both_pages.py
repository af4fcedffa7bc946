"""Tests that /-/clip/classify and /-/clip/compare share, as plain forms over HTTP."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from datasette.app import Datasette

from conftest import ROOT
from datasette_clip.paths import CLASSIFY, COMPARE
from drawings import drawing
from page_forms import call, errors_in, get, post

STATIC = ROOT / "plugins/datasette_clip/static"
TEMPLATES = STATIC.parent / "templates"


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_without_a_model_the_page_says_what_to_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    response = get(Datasette(memory=True), path)
    assert response.status_code == 503
    assert "there is no model directory" in errors_in(response.text)[0]


NASTY = '<script>alert("1")</script>'


def test_whatever_is_typed_or_sent_is_shown_as_text(datasette):
    for path, field in ((CLASSIFY, "own"), (COMPARE, "texts")):
        page = post(
            datasette,
            path,
            [(f"{NASTY}.png".replace('"', "'"), drawing("face"))],
            **{field: f"</textarea>{NASTY}\nface"},
        ).text
        assert "alert" in page
        assert "<script>alert" not in page
        assert page.count("</textarea>") == 1
    kept = post(
        datasette, CLASSIFY, img=f'"{NASTY}', vector=f'"{NASTY}', name=NASTY, k=f'"{NASTY}', labels=f"['{NASTY}"
    ).text
    assert "<script>alert" not in kept


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_a_private_instance_shows_its_pages_to_nobody(path, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"allow": {"id": "root"}})
    assert get(datasette, path).status_code == 403
    assert post(datasette, path, [("face.png", drawing("face"))], own="face", texts="face").status_code == 403


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_other_methods_are_refused(path, datasette):
    assert call(datasette, "PUT", path).status_code == 405
    assert call(datasette, "HEAD", path).status_code == 200


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
@pytest.mark.parametrize("kind", ["image/png", "application/json", "", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_form_is_refused(kind, path, datasette):
    response = call(datasette, "POST", path, content=drawing("face"), headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 415
    [sentence] = errors_in(response.text)
    assert sentence == (
        "the body is no form but PNG; expected multipart/form-data with files, or application/x-www-form-urlencoded"
    )


def test_a_logged_in_actor_may_send_the_form(datasette):
    """Datasette 0.65 asks for a CSRF token if a POST has a cookie, unless a plugin exempts the path."""
    cookies = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    for path in (CLASSIFY, COMPARE):
        sent = {"data": {"own": "face", "texts": "face"}, "files": {"image": ("face.png", drawing("face"))}}
        assert call(datasette, "POST", path, **sent, cookies=cookies).status_code == 200


def test_the_pages_lead_to_each_other_and_every_menu_to_the_first(datasette):
    pages_ = {path: get(datasette, path).text for path in (CLASSIFY, COMPARE)}
    contents = {path: page.split('<section class="content">')[1] for path, page in pages_.items()}
    links = {path: set(re.findall(r'href="([^"]+)"', content)) for path, content in contents.items()}
    assert f'href="{CLASSIFY}"' in get(datasette, "/").text
    assert {COMPARE, "/-/clip"} <= links[CLASSIFY]
    assert {CLASSIFY, "/-/clip"} <= links[COMPARE]
    get(datasette, "/_memory.json?sql=select+1")  # waits until the tower is open
    assert {CLASSIFY, COMPARE} <= set(re.findall(r'href="([^"]+)"', get(datasette, "/-/clip").text))


def test_one_template_loads_the_style_and_the_script_of_both_pages():
    names = ("classify.html", "compare.html", "_clip_page.html", "_clip_base.html")
    templates = {name: (TEMPLATES / name).read_text() for name in names}
    for loaded, by in (("clip.css", "base"), ("pages.js", "page"), ('class="clip-page"', "page")):
        assert [name for name, text in templates.items() if loaded in text] == [f"_clip_{by}.html"]


def test_nothing_is_loaded_from_another_host_and_no_handler_is_in_the_html(datasette):
    sent = [("face.png", drawing("face"))]
    whole = [post(datasette, path, sent, own="face", texts="face").text for path in (CLASSIFY, COMPARE)]
    shown = [page.split('<section class="content">')[1].split("<footer")[0] for page in whole]
    files = [file.read_text() for file in STATIC.iterdir()]
    assert len(files) >= 3
    for text in [*shown, *files]:
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+|localhost)", text))
        assert hosts <= {"localhost"}  # in the curl command
        assert not re.search(r"<[^>]*\son\w+=", text)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', "".join(page.split("<footer")[0] for page in whole))
    assert all(address.startswith(("/", "data:image/jpeg;base64,", "#clip-")) for address in addresses)
    assert not any(address.startswith("//") for address in addresses)


MANY = "aa\n" * 3_000_000


@pytest.mark.parametrize(
    ("path", "sent", "sentence"),
    [
        (CLASSIFY, {"files": {"own": (None, MANY)}}, "text of 9000000 bytes; at most 1000000 are accepted"),
        (
            CLASSIFY,
            {"files": {"labels": (None, f'["{MANY}"]'.replace("\n", ","))}},
            "text of 9000004 bytes; at most 1000000 are accepted",
        ),
        (COMPARE, {"files": {"texts": (None, MANY)}}, "there are more than 64 texts and pictures"),
        (COMPARE, {"data": {"texts": "a\n" * 2_400_000}}, "the form has 2400000 escapes (%); at most 100000 are read"),
    ],
)
def test_no_list_is_made_of_millions_of_lines(path, sent, sentence, datasette):
    """A list of these lines took 300 to 600 MB, because each str has about 50 bytes of overhead."""
    get(datasette, path)
    tracemalloc.start()
    try:
        response = call(datasette, "POST", path, **sent)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code == 400
    assert errors_in(response.text)[0].startswith(sentence)
    assert peak_bytes < 150_000_000  # several copies of the text: the body, the field and the page
