"""The index finds what an exact search finds, after any change of the table and after killed or concurrent runs."""

from __future__ import annotations

import io
import os
import signal
import sqlite3
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import clip_vectors
from clip_collections import search, thumbnails
from clip_collections.collection import open_collection, table_collection
from clip_collections.index import build as indexing
from clip_collections.index import sign_bits
from clip_collections.index import store as index
from clip_collections.index.build import Report, connect
from llm_clip_onnx.errors import InputError
from llm_clip_onnx.vectors import to_blob
from nasty import photo, saved
from patience import PATIENCE_S, until
from serving import environment, run_llm
from stored import fill, ids, llms_database, oracle

DIM = 64


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Makes chunks and shortlists so small that few rows fill many of them."""
    monkeypatch.setattr(indexing, "CHUNK_ROWS", 128)
    monkeypatch.setattr(indexing, "READ_ROWS", 50)
    monkeypatch.setattr(sign_bits, "CANDIDATES", 500)
    monkeypatch.setattr(search, "SEGMENTS", (10, 40, 160))
    monkeypatch.setattr(search, "EXACT_ROWS", 60)
    monkeypatch.setattr(search, "FETCH_ROWS", 30)


def like_clips(n: int, seed: int = 0, dim: int = DIM) -> np.ndarray:
    """Vectors like CLIP's: a large mean, most of it in two dimensions, and a falling spectrum."""
    law = np.random.default_rng(7)
    axes = np.linalg.qr(law.standard_normal((dim, dim)))[0] * np.exp(-np.arange(dim) / 12)
    mean = law.standard_normal(dim) * 0.1
    mean[[5, 11]] = 2
    random = np.random.default_rng(seed)
    return ((random.standard_normal((n, dim)) @ axes.T + mean) * random.uniform(5, 15, (n, 1))).astype(np.float32)


def named(vectors: np.ndarray, first: int = 0) -> dict[str, np.ndarray]:
    return {f"{n:05}": v for n, v in enumerate(vectors, first)}


def opened(path, **collections) -> sqlite3.Connection:
    llms_database(str(path), **collections).close()
    return connect(str(path))


def made(conn: sqlite3.Connection, name: str = "photos") -> Report:
    return indexing.index(conn, open_collection(conn, name))


def found(conn: sqlite3.Connection, query: np.ndarray, k: int = 10, **more) -> list[object]:
    return ids(search.search(conn, open_collection(conn, "photos"), query, k, **more))


def expected(stored: dict, query: np.ndarray, k: int = 10) -> list[object]:
    return [id for id, _ in oracle(stored, query)[:k]]


def content_of(path) -> list[tuple]:
    """The index and the thumbnails of a file, without versions, times and random ids."""
    conn = sqlite3.connect(path)
    columns = "last, skipped, rowids, ids, bits, corrections, large"
    chunks = conn.execute(f"select {columns} from clip_index_chunks order by last").fetchall()
    facts = conn.execute("select source, collection, embed_dim, mean, dims, steps, vectors, skipped from clip_index")
    thumbs = conn.execute("select collection, id, image, row from clip_thumbnails order by 1, 2")
    return [*facts, *chunks, *thumbs]


@pytest.fixture
def used(monkeypatch):
    """Counts how often a search used the index, and how often it compared all rows."""
    counts = {"index": 0, "all": 0}
    genuine = search.search_index

    def search_index(*arguments):
        done = genuine(*arguments)
        counts["index" if done else "all"] += 1
        return done

    monkeypatch.setattr(search, "search_index", search_index)
    return counts


def recall(stored: dict, conn: sqlite3.Connection, queries: np.ndarray) -> float:
    return float(np.mean([len({*found(conn, q)} & {*expected(stored, q)}) / 10 for q in queries]))


