"""/-/clip/classify and /-/clip/compare in a real browser, with a script and without, and their curl command."""

from __future__ import annotations

import html
import io
import json
import re
import shlex
import shutil
import subprocess
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
from PIL import Image

from browser import chromium, drop_or_paste, new_context, upload, wait_until
from changed_model import with_preprocess
from datasette_clip.items import base64url
from datasette_clip.paths import CLASSIFY, COMPARE
from drawings import FILES, LABELS, drawing
from llm_clip_onnx import vectors
from llm_clip_onnx.images.preprocess import decode
from llm_clip_onnx.model_dir import read_manifest
from nasty import photo, saved
from page_forms import LONG, TOO_LONG, bars_in, cells_in, cosines, expected_bars, hidden_fields_in, jpegs_in
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
    """A function that returns, for each fetch of the page, its fields and their lengths; "file" for a file."""
    browser_page.add_init_script(
        """window.sent = []; const real = window.fetch; window.fetch = (url, options) => {
        window.sent.push([...options.body].map(([name, value]) => [name, value instanceof Blob ? "file" : value.length]));
        return real(url, options); }"""
    )
    return lambda: browser_page.evaluate("window.sent")


def files_in(requests: list) -> list[int]:
    """How many files each fetch sent."""
    return [sum(size == "file" for _, size in fields) for fields in requests]


def wait_for_text(page, text: str) -> None:
    """Wait until the result contains a text."""
    page.locator("#clip-result", has_text=text).wait_for()


def bars_shown_on(page) -> list[tuple[str, str, str]]:
    return bars_in(page.inner_html("#clip-result"))


@chromium
def test_a_chosen_image_is_answered_at_once_by_its_small_jpeg(browser_page, server, sent, demo_engine):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart", 3000, 2000)))
    wait_for_text(browser_page, "The best 5 of")
    [jpeg] = jpegs_in(browser_page.inner_html("#clip-result"))
    assert bars_shown_on(browser_page) == expected_bars(demo_engine, demo_engine.label_set("emoji"), jpeg)
    assert Image.open(io.BytesIO(jpeg)).size == (224, 224) == (demo_engine.manifest.preprocess.crop,) * 2
    assert re.search(r"The server took [\d.]+ ms, there and back [\d.]+ ms", browser_page.inner_text("#clip-result"))
    assert browser_page.inner_text("#clip-status") == "Best: {}, {}".format(*bars_shown_on(browser_page)[0])
    assert not browser_page.is_visible("progress")
    assert files_in(sent()) == [1]


@chromium
def test_the_browser_makes_of_a_photo_what_the_server_makes_of_it(browser_page, server, demo_engine, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    large = saved(photo(120, 80).resize((3000, 2000)), "JPEG", exif=exif.tobytes(), quality=95)
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("turned.jpg", large))
    wait_for_text(browser_page, "The best 5 of")
    [jpeg] = jpegs_in(browser_page.inner_html("#clip-result"))
    cosine = vectors.cosine(demo_engine.embed_item(jpeg), demo_engine.embed_item(large, "exif"))
    assert cosine > 0.99  # JPEG and another resampling filter differ a little
    assert cosine > vectors.cosine(demo_engine.embed_item(jpeg), demo_engine.embed_item(large))


@chromium
@pytest.mark.parametrize("resize", ["squash", "longest"])
def test_a_model_that_reads_the_whole_picture_is_sent_all_of_it(resize, browser_page, demo_dir, tmp_path):
    """Its central square is blue alone. One channel differs by at most 40 levels: JPEG, twice."""
    model = with_preprocess(demo_dir, tmp_path / "model", resize=resize)
    ends = Image.new("RGB", (1500, 500), "red")
    ends.paste("blue", (400, 0, 1100, 500))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(model))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        assert f'data-side="224" data-resize="{resize}"' in httpx.get(url + COMPARE).text
        browser_page.goto(url + CLASSIFY)
        upload(browser_page, ("ends.png", saved(ends, "PNG")))
        wait_for_text(browser_page, "The best 5 of")
        [jpeg] = jpegs_in(browser_page.inner_html("#clip-result"))
    seen, wanted = Image.open(io.BytesIO(jpeg)), decode(saved(ends, "PNG"), read_manifest(model).preprocess, None)
    points = [(5, 112), (30, 112), (112, 112), (218, 112), (112, 20)]
    assert [wanted.getpixel(point)[0] > 200 for point in points[:4]] == [True, True, False, True]
    for point in points:
        assert np.abs(np.subtract(seen.getpixel(point), wanted.getpixel(point))).max() < 40, point


