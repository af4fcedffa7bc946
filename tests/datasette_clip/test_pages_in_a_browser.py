"""/-/clip/classify and /-/clip/compare in a real browser, with a script and without, and their curl command."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import subprocess
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from PIL import Image

from browser import chromium, new_context, transfer, upload
from datasette_clip.items import base64url
from datasette_clip.paths import CLASSIFY, COMPARE
from drawings import FILES, OWN, drawn
from llm_clip_onnx import vectors
from nasty import photo, saved
from page_forms import LONG, TOO_LONG, cells_of, cosines, expected, jpeg_in, kept_in, rows_of
from serving import environment, serving

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


def has(page, text: str) -> None:
    """Wait until the result has a text."""
    page.locator("#clip-result", has_text=text).wait_for()


def shown(page) -> list[tuple[str, str, str]]:
    return rows_of(page.inner_html("#clip-result"))


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
