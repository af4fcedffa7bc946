"""Filters by metadata and dates, their counts on the search page, and how far a collection is that is being filled."""

from __future__ import annotations

import html
import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from datasette.app import Datasette

from browser import chromium
from changed_model import with_preprocess
from clip_collections.collection import open_collection
from datasette_clip import counts as counting
from datasette_clip.api import search as search_api
from page_forms import errors_in, get
from serving import environment, serving
from stored import llms_database, random_vectors

PAGE, JSON = "/-/clip/search/photos/album", "/-/clip/search/photos/album.json"
CAMERAS = ("Canon EOS 5D", "Pixel 7", 'it\'s "x" & <b>')
NASTY_KEYS = ("$.camera", "a.b", '"', "camera') or 1=1 --", "", " ", "$", "ca[0]", "x" * 90)


def facts(number: int) -> dict:
    """The metadata of a photo, one a month from January 2018 on."""
    year, month = 2018 + number // 12, number % 12 + 1
    return {
        "taken": f"{year}-{month:02d}-15T23:59:59",
        "camera": CAMERAS[number % 3],
        "width": 4000,
        "height": 3000 + number % 2,
        "bytes": 1000 + number,
        "folder": f"{year}/holidays",
        "stars": number % 2,
        "label": f"photo {number}",
        "shown": number % 4 == 0,
    }


@pytest.fixture
def file(tmp_path) -> Path:
    """30 photos with metadata, one whose metadata are no JSON, one with a list, one with none."""
    vectors = random_vectors(33, 512)
    stored = {f"p{number:02d}": vector for number, vector in enumerate(vectors)}
    with closing(llms_database(str(tmp_path / "photos.db"), album=stored, words={"a": vectors[0]})) as conn, conn:
        texts = [json.dumps(facts(number)) for number in range(30)] + ["no JSON", "[1, 2]", None]
        ids = [f"p{number:02d}" for number in range(33)]
        conn.executemany("update embeddings set metadata = ? where id = ?", list(zip(texts, ids)))
    return tmp_path / "photos.db"


