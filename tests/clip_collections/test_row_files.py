"""A file of rows gives the right ids and texts, or a sentence that says what it is. No model is needed for that."""

from __future__ import annotations

import csv
import json
import sys
from typing import NamedTuple

import pytest

from clip_collections.entry import NothingToEmbed, content_of
from clip_collections.sources import Reading, read_file_of_rows
from llm_clip_onnx.errors import InputError, cited


class Rows(NamedTuple):
    """texts: by id. bad: the reasons, by id or place. notes: what the summary says."""

    texts: dict[str, str]
    bad: dict[str, str]
    notes: list[str]


@pytest.fixture
def read(tmp_path):
    """The rows of a file of this name and content, or the sentence that refuses it."""

    def rows_of(name: str, content: str | bytes, reading: Reading | None = None) -> Rows | str:
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            source = read_file_of_rows(file, name, tmp_path, reading or Reading())
            return rows_in(source)
        except InputError as error:
            return str(error)

    return rows_of


def rows_in(source) -> Rows:
    texts, bad = {}, {}
    for entry in source.entries:
        try:
            texts[entry.id] = content_of(entry)
        except InputError as error:
            bad[entry.id] = "no text" if isinstance(error, NothingToEmbed) else str(error)
    assert source.count == len(texts) + len(bad)
    return Rows(texts, bad, list(source.notes))


def guess(delimiter: str) -> list[str]:
    return [f"read with {delimiter!r} between cells; --delimiter says otherwise"]


@pytest.mark.parametrize(
    ("lines", "texts", "notes"),
    [
        # two delimiters split all rows alike: the one that makes more cells, else the one with the shorter id
        (["id;lat,lon;text", "1;59.9,10.7;Oslo", "2;60.4,5.3;Bergen"], {"1": "59.9,10.7 Oslo", "2": "60.4,5.3 Bergen"}, guess(";")),
        (["id|en,fr|x", "1|red,rouge|a", "2|blue,bleu|b"], {"1": "red,rouge a", "2": "blue,bleu b"}, guess("|")),
        (["lat,lon;id;text", "1,2;3;Oslo", "4,5;6;Bergen"], {"1,2": "3 Oslo", "4,5": "6 Bergen"}, guess(";")),
        (["id\ta,b\tc", "1\tx,y\tz"], {"1": "x,y z"}, guess("\t")),
        (["id\ta|b\tc;d", "1\tx|y\tz;w"], {"1": "x|y z;w"}, guess("\t")),
        (["id,sizes;colours,text", "1,4;red,shoe", "2,5;blue,boot"], {"1": "4;red shoe", "2": "5;blue boot"}, guess(",")),
        (["id;title, colour", "1;Shoe, red", "2;Boot, blue"], {"1": "Shoe, red", "2": "Boot, blue"}, guess(";")),
        (["id;a,b", "1;x,y"], {"1": "x,y"}, guess(";")),
        (["id,a;b", "1,x;y"], {"1": "x;y"}, guess(",")),
        # one of them splits more rows alike
        (["id;lat,lon;text", "1;59.9,10.7;Oslo, Norway", "2;60.4,5.3;Bergen"], {"1": "59.9,10.7 Oslo, Norway", "2": "60.4,5.3 Bergen"}, []),
        (["id,title;subtitle", "1,Shoe; red", "2,Boot", "3,Hat"], {"1": "Shoe; red", "2": "Boot", "3": "Hat"}, []),
        (["name;alias,id,text", "Bob;B,1,tall; dark", "Ann,2,short"], {"Bob;B": "1 tall; dark", "Ann": "2 short"}, []),
        (["id,tags|old,text", "1,a|b|c,Red", "2,,Blue"], {"1": "a|b|c Red", "2": " Blue"}, []),
        # delimiters in quotes are none
        (['id,"a;b;c"', '1,"x;y;z"'], {"1": "x;y;z"}, []),
        (['"id","a;b"', '"1","x;y"'], {"1": "x;y"}, []),
        (['id;"a,b,c"', '1;"x,y,z"'], {"1": "x,y,z"}, []),
        (["[id],[title]", "1,Red"], {"1": "Red"}, []),
        (["<DATE>,<TIME>", "1,Red"], {"1": "Red"}, []),
    ],
)  # fmt: skip
def test_the_delimiter_is_the_one_that_splits_most_rows_alike_and_a_guess_is_said(lines, texts, notes, read):
    assert read("s.csv", "\n".join(lines)) == Rows(texts, {}, notes)


