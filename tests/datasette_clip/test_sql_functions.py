"""The SQL functions: the results of datasette-llm-embed, NULL for NULL and errors, then our own for images and labels."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sqlite3
from urllib.parse import quote

import llm
import numpy as np
import pytest
from datasette.app import Datasette
from hypothesis import given
from hypothesis import strategies as st

from datasette_clip.items import HEX, bytes_of
from llm_clip_onnx import towers
from llm_clip_onnx.engine import default_engine
from nasty import photo, saved

LOGGER = "datasette_clip"
# Datasette makes sqlite3 print the traceback of a function that raises. pytest would show each as a warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def blob(*numbers: float) -> str:
    """The SQL literal of a vector blob."""
    return "x'" + llm.encode(numbers).hex() + "'"


async def rows(datasette: Datasette, sql: str, **parameters):
    response = await datasette.client.get("/_memory.json", params={"sql": sql, "_shape": "arrays", **parameters})
    assert response.status_code == 200, response.json()["error"]
    return response.json()["rows"]


def scalar(datasette: Datasette, sql: str, **parameters):
    return asyncio.run(rows(datasette, sql, **parameters))[0][0]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("llm_embed('clip', null)", None),
        ("llm_embed(null, 'a')", None),
        ("length(llm_embed('clip', 'a'))", 2048),
        ("typeof(llm_embed('clip', ''))", "blob"),
        (f"llm_embed_cosine({blob(3, 4)}, {blob(3, 4)})", 1),
        (f"llm_embed_cosine({blob(1, 0)}, {blob(0, 5)})", 0),
        (f"llm_embed_cosine({blob(1, 0)}, {blob(-2, 0)})", -1),
        (f"llm_embed_cosine(null, {blob(1, 0)})", None),
        (f"llm_embed_cosine({blob(1, 0)}, null)", None),
        (f"llm_embed_decode({blob(1, 0.5)})", "[1.0, 0.5]"),
        ("llm_embed_decode(null)", None),
        (
            f"hex((select llm_embed_average(column1) from (values ({blob(1, 2)}), (null), ({blob(3, 6)}))))",
            llm.encode([2, 4]).hex().upper(),
        ),
        ("(select llm_embed_average(column1) from (values (null)))", None),
        ("(select llm_embed_average(name) from sqlite_master)", None),
    ],
)
def test_results(datasette, sql, expected):
    assert scalar(datasette, f"select {sql}") == (pytest.approx(expected) if isinstance(expected, int) else expected)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("llm_embed('clip', 5)", "llm_embed: int is neither text nor image bytes; expected str or bytes"),
        (
            "llm_embed('clip', x'616263')",
            "llm_embed: not an image but text (3 bytes); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF",
        ),
        (
            "llm_embed('gpt-9', 'a')",
            "llm_embed: model 'gpt-9' is not on the list plugins.datasette-clip.models, ['clip']",
        ),
        (
            "llm_embed('3-small', 'a')",
            "llm_embed: model '3-small' is not on the list plugins.datasette-clip.models, ['clip']",
        ),
        (
            f"llm_embed_cosine({blob(1)}, {blob(1, 2)})",
            "llm_embed_cosine: 1 and 2 dimensions; both vectors must come from one model",
        ),
        (
            "llm_embed_cosine('ab', x'00')",
            "llm_embed_cosine: str is not a vector blob: expected a BLOB of 4 bytes per dimension",
        ),
        (
            f"llm_embed_cosine({blob(0)}, {blob(1)})",
            "llm_embed_cosine: a vector of zeros, infinities or NaN has no direction, so no cosine",
        ),
        (
            "llm_embed_decode(x'0000')",
            "llm_embed_decode: a BLOB of 2 bytes is not a vector blob: expected 4 bytes per dimension",
        ),
        (
            "llm_embed_decode(x'0000807f')",
            "llm_embed_decode: a vector with infinities or NaN cannot be written as JSON",
        ),
        ("llm_embed_decode(7)", "llm_embed_decode: int is not a vector blob: expected a BLOB of 4 bytes per dimension"),
        (
            f"(select llm_embed_average(column1) from (values ({blob(1, 2)}), ({blob(3)})))",
            "llm_embed_average: 2 and 1 dimensions; all vectors of an average must come from one model",
        ),
    ],
)
def test_misuse_is_a_400_with_its_sentence_which_is_in_the_log_too(datasette, sql, sentence, caplog):
    async def get():
        return await datasette.client.get("/_memory.json", params={"sql": f"select {sql}"})

    with caplog.at_level(logging.WARNING, LOGGER):
        response = asyncio.run(get())
    assert response.status_code == 400
    assert response.json()["error"] == sentence
    assert sentence in [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_text_and_image_embeddings_are_the_engines(datasette, demo_engine):
    assert (
        scalar(datasette, "select hex(llm_embed('clip', :q))", q="purple and gold")
        == demo_engine.embed_item("purple and gold").tobytes().hex().upper()
    )
    png = saved(photo(), "PNG")
    assert (
        scalar(datasette, f"select hex(llm_embed('clip', x'{png.hex()}'))")
        == demo_engine.embed_item(png).tobytes().hex().upper()
    )


def connections(datasette: Datasette) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """A connection with datasette-llm-embed's functions, and one with ours."""
    import datasette_llm_embed

    theirs, ours = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    datasette_llm_embed.prepare_connection(datasette, theirs)
    asyncio.run(datasette.invoke_startup())
    datasette._prepare_connection(ours, "_memory")
    return theirs, ours


