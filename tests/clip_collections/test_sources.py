"""Each source gives the right ids and texts. A row that cannot be read is left out, and the summary says where and why."""

from __future__ import annotations

import json
import os
import re
import socket
import sqlite3
from base64 import b64encode
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llm
import pytest
from click.testing import CliRunner
from llm.cli import cli
from PIL import Image
from sqlite_utils import Database

from llm_clip_onnx import engine
from nasty import photo, saved

Engine = cache(engine.Engine)  # opened once for the tests of this file, by a command each time
BLUE = saved(Image.new("RGB", (8, 8), "blue"), "PNG")
DATA_URI = "data:image/png;base64," + b64encode(BLUE).decode()
SHOES = {"1": "Red shoe", "2": "Blue boot"}
RESULT = {
    "ok": True,
    "next": None,
    "rows": [{"sku": 1, "t": "Red shoe"}, {"sku": 2, "t": "Blue boot"}],
    "truncated": False,
}


class Embedded(NamedTuple):
    """What a run of `llm clip embed` did: its status, what it said, and the contents that it stored, by id."""

    status: int
    said: str
    contents: dict[str, str | bytes]


@pytest.fixture
def embed(tmp_path, tiny_dir, monkeypatch):
    """Run `llm clip embed --store` in this process: on a file of this name and content, or on a path."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(tiny_dir))
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    monkeypatch.setattr(engine, "Engine", Engine)
    to = tmp_path / "to.db"

    def run(source: str | Path, content: str | bytes | None = None, *options: str, stdin: bytes = b"") -> Embedded:
        if content is not None:
            (tmp_path / source).write_bytes(content if isinstance(content, bytes) else content.encode())
        source = str(source) if source == "-" else str(tmp_path / source)
        arguments = ["clip", "embed", source, "-d", str(to), "-c", "rows", "--store", *options]
        result = CliRunner().invoke(cli, arguments, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return Embedded(result.exit_code, result.output, contents(to))

    return run


def contents(database: Path) -> dict[str, str | bytes]:
    if not database.exists():
        return {}
    with sqlite3.connect(database) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
        if not connection.execute("select 1 from sqlite_master where name = 'embeddings'").fetchone():
            return {}
        return dict(connection.execute("select id, coalesce(content, content_blob) from embeddings order by id"))


def table(*lines: str, delimiter: str = ";") -> str:
    return "\n".join(("sku;title", "1;Red shoe", "2;Blue boot", *lines, "")).replace(";", delimiter)


@pytest.mark.parametrize(
    ("name", "content", "options", "expected"),
    [
        ("s.csv", table(), [], SHOES),
        ("s.csv", table(delimiter="\t"), [], SHOES),
        ("s.csv", table(delimiter="|"), [], SHOES),
        ("s.csv", table(delimiter=","), [], SHOES),
        ("s.tsv", table(delimiter=","), [], SHOES),
        ("s.tsv", table("3;5\" heel, wide", delimiter="\t"), [], SHOES | {"3": '5" heel, wide'}),
        ("s.csv", table("3;Shoe, red, new"), [], SHOES | {"3": "Shoe, red, new"}),
        ("s.csv", table('3;"a;b\n""c"""'), [], SHOES | {"3": 'a;b\n"c"'}),
        ("s.csv", table("3;", "4;  "), [], SHOES),
        ("s.csv", "sep=;\r\n" + table(), [], SHOES),
        ("s.csv", table(delimiter=":"), ["--delimiter", ":"], SHOES),
        ("s.csv", table(delimiter="\t"), ["--delimiter", "tab"], SHOES),
        ("s.csv", table().replace("\n", "\r\n") + "\r\n;\r\n", [], SHOES),
        ("s.csv", table().replace("\n", "\r"), [], SHOES),
        ("s.csv", table().replace("sku;", "﻿sku;"), [], SHOES),
        ("s.csv", table("3;blåbær").encode("utf-16"), [], SHOES | {"3": "blåbær"}),
        ("s.csv", table("3;blåbær").encode("utf-16-le"), [], SHOES | {"3": "blåbær"}),
        ("s.csv", table("3;blåbær", "4;Größe 40 für 20 €", "5;à côté").encode("cp1252"), [], SHOES | {"3": "blåbær", "4": "Größe 40 für 20 €", "5": "à côté"}),
        ("s.csv", table("3;обувь").encode("cp1251"), ["--encoding", "cp1251"], SHOES | {"3": "обувь"}),
        ("s.csv", table("3;靴").encode("shift_jis"), ["--encoding", "shift_jis"], SHOES | {"3": "靴"}),
        ("s.csv", "id,t,t,\n1,a,b,c\n", [], {"1": "a b c"}),
        ("s.csv", ",title\n1,a\n", [], {"1": "a"}),
        ("s.csv", "id, t\n1,a,,\n", [], {"1": "a"}),
        ("s.json", json.dumps(RESULT), [], SHOES),
        ("s.json", json.dumps(RESULT["rows"]), [], SHOES),
        ("s.json", "\ufeff" + json.dumps(RESULT, indent=1), [], SHOES),
        ("s.json", json.dumps(RESULT).encode("utf-16"), [], SHOES),
        ("s.json", json.dumps({"ok": True, "rows": [[1, "Red shoe"], [2, "Blue boot"]]}), [], SHOES),
        ("s.json", json.dumps({"database": "d", "table": "t", "rows": [[1, "Red shoe"], [2, "Blue boot"]], "columns": ["sku", "t"]}), [], SHOES),
        ("s.json", json.dumps({"database": "d", "rows": [[1, "Red shoe"]], "columns": ["sku", "t"]}), ["--metadata", "t"], {}),
        ("s.json", json.dumps({"1": RESULT["rows"][0], "2": RESULT["rows"][1]}), [], SHOES),
        ("s.json", json.dumps({"1": {"t": "Red shoe"}, "2": {"t": "Blue boot"}}), [], SHOES),
        ("s.json", "\n".join(map(json.dumps, RESULT["rows"])), [], SHOES),
        ("s.jsonl", json.dumps(RESULT["rows"], indent=2), [], SHOES),
        ("s.json", "\n".join(json.dumps(row | {"kept": "x" * 60_000}) for row in RESULT["rows"]), ["--metadata", "kept"], SHOES),
        ("s.nl", "\n".join(map(json.dumps, RESULT["rows"])), [], SHOES),
        ("s.csv", json.dumps(RESULT), [], SHOES),
        ("s.json", '{"id": "a", "t": "Red", "sizes": [40, {"é": true}], "sold": false, "n": null, "price": 1.5}', [], {"a": 'Red [40, {"é": true}] false  1.5'}),
        ("s.json", '[{"id": 1, "t": "a"}, {"t": "b", "id": 2}]', [], {"1": "a", "2": "b"}),
        ("s.json", '[{"id": 1, "t": "a"}, {"id": 2, "t": NaN}]', [], {"1": "a"}),
        ("s.json", json.dumps({"ok": True, "rows": [{"id": 1, "t": {"$base64": True, "encoded": b64encode(BLUE).decode()}}]}), [], {"1": BLUE}),
        ("s.csv", f'id,i\n1,"{DATA_URI}"\n', ["--image", "i"], {"1": BLUE}),
    ],
)  # fmt: skip
def test_rows_that_are_understood(name, content, options, expected, embed):
    result = embed(name, content, *options)
    assert (result.contents, result.status) == (expected, 0 if expected else 1), result.said


