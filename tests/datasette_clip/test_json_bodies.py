"""What is wrong with a body of JSON is said in the words of JSON, cut with `...`, at every endpoint that takes one."""

from __future__ import annotations

import asyncio
import json

import pytest
from datasette.app import Datasette

from stored import llms_database

EMBED, CLASSIFY, SEARCH = "/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/search/ids/things.json"
GIF = "R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
X80, CUT = "x" * 80, "x" * 56 + "..."
K = "expected a whole number from 1, of the labels to answer"
LABELS = "expected the name of a label set or a list of labels"
KEYS = "is not a key of this endpoint; expected texts, images, vectors,"
EMBED_KEYS, CLASSIFY_KEYS = f"{KEYS} format, normalize, orient", f"{KEYS} labels, templates, k, orient"
ROWS, OFFSET = "expected a whole number from 1 to 1000", "expected a whole number from 0 to 1000000"
QUERY = 'expected a query, or terms such as [{"text": "red"}]'
FIELDS = "is not a field of a search; expected q, id, img, k, offset, where"
SENTENCES = [
    *[
        (path, body, f"the body is {kind}; expected {expected}")
        for path, expected in [(EMBED, '{"texts": [...], "images": [...]}'), (CLASSIFY, '{"texts"'), (SEARCH, '{"q": ...}')]
        for body, kind in [([1], "a JSON array"), ("a", "a JSON string"), (5, "a JSON number"), (2.5, "a JSON number"), (None, "JSON null"), (True, "JSON true")]
    ],
    (EMBED, {"texts": [3]}, "texts[0]: 3 is not a string"),
    (EMBED, {"texts": None}, "texts[0]: null is not a string"),
    (EMBED, {"text": True}, "text[0]: true is not a string"),
    (EMBED, {"texts": [["a"]]}, 'texts[0]: ["a"] is not a string'),
    (EMBED, {"images": [{"a": X80}]}, 'images[0]: {"a": "' + "x" * 50 + "... is not a string"),
    (EMBED, {"vectors": [[1.5, 2]]}, "vectors[0]: [1.5, 2] is not a string"),
    (EMBED, {"texts": ["a"], "format": None}, "format is null; expected float, base64, hex"),
    (EMBED, {"texts": ["a"], "format": X80}, f"format is '{CUT}; expected float, base64, hex"),
    (EMBED, {"texts": ["a"], "normalize": None}, "normalize is null; expected 1 or 0"),
    (EMBED, {"texts": ["a"], "normalize": {}}, "normalize is {}; expected 1 or 0"),
    (EMBED, {"texts": ["a"], "orient": True}, "orient is true; expected exif, or nothing for llm-clip's reading"),
    (EMBED, {"texts": ["a"], "labels": "emoji"}, f"'labels' {EMBED_KEYS}"),
    (EMBED, {"texts": ["a"], "k": 3}, f"'k' {EMBED_KEYS}"),
    (EMBED, {"texts": ["a"], "templates": ["a {}"]}, f"'templates' {EMBED_KEYS}"),
    (CLASSIFY, {"images": [GIF], "format": "hex"}, f"'format' {CLASSIFY_KEYS}"),
    (CLASSIFY, {"images": [GIF], "normalize": True}, f"'normalize' {CLASSIFY_KEYS}"),
    (CLASSIFY, {"images": [GIF], X80: 1}, f"'{CUT} {CLASSIFY_KEYS}"),
    (CLASSIFY, {"images": [GIF], "k": True}, f"k is true; {K}"),
    (CLASSIFY, {"images": [GIF], "k": None}, f"k is null; {K}"),
    (CLASSIFY, {"images": [GIF], "k": 2.5}, f"k is 2.5; {K}"),
    (CLASSIFY, {"images": [GIF], "k": 0}, f"k is 0; {K}"),
    (CLASSIFY, {"images": [GIF], "k": [{"a": None}]}, f'k is {{"a": null}}; {K}'),
    (CLASSIFY, {"images": [GIF], "k": "9" * 80}, f"k is '{'9' * 56}...; {K}"),
    (CLASSIFY, {"images": [GIF], "labels": None}, f"labels is null; {LABELS}"),
    (CLASSIFY, {"images": [GIF], "labels": 5}, f"labels is 5; {LABELS}"),
    (CLASSIFY, {"images": [GIF], "labels": {"a": 1}}, f'labels is {{"a": 1}}; {LABELS}'),
    (CLASSIFY, {"images": [GIF], "labels": ["a", None]}, "labels[1] is null; expected a text that is not empty"),
    (CLASSIFY, {"images": [GIF], "labels": ["a", True]}, "labels[1] is true; expected a text that is not empty"),
    (CLASSIFY, {"images": [GIF], "labels": ["a", [1]]}, "labels[1] is [1]; expected a text that is not empty"),
    (CLASSIFY, {"images": [GIF], "labels": ["a"], "templates": None}, "templates[0] is null; expected a text that is not empty"),
    (CLASSIFY, {"images": [GIF], "labels": ["a"], "templates": [{}]}, "templates[0] is {}; expected a text that is not empty"),
    (CLASSIFY, {"images": [GIF], "labels": ["a"], "templates": X80}, f"templates[0] is '{CUT}; expected {{}} where the label goes"),
    (SEARCH, {"q": None}, f"q is null; {QUERY}"),
    (SEARCH, {"q": 5}, f"q is 5; {QUERY}"),
    (SEARCH, {"q": ["a", True]}, f"q is true; {QUERY}"),
    (SEARCH, {"q": {"text": None}}, "terms[0].text is null; expected a string"),
    (SEARCH, {"q": {"text": "a", "weight": X80}}, f'terms[0].weight is "{CUT}; expected a number between -1e+30 and 1e+30'),
    (SEARCH, {"q": [{"text": "a"}, "b"]}, 'terms[1] is "b"; expected one of text, image, id, vector, and weight'),
    (SEARCH, {"id": None}, "id is null; expected the id of a stored row"),
    (SEARCH, {"id": [["a"]]}, 'id is ["a"]; expected the id of a stored row'),
    (SEARCH, {"img": 5}, "img is 5; expected an image as base64url"),
    (SEARCH, {"k": True}, f"k is true; {ROWS}"),
    (SEARCH, {"k": None}, f"k is null; {ROWS}"),
    (SEARCH, {"k": 2.5}, f"k is 2.5; {ROWS}"),
    (SEARCH, {"k": X80}, f"k is '{CUT}; {ROWS}"),
    (SEARCH, {"offset": {}}, f"offset is {{}}; {OFFSET}"),
    (SEARCH, {"where": True}, "where is true; expected an SQL condition"),
    (SEARCH, {X80: 1}, f"'{CUT} {FIELDS}"),
    (SEARCH, {"texts": ["a"]}, f"'texts' {FIELDS}"),
]  # fmt: skip