def test_one_broken_row_in_four_changes_no_delimiter(read):
    rows = read("s.csv", "id;lat,lon;text\n1;59,10;Oslo\n2;60,5;Bergen\n3;58,5;Stavanger;x\n")
    assert rows.texts == {"1": "59,10 Oslo", "2": "60,5 Bergen"}
    assert rows.bad == {"line 4": "it has 4 cells; expected 3, as the first line has"}
    assert rows.notes == guess(";")


def test_a_delimiter_that_is_given_is_not_said_and_a_line_ends_only_at_line_ends(read):
    assert read("s.csv", "id;a,b\n1;x,y", Reading(delimiter=",")) == Rows({"1;x": "y"}, {}, [])
    assert read("s.csv", "id;a\u2028b,c\n1;x,y").texts == {"1": "x,y"}
    assert read("s.json", '[{"id": 1, "t": "a"}]', Reading(delimiter=";")) == (
        "s.json cannot be read: it is JSON; --delimiter cannot be used with it"
    )


@pytest.mark.parametrize(
    ("lines", "texts", "notes"),
    [
        (["# exported in May, by me", "id,title", "1,Red"], {"1": "Red"}, ["read without the comment '# exported in May, by me'"]),
        (["#made by a shop", "## 2024", "", "id;title", "1;Red"], {"1": "Red"}, ["read without the comment '#made by a shop' and 1 others"]),
        (["sep=;", "# x", "id;title", "1;Red"], {"1": "Red"}, []),
        (["# " + "x" * 100, "id,title", "1,Red"], {"1": "Red"}, ["read without the comment '# " + "x" * 55 + "...", ]),
        (["#,title", "1,Red"], {"1": "Red"}, []),
        (["#\ttitle", "1\tRed"], {"1": "Red"}, []),
        (["#id,title", "1,Red"], {"1": "Red"}, []),
        (["id,title", "# 1,Red", "#2,Blue"], {"# 1": "Red", "#2": "Blue"}, []),
    ],
)  # fmt: skip
def test_a_comment_before_the_names_of_the_columns_is_left_out_and_said(lines, texts, notes, read):
    rows = read("s.csv", "\n".join(lines))
    assert (rows.texts, rows.bad) == (texts, {})
    assert [note[:80] for note in rows.notes] == [note[:80] for note in notes]


