"""/-/clip/classify and /-/clip/compare, over HTTP and in a real browser, with a script and without."""

from __future__ import annotations

import asyncio
import base64
import html
import io
import json
import re
import shlex
import subprocess
import threading
import tracemalloc
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from datasette.app import Datasette
from PIL import Image, ImageDraw, ImageOps

from browser import chromium, new_context
from conftest import ROOT
from datasette_clip.items import FormFields, base64url
from datasette_clip.model import embedding_queue
from datasette_clip.pages import classify, compare
from datasette_clip.paths import CLASSIFY, COMPARE
from llm_clip_onnx import vectors, zero_shot
from nasty import photo, saved, turned
from serving import environment, serving

STATIC = ROOT / "plugins/datasette_clip/static"
TOO_LONG = "These labels with this picture are too long for a link."
TEMPLATES = STATIC.parent / "templates"
OWN = ["a red heart", "a yellow face", "a blue circle"]
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # as in test_sql_functions.py


def drawn(what: str, width: int = 400, height: int = 300) -> bytes:
    """A PNG of a simple picture: the demo model knows such."""
    image = Image.new("RGB", (width, height), "white")
    draw, middle = ImageDraw.Draw(image), width // 2
    if what == "face":
        draw.ellipse((middle - 130, 20, middle + 130, 280), "#ffcc22", "#cc8800", 4)
        draw.ellipse((middle - 70, 100, middle - 40, 140), "black")
        draw.ellipse((middle + 40, 100, middle + 70, 140), "black")
        draw.arc((middle - 80, 100, middle + 80, 230), 20, 160, "black", 12)
    elif what == "heart":
        draw.pieslice((middle - 120, 30, middle, 150), 150, 360, "#dd2233")
        draw.pieslice((middle, 30, middle + 120, 150), 180, 390, "#dd2233")
        draw.polygon([(middle - 118, 100), (middle + 118, 100), (middle, 270)], "#dd2233")
    else:
        draw.ellipse((middle - 120, 30, middle + 120, 270), "#2266dd")
    return saved(image, "PNG")


# What a page shows, read from its HTML


def rows_of(page: str) -> list[tuple[str, str, str]]:
    """Label, probability and cosine of each bar."""
    found = re.findall(
        r'<tr><th scope="row">(.*?)</th><td class="clip-bar".*?</td>'
        r'<td class="clip-number">(.*?)</td><td class="clip-number">(.*?)</td></tr>',
        page,
    )
    return [tuple(html.unescape(cell) for cell in row) for row in found]


def kept_in(page: str) -> dict[str, list[str]]:
    """The hidden fields of a page, which go with its form."""
    fields: dict[str, list[str]] = {}
    for name, value in re.findall(r'<input type="hidden" form="clip-form" name="(\w+)" value="([^"]*)">', page):
        fields.setdefault(name, []).append(html.unescape(value))
    return fields


def errors_in(page: str) -> list[str]:
    return [html.unescape(one) for one in re.findall(r'<p class="message-error" role="alert">(.*?)</p>', page)]


def link_in(page: str, pattern: str) -> str:
    return html.unescape(re.search(rf'href="({pattern}[^"]*)"', page)[1])


def jpeg_in(page: str) -> list[bytes]:
    return [base64.urlsafe_b64decode(img + "=" * (-len(img) % 4)) for img in kept_in(page)["img"]]


def expected(engine, classifier, jpeg: bytes, k: int = 5) -> list[tuple[str, str, str]]:
    """What the page is to show for a JPEG, by the engine alone."""
    matches = zero_shot.classify(classifier, engine.embed_item(jpeg), engine.manifest.logit_scale, k)
    percent = [f"{100 * m.probability:.1f} %" if m.probability >= 0.0005 else "< 0.1 %" for m in matches]
    return [(m.label, p, f"{m.cosine:.3f}") for m, p in zip(matches, percent)]


@pytest.fixture
def datasette(demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette(memory=True)


def call(datasette: Datasette, method: str, path: str, **options) -> httpx.Response:
    async def call_it():
        return await datasette.client.request(method, path, **options)

    return asyncio.run(call_it())


def get(datasette: Datasette, path: str, **options) -> httpx.Response:
    return call(datasette, "GET", path, **options)


def post(datasette: Datasette, path: str, files=(), **fields) -> httpx.Response:
    """A form as a browser without script sends it: fields, and files as (name, bytes)."""
    parts = [("image", (name, content)) for name, content in files] or [("image", ("", b""))]
    return call(datasette, "POST", path, data=fields, files=parts)


# /-/clip/classify as a plain form


def test_a_picture_is_answered_with_the_labels_of_the_engine(datasette, demo_engine):
    response = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], labels="emoji", k="7")
    assert response.status_code == 200
    [jpeg] = jpeg_in(response.text)
    assert Image.open(io.BytesIO(jpeg)).size == (224, 224)
    assert rows_of(response.text) == expected(demo_engine, demo_engine.label_set("emoji"), jpeg, 7)
    assert 'alt="heart.png, as CLIP looks at it' in response.text
    assert f"The best 7 of {len(demo_engine.label_set('emoji').labels):,} labels" in response.text


def test_labels_are_changed_without_the_file_and_without_embedding_it_again(datasette, demo_engine, monkeypatch):
    first = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], labels="emoji")
    [jpeg] = jpeg_in(first.text)
    monkeypatch.setattr("datasette_clip.pages.pictures.jpeg_of", None)  # would raise
    again = post(datasette, CLASSIFY, **kept_in(first.text), labels="emoji", own="\r\n".join(OWN))
    assert rows_of(again.text) == expected(demo_engine, demo_engine.classifier(OWN), jpeg)
    assert kept_in(again.text)["vector"] == kept_in(first.text)["vector"]
    assert jpeg_in(again.text) == [jpeg]
    assert '<option value="" selected>' in again.text


def test_a_bad_file_leaves_the_picture_that_was_kept_and_says_why(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], labels="emoji")
    second = post(datasette, CLASSIFY, [("notes.txt", b"abc")], **kept_in(first.text), labels="emoji")
    assert errors_in(second.text)[0].startswith("notes.txt: 3-byte blob is not an image")
    assert rows_of(second.text) == rows_of(first.text)
    assert kept_in(second.text) == kept_in(first.text)
    assert second.text.count('class="clip-picture"') == 1


