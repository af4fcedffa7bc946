"""README and the manual are run: every example, every command of make, and what cog wrote from the code."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import shlex
import sqlite3
import subprocess
import sys

import pytest
from datasette.app import Datasette
from PIL import Image

import conf
import facts
import photo_pictures
from browser import chromium
from conftest import ROOT, shipped_metadata
from nasty import photo, saved
from patience import PATIENCE_S
from serving import BIN, environment

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text() for page in PAGES}
EXAMPLE = re.compile(r"^```sql\n(.*?)^```\n^```json\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXAMPLES = [
    pytest.param(sql, answer, id=f"{page}: {sql.strip()[:60]}")
    for page, text in TEXTS.items()
    for sql, answer in EXAMPLE.findall(text)
]
CONFIGURATIONS = [
    pytest.param(json.loads(fence), id=f"{page}, {number}")
    for page, text in TEXTS.items()
    for number, fence in enumerate(re.findall(r"^```json\n(.*?)^```", EXAMPLE.sub("", text), re.DOTALL | re.MULTILINE))
]
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # as in test_sql_functions.py


@pytest.fixture
def datasette(demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette(memory=True, metadata=shipped_metadata())


def get(datasette: Datasette, path: str, **parameters):
    async def get_it():
        return await datasette.client.get(path, params=parameters or None)

    return asyncio.run(get_it())


def test_every_example_in_sql_has_its_answer():
    assert len(EXAMPLES) == sum(text.count("```sql") for text in TEXTS.values()) >= 9


@pytest.mark.parametrize(("sql", "answer"), EXAMPLES)
def test_an_example_in_sql_gives_the_answer_below_it(sql, answer, datasette, caplog):
    expected = json.loads(answer)
    with caplog.at_level(logging.WARNING, "datasette_clip"):
        response = get(datasette, "/_memory.json", sql=sql, _shape="array")
    if isinstance(expected, dict):
        assert response.status_code == 400
        assert response.json()["error"] == expected["error"]
        assert expected["error"] in caplog.messages
    else:
        assert response.json() == expected


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_datasette_starts_with_a_configuration_that_is_shown(configuration, monkeypatch):
    for name in re.findall(r'"\$env": "(\w+)"', json.dumps(configuration)):
        monkeypatch.setenv(name, "10m")
    guard = configuration["plugins"].get("datasette-guard", {})
    guard.get("limits", {}).pop("sqlite_bytes", None)  # it would bound this process until its end
    asyncio.run(Datasette(memory=True, metadata=configuration).invoke_startup())


def test_the_keys_of_the_configuration_are_those_of_the_pages():
    from datasette_clip.config import READERS
    from datasette_guard.config import READERS as GUARD_READERS

    section = TEXTS["docs/configuration.md"].split("\n## `datasette-clip`\n")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == READERS.keys()
    sentence = TEXTS["docs/guard.md"].split("All keys are optional: ")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == GUARD_READERS.keys()


def test_every_url_answers(demo_engine, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_engine.path))
    image = saved(photo(), "JPEG")
    with sqlite3.connect(tmp_path / "DATABASE.db") as connection:
        connection.execute("create table photos (id text primary key, vector blob, image blob)")
        connection.execute("insert into photos values ('a', ?, ?)", [demo_engine.embed_item(image).tobytes(), image])
    photos = {"table": "photos", "vector": "vector", "image": "image"}
    clip = {"collections": {"DATABASE": {"COLLECTION": photos}}}
    datasette = Datasette([str(tmp_path / "DATABASE.db")], memory=True, metadata={"plugins": {"datasette-clip": clip}})
    needed = {"/-/clip/embed.json": {"text": "a"}, "/-/clip/classify.json": {"text": "a"}}
    needed |= {f"/-/clip/{name}/DATABASE/COLLECTION": {"id": "a"} for name in ("thumbnail", "original", "view")}
    needed |= {"/-/clip/v/SHA256/text.FORM": {"q": "a"}}
    named = {"SHA256": demo_engine.manifest.sha256, "FORM": "json", "MODEL": "clip"}
    for url in facts.URLS:
        called = re.sub(r"[A-Z0-9]+\b", lambda name: named.get(name[0], name[0]), url)
        status = 405 if "by POST" in facts.URLS[url] and "GET" not in facts.URLS[url] else 200
        assert get(datasette, called, **needed.get(url, {})).status_code == status, url


def test_the_files_of_a_model_directory_are_those_of_the_page(demo_dir):
    section = TEXTS["docs/bake.md"].split("| file | holds |")[1].split("\n## ")[0]
    files = {str(file.relative_to(demo_dir)).replace("emoji", "NAME") for file in demo_dir.rglob("*.*")}
    files |= {"tokenizer.json", "pairs.npy", "characters.json"}  # of models with other tokenizers
    assert set(re.findall(r"`([a-zA-Z/]+(?:\.u?int8)?\.[a-z]+)`", section)) == files


@pytest.mark.long
def test_what_cog_writes_is_what_the_code_says():
    [line] = [line for line in commands_of_make("docs").splitlines() if "cogapp" in line]
    command = shlex.split(line.replace("docs/*.md", "").replace(".venv-test/bin/python", sys.executable))
    done = subprocess.run([*command, *TEXTS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"make docs-write writes it anew\n{done.stdout}{done.stderr}"


def test_a_limit_without_a_sentence_is_refused(monkeypatch):
    monkeypatch.delitem(facts.LIMITS["datasette_clip"], "items")
    with pytest.raises(ValueError, match=r"^limits: items: the code and docs/facts\.py do not agree$"):
        facts.limits("datasette_clip")


@pytest.mark.long
def test_the_manual_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "dummy", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_into_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\((?!http)([^)]+)\)", TEXTS[page])
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_and_its_picture_are_short():
    assert (ROOT / "README.md").stat().st_size <= 8000
    assert (ROOT / "docs/search.png").stat().st_size <= 150_000


def test_make_has_the_commands_that_the_pages_name():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for text in TEXTS.values() for name in re.findall(r"(?:^    |`)make ([a-z-]+)", text, re.MULTILINE)}
    assert named >= {"demo", "serve", "test", "bench", "docs"}
    assert named <= targets


def test_every_bench_has_its_table_and_every_plot_is_shown():
    text = "".join(TEXTS.values())
    kept = {
        name for file in (ROOT / "bench").glob("*/results.json") for name in json.loads(file.read_text())["benches"]
    }
    assert {*re.findall(r'facts\.bench\("([\w-]+)"', text), "scan"} == kept  # facts.scan() is a sentence
    drawn = {str(file.relative_to(ROOT)) for file in (ROOT / "bench").rglob("*.svg")}
    assert set(re.findall(r"^!\[.+\]\(\.\./(bench/.+)\)$", text, re.MULTILINE)) == drawn


def test_the_python_example_runs(demo_dir, tmp_path, monkeypatch):
    (tmp_path / "clip-model").symlink_to(demo_dir)
    (tmp_path / "photo.jpg").write_bytes(saved(photo(), "JPEG"))
    monkeypatch.chdir(tmp_path)
    others = "".join(text for name, text in TEXTS.items() if name != "docs/openai.md")  # test_sdks.py runs those
    [example] = re.findall(r"```python\n(.*?)```", others, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert (names["texts"].shape, names["images"].shape) == ((2, 512), (1, 512))


@pytest.mark.long
def test_llms_own_commands_run_as_shown(demo_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    for file in ("photo.jpg", "photos/bunny.jpg"):
        (tmp_path / file).write_bytes(saved(photo(), "JPEG"))
    section = TEXTS["docs/collections.md"].split("\n## With llm's own commands\n")[1].split("\n## ")[0]
    lines = re.findall(r"^    (llm .*)$", section, re.MULTILINE)
    assert len(lines) == 4
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    for line in lines:
        command = [str(BIN / "llm"), *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, (line, done.stderr)


def commands_of_make(*arguments: str) -> str:
    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_demo_bakes_and_serves_the_demo_model_because_it_says_so():
    commands = commands_of_make("demo")
    assert "llm clip bake demo/checkpoint --to demo/model" in commands
    assert "llm clip labels bake emoji demo/model --labels demo/emoji.txt" in commands
    assert "llm clip bake demo/multilingual --images demo/checkpoint --to demo/models/multilingual" in commands
    assert "ln -sfn ../model demo/models/clip" in commands
    assert "CLIP_MODEL_DIR=demo/models" in commands
    assert "llm clip embed demo/served/emoji.db.new --model-dir demo/model" in commands
    assert "llm clip index demo/served/emoji.db.new -c emoji" in commands
    assert "datasette serve --memory --cors -p 8001 -m demo/metadata.json demo/served/emoji.db" in commands


def test_make_serve_never_falls_back_to_the_demo_model():
    commands = commands_of_make("serve", "MODEL_DIR=elsewhere")
    assert "demo" not in commands
    assert "test -e elsewhere/manifest.json || .venv/bin/llm clip bake --to elsewhere" in commands
    assert "test -e elsewhere/labels/imagenet.json || .venv/bin/llm clip labels bake imagenet elsewhere" in commands
    assert "CLIP_MODEL_DIR=elsewhere .venv/bin/datasette serve --memory --cors -p 8001 -m metadata.json" in commands


def test_the_pages_name_the_pictures_that_are_taken(tmp_path, monkeypatch):
    named = re.findall(r"<!-- picture (\S+): .* -->", "".join(TEXTS.values()))
    assert sorted(named) == sorted(photo_pictures.PICTURES)
    source = [TEXTS["docs/photos.md"]]
    monkeypatch.setattr(conf, "__file__", str(tmp_path / "conf.py"))
    conf.show_pictures(None, "photos", source)
    assert "<!--" not in re.sub(r"<!-- \[\[\[.*?\]\]\] -->|<!-- \[\[\[end\]\]\] -->", "", source[0], flags=re.DOTALL)
    assert "_pictures" not in source[0]
    (tmp_path / "_pictures").mkdir()
    (tmp_path / "_pictures/phone.webp").touch()
    shown = [TEXTS["docs/photos.md"]]
    conf.show_pictures(None, "photos", shown)
    assert re.findall(r"^!\[.+\]\((.+)\)$", shown[0], re.MULTILINE) == ["_pictures/phone.webp"]
    assert "Noto Emoji" in shown[0]


@chromium
@pytest.mark.long
def test_the_pictures_of_photos_are_small(demo_dir, tmp_path):
    (tmp_path / "place").mkdir()
    photo_pictures.write_pictures(demo_dir, tmp_path / "pictures", tmp_path / "place")
    for name, ((width, height), _) in photo_pictures.PICTURES.items():
        with Image.open(tmp_path / "pictures" / name) as picture:
            assert (picture.format, picture.size) == ("WEBP", (width, height))
        assert (tmp_path / "pictures" / name).stat().st_size <= photo_pictures.MOST_BYTES
