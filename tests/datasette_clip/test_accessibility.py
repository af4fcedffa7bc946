"""Axe finds no violation on our pages, light and dark, wide and narrow; nothing overflows, and no policy is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe

from browser import chromium, new_context, upload
from datasette_clip.paths import ABOUT, CLASSIFY, COMPARE, SEARCH, VIEWER
from datasette_guard import SIGN_OUT
from drawings import FILES, drawing
from pictured import make_photos
from serving import environment, serving

WIDTHS = (1280, 390)
TOKEN = "a-secret"
PHOTOS = f"{SEARCH}/photos/photos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("accessibility")


@pytest.fixture(scope="module")
def server(demo_dir, demo_engine, folder):
    """A server with a model, two collections and a database without any."""
    file = make_photos(folder / "photos.db", demo_engine.embed_item)
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), "--memory", env=env, log=folder / "log") as url:
        yield url


@pytest.fixture(scope="module")
def empty_server(folder):
    """A server with neither model nor collection."""
    env = environment(folder / "llm-empty", CLIP_MODEL_DIR=str(folder / "none"))
    with serving("--memory", env=env, log=folder / "log-empty") as url:
        yield url


@pytest.fixture(scope="module")
def private_server(folder):
    """A private server."""
    env = environment(folder / "llm-private", CLIP_MODEL_DIR=str(folder / "none"), CLIP_TOKEN=TOKEN)
    with serving("--memory", env=env, log=folder / "log-private") as url:
        yield url


@pytest.fixture(params=[(scheme, width) for scheme in ("light", "dark") for width in WIDTHS], ids=str)
def visitor(request, chromium_process):
    """A page of a browser with this scheme and width, that collects what the console says in `said`."""
    scheme, width = request.param
    viewport = {"width": width, "height": 800}
    with new_context(chromium_process, color_scheme=scheme, viewport=viewport, has_touch=width < 600) as context:
        page = context.new_page()
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        yield page


def open_menu(page) -> None:
    page.click(".nav-menu summary")


def classify(page) -> None:
    upload(page, ("heart.png", drawing("heart")))
    page.locator(".clip-bars").wait_for()


def find_none_of_these(page) -> None:
    page.fill("#clip-own", "a laughing yellow face with tears of joy")
    upload(page, ("blue.png", drawing("circle")))
    page.locator("#clip-none").wait_for()


def send_no_picture(page) -> None:
    page.click("input[type=submit]")
    page.locator("[role=alert]").wait_for()


def compare(page) -> None:
    upload(page, *FILES)
    page.fill("#clip-texts", "a red heart\na smiling face\n" + "a very long text without an end " * 5)
    page.locator(".clip-heat td").first.wait_for()


def open_folds(page) -> None:
    for summary in page.locator(".clip-folds summary").all():
        if summary.is_visible():
            summary.click()


def open_picture(page) -> None:
    page.click("[data-view]")
    page.locator("dialog #clip-view").wait_for()


STATES = {
    "home": ("/", None),
    "home with its menu open": ("/", open_menu),
    "the model": (ABOUT, None),
    "classify": (CLASSIFY, None),
    "classify, answered": (CLASSIFY, classify),
    "classify, none of these": (CLASSIFY, find_none_of_these),
    "classify, refused": (CLASSIFY, send_no_picture),
    "compare": (COMPARE, None),
    "compare, answered": (COMPARE, compare),
    "compare, refused": (COMPARE, send_no_picture),
    "the collections": (SEARCH, None),
    "search": (PHOTOS, None),
    "search, answered": (f"{PHOTOS}?q=a+red+heart", None),
    "search, its lines opened": (f"{PHOTOS}?q=a+red+heart", open_folds),
    "the picture over its search": (f"{PHOTOS}?q=a+red+heart", open_picture),
    "the picture": (f"{VIEWER}/photos/photos?id=id+1&q=a+red+heart&at=1", None),
    "a text in place of the picture": (f"{VIEWER}/photos/words?id=one", None),
    "no picture": (f"{VIEWER}/photos/photos?at=x", None),
    "search, nothing": (f"{PHOTOS}?where=0", None),
    "search, refused": (f"{PHOTOS}?q=id:nothing", None),
}


def violations(page) -> list[str]:
    """What axe finds on a page, a line each: rule, element, reason."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"{rule['id']}: {node['html'][:200]} {node['failureSummary']}" for rule in found for node in rule["nodes"]]


