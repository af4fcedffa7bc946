"""Measures ways to search a collection of 1,000 to 1,000,000 vectors: time, recall, memory, building, size.

    python -m bench.search.search [--sizes 1000 20000 300000 1000000] [--rounds 3] [--only TEXT] [--to FILE]
    python -m bench.search.search --real FILE.npy      prints the recall of every approximate way on your own vectors

A SQLite file with llm's tables holds vectors of tests/support/clip_vectors.py; searchers.py searches it. In a round the
searchers take turns, each in a new process that opens the file and answers up to 60 queries for 10 ids: every other
query is of the vectors' distribution, the rest are as the other tower's. A figure is the median over rounds. The files
were just written, so a query waits for no disk if memory suffices. NumPy's products run on one thread (two wait for one
another if others use the cores, and gain little), other libraries on as many as they take. `--to` keeps the results it
holds of other sizes and searchers, each with its date and load; `--place` keeps the collections, 15 GB for a million
vectors. CPU time, of all threads, is disturbed less by other programs.

FILE.npy: [n, 512] or [512, n]. Each of its vectors is a query for the others, which says nothing of queries of another
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
from pathlib import Path
from typing import Any

import numpy as np
import sqlite_utils
from llm.embeddings_migrations import embeddings_migrations
from numpy.typing import NDArray

import clip_vectors
from bench.harness.command import Results, end_by_exception, now, option, origin, say, write
from bench.harness.turns import Figures, Titles, medians_of, turns
from bench.search.searchers import COLLECTION, SEARCHERS, Searcher

SIZES = (1_000, 20_000, 300_000, 1_000_000)
K = 10
QUERIES = 60
START_LIMIT_S = 7200  # for building
SEEN = ("faiss-cpu", "usearch", "sqlite-vec", "apsw", "datasette-faiss", "datasette-llm-embed", "llm", "numpy")

COLUMNS: Titles = {
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
BRIEF = {  # searcher: its name in the short table
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
    """Write collection.db, queries.npy and truth.npy (ids of the k largest cosines, best first) to `place`.

    Returns the file's size, and the share of those ids in shortlists by sign bits for every other query, which is of
    the vectors' distribution.
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
    """Queries of the vectors' distribution and of the other modality, alternating: [count, 512] float32."""
    pair = clip_vectors.queries(count // 2), clip_vectors.other_modality(count // 2)
    return np.stack(pair, axis=1).reshape(-1, clip_vectors.DIM)


def child(act: str, searcher: Searcher, place: Path, k: int) -> dict[str, Any]:
    """The results of searchers.py. Raises RuntimeError with the last line of its errors."""
    script = Path(__file__).with_name("searchers.py")
    args = [sys.executable, str(script), act, searcher.name, str(place), str(k)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    ended = subprocess.run(args, capture_output=True, text=True, timeout=START_LIMIT_S, env=environment)
    if ended.returncode:
        raise RuntimeError(
            f"{searcher.name}: {act} ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}"
        )
    return json.loads(ended.stdout.strip().splitlines()[-1])


def recall(answers: list[list[str]], truth: NDArray[np.intp], but_itself: bool = False) -> list[float]:
    """For each query the share of the true ids in its answer. `but_itself`: query n is row n, which does not count."""
    shares = []
    for number, (ids, true) in enumerate(zip(answers, truth)):
        wanted = {str(id) for id in true} - ({str(number)} if but_itself else set())
        shares.append(len(wanted & set(ids)) / len(wanted))
    return shares


def figures_of(process: dict[str, Any], truth: NDArray[np.intp]) -> Figures:
    """The figures of one process's results."""
    shares = recall(process["ids"], truth)
    kept = {name: process[name] for name in ("open_s", "ready_s", "held_mb", "peak_mb", "anonymous_mb")}
    of_queries = {"recall": np.mean(shares), "recall_same": np.mean(shares[::2]), "recall_other": np.mean(shares[1::2])}
    times = {f"p{p}_ms": np.percentile(process["times_ms"], p) for p in (50, 95)}
    times |= {"cpu_ms": np.median(process["cpu_ms"]), "queries": len(shares)}
    return {name: float(figure) for name, figure in (kept | of_queries | times).items()}


def cannot(searcher: Searcher, size: int) -> str:
    """Why a searcher is not measured at a size; "" if it is."""
    if searcher.needs and not importlib.util.find_spec(searcher.needs):
        return f"{searcher.needs} is not installed"
    return f"not above {searcher.largest:,}: {searcher.why}" if size > searcher.largest else ""


def build_all(searchers: list[Searcher], place: Path, figures: dict[str, dict[str, Any]]) -> None:
    """Write the files that searchers need, each file once. A failure is noted in `figures` as `why`."""
    done: dict[str, dict[str, float]] = {}
    for searcher in searchers:
        try:
            if searcher.build and searcher.file not in done:
                say(f"  build {searcher.name}")
                done[searcher.file] = child("build", searcher, place, K)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            figures[searcher.name]["why"] = str(error)
        figures[searcher.name] |= done.get(searcher.file, {})


def measure(searchers: list[Searcher], place: Path, rounds: int, size: int) -> dict[str, dict[str, Any]]:
    """Searcher -> its figures, the medians over rounds, or `why` there are none."""
    results: dict[str, dict[str, Any]] = {s.name: {"why": why} if (why := cannot(s, size)) else {} for s in searchers}
    running = [searcher for searcher in searchers if not results[searcher.name]]
    build_all(running, place, results)
    truth = np.load(place / "truth.npy")
    all_rounds: dict[str, list[Figures]] = {}
    for number, searcher in turns(running, rounds):
        if "why" in results[searcher.name]:
            continue
        load = os.getloadavg()[0]
        try:
            figures = figures_of(child("query", searcher, place, K), truth)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            results[searcher.name]["why"] = str(error)
            continue
        all_rounds.setdefault(searcher.name, []).append(figures | {"load_average": load})
        say(f"  round {number + 1}: {searcher.name}: {figures['p50_ms']:.1f} ms, recall {figures['recall']:.3f}")
    for name, figures in all_rounds.items():
        results[name] |= medians_of(figures) | {"date": now(), "rounds": figures}
    return results


def versions() -> dict[str, str]:
    """Versions of Python, of SQLite and of the libraries that are compared."""
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    own = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    return own | {name: installed[name] for name in SEEN if name in installed}


def run(options: argparse.Namespace) -> Results:
    """Measure at all sizes, adding to the results in `--to`, which are written after each size."""
    results = json.loads(options.to.read_text()) if options.to and options.to.exists() else {"sizes": {}}
    results |= origin() | {"versions": versions()}
    first = next(clip_vectors.made(1000))
    results["hardness"] = {"made": clip_vectors.hardness(first), "real": clip_vectors.REAL}
    searchers = [searcher for name, searcher in SEARCHERS.items() if options.only in name]
    for size in options.sizes:
        with folder_of(size, options.place) as place:
            say(f"{size} vectors")
            if not (place / "facts.json").exists():
                facts = write_collection(place, clip_vectors.made(size), mixed_queries(QUERIES), K)
                (place / "facts.json").write_text(json.dumps(facts))
            old = results["sizes"].get(str(size), {}).get("searchers", {})
            new = old | measure(searchers, place, options.rounds, size)
            results["sizes"][str(size)] = json.loads((place / "facts.json").read_text()) | {
                "searchers": {name: new[name] for name in SEARCHERS if name in new}
            }
        results["sizes"] = {size: results["sizes"][size] for size in sorted(results["sizes"], key=int)}
        write(results, options.to)
    return results


@contextmanager
def folder_of(size: int, place: Path | None) -> Iterator[Path]:
    """A folder for the files of a size: a temporary one, or one in `place`, which is kept."""
    if place:
        (place / str(size)).mkdir(parents=True, exist_ok=True)
        yield place / str(size)
        return
    with tempfile.TemporaryDirectory(prefix="clip-search-") as folder:
        yield Path(folder)


def in_our_shortlists(vectors: NDArray[np.float32]) -> dict[int, float]:
    """Length -> share of each vector's 10 nearest in a shortlist of that length by our index's estimates.

    The index itself compares nearly all of so small a collection exactly, which says nothing of a large one.
    """
    from clip_collections.index.sign_bits import estimate_cosines, make_chunk, make_code

    code, numbers = make_code(vectors.mean(0), vectors.std(0)), np.arange(len(vectors))
    chunk = make_chunk(numbers, numbers.astype(np.uint32), vectors, code)
    estimated = np.stack([estimate_cosines(chunk, code, vector - code.mean) for vector in vectors])
    np.fill_diagonal(estimated, -np.inf)
    order, true = np.argsort(-estimated, axis=1), clip_vectors.nearest(vectors)[1][:, :10]
    return {
        length: float(np.mean([np.isin(a, b[:length]).mean() for a, b in zip(true, order)]))
        for length in clip_vectors.SHORTLISTS
    }


def real(file: Path, only: str) -> str:
    """Recall@10 of every approximate way on the vectors in a file, as text. Each vector is a query for the others."""
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
                answers = child("query", searcher, Path(folder), K + 1)["ids"]
                shares = recall(answers, truth, but_itself=True)
                why = f"recall@10 {np.mean(shares):.4f} of {len(shares)} queries"
            if searcher.approximate and only in searcher.name:
                lines.append(f"{searcher.name:28} {why}")
    return "\n".join(lines)


def table(results: Results) -> str:
    """The medians as plain text: a block for each size, a line for each searcher."""
    lines = []
    for size, at in results["sizes"].items():
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


def brief(results: Results) -> str:
    """The short table, as Markdown: a row for each of BRIEF, with memory and recall at its largest size."""
    small, large = (results["sizes"][size]["searchers"] for size in ("20000", "1000000"))
    lines = [BRIEF_HEAD, "| --- " * BRIEF_HEAD.count(" |") + "|"]
    for name, title in BRIEF.items():
        few, many = small[name], large[name] if "p50_ms" in large[name] else {}
        most = many or few
        cells = [title, short(few["p50_ms"]), short(many.get("p50_ms")), f"{most['recall']:.3f}".replace("1.000", "1")]
        cells += [f"{most['peak_mb']:.0f}", short(many.get("ready_s"))]
        cells.append(f"{many['build_s']:.1f}, {many['disk_mb']:.0f}" if "build_s" in many else "")
        lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    return "\n".join(lines)


def short(figure: float | None) -> str:
    """A figure in two digits or more, "" for None."""
    if figure is None:
        return ""
    return f"{figure:.2f}" if figure < 1 else f"{figure:.1f}" if figure < 10 else f"{figure:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {"sizes": SIZES, "rounds": 3, "only": "", "real": Path, "place": Path, "to": Path}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", **option(default))
    options = parser.parse_args()
    end_by_exception()
    print(real(options.real, options.only) if options.real else table(run(options)))


if __name__ == "__main__":
    main()
