"""/-/clip/view shows a row large, and /-/clip/original answers with its picture: of its folder, or of the database."""

from __future__ import annotations

import html
import io
import json
import os
import re
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, quote, urlencode, urlsplit

import httpx
import pytest
from datasette.app import Datasette
from PIL import Image

from browser import chromium, new_context
from clip_collections import query
from clip_collections.query import Term
from datasette_clip.api import original
from datasette_guard import ConfigError
from nasty import photo, saved
from page_forms import call, errors_in, get
from serving import environment, serving
from stored import llms_database, random_vectors

VIEW, ORIGINAL, SEARCH, THUMBNAIL = (
    f"/-/clip/{name}/photos/album" for name in ("view", "original", "search", "thumbnail")
)
JPEG, PNG, SECRET = (
    saved(photo(*size), kind) for size, kind in (((90, 60), "JPEG"), ((30, 40), "PNG"), ((8, 8), "PNG"))
)
TIFF = saved(photo(2400, 300), "TIFF")
WEBP = saved(photo(20, 20), "WEBP")
FACTS = {"taken": "2019-07-14T10:30:00", "camera": "Canon EOS 5D", "width": 4032, "height": 3024, "bytes": 3_200_000}
NAMES = ("a.jpg", "2019/b c&d.png", "ä.tiff", "stored", "words", "gone.jpg", "small")