def check(page) -> None:
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert [text for text in page.said if "Failed to load resource" not in text] == []


@chromium
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_nothing(state, visitor, server):
    path, act = STATES[state]
    visitor.goto(server + path)
    if act:
        act(visitor)
    check(visitor)


@chromium
@pytest.mark.parametrize("path", ["/", ABOUT, CLASSIFY, COMPARE, SEARCH])
def test_axe_finds_nothing_where_there_is_neither_model_nor_collection(path, visitor, empty_server):
    visitor.goto(empty_server + path)
    check(visitor)


@chromium
def test_axe_finds_nothing_where_one_signs_in_and_out(visitor, private_server):
    visitor.goto(private_server)
    check(visitor)
    for token in ("another", TOKEN):
        visitor.fill("#token", token)
        visitor.click("button")
        visitor.wait_for_load_state()
        check(visitor)
    assert visitor.url == f"{private_server}/"
    open_menu(visitor)
    check(visitor)
    visitor.goto(private_server + SIGN_OUT)
    check(visitor)


@chromium
@pytest.mark.parametrize("width", [320, 2560])
@pytest.mark.parametrize("state", ["home", "the model", "classify, answered", "compare, answered", "search, answered"])
def test_nothing_overflows_the_narrowest_and_the_widest_window(state, width, chromium_process, server):
    path, act = STATES[state]
    with new_context(chromium_process, viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        page.goto(server + path)
        if act:
            act(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@chromium
def test_the_first_tab_skips_to_the_content(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert browser_page.locator(".clip-skip").bounding_box()["y"] >= 0
    browser_page.keyboard.press("Enter")
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.closest('main') !== null")


@chromium
def test_the_menu_closes_at_escape_and_at_a_click_elsewhere(browser_page, server):
    browser_page.goto(server + CLASSIFY)
    menu = browser_page.locator(".nav-menu-inner")
    for close in (lambda: browser_page.keyboard.press("Escape"), lambda: browser_page.click("h1")):
        browser_page.click(".nav-menu summary")
        assert menu.is_visible()
        browser_page.keyboard.press("ArrowDown")
        close()
        assert not menu.is_visible()


@chromium
def test_an_inline_script_without_the_nonce_does_not_run(browser_page, server):
    """The policy holds in the browser: without it the style and the script of this page would work."""
    browser_page.goto(server + CLASSIFY)
    browser_page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.ran = true";
        document.body.append(script); document.body.setAttribute("style", "display: none"); }"""
    )
    assert browser_page.evaluate("window.ran === undefined")
    assert browser_page.is_visible("h1")


@chromium
def test_headings_stay_in_sight_with_30_rows_on_a_telephone(chromium_process, server):
    with new_context(chromium_process, viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.goto(server + COMPARE)
        upload(page, *FILES * 10)
        page.fill("#clip-texts", "\n".join(f"a text of some words, number {n}" for n in range(12)))
        page.locator(".clip-heat td").first.wait_for()
        scroll = page.locator(".clip-scroll")
        scroll.scroll_into_view_if_needed()
        scroll.evaluate("region => region.scrollTo(region.scrollWidth, region.scrollHeight)")
        region, last = scroll.bounding_box(), page.locator(".clip-heat tbody tr:last-child")
        heading = page.locator(".clip-heat thead th:last-child").bounding_box()
        picture = last.locator("th").bounding_box()
        assert region["y"] - 1 <= heading["y"] <= region["y"] + 5
        assert heading["width"] >= 60
        assert region["x"] - 1 <= picture["x"] <= region["x"] + 5
        assert last.locator("td").last.bounding_box()["x"] >= picture["x"] + picture["width"] - 1