@pytest.fixture
def datasette(file, demo_dir, monkeypatch) -> Datasette:
    """A Datasette in which nobody may run SQL."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette([str(file)], metadata={"allow_sql": False})


def url(path: str, fields) -> str:
    return f"{path}?{urlencode(fields, doseq=True)}"


def ids(datasette, fields: dict) -> list[str]:
    """The ids that the JSON endpoint answers, sorted."""
    response = get(datasette, url(JSON, {**fields, "k": 100}))
    assert response.status_code == 200, response.text
    return sorted(row["id"] for row in response.json()["results"])


def numbers(condition) -> list[str]:
    return [f"p{number:02d}" for number in range(30) if condition(facts(number))]


CASES = [
    ({"meta.camera": "Canon EOS 5D"}, lambda fact: fact["camera"] == "Canon EOS 5D"),
    ({"meta.camera": CAMERAS[2]}, lambda fact: fact["camera"] == CAMERAS[2]),
    ({"meta.camera": list(CAMERAS[:2])}, lambda fact: fact["camera"] in CAMERAS[:2]),
    ({"meta.stars": "1"}, lambda fact: fact["stars"] == 1),
    ({"meta.shown": "1"}, lambda fact: fact["shown"]),
    ({"meta.stars": "1", "meta.camera": "Pixel 7"}, lambda fact: fact["stars"] == 1 and fact["camera"] == "Pixel 7"),
    ({"from": "2018-03-15"}, lambda fact: fact["taken"] >= "2018-03-15"),
    ({"to": "2018-03-15"}, lambda fact: fact["taken"] < "2018-03-16"),
    ({"to": "9999-12-31"}, lambda fact: True),
    (
        {"from": "2019-01-01", "to": "2019-12-31", "meta.stars": "0"},
        lambda fact: fact["taken"][:4] == "2019" and not fact["stars"],
    ),
    ({"meta.nothing": "x"}, lambda fact: False),
    ({"meta.camera": "x' or 1=1 --"}, lambda fact: False),
]


@pytest.mark.parametrize(("fields", "condition"), CASES)
def test_filters_leave_the_rows_that_fit_without_the_permission_to_run_sql(fields, condition, datasette):
    assert ids(datasette, fields) == numbers(condition)
    assert ids(datasette, {"q": "id:p00", **fields}) == numbers(condition)
    page = get(datasette, url(PAGE, {"q": "id:p00", **fields}))
    assert page.status_code == 200
    shown = {html.unescape(id) for id in re.findall(r'class="clip-marks" data-id="(.*?)"', page.text)}
    assert shown <= set(numbers(condition))


def test_filters_and_a_condition_in_sql_both_hold(file, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette([str(file)])
    fields = {"meta.stars": "1", "where": "id < 'p10' or id = 'p11'"}
    assert ids(datasette, fields) == ["p01", "p03", "p05", "p07", "p09", "p11"]
    for where in ("id = ?", "id = :clip_0", "1) or (1", "id in (select :x)"):
        response = get(datasette, url(JSON, {**fields, "where": where}))
        assert response.status_code == 400 or response.json()["results"] == []


@pytest.mark.parametrize("key", NASTY_KEYS)
def test_a_key_that_is_no_name_is_refused(key, datasette):
    response = get(datasette, url(JSON, {f"meta.{key}": "x"}))
    assert response.status_code == 400
    assert "names no key of metadata; expected meta. and a name" in response.json()["error"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"from": "July"}, "from is 'July'; expected a date such as 2019-07-14"),
        ({"to": "2019-02-30"}, "to is '2019-02-30'; expected a date such as 2019-07-14"),
        (
            {"meta.camera": [str(number) for number in range(60)]},
            "there are 60 values of metadata; at most 50 are read",
        ),
    ],
)
def test_a_filter_that_cannot_be_read_is_a_sentence(fields, sentence, datasette):
    assert get(datasette, url(JSON, fields)).json()["error"] == sentence
    assert errors_in(get(datasette, url(PAGE, fields)).text) == [html.escape(sentence, quote=False)]


def test_a_collection_without_metadata_says_so(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    with closing(llms_database(str(tmp_path / "photos.db"))) as conn, conn:
        conn.execute("create table t (id text primary key, v blob)")
        conn.execute("insert into t values ('a', ?)", [random_vectors(1, 512)[0].tobytes()])
    clip = {"collections": {"photos": {"album": {"table": "t", "vector": "v"}}}}
    datasette = Datasette([str(tmp_path / "photos.db")], metadata={"plugins": {"datasette-clip": clip}})
    response = get(datasette, url(JSON, {"meta.camera": "x"}))
    assert response.json()["error"] == "collection 'album' has no metadata; expected no from, to, meta.KEY"
    assert "clip-facet" not in get(datasette, PAGE).text


def test_further_rows_keep_the_filters(datasette):
    content = get(datasette, url(JSON, {"meta.stars": "1", "from": "2018-02-01", "k": 5})).json()
    found = [row["id"] for row in content["results"]]
    while content["next_url"]:
        path = urlsplit(content["next_url"])
        content = get(datasette, f"{path.path}?{path.query}").json()
        found += [row["id"] for row in content["results"]]
    assert found == numbers(lambda fact: fact["stars"] == 1)


ODD = [
    *({"taken": 20180315}, {"taken": "2018-03-31"}, {"taken": "2018-03-32"}, {"taken": "2018-04"}, {"taken": None}),
    *(
        {"camera": True},
        {"camera": 1.5},
        {"camera": "1.5"},
        {"camera": ["a"]},
        {"camera": "x" * 100},
        {"camera": "x" * 81},
    ),
]
NOT_COUNTED = [
    *({"meta.camera": "x" * 81}, {"meta.camera": "x" * 100}, {"meta.taken": "2018-03-31"}, {"meta.nothing": "x"}),
    *({"meta.taken": "2018-03-15T23:59:59"}, {"meta.stars": "1", "meta.taken": "2018-03-31"}),
]


@pytest.mark.parametrize(
    "fields",
    [case[0] for case in CASES]
    + [{"to": "2018-03-31"}, {"from": "2018-03-31"}, {"to": "2018-02-28"}, {"from": "2018-03-31", "to": "2018-03-31"}]
    + [{"meta.camera": value} for value in ("1", "1.5", '["a"]')]
    + [{"meta.camera": "x" * 80}, *NOT_COUNTED],
)
def test_what_is_counted_finds_the_rows_that_sql_finds(fields, file, datasette, monkeypatch):
    monkeypatch.setattr(counting, "SETTLED_NS", -1)  # no write of this test is close to a count
    with closing(sqlite3.connect(file)) as conn, conn:
        conn.executemany(
            "insert into embeddings (collection_id, id, embedding, metadata) select 1, ?, embedding, ? from embeddings"
            " where id = 'p07'",
            [(f"odd{number}", json.dumps(odd)) for number, odd in enumerate(ODD)],
        )
    asked = [{**fields, **more} for more in ({}, {"q": "id:p03"}, {"q": "id:p03", "offset": 2}, {"offset": 1})]
    by_sql = [get(datasette, url(JSON, more)).json()["results"] for more in asked]
    known = []
    count = counting.counted_rowids
    monkeypatch.setattr(search_api, "counted_rowids", lambda *about: known.append(count(*about)) or known[-1])
    assert get(datasette, url(PAGE, fields)).status_code == 200
    by_count = [get(datasette, url(JSON, more)).json()["results"] for more in asked]
    assert by_count == by_sql
    assert [rowids is None for rowids in known] == [fields in NOT_COUNTED] * 5


def test_a_change_is_found_though_the_values_were_counted(file, datasette, monkeypatch):
    monkeypatch.setattr(counting, "SETTLED_NS", -1)
    assert get(datasette, PAGE).status_code == 200
    assert "p00" in ids(datasette, {"meta.stars": "0"})
    with closing(sqlite3.connect(file)) as conn, conn:
        conn.execute("update embeddings set metadata = '{\"stars\": 1}' where id = 'p00'")
    assert "p00" not in ids(datasette, {"meta.stars": "0"})
    assert "p00" in ids(datasette, {"meta.stars": "1"})


# On the page


def chips(page: str) -> dict[str, dict[str, tuple[int, str, bool]]]:
    """The values of each facet: count, address, and whether it is chosen."""
    facets = {}
    for name, body in re.findall(
        r'<div class="clip-facet" role="group" aria-label="(.*?)">(.*?)</div>', page, re.DOTALL
    ):
        found = re.findall(
            r'<a class="clip-chip" href="(.*?)" data-go( aria-current="true")?>(.*?) <span>(.*?)</span>', body
        )
        facets[html.unescape(name)] = {
            html.unescape(text): (int(count.replace(",", "")), html.unescape(href), bool(chosen))
            for href, chosen, text, count in found
        }
    return facets


def counts(page: str) -> dict[str, dict[str, int]]:
    return {name: {text: chip[0] for text, chip in values.items()} for name, values in chips(page).items()}


def test_the_page_counts_what_has_few_values_and_nothing_else(datasette):
    assert counts(get(datasette, PAGE).text) == {
        "taken": {"2020": 6, "2019": 12, "2018": 12},
        "camera": dict.fromkeys(sorted(CAMERAS), 10),
        "folder": {"2018/holidays": 12, "2019/holidays": 12, "2020/holidays": 6},
        "stars": {"0": 15, "1": 15},
        "shown": {"0": 22, "1": 8},
    }


def test_each_chip_leads_to_as_many_rows_as_it_says_and_back(datasette):
    for name, values in chips(get(datasette, url(PAGE, {"q": "id:p00"})).text).items():
        for text, (count, href, chosen) in values.items():
            query = urlsplit(href).query
            assert not chosen
            assert len(get(datasette, f"{JSON}?{query}&k=100").json()["results"]) == count
            page = get(datasette, href).text
            assert parse_qs(query)["q"] == ["id:p00"]
            again = chips(page)[name][text]
            assert (again[0], again[2]) == (count, True)
            assert again[1] == url(PAGE, {"q": "id:p00"})
            assert f'href="{PAGE}?q=id%3Ap00" data-go>All rows again' in page


def test_counts_are_of_the_rows_that_other_filters_leave(datasette):
    page = get(datasette, url(PAGE, {"meta.stars": "1", "from": "2018-01-01", "to": "2018-12-31"})).text
    found = counts(page)
    assert found["taken"] == {"2020": 3, "2019": 6, "2018": 6}
    assert found["stars"] == {"1": 6, "0": 6}
    assert sum(found["camera"].values()) == 6
    assert re.search(r'id="clip-from" name="from" value="2018-01-01"', page)
    assert '<input type="hidden" name="meta.stars" value="1">' in page
    assert 'type="hidden" name="from"' not in page


@pytest.mark.parametrize(
    "wrong", [{"q": "red heart -blue"}, {"from": "hello"}, {"q": "id:nobody"}, {"where": "what is"}]
)
def test_an_error_keeps_chips_dates_and_what_is_chosen(wrong, file, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    fields = {"meta.stars": "1", "to": "2019-12-31"}
    datasette = Datasette([str(file)])
    good, bad = (get(datasette, url(PAGE, fields | more)) for more in ({}, wrong))
    assert bad.status_code in (400, 404)
    assert len(errors_in(bad.text)) == 1
    assert counts(bad.text) == counts(good.text)
    assert '<input type="hidden" name="meta.stars" value="1">' in bad.text
    assert re.search(r'id="clip-to" name="to" value="2019-12-31"', bad.text)
    assert 'id="clip-from"' in bad.text
    query = parse_qs(urlsplit(chips(bad.text)["camera"]["Pixel 7"][1]).query)
    kept = {name: [value] for name, value in (fields | wrong).items() if name != "from"}
    assert query == kept | {"meta.camera": ["Pixel 7"]}


def test_the_condition_of_a_client_that_may_not_run_sql_is_not_run_for_the_chips(datasette):
    page = get(datasette, url(PAGE, {"where": "id = 'p00'"}))
    assert page.status_code == 403
    assert counts(page.text) == counts(get(datasette, PAGE).text)


def set_taken(file: Path, number: int, taken: str) -> None:
    """Give photos from a number on another time."""
    with closing(sqlite3.connect(file)) as conn, conn:
        sql = "update embeddings set metadata = json_set(metadata, '$.taken', ?) where json_valid(metadata) and id >= ?"
        conn.execute(sql, [taken, f"p{number:02d}"])


def test_dates_are_offered_if_there_is_more_than_one_day_though_there_is_one_year(datasette, file):
    for fields in ({"meta.folder": "2019/holidays"}, {"meta.label": "photo 3"}, {"meta.camera": "none"}):
        page = get(datasette, url(PAGE, fields)).text
        assert 'id="clip-from"' in page, fields
        assert 'id="clip-to"' in page
        assert 'type="hidden" name="from"' not in page
    set_taken(file, 0, "2019-05-04T10:00:00")
    set_taken(file, 20, "2019-05-03T10:00:00")
    page = get(Datasette([str(file)]), PAGE).text
    assert 'id="clip-from"' in page
    assert counts(page)["taken"] == {}
    set_taken(file, 0, "2019-05-04T10:00:00")
    assert "clip-from" not in get(Datasette([str(file)]), PAGE).text


def test_a_new_row_is_counted_at_once(datasette, file):
    assert counts(get(datasette, PAGE).text)["stars"] == {"0": 15, "1": 15}
    with closing(sqlite3.connect(file)) as conn, conn:
        conn.execute(
            "insert into embeddings (collection_id, id, embedding, metadata) select 1, 'new', embedding, metadata"
            " from embeddings where id = 'p00'"
        )
    assert counts(get(datasette, PAGE).text)["stars"] == {"0": 16, "1": 15}


def test_rows_are_not_counted_again_while_nobody_writes(datasette, file, monkeypatch):
    monkeypatch.setattr(counting, "FRESH_S", -1.0)
    monkeypatch.setattr(counting, "SETTLED_NS", -1)  # no write of this test is close to a count
    counted = []
    count = counting.count_together
    monkeypatch.setattr(counting, "count_together", lambda *given: counted.append(1) or count(*given))
    for q in ("red", "blue", "green"):
        assert counts(get(datasette, url(PAGE, {"q": q})).text)["stars"] == {"0": 15, "1": 15}
    assert len(counted) == 1
    with closing(sqlite3.connect(file)) as conn, conn:
        conn.execute("update embeddings set metadata = '{\"stars\": 1}' where id = 'p00'")
    assert counts(get(datasette, PAGE).text)["stars"] == {"0": 14, "1": 16}


def test_keys_are_sampled_without_reading_all_rows():
    vectors = dict.fromkeys((f"p{number:05}" for number in range(9000)), np.ones(8, "f4"))
    with closing(llms_database(others=vectors, album=vectors)) as conn:
        conn.execute("update embeddings set metadata = json_object('n', collection_id) where rowid > 4500")
        steps = []
        conn.set_progress_handler(lambda: steps.append(1), 100)
        assert counting.sample(conn, open_collection(conn, "album")) == {"n": [2] * 600}
        one_pass = len(steps)
        assert counting.sample(conn, open_collection(conn, "others")) == {"n": [1] * 600}
    assert one_pass < 1500  # 98,000 steps; 220,000 if all rows are sorted


def test_values_that_are_markup_are_text(datasette):
    page = get(datasette, PAGE).text
    assert CAMERAS[2] not in page
    assert html.escape(CAMERAS[2], quote=False) in page or "it&#39;s &#34;x&#34; &amp; &lt;b&gt;" in page


# While it is filled


@pytest.fixture
def filling(file):
    """Writes the row of clip_filling as `llm clip serve` does: done, and how many seconds ago."""

    def write(done: int | None, ago_s: float = 0) -> None:
        with closing(sqlite3.connect(file)) as conn, conn:
            conn.execute(
                "create table if not exists clip_filling (collection text primary key, done integer, total integer,"
                " bad integer, started_s real, updated_s real)"
            )
            conn.execute("delete from clip_filling")
            if done is not None:
                conn.execute("insert into clip_filling values ('album', ?, 5000, 2, 0, ?)", [done, time.time() - ago_s])

    return write


def test_json_and_page_say_how_far_a_collection_is_while_it_is_filled(datasette, filling):
    assert "filling" not in get(datasette, JSON).json()
    filling(1204)
    assert get(datasette, JSON).json()["filling"] == {"done": 1204, "total": 5000, "bad": 2, "searchable": 33}
    page = get(datasette, PAGE).text
    assert "1,204 of 5,000 pictures are read. 33 can be searched already." in page
    assert "filling" not in get(datasette, "/-/clip/search/photos/words.json").json()
    filling(None)
    assert "filling" not in get(datasette, JSON).json()
    assert "clip-filling" not in get(datasette, PAGE).text


def test_no_more_can_be_searched_than_is_read(datasette, filling):
    filling(12)
    assert get(datasette, JSON).json()["filling"] == {"done": 33, "total": 5000, "bad": 2, "searchable": 33}
    assert "33 of 5,000 pictures are read. 33 can be searched already." in get(datasette, PAGE).text


def test_a_process_that_died_fills_nothing(datasette, filling):
    filling(1204, ago_s=1000)
    assert "filling" not in get(datasette, JSON).json()


# Hints


@pytest.mark.parametrize(
    ("q", "meant"),
    [
        ("red heart -blue", "red heart - blue"),
        ("red heart- blue", "red heart - blue"),
        ("red +blue -green", "red + blue - green"),
        ("-blue", "- blue"),
        ("red - blue", None),
        ("a t-shirt", None),
        ("minus -5 degrees", None),
        ('red "heart -blue"', None),
        ("C++ code", None),
        ("rock--n--roll", None),
        ("2018-07-14", None),
    ],
)
def test_a_sign_without_its_space_gets_a_hint(q, meant, datasette):
    page = get(datasette, url(PAGE, {"q": q, "meta.stars": "1"})).text
    found = re.search(r'Did you mean <a href="(.*?)" data-q="(.*?)">(.*?)</a>', page)
    assert (html.unescape(found[2]) if found else None) == meant
    if found:
        assert parse_qs(urlsplit(html.unescape(found[1])).query) == {"q": [meant], "meta.stars": ["1"]}


def test_the_page_says_that_the_model_reads_english(datasette):
    assert "This model reads English." in get(datasette, PAGE).text


def test_the_page_says_by_what_the_model_shrinks_a_picture(datasette, demo_dir, monkeypatch, tmp_path):
    assert 'data-side="224" data-resize="shortest"' in get(datasette, PAGE).text
    model = with_preprocess(demo_dir, tmp_path / "model", resize="squash", crop=256)
    monkeypatch.setenv("CLIP_MODEL_DIR", str(model))
    assert 'data-side="256" data-resize="squash"' in get(datasette, PAGE).text


@chromium
def test_the_page_follows_how_far_it_is_until_it_is_full(browser_page, filling, file, demo_dir, tmp_path):
    filling(1204, ago_s=-3600)  # stays fresh
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), env=env, log=tmp_path / "log") as address:
        browser_page.goto(address + url(PAGE, {"q": "id:p00"}))
        assert "1,204 of 5,000" in browser_page.inner_text("#clip-filling")
        filling(2408, ago_s=-3600)
        browser_page.locator("#clip-filling", has_text="2,408 of 5,000").wait_for()
        filling(None)
        browser_page.locator(".clip-filling", has_text="All pictures are read.").wait_for()


@chromium
def test_on_a_phone_the_first_picture_is_high_up_and_the_filters_open_and_wrap(browser_page, file, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), env=env, log=tmp_path / "log") as address:
        browser_page.set_viewport_size({"width": 390, "height": 844})
        browser_page.goto(address + url(PAGE, {"q": "red"}))
        assert browser_page.locator(".clip-tile").first.bounding_box()["y"] <= 420
        assert not browser_page.locator(".clip-facet a").first.is_visible()
        browser_page.click("summary:text('Filters')")
        assert browser_page.locator(".clip-facet a").first.is_visible()
        rights = browser_page.locator(".clip-facet a, .clip-facet input").evaluate_all(
            "all => all.map(one => one.getBoundingClientRect().right)"
        )
        assert len(rights) > 10
        assert max(rights) <= 390
        browser_page.set_viewport_size({"width": 1280, "height": 800})
        browser_page.reload()
        assert browser_page.locator(".clip-facet a").first.is_visible()
        assert not browser_page.locator("summary:text('Filters')").is_visible()


@chromium
def test_a_refused_sign_has_a_link_to_what_was_meant(browser_page, file, demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving(str(file), env=env, log=tmp_path / "log") as address:
        browser_page.goto(address + url(PAGE, {"q": "red"}))
        browser_page.fill("#clip-q", "red -blue")
        browser_page.click(".clip-spaced a")
        browser_page.wait_for_url(address + url(PAGE, {"q": "red - blue"}))
        browser_page.locator("[role=alert]").wait_for(state="detached")
        assert browser_page.input_value("#clip-q") == "red - blue"
        assert browser_page.locator(".clip-spaced").count() == 0
