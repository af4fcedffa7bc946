"""No sentence, answer or line of the log quotes more than 60 characters of what came in, whichever field it came in."""

from __future__ import annotations

import ast
import asyncio
import json
import logging

import numpy as np
import pytest
from datasette.app import Datasette
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clip_collections.collection import table_collection
from conftest import ROOT
from datasette_clip import config as clip_config
from datasette_guard import config as guard_config
from datasette_guard.quoting import cited as guards_cited
from llm_clip_onnx.errors import QUOTED_CHARACTERS, cited, shortened
from stored import llms_database

EMBED, CLASSIFY, SEARCH = "/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/search/ids/photos.json"
TABLE = "/ids/embeddings.json"
SQL = ("llm_embed(:x, 'a')", "clip_classify(clip_image('AA'), :x)", "clip_image(:x)", "clip_search(:x, 'a')",
       "clip_search('photos', :x)", "clip_search('photos', 'a', :x)", "llm_embed_cosine(:x, :x)", "llm_embed_decode(:x)",
       "clip_similarity('a', :x)", "clip_classify(x'00', 'emoji', :x)", "llm_embed_average(:x)")  # fmt: skip
FORM = {"content-type": "application/x-www-form-urlencoded"}
JPEG = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def get(path: str, **params):
    return lambda x: ("GET", path, {"params": {name: value.replace("LONG", x) for name, value in params.items()}})


def named(path: str, **params):
    return lambda x: ("GET", path, {"params": {x: "a"} | params})


def in_json(path: str, content: object):
    return lambda x: ("POST", path, {"json": json.loads(json.dumps(content).replace('"LONG"', json.dumps(x)))})