@chromium
def test_the_label_sets_on_offer_are_the_chosen_models(browser_page, demo_dir, tmp_path):
    for name in ("clip", "other"):
        shutil.copytree(demo_dir, tmp_path / "models" / name)
    shutil.rmtree(tmp_path / "models" / "other" / "labels")
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(tmp_path / "models"))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        browser_page.goto(url + CLASSIFY)
        browser_page.fill("#clip-own", "a heart, a cat")
        upload(browser_page, ("heart.png", drawing("heart", 300, 200)))
        wait_for_text(browser_page, "All 2 labels")
        browser_page.select_option("#clip-labels", "emoji")
        wait_for_text(browser_page, "The best 5 of")
        browser_page.select_option("#clip-model", "other")
        wait_for_text(browser_page, "has no label set 'emoji' that can be used; these are your own labels")
        assert browser_page.eval_on_selector_all("#clip-labels option", "all => all.map(one => one.value)") == [""]
        browser_page.select_option("#clip-model", "clip")
        browser_page.locator('#clip-result [name=vectors_of][value="clip"]').wait_for(state="attached")
        values = browser_page.eval_on_selector_all("#clip-labels option", "all => all.map(one => one.value)")
        assert values == ["emoji", ""]


@chromium
def test_after_a_change_of_model_the_next_picture_is_shrunk_as_that_one_reads_it(browser_page, demo_dir, tmp_path):
    """The ends of the picture are red, which a central square has none of."""
    shutil.copytree(demo_dir, tmp_path / "models" / "clip")
    with_preprocess(demo_dir, tmp_path / "models" / "squashing", resize="squash")
    ends = Image.new("RGB", (1500, 500), "red")
    ends.paste("blue", (400, 0, 1100, 500))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(tmp_path / "models"))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        browser_page.goto(url + CLASSIFY)
        upload(browser_page, ("heart.png", drawing("heart", 300, 200)))
        wait_for_text(browser_page, "The best 5 of")
        browser_page.select_option("#clip-model", "squashing")
        browser_page.locator('#clip-result [name=vectors_of][value="squashing"]').wait_for(state="attached")
        upload(browser_page, ("ends.png", saved(ends, "PNG")))
        wait_for_text(browser_page, "ends.png, as CLIP looks at it")
        browser_page.locator(".clip-bars").wait_for()
        [jpeg] = jpegs_in(browser_page.inner_html("#clip-result"))
    red, _, blue = Image.open(io.BytesIO(jpeg)).convert("RGB").getpixel((5, 112))
    assert red > 200 > 60 > blue


@chromium
@pytest.mark.parametrize("way", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(way, browser_page, server, sent):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "heart.png, as CLIP looks at it")
    by_choosing = bars_shown_on(browser_page)
    browser_page.reload()
    drop_or_paste(browser_page, way, "#clip-own", [("other.png", drawing("heart"))])
    wait_for_text(browser_page, "other.png, as CLIP looks at it")
    wait_for_text(browser_page, "The best 5 of")
    assert bars_shown_on(browser_page) == by_choosing
    assert files_in(sent()) == [1]


@chromium
def test_own_labels_rank_at_once_by_the_vector_alone(browser_page, server, sent, demo_engine):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    [jpeg] = jpegs_in(browser_page.inner_html("#clip-result"))
    by_set = bars_shown_on(browser_page)
    browser_page.locator("#clip-own").press_sequentially("\n".join(LABELS))
    wait_for_text(browser_page, "All 3 labels")
    assert bars_shown_on(browser_page) == expected_bars(demo_engine, demo_engine.classifier(LABELS), jpeg)
    browser_page.fill("#clip-own", "a heart")
    browser_page.select_option("#clip-labels", "emoji")  # before the page sends the typed label
    wait_for_text(browser_page, "The best 5 of")
    assert bars_shown_on(browser_page) == by_set
    browser_page.fill("#clip-k", "7")
    wait_for_text(browser_page, "The best 7 of")
    assert browser_page.input_value("#clip-own") == "a heart"
    requests = sent()
    assert files_in(requests) == [1] + [0] * (len(requests) - 1)
    for fields in requests[1:]:
        assert dict(fields)["vector"] > 1000
        assert dict(fields)["img"] < 10  # the answer has the picture nevertheless:
    assert jpegs_in(browser_page.inner_html("#clip-result")) == [jpeg]
    assert browser_page.evaluate("document.querySelector('.clip-picture img').complete")