def test_the_line_of_a_row_below_a_comment_is_its_line_in_the_file(read):
    assert read("s.csv", "# a\n\nid,title\n1,Red\n2\n").bad == {
        "line 5": "it has 1 cells; expected 2, as the first line has"
    }


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("s.json", "id,title\n1,Red\n2,Blue\n", Rows({"1": "Red", "2": "Blue"}, {}, ["read as CSV, although its name ends with .json"])),
        ("s.jsonl", "id;title\n1;Red\n", Rows({"1": "Red"}, {}, ["read as CSV, although its name ends with .jsonl"])),
        ("s.csv", '[{"id": 1, "t": "Red"}]', Rows({"1": "Red"}, {}, [])),
        ("s.tsv", '{"id": 1,\n "t": "Red"}', Rows({"1": "Red"}, {}, [])),
        ("s.csv", '{"id": 1, "t": "Red"}\n{"id": 2, "t": "Blue"}\n', Rows({"1": "Red", "2": "Blue"}, {}, [])),
        ("s.csv", '# rows\n{"id": 1, "t": "Red"}\n{"id": 2, "t": "Blue"}\n', Rows({"1": "Red", "2": "Blue"}, {"line 1": "it is not JSON: Expecting value: column 1 (char 0)"}, [])),
        ("s.json", 'x": 1, "t": "Red"}\n{"id": 2, "t": "Blue"}\n', "s.json cannot be read: it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("s.json", '"Not found"', "s.json cannot be read: it is 'Not found'; expected a list of rows"),
        ("s.csv", "{'id': 1, 't': 'Red'}\n{'id': 2, 't': 'Blue'}\n", "s.csv cannot be read: it is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)  # fmt: skip
def test_the_content_decides_whether_it_is_csv_or_json(name, content, expected, read):
    assert read(name, content) == expected


PAGE = (
    "<!doctype html>\n<html><head><title>Sign in, please</title></head>\n<body><p>a,b</p>\n<p>c,d</p></body></html>\n"
)


@pytest.mark.parametrize("name", ["s.csv", "s.json", "s.jsonl", "standard input"])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (PAGE, "it is an HTML page, not rows; it says 'Sign in, please'"),
        (PAGE.replace("\n", ""), "it is an HTML page, not rows; it says 'Sign in, please'"),
        ("\ufeff\n  " + PAGE.upper(), "it is an HTML page, not rows; it says 'SIGN IN, PLEASE'"),
        ("<html><script>a, b</script><body>Bad &amp; wrong, 502</body>", "it is an HTML page, not rows; it says 'Bad & wrong, 502'"),
        ("<h1>404, not found</h1>", "it is HTML or XML, not rows; it says '404, not found'"),
        ("<!-- a, b -->\n<p>\nno, page\n</p>", "it is HTML or XML, not rows; it says 'no, page'"),
        ("<?xml version='1.0'?><Error><Code>NoSuchKey</Code>\n<Message>No, none</Message></Error>", "it is XML, not rows; it says 'NoSuchKey No, none'"),
        ("<rss><a>1</a>, 2\n</rss>", "it is HTML or XML, not rows; it says '1 , 2'"),
        ("<html>" + "x" * 100, "it is an HTML page, not rows; it says '" + "x" * 56 + "..."),
        ("HTTP/1.1 200 OK\r\nContent-Type: text/csv\r\n\r\nid,t\n1,a\n", "it begins with the headers of HTTP, 'HTTP/1.1 200 OK'; curl sends none without -i"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "it is a Git LFS pointer, not rows; git lfs pull fetches the file"),
        ("%PDF-1.4\n1, 2\n3, 4\n", "it is a PDF, not rows"),
        (b"SQLite format 3\0rows", "it is a SQLite file, not rows; --sql names its rows"),
    ],
)  # fmt: skip
def test_a_page_in_place_of_rows_is_refused_with_what_it_says(name, content, sentence, read):
    assert str(read(name, content)).startswith(f"{name} cannot be read: {sentence}")


ZERO_WIDTH = ["\u200b", "\ufeff\u2060", "\u00ad\u3000", "\u200d\ufe0f", "\u3164\u2800", "\u180e\u202e", " \t\u00a0"]


@pytest.mark.parametrize("blank", ZERO_WIDTH)
def test_ids_and_texts_that_show_nothing_are_blank(blank, read):
    rows = [{"id": 1, "t": "Red"}, {"id": 2, "t": blank}, {"id": blank, "t": "Blue"}]
    expected = Rows({"1": "Red"}, {"2": "no text", "row 3": "it has no id in its first column"}, [])
    assert read("s.json", json.dumps(rows)) == expected
    lines = f"id,t\n1,Red\n{blank},{blank}\n2,{blank}\n{blank},Blue\n"
    assert read("s.csv", lines) == Rows(
        {"1": "Red"}, {"2": "no text", "line 5": "it has no id in its first column"}, []
    )
    assert read("s.csv", f"{blank}\n") == "s.csv cannot be read: it is empty"


@pytest.mark.parametrize("text", ["\u2764\ufe0f", "👩‍👧", "a\u200b", "\u0301", "0", "\U000e0067x"])
def test_a_text_that_shows_something_is_none_of_them(text, read):
    assert read("s.json", json.dumps([{"id": text, "t": text}])).texts == {text: text}


def test_the_limit_of_cells_of_the_process_is_as_it_was(read):
    before = csv.field_size_limit(1000)
    try:
        assert read("s.csv", f"id,t\n1,{'x' * 200_000}\n").texts == {"1": "x" * 200_000}
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


