"""The ways to search a million vectors that bench/search.py compares, each in a process of its own.

    python bench/searchers.py build NAME FOLDER [K]     prints {"build_s", "build_peak_mb", "disk_mb"} as JSON
    python bench/searchers.py query NAME FOLDER [K]     prints {"ready_s", "times_ms", "held_mb", ..., "found"}

FOLDER holds collection.db, a file as `llm embed-multi` writes it, and queries.npy; what a searcher makes goes beside
them. Nothing is imported but what a searcher needs, so that memory is that of Python, NumPy and the searcher. Each uses
as many threads as it does by itself. Ids are the texts "0", "1", ... in the order of the rows.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DIM = 512
COLLECTION = "photos"
LIMIT_S = 10  # of queries in one process; fewer are asked where it is reached
FEWEST = 5

Ask = Callable[[NDArray[np.float32], int], list[str]]


@dataclass(frozen=True)
class Searcher:
    """One way to search: `open` gives a function from a query [512] and k to ids, `build` makes `file` before that.

    largest: of the sizes at which it is measured; why: it is not at larger ones. needs: a module.
    """

    name: str
    open: Callable[[Path], Ask]
    build: Callable[[Path], None] | None = None
    file: str = ""
    approximate: bool = False
    largest: int = 1_000_000
    why: str = ""
    needs: str = ""


def opened(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{file}?mode=ro", uri=True)


def with_sqlite_vec(file: Path) -> Any:
    """A connection with sqlite-vec: sqlite3's, or apsw's where this Python's sqlite3 loads no extensions."""
    import sqlite_vec

    if hasattr(sqlite3.Connection, "enable_load_extension"):
        connection: Any = sqlite3.connect(file, isolation_level=None)
    else:
        import apsw

        connection = apsw.Connection(str(file))
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    return connection


def chunks(file: Path) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """All ids and vectors of a file of llm's, in chunks."""
    rows = opened(file).execute("select id, embedding from embeddings")
    while chunk := rows.fetchmany(4096):
        yield [id for id, _ in chunk], np.frombuffer(b"".join(blob for _, blob in chunk), "<f4").reshape(-1, DIM)


def matrix(file: Path) -> tuple[list[str], NDArray[np.float32]]:
    """All ids, and all vectors as units: [n, 512] float32."""
    count = opened(file).execute("select count(*) from embeddings").fetchone()[0]
    ids, vectors = [], np.empty((count, DIM), np.float32)
    for some, chunk in chunks(file):
        vectors[len(ids) : len(ids) + len(some)] = chunk / np.linalg.norm(chunk, axis=1, keepdims=True)
        ids += some
    return ids, vectors


def best(ids: list[str], scores: NDArray[np.float32], k: int) -> list[str]:
    top = np.argpartition(-scores, min(k, len(scores) - 1))[:k]
    return [ids[at] for at in top[np.argsort(-scores[top])]]


def numpy_file(place: Path) -> Ask:
    def ask(query: NDArray[np.float32], k: int) -> list[str]:
        ids, scores = [], []
        for some, vectors in chunks(place / "collection.db"):
            ids += some
            scores.append(vectors @ query / np.linalg.norm(vectors, axis=1))
        return best(ids, np.concatenate(scores), k)

    return ask


def numpy_memory(place: Path) -> Ask:
    ids, vectors = matrix(place / "collection.db")
    return lambda query, k: best(ids, vectors @ query, k)


def asking(connection: Any, sql: str) -> Ask:
    """A function that runs a query with :q, a vector blob, and :k."""

    def ask(query: NDArray[np.float32], k: int) -> list[str]:
        return [str(row[0]) for row in connection.execute(sql, {"q": query.tobytes(), "k": k}).fetchall()]

    return ask


def sqlite_vec_exact(place: Path) -> Ask:
    sql = "select id from embeddings order by vec_distance_cosine(embedding, :q) limit :k"
    return asking(with_sqlite_vec(place / "collection.db"), sql)


def copying(file: str, columns: str, values: str) -> Callable[[Path], None]:
    """What makes a vec0 table `vectors` in a file of its own, from all of llm's rows, in one transaction."""

    def build(place: Path) -> None:
        connection = with_sqlite_vec(place / file)
        connection.execute(f"create virtual table vectors using vec0(id integer primary key, {columns})")
        connection.execute(f"attach '{place / 'collection.db'}' as llm")
        connection.execute("begin")
        connection.execute(f"insert into vectors select rowid, {values} from llm.embeddings")
        connection.execute("commit")
        connection.close()

    return build


