"""Measures ways to search a collection of 1,000 to 1,000,000 vectors: time, what is found, memory, building, size.

    python bench/search.py [--sizes 1000 20000 300000 1000000] [--rounds 3] [--only TEXT] [--to FILE]
    python bench/search.py --real FILE.npy       recall of every approximate way on vectors of your own, printed only

What is searched is a SQLite file with llm's tables, of vectors that bench/clip_vectors.py makes; who searches is in
bench/searchers.py. In a round the searchers take turns, forwards or backwards, each in a new process that opens the
file and is asked up to 60 queries for 10 ids: every other one is drawn from the law of the vectors, the rest are as
the other tower's. A figure is the median over rounds. Files were read before, by making them: a query waits for no
disk where memory suffices. NumPy's products run on one thread (two wait for one another where others use the cores,
and gain little), other libraries on as many as they take. `--to` keeps what it holds of other sizes and searchers:
each says when it was measured, and under which load. CPU time, of all threads, is less disturbed by that.

FILE.npy: [n, 512] or [512, n]. Each of its vectors is a query for the others; that says nothing of queries of another
modality.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_utils
from llm.embeddings_migrations import embeddings_migrations
from numpy.typing import NDArray

import clip_vectors
from recipe import medians_of, origin, put_away_when_told_to_end, say
from searchers import COLLECTION, SEARCHERS, Searcher

SIZES = (1_000, 20_000, 300_000, 1_000_000)
K = 10
QUERIES = 60
START_LIMIT_S = 7200  # for building
SEEN = ("faiss-cpu", "usearch", "sqlite-vec", "apsw", "datasette-faiss", "datasette-llm-embed", "llm", "numpy")

COLUMNS = {  # figure: what the table calls it, digits after the point
    "p50_ms": ("query p50, ms", 1),
    "cpu_ms": ("of the CPU, ms", 1),
    "recall": ("recall@10", 3),
    "recall_other": ("other tower's", 3),
    "held_mb": ("held, MB", 0),
    "peak_mb": ("peak, MB", 0),
    "ready_s": ("first answer, s", 2),
    "build_s": ("building, s", 1),
    "disk_mb": ("its files, MB", 0),
}


BRIEF_HEAD = "| | 20,000: ms | 1,000,000: ms | recall of the 10 best | peak MB | first answer, s | its index: s, MB |"
BRIEF = {  # searcher: what README calls it
    "datasette-llm-embed": "datasette-llm-embed's function",
    "datasette-faiss": "datasette-faiss, 8.8 GB for 300,000",
    "faiss, all in memory": "faiss, all in memory",
    "numpy, all in memory": "NumPy, all in memory",
    "numpy, from the file": "NumPy, from the file",
    "sqlite-vec, exact": "sqlite-vec, exact",
    "sqlite-vec, bits, best 100": "sqlite-vec, bits, 100 compared exactly",
    "sqlite-vec, bits, best 4000": "sqlite-vec, bits, 4000 compared exactly",
    "sqlite-vec, rescore index": "sqlite-vec 0.1.10a4, rescore index",
    "ours, llm_embed_cosine": "here, `order by llm_embed_cosine` in SQL",
    "ours, no index": "here, no index",
    "ours, indexed": "here, `llm clip index`",
}


def write_collection(
    place: Path, chunks: Iterable[NDArray[np.float32]], queries: NDArray[np.float32], k: int
) -> dict[str, Any]:
    """collection.db, queries.npy and truth.npy in `place`: ids of the k of largest cosine, best first.

    Gives the file's size, and the share of those ids in shortlists by sign bits, for queries of the law of the vectors.
    """
    np.save(place / "queries.npy", queries)
    database = sqlite_utils.Database(place / "collection.db")
    embeddings_migrations.apply(database)
    database["collections"].insert({"id": 1, "name": COLLECTION, "model": "clip"})
    count = 0
    top = np.full((len(queries), k), -2, np.float32)
    ids = np.full((len(queries), k), -1)
    agreeing = []
    for vectors in chunks:
        numbers = range(count, count + len(vectors))
        with database.conn:
            database.conn.executemany(
                "insert into embeddings (collection_id, id, embedding, content_hash, updated) values (1, ?, ?, ?, 0)",
                ((str(n), v.tobytes(), hashlib.md5(v.tobytes()).digest()) for n, v in zip(numbers, vectors)),
            )
        scores = np.concatenate([top, queries @ vectors.T], axis=1)
        names = np.concatenate([ids, np.tile(np.array(numbers), (len(queries), 1))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        top, ids = np.take_along_axis(scores, order, axis=1), np.take_along_axis(names, order, axis=1)
        agreeing.append(clip_vectors.signs_agreeing(queries[::2], vectors))
        count += len(vectors)
    database.close()
    np.save(place / "truth.npy", ids)
    hardness = clip_vectors.in_shortlists(np.concatenate(agreeing, axis=1), ids[::2, :10])
    return {"collection_mb": (place / "collection.db").stat().st_size / 1e6, "hardness": hardness}


def mixed_queries(count: int) -> NDArray[np.float32]:
    """Queries of the law of the vectors and of the other modality, in turns: [count, 512] float32."""
    pair = clip_vectors.queries(count // 2), clip_vectors.other_modality(count // 2)
    return np.stack(pair, axis=1).reshape(-1, clip_vectors.DIM)


def child(act: str, searcher: Searcher, place: Path, k: int) -> dict[str, Any]:
    """What bench/searchers.py prints. Raises RuntimeError with the end of what it complains of."""
    script = Path(__file__).with_name("searchers.py")
    args = [sys.executable, str(script), act, searcher.name, str(place), str(k)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(args, capture_output=True, text=True, timeout=START_LIMIT_S, env=environment)
    if ended.returncode:
        raise RuntimeError(
            f"{searcher.name}: {act} ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(ended.stdout.strip().splitlines()[-1])


def recall(found: list[list[str]], truth: NDArray[np.intp], but_itself: bool = False) -> list[float]:
    """Of each query the share of the true ids that were found; `but_itself`: query n is row n, which does not count."""
    shares = []
    for number, (ids, true) in enumerate(zip(found, truth)):
        wanted = {str(id) for id in true} - ({str(number)} if but_itself else set())
        shares.append(len(wanted & set(ids)) / len(wanted))
    return shares


def figures_of(asked: dict[str, Any], truth: NDArray[np.intp]) -> dict[str, float]:
    """The figures of one process that was asked."""
    shares = recall(asked["found"], truth)
    kept = {name: asked[name] for name in ("open_s", "ready_s", "held_mb", "peak_mb", "anonymous_mb")}
    of_queries = {"recall": np.mean(shares), "recall_same": np.mean(shares[::2]), "recall_other": np.mean(shares[1::2])}
    times = {f"p{p}_ms": np.percentile(asked["times_ms"], p) for p in (50, 95)}
    times |= {"cpu_ms": np.median(asked["cpu_ms"]), "queries": len(shares)}
    return {name: float(figure) for name, figure in (kept | of_queries | times).items()}


def cannot(searcher: Searcher, size: int) -> str:
    """Why a searcher is not measured at a size, "" where it is."""
    if searcher.needs and not importlib.util.find_spec(searcher.needs):
        return f"{searcher.needs} is not installed"
    return f"not above {searcher.largest:,}: {searcher.why}" if size > searcher.largest else ""


def build_all(searchers: list[Searcher], place: Path, found: dict[str, dict[str, Any]]) -> None:
    """Make what searchers need, one file once; those that fail have a `why` in `found` then."""
    done: dict[str, dict[str, float]] = {}
    for searcher in searchers:
        try:
            if searcher.build and searcher.file not in done:
                say(f"  build {searcher.name}")
                done[searcher.file] = child("build", searcher, place, K)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            found[searcher.name]["why"] = str(error)
        found[searcher.name] |= done.get(searcher.file, {})


def measure(searchers: list[Searcher], place: Path, rounds: int, size: int) -> dict[str, dict[str, Any]]:
    """Searcher -> its figures, the medians over rounds, or `why` there are none."""
    found: dict[str, dict[str, Any]] = {s.name: {"why": why} if (why := cannot(s, size)) else {} for s in searchers}
    running = [searcher for searcher in searchers if not found[searcher.name]]
    build_all(running, place, found)
    truth = np.load(place / "truth.npy")
    results: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        load = os.getloadavg()[0]
        for searcher in running[:: -1 if number % 2 else 1]:
            if "why" in found[searcher.name]:
                continue
            try:
                figures = figures_of(child("query", searcher, place, K), truth)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                found[searcher.name]["why"] = str(error)
                continue
            results.setdefault(searcher.name, []).append(figures | {"load_average": load})
            say(f"  round {number + 1}: {searcher.name}: {figures['p50_ms']:.1f} ms, recall {figures['recall']:.3f}")
    for name, all_rounds in results.items():
        found[name] |= medians_of(all_rounds) | {"date": now(), "rounds": all_rounds}
    return found


def now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def versions() -> dict[str, str]:
    """Version of Python, of SQLite and of what is compared."""
    found = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    for name in SEEN:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure at all sizes, adding to what `--to` holds, which is written after each."""
    found = json.loads(options.to.read_text()) if options.to and options.to.exists() else {"sizes": {}}
    found |= origin() | {"versions": versions()}
    first = next(clip_vectors.made(1000))
    found["hardness"] = {"made": clip_vectors.hardness(first), "real": clip_vectors.REAL}
    searchers = [searcher for name, searcher in SEARCHERS.items() if options.only in name]
    for size in options.sizes:
        with folder_of(size, options.place) as place:
            say(f"{size} vectors")
            if not (place / "facts.json").exists():
                facts = write_collection(place, clip_vectors.made(size), mixed_queries(QUERIES), K)
                (place / "facts.json").write_text(json.dumps(facts))
            old = found["sizes"].get(str(size), {}).get("searchers", {})
            new = old | measure(searchers, place, options.rounds, size)
            found["sizes"][str(size)] = json.loads((place / "facts.json").read_text()) | {
                "searchers": {name: new[name] for name in SEARCHERS if name in new}
            }
        found["sizes"] = {size: found["sizes"][size] for size in sorted(found["sizes"], key=int)}
        if options.to:
            options.to.write_text(json.dumps(found, indent=1) + "\n")
    return found