ERRORS = [
    ({"ok": False, "error": "no such table: x", "title": None}, "no such table: x"),
    ({"ok": False, "error": "Forbidden", "message": "x", "status": 403}, "Forbidden"),
    ({"detail": "Not found."}, "Not found."),
    ({"detail": [{"loc": ["query", "k"], "msg": "field required", "type": "missing"}]}, "field required"),
    ({"message": "Bad credentials", "documentation_url": "https://example.com/", "status": "401"}, "Bad credentials"),
    ({"Message": "User: x is not authorized"}, "User: x is not authorized"),
    ({"id": "req-1", "statusCode": 429, "message": "Slow down"}, "Slow down"),
    ({"code": 404, "message": "No shop"}, "No shop"),
    ({"message": "No shop", "id": 5}, "No shop"),
    ({"cod": "404", "message": "city not found"}, "city not found"),
    ({"error": "gone", "id": 5}, "gone"),
    ({"id": 5, "error": "gone"}, "gone"),
    ({"Response": "False", "Error": "Movie not found!"}, "Movie not found!"),
    ({"error": {"code": 404, "message": "Requested entity was not found."}}, "Requested entity was not found."),
    ({"type": "error", "error": {"type": "overloaded", "message": "Overloaded"}}, "Overloaded"),
    ({"jsonrpc": "2.0", "error": {"code": -32601, "message": "No method"}, "id": 1}, "No method"),
    ({"errors": [{"message": "Cannot query field", "locations": []}], "data": None}, "Cannot query field"),
    ({"errors": ["a", "b"]}, "a"),
    ({"errors": {"name": ["is blank"]}}, {"name": ["is blank"]}),
    ({"error": True, "msg": "no"}, "no"),
    ({"error_description": "expired", "error": "invalid_token"}, "expired"),
    ({"fault": {"faultstring": "Invalid key", "detail": {"errorcode": "x"}}}, "x"),
    ({"timestamp": 1, "status": 404, "error": "Not Found", "path": "/x"}, "Not Found"),
    ({"type": "about:blank", "title": "Not Found", "status": 404}, "Not Found"),
    ({"status": "error", "message": "no"}, "no"),
    ({"success": False, "id": 3, "title": "x"}, "x"),
    ({"meta": {"code": 400, "errorMessage": "no"}, "error": {}, "errors": {"a": 1}}, {"a": 1}),
    ({"exception": "ValueError", "traceback": "..."}, "ValueError"),
    ([{"message": "Session expired", "errorCode": "INVALID_SESSION_ID"}], "Session expired"),
    ([{"error": "a"}, {"error": "b"}], "a"),
    ({"message": "x" * 500}, "x" * 500),
    ({"errorCode": "E0000011", "errorSummary": "Invalid token", "errorId": "x"}, "E0000011"),
    ({"errcode": 1, "errmsg": "no"}, "no"),
    ({"statusCode": 500, "body": "no"}, "no"),
    ({"non_field_errors": ["no"], "id": 1}, "no"),
    ({"apierror": {"status": "NOT_FOUND", "message": "no"}}, "no"),
    ({"faults": ["no"]}, "no"),
    ([{"status": "error", "message": "no"}], "no"),
]


@pytest.mark.parametrize("name", ["s.json", "s.csv", "s.jsonl"])
@pytest.mark.parametrize(("document", "says"), ERRORS)
def test_an_error_in_place_of_rows_is_refused_with_what_it_says(name, document, says, read):
    sentence = read(name, json.dumps(document))
    assert sentence == f"{name} cannot be read: it is an error: {cited(says)}"
    assert len(sentence) < 120


