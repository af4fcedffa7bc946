"""Measures what the pages of a collection of photos cost a server, and how many bytes a browser takes for one.

    python -m bench.server.pages [--model FOLDER] [--rows 20000] [--rounds 15] [--to FILE]

One `datasette serve` with the settings of `llm clip serve` serves 20,000 made photos: vectors, an index, thumbnails of
320 pixels, and metadata with time, camera, size and folder. "First" is the first request of its kind to a new server
that has answered one search in JSON: nothing has been counted, and its template was not compiled. The other requests
come in rounds through all pages, each with other words, another row or another value of a filter, after one round that
is not counted. Times are those of a client on the same machine; CPU is that of the server for one request.

Bytes are what Chromium receives for the search page with 24 rows, in a window of 800 pixels' height, with an empty
cache, headers included. Not measured: a network, and files that are not in memory yet.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import numpy as np
import psutil
from playwright.sync_api import sync_playwright

from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.inputs import COLOURS, PLACES, THINGS
from bench.harness.models import model_or_random
from bench.harness.photos import CAMERAS, NAME, facts, thumbnails, write_photos
from browser import CHROMIUM, QUIET
from clip_collections.local_server import SETTINGS, metadata
from listening import free_port, listening
from serving import BIN, environment

SEARCH, VIEW, TABLE = f"/-/clip/search/photos/{NAME}", f"/-/clip/view/photos/{NAME}", "/photos/embeddings"
WIDTHS = (1280, 390)  # of the browser's window


def words(number: int) -> str:
    """A query in words, another one for each number."""
    colour, thing = COLOURS[number % 8], THINGS[number // 8 % 8]
    return quote(f"{colour} {thing} {PLACES[number // 64 % 4]} {number}")


def row(number: int) -> str:
    """The id of a row, as in a URL."""
    number = number * 37 % 5000
    return quote(f"{facts(number)['folder']}/IMG_{number:05}.jpg", safe="")


def camera(number: int) -> str:
    return quote(CAMERAS[number % len(CAMERAS)])


def day(number: int) -> str:
    return f"{2011 + number % 9}-{1 + number % 12:02}-{1 + number % 28:02}"


def folder(number: int) -> str:
    """A folder of 10 rows or more, another one for each number."""
    return quote(f"{2010 + number % 13}/{1 + number % 12:02}", safe="")


# The URL of each page by a number.
PAGES: dict[str, Callable[[int], str]] = {
    "home page": lambda number: f"/?{number}",
    "search page, no query": lambda number: f"{SEARCH}?k=24&_={number}",
    "search page": lambda number: f"{SEARCH}?q={words(number)}",
    "  with a camera chosen": lambda number: f"{SEARCH}?q={words(number)}&meta.camera={camera(number)}",
    "  with a folder chosen": lambda number: (
        f"{SEARCH}?q={words(number)}&meta.folder=20{10 + number % 13}%2F0{1 + number % 9}"
    ),
    "  with dates": lambda number: f"{SEARCH}?q={words(number)}&from={day(number)}",
    "search.json": lambda number: f"{SEARCH}.json?q={words(number)}&k=24",
    "viewer": lambda number: f"{VIEW}?id={row(number)}",
    "  in the results of a query": lambda number: f"{VIEW}?q={words(number)}&at={2 + number % 20}",
    "table": lambda number: f"{TABLE}?_size={50 + number % 50}",
    "  ?_like=": lambda number: f"{TABLE}?_like={words(number)}",
    "  ?_like_id=": lambda number: f"{TABLE}?_like_id={row(number)}",
    "  ?_like= and a facet": lambda number: f"{TABLE}?_like={words(number)}&_facet=collection_id",
    "thumbnail": lambda number: f"/-/clip/thumbnail/photos/{NAME}?id={row(number)}",
}


@contextmanager
def served(file: Path, model: Path, place: Path) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """A client of a new server, as `llm clip serve` starts it, that has answered one search; and its process."""
    described = place / "metadata.json"
    described.write_text(json.dumps(metadata(NAME)))
    port = free_port()
    options = [word for name, value in SETTINGS.items() for word in ("--setting", name, str(value))]
    command = [BIN / "datasette", "serve", file, "--port", str(port), *options, "--memory", "-m", described]
    env = environment(place / "llm", CLIP_MODEL_DIR=str(model))
    with (
        listening(list(map(str, command)), port=port, log=place / "log", env=env) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        ask(client, f"{SEARCH}.json?q=warm")
        yield client, psutil.Process(process.pid)


def ask(client: httpx.Client, url: str) -> float:
    """Milliseconds of one request. Raises RuntimeError for an answer that is not 200."""
    start_s = time.perf_counter()
    response = client.get(url)
    took_ms = (time.perf_counter() - start_s) * 1000
    if response.status_code != 200:
        raise RuntimeError(f"{url} answered {response.status_code}: {response.text[:500]}")
    return took_ms


def first_times(file: Path, model: Path, place: Path) -> dict[str, float]:
    """Milliseconds of the first request of each page, each to a server of its own."""
    times = {}
    for name, url in PAGES.items():
        with served(file, model, place) as (client, _):
            times[name] = ask(client, url(1))
    return times


def page_times(client: httpx.Client, process: psutil.Process, rounds: int) -> dict[str, dict[str, float]]:
    """p50, p90 and the CPU time of the server of each page in ms, over the rounds after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in PAGES}
    cpu_ms = dict.fromkeys(PAGES, 0.0)
    for number, (name, url) in itertools.product(range(rounds + 1), PAGES.items()):
        before_s = sum(process.cpu_times()[:2])
        took_ms = ask(client, url(number))
        if number:
            times[name].append(took_ms)
            cpu_ms[name] += 1000 * (sum(process.cpu_times()[:2]) - before_s) / rounds
    return {
        name: {"p50": float(np.percentile(ms, 50)), "p90": float(np.percentile(ms, 90)), "cpu": cpu_ms[name]}
        for name, ms in times.items()
    }