@contextmanager
def folder_of(size: int, place: Path | None) -> Iterator[Path]:
    """A folder for the files of a size: for now, or one in `place`, which is kept with the collection in it."""
    if place:
        (place / str(size)).mkdir(parents=True, exist_ok=True)
        yield place / str(size)
        return
    with tempfile.TemporaryDirectory(prefix="clip-search-") as folder:
        yield Path(folder)


def in_our_shortlists(vectors: NDArray[np.float32]) -> dict[int, float]:
    """Length -> share of the 10 nearest of each vector that are among so many of the best by our index's estimates.

    Of a collection this small `llm clip index` compares nearly all exactly, which says nothing of a large one.
    """
    from clip_collections.index.sign_bits import chunk_of, code_of, estimates

    code, numbers = code_of(vectors.mean(0), vectors.std(0)), np.arange(len(vectors))
    chunk = chunk_of(numbers, numbers.astype(np.uint32), vectors, code)
    estimated = np.stack([estimates(chunk, code, vector - code.mean) for vector in vectors])
    np.fill_diagonal(estimated, -np.inf)
    order, true = np.argsort(-estimated, axis=1), clip_vectors.nearest(vectors)[1][:, :10]
    return {
        length: float(np.mean([np.isin(a, b[:length]).mean() for a, b in zip(true, order)]))
        for length in clip_vectors.SHORTLISTS
    }


