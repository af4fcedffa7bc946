"""End to end: a real `datasette serve`, called like the recipes and from a page of another origin."""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from browser import chromium
from conftest import ROOT
from llm_clip_onnx.engine import Engine
from nasty import photo, saved
from patience import PATIENCE_S, until
from serving import DATASETTES_LIMIT, another_origin, environment, serving

EMBED = "select hex(llm_embed('clip', :q)) as x"


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "pictures.db"
    with sqlite3.connect(path) as connection:
        connection.execute("create table pictures (id integer primary key, image blob)")
        connection.execute("insert into pictures (image) values (?)", (saved(photo(), "JPEG"),))
    return path


@pytest.fixture(scope="module")
def server(demo_dir, database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = [str(database), "--memory", "--cors", "-m", str(ROOT / "metadata.json")]
    with serving(*arguments, env=env, log=folder / "log") as url:
        yield url


def test_the_recipes_curl(server, demo_dir):
    """The literal URL of the recipe."""
    response = httpx.get(
        f"{server}/_memory.json?sql=select+hex(llm_embed('clip',+:q))+as+x&q=purple+and+gold&_shape=array"
    )
    [row] = response.json()
    found = np.array(struct.unpack("<512f", bytes.fromhex(row["x"])), np.float32)
    np.testing.assert_array_equal(found, Engine(demo_dir).embed_item("purple and gold"))
    assert response.headers["access-control-allow-origin"] == "*"


def test_the_recipes_page(server, demo_dir):
    page = httpx.get(f"{server}/_memory?sql=select+hex(llm_embed('clip',+:q))+as+x&q=purple+and+gold").text
    vector = Engine(demo_dir).embed_item("purple and gold").tobytes()
    assert vector.hex().upper()[:2000] in page  # pages truncate long cells


def test_the_canned_query_needs_no_sql(server, demo_dir):
    assert '<input type="text" id="qp1" name="text"' in re.sub(r"\s+", " ", httpx.get(f"{server}/_memory/embed").text)
    [row] = httpx.get(f"{server}/_memory/embed.json", params={"text": "purple and gold", "_shape": "array"}).json()
    assert json.loads(row["embedding"]) == Engine(demo_dir).embed_item("purple and gold").tolist()


def test_the_home_page_leads_to_both(server):
    page = httpx.get(server).text
    for link in ("-/clip", "_memory/embed?text=purple+and+gold"):
        assert f'href="{link}"' in page
        assert httpx.get(f"{server}/{link}").status_code == 200


def test_an_image_in_a_database_file_is_embedded_beside_memory(server, demo_dir):
    sql = "select hex(llm_embed('clip', image)) as x from pictures"
    [row] = httpx.get(f"{server}/pictures.json", params={"sql": sql, "_shape": "array"}).json()
    assert bytes.fromhex(row["x"]) == Engine(demo_dir).embed_item(saved(photo(), "JPEG")).tobytes()


def test_many_clients_at_once_all_get_their_own_embedding(server, demo_dir):
    engine, texts = Engine(demo_dir), [f"client {n} asks for purple" for n in range(60)]

    def ask(text: str) -> bytes:
        response = httpx.get(f"{server}/_memory.json", params={"sql": EMBED, "q": text, "_shape": "array"})
        return bytes.fromhex(response.json()[0]["x"])

    with ThreadPoolExecutor(25) as pool:
        assert list(pool.map(ask, texts)) == [engine.embed_item(text).tobytes() for text in texts]


def test_garbage_is_collected_by_a_thread_that_holds_no_lock(tmp_path):
    """Without this, 50 clients with failing queries hung the server after about 5,000 queries (datasette_guard/memory.py)."""
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(tmp_path / "none"))
    arguments = ["--memory", "--plugins-dir", str(ROOT / "tests/plugins")]
    with serving(*arguments, env=env, log=tmp_path / "log") as url, httpx.Client() as client:

        def ask(n: int) -> int:
            return client.get(f"{url}/_memory.json", params={"sql": EMBED, "q": f"text {n}"}).status_code

        with ThreadPoolExecutor(25) as pool:
            assert set(pool.map(ask, range(400))) == {400}
        assert until(lambda: client.get(f"{url}/collections").json()) == ["guard-memory"]