@pytest.mark.parametrize(
    ("name", "content", "expected", "reasons"),
    [
        ("s.csv", table("3;a;b", "4", "5;fine"), SHOES | {"5": "fine"}, ["line 4: it has 3 cells; expected 2, as the first line has", "line 5: it has 1 cells; expected 2, as the first line has"]),
        ("s.csv", table('3;"open', '4;"b" c', "5;fine"), SHOES | {"5": "fine"}, ["line 4: it is not CSV: ';' expected after '\"'", "line 5: it is not CSV: ';' expected after '\"'"]),
        ("s.csv", table("3;fine", '4;"open'), SHOES | {"3": "fine"}, ["line 5: it is not CSV: unexpected end of data"]),
        ("s.csv", table("3;bl\xe5b", "4;é").encode("latin-1").replace(b"\xe9", "é".encode()), SHOES | {"4": "é"}, ["line 4: column 'title' has bytes that are not UTF-8; --encoding names another one"]),
        ("s.csv", table("3;").encode()[:-1] + b"\xff\n", SHOES, ["line 4: column 'title' has bytes that are not UTF-8; --encoding names another one"]),
        ("s.csv", table("3;caf").encode()[:-1] + b"\xc3\n", SHOES, ["line 4: column 'title' has bytes that are not UTF-8; --encoding names another one"]),
        ("s.csv", table("3;a\0b"), SHOES, ["line 4: column 'title' has bytes that are NUL"]),
        ("s.jsonl", b'{"id": 1, "t": "a"}\n{"id": 2, "t": \n\n{"id": 3, "t": "\xff"}\n7\n{"id": 4, "t": "d"}\n', {"1": "a", "4": "d"}, ["line 2: it is not JSON: Expecting value: column 15 (char 14)", "line 4: column 't' has bytes that are not UTF-8; --encoding names another one", "line 5: 7 is not a row; expected an object of columns"]),
        ("s.json", '[{}, {"id": 1, "t": "a"}, {"id": 2, "t": {"$base64": true, "encoded": 7}}]', {"1": "a"}, ["row 1: it has no columns", "row 3: it has a BLOB that is not base64: argument should be a bytes-like object or ASCII string, not 'int'"]),
        ("s.json", '[{"id": 1, "t": "a"}, 3, {"t": "no id"}]', {"1": "a"}, ["row 2: 3 is not a row; expected an object of columns", "row 3: it has no column 'id'"]),
        ("s.json", '[{"id": "7", "t": "a"}, {"id": 7, "t": "b"}]', {"7": "a"}, ["row 2: its id '7' is that of row 1 too"]),
        ("s.json", '[{"id": 7, "t": "a"}, {"id": 1.0, "t": "b"}, {"id": true, "t": "b"}, {"id": [1], "t": "b"}, {"id": " ", "t": "b"}, {"id": null, "t": "b"}]', {"7": "a"}, ["row 2: its id is a number with a point, 1.0; expected a text or a whole number", "row 3: its id is true or false, True; expected a text or a whole number", "row 4: its id is a list, [1]; expected a text or a whole number", "row 5: it has no id in its first column", "row 6: it has no id in its first column"]),
    ],
)  # fmt: skip
def test_a_row_that_is_not_understood_is_left_out_with_its_line_and_the_reason(name, content, expected, reasons, embed):
    result = embed(name, content)
    assert (result.contents, result.status) == (expected, 1)
    said = result.said.splitlines()[1:]
    assert said[: len(reasons)] == reasons
    assert re.search(f"{len(expected)} (rows? )?embedded in ", said[-2])
    assert said[-2].endswith(f"{len(reasons)} that could not be read")
    assert said[-1] == f"Error: {len(reasons)} of {len(reasons) + len(expected)} could not be embedded"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("s.csv", "id\n1\n2\n", "there is nothing to embed: no row has a text beside its id and its metadata"),
        ("s.csv", "id,title\n1,\n2, \n", "there is nothing to embed: no row has a text beside its id and its metadata"),
        ("s.csv", "", "{} cannot be read: it is empty"),
        ("s.csv", "1,Red\n2,Blue\n", "{} cannot be read: its first line begins with '1'; expected a line with the names of the columns"),
        ("s.csv", "имя,т\n1,обувь\n".encode("cp1251"), "{} cannot be read: its first line cannot be decoded; name its encoding with --encoding"),
        ("s.csv", b"PK\x03\x04\x00\x00abc", "{} cannot be read: it is no text, but begins with the bytes 504b030400006162"),
        ("s.csv", BLUE, "{} cannot be read: it is no text, but begins with the bytes 89504e470d0a1a0a"),
        ("s.json", '{"ok": false, "error": "no such table: x"}', "{} cannot be read: it is an error: 'no such table: x'"),
        ("s.json", '{"database": "d", "tables": [{"name": "t"}]}', "{} cannot be read: it is an answer of Datasette that has no rows"),
        ("s.json", "[1, 2, 3]", "{} cannot be read: it is a list of 1...; expected one of objects (_shape=array)"),
        ("s.json", '[["id", "t"], [1, "a"]]', "{} cannot be read: it is a list of ['id', 't']...; expected one of objects (_shape=array)"),
        ("s.json", '{"type": "FeatureCollection", "features": [{"id": 1, "t": "a"}]}', "{} cannot be read: it is an object with a list of objects, 'features'; expected that list alone"),
        ("s.json", '{"id": {"0": 1, "1": 2}, "t": {"0": "Red", "1": "Blue"}}', "{} cannot be read: it is a table by columns; expected a list of rows, as to_json(orient='records') writes it"),
        ("s.json", '{"1": "Red", "2": "Blue"}', "{} cannot be read: it is an object whose columns have numbers for names; expected a list of rows"),
        ("s.json", "<html>", "{} cannot be read: it is an HTML page, not rows"),
    ],
)  # fmt: skip
def test_a_file_that_has_nothing_to_embed_is_an_error(name, content, sentence, embed, tmp_path):
    result = embed(name, content)
    assert (result.contents, result.status) == ({}, 1)
    assert result.said.splitlines()[-1] == f"Error: {sentence.format(tmp_path / name)}"