@pytest.mark.parametrize("queries", [clip_vectors.queries, clip_vectors.other_modality], ids=["same", "other"])
def test_the_index_finds_what_is_nearest_also_to_queries_of_the_other_tower(queries, tmp_path, used):
    stored = named(np.concatenate(list(clip_vectors.made(5000))))
    conn = opened(tmp_path / "a.db", photos=stored)
    assert made(conn) == Report(vectors=5000, new=5000)
    assert recall(stored, conn, queries(40)) >= 0.97
    assert used == {"index": 40, "all": 0}


def test_without_8_bits_for_some_dimensions_it_would_not(tmp_path, monkeypatch):
    monkeypatch.setattr(sign_bits, "MEAN_DIMS", 0)
    monkeypatch.setattr(sign_bits, "DEVIATION_DIMS", 0)
    stored = named(np.concatenate(list(clip_vectors.made(5000))))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    assert recall(stored, conn, clip_vectors.other_modality(40)) < 0.97


def test_scores_are_exact_and_pages_are_stable(tmp_path):
    stored = named(np.concatenate([like_clips(2000), like_clips(30)]))  # 30 of them twice
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    query = stored["00007"]
    hits = search.search(conn, open_collection(conn, "photos"), query, 10)
    assert [hit.id for hit in hits[:2]] == ["00007", "02007"]
    np.testing.assert_allclose([hit.score for hit in hits], [s for _, s in oracle(stored, query)[:10]], atol=1e-12)
    pages = [id for offset in range(0, 10, 3) for id in found(conn, query, 3, offset=offset)]
    assert pages[:10] == ids(hits)


def test_where_and_skip_leave_as_many_as_are_asked_for(tmp_path, used):
    stored = named(like_clips(3000))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    query = like_clips(1, seed=3)[0]
    for low, high in (("00100", "00150"), ("00000", "02000"), ("02990", "09999"), ("x", "y")):
        wanted = {id: v for id, v in stored.items() if low <= id < high}
        best = expected(wanted, query, 13)
        got = found(conn, query, 10, where="id >= ? and id < ?", parameters=[low, high], skip=best[:3])
        assert got == best[3:13]
    assert used["all"] == 0


def test_rows_that_come_later_are_found_at_once_and_indexed_by_the_next_run(tmp_path, used):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored, other=named(like_clips(50)))
    made(conn)
    later = named(like_clips(300, seed=5), 1000)
    fill(conn, 2, named(like_clips(5, seed=6), 700))
    fill(conn, 1, later)
    stored |= later
    for query in list(later.values())[::60]:
        assert found(conn, query) == expected(stored, query)
    assert made(conn) == Report(vectors=1300, new=300)
    assert made(conn) == Report(vectors=1300)
    for query in list(later.values())[::60]:
        assert found(conn, query) == expected(stored, query)
    assert used["all"] == 0


def test_rows_that_are_replaced_or_deleted_are_found_as_they_are_now(tmp_path, used):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    replaced = {id: v for id, v in zip(list(stored)[::50], like_clips(20, seed=8))}
    fill(conn, 1, replaced)  # as llm does: under new rowids
    gone = list(stored)[7::100]
    conn.executemany("delete from embeddings where id = ?", [(id,) for id in gone])
    now = {id: v for id, v in (stored | replaced).items() if id not in gone}
    queries = [*replaced.values(), *(stored[id] for id in gone), *(stored[id] for id in replaced)]
    for query in queries:
        assert found(conn, query) == expected(now, query)
    assert made(conn) == Report(vectors=990, new=20, gone=30)
    for query in queries:
        assert found(conn, query) == expected(now, query)
    assert used["all"] == 0


def test_where_the_whole_neighbourhood_is_deleted_the_rest_is_found(tmp_path, caplog):
    """The whole shortlist of the query consists of deleted rows."""
    near, far = like_clips(600, 1) + 30, like_clips(600, 2) - 30
    stored = named(far) | named(near, 600)
    conn = opened(tmp_path / "d.db", photos=stored)
    made(conn)
    assert min(found(conn, near[0])) >= "00600"
    with conn:
        conn.execute("delete from embeddings where id >= '00600' and id < '01199'")
    left = {id_: v for id_, v in stored.items() if id_ < "00600" or id_ == "01199"}
    assert found(conn, near[0], 50) == expected(left, near[0], 50)
    assert "many rows of collection 'photos' that its index has are gone" in caplog.text


