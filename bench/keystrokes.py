"""Measures how long the search page takes from a key to the rows it finds, as a browser shows them.

    python bench/keystrokes.py [--model FOLDER] [--phrases 6] [--to FILE]

    demo     the demo collection: 1,456 pictures, which the page shows
    made     20,000 vectors of clip_vectors.py without pictures; no index is made

The model is FOLDER, or the demo's, baked now. In one browser beside the server, on one machine. A key is followed by
the next once its rows are shown, so that each is waited for; all of it counts: the 80 ms in which the page waits for
another key, the model, the search, the page, and painting it. Medians over all keys; the two take no turns, for neither
is compared with the other. Not measured: a network, many people at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import numpy as np
from playwright.sync_api import Page, sync_playwright

import clip_vectors
from llm_clip_onnx.bake import bake
from llm_clip_onnx.engine import Engine
from recipe import ROOT, keep, origin, put_away_when_told_to_end, say, source_line

PHRASES = ("purple heart", "red fruit", "sad face", "a blue car", "cat - smiling", "flag with a cross")
WARM = "warm"  # typed first, and not counted
ROWS = 20_000
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


def made_rows(_: Engine) -> Iterator[tuple]:
    number = 0
    for chunk in clip_vectors.made(ROWS):
        for vector in chunk:
            yield str(number), vector.tobytes(), None, None
            number += 1


@contextmanager
def served(file: Path, model: Path) -> Iterator[str]:
    """The address of a Datasette that serves a file, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = os.environ | {"CLIP_MODEL_DIR": str(model), "LLM_LOAD_PLUGINS": "datasette-clip", "HF_HUB_OFFLINE": "1"}
    command = [Path(sys.executable).parent / "datasette", "serve", file, "-p", str(port)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                httpx.get(f"{url}/-/clip/health", timeout=60).raise_for_status()
                break
            except (httpx.TransportError, httpx.HTTPStatusError):
                if process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def typed(page: Page, url: str, phrases: tuple[str, ...]) -> list[dict[str, float]]:
    """What each key of some phrases took, each phrase typed into a page that was opened for it."""
    found = []
    for phrase in phrases:
        page.goto(f"{url}/-/clip/search/{url_name(url)}/c")
        for count, letter in enumerate(phrase, 1):
            page.keyboard.press("Space" if letter == " " else letter)
            page.wait_for_function("count => window.shown.length === count", arg=count)
        found += page.evaluate("window.shown")
    return found


def url_name(url: str) -> str:
    """The name of the one database that a server has."""
    return next(one["name"] for one in httpx.get(f"{url}/-/databases.json").json() if one["name"] != "_memory")


def figures(keys: list[dict[str, float]]) -> dict[str, float]:
    """Medians and 95th percentiles, in milliseconds."""
    return {
        f"{name[:-3]}_p{share}_ms": round(float(np.percentile([one[name] for one in keys], share)), 1)
        for name in keys[0]
        for share in (50, 95)
    }


def run(model: Path, place: Path, phrases: tuple[str, ...]) -> dict:
    found: dict = origin() | {"phrases": phrases}
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    engine = Engine(model)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        found["chromium"] = browser.version
        for name, rows in (("demo", demo_rows), ("made", made_rows)):
            say(f"{name}: making the collection")
            file = filled(place / f"{name}.db", rows(engine))
            with served(file, model) as url, browser.new_context() as context:
                page = context.new_page()
                page.add_init_script(WATCH)
                typed(page, url, (WARM,))
                say(f"{name}: typing")
                keys = typed(page, url, phrases)
            found[name] = figures(keys) | {"keys": len(keys)}
        browser.close()
    return found


def table(found: dict) -> str:
    titles = {"key": "key to rows shown, ms", "round_trip": "  there and back, ms", "server": "  in the server, ms"}
    lines = [f"{'':26}" + "".join(f"{f'{name} {share}':>12}" for name in ("demo", "made") for share in ("p50", "p95"))]
    for figure, title in titles.items():
        cells = [found[name][f"{figure}_{share}_ms"] for name in ("demo", "made") for share in ("p50", "p95")]
        lines.append(f"{title:26}" + "".join(f"{cell:>12.1f}" for cell in cells))
    load = found["machine"]["load_average_at_start"]
    lines += ["", f"{len(found['phrases'])} phrases, load {load:.1f} at the start", source_line(found)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--phrases", type=int, default=len(PHRASES), help="how many of them are typed")
    parser.add_argument("--to", type=Path)
    options = parser.parse_args()
    put_away_when_told_to_end()
    with tempfile.TemporaryDirectory(prefix="clip-bench-") as place:
        model = options.model
        if model is None:
            model = Path(place) / "model"
            bake(str(ROOT / "demo/checkpoint"), model, say=say)
        found = run(model.resolve(), Path(place), PHRASES[: options.phrases])
    keep(found, options.to, table)


if __name__ == "__main__":
    main()
