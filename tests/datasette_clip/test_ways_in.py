"""Every way in has the same judge: a file gets the same verdict as a body, a file of a form, a string, a BLOB or a file."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from datasette.app import Datasette
from llm.cli import cli

import hostile
import tiffs
from llm_clip_onnx.images.signatures import format_of, is_json_object, name_of
from nasty import photo, saved
from stored import llms_database

SMALL = 30_000  # bytes of a file that fits a URL as hex digits
READ = {
    name: file
    for name, file in {**hostile.ancillary(), "tiff.tif": saved(photo(), "TIFF"), "pages.tif": tiffs.pages(3)}.items()
    if len(file) < SMALL
} | {"heic": hostile.heic(photo()), "jpeg": saved(photo(), "JPEG"), "avif": saved(photo(), "AVIF")}
REFUSED = {
    "pdf": b"%PDF-1.7\n1 0 obj <<>>\n" * 20,
    "page": b"<!doctype html><title>Sign in</title>" * 20,
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "cut": saved(photo(), "PNG")[:300],
    "wrong-checksum-PLTE": saved(photo(), "PNG")[:33] + hostile.wrong(b"PLTE", bytes(6)) + saved(photo(), "PNG")[33:],
    "bomb": tiffs.refused()["tile-of-5-gb.tif"],
    "jpeg-xl": b"\xff\x0a" + bytes(60),
    "archive": hostile.zipped(),
}
EMBED = "/-/clip/embed.json"


@pytest.fixture(scope="module")
def datasette(demo_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("ways") / "ids.db"
    conn = llms_database(str(path), photos={"a": np.ones(512, np.float32)})
    conn.execute("create table files (image blob)")
    conn.executemany("insert into files values (?)", [(file,) for file in READ.values()])
    conn.commit()
    conn.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_MODEL_DIR", str(demo_dir))
        yield Datasette([str(path)], memory=True)


def send(datasette, method: str, path: str, **sent) -> httpx.Response:
    return asyncio.run(datasette.client.request(method, path, **sent))


@pytest.mark.parametrize("kind", ["application/json", "application/ld+json", "text/plain", None])
def test_an_image_is_told_by_its_first_bytes_and_not_by_its_content_type(kind, datasette):
    body = saved(photo(), "PNG")
    response = send(datasette, "POST", EMBED, content=body, headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("option", ["-d", "--data-binary"])
def test_a_pdf_is_named_also_where_curl_has_changed_it(option, datasette):
    whole = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n\0\1\2" * 9
    body = whole.translate(None, b"\r\n\0") if option == "-d" else whole
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    error = send(datasette, "POST", EMBED, content=body, headers=headers).json()
    assert "not an image but a PDF" in json.dumps(error)


def verdict_of(response: httpx.Response) -> str:
    content = response.json()
    error = content.get("error") or next((r["error"] for r in content.get("results", []) if "error" in r), None)
    return "read" if response.status_code == 200 and not error else error or f"HTTP {response.status_code}"


def body(kind: str | None):
    headers = {"content-type": kind} if kind else {}
    return lambda datasette, file: send(datasette, "POST", EMBED, content=file, headers=headers)


def sql(text: str):
    def ask(datasette, file):
        values = {"sql": f"select {text}", "hex": file.hex(), "_shape": "array"}
        return send(datasette, "GET", "/ids.json", params=values)

    return ask


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


SEARCH = "/-/clip/search/ids/photos.json"
WAYS = {
    "body": body("application/octet-stream"),
    "body as an image": body("image/png"),
    "body without a type": body(None),
    "body as curl sends it": body("application/x-www-form-urlencoded"),
    "file of a form": lambda d, file: send(d, "POST", EMBED, files={"image": ("a", file)}),
    "JSON": lambda d, file: send(d, "POST", EMBED, json={"images": [base64_of(file)]}),
    "data URI": lambda d, file: send(d, "POST", EMBED, json={"images": [f"data:image/png;base64,{base64_of(file)}"]}),
    "field": lambda d, file: send(d, "POST", EMBED, data={"img": base64_of(file)}),
    "search, body": lambda d, file: send(d, "POST", SEARCH, content=file),
    "search, as curl sends it": lambda d, file: send(
        d, "POST", SEARCH, content=file, headers={"content-type": "application/x-www-form-urlencoded"}
    ),
    "search, file of a form": lambda d, file: send(d, "POST", SEARCH, files={"image": ("a", file)}),
    "search, image:": lambda d, file: send(d, "GET", SEARCH, params={"q": f"image:{file.hex()}"}),
    "search, img": lambda d, file: send(d, "POST", SEARCH, data={"img": base64_of(file)}),
    "SQL, BLOB": sql("llm_embed('clip', image) is not null from files where hex(image) = upper(:hex)"),
    "SQL, clip_image": sql("llm_embed('clip', clip_image(:hex)) is not null"),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in_reads_the_same_files(way, datasette):
    for name, file in READ.items():
        response = WAYS[way](datasette, file)
        content = response.json()
        assert response.status_code == 200, (name, content)
        if isinstance(content, list):  # of SQL
            assert [list(row.values()) for row in content] == [[1]], name
        else:
            assert verdict_of(response) == "read", (name, content)


@pytest.mark.parametrize("way", [way for way in WAYS if "SQL" not in way])
def test_each_way_in_refuses_the_same_files_and_says_what_they_are(way, datasette):
    for name, file in REFUSED.items():
        response = WAYS[way](datasette, file)
        assert response.status_code == 400, (name, response.text)
        said = verdict_of(response)
        found = name_of(file) if not format_of(file) else ""
        assert found in said, (name, said)
        assert len(said) < 400, (name, said)


@pytest.mark.parametrize("path", ["/-/clip/classify", "/-/clip/compare", "/-/clip/search/ids/photos"])
def test_the_pages_read_the_same_files(path, datasette):
    for name, file in READ.items():
        response = send(datasette, "POST", path, files={"image": ("a", file)})
        assert response.status_code == 200, (name, response.text[:2000])


@pytest.mark.parametrize("way", ["embed", "stdin", "folder", "rows"])
def test_a_command_reads_the_same_files(way, demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    runner, files = CliRunner(), tmp_path / "files"
    files.mkdir()
    for number, file in enumerate(READ.values()):
        (files / f"{number}.png").write_bytes(file)
    if way == "rows":
        with sqlite3.connect(tmp_path / "rows.db") as conn:
            conn.execute("create table photos (id, image)")
            conn.executemany("insert into photos values (?, ?)", enumerate(READ.values()))
        commands = [["clip", "embed", str(tmp_path / "rows.db"), "--sql", "select id, image from photos"]]
    elif way == "folder":
        commands = [["clip", "embed", str(files)]]
    else:
        commands = [
            ["embed", "-m", "clip", "--binary", "-i", "-" if way == "stdin" else str(f)] for f in files.iterdir()
        ]
    if way in ("rows", "folder"):
        commands = [[*commands[0], "-d", str(tmp_path / "out.db"), "-c", "photos"]]
    inputs = list(READ.values()) if way == "stdin" else [b""] * len(commands)
    for command, sent in zip(commands, inputs):
        done = runner.invoke(cli, command, input=sent)
        assert done.exit_code == 0, (command, done.output, done.exception)


# What a body is, whatever its Content-Type


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("before", [b"", b"\n  ", b"\xef\xbb\xbf"])
def test_a_body_that_begins_with_a_brace_is_json(kind, before, datasette):
    sent = before + json.dumps({"texts": ["a"]}).encode()
    headers = {"content-type": kind} if kind else {}
    assert is_json_object(sent)
    assert send(datasette, "POST", EMBED, content=sent, headers=headers).json()["ok"]


def test_what_curl_d_has_damaged_is_said(datasette):
    for file in (saved(photo(), "PNG"), saved(photo(), "JPEG"), saved(photo(), "TIFF"), hostile.heic(photo())):
        damaged = file.translate(None, b"\0\r\n")
        headers = {"content-type": "application/x-www-form-urlencoded"}
        response = send(datasette, "POST", EMBED, content=damaged, headers=headers)
        assert response.status_code == 400
        assert "--data-binary" in response.json()["error"]


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
@pytest.mark.parametrize("path", [EMBED, "/-/clip/classify.json", SEARCH, "/-/clip/classify", "/-/clip/compare"])
def test_a_compressed_body_is_415(path, encoding, datasette):
    response = send(datasette, "POST", path, content=b"\x1f\x8b", headers={"content-encoding": encoding})
    assert response.status_code == 415
    assert "Content-Encoding" in response.text