def test_no_page_repeats_a_row_or_leaves_one_out(tmp_path):
    """Random vectors, because a shortlist finds the fewest of their neighbours."""
    stored = named(np.random.default_rng(3).standard_normal((1000, DIM)).astype(np.float32))
    conn = opened(tmp_path / "p.db", photos=stored)
    made(conn)
    query = np.random.default_rng(4).standard_normal(DIM).astype(np.float32)
    paged = [id_ for offset in range(0, 300, 7) for id_ in found(conn, query, 7, offset=offset)]
    assert len(set(paged)) == len(paged) == 301
    assert paged == found(conn, query, 301)
    assert sorted(found(conn, query, 1000)) == sorted(stored)


def test_a_new_row_with_the_rowid_of_one_that_was_deleted_is_found(tmp_path, used):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    for id in ("00999", "00998"):
        conn.execute("delete from embeddings where id = ?", [id])
        del stored[id]
    fill(conn, 1, later := named(like_clips(2, seed=9), 2000))
    stored |= later
    for query in later.values():
        assert found(conn, query) == expected(stored, query)
    assert used == {"index": 2, "all": 0}
    assert made(conn) == Report(vectors=1000, new=2)


def test_a_vector_that_is_changed_in_its_row_is_indexed_by_the_next_run(tmp_path):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    stored["00500"] = like_clips(1, seed=10)[0]
    conn.execute("update embeddings set embedding = ? where id = '00500'", [to_blob(stored["00500"])])
    assert made(conn) == Report(vectors=1000, new=1)
    assert found(conn, stored["00500"]) == expected(stored, stored["00500"])


def test_rowids_that_vacuum_gives_anew_are_noticed(tmp_path, used, caplog):
    path = tmp_path / "a.db"
    conn = connect(str(path))
    conn.execute("create table photos (name text, v blob)")  # of a table without an index VACUUM changes the rowids
    stored = named(like_clips(1000))
    conn.executemany("insert into photos values (?, ?)", [(id, to_blob(v)) for id, v in stored.items()])
    of = table_collection(conn, "photos", {"table": "photos", "vector": "v", "id": "name"})
    indexing.index(conn, of)
    conn.execute("delete from photos where name < '00010'")
    for n in range(10):
        del stored[f"{n:05}"]
    conn.execute("vacuum")
    assert conn.execute("select min(rowid), max(rowid) from photos").fetchone() == (1, 990)
    queries = like_clips(5, seed=11)
    for query in queries:
        assert ids(search.search(conn, of, query, 10)) == expected(stored, query)
    assert used == {"index": 0, "all": 5}
    told = [record.message for record in caplog.records]
    assert told == [
        "the last rows of collection 'photos' are not those of its index any more, and search is slow until "
        "`llm clip index` is run again"
    ]
    indexing.index(conn, of)
    assert ids(search.search(conn, of, queries[0], 10)) == expected(stored, queries[0])
    assert used["index"] == 1


def test_rows_that_changed_places_are_noticed(tmp_path, used, caplog):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    conn.execute("update embeddings set rowid = -rowid where rowid < 900")
    conn.execute("update embeddings set rowid = rowid + 900 where rowid < 0")
    query = stored["00100"]
    assert found(conn, query) == expected(stored, query)
    assert used == {"index": 0, "all": 1}
    assert "rowids of collection 'photos' are not those of its index any more" in caplog.text


