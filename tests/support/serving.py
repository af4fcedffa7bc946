"""Starts programs and servers for tests, on 127.0.0.1, and ends those that it started."""

from __future__ import annotations

import errno
import http.server
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from patience import PATIENCE_S, until

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
NO_LIMIT = ("--setting", "sql_time_limit_ms", f"{1000 * PATIENCE_S}")
DATASETTES_LIMIT = ("--setting", "sql_time_limit_ms", "1000")


def environment(user: Path, **more: str) -> dict[str, str]:
    """An environment with its own `llm` folder and only the plugins that a deployment has: no llm-clip, no torch."""
    user.mkdir(parents=True, exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("CLIP_MODEL_DIR", "LLM_LOAD_PLUGINS")}
    return clean | {"LLM_USER_PATH": str(user), "LLM_LOAD_PLUGINS": "datasette-clip", "HF_HUB_OFFLINE": "1"} | more


def run_llm(*arguments: str, env: dict[str, str], ok: bool = True) -> subprocess.CompletedProcess:
    """Run `llm ARGUMENTS`: the finished process. Fails unless its exit code is 0, or is not 0 if `ok` is False."""
    done = subprocess.run([str(BIN / "llm"), *arguments], env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


@contextmanager
def serving(*arguments: str, env: dict[str, str], log: Path, bin: Path = BIN) -> Iterator[str]:
    """The address of `datasette serve ARGUMENTS` on a free port, once it listens. `bin` has the `datasette` to run."""
    with started(*arguments, env=env, log=log, bin=bin) as process:
        yield address_of(process, log)


@contextmanager
def started(*arguments: str, env: dict[str, str], log: Path, bin: Path = BIN) -> Iterator[subprocess.Popen]:
    """The process of `datasette serve ARGUMENTS` on a free port, its output in `log`; ended on the way out.

    SQL has no time limit unless the arguments set one; `*DATASETTES_LIMIT` sets Datasette's default.
    """
    command = [str(bin / "datasette"), "serve", "--port", "0", *NO_LIMIT, *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()


def address_of(process: subprocess.Popen, log: Path) -> str:
    """The address of a Datasette that was started on port 0, from uvicorn's line in the log, once it is there."""

    def logged_address() -> re.Match | None:
        ended, text = process.poll() is not None, log.read_text()
        listens = re.search(r"Uvicorn running on (http://\S+)", text)
        assert listens or not ended, text
        return listens

    return until(logged_address)[1]


def refuses(url: str) -> bool:
    """True if nothing listens at an address any more.

    It sends no request: while a listening socket closes, the kernel still accepts connections, and resets them.
    """
    address = urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == errno.ECONNREFUSED


@contextmanager
def another_origin(page: bytes, photo: bytes = b"") -> Iterator[str]:
    """The address of another server, which has this page and photo.jpg."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            is_photo = self.path == "/photo.jpg"
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg" if is_photo else "text/html")
            self.end_headers()
            self.wfile.write(photo if is_photo else page)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{other.server_address[1]}/"
        other.shutdown()