def test_a_new_file_takes_the_place_of_the_picture_that_was_kept(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], labels="emoji")
    second = post(datasette, CLASSIFY, [("face.png", drawn("face"))], **kept_in(first.text), labels="emoji")
    alone = post(datasette, CLASSIFY, [("face.png", drawn("face"))], labels="emoji")
    assert rows_of(second.text) == rows_of(alone.text) != rows_of(first.text)
    assert kept_in(second.text)["name"] == ["face.png"]


@pytest.mark.parametrize(
    ("fields", "chosen", "own"),
    [
        ({}, None, ""),
        ({"labels": ["emoji"]}, "emoji", ""),
        ({"labels": ["emoji"], "own": ["cat"], "shown": [""]}, "", "cat"),  # typed under a set
        ({"labels": ["emoji"], "own": ["cat"], "shown": ["cat"]}, "emoji", "cat"),  # the set chosen after that
        ({"labels": ["emoji"], "own": ["cat\r\ndog"], "shown": ["cat"]}, "", "cat\r\ndog"),
        ({"labels": ["emoji"], "own": ["cat\r\ndog "], "shown": ["cat\ndog"]}, "emoji", "cat\r\ndog "),
        ({"labels": ["emoji"], "own": ["cat\ndog"], "shown": ["cat dog"]}, "", "cat\ndog"),
        ({"labels": [""], "own": ["cat"], "shown": ["cat"]}, "", "cat"),
        ({"labels": ["emoji"], "own": [" \n"]}, "emoji", " \n"),
        ({"labels": ['["cat", "a, b"]']}, "", "cat\na, b"),  # a permalink
        ({"labels": ["cat", "dog"]}, "", "cat\ndog"),  # as the endpoint has them
        ({"labels": [""], "own": [" \n"], "shown": ["cat"]}, None, " \n"),  # what was typed is cleared
    ],
)
def test_which_labels_are_meant(fields, chosen, own):
    collected = FormFields(None)
    collected.options = fields
    assert classify.chosen_labels(collected) == {"chosen": chosen, "own": own}


def test_what_a_refused_request_took_is_given_back_too(datasette, monkeypatch):
    monkeypatch.setattr("datasette_guard.memory.soon", soon := threading.Event())
    assert post(datasette, CLASSIFY, [("face.png", drawn("face"))], labels="[").status_code == 400
    assert soon.is_set()


def test_as_many_labels_are_shown_as_are_asked_for(datasette):
    page = get(datasette, CLASSIFY + "?k=2000").text
    assert 'value="2000" min="1"' in page
    assert not re.search(r'name="k"[^>]*max=', page)


@pytest.mark.parametrize("labels", ['["cat", "a\\ndog"]', ["cat", "a\ndog"]])
def test_a_label_of_two_lines_is_refused_where_labels_are_lines(labels, datasette):
    page = get(datasette, f"{CLASSIFY}?{urlencode({'labels': labels, 'k': 7, 'own': 'bird'}, doseq=True)}")
    assert page.status_code == 400
    assert errors_in(page.text) == ["label 1 is 'a\\ndog'; on this page a label is a line"]
    assert 'name="k" value="7"' in page.text
    assert "bird</textarea>" in page.text


def test_a_link_holds_the_picture_and_gives_the_same_answer(datasette):
    first = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], own="\n".join(OWN), k="2").text
    again = get(datasette, link_in(first, CLASSIFY + r"\?"))
    assert again.status_code == 200
    assert rows_of(again.text) == rows_of(first)
    assert len(rows_of(first)) == 2
    assert jpeg_in(again.text) == jpeg_in(first)
    assert "\n".join(OWN) in again.text


@pytest.mark.parametrize("own", ["", "it's a heart\nit's a face"])
def test_the_sql_of_the_page_gives_the_same_answer(datasette, own):
    page = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], own=own).text
    link = link_in(page, r"/_memory[^\"]*\?").replace("/_memory?", "/_memory.json?")
    [row] = get(datasette, link + "&_shape=array").json()
    [matches] = (json.loads(value) for value in row.values())
    assert [(m["label"], f"{m['cosine']:.3f}") for m in matches] == [(row[0], row[2]) for row in rows_of(page)]
    sql = html.unescape(re.search(r"<h3>SQL</h3>\n<pre[^>]*>(.*?)</pre>", page, re.DOTALL)[1])
    assert urlencode({"sql": sql}) in link


