"""The first mile of a new user in a browser: from the search page of a folder of photos to one of them, large."""

from __future__ import annotations

import time
from collections.abc import Callable

from browser import wait_until
from patience import until

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
WAYS = {  # options of a browser's context
    "1280 pixels": DESKTOP,
    "390 pixels": PHONE,
    "without scripts": DESKTOP | {"java_script_enabled": False},
}
TILE = "#clip-grid > li[id] a.clip-tile"
FIRST_TILE = f"document.querySelector('{TILE}')"
FIRST_PHOTO = f"{FIRST_TILE}?.querySelector('img')"
SCORE, LARGE = "#clip-grid .clip-score", ".clip-stage img"
RELOAD_S = 0.5  # a reader without scripts looks again so often


def is_shown(image: str) -> str:
    """The JavaScript expression that is true once an image has been loaded."""
    return f"!!({image}?.complete && {image}.naturalWidth)"


def wait_for_a_photo(page) -> None:
    """Wait until a search page shows its first photo. Without scripts the page does not follow the embedding."""

    def look() -> bool:
        if page.evaluate(is_shown(FIRST_PHOTO)):
            return True
        if not page.locator("[data-plain]").first.is_hidden():
            time.sleep(RELOAD_S)
            page.reload()
        return False

    until(look)


def walk(page, url: str, query: str, mark: Callable[[str], object] = lambda step: None) -> tuple[str, str]:
    """Open a search page, search by words, open the first photo: the name of the first one found, and of the large one.

    `mark` is called after each step, with "page", "found" and "opened".
    """
    page.goto(url)
    wait_for_a_photo(page)
    mark("page")
    page.fill("#clip-q", query)
    page.keyboard.press("Enter")
    page.locator(SCORE).first.wait_for()
    wait_until(page, is_shown(FIRST_PHOTO))
    mark("found")
    label = page.locator(TILE).first.get_attribute("aria-label")
    page.click(f'{TILE}[aria-label="{label}"]')
    page.locator(LARGE).wait_for(state="attached")
    wait_until(page, is_shown(f"document.querySelector('{LARGE}')"))
    mark("opened")
    return label.removeprefix("Show "), page.locator("#clip-view h1").inner_text()
