"""The floor of a collection is what unrelated texts reach in it, by plain numpy too."""

from __future__ import annotations

import numpy as np
import pytest

from clip_collections import floor
from clip_collections.collection import open_collection
from clip_collections.index import build
from llm_clip_onnx.vectors import unit
from stored import llms_database, random_vectors

ROWS = random_vectors(40, 16) + 1  # which share a part, as embeddings of one model do
TEXTS = dict(zip(floor.TEXTS, random_vectors(len(floor.TEXTS), 16, seed=2)))


@pytest.fixture
def conn():
    conn = llms_database(photos={f"{at:02d}": row for at, row in enumerate(ROWS)})
    conn.isolation_level = None
    yield conn
    conn.close()


def test_the_texts_are_fifty_and_different():
    assert len(set(floor.TEXTS)) == len(floor.TEXTS) == 50


def test_the_floor_is_what_nine_tenths_of_the_texts_stay_below(conn):
    photos = open_collection(conn, "photos")
    build.index(conn, photos)
    assert floor.floor_of(conn, photos, ROWS[0]) is None
    assert floor.write_floor(conn, photos, TEXTS.__getitem__)
    rows, texts = unit(ROWS.astype(np.float64)), unit(np.stack([*TEXTS.values()]).astype(np.float64))
    best, mean = (texts @ rows.T).max(1), texts @ rows.mean(0)
    least, margin = np.quantile(best, 0.9), np.quantile(best - mean, 0.9)
    for query in (ROWS[0], TEXTS["a footnote"], -ROWS[3]):
        expected = min(least, float(unit(query.astype(np.float64)[None])[0] @ rows.mean(0)) + margin)
        assert floor.floor_of(conn, photos, query) == pytest.approx(expected, abs=1e-6)  # the mean is float32
    found = [score >= floor.floor_of(conn, photos, TEXTS[text]) for text, score in zip(TEXTS, best)]
    assert np.mean(found) <= 0.2  # each of both is above one of the two in a tenth of the texts


def test_a_collection_that_is_not_indexed_or_of_another_size_has_no_floor(conn):
    photos = open_collection(conn, "photos")
    assert not floor.write_floor(conn, photos, TEXTS.__getitem__)
    build.index(conn, photos)
    floor.write_floor(conn, photos, TEXTS.__getitem__)
    assert floor.floor_of(conn, photos, np.ones(8, np.float32)) is None
    floor.write_floor(conn, photos, TEXTS.__getitem__)  # again, in place of the first
    assert conn.execute("select count(*) from clip_floors").fetchone() == (1,)