def sqlite_vec_bits(shortlist: int) -> Callable[[Path], Ask]:
    """sqlite-vec's documented way: bits in a vec0 table, then the shortlist by cosine of llm's blobs."""

    def open_(place: Path) -> Ask:
        connection = with_sqlite_vec(place / "bits.db")
        connection.execute(f"attach '{place / 'collection.db'}' as llm")
        return asking(
            connection,
            f"""with near as materialized (select id as number from vectors
                    where bits match vec_quantize_binary(:q) and k = {shortlist})
                select id from near join llm.embeddings on embeddings.rowid = number
                order by vec_distance_cosine(embedding, :q) limit :k""",
        )

    return open_


def sqlite_vec_table(file: str) -> Callable[[Path], Ask]:
    """A vec0 table that holds the vectors: its ids are llm's rowids, which begin at 1."""
    sql = "select id - 1 from vectors where vector match :q and k = :k"
    return lambda place: asking(with_sqlite_vec(place / file), sql)


def datasette_faiss(place: Path) -> Ask:
    """As datasette-faiss does it when Datasette starts: all rows as tuples of Python floats, then an index of them."""
    import asyncio

    import datasette_faiss as plugin

    connection = opened(place / "collection.db")

    class Database:
        async def execute_fn(self, function: Callable) -> None:
            function(connection)

    class Datasette:
        def get_database(self, name: str) -> Database:
            return Database()

    asyncio.run(plugin.populate_index(Datasette(), "photos", "embeddings"))
    connection.create_function("faiss_search", 4, plugin.faiss_search)
    return asking(connection, "select value from json_each(faiss_search('photos', 'embeddings', :q, :k))")


def faiss_flat(place: Path) -> Ask:
    """The index that datasette-faiss makes, filled chunk by chunk."""
    import faiss

    index, ids = faiss.IndexFlatL2(DIM), []
    for some, vectors in chunks(place / "collection.db"):
        index.add(vectors)
        ids += some
    return lambda query, k: [ids[at] for at in index.search(query[None], k)[1][0]]


def build_usearch(place: Path) -> None:
    from usearch.index import Index

    index, count = Index(ndim=DIM, metric="cos", dtype="i8"), 0
    for some, vectors in chunks(place / "collection.db"):
        index.add(np.arange(count, count + len(some)), vectors)
        count += len(some)
    index.save(str(place / "usearch.index"))


def usearch(place: Path) -> Ask:
    """usearch's HNSW graph with vectors of 8 bits, mapped from its file, and what it finds by the blobs' cosine."""
    from usearch.index import Index

    index = Index.restore(str(place / "usearch.index"), view=True)
    connection = opened(place / "collection.db")

    def ask(query: NDArray[np.float32], k: int) -> list[str]:
        keys = [int(key) + 1 for key in index.search(query, 4 * k).keys]
        marks = ",".join("?" * len(keys))
        rows = connection.execute(f"select id, embedding from embeddings where rowid in ({marks})", keys).fetchall()
        return best([id for id, _ in rows], np.array([np.frombuffer(blob, "<f4") @ query for _, blob in rows]), k)

    return ask


def llm_embed_cosine(register: Callable[[sqlite3.Connection], None]) -> Callable[[Path], Ask]:
    def open_(place: Path) -> Ask:
        connection = opened(place / "collection.db")
        register(connection)
        return asking(connection, "select id from embeddings order by llm_embed_cosine(embedding, :q) desc limit :k")

    return open_


def their_function(connection: sqlite3.Connection) -> None:
    import datasette_llm_embed

    connection.create_function("llm_embed_cosine", 2, datasette_llm_embed.llm_embed_cosine)


def our_function(connection: sqlite3.Connection) -> None:
    from datasette_clip.config import Config
    from datasette_clip.sql import functions as sql_functions

    sql_functions.register(connection, Config())


def ours(file: str) -> Callable[[Path], Ask]:
    def open_(place: Path) -> Ask:
        from clip_collections.collection import open_collection
        from clip_collections.search import search

        connection = opened(place / file)
        collection = open_collection(connection, COLLECTION)
        return lambda query, k: [str(hit.id) for hit in search(connection, collection, query, k)]

    return open_


def build_ours(place: Path) -> None:
    index = [sys.executable, "-m", "llm", "clip", "index", str(place / "indexed.db"), "-c", COLLECTION]
    subprocess.run(index, check=True, stdout=subprocess.DEVNULL)


build_bits = copying("bits.db", f"bits bit[{DIM}]", "vec_quantize_binary(embedding)")
VECTOR = f"vector float[{DIM}] distance_metric=cosine indexed by"
build_rescore = copying("rescore.db", f"{VECTOR} rescore(quantizer=bit, oversample=128)", "embedding")
build_diskann = copying("diskann.db", f"{VECTOR} diskann(neighbor_quantizer=binary)", "embedding")
SLOW, FLOATS = "a query takes seconds", "it opens 300,000 in 8.8 GB, and more in more"
BUILDING = "building takes a millisecond or more for each vector, and more for each the more there are"

