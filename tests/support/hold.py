"""Requests that a server holds until the test releases them, so that a test knows which are in flight.

Test and server share a folder: it gets a file for each request that has begun, and a file that releases them all. The
server needs tests/plugins/slow.py.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx

from patience import until
from serving import BIN, ROOT, serving


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


@contextmanager
def serving_notes(
    folder: Path, configuration: dict, option: str, env: dict[str, str], bin: Path = BIN
) -> Iterator[str]:
    """The address of a Datasette with one turn at SQL and the table t.notes, configured by the file of an option."""
    one_turn = {"plugins": {"datasette-guard": {"limits": {"queries": 1}}}}
    (folder / "configuration.json").write_text(json.dumps(one_turn | configuration))
    with sqlite3.connect(folder / "t.db") as connection:
        connection.execute("create table notes (note text)")
    plugins = ("--plugins-dir", str(ROOT / "tests/plugins"))
    arguments = (str(folder / "t.db"), option, str(folder / "configuration.json"), *plugins)
    with serving(*arguments, env=env, log=folder / "log", bin=bin) as url:
        yield url


def takes_a_turn(url: str, path: str, folder: Path, **options) -> None:
    """Check that a POST has the one turn of a server while Datasette responds to it."""
    hold = Hold(folder)
    with ThreadPoolExecutor(1) as pool:
        post = pool.submit(httpx.post, url + path, headers={"x-hold": str(folder)}, timeout=None, **options)
        until(lambda: hold.begun or post.done())
        while_it_runs = httpx.get(f"{url}/-/turns").json()
        hold.release()
        assert post.result().status_code == 200, post.result().text
    assert while_it_runs == {"all_taken": True}
    assert httpx.get(f"{url}/-/turns").json() == {"all_taken": False}
