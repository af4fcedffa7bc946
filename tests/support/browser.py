"""Chromium by Playwright, and how tests give its pages files. Without Chromium, browser tests say SKIPPED."""

from __future__ import annotations

import base64
import shutil

import pytest

from patience import PATIENCE_S, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

chromium = pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: no Chromium installed (Debian: apt install chromium)")


def new_context(chromium_process, **options):
    """A new browser context. Its pages wait up to PATIENCE_S."""
    context = chromium_process.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE_S)
    return context


def wait_until(page, expression: str, arg=None) -> None:
    """Wait until a JavaScript expression, or a function of `arg`, is true. Playwright's wait_for_function evaluates text
    in the page, which the policy of our pages forbids."""
    until(lambda: page.evaluate(expression, arg))


def upload(page, *files: tuple[str, bytes]) -> None:
    """Choose files, as (name, bytes), in the page's file field."""
    payloads = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.set_input_files("#clip-files", payloads)


def transfer(page, files: list[tuple[str, bytes]]):
    """A JavaScript DataTransfer with these files, for a drop or paste event."""
    listed = [[name, base64.b64encode(content).decode()] for name, content in files]
    return page.evaluate_handle(
        """files => { const transfer = new DataTransfer();
        for (const [name, base64] of files) {
            const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
        }
        return transfer; }""",
        listed,
    )


def drop_or_paste(page, way: str, selector: str, files: list[tuple[str, bytes]]) -> None:
    """Bring files to a page by way of "drop", anywhere, or "paste", in the field that a selector names."""
    transferred = transfer(page, files)
    if way == "drop":
        page.dispatch_event("h1", "drop", {"dataTransfer": transferred})
    else:
        page.evaluate(
            "([selector, files]) => document.querySelector(selector).dispatchEvent("
            'new ClipboardEvent("paste", {clipboardData: files, bubbles: true, cancelable: true}))',
            [selector, transferred],
        )