@pytest.mark.parametrize("metadata", [{"allow_sql": False}, {"databases": {"_memory": {"allow_sql": False}}}])
def test_who_may_not_run_sql_gets_no_link_to_it(metadata, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    page = post(Datasette(memory=True, metadata=metadata), CLASSIFY, [("heart.png", drawn("heart"))]).text
    assert rows_of(page)
    assert "sql=" not in page


def test_a_photo_of_a_telephone_is_turned_upright_and_loses_its_exif(datasette):
    [jpeg] = jpeg_in(post(datasette, CLASSIFY, [("turned.jpg", turned())]).text)
    upright = saved(ImageOps.exif_transpose(Image.open(io.BytesIO(turned()))), "PNG")
    [same] = jpeg_in(post(datasette, CLASSIFY, [("upright.png", upright)]).text)
    found, wanted = (np.asarray(Image.open(io.BytesIO(one)), np.float32) for one in (jpeg, same))
    assert np.abs(found - wanted).mean() < 1  # of 255: the resize goes along the other axis first
    assert not Image.open(io.BytesIO(jpeg)).getexif()


def test_a_jpeg_of_just_what_clip_looks_at_is_kept_as_it_is(datasette, demo_engine):
    side = demo_engine.manifest.preprocess.crop
    sent = saved(photo(side, side), "JPEG", quality=60)
    assert jpeg_in(post(datasette, CLASSIFY, [("small.jpg", sent)]).text) == [sent]
    exif = Image.Exif()
    exif[0x010E] = "at home"
    [kept] = jpeg_in(post(datasette, CLASSIFY, [("a.jpg", saved(photo(side, side), "JPEG", exif=exif.tobytes()))]).text)
    assert b"at home" not in kept


def test_every_kept_picture_fits_a_url(datasette, demo_engine):
    noise = np.random.default_rng(0).integers(0, 2, (224, 224, 3), dtype=np.uint8) * 255
    as_it_is = saved(Image.fromarray(noise), "JPEG", quality=100)
    assert len(as_it_is) > 100_000
    for name, content in (("noise.png", saved(Image.fromarray(noise), "PNG")), ("noise.jpg", as_it_is)):
        [kept] = kept_in(post(datasette, CLASSIFY, [(name, content)]).text)["img"]
        assert len(kept) < 55_000  # of the 60,000 of limits.url_bytes


LONG = "\n".join(f"{'long ' * 10}{n}" for n in range(250))  # in 60,000 bytes of a URL, 15,000 go to these


def test_no_link_is_longer_than_what_is_read_of_one(datasette):
    def page_of(labels: str) -> str:
        return post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], own=labels).text

    assert f'<p class="clip-hint">{TOO_LONG}' not in page_of(LONG)
    assert get(datasette, link_in(page_of(LONG), CLASSIFY + r"\?")).status_code == 200
    long = page_of("\n".join(f"{'ö' * 50}{n}" for n in range(250)))
    assert rows_of(long)
    assert long.count(f'<p class="clip-hint">{TOO_LONG}') == 2
    assert f'href="{CLASSIFY}?' not in long
    assert "sql=" not in long


@pytest.mark.parametrize(
    ("files", "fields", "sentence"),
    [
        ([], {}, "there is no picture yet; choose, drop or paste one"),
        (
            [("notes.txt", b"abc")],
            {},
            "notes.txt: 3-byte blob is not an image but text; expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            [("empty.png", b"")],
            {},
            "empty.png: 0-byte blob is not an image; expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            [("a.png", drawn("face"))],
            {"labels": "animals"},
            "there is no label set 'animals'; there are emoji; llm clip labels bake makes one",
        ),
        (
            [("a.png", drawn("face"))],
            {"own": "\n".join(f"label {n}" for n in range(300))},
            "there are more than 256 labels; at most so many are embedded for a request (plugins.datasette-clip.limits.prompts): bake a label set of them",
        ),
        (
            [("a.png", drawn("face"))],
            {"k": "many"},
            "k is 'many'; expected a whole number from 1, of the labels to answer",
        ),
        (
            [],
            {"vector": "zzzz", "img": ""},
            "the picture: a BLOB of 3 bytes is not a vector blob: expected 4 bytes per dimension",
        ),
    ],
)
def test_what_cannot_be_answered_is_a_sentence_on_the_page_that_loses_nothing_typed(files, fields, sentence, datasette):
    typed = {"labels": "emoji", "own": "", "k": "3"} | fields
    response = post(datasette, CLASSIFY, files, **typed)
    assert response.status_code == 400
    assert errors_in(response.text) == [sentence]
    assert f'name="k" value="{typed["k"]}"' in response.text
    assert f">\n{typed['own']}</textarea>" in response.text
    if files and drawn("face") in files[0]:
        assert kept_in(response.text)["vector"]  # the picture was good


def test_a_crowded_server_says_so_on_the_page_and_keeps_the_picture(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    metadata = {"plugins": {"datasette-clip": {"limits": {"embedding": 1}}}}
    datasette = Datasette(memory=True, metadata=metadata)
    kept = kept_in(post(datasette, CLASSIFY, [("heart.png", drawn("heart"))]).text)
    with embedding_queue(datasette).slot():
        response = post(datasette, CLASSIFY, **kept, own="a heart")
        empty = get(datasette, CLASSIFY)
    assert (response.status_code, empty.status_code) == (503, 200)
    assert response.headers["retry-after"] == "1"
    [sentence] = errors_in(response.text)
    assert sentence.endswith("(plugins.datasette-clip.limits.embedding)")
    assert {name: kept_in(response.text)[name] for name in ("img", "vector")} == {n: kept[n] for n in ("img", "vector")}
    assert "a heart</textarea>" in response.text
    assert rows_of(post(datasette, CLASSIFY, **kept, own="a heart").text)


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_without_a_model_the_page_says_what_to_run(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tmp_path / "none"))
    response = get(Datasette(memory=True), path)
    assert response.status_code == 503
    assert "there is no model directory" in errors_in(response.text)[0]


def test_a_model_without_label_sets_takes_labels_of_ones_own(tiny_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tiny_dir))
    datasette = Datasette(memory=True)
    assert '<option value="" selected>' in get(datasette, CLASSIFY).text
    page = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], labels="", own="a\nb").text
    assert sorted(row[0] for row in rows_of(page)) == ["a", "b"]


def test_none_of_these_is_said_with_what_it_means(datasette, demo_engine):
    """Of labels of which one is the picture's opposite, no label fits."""
    blue, label = drawn("circle"), "a laughing yellow face with tears of joy"
    page = post(datasette, CLASSIFY, [("blue.png", blue)], own=label).text
    unrelated = demo_engine.classifier([label]).unrelated_cosine
    assert float(rows_of(page)[0][2]) < unrelated
    said = " ".join(re.search(r'id="clip-none">\n<p>(.*?)</p>', page, re.DOTALL)[1].split())
    assert said.startswith(f"<strong>None of these.</strong> The best label's cosine is {rows_of(page)[0][2]}, below ")
    assert f"below {unrelated:.3f}, which is what the best of these labels reaches" in said
    fitting = post(datasette, CLASSIFY, [("heart.png", drawn("heart"))], own="red heart").text
    assert 'id="clip-none"' not in fitting


NASTY = '<script>alert("1")</script>'