@pytest.mark.parametrize(
    ("document", "texts"),
    [
        ([{"id": 1, "message": "hello", "error": "E1"}, {"id": 2, "message": "bye", "error": None}], {"1": "hello E1", "2": "bye "}),
        ([{"code": 5, "message": "Red shoe"}], {"5": "Red shoe"}),
        ({"id": 1, "message": "hello"}, {"1": "hello"}),
        ({"sku": "a", "detail": "Red", "status": "sold"}, {"a": "Red sold"}),
        ({"id": 1, "title": "Red", "description": "Shoe"}, {"1": "Red Shoe"}),
        ({"ok": True, "error": None, "rows": [{"id": 1, "t": "a"}]}, {"1": "a"}),
        ({"error": {"name": "error", "t": "a"}, "warning": {"name": "warning", "t": "b"}}, {"error": "a", "warning": "b"}),
        ({"id": 1, "t": "a", "tags": []}, {"1": "a []"}),
    ],
)  # fmt: skip
def test_rows_with_the_names_of_errors_are_rows(document, texts, read):
    assert read("s.json", json.dumps(document)) == Rows(texts, {}, [])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("s.csv", "id,title\n", "s.csv was read as CSV and has no row below its first line, 'id,title'"),
        ("s.csv", "id;title\r\n\r\n;\r\n", "s.csv was read as CSV and has no row below its first line, 'id;title'"),
        ("s.csv", "Not Found", "s.csv was read as CSV and has no row below its first line, 'Not Found'"),
        ("s.csv", "# a\n" + "x" * 100, "s.csv was read as CSV and has no row below its first line, '" + "x" * 56 + "..."),
        ("s.csv", "sep=;\nid;title", "s.csv was read as CSV and has no row below its first line, 'id;title'"),
        ("s.csv", "# a\n\n# b\n", "s.csv was read as CSV and has no row"),
        ("s.json", "[]", "s.json was read as JSON and has no row"),
        ("s.json", " {} \n", "s.json was read as JSON and has no row"),
        ("s.csv", "[]", "s.csv was read as JSON and has no row"),
        ("s.jsonl", "[]\n", "s.jsonl was read as JSON and has no row"),
        ("s.json", '{"ok": true, "rows": []}', "s.json was read as JSON and has no row"),
        ("s.json", '{"database": "d", "rows": [], "columns": ["id"], "truncated": false}', "s.json was read as JSON and has no row"),
    ],
)  # fmt: skip
def test_a_file_without_rows_is_an_error(name, content, sentence, read):
    assert read(name, content) == f"there is nothing to embed: {sentence}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"count": 0, "next": null, "results": []}', "it is an object with an empty list, 'results'; expected a list of rows"),
        ('{"data": {"items": []}}', "it is an object with an empty list, 'items'; expected a list of rows"),
        ('{"data": {"items": [{"id": 1, "t": "a"}]}}', "it is an object with a list of objects, 'items'; expected that list alone"),
        ('{"responseHeader": {"status": 0}, "response": {"docs": []}}', "it is an object of objects that have no column in common; expected a list of rows"),
        ('{"data": {"id": 1, "t": "a"}}', "it is an object with an object, 'data'; expected a list of rows"),
        ('{"ok": true, "rows": null}', "it is an answer of Datasette that has no rows"),
        ("null", "it is None; expected a list of rows"),
        ("[[], []]", "it is a list of []...; expected one of objects (_shape=array)"),
    ],
)  # fmt: skip
def test_an_object_around_rows_is_refused(content, sentence, read):
    assert read("s.json", content) == f"s.json cannot be read: {sentence}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", "id,m,t,m\n1,a,b,c\n"),
        ("s.csv", "id,m,m,m_2\n1,a,b,c\n"),
        ("s.json", '{"rows": [[1, "a", "b"]], "columns": ["id", "m", "m"]}'),
        ("s.json", '[{"id": 1, "m": "a", "m": "b"}]'),
    ],
)
@pytest.mark.parametrize("reading", [Reading(metadata=["m"]), Reading(image="m"), Reading(metadata=["id", "m"])])
def test_an_option_cannot_name_a_name_that_two_columns_have(name, content, reading, read):
    assert read(name, content, reading) == "two columns have the name 'm', which an option names; rename one"


def test_columns_of_one_name_are_all_embedded_where_no_option_names_them(read):
    assert read("s.csv", "id,m,m\n1,a,b\n").texts == {"1": "a b"}
    assert read("s.json", '[{"id": 1, "m": "a", "m": "b"}]').texts == {"1": "a b"}
    assert read("s.csv", "id,m,m_2\n1,a,b\n", Reading(metadata=["m"])).texts == {"1": "b"}
    rows = read("s.json", '[{"id": 1, "m": "a", "t": "x"}, {"id": 2, "m": "a", "m": "b"}]', Reading(metadata=["m"]))
    assert rows.bad == {"row 2": "two columns have the name 'm', which an option names; rename one"}
    assert read("s.csv", "id,t\n1,a\n", Reading(image="")) == "there is no column '' among id, t"