def test_what_was_guessed_and_what_is_missing_is_said(embed):
    assert "; read as cp1252, because it is not UTF-8\n" in embed("s.csv", table("3;é").encode("cp1252")).said
    assert "3 rows: 2 there already, 1 without a text\n" in embed("e.csv", table("3;")).said
    assert (
        "; Datasette has more rows than this page of them\n" in embed("s.json", json.dumps(RESULT | {"next": "2"})).said
    )
    assert (
        "; Datasette left rows out of this answer\n" in embed("s.json", json.dumps(RESULT | {"truncated": True})).said
    )


@pytest.mark.parametrize("content", [table(), json.dumps(RESULT), "\n".join(map(json.dumps, RESULT["rows"]))])
def test_rows_come_from_standard_input(content, embed):
    result = embed("-", None, stdin=content.encode())
    assert (result.contents, result.status) == (SHOES, 0), result.said


@pytest.mark.parametrize(
    "sql",
    [
        "select * from shoes;",
        "select * from shoes -- all of them",
        "select * from shoes; -- all of them\n",
        "/* shoes */ with s as (select * from shoes) select * from s ;",
        "values ('1', 'Red shoe'), ('2', 'Blue boot')",
        "select sku, rtrim(substr(title, 1, 4)) as part, ltrim(substr(title, instr(title, ' '))) as part from shoes",
    ],
)
@pytest.mark.parametrize("name", ["shop.db", "to.db"])
def test_a_query_is_run_as_it_is(sql, name, embed, tmp_path):
    with sqlite3.connect(tmp_path / name) as connection:
        connection.execute("create table shoes (sku, title)")
        connection.executemany("insert into shoes values (?, ?)", SHOES.items())
    result = embed(name, None, "--sql", sql)
    assert (result.contents, result.status) == (SHOES, 0), result.said