def real(file: Path, only: str) -> str:
    """Recall@10 of every approximate way on the vectors in a file, each one a query for the others, as text."""
    vectors = np.load(file).astype(np.float32)
    vectors = clip_vectors.unit(np.ascontiguousarray(vectors.T) if vectors.shape[1] != clip_vectors.DIM else vectors)
    lines = [f"{len(vectors)} vectors of {file.name}"]
    lines += [f"  {name:12} {figure:.3f}" for name, figure in clip_vectors.hardness(vectors).items()]
    lines += [f"  ours in {length:4} {share:.3f}" for length, share in in_our_shortlists(vectors).items()]
    with tempfile.TemporaryDirectory(prefix="clip-search-") as folder:
        write_collection(Path(folder), [vectors], vectors, K + 1)
        truth = np.load(Path(folder) / "truth.npy")
        for searcher in SEARCHERS.values():
            why = cannot(searcher, len(vectors))
            if searcher.approximate and only in searcher.name and not why:
                child("build", searcher, Path(folder), K + 1)
                asked = child("query", searcher, Path(folder), K + 1)
                shares = recall(asked["found"], truth, but_itself=True)
                why = f"recall@10 {np.mean(shares):.4f} of {len(shares)} queries"
            if searcher.approximate and only in searcher.name:
                lines.append(f"{searcher.name:28} {why}")
    return "\n".join(lines)