ALL = (
    Searcher("numpy, from the file", numpy_file),
    Searcher("numpy, all in memory", numpy_memory),
    Searcher("datasette-llm-embed", llm_embed_cosine(their_function), largest=20_000, why=SLOW),
    Searcher("sqlite-vec, exact", sqlite_vec_exact, needs="sqlite_vec"),
    Searcher("sqlite-vec, bits, best 100", sqlite_vec_bits(100), build_bits, "bits.db", True, needs="sqlite_vec"),
    Searcher("sqlite-vec, bits, best 4000", sqlite_vec_bits(4000), build_bits, "bits.db", True, needs="sqlite_vec"),
    Searcher(
        "sqlite-vec, rescore index",
        sqlite_vec_table("rescore.db"),
        build_rescore,
        "rescore.db",
        True,
        needs="sqlite_vec",
    ),
    Searcher(
        "sqlite-vec, DiskANN index",
        sqlite_vec_table("diskann.db"),
        build_diskann,
        "diskann.db",
        True,
        largest=20_000,
        why=BUILDING,
        needs="sqlite_vec",
    ),
    Searcher("datasette-faiss", datasette_faiss, largest=300_000, why=FLOATS, needs="datasette_faiss"),
    Searcher("faiss, all in memory", faiss_flat, needs="faiss"),
    Searcher(
        "usearch, from its file",
        usearch,
        build_usearch,
        "usearch.index",
        True,
        largest=300_000,
        why=BUILDING,
        needs="usearch",
    ),
    Searcher("ours, llm_embed_cosine", llm_embed_cosine(our_function)),
    Searcher("ours, no index", ours("collection.db")),
    Searcher("ours, indexed", ours("indexed.db"), build_ours, "indexed.db", True),
)
SEARCHERS = {searcher.name: searcher for searcher in ALL}


def kilobytes(key: str) -> int:
    return int(re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])


def build(searcher: Searcher, place: Path) -> dict[str, float]:
    """Make a searcher's file, and tell how long that takes, how much memory, and how large it is."""
    file, before = place / searcher.file, 0
    for old in place.glob(f"{searcher.file}*"):
        old.unlink()
    if searcher.file == "indexed.db":  # a copy, so that the collection is searched without its index, too
        shutil.copy(place / "collection.db", file)
        before = file.stat().st_size
    begun_s = time.perf_counter()
    searcher.build(place)
    took_s = time.perf_counter() - begun_s
    who = resource.RUSAGE_CHILDREN if searcher.file == "indexed.db" else resource.RUSAGE_SELF
    size = sum(part.stat().st_size for part in place.glob(f"{searcher.file}*")) - before
    return {"build_s": took_s, "build_peak_mb": resource.getrusage(who).ru_maxrss / 1e3, "disk_mb": size / 1e6}


def query(searcher: Searcher, place: Path, k: int) -> dict[str, Any]:
    """Open a searcher and ask it the queries, until they are asked or LIMIT_S are over."""
    queries = np.load(place / "queries.npy")
    begun_s = time.perf_counter()
    ask = searcher.open(place)
    open_s, held_kb = time.perf_counter() - begun_s, 0
    found, times_ms, cpu_ms = [], [], []
    for one in (queries[0], *queries):  # the first one twice: some read their index when they are first asked
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        found.append(ask(one, k))
        cpu_ms.append(1000 * (time.process_time() - start_cpu_s))
        times_ms.append(1000 * (time.perf_counter() - start_s))
        held_kb = held_kb or kilobytes("VmRSS")
        if start_s - begun_s - open_s > LIMIT_S and len(found) > FEWEST:
            break
    memory = {"held_mb": held_kb, "peak_mb": kilobytes("VmHWM"), "anonymous_mb": kilobytes("RssAnon")}
    return {
        "open_s": open_s,
        "first_ms": times_ms[0],
        "ready_s": open_s + times_ms[0] / 1000,
        "times_ms": times_ms[1:],
        "cpu_ms": cpu_ms[1:],
        **{name: kb * 1024 / 1e6 for name, kb in memory.items()},
        "found": found[1:],
    }


def main() -> None:
    act, name, folder, *k = sys.argv[1:]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if act == "build":
        result = build(SEARCHERS[name], Path(folder))
    else:
        result = query(SEARCHERS[name], Path(folder), int(k[0]) if k else 10)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