CHANGES = st.lists(
    st.tuples(st.sampled_from(["add", "delete", "replace", "change", "null", "index"]), st.integers(0, 10**6)),
    max_size=12,
)


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_whatever_is_done_to_a_table_a_run_makes_what_a_new_index_would_be(changes):
    """Only the mean and the ends of the chunks may differ."""
    conn = llms_database(photos=named(like_clips(300)))
    conn.isolation_level = None
    made(conn)
    for what, seed in changes:
        names = [id for (id,) in conn.execute("select id from embeddings order by id")]
        some = [names[(seed + 7 * n) % len(names)] for n in range(20)] if names else []
        new = [to_blob(v) for v in like_clips(20, seed=seed)]
        if what == "add":
            fill(conn, 1, {f"n{seed}-{n}": v for n, v in enumerate(new)})
        elif what == "delete":
            conn.executemany("delete from embeddings where id = ?", [(id,) for id in some])
        elif what == "replace":
            fill(conn, 1, dict(zip(some, new)))
        elif what == "change":
            conn.executemany("update embeddings set embedding = ? where id = ?", zip(new, some))
        elif what == "null":
            conn.executemany("update embeddings set embedding = null where id = ?", [(id,) for id in some])
        elif open_collection(conn, "photos").embed_dim:
            made(conn)
    of = open_collection(conn, "photos")
    if of.embed_dim is None:
        return
    report = made(conn)
    assert (report.vectors + report.skipped,) == conn.execute("select count(*) from embeddings").fetchone()
    held = index.current_index(conn, of, DIM)
    rowids, units = [], []
    for rowid, blob in conn.execute("select rowid, embedding from embeddings where embedding not null order by rowid"):
        rowids.append(rowid)
        units.append(np.frombuffer(blob, np.float32))
    one = sign_bits.join_chunks([chunk for _, chunk in held.chunks.values()])
    assert one.rowids.tolist() == rowids
    if rowids:
        units = np.array(units) / np.linalg.norm(np.array(units, np.float64), axis=1, keepdims=True)
        wrong = np.unpackbits(one.bits.T.copy().view(np.uint8), axis=1) != (units > held.facts.code.mean)
        assert wrong.mean() < 1e-3  # what lies on the mean to the last digit


def test_what_is_no_vector_is_passed_over_and_counted(tmp_path):
    odd = {
        "x1": None,
        "x2": np.zeros(DIM, np.float32),
        "x3": b"abc",
        "x4": np.full(DIM, np.nan, np.float32),
        "x5": "text",
    }
    huge = {"y1": np.full(DIM, 3e38, np.float32), "y2": np.full(DIM, 1e-38, np.float32)}
    stored = named(like_clips(500)) | odd | huge
    conn = opened(tmp_path / "a.db", photos=stored)
    assert made(conn) == Report(vectors=502, new=502, skipped=5)
    assert made(conn) == Report(vectors=502, skipped=5)
    assert found(conn, np.ones(DIM, np.float32), 2) == ["y1", "y2"]
    with pytest.raises(InputError, match="collection 'none' has no vectors"):
        indexing.index(conn, open_collection(llms_database(none={}), "none"))


def test_an_index_of_few_vectors_is_made_anew_when_there_are_many(tmp_path):
    conn = opened(tmp_path / "a.db", photos=named(like_clips(100)))
    made(conn)
    fill(conn, 1, named(like_clips(200, seed=1), 100))
    made(conn)
    assert conn.execute("select mean_of from clip_index").fetchone() == (100,)
    fill(conn, 1, named(like_clips(200, seed=2), 300))
    assert made(conn) == Report(vectors=500, new=500)
    assert conn.execute("select count(*), mean_of from clip_index").fetchone() == (1, 500)


def test_a_second_run_at_the_same_time_is_refused(tmp_path):
    stored = named(like_clips(1000))
    conn = opened(tmp_path / "a.db", photos=stored)
    other = connect(str(tmp_path / "a.db"))
    begun = []

    def on_rows(count):
        if not begun:
            begun.append(made(other))

    with pytest.raises(InputError) as raised:
        indexing.index(conn, open_collection(conn, "photos"), on_rows)
    assert str(raised.value) == "collection 'photos' is being indexed by another `llm clip index`: let it finish"
    assert made(conn) == Report(vectors=1000)