def test_whatever_is_typed_or_sent_is_shown_as_text(datasette):
    for path, field in ((CLASSIFY, "own"), (COMPARE, "texts")):
        page = post(
            datasette, path, [(f"{NASTY}.png".replace('"', "'"), drawn("face"))], **{field: f"</textarea>{NASTY}\nface"}
        ).text
        assert "alert" in page
        assert "<script>alert" not in page
        assert page.count("</textarea>") == 1
    kept = post(
        datasette, CLASSIFY, img=f'"{NASTY}', vector=f'"{NASTY}', name=NASTY, k=f'"{NASTY}', labels=f"['{NASTY}"
    ).text
    assert "<script>alert" not in kept


def test_of_what_is_kept_only_a_jpeg_comes_back(datasette):
    kept = kept_in(post(datasette, CLASSIFY, [("heart.png", drawn("heart"))]).text)
    for img in ("zzzz", '"><img src=x>', base64url(drawn("face")), base64url(b"\xff\xd8\xff"), "~0~"):
        page = post(datasette, CLASSIFY, **kept | {"img": img}).text
        assert rows_of(page)
        assert kept_in(page)["img"] == [img if img == base64url(b"\xff\xd8\xff") else ""]


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_a_private_instance_shows_its_pages_to_nobody(path, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"allow": {"id": "root"}})
    assert get(datasette, path).status_code == 403
    assert post(datasette, path, [("face.png", drawn("face"))], own="face", texts="face").status_code == 403


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_other_methods_are_refused(path, datasette):
    assert call(datasette, "PUT", path).status_code == 405
    assert call(datasette, "HEAD", path).status_code == 200


