"""Takes the pictures of docs/photos.md: a folder of made photos in `llm clip serve`, with the demo model.

python docs/photo_pictures.py       writes docs/_pictures/*.webp; nothing where there is no Chromium

`make docs` runs this, and conf.py shows the pictures that are there. They are not in the repository.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests/support"))
from browser import CHROMIUM, QUIET  # noqa: E402

TO = ROOT / "docs/_pictures"
MOST_BYTES = 60_000  # of a picture
PHOTOS = 240
ALBUMS = ("Lisbon", "Garden", "Winter", "At home")
CAMERAS = ("EOS R6", "Pixel 8", "X100V")
MAKE, MODEL, DETAILS, TAKEN = 0x010F, 0x0110, 0x8769, 0x9003  # EXIF tags
QUERY = "red fruit"
SEARCH_AT = re.compile(r"Search at (\S+)")


def make_photos(folder: Path) -> None:
    """Write a folder of photos: drawings of the demo's collection, with albums, cameras and times."""
    with closing(sqlite3.connect(ROOT / "demo/emoji.db")) as conn:
        sql = 'select label, image from emoji where "group" in (?, ?) order by label limit ?'
        drawings = conn.execute(sql, ["food & drink", "animals & nature", PHOTOS]).fetchall()
    for number, (label, content) in enumerate(drawings):
        drawing = Image.open(io.BytesIO(content)).convert("RGBA").resize((320, 320), Image.Resampling.LANCZOS)
        photo = Image.new("RGB", (480, 360), "white")
        photo.paste(drawing, (80, 20), drawing)
        exif = Image.Exif()
        exif[MAKE], exif[MODEL] = "", CAMERAS[number % len(CAMERAS)]
        exif.get_ifd(DETAILS)[TAKEN] = f"{2021 + number % 4}:{1 + number % 12:02d}:{1 + number % 28:02d} 10:30:00"
        album = folder / ALBUMS[number % len(ALBUMS)]
        album.mkdir(parents=True, exist_ok=True)
        photo.save(album / f"{label.replace('/', ' ')}.jpg", exif=exif)


def demo_model(place: Path) -> Path:
    """The demo model: that of `make demo` if it is there, else one that is baked into a folder."""
    made = ROOT / "demo/model"
    if (made / "manifest.json").exists():
        return made
    command = [sys.executable, "-m", "llm", "clip", "bake", "demo/checkpoint", "--to", str(place)]
    subprocess.run(command, cwd=ROOT, check=True)
    return place


@contextmanager
def served(folder: Path, model: Path, place: Path) -> Iterator[str]:
    """The address of the search page of a folder's photos, once all of them can be searched."""
    (place / "llm").mkdir()
    environment = os.environ | {"CLIP_MODEL_DIR": str(model), "LLM_USER_PATH": str(place / "llm")}
    command = [sys.executable, "-m", "llm", "clip", "serve", str(folder), "--no-open", "-p", "0"]
    with (place / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        while "can be searched" not in (text := (place / "log").read_text()) or not SEARCH_AT.search(text):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {text}")
            time.sleep(0.1)
        yield SEARCH_AT.findall(text)[0]
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def search_page(page: Page, address: str) -> None:
    page.goto(f"{address}?q={QUERY.replace(' ', '+')}", wait_until="networkidle")


def viewer(page: Page, address: str) -> None:
    search_page(page, address)
    page.click("[data-view]")
    page.wait_for_load_state("networkidle")
    page.locator("dialog .clip-stage img").evaluate("image => image.decode()")


PICTURES = {  # the size of the window, and what is done in it
    "search.webp": ((1000, 700), search_page),
    "viewer.webp": ((1000, 640), viewer),
    "phone.webp": ((390, 844), search_page),
}


def write_pictures(model: Path, to: Path, place: Path) -> None:
    """Write the pictures into a folder. place: an empty folder for the photos and the database."""
    make_photos(place / "Pictures")
    to.mkdir(exist_ok=True)
    with served(place / "Pictures", model, place) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        for name, ((width, height), act) in PICTURES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            act(page, address)
            Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(to / name, quality=75, method=6)
            if (to / name).stat().st_size > MOST_BYTES:
                raise RuntimeError(f"{name} has {(to / name).stat().st_size} bytes; at most {MOST_BYTES} are wanted")
        browser.close()


def main() -> None:
    if CHROMIUM is None:
        return print("There is no Chromium, so docs/photos.md has no pictures (Debian: apt install chromium)")
    with TemporaryDirectory() as folder:
        place = Path(folder)
        write_pictures(demo_model(place / "model"), TO, place)


if __name__ == "__main__":
    main()