@pytest.fixture
def shop(tmp_path) -> Path:
    """A database with a table of shoes."""
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table shoes (sku, title)")
        connection.executemany("insert into shoes values (?, ?)", SHOES.items())
    return tmp_path / "shop.db"


@pytest.mark.parametrize(
    "sql",
    [
        "select * from shoes;;",
        "select * from shoes ; ; -- ;\n ;/* ; */",
        "; select * from shoes",
        "select sku, title as ';;' from shoes -- ;",
        "select shoes.* from shoes join pragma_table_info('shoes') as columns on columns.name = 'sku'",
    ],
)
def test_semicolons_and_comments_around_a_query_are_no_part_of_it(sql, shop, embed):
    assert embed("shop.db", None, "--sql", sql).contents == SHOES


def test_a_query_leaves_no_files_beside_its_source(shop, embed):
    with closing(sqlite3.connect(shop)) as connection:
        connection.execute("pragma journal_mode = wal")
    before = shop.read_bytes()
    assert embed("shop.db", None, "--sql", "select * from shoes").contents == SHOES
    assert shop.read_bytes() == before
    assert sorted(file.name for file in shop.parent.glob("*.db*")) == ["shop.db", "to.db"]


READING = "--sql cannot be run: it may only read"


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("attach 'evil.db' as x", READING),
        ("attach 'file:evil.db?mode=rwc' as x;", READING),
        ("vacuum into 'evil.db'", READING),
        ("detach main", READING),
        ("pragma journal_mode = wal", READING),
        ("pragma user_version = 7", READING),
        ("pragma query_only = 0", READING),
        ("pragma wal_checkpoint", READING),
        ("delete from shoes returning sku, title", "--sql cannot be run: attempt to write a readonly database"),
        ("create table evil (a)", "--sql cannot be run: attempt to write a readonly database"),
        ("select 1, 2; select 3, 4", "--sql cannot be run: You can only execute one statement at a time."),
        ("select * from shoes where 0", "there is nothing to embed: the query of {} gives no row"),
        ("pragma foreign_key_list(shoes)", "there is nothing to embed: the query of {} gives no row"),
        ("begin", "--sql cannot be run: it is no query that gives rows"),
        (" ;; -- nothing", "--sql cannot be run: it is no query that gives rows"),
        ("select sku, title, title from shoes", "two columns have the name 'title', which an option names; rename one"),
    ],
)
@pytest.mark.parametrize("to", ["to.db", "shop.db"])
def test_a_query_that_does_more_than_read_or_has_no_row_is_an_error(sql, sentence, to, shop, embed, monkeypatch):
    monkeypatch.chdir(shop.parent)
    before = shop.read_bytes()
    result = embed("shop.db", None, "--sql", sql, "--metadata", "title", "-d", to)
    assert (result.contents, result.status) == ({}, 1)
    assert result.said.splitlines()[-1] == f"Error: {sentence.format(shop)}"
    assert {file.name for file in shop.parent.iterdir() if file.suffix == ".db"} <= {"shop.db", "to.db"}
    assert shop.read_bytes() == before or sql.endswith(
        "from shoes"
    )  # where the collection is made before the first row


