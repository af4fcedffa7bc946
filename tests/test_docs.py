"""README is the manual, and is run: every example, its functions, its URLs, its figures."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest
from datasette.app import Datasette

from conftest import ROOT, shipped_metadata
from patience import PATIENCE_S

README = (ROOT / "README.md").read_text()
KEPT = json.loads((ROOT / "bench/results.json").read_text())["benches"]
# Those that README shows, in its order.
TABLES = ["container", "load", "fidelity", "recipe", "crowd", "growth", "cold_start", "peers", "classify"]
EXAMPLES = re.findall(r"```sql\n(.*?)```\n```json\n(.*?)```", README, re.DOTALL)
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


def test_no_example_goes_without_its_answer():
    assert len(EXAMPLES) == README.count("```sql") >= 9


@pytest.mark.parametrize(("sql", "answer"), EXAMPLES, ids=[sql.strip()[:60] for sql, _ in EXAMPLES])
def test_an_sql_example_answers_as_readme_says(sql, answer, datasette, caplog):
    expected = json.loads(answer)
    with caplog.at_level(logging.WARNING, "datasette_clip"):
        response = get(datasette, "/_memory.json", sql=sql, _shape="array")
    if isinstance(expected, dict):
        assert response.status_code == 400
        assert response.json()["error"] == expected["error"]
        assert expected["log"] in caplog.messages
    else:
        assert response.json() == expected


def table_under(heading: str) -> list[str]:
    """First cells of the table under a heading of README."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)


def test_the_sql_functions_are_readmes_list(datasette):
    import sqlite3

    from datasette_clip import prepare_connection

    plain, ours = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    prepare_connection(conn=ours, database="_memory", datasette=datasette)
    names = "select distinct name from pragma_function_list"
    added = {row[0] for row in ours.execute(names)} - {row[0] for row in plain.execute(names)}
    assert added == {entry.split("(")[0] for entry in table_under("In SQL")}


def test_the_urls_are_the_routes(demo_engine, monkeypatch, tmp_path):
    import sqlite3

    from datasette_clip import register_routes
    from nasty import photo, saved

    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_engine.path))
    image = saved(photo(), "JPEG")
    with sqlite3.connect(tmp_path / "DATABASE.db") as connection:
        connection.execute("create table photos (id text primary key, vector blob, image blob)")
        connection.execute("insert into photos values ('a', ?, ?)", [demo_engine.embed_item(image).tobytes(), image])
    photos = {"table": "photos", "vector": "vector", "image": "image"}
    clip = {"collections": {"DATABASE": {"COLLECTION": photos}}}
    datasette = Datasette([str(tmp_path / "DATABASE.db")], memory=True, metadata={"plugins": {"datasette-clip": clip}})
    needed = {"/-/clip/embed.json": {"text": "a"}, "/-/clip/classify.json": {"text": "a"}}
    needed["/-/clip/thumbnail/DATABASE/COLLECTION"] = {"id": "a"}
    urls = table_under("URLs")
    assert len(urls) == len(register_routes())
    for url in urls:
        assert any(re.match(pattern, url) for pattern, _ in register_routes())
        assert get(datasette, url, **needed.get(url, {})).status_code == 200


def test_the_files_of_a_model_directory_are_readmes_list(demo_dir):
    section = README.split("| file | holds |")[1].split("\n## ")[0]
    files = {str(file.relative_to(demo_dir)) for file in demo_dir.rglob("*.*")}
    assert set(re.findall(r"`([a-zA-Z/]+(?:\.u?int8)?\.[a-z]+)`", section)) == {
        name.replace("emoji", "NAME") for name in files
    }


def test_the_configuration_shown_is_the_one_shipped():
    shown = json.loads(re.search(r"## Configuration.*?```json\n(.*?)```", README, re.DOTALL)[1])
    shipped = json.loads((ROOT / "metadata.json").read_text())
    assert shown["plugins"]["datasette-clip"] == shipped["plugins"]["datasette-clip"]


def test_the_limits_and_their_defaults_are_the_codes():
    from dataclasses import asdict

    from datasette_clip.config import Limits

    rows = re.findall(r"^\| `(\w+)` \| (\d+)(?:, no limit)? \|", README, re.MULTILINE)
    assert [(name, int(value)) for name, value in rows] == list(asdict(Limits()).items())


def test_the_crawlers_refused_are_readmes_list():
    from datasette_guard.crawlers import REFUSED, TAGS

    section = README.split("\n## Crawlers\n")[1].split("\n## ")[0]
    shown = json.loads(re.search(r'"refuse_crawlers": (\[.*\])', section)[1])
    assert tuple(shown) == REFUSED
    assert set(re.findall(r"`([a-z-]+)`", section.split("the rest of its tags")[1])) == set(TAGS) - set(REFUSED)


def test_every_key_of_the_configuration_is_in_readme():
    from datasette_clip.config import READERS

    sentence = README.split("All keys: ")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", sentence)) == READERS.keys()


def test_the_numbers_of_inputs_and_the_gates_are_those_of_the_code():
    from llm_clip_onnx.bake import fidelity, samples

    assert f"over {len(samples.TEXTS)} texts and {len(samples.made_images())} images" in README
    assert f"off {len(samples.CALIBRATION_TEXTS)} texts and {len(samples.calibration_images())} images" in README
    gates = [float(g) for g in re.findall(r"^\| .*tower with .* \| ([\d.]+) \|$", README, re.MULTILINE)]
    assert gates == [fidelity.FLOAT32_MINIMUM, fidelity.INT8_MINIMUM["text"], fidelity.INT8_MINIMUM["image"]]


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http|#)([^)]+)\)", README))
def test_links_into_the_project_lead_somewhere(target):
    assert (ROOT / target).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", README))))