PLACES = {
    **{f"embed, {name}": get(EMBED, text="a", **{name: "LONG"}) for name in ("format", "normalize", "orient", "img", "vector")},
    **{f"classify, {name}": get(CLASSIFY, img=JPEG, **{name: "LONG"}) for name in ("labels", "templates", "k", "orient")},
    "labels that begin as JSON": get(CLASSIFY, img=JPEG, labels='["LONG'),
    "templates of labels": get(CLASSIFY, img=JPEG, labels='["a", "b"]', templates="LONG"),
    **{f"search, {name}": get(SEARCH, **{name: "LONG"}) for name in ("k", "offset", "where", "id", "img", "from", "to")},
    "a key of metadata": lambda x: ("GET", SEARCH, {"params": {f"meta.{x}": "a"}}),
    **{f"a table, {name}": get(TABLE, _like="a", **{name: "LONG"}) for name in ("_like_k", "_like_id", "_like_collection")},
    "a table, _like": get(TABLE, _like="id:LONG"),
    "a table, _like_column": get("/ids/collections.json", _like="a", _like_column="LONG"),
    **{f"search, {kind}": get(SEARCH, q=f"{kind}LONG") for kind in ("id:", "image:", "vector:", "{", "[", "text:\"")},
    "a field's name": named(EMBED),
    "a field's name in search": named(SEARCH, k="x"),
    "a key of JSON": lambda x: ("POST", EMBED, {"json": {x: 1}}),
    "a value of JSON": in_json(EMBED, {"images": ["LONG"], "format": "float"}),
    **{f"{name} in JSON": in_json(EMBED, {"texts": ["a"], name: "LONG"}) for name in ("format", "normalize", "orient")},
    "labels in JSON": in_json(CLASSIFY, {"images": [JPEG], "labels": ["a", {"LONG": 1}], "k": "LONG"}),
    "broken JSON": lambda x: ("POST", EMBED, {"content": ("{" + x).encode(errors="replace")}),
    "a form": lambda x: ("POST", EMBED, {"content": x.encode(errors="replace"), "headers": FORM}),
    "a body": lambda x: ("POST", EMBED, {"content": x.encode(errors="replace")}),
    "a file's name": lambda x: ("POST", EMBED, {"files": {"a": (x.replace('"', ""), b"abc")}}),
    "a file": lambda x: ("POST", EMBED, {"files": {"a": ("a", x.encode(errors="replace"))}}),
    "the encoding": lambda x: ("POST", EMBED, {"content": b"a", "headers": {"content-encoding": ascii(x)}}),
    "the type": lambda x: ("POST", EMBED, {"content": b"a", "headers": {"content-type": f"multipart/form-data; boundary={x!a}"}}),
}  # fmt: skip
TEXTS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=80, max_size=400),
    st.integers(80, 3000).map(lambda n: "abcdefghijklmnopqrstuvwxyz0123456789"[n % 7 :] * (n // 36 + 3)),
)
FUZZ = settings(max_examples=4, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def datasette(demo_dir, tmp_path_factory):
    path = tmp_path_factory.mktemp("echo") / "ids.db"
    llms_database(str(path), photos={"a": np.ones(512, np.float32)}).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_MODEL_DIR", str(demo_dir))
        yield Datasette([str(path)], memory=True)


def longest_quoted(said: str, sent: str) -> int:
    """How many characters of `sent`, in a row, `said` has: 60 or less, or one of those that are more than 60."""
    pieces = {sent[at : at + QUOTED_CHARACTERS + 1] for at in range(len(sent) - QUOTED_CHARACTERS)}
    return max((len(piece) for piece in pieces if piece in said), default=0)


@pytest.mark.parametrize("place", PLACES)
@FUZZ
@given(text=TEXTS)
@example(text="x" * 5000)
@example(text="some words and more " * 100)
def test_no_answer_quotes_more_than_60_characters(place, datasette, text):
    method, path, sent = PLACES[place](text)
    response = asyncio.run(datasette.client.request(method, path, **sent))
    if response.status_code == 200:
        return  # what was understood comes back as it was
    said = response.json()["error"]
    assert longest_quoted(said, text) == 0, said[:500]
    assert len(said) < 500, said[:1000]


@pytest.mark.parametrize("sql", SQL)
@FUZZ
@given(text=TEXTS)
@example(text="x" * 5000)
def test_no_line_of_the_log_quotes_more_than_60_characters(sql, datasette, text, caplog):
    caplog.clear()
    with caplog.at_level(logging.INFO, "datasette_clip"):
        params = {"sql": f"select {sql}", "x": text, "_shape": "array"}
        asyncio.run(datasette.client.get("/ids.json", params=params))
    for message in (record.getMessage() for record in caplog.records if record.name.startswith("datasette_")):
        assert longest_quoted(message, text) == 0, message[:500]


@pytest.mark.parametrize("value", ["x" * 5000, ["x" * 5000], {"x" * 5000: {"y" * 5000: "z" * 5000}}, "x " * 5000])
@pytest.mark.parametrize("key", [*clip_config.READERS, *guard_config.READERS, "LONG"])
def test_no_sentence_about_the_configuration_quotes_more(key, value):
    for read in (lambda settings: clip_config.read_config(settings, {}), guard_config.read_config):
        sentence = sentence_of(read, {key.replace("LONG", "x" * 5000): value})
        assert len(sentence) < 900
        assert longest_quoted(sentence, "x" * 5000) == 0


def sentence_of(read, settings: object) -> str:
    """The sentence that reading these settings raises, "" if it raises none."""
    try:
        read(settings)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.parametrize("key", ["table", "vector", "id", "image", "image_url", "content", "metadata", "x" * 5000])
def test_no_sentence_about_a_configured_collection_quotes_more(key):
    conn = llms_database(photos={"a": np.ones(4, np.float32)})
    usual = {"table": "embeddings", "vector": "embedding"}
    for value in ("x" * 5000, "{" + "x" * 5000 + "}", ["x" * 5000]):
        with pytest.raises(Exception) as raised:  # noqa: PT011
            table_collection(conn, "x" * 5000, usual | {key: value})
        assert longest_quoted(str(raised.value), "x" * 5000) == 0


@given(
    st.one_of(TEXTS, st.binary(max_size=2000), st.lists(TEXTS, max_size=3), st.dictionaries(TEXTS, TEXTS, max_size=2))
)
def test_what_quotes_is_bounded_itself(value):
    for shown in (cited(value), shortened(value), guards_cited(value)):
        assert len(shown) <= QUOTED_CHARACTERS + 2
    assert "\n" not in shortened(value)


def test_no_message_writes_a_value_by_itself():
    """{value!r} in an f-string of ours has no bound; `cited` is for that."""
    places = []
    for file in (ROOT / "plugins").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FormattedValue) and node.conversion == ord("r"):
                places.append(f"{file.name}:{node.lineno}")
    assert places == []