@pytest.mark.parametrize(
    ("content", "found"),
    [(b"id,t\n1,a\n", "text"), (b"", "empty"), (BLUE, "PNG"), (b"[]", "JSON"), (b"<html>", "an HTML page"), (b"\0\1", "binary data")],
)  # fmt: skip
def test_a_query_of_a_file_that_is_no_sqlite_file_is_an_error(content, found, embed, tmp_path):
    result = embed("s.csv", content, "--sql", "select 1, 'a'")
    assert (result.contents, result.status) == ({}, 1)
    assert result.said == f"Error: {tmp_path}/s.csv is {found}; --sql reads a SQLite file\n"


@pytest.mark.parametrize(("name", "content"), [("s.csv", "id,t\n"), ("s.json", "[]"), ("s.csv", ""), ("-", None)])
def test_a_source_without_rows_is_an_error_and_makes_no_collection(name, content, embed, tmp_path):
    result = embed(name, content)
    assert result.status == 1
    assert "there is nothing to embed" in result.said or "it is empty" in result.said
    assert not (tmp_path / "to.db").exists()


def test_ids_texts_and_metadata_of_a_query_are_checked(embed, tmp_path):
    rows = [
        (1, "a", "m"),
        (None, "b", "m"),
        (b"3", "c", "m"),
        (4.5, "d", "m"),
        ("1", "e", "m"),
        (6, None, "m"),
        (7, "g", b"m"),
    ]
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table shoes (sku, title, kept)")
        connection.executemany("insert into shoes values (?, ?, ?)", rows)
        connection.execute("insert into shoes values (8, cast(x'ff' as text), 'm'), (9, 'i', 9e999), (10, 'j', 'm')")
    result = embed("shop.db", None, "--sql", "select * from shoes", "--metadata", "kept")
    assert (result.contents, result.status) == ({"1": "a", "10": "j"}, 1)
    said = result.said.splitlines()[1:]
    assert said[:-2] == [
        "row 2: it has no id in its first column",
        "row 3: its id is a BLOB of 1 byte; expected a text or a whole number",
        "row 4: its id is a number with a point, 4.5; expected a text or a whole number",
        "row 5: its id '1' is that of row 1 too",
        "row 7: column 'kept' is a BLOB of 1 byte, which metadata cannot hold",
        "row 8: column 'title' has bytes that are not UTF-8",
        "row 9: column 'kept' is inf, which metadata cannot hold",
    ]
    assert re.match(r"10 rows: 2 embedded in .*, 1 without a text, 7 that could not be read$", said[-2])