def test_a_read_only_and_an_immutable_file_are_searched_by_their_index(tmp_path, used):
    stored = named(like_clips(1000))
    path = tmp_path / "a.db"
    made(opened(path, photos=stored))
    for mode in ("mode=ro", "immutable=1"):
        conn = sqlite3.connect(f"file:{path}?{mode}", uri=True)
        conn.row_factory = sqlite3.Row
        query = stored["00123"]
        assert found(conn, query) == expected(stored, query)
    assert used == {"index": 2, "all": 0}


RUN = """
import os, signal, sys
from clip_collections import thumbnails
from clip_collections.collection import open_collection
from clip_collections.index import build
build.CHUNK_ROWS, build.READ_ROWS, thumbnails.BATCH_IMAGES = 128, 50, 4
conn, end_at, moments = build.connect(sys.argv[1]), int(sys.argv[2]), 0
conn.execute("pragma cache_size = 8")  # pages, so that a transaction is in the file before it is committed
def count():
    global moments
    moments += 1
    if moments == end_at:
        os.kill(os.getpid(), signal.SIGKILL)
conn.set_progress_handler(count, 20)
photos = open_collection(conn, "photos")
build.index(conn, photos)
thumbnails.write_thumbnails(conn, photos, thumbnails.rows_without_thumbnail(conn, photos))
print(moments)
"""


def with_images(path, n: int) -> None:
    conn = opened(path, photos=named(like_clips(n)))
    with conn:
        conn.executemany(
            "update embeddings set content_blob = ? where id = ?",
            [(saved(photo(60 + k, 40), "PNG"), f"{k * 9:05}") for k in range(n // 9)],
        )
    conn.close()


def test_killed_at_any_moment_and_run_again_it_is_what_one_run_makes(tmp_path):
    """Each run kills itself at a random point within its SQL, and the next one goes on from there."""
    with_images(tmp_path / "whole.db", 3000)
    with_images(tmp_path / "killed.db", 3000)
    env = environment(tmp_path / "llm")

    def run(name: str, end_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", RUN, str(tmp_path / name), str(end_at)]
        return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True)

    whole = run("whole.db", 0)
    assert whole.returncode == 0
    half_done, query = 0, like_clips(1, seed=1)[0]
    for end_at in np.linspace(1, int(whole.stdout), 12).astype(int) // 3 + 1:
        assert run("killed.db", end_at).returncode == -signal.SIGKILL
        half_done += (tmp_path / "killed.db-journal").exists()
        conn = sqlite3.connect(tmp_path / "killed.db")
        assert conn.execute("pragma integrity_check").fetchone() == ("ok",)
        assert found(conn, query) == expected(named(like_clips(3000)), query)
        conn.close()
    assert half_done > 0
    assert run("killed.db", 0).returncode == 0
    assert content_of(tmp_path / "killed.db") == content_of(tmp_path / "whole.db")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_a_file_is_searched_right_while_it_is_indexed_and_written(journal, tmp_path):
    path = tmp_path / "a.db"
    stored = named(like_clips(3000))
    conn = opened(path, photos=stored)
    conn.execute(f"pragma journal_mode = {journal}")
    ended, wrong, searched = threading.Event(), [], [0, 0, 0]

    def search_on(number: int) -> None:
        reader = sqlite3.connect(path, timeout=PATIENCE_S)
        reader.row_factory = sqlite3.Row
        try:
            while not ended.is_set():
                wanted = f"{(number + searched[number]) * 100 % 3000:05}"
                if found(reader, stored[wanted], 1) != [wanted]:
                    wrong.append(wanted)
                searched[number] += 1
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=search_on, args=[n]) for n in range(3)]
    for thread in threads:
        thread.start()
    for round_ in range(4):
        made(conn)
        fill(conn, 1, named(like_clips(200, seed=round_ + 20), 10_000 + 200 * round_))
        before = [*searched]
        until(lambda: wrong or all(now > then for now, then in zip(searched, before)))  # noqa: B023
    ended.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_an_index_of_another_file_in_its_place_is_not_believed(tmp_path):
    a, b = named(like_clips(500)), named(like_clips(500, seed=1))
    made(opened(tmp_path / "a.db", photos=a))
    made(opened(tmp_path / "b.db", photos=b))
    assert found(sqlite3.connect(tmp_path / "a.db"), a["00003"], 1) == ["00003"]
    os.replace(tmp_path / "b.db", tmp_path / "a.db")
    query = like_clips(1, seed=3)[0]
    assert found(sqlite3.connect(tmp_path / "a.db"), query) == expected(b, query)