@pytest.mark.parametrize(
    "sql",
    [
        "select hex(llm_embed('clip', 'purple and gold'))",
        "select llm_embed_decode(llm_embed('clip', 'purple and gold'))",
        "select hex(llm_embed_average(llm_embed('clip', column1))) from (values ('a'), ('b'), ('c'))",
        "select hex(llm_embed_average(column1)) from (values (x'cdcccc3d'), (x'cdcc4c3e'), (x'9a99993e'))",
        f"select llm_embed_decode({blob(0.1, -1e-30, 3e38)})",
    ],
)
def test_good_input_gives_exactly_what_datasette_llm_embed_gives(datasette, sql):
    theirs, ours = connections(datasette)
    expected, found = theirs.execute(sql).fetchone()[0], ours.execute(sql).fetchone()[0]
    assert found == expected
    assert len(found) > 7


def test_cosine_is_datasette_llm_embeds_up_to_rounding(datasette):
    theirs, ours = connections(datasette)
    random = np.random.default_rng(0)
    for a, b in random.standard_normal((50, 2, 512)).astype(np.float32):
        pair = a.tobytes(), (a + b).tobytes()
        expected, found = (c.execute("select llm_embed_cosine(?, ?)", pair).fetchone()[0] for c in (theirs, ours))
        assert found == pytest.approx(expected, abs=1e-12)


def test_our_functions_replace_theirs_and_are_deterministic(datasette):
    theirs, ours = connections(datasette)
    assert theirs.execute("select llm_embed('no such model', 'a')").fetchone()[0] == "'Unknown model: no such model'"
    with pytest.raises(sqlite3.OperationalError):
        ours.execute("select llm_embed('no such model', 'a')")
    for name, call in {
        "llm_embed": "llm_embed('clip', a)",
        "llm_embed_cosine": "llm_embed_cosine(a, a)",
        "llm_embed_decode": "llm_embed_decode(a)",
    }.items():
        ours.execute("create table if not exists t (a)")
        # SQLite allows only deterministic functions in an index.
        ours.execute(f"create index {name}_index on t ({call})")


