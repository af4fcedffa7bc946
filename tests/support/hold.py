"""Requests that a server holds until the test releases them, so that a test knows which are in flight.

Test and server share a folder: it gets a file for each request that has begun, and a file that releases them all. The
server needs tests/plugins/slow.py.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from patience import until


class Hold:
    """Requests to `page` and queries by `sql` do not end before `release`. `upload` is a page that reads its body."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.page = f"/hold?at={quote(str(folder))}"
        self.sql = f"/_memory.json?sql=select+hold('{quote(str(folder))}')"
        self.upload = f"/upload?at={quote(str(folder))}"

    @property
    def begun(self) -> int:
        """How many requests have begun."""
        return len(list(self.folder.glob("begun-*")))

    def wait_for(self, requests: int) -> None:
        """Wait until so many requests have begun."""
        until(lambda: self.begun >= requests)

    def release(self) -> None:
        """Let the held requests end. Later requests are not held."""
        (self.folder / "released").touch()