def test_an_index_of_another_format_is_left_alone_until_it_is_made_anew(tmp_path, used):
    stored = named(like_clips(500))
    conn = opened(tmp_path / "a.db", photos=stored)
    made(conn)
    conn.execute("update clip_index set format = 7")
    assert found(conn, stored["00003"], 1) == ["00003"]
    assert used == {"index": 0, "all": 0}
    assert made(conn) == Report(vectors=500, new=500)


def thumbnail_size(blob: bytes) -> tuple[int, int]:
    assert len(blob) <= 20_000
    image = Image.open(io.BytesIO(blob))
    assert (image.format, image.mode) == ("WEBP", "RGB")
    return image.size


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (lambda: saved(photo(600, 400), "PNG"), (320, 213)),
        (lambda: saved(photo(400, 600), "JPEG"), (213, 320)),
        (lambda: saved(photo(3000, 2000), "JPEG"), (320, 213)),
        (lambda: saved(photo(3000, 2000), "PNG"), (320, 213)),
        (lambda: saved(photo(72, 40), "PNG"), (72, 40)),
        (lambda: saved(photo(1, 1), "PNG"), (1, 1)),
        (lambda: saved(photo(1, 3000), "PNG"), (1, 320)),
    ],
)
def test_a_thumbnail_keeps_the_shape_and_is_small(image, size):
    assert thumbnail_size(thumbnails.make_thumbnail(image())) == size


def test_a_thumbnail_of_noise_is_small_too():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    assert thumbnail_size(thumbnails.make_thumbnail(saved(noise, "PNG"))) == (320, 320)


