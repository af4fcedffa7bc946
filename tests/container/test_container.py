"""The Dockerfile's image, built and run for real: its answers, memory, contents, health and exit."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sqlite3
import time
from http.client import HTTPResponse
from pathlib import Path
from signal import SIGINT, SIGTERM
from uuid import uuid4

import numpy as np
import pytest
from PIL import Image

from building import QUICK_DEMO, build, copy_context, size_bytes, why_not
from conftest import ROOT
from containers import run_once, started
from llm_clip_onnx.engine import Engine
from llm_clip_onnx.vectors import cosine
from nasty import photo, saved
from open_clip_checkpoint import write_open_clip
from patience import until
from random_checkpoint import TINY, write_checkpoint
from serving import environment, run_llm

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TEXT = "purple and gold"
ANY_USER = ("--user", "54321:54321")


@pytest.fixture(scope="session")
def model_dir(demo_image, tmp_path_factory) -> Path:
    """A copy of the image's model directory on this machine."""
    with started(demo_image) as container:
        return container.copy_out("/model", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def damaged_model_dir(model_dir, tmp_path_factory) -> Path:
    """A model directory with 4,096 random bytes among the text tower's weights, as from a damaged disk."""
    damaged = Path(shutil.copytree(model_dir, tmp_path_factory.mktemp("damaged") / "model"))
    with (damaged / "text.bin").open("r+b") as stream:
        stream.seek(damaged.joinpath("text.bin").stat().st_size // 2)
        stream.write(os.urandom(4096))
    return damaged


@pytest.fixture(scope="module")
def container(demo_image):
    """A running container, shared by the tests that only send requests."""
    with started(demo_image) as container:
        yield container.ready()


@pytest.mark.parametrize("user", [(), ANY_USER], ids=["its own user", "any user"])
def test_a_text_has_the_vector_that_llm_embed_gives_in_200_mb_and_read_only(user, demo_image, model_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(model_dir))
    expected = np.array(ast.literal_eval(run_llm("embed", "-m", "clip", "-c", TEXT, env=env).stdout), np.float32)
    with started(demo_image, "--memory", "200m", "--memory-swap", "200m", *user) as container:
        found = container.ready().embed(TEXT)
        assert container.memory_limit() == 200 * 2**20
        status = Path(f"/proc/{container.pid}/status").read_text()
    # Not bit for bit, because this machine may have another version of onnxruntime than the lock.
    np.testing.assert_allclose(found, expected, atol=1e-3)
    user = "54321" if user else "10001"
    assert re.search(r"Uid:\t(\d+)", status)[1] == re.search(r"Gid:\t(\d+)", status)[1] == user
    assert re.search(r"CapEff:\t(0+)\nCapBnd:\t(0+)\n", status)
    assert "NoNewPrivs:\t1\n" in status


def make_database(file: Path, wal: bool) -> None:
    """Write a table photos(id, image): a photo, and the largest accepted image, with `wal` in the -wal file."""
    database = sqlite3.connect(file)
    database.execute(f"pragma journal_mode = {'wal' if wal else 'delete'}")
    database.execute("create table photos (id integer primary key, image blob)")
    database.execute("insert into photos values (1, ?)", (saved(photo(640, 480), "JPEG"),))
    database.commit()
    database.execute("pragma wal_checkpoint")
    database.execute("insert into photos values (2, ?)", (saved(Image.new("RGBA", (4200, 4200), "purple"), "PNG"),))
    database.commit()
    if not wal:
        return database.close()
    copy = file.with_name(f"{file.name}.copy")
    shutil.copy(file, copy)
    wal_copy = shutil.copy(f"{file}-wal", f"{copy}-wal")
    database.close()  # merges the -wal file into the database
    copy.replace(file)
    Path(wal_copy).replace(f"{file}-wal")


@pytest.fixture(scope="session")
def image_with_databases(build_context, tmp_path_factory) -> str:
    with_databases = tmp_path_factory.mktemp("with-databases") / "context"
    shutil.copytree(build_context, with_databases)
    for name in ("plain.db", "in wal mode.sqlite", "third.sqlite3"):
        make_database(with_databases / "deploy" / "databases" / name, wal="wal" in name)
    for file in (with_databases / "deploy" / "databases").iterdir():
        file.chmod(0o600)
    build("localhost/datasette-clip:databases", with_databases, **QUICK_DEMO)
    return "localhost/datasette-clip:databases"


def test_databases_are_served_immutable_beside_memory_also_from_wal_mode(image_with_databases):
    with started(image_with_databases, *ANY_USER) as container:
        databases = {database["name"]: database for database in container.ready().get("/-/databases.json").json()}
        assert set(databases) == {"_memory", "plain", "in wal mode", "third"}
        for name in set(databases) - {"_memory"}:
            assert databases[name]["is_mutable"] is False
            page, sql = f"/{name.replace(' ', '~20')}", "select count(*) as n from photos"
            assert container.get(f"{page}.json", sql=sql, _shape="array").json() == [{"n": 2}]
            assert container.get(page).status_code == 200


def test_images_are_embedded_in_400_mb_the_largest_too(image_with_databases, model_dir):
    sql = "select hex(llm_embed('clip', image)) as x from photos order by id"
    with started(image_with_databases, "--memory", "400m", "--memory-swap", "400m") as container:
        rows = container.ready().get("/plain.json", sql=sql, _shape="array").json()
    found = [np.frombuffer(bytes.fromhex(row["x"]), "<f4") for row in rows]
    expected = Engine(model_dir).embed_images([photo(640, 480), Image.new("RGB", (50, 50), "purple")])
    assert np.allclose(found[1], expected[1], atol=1e-3)
    assert cosine(found[0], expected[0]) > 0.99  # the stored photo is a JPEG


@pytest.mark.parametrize("signal", [SIGTERM, SIGINT])
def test_a_signal_ends_it_with_0_once_what_is_in_flight_is_answered(signal, demo_image):
    """The last byte of a picture is sent after the signal. `100 Continue` shows that the server reads the body."""
    picture = saved(photo(90, 60), "JPEG")
    head = "POST /-/clip/embed.json HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\nExpect: 100-continue\r\n"
    with started(demo_image) as container, container.ready().connected() as client:
        client.sendall(f"{head}Content-Length: {len(picture)}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100 ")
        client.sendall(picture[:-1])
        os.kill(container.pid, signal)
        client.sendall(picture[-1:])
        answer = HTTPResponse(client)
        answer.begin()
        assert answer.status == 200
        assert len(json.loads(answer.read())["results"][0]["embedding"]) == 512
        assert container.end() == 0
        assert "Traceback" not in container.logs()


def test_a_signal_before_the_first_embedding_ends_it_with_0_too(demo_image):
    with started(demo_image) as container:
        container.wait("/-/versions.json")
        container.signal("TERM")
        assert container.end() == 0
        assert "Traceback" not in container.logs()


def test_it_ends_by_itself_after_the_time_in_the_environment_which_is_ten_minutes(demo_image):
    assert run_once(demo_image, "printenv", "SLEEP_AFTER").stdout == "10m\n"
    with started(demo_image, "--env", "SLEEP_AFTER=2s") as container:
        container.first_embedding(TEXT)
        assert container.end() == 0


def test_more_options_of_datasette_serve_are_in_the_environment(demo_image):
    with started(demo_image, "--env", "SERVE_OPTIONS=--setting default_allow_sql off") as container:
        assert container.ready().get("/_memory.json", sql="select 1").status_code == 403
        assert len(container.get("/_memory/embed.json", text=TEXT, _shape="array").json()[0]["x"]) == 4096


def test_its_healthcheck_says_healthy_and_keeps_to_the_port(demo_image):
    with started(demo_image, "--env", "PORT=9090", port=9090) as container:
        container.ready()
        until(container.healthy)
        assert container.get("/-/clip.json").json()["ready"] is True


def facts_once_open(answer: dict) -> dict:
    """The answer of /-/clip.json, or {} while the model is being opened."""
    return {} if "being opened" in (answer["why_not"] or "") else answer


def test_a_damaged_model_makes_it_unhealthy_with_a_reason_but_pages_are_served(demo_image, damaged_model_dir):
    with started(demo_image, "--volume", f"{damaged_model_dir}:/model:ro") as container:
        assert container.wait("/-/clip.json").status_code == 200
        answer = until(lambda: facts_once_open(container.get("/-/clip.json").json()))
        assert not container.healthy()
        assert answer["ready"] is False
        assert answer["why_not"].startswith("/model/text.bin has sha256")
        assert container.get("/_memory.json", sql="select 1 as one", _shape="array").json() == [{"one": 1}]
        pages = ("/", "/_memory", "/-/clip", "/-/versions.json")
        assert [container.get(page).status_code for page in pages] == [200] * 4
        assert container.execute("llm", "clip", "verify").returncode == 1


def test_verify_passes_in_it(container):
    verified = container.execute("llm", "clip", "verify")
    assert (verified.returncode, verified.stdout.count("ok  "), "FAILED" in verified.stdout) == (0, 8, False), verified


def test_any_other_command_runs_too(demo_image):
    assert run_once(demo_image, "llm", "clip", "verify").returncode == 0
    assert run_once(demo_image, "llm", "embed", "-m", "clip", "-c", "hello").stdout.startswith("[")


def test_the_image_has_only_locked_packages(container):
    """Compares the normalised names of all Python packages in the image."""
    listing = container.execute("find", "/", "-xdev", "-name", "*.dist-info", "-printf", "%f\n").stdout
    found = {re.sub(r"[-_.]+", "-", name.split("-")[0]).lower() for name in listing.splitlines()}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "deploy/requirements.txt").read_text(), re.M))
    assert found <= locked | {"datasette-clip"}
    assert {"datasette-clip", "datasette", "llm", "onnxruntime", "tokenizers", "pillow"} <= found
    assert not found & {"torch", "onnx", "huggingface-hub", "safetensors", "pip", "setuptools", "rich"}


