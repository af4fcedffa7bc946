"""Takes the picture of the search page that README shows, of the demo model and its collection.

make demo                       once, for demo/model and demo/served/emoji.db; Ctrl-C ends it
python docs/screenshot.py       writes docs/search.png
"""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests/support"))
from browser import CHROMIUM, QUIET  # noqa: E402

PICTURE = ROOT / "docs/search.png"
PICTURE_BYTES = 150_000


@contextmanager
def demo_server() -> Iterator[str]:
    """The address of a Datasette with the demo model and its collection, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("datasette")), "serve", "demo/served/emoji.db", "--port", str(port)]
    environment = os.environ | {"CLIP_MODEL_DIR": "demo/model"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        while not answers(f"{address}/-/clip/health"):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; was make demo run?")
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def screenshot(address: str) -> bytes:
    """The search page for "red fruit" as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1000, "height": 640})
        page.goto(f"{address}/-/clip/search/emoji/emoji?q=red+fruit", wait_until="networkidle")
        png = page.screenshot()
        browser.close()
    return png


def main() -> None:
    with demo_server() as address:
        png = screenshot(address)
    palette = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    palette.save(PICTURE, optimize=True)
    if PICTURE.stat().st_size > PICTURE_BYTES:
        raise RuntimeError(f"{PICTURE} has {PICTURE.stat().st_size} bytes; at most {PICTURE_BYTES} are wanted")


if __name__ == "__main__":
    main()