def transferred(url: str) -> dict[str, dict[str, int]]:
    """Bytes and requests of the search page by kind, and in all, for each of WIDTHS."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        try:
            return {str(width): received(browser, url, width) for width in WIDTHS}
        finally:
            browser.close()


def received(browser, url: str, width: int) -> dict[str, int]:
    """Bytes that a new context of a browser receives for a URL until nothing more comes, by kind, and its pictures."""
    kinds: dict[str, int] = {}
    kind_of: dict[str, str] = {}
    with browser.new_context(viewport={"width": width, "height": 800}) as context:
        page = context.new_page()
        session = context.new_cdp_session(page)
        session.send("Network.enable")
        session.on("Network.responseReceived", lambda event: kind_of.update({event["requestId"]: event["type"]}))

        def count(event: dict) -> None:
            kind = kind_of.get(event["requestId"], "Other")
            kinds[kind] = kinds.get(kind, 0) + event["encodedDataLength"]

        session.on("Network.loadingFinished", count)
        page.goto(url, wait_until="networkidle")
        kinds["pictures"] = page.evaluate(
            "[...document.querySelectorAll('#clip-grid img')].filter(i => i.complete).length"
        )
    return kinds


def measure(place: Path, options: argparse.Namespace) -> Results:
    model = model_or_random(options.model, place)
    say(f"{options.rows:,} rows")
    file = write_photos(place / "photos.db", options.rows, model)
    results: Results = {"rows": options.rows, "rounds": options.rounds, "database_bytes": file.stat().st_size}
    results["thumbnail_bytes"] = round(float(np.mean([len(blob) for blob in thumbnails()])))
    say("first requests")
    results["first_ms"] = first_times(file, model, place)
    with served(file, model, place) as (client, process):
        say("warm requests")
        results["ms"] = page_times(client, process, options.rounds)
        say("bytes")
        results["bytes"] = transferred(f"{client.base_url}{SEARCH}?q=red%20heart")
        results["resident_mb"] = process.memory_info().rss / 1e6
    return results


def table(results: Results) -> str:
    line = "{:<36}{:>10}{:>10}{:>10}{:>10}".format
    lines = [line("milliseconds", "first", "p50", "p90", "CPU")]
    for name, warm in results["ms"].items():
        figures = (results["first_ms"][name], warm["p50"], warm["p90"], warm["cpu"])
        lines.append(line(name, *(f"{ms:.0f}" for ms in figures)))
    lines += ["", line("search page in Chromium, kB", "all", "text", "pictures", "of them")]
    for width, kinds in results["bytes"].items():
        pictures = kinds["Image"]
        text = sum(count for kind, count in kinds.items() if kind not in ("Image", "pictures"))
        kilobytes = (f"{count / 1000:.0f}" for count in (text + pictures, text, pictures))
        lines.append(line(f"  {width} pixels wide", *kilobytes, kinds["pictures"]))
    lines += ["", f"{results['rows']:,} rows, thumbnails of {results['thumbnail_bytes'] / 1000:.1f} kB"]
    lines[-1] += f", server {results['resident_mb']:.0f} MB, {results['rounds']} rounds, {load_words(results)}"
    return "\n".join([*lines, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, model=Path, rows=20_000, rounds=15)