def test_nothing_in_it_builds_or_installs(container):
    programs = container.execute("sh", "-c", "ls $(echo $PATH | tr : ' ')").stdout.split()
    assert "datasette" in programs
    assert not [name for name in programs if re.fullmatch(r"(pip|uv|gcc|g\+\+|cc|make|git|curl|wget)[\d.-]*", name)]


def test_a_start_compiles_no_module(demo_image):
    """Also of the standard library, which the official base image has without. python -v logs what it compiles."""
    options = ["--memory", "--host", "0.0.0.0", "--cors", "--port", "8080"]
    serve = ["python", "-v", "/app/bin/datasette", "serve", "/srv", *options]
    with started(demo_image, "--entrypoint", json.dumps(serve)) as container:
        until(lambda: "Application startup complete" in container.logs())
        log = container.logs()
    assert log.count(".pyc matches /") > 500
    assert re.findall(r"code object from (/.*\.py)$", log, re.M) == []


def bakes_again(context: Path) -> bool:
    """Build the stage `bake`: True unless both of its steps came from the builder's cache."""
    built = build("localhost/datasette-clip:bake", context, target="bake", **QUICK_DEMO)
    steps = re.split(r"^\[\d/\d\] STEP ", built.stdout, flags=re.M)
    baking = [step for step in steps if "python -m llm_clip_onnx bake" in step or "labels bake" in step]
    assert len(baking) == 2
    return not all("--> Using cache" in step for step in baking)