def table(found: dict[str, Any]) -> str:
    """The medians as plain text, for README: a block for each size, a row for each searcher."""
    lines = []
    for size, at in found["sizes"].items():
        lines.append(f"{int(size):,} vectors, {at['collection_mb']:,.0f} MB as llm stores them")
        lines.append(f"{'':28}" + "".join(f"{title:>15}" for title, _ in COLUMNS.values()))
        for name, figures in at["searchers"].items():
            cells = "".join(
                f"{figures[column]:15,.{digits}f}" if column in figures else f"{'':15}"
                for column, (_, digits) in COLUMNS.items()
            )
            lines.append(f"{name:28}" + (cells.rstrip() if "p50_ms" in figures else "  " + figures["why"]))
        lines.append("")
    return "\n".join(lines).rstrip()


def brief(found: dict[str, Any]) -> str:
    """What README shows of it, as Markdown: a row for each of BRIEF, memory and recall at the largest size it had."""
    small, large = (found["sizes"][size]["searchers"] for size in ("20000", "1000000"))
    lines = [BRIEF_HEAD, "| --- " * BRIEF_HEAD.count(" |") + "|"]
    for name, told in BRIEF.items():
        few, many = small[name], large[name] if "p50_ms" in large[name] else {}
        most = many or few
        cells = [told, short(few["p50_ms"]), short(many.get("p50_ms")), f"{most['recall']:.3f}".replace("1.000", "1")]
        cells += [f"{most['peak_mb']:.0f}", short(many.get("ready_s"))]
        cells.append(f"{many['build_s']:.1f}, {many['disk_mb']:.0f}" if "build_s" in many else "")
        lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    return "\n".join(lines)


def short(figure: float | None) -> str:
    """A figure in two digits or more, "" where there is none."""
    if figure is None:
        return ""
    return f"{figure:.2f}" if figure < 1 else f"{figure:.1f}" if figure < 10 else f"{figure:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure searchers with this in their name")
    parser.add_argument("--real", type=Path, help="a .npy file of vectors to search instead; nothing is kept")
    parser.add_argument("--place", type=Path, help="keep the files here, 15 GB for a million vectors")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    print(real(options.real, options.only) if options.real else table(run(options)))


if __name__ == "__main__":
    main()
