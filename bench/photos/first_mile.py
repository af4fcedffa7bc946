"""Measures a scripted new user: from an empty folder with photos to a found and opened one, in Chromium.

    python -m bench.photos.first_mile [--model FOLDER] [--photos 200] [--rounds 3] [--query WORDS] [--to FILE]

Two commands are run: `llm clip bake`, of a checkpoint on this machine, and `llm clip serve FOLDER`. The user then opens
the page that the second one prints, types words, and opens the picture that is ranked first, while the photos are
still embedded. The bake is timed by bench/server/recipe.py. Times count from the start of `llm clip serve`, with a new
database each time; the browser is open already. The ways take turns: 1280 and 390 pixels wide, and 1280 without
scripts. Each must show the photo that was clicked.

Bytes are what Chromium received for a search page that it opens with an empty cache, once all photos are embedded: with
24 photos without scripts, else with those on the first screen and close to it. The photos are made JPEGs of 640 x 480
pixels, the weights random, of ViT-B/32's shape, unless --model names a model directory; what is ranked first then has
no meaning. Not measured: a network, and people, who type slower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Page, sync_playwright

from bench.harness.command import Results, load_words, main, say, source_line
from bench.harness.models import RANDOM, model_or_random
from bench.harness.turns import Figures, Titles, compare, comparison_lines
from bench.photos.inputs import as_installed, photos_in
from browser import CHROMIUM, QUIET, new_context, wait_until
from first_mile import WAYS, is_shown, walk
from patience import until
from running_serve import Running, serve

TITLES: Titles = {
    "announced_s": ("its address printed, s", 1),
    "page_s": ("search page with a photo, s", 1),
    "found_s": ("first found photo shown, s", 1),
    "opened_s": ("it opened large, s", 1),
    "all_s": ("all embedded and indexed, s", 1),
    "page_kb": ("search page, kB", 0),
    "photos_kb": ("  of its photos", 0),
    "photos": ("  photos that were loaded at once", 0),
    "page_of_24_kb": ("  with 24 of these photos", 0),
}
FIRST_SCREEN = f"[...document.querySelectorAll('#clip-grid img')].slice(0, 4).every(image => {is_shown('image')})"


class Clock:
    """Seconds since it was made, at named moments."""

    def __init__(self) -> None:
        self.begun_s, self.figures = time.perf_counter(), Figures()

    def mark(self, step: str) -> None:
        self.figures[f"{step}_s"] = time.perf_counter() - self.begun_s


def mark_the_end(clock: Clock, running: Running, count: int) -> Thread:
    """A thread that marks "all" once `llm clip serve` says that it has indexed all photos."""

    def wait() -> None:
        running.prints(rf"\b{count} photos can be searched")
        clock.mark("all")

    thread = Thread(target=wait)
    thread.start()
    return thread


def received(page: Page, act: Callable[[], object]) -> Figures:
    """What Chromium receives over the network while `act` runs, in kB: headers included, and as it was compressed."""
    sizes, types = dict[str, int](), dict[str, str]()
    session = page.context.new_cdp_session(page)
    session.on("Network.responseReceived", lambda event: types.update({event["requestId"]: event["type"]}))
    session.on("Network.loadingFinished", lambda e: sizes.update({e["requestId"]: e["encodedDataLength"]}))
    session.send("Network.enable")
    act()
    photos = [size for request, size in sizes.items() if types[request] == "Image"]
    page_kb, photos_kb = sum(sizes.values()) / 1000, sum(photos) / 1000
    of_24 = page_kb - photos_kb + 24 * photos_kb / len(photos)
    return {"page_kb": page_kb, "photos_kb": photos_kb, "photos": len(photos), "page_of_24_kb": of_24}


def open_search(page: Page, url: str) -> None:
    """Open a search page until its first screen is shown and the network is idle."""
    page.goto(url, wait_until="networkidle")
    wait_until(page, FIRST_SCREEN)


def measure_way(browser: Browser, way: str, command: list[str | Path], query: str, env: dict[str, str]) -> Figures:
    """Run `llm clip serve` with these arguments, and go the first mile in this way."""
    output, count = Path(env["LLM_USER_PATH"]).parent / "out", len(list(Path(command[0]).iterdir()))
    for database in Path(env["LLM_USER_PATH"], "clip").glob("*"):
        database.unlink()
    clock = Clock()
    with serve(*command, env=env, output=output) as running:
        end = mark_the_end(clock, running, count)
        url = running.url
        clock.mark("announced")
        with new_context(browser, **WAYS[way]) as context:
            found, opened = walk(context.new_page(), url, query, clock.mark)
        if found != opened:
            raise RuntimeError(f"{way}: {found} was clicked, and {opened} was shown")
        until(lambda: not end.is_alive())
        with new_context(browser, **WAYS[way]) as context:
            page = context.new_page()
            figures = received(page, lambda: open_search(page, f"{url}?q={query.replace(' ', '+')}"))
        running.end()
    return clock.figures | figures


def measure(place: Path, options: argparse.Namespace) -> Results:
    commands = ([] if options.model else ["llm clip bake"]) + ["llm clip serve Pictures"]
    results: Results = {"photos": options.photos, "query": options.query, "commands": commands}
    results["model"] = options.model.name if options.model else RANDOM
    arguments = [photos_in(place / "Pictures", 640, 480, options.photos), "--model-dir"]
    arguments.append(model_or_random(options.model, place))
    env = as_installed(place)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        results["chromium"] = browser.version
        say("once, not counted")
        measure_way(browser, next(iter(WAYS)), arguments, options.query, env)

        def measure_one(way: str) -> Figures:
            return measure_way(browser, way, arguments, options.query, env)

        results |= compare([*WAYS], options.rounds, measure_one, [])
        browser.close()
    return results


def table(results: Results) -> str:
    commands, rounds = results["commands"], len(results["pairs"])
    said = f"{len(commands)} command{'s' if len(commands) > 1 else ''}: {', '.join(commands)}"
    facts = f"{results['photos']} photos, {rounds} rounds, {results['model']}, {load_words(results)}"
    return "\n".join([*comparison_lines(results, TITLES), "", said, facts, source_line(results)])


if __name__ == "__main__":
    main(__doc__, measure, table, model=Path, photos=200, rounds=3, query="a red car by the sea")