@chromium
@pytest.mark.parametrize("path", [CLASSIFY, COMPARE])
def test_a_forged_link_puts_only_text_into_the_page(path, browser_page, server, demo_engine):
    """`img` is once text that would end its HTML attribute, once a pattern of `String.replaceAll`."""
    vector = base64url(vectors.to_blob(demo_engine.embed_item("a red heart")))
    for img in ('"><img src=x onerror="document.title=`PWNED`">', "$`$'$&"):
        query = {"img": img, "vector": vector, "labels": '["~0~", "a heart"]', "texts": "~0~\na heart", "name": "~0~"}
        browser_page.goto(f"{server}{path}?{urlencode(query)}")
        before = browser_page.locator("#clip-result *").count()
        for _ in range(2):  # the first time in the server's HTML, the second time in the script's
            browser_page.locator("textarea").press_sequentially(" ")
            with browser_page.expect_response(server + path):
                pass
            browser_page.wait_for_selector("[aria-busy=false]")
        assert browser_page.title() != "PWNED"
        assert browser_page.locator("#clip-result *").count() == before
        assert browser_page.locator("#clip-result th", has_text="~0~").first.inner_text().splitlines()[0] == "~0~"
        assert hidden_fields_in(browser_page.inner_html("#clip-result"))["img"] == [""]