def test_links_to_sections_lead_there(anchor):
    headings = re.findall(r"^##+ (.+)$", README, re.MULTILINE)
    assert anchor in {re.sub(r"[^\w\s-]", "", h.lower()).replace(" ", "-") for h in headings}


def test_make_has_the_commands_that_readme_names():
    makefile = (ROOT / "Makefile").read_text()
    for command in set(re.findall(r"make (demo|serve|test|bench)\b", README)):
        assert f"\n{command}:" in makefile


def test_the_python_example_runs(demo_dir, tmp_path, monkeypatch):
    from nasty import photo, saved

    (tmp_path / "clip-model").symlink_to(demo_dir)
    (tmp_path / "photo.jpg").write_bytes(saved(photo(), "JPEG"))
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert (names["texts"].shape, names["images"].shape) == ((2, 512), (1, 512))


def test_the_tables_are_those_of_the_runs_that_are_kept():
    import tables

    assert tables.written(README, KEPT) == README
    assert [name for name, _ in tables.shown(README)] == TABLES


def test_the_benches_are_readmes_list():
    from run import BENCHES

    assert table_under("Speed and memory") == list(BENCHES)


def test_every_plot_is_shown():
    drawn = {str(file.relative_to(ROOT)) for file in (ROOT / "bench/results").glob("*.svg")}
    assert set(re.findall(r"^!\[.+\]\((.+)\)$", README, re.MULTILINE)) == drawn


def test_the_build_arguments_are_the_dockerfiles():
    dockerfile = (ROOT / "Dockerfile").read_text()
    rows = re.findall(r"^\| `([A-Z_]+)` \| (?:`([^`]+)`)?", README, re.MULTILINE)
    assert {name for name, _ in rows} == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE))
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)$", dockerfile, re.MULTILINE))
    assert all(defaults[name] == shown for name, shown in rows if shown)


def test_the_other_figures_are_those_of_their_runs_too():
    readme = " ".join(README.split())
    plain, one_file = KEPT["recipe"], KEPT["recipe-tokenizer-json"]
    ratios, slower = plain["ratios"]["recipe / ours"], one_file["medians"]["recipe"]["query_p50_ms"]
    new, seen = ratios["query_p50_ms"], ratios["seen_p50_ms"]
    assert f"a new text is answered {new:.0f} times faster, one that was asked before {seen:.0f} times" in readme
    assert f"took it {slower:.0f} ms instead of {plain['medians']['recipe']['query_p50_ms']:.0f}" in readme
    assert f"the ratio was {one_file['ratios']['recipe / ours']['query_p50_ms']:.0f} (`bench/recipe.py" in readme
    scan = KEPT["scan"]
    assert f"Over {scan['rows']:,} stored vectors this takes {scan['medians']['ours_ms']:.0f} ms of" in readme
    assert f"datasette-llm-embed's own function takes {scan['medians']['theirs_ms']:.0f} (`bench/scan.py`" in readme


def test_the_commands_of_llm_are_those_that_readme_shows(demo_dir, tmp_path):
    """Each `llm ...` line of In LLM, in its order, in a folder with a photo."""
    import shlex
    import subprocess

    from nasty import photo, saved
    from serving import BIN, environment

    (tmp_path / "photos").mkdir()
    for file in ("photo.jpg", "photos/bunny.jpg"):
        (tmp_path / file).write_bytes(saved(photo(), "JPEG"))
    lines = re.findall(r"^    (llm (?:embed|similar).*)$", README, re.MULTILINE)
    assert len(lines) == 4
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    for line in lines:
        command = [str(BIN / "llm"), *shlex.split(line)[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, (line, done.stderr)


def what_make_runs(*arguments: str) -> str:
    import subprocess

    command = ["make", "--dry-run", "--always-make", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_make_demo_bakes_and_serves_the_demo_model_because_it_says_so():
    commands = what_make_runs("demo")
    assert "llm clip bake demo/checkpoint --to demo/model" in commands
    assert "llm clip labels bake emoji demo/model --labels demo/emoji.txt" in commands
    assert "CLIP_MODEL_DIR=demo/model" in commands
    assert "llm clip embed demo/served/emoji.db.new --model-dir demo/model" in commands
    assert "llm clip index demo/served/emoji.db.new -c emoji" in commands
    assert "datasette serve --memory --cors -m .venv/demo.json -p 8001 demo/served/emoji.db" in commands


def test_make_bench_makes_the_environments_of_what_it_runs_alone():
    commands = what_make_runs("bench", "ONLY=scan")
    assert "python3 bench/run.py scan" in commands
    assert ".venv-test/bin/pip install" in commands
    assert ".venv-bench" not in commands
    assert ".venv-bench/bin/pip install" in what_make_runs("bench", "ONLY=growth")
    commands = what_make_runs("bench", "ONLY=peers")
    for environment in ("test", "bench", "peers", "open-clip", "infinity"):
        assert f".venv-{environment}/bin/pip install" in commands


def test_make_serve_never_falls_back_to_the_demo_model():
    commands = what_make_runs("serve", "MODEL_DIR=elsewhere")
    assert "demo" not in commands
    assert "test -e elsewhere/manifest.json || .venv/bin/llm clip bake --to elsewhere" in commands
    assert "test -e elsewhere/labels/imagenet.json || .venv/bin/llm clip labels bake imagenet elsewhere" in commands
    assert "CLIP_MODEL_DIR=elsewhere .venv/bin/datasette serve" in commands