# Ids that must not lead to a file, each of a row that the collection has.
TRICKS = {
    "parent": "../secret.png",
    "parent within": "2019/../../secret.png",
    "parent that stays": "2019/../a.jpg",
    "absolute": "/secret.png",
    "absolute path of the secret": "{outside}/secret.png",
    "encoded slashes": "..%2fsecret.png",
    "encoded twice": "%2e%2e%2fsecret.png",
    "backslashes": "..\\secret.png",
    "link to a file": "link.png",
    "link to a folder": "linked/secret.png",
    "link in a circle": "circle.png",
    "nul": "a.jpg\0.png",
    "pipe": "pipe.png",
    "folder": "2019",
    "the folder itself": ".",
    "nothing": "",
    "text file": "notes.png",
    "page": "page.jpg",
    "home": "~/secret.png",
    "too long": "a" * 5000,
    "url": "file:///etc/passwd",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of photos, beside a secret picture, with links out of it and things that are no pictures."""
    (tmp_path / "secret.png").write_bytes(SECRET)
    folder = tmp_path / "album"
    (folder / "2019").mkdir(parents=True)
    for name, content in {"a.jpg": JPEG, "2019/b c&d.png": PNG, "ä.tiff": TIFF, "unknown.png": PNG}.items():
        (folder / name).write_bytes(content)
    (folder / "notes.png").write_text("a text")
    (folder / "page.jpg").write_text("<html><script>alert(1)</script>")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    return folder


@pytest.fixture
def database(tmp_path) -> Path:
    """The collection `album` of the folder's photos and of rows for each trick, and the collection `other`."""
    tricks = [name.format(outside=tmp_path) for name in TRICKS.values()]
    vectors = random_vectors(len(NAMES) + len(tricks), 512)
    stored = dict(zip([*NAMES, *tricks], vectors))
    file = tmp_path / "photos.db"
    with closing(llms_database(str(file), album=stored, other={"a.jpg": vectors[0]})) as conn, conn:
        conn.execute("update embeddings set metadata = ? where id = 'a.jpg'", [json.dumps(FACTS)])
        conn.execute("update embeddings set content_blob = ? where id = 'stored'", [WEBP])
        conn.execute("update embeddings set content = 'Some words.\nMore.' where id = 'words'")
        conn.execute("create table clip_thumbnails (collection text, id, image blob, row integer)")
        conn.execute(
            "insert into clip_thumbnails select 'album', id, ?, rowid from embeddings where id = 'small'", [JPEG]
        )
    return file


@pytest.fixture
def datasette(folder, database, demo_dir, monkeypatch) -> Datasette:
    """A Datasette that knows the folder of `album`."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setenv("CLIP_ORIGINALS", json.dumps({"photos": {"album": str(folder)}}))
    return Datasette([str(database)])


def url(path: str, **fields) -> str:
    return f"{path}?{urlencode(fields)}"


def links(page: str, pattern: str) -> list[str]:
    """The addresses of the links whose tags match."""
    tags = [tag for tag in re.findall(r"<a [^>]*>", page) if re.search(pattern, tag)]
    return [html.unescape(re.search(r'href="([^"]*)"', tag)[1]) for tag in tags]


def picture(page: str) -> str | None:
    """The address of the large picture."""
    found = re.search(r'<div class="clip-stage">\s*<img src="([^"]*)"', page)
    return html.unescape(found[1]) if found else None


# The picture itself


@pytest.mark.parametrize(
    ("id", "content", "kind"), [("a.jpg", JPEG, "jpeg"), ("2019/b c&d.png", PNG, "png"), ("stored", WEBP, "webp")]
)
def test_the_original_is_the_file_of_the_folder_or_what_the_database_holds(id, content, kind, datasette):
    response = get(datasette, url(ORIGINAL, id=id))
    assert (response.status_code, response.headers["content-type"]) == (200, f"image/{kind}")
    assert response.content == content
    assert response.headers["x-content-type-options"] == "nosniff"
    again = get(datasette, url(ORIGINAL, id=id), headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_what_browsers_do_not_show_is_a_jpeg_of_at_most_2000_pixels_and_is_downloaded_as_it_is(datasette):
    shown = get(datasette, url(ORIGINAL, id="ä.tiff"))
    image = Image.open(io.BytesIO(shown.content))
    assert (shown.headers["content-type"], image.format, image.size) == ("image/jpeg", "JPEG", (2000, 250))
    download = get(datasette, url(ORIGINAL, id="ä.tiff", download=1))
    assert (download.headers["content-type"], download.content) == ("image/tiff", TIFF)
    assert download.headers["content-disposition"] == f"attachment; filename*=UTF-8''{quote('ä.tiff')}"
    stored = get(datasette, url(ORIGINAL, id="stored", download=1))
    assert stored.headers["content-disposition"] == "attachment; filename*=UTF-8''stored.webp"


def test_a_picture_that_cannot_be_converted_is_the_small_one(datasette, folder):
    (folder / "small").write_bytes(TIFF[:2000])
    response = get(datasette, url(ORIGINAL, id="small"))
    assert (response.status_code, response.headers["location"]) == (302, url(THUMBNAIL, id="small"))


@pytest.mark.parametrize("trick", TRICKS)
def test_no_id_leads_out_of_the_folder_or_to_what_is_no_picture(trick, datasette, tmp_path):
    id = TRICKS[trick].format(outside=tmp_path)
    for fields in ({}, {"download": 1}):
        response = get(datasette, url(ORIGINAL, id=id, **fields))
        assert response.status_code == 404
        assert SECRET not in response.content
        assert b"\x89PNG" not in response.content
    in_path = get(datasette, f"{ORIGINAL}/{quote(id, safe='')}", follow_redirects=True)  # % becomes ~ in Datasette
    assert (in_path.status_code, SECRET in in_path.content) == (404, False)
    if id:
        page = get(datasette, url(VIEW, id=id))
        assert (page.status_code, picture(page.text)) == (200, None)


@pytest.mark.parametrize("path", ["..", "2019/..", "%2e%2e%2fsecret.png", "a.jpg/", "./a.jpg", "2019//b c&d.png"])
def test_only_rows_have_pictures_though_the_folder_has_the_file(path, datasette):
    for id in ("unknown.png", path):
        assert get(datasette, url(ORIGINAL, id=id)).status_code == 404


@pytest.mark.parametrize(
    "path", ["/-/clip/original/photos/other", "/-/clip/original/_memory/album", "/-/clip/original/photos/..~2Falbum"]
)
def test_the_folder_is_of_one_collection_of_one_database(path, datasette):
    assert get(datasette, url(path, id="a.jpg")).status_code == 404


def test_without_the_variable_no_file_is_read(database, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.delenv("CLIP_ORIGINALS", raising=False)
    datasette = Datasette([str(database)])
    assert get(datasette, url(ORIGINAL, id="a.jpg")).status_code == 404
    assert get(datasette, url(ORIGINAL, id="stored")).content == WEBP
    assert picture(get(datasette, url(VIEW, id="a.jpg")).text) is None


@pytest.mark.parametrize("metadata", [{"databases": {"photos": {"allow": False}}}, {"allow": False}])
def test_what_is_private_is_not_shown(metadata, folder, database, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    monkeypatch.setenv("CLIP_ORIGINALS", json.dumps({"photos": {"album": str(folder)}}))
    datasette = Datasette([str(database)], metadata=metadata)
    for path in (VIEW, ORIGINAL, THUMBNAIL):
        for id in ("a.jpg", "stored", "nobody"):
            response = get(datasette, url(path, id=id))
            assert (response.status_code, JPEG in response.content) == (403, False)


@pytest.mark.parametrize(
    "value", ["photos", "[]", "3", '{"photos": "album"}', '{"photos": {"album": 3}}', '{"photos": {"album": "album"}}']
)
def test_a_variable_that_names_no_folders_stops_the_start(value, monkeypatch):
    monkeypatch.setenv("CLIP_ORIGINALS", value)
    with pytest.raises(ConfigError, match="CLIP_ORIGINALS is"):
        original.folders_of(Datasette())


def test_a_folder_that_is_gone_takes_nothing_with_it(datasette, folder):
    folder.rename(folder.with_name("moved"))
    assert get(datasette, url(ORIGINAL, id="a.jpg")).status_code == 404
    assert get(datasette, url(VIEW, id="a.jpg")).status_code == 200


# The page


def test_the_page_has_the_picture_its_facts_and_links(datasette):
    response = get(datasette, url(VIEW, id="a.jpg"))
    assert response.status_code == 200
    page = response.text
    assert picture(page) == url(ORIGINAL, id="a.jpg")
    facts = dict(re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', page))
    assert facts == {
        "taken": "14 July 2019, 10:30",
        "camera": "Canon EOS 5D",
        "size": "4,032 × 3,024 pixels, 3.2 MB",
    }
    assert "<h1>a.jpg</h1>" in page
    assert links(page, "download>") == [url(ORIGINAL, id="a.jpg", download=1)]
    assert get(datasette, links(page, "/photos/embeddings/")[0]).status_code == 200
    assert parse_qs(urlsplit(links(page, "data-go")[0]).query)["q"] == ['id:"a.jpg"']
    assert links(page, "data-back") == [SEARCH]
    assert [urlsplit(link).query for link in links(page, "data-share")] == ["id=a.jpg"]
    assert "<title>a.jpg: album</title>" in page
    assert links(page, "data-step") == []
    assert get(datasette, urlsplit(links(page, "data-share")[0])._replace(scheme="", netloc="").geturl()).text


def test_a_place_that_the_stored_rows_do_not_have_is_no_place(datasette):
    page = get(datasette, url(VIEW, id="a.jpg", at=99999)).text
    assert "Back to the results" not in page
    assert links(page, "data-back") == [SEARCH]
    assert [urlsplit(link).query for link in links(page, "data-share")] == ["id=a.jpg"]
    assert links(page, "data-step") == []


def test_a_picture_is_the_stored_one_else_the_small_one_else_the_text(datasette):
    found = {id: get(datasette, url(VIEW, id=id)).text for id in ("stored", "small", "words", "gone.jpg")}
    assert {id: picture(page) for id, page in found.items()} == {
        "stored": url(ORIGINAL, id="stored"),
        "small": url(THUMBNAIL, id="small"),
        "words": None,
        "gone.jpg": None,
    }
    assert "<p>Some words.\nMore.</p>" in found["words"]
    assert links(found["small"], "download>") == []


def test_next_and_previous_follow_the_results_of_a_search(datasette):
    q = 'id:"a.jpg"'
    results = get(datasette, url(f"{SEARCH}.json", q=q, k=1000)).json()["results"]
    assert len(results) == len(NAMES) + len(set(TRICKS.values()))
    link, shown = links(get(datasette, url(SEARCH, q=q)).text, "data-view")[0], []
    while link:
        page = get(datasette, link).text
        shown.append(parse_qs(urlsplit(link).query, keep_blank_values=True)["id"][0])
        at = len(shown)
        if at > 1:
            assert links(page, 'rel="prev"')[0].endswith(f"at={at - 1}")
        assert f"{results[at - 1]['score']:.3f}, number {at} of the results" in page
        link = (links(page, 'rel="next"') or [None])[0]
    assert shown == [row["id"] for row in results]
    assert links(page, "data-back") == [url(SEARCH, q=q, k=48) + f"#row-{len(shown)}"]
    assert f'<li id="row-{len(shown)}">' in get(datasette, url(SEARCH, q=q, k=48)).text
    less = links(page, "data-go")[1]
    assert parse_qs(urlsplit(less).query)["q"][0].startswith(f"{q} - id:")


def test_a_link_shows_its_row_though_the_results_have_changed(datasette):
    q = 'id:"a.jpg"'
    page = get(datasette, url(VIEW, id="words", q=q, at=1)).text
    results = get(datasette, url(f"{SEARCH}.json", q=q, k=1000)).json()["results"]
    [score] = [row["score"] for row in results if row["id"] == "words"]
    assert "<h1>Some words. More.</h1>" in page
    assert f"<td>{score:.3f}<" in page
    assert links(page, "data-step") == links(get(datasette, url(VIEW, id="a.jpg", q=q, at=1)).text, "data-step")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"id": "nobody"}, 404),
        ({}, 404),
        ({"q": 'id:"a.jpg"', "at": 1000}, 404),
        ({"id": "a.jpg", "at": "many"}, 400),
        ({"id": "a.jpg", "at": "0"}, 400),
        ({"id": "a.jpg", "colour": "red"}, 400),
        ({"id": "a.jpg", "q": "id:nobody", "at": 1}, 400),
        ({"id": "a.jpg", "where": "what is", "at": 1}, 400),
    ],
)
def test_what_cannot_be_shown_is_a_sentence(fields, status, datasette):
    response = get(datasette, url(VIEW, **fields))
    assert response.status_code == status
    assert status == 404 or len(errors_in(response.text)) == 1


def test_the_page_takes_no_post(datasette):
    assert call(datasette, "POST", url(VIEW, id="a.jpg")).status_code == 405


def test_sql_needs_the_permission_to_run_it(folder, database, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette([str(database)], metadata={"allow_sql": False})
    assert get(datasette, url(VIEW, id="a.jpg", where="1", at=1)).status_code == 403


def test_the_image_url_of_a_table_is_shown(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with closing(llms_database(str(tmp_path / "photos.db"))) as conn, conn:
        conn.execute("create table t (id integer primary key, name text, v blob)")
        conn.execute("insert into t values (7, 'brass', ?)", [random_vectors(1, 512)[0].tobytes()])
    settings = {"table": "t", "vector": "v", "image_url": "https://example.org/{name}.png", "content": "name"}
    metadata = {"plugins": {"datasette-clip": {"collections": {"photos": {"album": settings}}}}}
    page = get(Datasette([str(tmp_path / "photos.db")], metadata=metadata), url(VIEW, id=7)).text
    assert picture(page) == "https://example.org/brass.png"
    assert "<h1>brass</h1>" in page


def test_nothing_of_the_database_is_markup(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    nasty = "\"><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"
    with closing(llms_database(str(tmp_path / "photos.db"), album={nasty: random_vectors(1, 512)[0]})) as conn, conn:
        conn.execute(
            "update embeddings set content = ?, metadata = ?", [nasty, json.dumps({nasty: nasty, "taken": nasty})]
        )
    datasette = Datasette([str(tmp_path / "photos.db")])
    quoted = query.format_query([Term("text", nasty)])
    for q, status in ((quoted, 200), (nasty, 400), ("", 200)):
        page = get(datasette, url(VIEW, id=nasty, q=q, at=1))
        assert page.status_code == status
        assert "<script>window" not in page.text
        assert "<img src=x" not in page.text


# In a browser

ROWS = 60


@pytest.fixture(scope="module")
def server(demo_dir, tmp_path_factory):
    """The address of a server with ROWS photos of a folder."""
    folder = tmp_path_factory.mktemp("browser")
    names = [f"{number:02d}.png" for number in range(ROWS)]
    (folder / "album").mkdir()
    for number, name in enumerate(names):
        image = saved(photo(40 + number, 40), "PNG")
        (folder / "album" / name).write_bytes(image)
    vectors = random_vectors(ROWS, 512)
    with closing(llms_database(str(folder / "photos.db"), album=dict(zip(names, vectors)))) as conn, conn:
        conn.execute("create table clip_thumbnails (collection text, id, image blob, row integer)")
        conn.execute("insert into clip_thumbnails select 'album', id, ?, rowid from embeddings", [JPEG])
    originals = json.dumps({"photos": {"album": str(folder / "album")}})
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir), CLIP_ORIGINALS=originals)
    with serving(str(folder / "photos.db"), env=env, log=folder / "log") as address:
        yield address


Q = 'id:"00.png"'


def results_of(server: str) -> list[str]:
    answer = httpx.get(server + url(f"{SEARCH}.json", q=Q, k=ROWS)).json()
    return [row["id"] for row in answer["results"]]


def open_picture(page, server: str, at: int) -> list[str]:
    """Search, and open the picture at a place of the results, from 0. Returns the ids of all results."""
    ids = results_of(server)
    page.goto(server + url(SEARCH, q=Q))
    page.locator("[data-view]").nth(at).click()
    wait_for_picture(page, ids[at])
    return ids


def wait_for_picture(page, id: str) -> None:
    """Wait until the picture of a row is shown large, by its own number of pixels."""
    page.wait_for_function(
        "([src, width]) => { const image = document.querySelector('.clip-stage img');"
        " return image && image.getAttribute('src') === src && image.naturalWidth === width }",
        arg=[url(ORIGINAL, id=id), 40 + int(id[:2])],
    )


def loaded(page) -> int:
    return page.evaluate("document.querySelectorAll('#clip-grid > li').length")


@chromium
def test_a_click_shows_the_file_and_back_leads_to_the_same_place_with_all_rows(browser_page, server):
    ids = results_of(server)
    browser_page.set_viewport_size({"width": 800, "height": 500})
    browser_page.goto(server + url(SEARCH, q=Q))
    browser_page.evaluate("document.querySelector('#clip-more').scrollIntoView()")
    browser_page.wait_for_url(server + url(SEARCH, q=Q, k=48))
    tile = browser_page.locator("[data-view]").nth(30)
    tile.scroll_into_view_if_needed()
    before, rows = browser_page.evaluate("scrollY"), loaded(browser_page)
    assert (before > 0, rows >= 48) == (True, True)
    tile.click()
    wait_for_picture(browser_page, ids[30])
    assert browser_page.url == server + url(VIEW, id=ids[30], q=Q, at=31)
    assert browser_page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    for leave in (
        browser_page.go_back,
        lambda: browser_page.keyboard.press("Escape"),
        lambda: browser_page.click("text=Close"),
    ):
        if not browser_page.locator("dialog[open]").count():
            browser_page.go_forward()
            wait_for_picture(browser_page, ids[30])
        leave()
        browser_page.locator("dialog[open]").wait_for(state="detached")
        assert browser_page.url == server + url(SEARCH, q=Q, k=rows)
        assert (browser_page.evaluate("scrollY"), loaded(browser_page)) == (before, rows)
        assert browser_page.evaluate("document.activeElement.closest('li').id") == "row-31"


@chromium
def test_the_arrow_keys_go_through_the_results_beyond_the_loaded_rows(browser_page, server):
    ids = open_picture(browser_page, server, 22)
    for key, at in zip(["ArrowRight"] * 3 + ["ArrowLeft"] * 4, (23, 24, 25, 24, 23, 22, 21)):
        browser_page.keyboard.press(key)
        wait_for_picture(browser_page, ids[at])
    last = browser_page.locator("#clip-grid [data-view]").count() - 1
    for key, at in (("Home", 0), ("End", last), ("ArrowLeft", last - 1), ("ArrowRight", last), ("Home", 0)):
        browser_page.keyboard.press(key)
        wait_for_picture(browser_page, ids[at])
        assert browser_page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
    browser_page.go_back()  # all of them were one step
    browser_page.locator("dialog[open]").wait_for(state="detached")
    assert browser_page.url.startswith(server + url(SEARCH, q=Q))


@chromium
def test_more_and_less_like_this_take_the_place_of_the_picture(browser_page, server):
    ids = open_picture(browser_page, server, 5)
    browser_page.click("dialog >> text=More like this")
    browser_page.locator(f'#clip-grid > li:first-child [data-id="{ids[5]}"]').wait_for()
    assert browser_page.input_value("#clip-q") == f'id:"{ids[5]}"'
    assert browser_page.locator("dialog[open]").count() == 0
    browser_page.go_back()
    browser_page.locator(f'#clip-grid > li:first-child [data-id="{ids[0]}"]').wait_for()
    browser_page.locator("[data-view]").nth(5).click()
    wait_for_picture(browser_page, ids[5])
    browser_page.click("dialog >> text=Less like this")
    browser_page.wait_for_function("q => document.querySelector('#clip-q').value === q", arg=f'{Q} - id:"{ids[5]}"')


@chromium
def test_the_tab_names_the_picture_and_escape_leads_to_the_search(browser_page, server):
    browser_page.goto(server + url(SEARCH, q="cat"))
    searched = browser_page.title()
    browser_page.click("[data-view]")
    browser_page.wait_for_selector("#clip-dialog #clip-view")
    assert browser_page.title() == browser_page.get_attribute("#clip-view", "data-title")
    browser_page.keyboard.press("Escape")
    browser_page.wait_for_function("title => document.title === title", arg=searched)
    id = results_of(server)[0]
    browser_page.goto(server + url(VIEW, id=id))
    browser_page.keyboard.press("Escape")
    browser_page.wait_for_url(server + SEARCH)


@chromium
def test_reloaded_the_picture_is_a_page_of_its_own_and_back_leads_to_the_rows(browser_page, server):
    ids = open_picture(browser_page, server, 3)
    browser_page.reload()
    wait_for_picture(browser_page, ids[3])
    assert browser_page.locator("dialog").count() == 0
    browser_page.keyboard.press("ArrowRight")
    wait_for_picture(browser_page, ids[4])
    browser_page.go_back()
    browser_page.locator("#clip-grid").wait_for()
    assert loaded(browser_page) >= 24


@chromium
def test_without_a_script_links_lead_through_the_pictures_and_back(chromium_process, server):
    ids = results_of(server)
    with new_context(chromium_process, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(server + url(SEARCH, q=Q))
        for link, at in (("[data-view] >> nth=2", 2), ("text=Next", 3), ("text=Next", 4), ("text=Previous", 3)):
            with page.expect_navigation():
                page.click(link)
            assert page.get_attribute(".clip-stage img", "src") == url(ORIGINAL, id=ids[at])
        with page.expect_navigation():
            page.click("text=Back to the results")
        assert page.url == server + url(SEARCH, q=Q) + "#row-4"
        with page.expect_navigation():
            page.click("[data-view] >> nth=2")
        with page.expect_download() as download:
            page.click("text=Download")
        assert download.value.suggested_filename == ids[2]


@chromium
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_the_viewer_fits_its_window(width, browser_page, server):
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(server + url(SEARCH, q=Q))
    assert browser_page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    browser_page.locator("[data-view]").first.click()
    wait_for_picture(browser_page, "00.png")
    assert browser_page.evaluate("(dialog => dialog.scrollWidth <= innerWidth)(document.querySelector('dialog'))")
    browser_page.reload()
    wait_for_picture(browser_page, "00.png")
    assert browser_page.evaluate("document.documentElement.scrollWidth <= innerWidth")
