"""Starts programs and servers for tests, on 127.0.0.1, and ends those that it started."""

from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parent.parent.parent


def environment(user: Path, **more: str) -> dict[str, str]:
    """An environment with its own `llm` folder and only the plugins that a deployment has: no llm-clip, no torch."""
    user.mkdir(parents=True, exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("CLIP_MODEL_DIR", "LLM_LOAD_PLUGINS")}
    return clean | {"LLM_USER_PATH": str(user), "LLM_LOAD_PLUGINS": "datasette-clip", "HF_HUB_OFFLINE": "1"} | more


def run_llm(*arguments: str, env: dict[str, str], ok: bool = True) -> subprocess.CompletedProcess:
    """`llm ARGUMENTS`, which must end with 0, or with something else where `ok` is False."""
    done = subprocess.run([str(BIN / "llm"), *arguments], env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def serving(*arguments: str, env: dict[str, str], log: Path, bin: Path = BIN) -> Iterator[str]:
    """`datasette serve ARGUMENTS` on a free port, of the environment with this `bin`: its address, once it answers."""
    port = free_port()
    command = [str(bin / "datasette"), "serve", "--port", str(port), *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=env, stdout=stream, stderr=subprocess.STDOUT)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.terminate()
        process.wait(20)


def wait_for(url: str, process: subprocess.Popen, log: Path, seconds: float = 60) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            httpx.get(f"{url}/-/versions.json")
            return url
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} did not answer in {seconds} s: {log.read_text()}")


@contextmanager
def another_origin(page: bytes, photo: bytes = b"") -> Iterator[str]:
    """The address of a page that another server has, with photo.jpg beside it."""

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