def test_images_that_a_column_names_are_files_data_uris_or_errors(embed, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "a.png").write_bytes(BLUE)
    rows = [
        "1,a.png",
        "2,pipe.png",
        "3,https://example.com/a.png",
        f'4,"{DATA_URI}"',
        '5,"data:image/png;base64,abc"',
        "6,/dev/zero",
    ]
    result = embed("s.csv", "\n".join(["id,i", *rows]), "--image", "i")
    assert (result.contents, result.status) == ({"1": BLUE, "4": BLUE}, 1)
    assert result.said.splitlines()[1:-2] == [
        f"2: {tmp_path}/pipe.png is no regular file",
        "3: the image 'https://example.com/a.png' is on the web; expected the path of a file",
        "5: the data URI 'data:image/png;base64,abc' is not base64: Incorrect padding",
        "6: /dev/zero is no regular file",
    ]


def test_a_data_uri_in_a_column_of_texts_is_refused(embed):
    result = embed("s.csv", f'id,title\n1,"{DATA_URI}"\n2,Red\n')
    assert (result.contents, result.status) == ({"2": "Red"}, 1)
    assert result.said.splitlines()[1].startswith(
        "1: the text is a data URI or an image in base64; send it as an image"
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with two photos, and with what is no image, hidden, special, linked or a NAS's own."""
    jpeg = saved(photo(20, 20), "JPEG")
    (tmp_path / "photos" / "old").mkdir(parents=True)
    photos = tmp_path / "photos"
    (photos / "a.jpg").write_bytes(jpeg)
    (photos / "old/b.JPG").write_bytes(jpeg)
    return photos


def test_which_file_is_an_image_is_told_by_its_first_bytes(folder, embed):
    for name in ["c.jfif", "d.jpe", "e", "f.txt", "g.png"]:
        (folder / name).write_bytes(saved(photo(20, 20), "JPEG"))
    for name, content in {"h.mp4": b"....ftypmp42", "i.mp4": b"", "j.TXT": b"BM is not an image", "k": b"text"}.items():
        (folder / name).write_bytes(content)
    result = embed(folder)
    assert (set(result.contents), result.status) == (
        {"a.jpg", "old/b.JPG", "c.jfif", "d.jpe", "e", "f.txt", "g.png"},
        0,
    )
    assert result.said.rstrip().endswith("; 4 files not looked at: 2 .mp4, 1 .txt, 1 without a suffix")


def test_scans_are_images_and_raw_photos_which_are_tiff_files_too_are_not(folder, embed):
    for name in ["scan.tif", "scan", "photo.NEF", "photo.dng"]:
        (folder / name).write_bytes(saved(photo(20, 20), "TIFF"))
    result = embed(folder)
    assert (set(result.contents), result.status) == ({"a.jpg", "old/b.JPG", "scan", "scan.tif"}, 0)
    assert result.said.rstrip().endswith("; 2 files not looked at: 1 .nef, 1 .dng")


def test_a_file_that_is_named_as_an_image_and_is_none_is_an_error(folder, embed):
    (folder / "c.jpg").write_bytes(b"abc")
    result = embed(folder)
    assert result.status == 1
    assert "\nc.jpg: not an image but text (3 bytes); expected " in result.said


def test_pipes_sockets_and_links_to_folders_are_not_opened_but_said(folder, embed):
    os.mkfifo(folder / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s.jpg"))
    (folder / "loop").symlink_to(folder)
    (folder / "c.jpg").symlink_to("a.jpg")
    result = embed(folder)
    assert (set(result.contents), result.status) == ({"a.jpg", "c.jpg", "old/b.JPG"}, 0)
    assert (
        "; 2 files not looked at: 2 of another kind (pipe, socket, device); 1 link to a folder not followed: loop\n"
        in result.said
    )


def test_what_cannot_be_read_is_named_and_makes_the_end_1(folder, embed, monkeypatch):
    (folder / "self.jpg").symlink_to("self.jpg")
    (folder / "gone").symlink_to("nowhere")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "old":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    result = embed(folder)
    assert (set(result.contents), result.status) == ({"a.jpg"}, 1)
    assert result.said.splitlines()[1:-2] == [
        f"gone: {folder}/gone cannot be read: No such file or directory",
        f"self.jpg: {folder}/self.jpg cannot be read: Too many levels of symbolic links",
        "old: this folder cannot be read: Permission denied",
    ]


def test_the_files_of_nas_systems_are_excluded_and_so_are_patterns(folder, embed):
    own = [
        "@eaDir/a.jpg",
        "old/@eaDir/b.jpg",
        "#recycle/c.jpg",
        ".@__thumb/a.jpg",
        "$Recycle.Bin/x.jpg",
        ".Trash-0/x.jpg",
    ]
    for name in [*own, ".DS_Store", "Thumbs.db", "._a.jpg", "raw/x.jpg", "old/raw.jpg", "c_small.jpg"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(saved(photo(20, 20), "JPEG"))
    result = embed(folder, None, "--exclude", "raw/", "--exclude", "*_SMALL.*", "--exclude", "old/raw*")
    assert (set(result.contents), result.status) == ({"a.jpg", "old/b.JPG"}, 0)
    assert result.said.rstrip().endswith(
        "; 12 excluded: 4 hidden, 2 @eaDir, 1 #recycle, 1 $RECYCLE.BIN, 1 Thumbs.db, 1 *_SMALL.*, 1 raw/, 1 old/raw*"
    )


def test_patterns_that_match_nothing_are_said(folder, embed):
    (folder / ".DS_Store").write_bytes(b"x")
    patterns = ["old", "*.JPEG", "old/b.jpg", ".ds_store", "*.JPEG", "*.jp[xy]\x1b"]
    result = embed(folder, None, *(part for pattern in patterns for part in ("--exclude", pattern)))
    assert (set(result.contents), result.status) == ({"a.jpg"}, 0)
    assert result.said.rstrip().endswith(
        "; 2 excluded: 1 hidden, 1 old; nothing matches --exclude '*.JPEG', 'old/b.jpg', '*.jp[xy]\\x1b'"
    )


def test_a_folder_that_has_files_and_no_image_is_an_error(embed, tmp_path):
    notes = tmp_path / "notes"
    notes.mkdir()
    nothing = f"Error: there is nothing to embed: no file in {notes} is an image"
    assert embed(notes) == (1, f"{nothing}\n", {})
    (notes / "a.txt").write_text("a")
    (notes / ".b.jpg").write_text("b")
    assert embed(notes) == (1, f"{nothing}; 1 file not looked at: 1 .txt; 1 excluded: 1 hidden\n", {})


def test_names_that_are_not_utf8_or_have_control_characters_break_nothing(folder, embed):
    os.rename(os.fsencode(folder / "a.jpg"), os.fsencode(folder) + b"/\xff.jpg")
    (folder / "\x1b[31m.jpg").write_bytes(b"no image")
    (folder / "x.\x1b]0;").write_bytes(b"no image")
    (folder / "tab\t.jpg").write_bytes(saved(photo(20, 20), "JPEG"))
    result = embed(folder)
    assert (set(result.contents), result.status) == ({"tab\t.jpg", "old/b.JPG"}, 1)
    assert "\x1b" not in result.said
    assert "�.jpg: its name or text is not UTF-8" in result.said
    assert "�[31m.jpg: not an image" in result.said


@pytest.mark.parametrize("name", ["", " ", "\t", "\u200b", "a\nb", "\x1b[31m", "a\x7f"])
def test_a_collection_has_a_name_that_pages_can_show(name, folder, embed, tmp_path):
    result = embed(folder, None, "-c", name)
    assert result.status == 2
    assert "expected a name that is not blank and has no control characters" in result.said
    assert not (tmp_path / "to.db").exists()


@pytest.mark.parametrize("name", ["a/b", "../x", ".", "blå bær", "日本", "x.json", "~2F", "👩‍👧"])
def test_other_names_are_names(name, folder, embed, tmp_path):
    assert embed(folder, None, "-c", name).status == 0
    assert llm.Collection.exists(Database(tmp_path / "to.db"), name)
