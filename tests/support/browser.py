"""Chromium for the tests that need a browser, by Playwright; where it is not installed, they say SKIPPED."""

from __future__ import annotations

import shutil

import pytest

from patience import PATIENCE_S

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
    """A new browser context, whose pages wait as patiently as the tests do."""
    context = chromium_process.new_context(**options)
    context.set_default_timeout(1000 * PATIENCE_S)
    return context