@chromium
def test_a_label_may_be_called_anything(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("~0~.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    picture = browser_page.get_attribute(".clip-picture img", "src")
    browser_page.fill("#clip-own", '~0~\n$&\n"base64,~0~"')
    wait_for_text(browser_page, "All 3 labels")
    assert {row[0] for row in bars_shown_on(browser_page)} == {"~0~", "$&", "base64,~0~"}
    assert browser_page.get_attribute(".clip-picture img", "src") == picture


@chromium
def test_deleting_the_typed_labels_returns_to_the_chosen_set(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    by_set = bars_shown_on(browser_page)
    browser_page.fill("#clip-own", "a heart")
    wait_for_text(browser_page, "The one label")
    browser_page.fill("#clip-own", " ")
    wait_for_text(browser_page, "The best 5 of")
    assert bars_shown_on(browser_page) == by_set
    assert browser_page.input_value("#clip-labels") == "emoji"


@chromium
def test_a_link_opened_afresh_shows_the_same_numbers(browser_page, chromium_process, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    browser_page.fill("#clip-own", "\n".join(LABELS))
    wait_for_text(browser_page, "All 3 labels")  # the link of an answer to a request without the picture
    link = browser_page.evaluate("document.querySelector('.clip-permalink').href")
    with new_context(chromium_process) as another:
        page = another.new_page()
        page.goto(link)
        assert bars_shown_on(page) == bars_shown_on(browser_page)
        assert page.input_value("#clip-own") == "\n".join(LABELS)
        assert page.is_visible("text=Of heart.png only the vector is here.")
        assert not page.is_visible(".clip-picture img")
        assert not page.is_visible(".clip-run")


@chromium
def test_a_reload_keeps_the_answer_and_the_pictures(browser_page, server):
    for path, act, waited in (
        (CLASSIFY, lambda: browser_page.fill("#clip-own", "a face, a heart"), "All 2 labels"),
        (COMPARE, lambda: browser_page.fill("#clip-texts", "a face\na heart"), "Cosines of unit"),
    ):
        browser_page.goto(server + path)
        upload(browser_page, ("heart.png", drawing("heart")))
        browser_page.locator("#clip-result img[src^=data]").wait_for()
        act()
        wait_for_text(browser_page, waited)
        before = jpegs_in(browser_page.inner_html("#clip-result"))
        assert len(browser_page.url) < 4000
        browser_page.reload()
        wait_for_text(browser_page, waited)
        assert jpegs_in(browser_page.inner_html("#clip-result")) == before != [b""]
        assert browser_page.evaluate("document.querySelector('#clip-result img').naturalWidth") == 224
        assert browser_page.locator("[data-without]").count() == 0


@chromium
def test_a_table_is_copied_as_csv(chromium_process, server):
    with new_context(chromium_process, permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(server + COMPARE)
        upload(page, *FILES)
        page.fill("#clip-texts", "a face")
        page.click("text=Copy as CSV")
        page.wait_for_selector("text=Copied")
        lines = page.evaluate("navigator.clipboard.readText()").splitlines()
        assert [line.split(",")[0] for line in lines] == ["image", *(name for name, _ in FILES)]


@chromium
def test_no_link_becomes_too_long_by_the_picture_that_the_script_puts_back(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    noise = np.random.default_rng(0).integers(0, 2, (224, 224, 3), dtype=np.uint8) * 255
    upload(browser_page, ("noise.png", saved(Image.fromarray(noise), "PNG")))
    wait_for_text(browser_page, "Link to this answer")
    browser_page.fill("#clip-own", LONG)
    wait_for_text(browser_page, "The best 5 of 250 labels")
    hint = browser_page.locator("p:visible", has_text=TOO_LONG)
    assert hint.count() == 1  # of the query with the picture; the link has only its vector
    assert browser_page.locator("#clip-result a:visible").count() == 1
    browser_page.fill("#clip-own", "a heart")
    wait_for_text(browser_page, "The one label")
    assert hint.count() == 0
    assert httpx.get(browser_page.evaluate("document.querySelector('.clip-permalink').href")).status_code == 200


@chromium
def test_the_link_can_be_copied(chromium_process, server):
    with new_context(chromium_process, permissions=["clipboard-read", "clipboard-write"]) as context:
        page = context.new_page()
        page.goto(server + CLASSIFY)
        upload(page, ("heart.png", drawing("heart")))
        page.click("text=Copy the link")
        page.wait_for_selector("text=Copied")
        link = page.evaluate("document.querySelector('.clip-permalink').href")
        assert page.evaluate("navigator.clipboard.readText()") == link
        assert link.startswith(server)


@chromium
def test_without_a_clipboard_there_is_no_copy_button(browser_page, server):
    """Browsers give scripts no clipboard over plain HTTP, except on localhost."""
    browser_page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    assert browser_page.is_visible(".clip-permalink")
    assert not browser_page.is_visible("text=Copy the link")
    assert browser_page.is_visible("text=or paste an image")


@pytest.mark.long
def test_the_curl_of_the_page_gives_the_same_answer(server, tmp_path):
    own = 'it\'s a heart\na "face"\n@file;type=x'
    response = httpx.post(server + CLASSIFY, files={"image": ("heart.png", drawing("heart"))}, data={"own": own})
    [(tmp_path / "photo.jpg").write_bytes(jpeg) for jpeg in jpegs_in(response.text)]
    command = html.unescape(re.search(r"<h3>curl</h3>\n<pre[^>]*>(.*?)</pre>", response.text, re.DOTALL)[1])
    done = subprocess.run([*shlex.split(command), "-s"], cwd=tmp_path, capture_output=True, text=True, check=True)
    [result] = json.loads(done.stdout)["results"]
    found = [(match["label"], f"{match['cosine']:.3f}") for match in result["matches"]]
    assert found == [(row[0], row[2]) for row in bars_in(response.text)]
    assert len(found) == 3
    assert "differ a little from those above, which are of the small JPEG" in " ".join(response.text.split())


@chromium
def test_errors_are_shown_on_the_page_and_nothing_typed_is_lost(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    browser_page.fill("#clip-own", "a heart")
    browser_page.click("input[type=submit]")
    wait_for_text(browser_page, "there is no picture yet; choose, drop or paste one")
    upload(browser_page, ("notes.txt", b"abc"))
    wait_for_text(browser_page, "notes.txt: not an image")
    upload(browser_page, ("large.heic", bytes(300_000)))
    wait_for_text(browser_page, f"at most {BODY_BYTES} are accepted (plugins.datasette-guard.limits.body_bytes)")
    assert browser_page.input_value("#clip-own") == "a heart"
    assert browser_page.locator("[role=alert]").count() == 1
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The one label")
    assert browser_page.locator("[role=alert]").count() == 0


@chromium
def test_the_last_of_two_chosen_pictures_is_answered_even_if_it_is_read_first(browser_page, server):
    """The first picture is read late, as a photograph of 25 megapixels would be."""
    browser_page.add_init_script(
        """const real = createImageBitmap; window.createImageBitmap = async blob => {
        if (blob.name === "large.png") await new Promise(done => window.readIt = done);
        return real(blob); }"""
    )
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("large.png", drawing("face")))
    upload(browser_page, ("small.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    browser_page.evaluate("readIt()")
    browser_page.wait_for_timeout(500)
    wait_for_text(browser_page, "small.png, as CLIP looks at it")


@chromium
def test_files_that_are_too_large_are_not_sent_again_with_the_next(browser_page, server):
    browser_page.goto(server + COMPARE)
    upload(browser_page, FILES[0], ("large.heic", bytes(300_000)))
    wait_for_text(browser_page, "plugins.datasette-guard.limits.body_bytes")
    upload(browser_page, FILES[1])
    wait_for_text(browser_page, "Now type texts, one a line.")
    assert hidden_fields_in(browser_page.inner_html("#clip-result"))["name"] == [FILES[1][0]]


@chromium
@pytest.mark.parametrize(
    ("path", "names", "answer"),
    [(CLASSIFY, ["heart.png"], "The best 5 of"), (COMPARE, ["heart.png", "face.png"], "Now type texts, one a line.")],
)
def test_going_back_shows_the_chosen_pictures_and_their_answer(path, names, answer, browser_page, server, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(drawing(name.removesuffix(".png")))
    browser_page.goto(server + path)
    browser_page.set_input_files("#clip-files", [tmp_path / name for name in names])
    wait_for_text(browser_page, answer)
    browser_page.goto(server + "/-/clip")
    browser_page.go_back()
    wait_for_text(browser_page, answer)
    assert hidden_fields_in(browser_page.inner_html("#clip-result"))["name"] == names
    browser_page.locator("textarea").fill("a red heart")
    wait_for_text(browser_page, "Cosines of unit" if path == COMPARE else "The one label")


@chromium
@pytest.mark.parametrize("bad", [b"abc", bytes(300_000)])
def test_a_bad_file_takes_neither_the_picture_nor_its_answer_away(bad, browser_page, server):
    browser_page.goto(server + CLASSIFY)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The best 5 of")
    answer = bars_shown_on(browser_page)
    picture = browser_page.get_attribute(".clip-picture img", "src")
    browser_page.set_input_files("#clip-files", {"name": "bad.jpg", "mimeType": "image/jpeg", "buffer": bad})
    browser_page.wait_for_selector("[role=alert]")
    browser_page.wait_for_selector("[aria-busy=false]")
    assert bars_shown_on(browser_page) == answer
    assert browser_page.get_attribute(".clip-picture img", "src") == picture
    browser_page.fill("#clip-own", "a heart")
    wait_for_text(browser_page, "The one label")
    assert browser_page.locator("[role=alert]").count() == 0


@chromium
def test_a_server_that_is_away_loses_nothing(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    browser_page.context.set_offline(True)
    upload(browser_page, ("heart.png", drawing("heart")))
    wait_for_text(browser_page, "The server cannot be reached")
    browser_page.context.set_offline(False)
    browser_page.click("input[type=submit]")
    wait_for_text(browser_page, "The best 5 of")


@chromium
def test_the_keyboard_alone_is_enough_and_its_focus_is_seen(browser_page, server, tmp_path):
    (tmp_path / "heart.png").write_bytes(drawing("heart"))
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
            wait_for_text(browser_page, "The best 5 of")
        elif focused["id"] == "clip-own":
            browser_page.keyboard.type("a heart")
            wait_for_text(browser_page, "The one label")
    assert order == ["link", "link", "clip-files", "clip-labels", "clip-own", "clip-k", "submit"]
    browser_page.keyboard.press("Enter")
    wait_for_text(browser_page, "The one label")


@chromium
def test_without_a_script_the_forms_do_the_same(chromium_process, server, demo_engine):
    with new_context(chromium_process, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(server + CLASSIFY)
        upload(page, ("heart.png", drawing("heart")))
        with page.expect_navigation():  # until all of the next page has come
            page.click("input[type=submit]")
        [jpeg] = jpegs_in(page.content())
        assert bars_in(page.content()) == expected_bars(demo_engine, demo_engine.label_set("emoji"), jpeg)
        assert page.locator(".clip-picture img").bounding_box()["width"] > 200
        page.fill("#clip-own", "\n".join(LABELS))
        with page.expect_navigation():
            page.click("input[type=submit]")
        assert bars_in(page.content()) == expected_bars(demo_engine, demo_engine.classifier(LABELS), jpeg)
        page.select_option("#clip-labels", "emoji")
        with page.expect_navigation():
            page.click("input[type=submit]")
        assert bars_in(page.content()) == expected_bars(demo_engine, demo_engine.label_set("emoji"), jpeg)
        assert page.locator("[data-script]:visible").count() == 0
        page.goto(server + COMPARE)
        upload(page, *FILES)
        page.fill("#clip-texts", "\n".join(LABELS))
        with page.expect_navigation():
            page.click("input[type=submit]")
        np.testing.assert_allclose(
            cells_in(page.content()), cosines(demo_engine, jpegs_in(page.content()), LABELS), atol=0.00051
        )
        with page.expect_navigation():
            page.click("text=Remove >> nth=1")
        assert hidden_fields_in(page.content())["name"] == ["face.png", "circle.png"]


@chromium
def test_three_texts_and_three_images_are_compared_at_once(browser_page, server, sent, demo_engine):
    browser_page.goto(server + COMPARE)
    upload(browser_page, *FILES)
    wait_for_text(browser_page, "Now type texts, one a line.")
    browser_page.fill("#clip-texts", "\n".join(LABELS))
    browser_page.wait_for_selector(".clip-heat td")
    page = browser_page.inner_html("#clip-result")
    assert len(set(jpegs_in(page))) == 3
    wanted = cosines(demo_engine, jpegs_in(page), LABELS)
    assert wanted.shape == (3, 3)
    np.testing.assert_allclose(cells_in(page), wanted, atol=0.00051)  # three digits are shown
    assert files_in(sent()) == [3, 0]
    browser_page.click("text=Remove >> nth=0")
    wait_for_text(browser_page, "heart")
    wait_until(browser_page, "document.querySelectorAll('.clip-heat tbody tr').length === 2")
    page = browser_page.inner_html("#clip-result")
    np.testing.assert_allclose(cells_in(page), wanted[1:], atol=0.00051)
    np.testing.assert_allclose(cosines(demo_engine, jpegs_in(page), LABELS), wanted[1:])
    assert files_in(sent()) == [3, 0, 0]


@chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_pages_fit_their_window_and_ask_no_other_host(width, browser_page, server):
    requested: list[str] = []
    browser_page.on("request", lambda request: requested.append(request.url))
    browser_page.set_viewport_size({"width": width, "height": 800})
    long = "unpronounceable" * 9

    def fits() -> bool:
        return browser_page.evaluate("document.documentElement.scrollWidth <= innerWidth")

    browser_page.goto(server + CLASSIFY)
    assert fits()
    upload(browser_page, (f"{long}.png", drawing("heart")))
    browser_page.fill("#clip-own", f"{long}\n" + "a heart " * 30)
    wait_for_text(browser_page, "All 2 labels")
    assert fits()
    browser_page.fill("#clip-own", "a" * 300)
    wait_for_text(browser_page, "The one label")
    assert fits()
    browser_page.goto(server + COMPARE)
    upload(browser_page, *FILES, (f"{long}.png", drawing("heart")))
    browser_page.fill("#clip-texts", "\n".join([long, "a heart " * 30, *(f"text number {n}" for n in range(12))]))
    browser_page.wait_for_selector(".clip-heat td")
    assert fits()
    assert len(requested) > 6
    assert all(url.startswith((server, "data:", "blob:")) for url in requested)


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
        page.set_input_files("#clip-camera", {"name": "photo.png", "mimeType": "image/png", "buffer": drawing("heart")})
        wait_for_text(page, "The best 5 of")
        assert page.evaluate("document.querySelector('#clip-result').getBoundingClientRect().top < innerHeight")