@pytest.fixture(scope="module")
def datasette(demo_engine, demo_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("bodies") / "ids.db"
    words = {word: demo_engine.embed_item(word) for word in ("red", "blue", "7")}
    llms_database(str(path), things=words).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_MODEL_DIR", str(demo_dir))
        yield Datasette([str(path)], memory=True)


def post(datasette: Datasette, path: str, body: object):
    sent = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
    return asyncio.run(datasette.client.post(path, **sent))


@pytest.mark.parametrize(("path", "body", "sentence"), SENTENCES)
def test_what_is_wrong_is_said_in_the_words_of_json(path, body, sentence, datasette):
    response = post(datasette, path, body)
    assert (response.status_code, response.json()["ok"]) == (400, False)
    assert response.json()["error"].startswith(sentence)


@pytest.mark.parametrize(
    ("body", "query"),
    [
        ({"q": "red"}, "red"),
        ({"q": ["red"]}, "red"),
        ({"q": ["red", "- blue"]}, "red - blue"),
        ({"q": {"text": "red"}}, "red"),
        ({"q": [{"text": "red"}, {"id": 7}]}, 'red + id:"7"'),
        ({"id": ["red", "blue"]}, "id:red + id:blue"),
        ({"id": 7}, 'id:"7"'),
        ({"q": [], "k": "1"}, ""),
    ],
)
def test_a_list_is_a_field_that_is_repeated(body, query, datasette):
    response = post(datasette, SEARCH, body)
    assert response.status_code == 200, response.text
    assert response.json()["query"] == query


@pytest.mark.parametrize(
    ("path", "field", "fields"),
    [
        (EMBED, "labels", "text, img, vector, format, normalize, orient, model"),
        (EMBED, "k", "text, img, vector, format, normalize, orient, model"),
        (CLASSIFY, "format", "text, img, vector, labels, templates, k, orient, model"),
        (CLASSIFY, "normalize", "text, img, vector, labels, templates, k, orient, model"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_field_that_an_endpoint_does_not_use_is_refused(method, path, field, fields, datasette):
    sent = {"data": {field: "1", "text": "a"}} if method == "POST" else {"params": {field: "1", "text": "a"}}
    response = asyncio.run(datasette.client.request(method, path, **sent))
    assert response.status_code == 400
    assert response.json()["error"] == f"'{field}' is not a field of this endpoint; expected {fields}"