def test_only_an_edit_of_the_model_bakes_again(demo_image, build_context, tmp_path):
    edited = Path(shutil.copytree(build_context, tmp_path / "context"))
    others = [file for file in (edited / "plugins").glob("*/*.py") if file.parent.name != "llm_clip_onnx"]
    for file in [*others, *(edited / name for name in ("pyproject.toml", "README.md", "metadata.json", "fly.toml"))]:
        file.write_text(f"{file.read_text()}\n")
    assert not bakes_again(edited)
    with (edited / "plugins" / "llm_clip_onnx" / "errors.py").open("a") as stream:
        stream.write(f"# {uuid4()}\n")  # an edit that no run before this one has left in the builder's cache
    assert bakes_again(edited)


def test_it_is_small(demo_image):
    assert size_bytes(demo_image) < 320_000_000  # with the demo model's 13 MB, the base image's 114


def test_nothing_goes_out(demo_image):
    """Nor tries to: packets without a route are counted. onnxruntime's telemetry would try within 10 s."""
    with started(demo_image) as container:
        container.ready().embed(TEXT)
        image_sql = f"select hex(llm_embed('clip', x'{saved(photo(9, 9), 'PNG').hex()}'))"
        assert container.get("/_memory.json", sql=image_sql).status_code == 200
        pages = ("/", "/-/clip", "/-/clip.json", "/_memory/embed?text=red", "/robots.txt")
        assert [container.get(page).status_code for page in pages] == [200] * 5
        time.sleep(15)
        out = container.network()
        assert out["TcpActiveOpens"] == container.requests
        attempts = ("UdpOutDatagrams", "Udp6OutDatagrams", "IpOutNoRoutes", "Ip6OutNoRoutes")
        assert [out[name] for name in attempts] == [0] * 4
        container.execute("python", "-c", "import socket; socket.create_connection(('192.0.2.1', 443), 1)")
        assert container.network()["IpOutNoRoutes"] > 0  # an attempt is counted


def test_with_a_sixteenth_of_a_core_from_the_start_it_answers(demo_image):
    """By JSON, which has no time limit. bench/container measures how long SQL takes."""
    with started(demo_image, "--cpu-period", "80000", "--cpu-quota", "5000") as container:
        answer = container.wait("/-/clip/embed.json", text=TEXT)
        assert (answer.status_code, len(answer.json()["results"][0]["embedding"])) == (200, 512)


@pytest.mark.slow
def test_several_models_are_baked_to_folders_of_their_own_and_one_is_in_open_clips_layout(tmp_path):
    """Of the two, which have no id of the catalogue, none gets imagenet unless it is named."""
    context = copy_context(tmp_path / "context")
    write_open_clip(context / "deploy/checkpoints/open", write_checkpoint(tmp_path / "hf", **TINY))
    models = {"CLIP_MODELS": "demo/checkpoint deploy/checkpoints/open", "VERIFY": "0"}
    build("localhost/datasette-clip:several", context, **models, LABELS="imagenet demo/emoji.txt")
    with started("localhost/datasette-clip:several") as container:
        container.ready()
        sql = "select length(llm_embed('checkpoint', 'hello')) as a, length(llm_embed('open', 'hello')) as b"
        assert container.get("/_memory.json", sql=sql, _shape="array").json() == [{"a": 2048, "b": 2048}]
        model = container.copy_out("/model", tmp_path)
    assert sorted(str(file.relative_to(model)) for file in model.glob("**/labels/*.json")) == [
        "checkpoint/labels/emoji.json",
        "open/labels/emoji.json",
    ]