def test_a_scan_of_20000_vectors_embeds_once_and_gives_the_order_of_numpy(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    vectors = np.random.default_rng(0).standard_normal((20_000, 512), np.float32)
    connection = sqlite3.connect(tmp_path / "vectors.db")
    with connection:
        connection.execute("create table embeddings (id integer primary key, embedding blob)")
        connection.executemany(
            "insert into embeddings values (?, ?)", ((n, v.tobytes()) for n, v in enumerate(vectors))
        )
    connection.close()
    monkeypatch.setattr("llm_clip_onnx.engine._engines", {})  # a new engine with an empty cache
    default_engine().open_text()
    runs = []
    genuine = towers.run_text
    monkeypatch.setattr(towers, "run_text", lambda *a: runs.append(1) or genuine(*a))
    monkeypatch.setattr("llm_clip_onnx.engine.MAX_CACHED_CHARACTERS", -1)  # so only SQLite avoids a second call
    datasette = Datasette([str(tmp_path / "vectors.db")])
    sql = "select id from embeddings order by llm_embed_cosine(embedding, llm_embed('clip', :q)) desc limit 10"

    async def get():
        return await datasette.client.get("/vectors.json", params={"sql": sql, "q": "purple", "_shape": "arrays"})

    response = asyncio.run(get())
    assert response.status_code == 200, response.text
    assert len(runs) == 1
    query = default_engine().embed_item("purple")
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    assert [row[0] for row in response.json()["rows"]] == np.argsort(-cosines)[:10].tolist()


class Counting(llm.EmbeddingModel):
    """A fake `llm` model that counts its instances. Its embeddings show the length of the item and of the key."""

    model_id = "counting"
    needs_key = "counting"
    made = 0

    def __init__(self):
        Counting.made += 1

    def embed_batch(self, items, *, key=None):
        for item in items:
            yield [float(len(item)), float(len(key)), 0.5]


class CountingPlugin:
    @llm.hookimpl
    def register_embedding_models(self, register):
        register(Counting())


def test_other_models_on_the_list_work_opened_once_with_their_configured_key(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    plugins = {
        "datasette-clip": {"models": ["clip", "counting"]},
        "datasette-llm-embed": {"keys": {"counting": "secret"}},
    }
    datasette = Datasette(memory=True, metadata={"plugins": plugins})
    llm.plugins.pm.register(CountingPlugin(), "counting")
    try:
        Counting.made = 0
        assert json.loads(scalar(datasette, "select llm_embed_decode(llm_embed('counting', 'four'))")) == [4, 6, 0.5]
        assert json.loads(scalar(datasette, "select llm_embed_decode(llm_embed('counting', 'fives'))")) == [5, 6, 0.5]
        assert Counting.made == 1
        assert scalar(datasette, "select length(llm_embed('clip', 'a'))") == 2048
    finally:
        llm.plugins.pm.unregister(name="counting")


JPEG = saved(photo(224, 224), "JPEG")
OWN = '["cat", "red heart", "blue"]'


@pytest.mark.parametrize(
    "text",
    [
        base64.urlsafe_b64encode(JPEG).decode().rstrip("="),
        base64.urlsafe_b64encode(JPEG).decode(),
        base64.b64encode(JPEG).decode(),
        base64.b64encode(JPEG).decode().replace("+", " "),
        base64.encodebytes(JPEG).decode(),
        "data:image/jpeg;base64," + base64.b64encode(JPEG).decode(),
        "data:;BASE64," + base64.urlsafe_b64encode(JPEG).decode(),
        "data:image/jpeg," + quote(JPEG),
        JPEG.hex(),
        JPEG.hex().upper(),
    ],
    ids=["url", "url padded", "base64", "spaces", "folded", "uri", "uri, url", "uri, percent", "hex", "HEX"],
)
def test_clip_image_reads_an_image_from_a_string(text, datasette):
    assert bytes_of(text) == JPEG
    if len(text) < 60_000:
        assert scalar(datasette, "select hex(clip_image(:img))", img=text) == JPEG.hex().upper()


@given(st.binary(min_size=1, max_size=300))
def test_clip_image_returns_any_bytes_unchanged(content):
    for text in (base64.b64encode(content).decode(), base64.urlsafe_b64encode(content).decode().rstrip("=")):
        if not HEX.fullmatch(text):  # no image is hexadecimal in base64
            assert bytes_of(text) == content
    assert bytes_of(content.hex()) == content


def test_a_get_can_carry_an_image(datasette, demo_engine):
    img = base64.urlsafe_b64encode(JPEG).decode()
    found = scalar(datasette, "select hex(llm_embed('clip', clip_image(:img)))", img=img)
    assert bytes.fromhex(found) == demo_engine.embed_item(JPEG).tobytes()


def test_classify_answers_json_of_an_image_or_of_its_vector(datasette, demo_engine):
    img = base64.urlsafe_b64encode(JPEG).decode()
    by_image = scalar(datasette, f"select clip_classify(clip_image(:img), '{OWN}')", img=img)
    by_vector = scalar(datasette, f"select clip_classify(llm_embed('clip', clip_image(:img)), '{OWN}')", img=img)
    assert by_image == by_vector
    labels = json.loads(OWN)
    classes = demo_engine.embed_text([f"a photo of a {label}." for label in labels]).astype(np.float64)
    image = demo_engine.embed_item(JPEG).astype(np.float64)
    cosines = classes @ image / np.linalg.norm(classes, axis=1) / np.linalg.norm(image)
    powers = np.exp(demo_engine.manifest.logit_scale * cosines)
    expected = [
        {
            "label": labels[k],
            "probability": pytest.approx(powers[k] / powers.sum(), abs=1e-4),  # the engine's cosines are float32
            "cosine": pytest.approx(cosines[k], abs=1e-5),
        }
        for k in np.argsort(-cosines)
    ]
    assert json.loads(by_image) == expected


@pytest.mark.parametrize(("k", "count"), [("", 5), (", 2", 2), (", 1000000", 1456)])
def test_classify_by_a_label_set_answers_k(k, count, datasette):
    found = json.loads(
        scalar(datasette, f"select clip_classify(llm_embed('clip', 'a photo of a rocket.'), 'emoji'{k})")
    )
    assert len(found) == count
    assert found[0]["label"] == "rocket"
    assert [match["probability"] for match in found] == sorted((m["probability"] for m in found), reverse=True)


def test_a_whole_table_is_classified_in_sql(datasette):
    sql = (
        "select name, json_extract(clip_classify(llm_embed('clip', name), '[\"cat\", \"rocket\"]'), '$[0].label') "
        "from (select 'a photo of a cat.' as name union select 'a photo of a rocket.' union select null) order by name"
    )
    assert asyncio.run(rows(datasette, sql)) == [
        [None, None],
        ["a photo of a cat.", "cat"],
        ["a photo of a rocket.", "rocket"],
    ]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("clip_image(null)", None),
        ("clip_classify(null, 'emoji')", None),
        (f"clip_classify({blob(*[1] * 512)}, null)", None),
        (f"clip_classify({blob(*[1] * 512)}, 'emoji', null)", None),
        ("clip_similarity(null, 'a')", None),
        ("clip_similarity('a', null)", None),
        ("round(clip_similarity('a', 'a'), 9)", 1),
        ("clip_similarity('a', llm_embed('clip', 'b')) = llm_embed_cosine(llm_embed('clip', 'a'), llm_embed('clip', 'b'))", 1),
        (f"clip_similarity(x'{JPEG.hex()}', 'b') = llm_embed_cosine(llm_embed('clip', x'{JPEG.hex()}'), llm_embed('clip', 'b'))", 1),
    ],
)  # fmt: skip
def test_results_of_the_image_functions(sql, expected, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    assert scalar(Datasette(memory=True, metadata=LONG_SQL), f"select {sql}") == expected


LONG_SQL = {"plugins": {"datasette-guard": {"limits": {"sql_bytes": 60_000}}}}
NOT_AN_IMAGE = "not an image but binary data (1 byte); expected JPEG, PNG, WebP, GIF, BMP, AVIF or TIFF"


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("clip_image(5)", "clip_image: int is not a string; expected base64url, base64, a data URI or hex digits"),
        ("clip_image('é!')", "clip_image: a string of 2 characters is no image; expected base64url, base64, a data URI or hex digits"),
        ("clip_image('abcde')", "clip_image: a string of 5 characters is no image; expected base64url, base64, a data URI or hex digits"),
        ("clip_image('')", "clip_image: a string of 0 characters is no image; expected base64url, base64, a data URI or hex digits"),
        ("clip_image('YWJj')", f"clip_image: {NOT_AN_IMAGE.replace('binary data (1 byte)', 'text (3 bytes)')}"),
        ("clip_classify('cat', 'emoji')", "clip_classify: str is neither an image nor a vector; expected a BLOB, as clip_image() makes of strings"),
        ("clip_classify(x'00', 'emoji')", f"clip_classify: {NOT_AN_IMAGE}, or a vector blob of this model, 2048 bytes"),
        (f"clip_classify({blob(*[1] * 256)}, 'emoji')", f"clip_classify: {NOT_AN_IMAGE.replace('1 byte', '1,024 bytes')}, or a vector blob of this model, 2048 bytes"),
        (f"clip_classify({blob(*[0] * 512)}, 'emoji')", "clip_classify: a vector of zeros, infinities or NaN has no direction, so no cosine"),
        (f"clip_classify({blob(*[1] * 512)}, 'cats')", "clip_classify: there is no label set 'cats'; there are emoji; llm clip labels bake makes one"),
        (f"clip_classify({blob(*[1] * 512)}, '')", "clip_classify: there is no label set ''; there are emoji; llm clip labels bake makes one"),
        (f"clip_classify({blob(*[1] * 512)}, 7)", "clip_classify: labels is 7; expected the name of a label set or a list of labels"),
        (f"clip_classify({blob(*[1] * 512)}, '[\"a\", 3]')", "clip_classify: labels[1] is 3; expected a text that is not empty"),
        (f"clip_classify({blob(*[1] * 512)}, '[]')", "clip_classify: there are no labels; expected at least one"),
        (f"clip_classify({blob(*[1] * 512)}, 'emoji', 0)", "clip_classify: k is 0; expected a whole number from 1, of the labels to answer"),
        (f"clip_classify({blob(*[1] * 512)}, 'emoji', 'two')", "clip_classify: k is 'two'; expected a whole number from 1, of the labels to answer"),
        ("clip_similarity(3, 'a')", "clip_similarity: int is neither text nor image bytes; expected str or bytes"),
        ("clip_similarity(x'00', 'a')", f"clip_similarity: {NOT_AN_IMAGE}, or a vector blob of this model, 2048 bytes"),
    ],
)  # fmt: skip
def test_misuse_of_the_image_functions_raises_with_its_sentence(sql, sentence, datasette, caplog):
    async def get():
        return await datasette.client.get("/_memory.json", params={"sql": f"select {sql}"})

    with caplog.at_level(logging.WARNING, LOGGER):
        assert asyncio.run(get()).status_code == 400
    assert sentence in [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_too_many_labels_for_one_request_are_refused(demo_dir, monkeypatch, caplog):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    labels = json.dumps([f"label {n}" for n in range(257)])

    async def get():
        sql = "select clip_classify(llm_embed('clip', 'a'), :labels)"
        return await Datasette(memory=True).client.get("/_memory.json", params={"sql": sql, "labels": labels})

    with caplog.at_level(logging.WARNING, LOGGER):
        assert asyncio.run(get()).status_code == 400
    assert (
        "clip_classify: 257 labels in 1 templates are 257 prompts; at most 256 are embedded for a request "
        "(plugins.datasette-clip.limits.prompts): bake a label set of them" in caplog.messages
    )


def test_an_image_as_long_as_a_vector_is_an_image_still(datasette, demo_engine):
    png = saved(photo(9, 9), "PNG")
    png += bytes(2048 - len(png))
    found = scalar(datasette, f"select clip_similarity(x'{png.hex()}', llm_embed('clip', x'{png.hex()}'))")
    assert found == pytest.approx(1)


def test_a_vector_that_begins_as_an_image_is_a_vector_still(datasette):
    vector = b"\xff\xd8\xff\x3c" + llm.encode([1.0] * 511)
    assert scalar(datasette, f"select clip_similarity(x'{vector.hex()}', x'{vector.hex()}')") == pytest.approx(1)


@pytest.mark.parametrize("function", ["clip_classify(llm_embed('clip', 'a'), 'emoji')", "clip_similarity('a', 'b')"])
def test_the_image_functions_are_closed_where_clip_is_not_on_the_list(function, demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"models": ["x"]}}})

    async def get():
        return await datasette.client.get("/_memory.json", params={"sql": f"select {function}"})

    assert asyncio.run(get()).status_code == 400