def test_scale_to_zero_and_block_robots_are_there_as_they_are(server):
    names = {plugin["name"] for plugin in httpx.get(f"{server}/-/plugins.json").json()}
    assert {"datasette-clip", "datasette-llm-embed", "datasette-scale-to-zero", "datasette-block-robots"} <= names
    assert "Disallow: /" in httpx.get(f"{server}/robots.txt").text
    assert httpx.get(f"{server}/-/metadata.json").json()["plugins"]["datasette-scale-to-zero"] == {
        "duration": {"$env": "SLEEP_AFTER"}
    }


def test_the_first_query_of_a_cold_server_succeeds(demo_dir, tmp_path):
    """The query arrives while the tower is being opened and waits for it outside SQL's time limit."""
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", *DATASETTES_LIMIT, env=env, log=tmp_path / "log") as url:
        response = httpx.get(f"{url}/_memory.json", params={"sql": EMBED, "q": "cold", "_shape": "array"})
    assert len(response.json()[0]["x"]) == 4096


def test_the_sentence_of_a_misuse_is_in_the_servers_log(demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        assert httpx.get(f"{url}/_memory.json", params={"sql": "select llm_embed('clip', 5)"}).status_code == 400
    assert "\nllm_embed: int is neither text nor image bytes; expected str or bytes\n" in (tmp_path / "log").read_text()


def test_bad_configuration_ends_serve_with_its_sentence(tmp_path):
    import subprocess

    from serving import BIN

    (tmp_path / "metadata.json").write_text('{"plugins": {"datasette-clip": {"models": "clip"}}}')
    done = subprocess.run(
        [str(BIN / "datasette"), "serve", "--memory", "-p", "0", "-m", str(tmp_path / "metadata.json")],
        env=environment(tmp_path / "llm"), capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == "Error: plugins.datasette-clip.models is 'clip'; expected a list of model ids such as [\"clip\"]"
    )


def notebook(server: str) -> str:
    """An HTML page that runs the manual's JavaScript against `server` and shows the embedding."""
    section = (ROOT / "docs/javascript.md").read_text().split("\n## Without the module\n")[1]
    [script] = re.findall(r"```javascript\n(.*?)```", section, re.DOTALL)
    script = script.replace("https://YOUR-HOST", server)
    return f"""<!doctype html><title>a notebook elsewhere</title><body></body><script type="module">
{script}
document.body.textContent = JSON.stringify([...embedding]);
</script>"""


@pytest.fixture
def elsewhere(server):
    """The address of a page of another origin that fetches from the server, as a notebook does."""

    with another_origin(notebook(server).encode()) as url:
        yield url


@chromium
def test_a_page_of_another_origin_can_fetch_an_embedding(browser_page, elsewhere, demo_dir):
    browser_page.goto(elsewhere)
    browser_page.wait_for_function("document.body.textContent.startsWith('[')")  # and not with the script's own text
    found = np.float32(json.loads(browser_page.text_content("body")))
    np.testing.assert_array_equal(found, Engine(demo_dir).embed_item("purple and gold"))


@chromium
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_about_the_model_fits_its_window(browser_page, server, width):
    browser_page.set_viewport_size({"width": width, "height": 800})
    browser_page.goto(f"{server}/-/clip")
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    browser_page.click("text=Try the query in this browser")
    assert re.search("[0-9A-F]{100}", browser_page.text_content("table.rows-and-columns"))


@chromium
def test_the_canned_querys_form_answers_a_person(browser_page, server):
    browser_page.goto(f"{server}/_memory/embed")
    browser_page.fill("input[name=text]", "purple and gold")
    browser_page.keyboard.press("Enter")
    browser_page.wait_for_selector("table.rows-and-columns")
    assert re.search("[0-9A-F]{100}", browser_page.text_content("table.rows-and-columns"))