@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
@pytest.mark.parametrize("kind", ["image/png", "application/json", "", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_form_is_refused(kind, path, datasette):
    response = call(datasette, "POST", path, content=drawn("face"), headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 415
    [sentence] = errors_in(response.text)
    assert (
        sentence == "the body is no form; expected multipart/form-data with files, or application/x-www-form-urlencoded"
    )


def test_who_is_logged_in_may_send_the_form(datasette):
    """Datasette 0.65 wants a token with a POST that has a cookie, unless told that there is nothing to forge."""
    cookies = {"ds_actor": datasette.sign({"a": {"id": "root"}}, "actor")}
    for path in (CLASSIFY, COMPARE):
        sent = {"data": {"own": "face", "texts": "face"}, "files": {"image": ("face.png", drawn("face"))}}
        assert call(datasette, "POST", path, **sent, cookies=cookies).status_code == 200


def test_below_another_path_all_links_stay_below_it(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, settings={"base_url": "/below/"})
    page = post(datasette, CLASSIFY, [("face.png", drawn("face"))]).text
    links = re.findall(r'(?:href|src|action)="(/[^"]*)"', page.split("<footer")[0])
    assert len(links) > 8
    assert all(link.startswith("/below/") for link in links)


def test_the_pages_lead_to_each_other_and_every_menu_to_the_first(datasette):
    pages_ = {path: get(datasette, path).text for path in (CLASSIFY, COMPARE)}
    contents = {path: page.split('<section class="content">')[1] for path, page in pages_.items()}
    links = {path: set(re.findall(r'href="([^"]+)"', content)) for path, content in contents.items()}
    assert f'href="{CLASSIFY}"' in get(datasette, "/").text
    assert {COMPARE, "/-/clip"} <= links[CLASSIFY]
    assert {CLASSIFY, "/-/clip"} <= links[COMPARE]
    get(datasette, "/_memory.json?sql=select+1")  # waits until the tower is open
    assert {CLASSIFY, COMPARE} <= set(re.findall(r'href="([^"]+)"', get(datasette, "/-/clip").text))


def test_what_the_two_pages_load_is_said_once():
    templates = {name: (TEMPLATES / name).read_text() for name in ("classify.html", "compare.html", "_clip_page.html")}
    for loaded in ("clip.css", "pages.js", 'class="clip-page"'):
        assert [name for name, text in templates.items() if loaded in text] == ["_clip_page.html"]


def test_nothing_is_loaded_from_another_host_and_no_handler_is_in_the_html(datasette):
    sent = [("face.png", drawn("face"))]
    whole = [post(datasette, path, sent, own="face", texts="face").text for path in (CLASSIFY, COMPARE)]
    shown = [page.split('<section class="content">')[1].split("<footer")[0] for page in whole]
    files = [file.read_text() for file in STATIC.iterdir()]
    assert len(files) >= 3
    for text in [*shown, *files]:
        hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+|localhost)", text))
        assert hosts <= {"localhost"}  # of curl's line
        assert not re.search(r"<[^>]*\son\w+=", text)
    addresses = re.findall(r'(?:src|href|action)="([^"]*)"', "".join(page.split("<footer")[0] for page in whole))
    assert all(address.startswith(("/", "data:image/jpeg;base64,")) for address in addresses)
    assert not any(address.startswith("//") for address in addresses)


# /-/clip/compare as a plain form


def cells_of(page: str) -> list[list[float]]:
    """The cosines of a heat map, row by row."""
    body = page.split("<tbody>")[1].split("</tbody>")[0]
    return [
        [float(cell) for cell in re.findall(r"<td[^>]*>(?:<strong>)?(-?[\d.]+)", row)]
        for row in body.split("</tr>")[:-1]
    ]


def cosines(engine, jpegs: list[bytes], texts: list[str]) -> np.ndarray:
    """Of unit embeddings, by plain numpy: [images, texts]."""
    images = np.stack([engine.embed_item(jpeg) for jpeg in jpegs]).astype(np.float64)
    words = engine.embed_text(texts).astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    return images @ words.T


FILES = [(f"{what}.png", drawn(what)) for what in ("face", "heart", "circle")]


def test_a_heat_map_has_the_cosines_of_numpy_and_its_extremes_the_ends_of_the_scale(datasette, demo_engine):
    response = post(datasette, COMPARE, FILES, texts="\r\n".join(OWN) + "\r\n\r\n")
    assert response.status_code == 200
    wanted = cosines(demo_engine, jpeg_in(response.text), OWN)
    np.testing.assert_allclose(cells_of(response.text), wanted, atol=0.00051)  # three digits are shown
    shades = re.findall(r"background: (#\w+)[^>]*>(?:<strong>)?(-?[\d.]+)", response.text)
    by_cosine = sorted(shades, key=lambda shade: float(shade[1]))
    assert (by_cosine[0][0], by_cosine[-1][0]) == ("#f7fbff", "#08306b")
    headers = re.findall(r'<th scope="col">(.*?)</th>', response.text)
    assert headers == ["image", *OWN]
    assert re.findall(r'<img [^>]*alt="([^"]*)"', response.text) == [name for name, _ in FILES]


def test_texts_are_changed_and_images_added_and_removed_without_sending_any_again(datasette, demo_engine, monkeypatch):
    first = post(datasette, COMPARE, FILES[:2], texts="\n".join(OWN)).text
    second = post(datasette, COMPARE, FILES[2:], **kept_in(first), texts="a face").text
    assert kept_in(second)["name"] == [name for name, _ in FILES]
    assert cells_of(second) == cells_of(post(datasette, COMPARE, FILES, texts="a face").text)
    monkeypatch.setattr("datasette_clip.pages.pictures.jpeg_of", None)  # would raise
    third = post(datasette, COMPARE, **kept_in(second), texts="a face", remove="1").text
    assert kept_in(third)["name"] == ["face.png", "circle.png"]
    assert cells_of(third) == [cells_of(second)[0], cells_of(second)[2]]


def test_an_image_that_cannot_be_read_spoils_no_other(datasette):
    response = post(datasette, COMPARE, [FILES[0], ("notes.txt", b"abc"), FILES[1]], texts="a face")
    assert response.status_code == 200
    [sentence] = errors_in(response.text)
    assert sentence.startswith("notes.txt: 3-byte blob is not an image")
    assert len(cells_of(response.text)) == 2


@pytest.mark.parametrize(
    ("files", "texts", "sentence"),
    [
        ([], "a face", "there is no picture yet; choose, drop or paste some"),
        (
            [("a", b"abc")],
            "a face",
            "a: 3-byte blob is not an image but text; expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            FILES,
            "\n".join("abcdefghij" * 7),
            "there are more than 64 texts and pictures; at most so many are compared (plugins.datasette-clip.limits.items)",
        ),
        (
            FILES[:1],
            "a\n" + "b" * 1_000_001,
            "line 2: text of 1000001 bytes; at most 1000000 are accepted (plugins.datasette-clip.limits.text_bytes)",
        ),
    ],
)
def test_what_cannot_be_compared_is_a_sentence_that_loses_no_text(files, texts, sentence, datasette):
    response = post(datasette, COMPARE, files, texts=texts)
    assert response.status_code == 400
    assert errors_in(response.text) == [sentence]
    assert f">\n{texts}</textarea>" in response.text


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
def test_of_millions_of_lines_no_list_is_made(path, sent, sentence, datasette):
    """A short string takes some 50 bytes beside its letters: as lists, these took 300 to 600 MB."""
    get(datasette, path)
    tracemalloc.start()
    try:
        response = call(datasette, "POST", path, **sent)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert response.status_code == 400
    assert errors_in(response.text)[0].startswith(sentence)
    assert peak_bytes < 150_000_000  # several copies of the text: body, field, and what the page shows of it again


def test_images_may_come_before_texts(datasette):
    response = post(datasette, COMPARE, FILES)
    assert response.status_code == 200
    assert len(kept_in(response.text)["vector"]) == 3
    assert errors_in(response.text) == []


@pytest.mark.parametrize("share", np.linspace(0, 1, 21))
def test_every_number_of_the_heat_map_can_be_read(share):
    """4.5 is what WCAG 2.2 asks of text."""
    colours = compare.colours(share)
    background = np.array(list(bytes.fromhex(colours["background"][1:])))
    assert compare.contrast(background, 0.0 if colours["ink"] == "black" else 1.0) >= 4.5


def test_contrast_is_that_of_wcag():
    assert compare.contrast(np.array([255, 255, 255]), 0) == pytest.approx(21)
    assert compare.contrast(np.array([8, 8, 8]), 1) == pytest.approx(20.03, abs=0.005)  # where the curve is a line
    assert compare.contrast(np.array([118, 118, 118]), 1) == pytest.approx(4.54, abs=0.005)  # the well-known #767676


def test_one_image_and_one_text_make_a_table_too(datasette):
    assert len(cells_of(post(datasette, COMPARE, FILES[:1], texts="a face").text)) == 1


# In a browser

BODY_BYTES = 100_000  # as in metadata.json


@pytest.fixture(scope="module")
def server(demo_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    limits = {"plugins": {"datasette-guard": {"limits": {"body_bytes": BODY_BYTES}}}}
    (folder / "metadata.json").write_text(json.dumps(limits))
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", "-m", str(folder / "metadata.json"), env=env, log=folder / "log") as url:
        yield url


@pytest.fixture
def sent(browser_page):
    """What the page has sent by fetch: for each request, its fields and the sizes of their values, files as "file"."""
    browser_page.add_init_script(
        """window.sent = []; const real = window.fetch; window.fetch = (url, options) => {
        window.sent.push([...options.body].map(([name, value]) => [name, value instanceof Blob ? "file" : value.length]));
        return real(url, options); }"""
    )
    return lambda: browser_page.evaluate("window.sent")


def files_in(requests: list) -> list[int]:
    return [sum(size == "file" for _, size in fields) for fields in requests]


def upload(page, *files: tuple[str, bytes]) -> None:
    payloads = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.set_input_files("#clip-files", payloads)


def has(page, text: str) -> None:
    """Wait until the result has a text."""
    page.locator("#clip-result", has_text=text).wait_for()


def shown(page) -> list[tuple[str, str, str]]:
    return rows_of(page.inner_html("#clip-result"))


def transfer(page, files: list[tuple[str, bytes]]):
    """A DataTransfer with these files, as a drop or a paste has it."""
    listed = [[name, base64.b64encode(content).decode()] for name, content in files]
    return page.evaluate_handle(
        """files => { const transfer = new DataTransfer();
        for (const [name, base64] of files) {
            const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
        }
        return transfer; }""",
        listed,
    )


@chromium
def test_a_chosen_image_is_answered_at_once_by_its_small_jpeg(browser_page, server, sent, demo_engine):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart", 3000, 2000)))
    has(browser_page, "The best 5 of")
    [jpeg] = jpeg_in(browser_page.inner_html("#clip-result"))
    assert shown(browser_page) == expected(demo_engine, demo_engine.label_set("emoji"), jpeg)
    assert Image.open(io.BytesIO(jpeg)).size == (224, 224) == (demo_engine.manifest.preprocess.crop,) * 2
    assert re.search(r"The server took [\d.]+ ms, there and back [\d.]+ ms", browser_page.inner_text("#clip-result"))
    assert browser_page.inner_text("#clip-status") == "Best: {}, {}".format(*shown(browser_page)[0])
    assert not browser_page.is_visible("progress")
    assert files_in(sent()) == [1]


@chromium
def test_the_browser_makes_of_a_photo_what_the_server_makes_of_it(browser_page, server, demo_engine, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    large = saved(photo(120, 80).resize((3000, 2000)), "JPEG", exif=exif.tobytes(), quality=95)
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("turned.jpg", large))
    has(browser_page, "The best 5 of")
    [jpeg] = jpeg_in(browser_page.inner_html("#clip-result"))
    cosine = vectors.cosine(demo_engine.embed_item(jpeg), demo_engine.embed_item(large, "exif"))
    assert cosine > 0.99  # a JPEG and another filter lie between them
    assert cosine > vectors.cosine(demo_engine.embed_item(jpeg), demo_engine.embed_item(large))


@chromium
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(way, browser_page, server, sent):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "heart.png, as CLIP looks at it")
    by_choosing = shown(browser_page)
    browser_page.reload()
    files = transfer(browser_page, [("other.png", drawn("heart"))])
    if way == "drop":
        browser_page.dispatch_event("h1", "drop", {"dataTransfer": files})
    else:
        browser_page.evaluate(
            'files => document.querySelector("#clip-own").dispatchEvent('
            'new ClipboardEvent("paste", {clipboardData: files, bubbles: true, cancelable: true}))',
            files,
        )
    has(browser_page, "other.png, as CLIP looks at it")
    has(browser_page, "The best 5 of")
    assert shown(browser_page) == by_choosing
    assert files_in(sent()) == [1]


@chromium
def test_own_labels_rank_at_once_by_the_vector_alone(browser_page, server, sent, demo_engine):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    [jpeg] = jpeg_in(browser_page.inner_html("#clip-result"))
    by_set = shown(browser_page)
    browser_page.locator("#clip-own").press_sequentially("\n".join(OWN))
    has(browser_page, "All 3 labels")
    assert shown(browser_page) == expected(demo_engine, demo_engine.classifier(OWN), jpeg)
    browser_page.fill("#clip-own", "a heart")
    browser_page.select_option("#clip-labels", "emoji")  # before what was typed is sent
    has(browser_page, "The best 5 of")
    assert shown(browser_page) == by_set
    browser_page.fill("#clip-k", "7")
    has(browser_page, "The best 7 of")
    assert browser_page.input_value("#clip-own") == "a heart"
    requests = sent()
    assert files_in(requests) == [1] + [0] * (len(requests) - 1)
    for fields in requests[1:]:
        assert dict(fields)["vector"] > 1000
        assert dict(fields)["img"] < 10  # and what comes back has the picture all the same:
    assert jpeg_in(browser_page.inner_html("#clip-result")) == [jpeg]
    assert browser_page.evaluate("document.querySelector('.clip-picture img').complete")


@chromium
@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_a_link_of_somebody_else_puts_nothing_but_text_into_the_page(path, browser_page, server, demo_engine):
    """As `img` goes what ends the attribute that it is in, and what `String.replaceAll` reads as a pattern."""
    vector = base64url(vectors.to_blob(demo_engine.embed_item("a red heart")))
    for img in ('"><img src=x onerror="document.title=`PWNED`">', "$`$'$&"):
        query = {"img": img, "vector": vector, "labels": '["~0~", "a heart"]', "texts": "~0~\na heart", "name": "~0~"}
        browser_page.goto(f"{server}{path}?{urlencode(query)}")
        before = browser_page.locator("#clip-result *").count()
        for _ in range(2):  # once with what the server has written, once with what the script has
            browser_page.locator("textarea").press_sequentially(" ")
            with browser_page.expect_response(server + path):
                pass
            browser_page.wait_for_selector("[aria-busy=false]")
        assert browser_page.title() != "PWNED"
        assert browser_page.locator("#clip-result *").count() == before
        assert browser_page.locator("#clip-result th", has_text="~0~").first.inner_text().splitlines()[0] == "~0~"
        assert kept_in(browser_page.inner_html("#clip-result"))["img"] == [""]


@chromium
def test_a_label_may_be_called_anything(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("~0~.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    picture = browser_page.get_attribute(".clip-picture img", "src")
    browser_page.fill("#clip-own", "~0~\n$&\nbase64,~0~")
    has(browser_page, "All 3 labels")
    assert {row[0] for row in shown(browser_page)} == {"~0~", "$&", "base64,~0~"}
    assert browser_page.get_attribute(".clip-picture img", "src") == picture


@chromium
def test_who_clears_the_labels_typed_is_back_at_the_set_chosen(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    by_set = shown(browser_page)
    browser_page.fill("#clip-own", "a heart")
    has(browser_page, "The one label")
    browser_page.fill("#clip-own", " ")
    has(browser_page, "The best 5 of")
    assert shown(browser_page) == by_set
    assert browser_page.input_value("#clip-labels") == "emoji"


@chromium
def test_a_link_opened_afresh_shows_the_same_picture_and_numbers(browser_page, chromium_process, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    browser_page.fill("#clip-own", "\n".join(OWN))
    has(browser_page, "All 3 labels")  # the link of an answer that the picture was not sent for
    link = browser_page.evaluate("document.querySelector('.clip-permalink').href")
    with new_context(chromium_process) as another:
        page = another.new_page()
        page.goto(link)
        assert shown(page) == shown(browser_page)
        assert page.input_value("#clip-own") == "\n".join(OWN)
        pictures = [p.get_attribute(".clip-picture img", "src") for p in (page, browser_page)]
        assert pictures[0] == pictures[1]
        assert page.evaluate("document.querySelector('.clip-picture img').naturalWidth") == 224


@chromium
def test_no_link_becomes_too_long_by_the_picture_that_the_script_puts_back(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    noise = np.random.default_rng(0).integers(0, 2, (224, 224, 3), dtype=np.uint8) * 255
    upload(browser_page, ("noise.png", saved(Image.fromarray(noise), "PNG")))
    has(browser_page, "Link to this picture and its answer")
    browser_page.fill("#clip-own", LONG)
    has(browser_page, "The best 5 of 250 labels")
    assert browser_page.is_visible(f"text={TOO_LONG}")
    assert not browser_page.locator("#clip-result a:visible").count()
    browser_page.fill("#clip-own", "a heart")
    has(browser_page, "The one label")
    assert not browser_page.is_visible(f"text={TOO_LONG}")
    assert httpx.get(browser_page.evaluate("document.querySelector('.clip-permalink').href")).status_code == 200


@chromium
def test_the_link_can_be_copied(chromium_process, server):
    with new_context(chromium_process, permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(server + CLASSIFY)
        upload(page, ("heart.png", drawn("heart")))
        page.click("text=Copy the link")
        page.wait_for_selector("text=Copied")
        link = page.evaluate("document.querySelector('.clip-permalink').href")
        assert page.evaluate("navigator.clipboard.readText()") == link
        assert link.startswith(server)


@chromium
def test_where_no_script_may_copy_no_button_offers_it(browser_page, server):
    """Over plain HTTP from another machine a browser has no clipboard for scripts."""
    browser_page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    assert browser_page.is_visible(".clip-permalink")
    assert not browser_page.is_visible("text=Copy the link")
    assert browser_page.is_visible("text=or paste an image")


def test_the_curl_of_the_page_gives_the_same_answer(server, tmp_path):
    own = 'it\'s a heart\na "face"\n@file;type=x'
    response = httpx.post(server + CLASSIFY, files={"image": ("heart.png", drawn("heart"))}, data={"own": own})
    [(tmp_path / "photo.jpg").write_bytes(jpeg) for jpeg in jpeg_in(response.text)]
    command = html.unescape(re.search(r"<h3>curl</h3>\n<pre[^>]*>(.*?)</pre>", response.text, re.DOTALL)[1])
    done = subprocess.run([*shlex.split(command), "-s"], cwd=tmp_path, capture_output=True, text=True, check=True)
    [result] = json.loads(done.stdout)["results"]
    found = [(match["label"], f"{match['cosine']:.3f}") for match in result["matches"]]
    assert found == [(row[0], row[2]) for row in rows_of(response.text)]
    assert len(found) == 3
    assert "differ a little from those above, which are of the small JPEG" in " ".join(response.text.split())


@chromium
def test_what_is_refused_is_said_on_the_page_and_nothing_typed_is_lost(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    browser_page.fill("#clip-own", "a heart")
    browser_page.click("input[type=submit]")
    has(browser_page, "there is no picture yet; choose, drop or paste one")
    upload(browser_page, ("notes.txt", b"abc"))
    has(browser_page, "notes.txt: 3-byte blob is not an image")
    upload(browser_page, ("large.heic", bytes(300_000)))
    has(browser_page, f"at most {BODY_BYTES} are accepted (plugins.datasette-guard.limits.body_bytes)")
    assert browser_page.input_value("#clip-own") == "a heart"
    assert browser_page.locator("[role=alert]").count() == 1
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The one label")
    assert browser_page.locator("[role=alert]").count() == 0


@chromium
def test_of_two_pictures_the_last_chosen_is_answered_though_it_be_read_first(browser_page, server):
    """The first is read as late as a photograph of 25 megapixels would be."""
    browser_page.add_init_script(
        """const real = createImageBitmap; window.createImageBitmap = async blob => {
        if (blob.name === "large.png") await new Promise(done => window.readIt = done);
        return real(blob); }"""
    )
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("large.png", drawn("face")))
    upload(browser_page, ("small.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    browser_page.evaluate("readIt()")
    browser_page.wait_for_timeout(500)
    has(browser_page, "small.png, as CLIP looks at it")


@chromium
def test_files_that_are_too_large_are_not_sent_again_with_the_next(browser_page, server):
    browser_page.goto(server + COMPARE)
    upload(browser_page, FILES[0], ("large.heic", bytes(300_000)))
    has(browser_page, "plugins.datasette-guard.limits.body_bytes")
    upload(browser_page, FILES[1])
    has(browser_page, "Now type texts, one a line.")
    assert kept_in(browser_page.inner_html("#clip-result"))["name"] == [FILES[1][0]]


@chromium
@pytest.mark.parametrize(
    ("path", "names", "answer"),
    [(CLASSIFY, ["heart.png"], "The best 5 of"), (COMPARE, ["heart.png", "face.png"], "Now type texts, one a line.")],
)
def test_who_comes_back_finds_the_pictures_chosen_and_their_answer(path, names, answer, browser_page, server, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(drawn(name.removesuffix(".png")))
    browser_page.goto(server + path)
    browser_page.set_input_files("#clip-files", [tmp_path / name for name in names])
    has(browser_page, answer)
    browser_page.goto(server + "/-/clip")
    browser_page.go_back()
    has(browser_page, answer)
    assert kept_in(browser_page.inner_html("#clip-result"))["name"] == names
    browser_page.locator("textarea").fill("a red heart")
    has(browser_page, "Cosines of unit" if path == COMPARE else "The one label")


@chromium
@pytest.mark.parametrize("bad", [b"abc", bytes(300_000)])
def test_a_bad_file_takes_neither_the_picture_nor_its_answer_away(bad, browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The best 5 of")
    by_the_good = shown(browser_page)
    picture = browser_page.get_attribute(".clip-picture img", "src")
    browser_page.set_input_files("#clip-files", {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": bad})
    browser_page.wait_for_selector("[role=alert]")
    browser_page.wait_for_selector("[aria-busy=false]")
    assert shown(browser_page) == by_the_good
    assert browser_page.get_attribute(".clip-picture img", "src") == picture
    browser_page.fill("#clip-own", "a heart")
    has(browser_page, "The one label")
    assert browser_page.locator("[role=alert]").count() == 0


@chromium
def test_a_server_that_is_away_loses_nothing(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    browser_page.context.set_offline(True)
    upload(browser_page, ("heart.png", drawn("heart")))
    has(browser_page, "The server cannot be reached")
    browser_page.context.set_offline(False)
    browser_page.click("input[type=submit]")
    has(browser_page, "The best 5 of")


@chromium
def test_the_keyboard_alone_is_enough_and_its_focus_is_seen(browser_page, server, tmp_path):
    (tmp_path / "heart.png").write_bytes(drawn("heart"))
    browser_page.on("filechooser", lambda chooser: chooser.set_files(tmp_path / "heart.png"))
    browser_page.goto(server + CLASSIFY)
    browser_page.evaluate("document.querySelector('h1').tabIndex = -1; document.querySelector('h1').focus()")
    order = []
    while "submit" not in order:
        browser_page.keyboard.press("Tab")
        focused = browser_page.evaluate(
            "({id: document.activeElement.id || document.activeElement.type || 'link',"
            "outline: getComputedStyle(document.activeElement).outlineStyle})"
        )
        assert focused["outline"] not in ("none", "")
        order.append(focused["id"])
        if focused["id"] == "clip-files":
            browser_page.keyboard.press("Enter")
            has(browser_page, "The best 5 of")
        elif focused["id"] == "clip-own":
            browser_page.keyboard.type("a heart")
            has(browser_page, "The one label")
    assert order == ["link", "link", "clip-files", "clip-labels", "clip-own", "clip-k", "submit"]
    browser_page.keyboard.press("Enter")
    has(browser_page, "The one label")


@chromium
def test_without_a_script_the_forms_do_the_same(chromium_process, server, demo_engine):
    with new_context(chromium_process, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(server + CLASSIFY)
        upload(page, ("heart.png", drawn("heart")))
        page.click("input[type=submit]")
        [jpeg] = jpeg_in(page.content())
        assert rows_of(page.content()) == expected(demo_engine, demo_engine.label_set("emoji"), jpeg)
        assert page.locator(".clip-picture img").bounding_box()["width"] > 200
        page.fill("#clip-own", "\n".join(OWN))
        page.click("input[type=submit]")
        assert rows_of(page.content()) == expected(demo_engine, demo_engine.classifier(OWN), jpeg)
        page.select_option("#clip-labels", "emoji")
        page.click("input[type=submit]")
        assert rows_of(page.content()) == expected(demo_engine, demo_engine.label_set("emoji"), jpeg)
        assert page.locator("[data-script]:visible").count() == 0
        page.goto(server + COMPARE)
        upload(page, *FILES)
        page.fill("#clip-texts", "\n".join(OWN))
        page.click("input[type=submit]")
        np.testing.assert_allclose(
            cells_of(page.content()), cosines(demo_engine, jpeg_in(page.content()), OWN), atol=0.00051
        )
        page.click("text=Remove >> nth=1")
        assert kept_in(page.content())["name"] == ["face.png", "circle.png"]


@chromium
def test_three_texts_and_three_images_are_compared_at_once(browser_page, server, sent, demo_engine):
    browser_page.goto(server + COMPARE)
    upload(browser_page, *FILES)
    has(browser_page, "Now type texts, one a line.")
    browser_page.fill("#clip-texts", "\n".join(OWN))
    browser_page.wait_for_selector(".clip-heat td")
    page = browser_page.inner_html("#clip-result")
    assert len(set(jpeg_in(page))) == 3
    wanted = cosines(demo_engine, jpeg_in(page), OWN)
    assert wanted.shape == (3, 3)
    np.testing.assert_allclose(cells_of(page), wanted, atol=0.00051)  # three digits are shown
    assert files_in(sent()) == [3, 0]
    browser_page.click("text=Remove >> nth=0")
    has(browser_page, "heart")
    browser_page.wait_for_function("document.querySelectorAll('.clip-heat tbody tr').length === 2")
    page = browser_page.inner_html("#clip-result")
    np.testing.assert_allclose(cells_of(page), wanted[1:], atol=0.00051)
    np.testing.assert_allclose(cosines(demo_engine, jpeg_in(page), OWN), wanted[1:])
    assert files_in(sent()) == [3, 0, 0]


@chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_pages_fit_their_window_and_ask_nobody_else(width, browser_page, server):
    asked: list[str] = []
    browser_page.on("request", lambda request: asked.append(request.url))
    browser_page.set_viewport_size({"width": width, "height": 800})
    long = "unpronounceable" * 9

    def fits() -> bool:
        return browser_page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    browser_page.goto(server + CLASSIFY)
    assert fits()
    upload(browser_page, (f"{long}.png", drawn("heart")))
    browser_page.fill("#clip-own", f"{long}\n" + "a heart " * 30)
    has(browser_page, "All 2 labels")
    assert fits()
    browser_page.fill("#clip-own", "a" * 300)
    has(browser_page, "The one label")
    assert fits()
    browser_page.goto(server + COMPARE)
    upload(browser_page, *FILES, (f"{long}.png", drawn("heart")))
    browser_page.fill("#clip-texts", "\n".join([long, "a heart " * 30, *(f"text number {n}" for n in range(12))]))
    browser_page.wait_for_selector(".clip-heat td")
    assert fits()
    assert len(asked) > 6
    assert all(url.startswith((server, "data:", "blob:")) for url in asked)


@chromium
def test_a_telephone_is_offered_its_camera(chromium_process, browser_page, server):
    browser_page.goto(server + CLASSIFY)
    assert not browser_page.is_visible("text=Take a photograph")
    with new_context(
        chromium_process, has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800}
    ) as context:
        page = context.new_page()
        page.goto(server + CLASSIFY)
        assert page.is_visible("text=Take a photograph")
        page.set_input_files("#clip-camera", {"name": "photo.png", "mimeType": "image/png", "buffer": drawn("heart")})
        has(page, "The best 5 of")
        assert page.evaluate("document.querySelector('#clip-result').getBoundingClientRect().top < innerHeight")