@pytest.mark.parametrize("value", ['"\\ud800"', '["a", "\\udfff b"]', '{"\\ud83d": 1}', '{"a": [{"b": "\\ud800"}]}'])
def test_half_a_character_names_its_line(value, read):
    fault = "column 't' has half a character, a surrogate without its other half"
    lines = f'{{"id": 1, "t": "a"}}\n{{"id": "b", "t": {value}}}\n'
    assert read("s.jsonl", lines) == Rows({"1": "a"}, {"line 2": fault}, [])
    assert read("s.json", f'[{{"id": "b", "t": {value}}}]') == Rows({}, {"row 1": fault}, [])


def test_an_id_of_half_a_character_names_its_line(read):
    fault = "column 'id' has half a character, a surrogate without its other half"
    assert read("s.jsonl", '{"id": "\\ud800", "t": "a"}\n{"id": 2, "t": "\\ud83d\\ude00"}').bad == {"line 1": fault}


def test_numbers_that_are_too_large_are_read_and_no_setting_of_the_process_changes(read):
    before, digits = sys.get_int_max_str_digits(), "9" * 5000
    rows = read(
        "s.json", f'[{{"id": {digits}, "t": -{digits}}}, {{"id": 2, "t": 1e999}}, {{"id": 3, "t": [1e999, 1.5]}}]'
    )
    assert rows == Rows({digits: f"-{digits}", "3": "[null, 1.5]"}, {"2": "no text"}, [])
    assert sys.get_int_max_str_digits() == before


def test_a_value_that_is_nested_too_deep_is_a_fault_of_its_row(read):
    deep = "[" * 900 + "]" * 900
    rows = read("s.jsonl", f'{{"id": 1, "t": "a"}}\n{{"id": 2, "t": {deep}}}\n')
    assert rows.texts["1"] == "a"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("-5.5,a", "begins with '-5.5'"),
        ("2024-01-01,a", "begins with '2024-01-01'"),
        ("2024-01-01T10:00:00Z,a", "begins with '2024-01-01T10:00:00Z'"),
        ("1/2/2024 10:00,a", "begins with '1/2/2024 10:00'"),
        ("6fa459ea-ee8a-3ca4-894e-db77e160355e,a", "begins with '6fa459ea-ee8a-3ca4-8'"),
        ("photos/a.JPG,A cat", "has 'photos/a.JPG'"),
        ("cat,https://example.com/cat", "has 'https://example.com/cat'"),
        ('cat,"data:image/png;base64,AAAA"', "has 'data:image/png;base64,AAAA'"),
    ],
)
def test_a_first_line_that_is_a_row_is_refused(line, found, read):
    sentence = f"s.csv cannot be read: its first line {found}; expected a line with the names of the columns"
    assert read("s.csv", f"{line}\n{line}\n") == sentence


@pytest.mark.parametrize("names", ["id,price 2024", "a.b,1", "_id,jpg", "t2,.png", "3d,title"])
def test_names_with_digits_and_points_are_names(names, read):
    assert read("s.csv", f"{names}\nx,y\n").texts == {"x": "y"}


@pytest.mark.parametrize("delimiter", [":", "^", "~", " ", "\x01"[:0] + "/"])
def test_a_first_line_that_no_delimiter_splits_is_said(delimiter, read):
    rows = read("s.csv", f"sku{delimiter}title\na{delimiter}Red\n")
    assert rows.bad == {f"a{delimiter}Red": "no text"}
    assert rows.notes == ["read as one column; --delimiter names what is between cells"]


@pytest.mark.parametrize(
    "error", ['{"error": "late"}', '{"message": "late", "code": 504}', '{"ok": false, "error": "late"}']
)
def test_an_error_among_lines_of_json_is_no_row(error, read):
    row, why = '{"id": 1, "t": "a"}', "it is an error: 'late'"
    assert read("s.jsonl", f"{error}\n{row}\n{error}\n") == Rows({"1": "a"}, {"line 1": why, "line 3": why}, [])
    assert read("s.jsonl", f"{error}\n{error}\n") == Rows({}, {"line 1": why, "line 2": why}, [])
