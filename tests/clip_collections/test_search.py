"""Search finds what a plain numpy comparison finds, in any table and on any connection, and refuses with a sentence."""

from __future__ import annotations

import sqlite3
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_collections import search
from clip_collections.collection import Collection, check_model, llm_collection_names, open_collection, table_collection
from clip_collections.search import stored_vector
from llm_clip_onnx.errors import ConfigError, InputError, VectorError
from llm_clip_onnx.vectors import to_blob
from stored import ids, llms_database, oracle, random_vectors

NUMBERS = st.floats(-4, 4, width=16)
STORED = st.one_of(
    st.lists(NUMBERS, min_size=3, max_size=3).map(np.float32),
    st.sampled_from([np.float32([1, 2, 3]), np.float32([2, 4, 6]), np.float32([1e-30, 2e-30, 3e-30])]),
    st.sampled_from(
        [np.float32([3e38, 3e38, 0]), np.float32([0, 0, 0]), np.float32([np.nan, 1, 1]), np.float32([1, 2])]
    ),
    st.sampled_from([None, b"", b"abc", "text", 17, 1.5]),
)
TABLES = st.dictionaries(st.text("abcxyz09", min_size=1, max_size=3), STORED, max_size=30)
QUERIES = st.lists(NUMBERS, min_size=3, max_size=3).map(np.float32).filter(lambda q: q.any())


@settings(max_examples=300, deadline=None)
@given(TABLES, QUERIES, st.integers(1, 40), st.integers(0, 10), st.sets(st.sampled_from("abcxyz09")), st.booleans())
def test_it_is_what_comparing_all_of_them_gives(stored, query, k, offset, skip, where):
    conn = llms_database(other={"a": np.float32([1, 2, 3])}, photos=stored)
    wanted = {id: v for id, v in stored.items() if id not in skip and not (where and id >= "b")}
    expected = oracle(wanted, query)[offset : offset + k]
    photos = open_collection(conn, "photos")
    condition, parameters = ("id < :end -- or so", {"end": "b"}) if where else ("", ())
    hits = search.search(conn, photos, query, k, condition, parameters, skip, offset)
    np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in expected], atol=1e-12)
    scores = dict(oracle(wanted, query))
    np.testing.assert_allclose([hit.score for hit in hits], [scores.pop(hit.id) for hit in hits], atol=1e-12)
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.id))
    for hit in hits:
        assert conn.execute("select id from embeddings where rowid = ?", [hit.rowid]).fetchone() == (hit.id,)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("id < 'c'", "ab"),
        ("id < 'c';", "ab"),
        ("id < 'c' ; ; -- both", "ab"),
        ("id < 'c' /* both", "ab"),
        ("id < 'c' -- (", "ab"),
        ("/* ( */ id in ('a', /* ) */ 'c')", "ac"),
        ("id <> ');--'", "abc"),
        ("(id = 'a') or [id] = 'c' or `id` = 'b;' or \"id\" = ')'", "ac"),
        ("; -- none", "abc"),
    ],
)
def test_a_condition_may_end_in_a_semicolon_or_a_comment(where, expected):
    of_three = {id: np.float32([1, 2, 3]) for id in "abc"}
    conn = llms_database(other={"z": np.float32([1, 2, 3])}, photos=of_three)
    found = search.search(conn, open_collection(conn, "photos"), np.float32([1, 2, 3]), 10, where)
    assert "".join(ids(found)) == expected


@pytest.mark.parametrize("where", ["1) or (1", "1) -- ", "id = 'a') union select (1"])
def test_a_condition_cannot_end_the_collections_own(where):
    conn = llms_database(other={"z": np.float32([1, 2, 3])}, photos={"a": np.float32([1, 2, 3])})
    with pytest.raises(InputError, match="it closes a parenthesis that is not open"):
        search.search(conn, open_collection(conn, "photos"), np.float32([1, 2, 3]), 10, where)


@pytest.mark.long
@pytest.mark.parametrize("k", [1, 7, 100, 5000])
def test_many_chunks_and_many_ties_in_pages(k, monkeypatch):
    monkeypatch.setattr(search, "CHUNK_BYTES", 64 * 64 * 4)
    few = random_vectors(100)
    stored = {f"{n:04}": few[n * n % 100] * np.float32(1 + n % 3) for n in range(1500)}
    conn = llms_database(photos=stored)
    photos, query = open_collection(conn, "photos"), random_vectors(1, seed=2)[0]
    expected = [id for id, _ in oracle(stored, query)]  # 1 and 2 times a vector have one score, 3 times nearly
    pages = []
    for offset in range(0, min(1500, 100 * k), k):
        pages += ids(search.search(conn, photos, query, k, offset=offset))
    assert pages == expected[: 100 * k]


