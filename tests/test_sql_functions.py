"""The SQL functions: datasette-llm-embed's results on good input, NULL for NULL, and a refusal for everything else."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3

import llm
import numpy as np
import pytest
from datasette.app import Datasette

from llm_clip_onnx import towers
from nasty import photo, saved

LOGGER = "datasette_clip"
# Datasette has sqlite3 print the tracebacks of functions that raise; pytest would show each as a warning.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def blob(*numbers: float) -> str:
    """A vector blob as SQL."""
    return "x'" + llm.encode(numbers).hex() + "'"


@pytest.fixture
def datasette(demo_dir, monkeypatch) -> Datasette:
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    return Datasette(memory=True)


async def rows(datasette: Datasette, sql: str, **parameters):
    response = await datasette.client.get("/_memory.json", params={"sql": sql, "_shape": "arrays", **parameters})
    assert response.status_code == 200, response.json()["error"]
    return response.json()["rows"]


def one(datasette: Datasette, sql: str, **parameters):
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
    assert one(datasette, f"select {sql}") == (pytest.approx(expected) if isinstance(expected, int) else expected)


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("llm_embed('clip', 5)", "llm_embed: int is neither text nor image bytes; expected str or bytes"),
        (
            "llm_embed('clip', x'616263')",
            "llm_embed: 3-byte blob is not an image Pillow can open; expected JPEG, PNG, WebP or GIF bytes",
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
def test_misuse_is_a_400_and_its_sentence_is_in_the_log(datasette, sql, sentence, caplog):
    async def get():
        return await datasette.client.get("/_memory.json", params={"sql": f"select {sql}"})

    with caplog.at_level(logging.WARNING, LOGGER):
        response = asyncio.run(get())
    assert response.status_code == 400
    assert response.json()["error"].startswith("user-defined ")
    assert sentence in [record.getMessage() for record in caplog.records if record.name == LOGGER]


def test_text_and_image_embeddings_are_the_engines(datasette, demo_engine):
    assert (
        one(datasette, "select hex(llm_embed('clip', :q))", q="purple and gold")
        == demo_engine.embed_item("purple and gold").tobytes().hex().upper()
    )
    png = saved(photo(), "PNG")
    assert (
        one(datasette, f"select hex(llm_embed('clip', x'{png.hex()}'))")
        == demo_engine.embed_item(png).tobytes().hex().upper()
    )


def connections(datasette: Datasette) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """One connection with datasette-llm-embed's own functions, one with ours."""
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
        ours.execute(
            f"create index {name}_index on t ({call})"
        )  # SQLite allows only deterministic functions in an index


def test_a_scan_of_20000_vectors_embeds_once_and_stays_inside_the_time_limit(demo_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    vectors = np.random.default_rng(0).standard_normal((20_000, 512), np.float32)
    connection = sqlite3.connect(tmp_path / "vectors.db")
    with connection:
        connection.execute("create table embeddings (id integer primary key, embedding blob)")
        connection.executemany(
            "insert into embeddings values (?, ?)", ((n, v.tobytes()) for n, v in enumerate(vectors))
        )
    connection.close()
    runs = []
    genuine = towers.run_text
    monkeypatch.setattr(towers, "run_text", lambda *a: runs.append(1) or genuine(*a))
    monkeypatch.setattr("llm_clip_onnx.engine.LONGEST_CACHED", -1)  # so that only SQLite's own care keeps it to one
    datasette = Datasette([str(tmp_path / "vectors.db")])
    sql = "select id from embeddings order by llm_embed_cosine(embedding, llm_embed('clip', :q)) desc limit 10"

    async def get():
        return await datasette.client.get("/vectors.json", params={"sql": sql, "q": "purple", "_shape": "arrays"})

    response = asyncio.run(get())
    assert response.status_code == 200, response.text  # Datasette's own limit is the clock
    assert len(runs) == 1
    from llm_clip_onnx.engine import default_engine

    query = default_engine().embed_item("purple")
    cosines = vectors @ query / np.linalg.norm(vectors, axis=1)
    assert [row[0] for row in response.json()["rows"]] == np.argsort(-cosines)[:10].tolist()


class Counting(llm.EmbeddingModel):
    """Another `llm` model: says how often it was made and asked, and what key it has. A border: ours is not asked for it."""

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
        assert json.loads(one(datasette, "select llm_embed_decode(llm_embed('counting', 'four'))")) == [4, 6, 0.5]
        assert json.loads(one(datasette, "select llm_embed_decode(llm_embed('counting', 'fives'))")) == [5, 6, 0.5]
        assert Counting.made == 1
        assert one(datasette, "select length(llm_embed('clip', 'a'))") == 2048
    finally:
        llm.plugins.pm.unregister(name="counting")
