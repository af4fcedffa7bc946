"""Measures how long the search page takes from a key to the rows it finds, as a browser shows them.

    python -m bench.search.keystrokes [--model FOLDER] [--phrases 6] [--to FILE]

    demo     the demo collection: 1,456 pictures, which the page shows
    made     20,000 made photos with thumbnails, metadata and an index, see bench/harness/photos.py

The model is FOLDER, or the demo's, baked now. One browser runs beside the server on one machine. The next key is
pressed once the rows of the last one are shown. The time holds everything: the 80 ms in which the page waits for
another key, the model, the search, the page, and painting it, but for pictures that are on their way. Medians over all
keys; the two collections take no turns, because they are not compared. Not measured: a network, many people at once.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

from bench.harness import ROOT, photos
from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.models import bake
from browser import CHROMIUM, QUIET, wait_until
from llm_clip_onnx.engine import Engine
from load import wait_until_ready
from serving import environment, serving

PHRASES = ("purple heart", "red fruit", "sad face", "a blue car", "cat - smiling", "flag with a cross")
WARM = "warm"  # typed first, and not counted
ROWS = 20_000
COLLECTIONS = {"demo": "c", "made": photos.NAME}
TYPING_MS = 80  # in which static/search.js waits for another key
WATCH = """
window.shown = [];
let key = 0;
addEventListener("input", (event) => { key = event.timeStamp; }, true);
addEventListener("DOMContentLoaded", () => {
  new MutationObserver(() => requestAnimationFrame(() => setTimeout(() => {
    const [server, round] = document.querySelector("#clip-took").textContent.match(/[\\d.]+(?= ms)/g).map(Number);
    window.shown.push({ key_ms: performance.now() - key, round_trip_ms: round, server_ms: server });
  }))).observe(document.querySelector("#clip-result"), { childList: true });
});
"""


def filled(file: Path, rows: Iterator[tuple]) -> Path:
    """A SQLite file with the collection `c`, as llm writes it, of rows (id, vector, image, metadata)."""
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("create table collections (id integer primary key, name text, model text)")
        db.execute(
            "create table embeddings (collection_id integer, id text, embedding blob, content text, content_blob blob,"
            " content_hash blob, metadata text, updated integer, primary key (collection_id, id))"
        )
        db.execute("insert into collections values (1, 'c', 'clip')")
        db.executemany("insert into embeddings values (1, ?, ?, null, ?, null, ?, 0)", rows)
    return file


def demo_rows(engine: Engine) -> Iterator[tuple]:
    with closing(sqlite3.connect(ROOT / "demo/emoji.db")) as db:
        for id_, label, image in db.execute("select id, label, image from emoji"):
            yield id_, engine.embed_item(image).tobytes(), image, json.dumps({"label": label})


def type_phrases(page: Page, url: str, phrases: tuple[str, ...]) -> list[dict[str, float]]:
    """The times of each key of some phrases on the search page at `url`, which is opened anew for each phrase."""
    keys = []
    for phrase in phrases:
        page.goto(url)
        for count, letter in enumerate(phrase, 1):
            page.keyboard.press("Space" if letter == " " else letter)
            wait_until(page, "count => window.shown.length === count", count)
        keys += page.evaluate("window.shown")
    return keys


def percentiles(keys: list[dict[str, float]]) -> dict[str, float]:
    """Medians and 95th percentiles, in milliseconds."""
    return {
        f"{name[:-3]}_p{share}_ms": round(float(np.percentile([key[name] for key in keys], share)), 1)
        for name in keys[0]
        for share in (50, 95)
    }


def measure(place: Path, options: argparse.Namespace) -> Results:
    model = options.model.resolve() if options.model else bake(ROOT / "demo/checkpoint", place / "model")
    phrases = PHRASES[: options.phrases]
    results: Results = {"phrases": phrases}
    env, engine = environment(place / "llm", CLIP_MODEL_DIR=str(model)), Engine(model)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        results["chromium"] = browser.version
        for name in ("demo", "made"):
            say(f"{name}: making the collection")
            file = place / f"{name}.db"
            if name == "demo":
                filled(file, demo_rows(engine))
            else:
                photos.write_photos(file, ROWS, model)
            with serving(str(file), env=env, log=place / "log") as url, browser.new_context() as context:
                wait_until_ready(url.removeprefix("http://"))
                page = context.new_page()
                page.add_init_script(WATCH)
                searched = f"{url}/-/clip/search/{name}/{COLLECTIONS[name]}"
                type_phrases(page, searched, (WARM,))
                say(f"{name}: typing")
                keys = type_phrases(page, searched, phrases)
            results[name] = percentiles(keys) | {"keys": len(keys)}
        browser.close()
    return results


def table(results: Results) -> str:
    titles = {"key": "key to rows shown, ms", "round_trip": "  there and back, ms", "server": "  in the server, ms"}
    lines = [f"{'':26}" + "".join(f"{f'{name} {share}':>12}" for name in ("demo", "made") for share in ("p50", "p95"))]
    for figure, title in titles.items():
        cells = [results[name][f"{figure}_{share}_ms"] for name in ("demo", "made") for share in ("p50", "p95")]
        lines.append(f"{title:26}" + "".join(f"{cell:>12.1f}" for cell in cells))
        if figure == "key":
            lines.append(f"{'  beyond its 80 ms':26}" + "".join(f"{cell - TYPING_MS:>12.1f}" for cell in cells))
    lines += ["", f"{len(results['phrases'])} phrases, {load_words(results)}", source_line(results)]
    return "\n".join(lines)


if __name__ == "__main__":
    main(__doc__, measure, table, model=Path, phrases=len(PHRASES))
