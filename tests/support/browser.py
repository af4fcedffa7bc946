"""Chromium for the tests that need a browser, by Playwright; where it is not installed, they say SKIPPED."""

from __future__ import annotations

import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]

chromium = pytest.mark.skipif(CHROMIUM is None, reason="SKIPPED: no Chromium installed (Debian: apt install chromium)")