def test_a_thumbnail_is_upright_and_what_is_transparent_white():
    clear = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    assert Image.open(io.BytesIO(thumbnails.make_thumbnail(saved(clear, "PNG")))).getpixel((9, 9)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("RGB", (300, 100), "red")
    lying.paste("blue", (150, 0, 300, 100))
    stream = io.BytesIO()
    lying.save(stream, "JPEG", exif=exif)
    upright = Image.open(io.BytesIO(thumbnails.make_thumbnail(stream.getvalue())))
    assert upright.size == (100, 300)
    assert upright.getpixel((40, 20))[0] > 200 > 50 > upright.getpixel((40, 20))[2]


def test_llm_clip_index(tmp_path):
    path = tmp_path / "photos.db"
    stored = named(like_clips(50))
    conn = opened(path, photos=stored, empty={})
    conn.execute("update embeddings set content_blob = ? where id = '00001'", [saved(photo(600, 400), "PNG")])
    conn.execute("update embeddings set content_blob = x'00' where id = '00002'")
    env = environment(tmp_path / "llm")

    def run(*arguments: str, ok: bool = True) -> list[str]:
        return run_llm("clip", "index", str(path), *arguments, env=env, ok=ok).stderr.splitlines()

    lines = run("--no-thumbnails")
    assert lines[1].startswith("photos: 50 rows can be searched; indexed in ")
    assert lines[2:] == ["empty: there is nothing to index"]
    photos = open_collection(conn, "photos")
    assert thumbnails.read_thumbnail(conn, photos, "00001") is None
    lines = run("-c", "photos")
    assert lines[1].startswith("photos: 50 rows can be searched; indexed in ")
    assert lines[3].startswith("photos: 2 thumbnails made in ")
    assert lines[4] == "photos: no thumbnail of 1 image that cannot be read"
    assert thumbnail_size(thumbnails.read_thumbnail(conn, photos, "00001")) == (320, 213)
    assert [thumbnails.read_thumbnail(conn, photos, id) for id in ("00002", "00003", "x")] == [None] * 3
    assert len(run()) == 4  # and no thumbnail is made again
    fill(conn, 1, {"00001": stored["00003"]})
    assert thumbnails.read_thumbnail(conn, photos, "00001") is None  # of the row that was replaced
    run()
    assert conn.execute("select count(*) from clip_thumbnails").fetchone() == (1,)
    assert run("-c", "pets", ok=False) == ["Error: there is no collection 'pets'; there are 'photos', 'empty'"]
    conn.execute("create table faucets (id integer primary key, v blob, photo blob)")
    conn.execute("insert into faucets values (7, ?, ?)", [to_blob(stored["00003"]), saved(photo(60, 40), "PNG")])
    given = ("--table", "faucets", "--vector", "v", "--image", "photo")
    assert run(*given)[3].startswith("faucets: 1 thumbnail made")
    faucets = table_collection(conn, "faucets", {"table": "faucets", "vector": "v", "image": "photo"})
    assert thumbnail_size(thumbnails.read_thumbnail(conn, faucets, 7)) == (60, 40)
    assert thumbnail_size(thumbnails.read_thumbnail(conn, faucets, "7")) == (60, 40)
    assert run("--table", "faucets", ok=False) == [
        "Error: collection 'faucets' has no 'vector'; expected the name of its column of vectors"
    ]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_rows_without_a_usable_vector_are_said_in_a_sentence(bad, tmp_path):
    vectors = named(like_clips(50)) | {"x1": np.full(DIM, bad, np.float32), "x2": np.float32([bad] + [1] * (DIM - 1))}
    opened(tmp_path / "photos.db", photos=vectors)
    done = run_llm("clip", "index", str(tmp_path / "photos.db"), env=environment(tmp_path / "llm"))
    lines = done.stderr.splitlines()
    assert lines[1].startswith("photos: 50 rows can be searched; indexed in ")
    assert lines[2:] == [
        "photos: search leaves out 2 rows without a usable vector: NULL, of another size, all zeros, or with infinities"
        " or NaN"
    ]


def test_a_blank_name_is_no_collection(tmp_path):
    opened(tmp_path / "photos.db", photos=named(like_clips(2)))
    arguments = ["--table", "embeddings", "--vector", "embedding", "--id", "id", "-c", " "]
    done = run_llm(
        "clip", "index", str(tmp_path / "photos.db"), *arguments, env=environment(tmp_path / "llm"), ok=False
    )
    assert done.stderr == "Error: a name after -c is blank; expected the name of a collection\n"


@pytest.mark.parametrize("content", [b"no database" * 100, b""])
def test_a_file_that_is_no_database_ends_in_a_sentence(content, tmp_path):
    (tmp_path / "x.db").write_bytes(content)
    done = run_llm("clip", "index", str(tmp_path / "x.db"), env=environment(tmp_path / "llm"), ok=False)
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr


def test_the_bytes_of_a_held_index_are_those_of_all_its_arrays(tmp_path):
    conn = opened(tmp_path / "photos.db", photos=named(like_clips(500)))
    photos = open_collection(conn, "photos")
    indexing.index(conn, photos)
    sizes = "length(rowids) + length(ids) + length(bits) + length(corrections) + length(large)"
    [(stored,)] = conn.execute(f"select sum({sizes}) from clip_index_chunks").fetchall()
    assert index.current_index(conn, photos, photos.embed_dim).bytes == stored