def test_a_vector_has_the_same_score_wherever_it_stands():
    same = random_vectors(1, 512)[0]
    others = random_vectors(999, 512, seed=3)
    stored = {f"{n:04}": same if n % 7 == 0 else others[n - 1] for n in range(1000)}
    conn = llms_database(photos=stored)
    hits = search.search(conn, open_collection(conn, "photos"), same + others[0], 143)
    assert len({hit.score for hit in hits if int(hit.id) % 7 == 0}) == 1


@pytest.mark.parametrize(
    ("query", "k", "offset", "error", "sentence"),
    [
        ([1, 2], 0, 0, InputError, "k is 0; expected a whole number from 1, of the rows to answer"),
        ([1, 2], 1, -1, InputError, "offset is -1; expected a whole number from 0"),
        ([0, 0], 1, 0, VectorError, "a vector of zeros, infinities or NaN has no direction, so no cosine"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(query, k, offset, error, sentence):
    conn = llms_database(photos={"a": np.float32([1, 2])})
    with pytest.raises(error) as raised:
        search.search(conn, open_collection(conn, "photos"), np.float32(query), k, offset=offset)
    assert str(raised.value) == sentence


def test_ids_of_all_kinds_are_ordered_as_sqlite_orders_them():
    conn = sqlite3.connect(":memory:")
    conn.execute("create table t (id, v blob)")
    for id in ("b", 2, b"a", None, 1.5, "a"):
        conn.execute("insert into t values (?, ?)", [id, to_blob(np.float32([1, 2]))])
    of = table_collection(conn, "t", {"table": "t", "vector": "v", "id": "id"})
    expected = [id for (id,) in conn.execute("select id from t order by id")]
    assert ids(search.search(conn, of, np.float32([1, 1]), 9)) == expected == [None, 1.5, 2, "a", "b", b"a"]


def test_inside_a_function_of_the_query_that_runs_with_a_row_factory_and_read_only(tmp_path):
    vectors = random_vectors(500)
    stored = {str(n): v for n, v in enumerate(vectors)}
    path = tmp_path / "photos.db"
    llms_database(str(path), photos=stored).close()
    for mode in ("mode=ro", "immutable=1"):
        conn = sqlite3.connect(f"file:{path}?{mode}", uri=True)
        conn.row_factory = lambda cursor, row: (
            pytest.fail("it must not count what Datasette counts") if len(row) > 1 else row
        )

        def best(blob, conn=conn):
            return ",".join(
                ids(search.search(conn, open_collection(conn, "photos"), np.frombuffer(blob, np.float32), 3))
            )

        conn.create_function("best", 1, best)
        found = conn.execute("select best(embedding) from embeddings where id in (3, 77) order by id").fetchall()
        expected = [[id for id, _ in oracle(stored, vectors[n])[:3]] for n in (3, 77)]
        assert [f.split(",") for (f,) in found] == expected


def test_the_vector_of_a_row():
    conn = llms_database(photos={"a": np.float32([1, 2]), "b": None, "c": "text"}, other={"d": np.float32([1, 2])})
    photos = open_collection(conn, "photos")
    np.testing.assert_array_equal(stored_vector(conn, photos, "a"), np.float32([1, 2]))
    with pytest.raises(InputError, match="collection 'photos' has no row with the id 'd'"):
        stored_vector(conn, photos, "d")
    for id in ("b", "c"):
        with pytest.raises(InputError, match=f"the row with the id '{id}' of collection 'photos' has no vector"):
            stored_vector(conn, photos, id)


def test_collections_are_named_and_a_missing_one_is_answered_with_those_that_are_there():
    conn = llms_database(photos={"a": np.float32([1, 2])}, **{"it's": {}})
    assert llm_collection_names(conn) == ["photos", "it's"]
    photos = open_collection(conn, "photos")
    assert (photos.model, photos.table, photos.key, photos.vector) == ("clip", "embeddings", "id", "embedding")
    assert (photos.condition, photos.image, photos.embed_dim) == ("collection_id = 1", "content_blob", 2)
    assert open_collection(conn, "it's").embed_dim is None
    with pytest.raises(InputError) as raised:
        open_collection(conn, "pets")
    assert str(raised.value) == """there is no collection 'pets'; there are 'photos', "it's\""""
    with pytest.raises(InputError, match="there is no collection 'pets'; there are none"):
        open_collection(sqlite3.connect(":memory:"), "pets")


def test_another_model_or_another_size_is_refused():
    conn = llms_database(photos={"a": np.float32([1, 2])})
    check_model(open_collection(conn, "photos"), "clip", 2)
    with pytest.raises(VectorError) as raised:
        check_model(open_collection(conn, "photos"), "clip", 512)
    assert str(raised.value) == (
        "collection 'photos' holds vectors of 2 dimensions, and 512 are asked; both vectors must come from one model"
    )
    conn.execute("update collections set model = 'ada-002'")
    with pytest.raises(InputError) as raised:
        check_model(open_collection(conn, "photos"), "clip", 2)
    assert str(raised.value) == (
        "collection 'photos' holds vectors of model 'ada-002', and 'clip' is asked; both vectors must come from one model"
    )


FAUCETS = 'create table "my faucets" (id integer primary key, "emb""ed" blob, hash text, photo blob)'
GIVEN = {"table": "my faucets", "vector": 'emb"ed'}


@pytest.fixture
def faucets() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:")
    conn.execute(FAUCETS)
    for n, v in enumerate(random_vectors(50)):
        conn.execute('insert into "my faucets" values (?, ?, ?, null)', [50 - n, to_blob(v), f"h{n}"])
    conn.execute("create view seen as select * from [my faucets]")
    conn.execute("create table tight (id text primary key, v blob) without rowid")
    return conn


def test_any_table_with_vectors_is_a_collection_by_configuration(faucets):
    given = {**GIVEN, "image_url": "https://example.com/{hash}/{id}.png", "model": "clip"}
    opened = table_collection(faucets, "faucets", given)
    assert opened == Collection(
        "faucets", "clip", "my faucets", "id", 'emb"ed', url="https://example.com/{hash}/{id}.png", embed_dim=64
    )
    vectors = random_vectors(50)
    hits = search.search(faucets, opened, vectors[7], 3, "id > ?", [2])
    assert [hit.id for hit in hits] == [
        id for id, _ in oracle({50 - n: v for n, v in enumerate(vectors[:48])}, vectors[7])[:3]
    ]
    assert hits[0].id == hits[0].rowid == 43
    for id in (43, "43"):
        np.testing.assert_array_equal(stored_vector(faucets, opened, id), vectors[7])
    assert table_collection(faucets, "f", {**GIVEN, "id": "rowid"}).key == "rowid"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"vector": "v"}, "collection 'f' has no 'table'; expected the name of its table"),
        ({"table": "my faucets"}, "collection 'f' has no 'vector'; expected the name of its column of vectors"),
        ({**GIVEN, "tabel": "x"}, "collection 'f' has 'tabel'; expected table, vector, id, image, image_url, content, metadata, model"),
        ({**GIVEN, "id": 3}, "id of collection 'f' is 3; expected a text that is not empty"),
        ({**GIVEN, "table": "x"}, "table of collection 'f' is 'x'; the database has no such table"),
        ({**GIVEN, "table": "seen"}, "table of collection 'f' is 'seen'; the database has no such table"),
        ({"table": "tight", "vector": "v"}, "table of collection 'f' is 'tight', which is WITHOUT ROWID; expected one with rowids"),
        ({**GIVEN, "vector": "v"}, "vector of collection 'f' is 'v'; table 'my faucets' has the columns id, emb\"ed, hash, photo"),
        ({**GIVEN, "image": "v"}, "image of collection 'f' is 'v'; table 'my faucets' has the columns id, emb\"ed, hash, photo"),
        ({**GIVEN, "image": "photo", "image_url": "{id}"}, "collection 'f' has image and image_url; expected one of them"),
        ({**GIVEN, "image_url": "/x.png"}, "image_url of collection 'f' is '/x.png'; expected {id} or a {column} in it"),
        ({**GIVEN, "image_url": "/{x}.png"}, "image_url of collection 'f' has {x}; expected {id} or a column of 'my faucets': id, emb\"ed, hash, photo"),
        ({**GIVEN, "image_url": "/{x.png"}, "image_url of collection 'f' is '/{x.png': expected '}' before end of string"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_answered_with_what_is_wrong(given, sentence, faucets):
    with pytest.raises(ConfigError) as raised:
        table_collection(faucets, "f", given)
    assert str(raised.value) == sentence


def test_many_threads_search_one_file(tmp_path):
    path = tmp_path / "photos.db"
    vectors = random_vectors(2000)
    llms_database(str(path), photos={str(n): v for n, v in enumerate(vectors)}).close()
    wrong = []

    def find(first: int) -> None:
        conn = sqlite3.connect(path)
        for n in range(first, 2000, 97):
            if ids(search.search(conn, open_collection(conn, "photos"), vectors[n], 1)) != [str(n)]:
                wrong.append(n)

    threads = [threading.Thread(target=find, args=[n]) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
