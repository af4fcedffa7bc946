"""An idle server ends with 0 and without losing a request: real servers, with seconds instead of minutes.

Some tests keep the server awake until they are ready (HOLD_AT_START), and requests in flight until they release them
(hold.py). Times have lower bounds only, which a correct server meets on a machine of any speed.
"""

from __future__ import annotations

import http.server
import json
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx
import pytest
from datasette.app import Datasette
from datasette_scale_to_zero import get_config

from conftest import ROOT, shipped_metadata
from datasette_guard import shutdown
from hold import Hold
from patience import PATIENCE_S, until
from serving import BIN, address_of, environment, refuses, started

IDLE_S = 2
PAST_IDLE_S = 5  # more than IDLE_S plus the second between two checks of datasette-scale-to-zero
GOOGLEBOT = {"user-agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}


class Running:
    """A running `datasette serve`: its process, its address and its log."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def check_ends_with_0(self) -> None:
        """Wait until it has ended. Fails unless its exit code is 0 and its log has no error."""
        code, text = self.process.wait(PATIENCE_S), self.log.read_text()
        assert code == 0, text
        assert not any(word in text for word in ("Traceback", "Error", "exception")), text


@contextmanager
def running(tmp_path: Path, demo_dir: Path, plugins: dict, **env: str) -> Iterator[Running]:
    metadata, log = tmp_path / "metadata.json", tmp_path / "log"
    metadata.write_text(json.dumps({"plugins": plugins}))
    arguments = ["--memory", "-m", str(metadata), "--plugins-dir", str(ROOT / "tests/plugins")]
    own = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), **env)
    with started(*arguments, env=own, log=log) as process:
        try:
            yield Running(process, address_of(process, log), log)
        finally:
            process.kill()


def idle(**more: object) -> dict:
    return {"datasette-scale-to-zero": {"duration": f"{IDLE_S}s", **more}}


@pytest.fixture
def awake(tmp_path) -> Hold:
    """Keeps a server awake from its start if HOLD_AT_START in its environment is this folder."""
    return Hold(tmp_path / "awake")


@pytest.fixture
def hold(tmp_path) -> Hold:
    return Hold(tmp_path / "hold")


def test_a_server_that_nobody_asks_ends_with_0(demo_dir, tmp_path):
    with running(tmp_path, demo_dir, idle()) as server:
        server.check_ends_with_0()


def test_slow_requests_finish_before_the_exit(awake, hold, demo_dir, tmp_path):
    """A page, a query in an SQL thread and an upload that is still arriving, each longer than IDLE_S."""
    sent, complete = [], threading.Event()

    def arriving():
        while not complete.wait(0.2):
            sent.append(b"x" * 100)
            yield sent[-1]

    env = {"HOLD_AT_START": str(awake.folder)}
    with running(tmp_path, demo_dir, idle(), **env) as server, ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(httpx.get, server.url + hold.page),
            pool.submit(httpx.get, server.url + hold.sql),
            pool.submit(httpx.post, server.url + hold.upload, content=arriving()),
        ]
        hold.wait_for(3)
        awake.release()
        time.sleep(PAST_IDLE_S)
        assert not any(call.done() for call in calls)
        hold.release()
        complete.set()
        page, query, upload = [call.result() for call in calls]
        server.check_ends_with_0()
    assert [response.status_code for response in (page, query, upload)] == [200] * 3
    assert (page.text, upload.text) == ("done", f"{100 * len(sent)} bytes")


@pytest.mark.parametrize(("value", "duration_s"), [("10m", 600), (None, None)])
def test_the_shipped_metadata_takes_its_duration_from_the_environment(value, duration_s, monkeypatch):
    monkeypatch.delenv("SLEEP_AFTER", raising=False)
    if value:
        monkeypatch.setenv("SLEEP_AFTER", value)
    assert get_config(Datasette(memory=True, metadata=shipped_metadata()))["duration"] == duration_s


def test_max_age_too_waits_for_what_is_in_flight(awake, demo_dir, tmp_path):
    env = {"HOLD_AT_START": str(awake.folder)}
    with running(tmp_path, demo_dir, {"datasette-scale-to-zero": {"max_age": "2s"}}, **env) as server:
        time.sleep(PAST_IDLE_S)
        assert httpx.get(f"{server.url}/-/versions.json").status_code == 200
        awake.release()
        server.check_ends_with_0()


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/-/clip/health", {}), ("/robots.txt", {}), ("/favicon.ico", {}), ("/robots.txt", GOOGLEBOT), ("/", GOOGLEBOT)],
)
def test_requests_that_do_not_count_do_not_keep_it_awake(path, headers, demo_dir, tmp_path):
    with running(tmp_path, demo_dir, idle()) as server:

        def refused() -> bool:
            time.sleep(0.3)
            try:
                httpx.get(server.url + path, headers=headers)
            except httpx.TransportError:
                return True
            return False

        until(refused)
        server.check_ends_with_0()


def test_people_keep_it_awake(awake, demo_dir, tmp_path):
    """The server never ends within IDLE_S of a request. If this process is slow, it may end before the next request."""
    with running(tmp_path, demo_dir, idle(), HOLD_AT_START=str(awake.folder)) as server:
        for _ in range(20):
            begun_s = time.monotonic()
            try:
                httpx.get(server.url)
            except httpx.TransportError:
                break
            asked_s = begun_s
            awake.release()
            time.sleep(0.3)
        server.check_ends_with_0()
        assert time.monotonic() - asked_s >= IDLE_S


def test_an_address_that_resets_connections_does_not_refuse_them_yet():
    """A socket that closes resets what its backlog holds, and is closed a moment later."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert not refuses(url)
        with socket.create_connection(listener.getsockname()) as waiting:
            listener.close()
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)
    assert refuses(url)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_once_it_has_answered(by, hold, demo_dir, tmp_path):
    env = {"DRAIN_S": f"{PATIENCE_S}"}
    with running(tmp_path, demo_dir, {}, **env) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.get, server.url + hold.sql)
        hold.wait_for(1)
        server.process.send_signal(by)
        until(lambda: refuses(server.url))
        assert not call.done()
        hold.release()
        assert call.result().status_code == 200
        server.check_ends_with_0()


@pytest.mark.parametrize("slow", ["page", "sql"])
def test_a_signal_ends_it_with_0_in_5_seconds_whatever_goes_on(slow, hold, demo_dir, tmp_path):
    """Hosts kill a process 5 s after the signal. The request in flight never ends, so the drain's timer ends it."""
    assert shutdown.DRAIN_S < 5
    with running(tmp_path, demo_dir, {}) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.get, server.url + getattr(hold, slow))
        hold.wait_for(1)
        signal_s = time.monotonic()
        server.process.terminate()
        server.check_ends_with_0()
        assert time.monotonic() - signal_s >= shutdown.DRAIN_S
        with pytest.raises(httpx.TransportError):
            call.result()
    assert "what was still in flight 4 s after the signal is cut off" in server.log.read_text()


def test_datasette_without_the_word_serve_ends_with_0_too(demo_dir, tmp_path):
    env, log = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir)), tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen([str(BIN / "datasette"), "--memory", "-p", "0"], env=env, stderr=stream)
    try:
        address_of(process, log)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()


def test_a_signal_before_it_serves_ends_it_with_0(demo_dir, tmp_path):
    """Process 1 of a container ignores signals without a handler."""
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    process = subprocess.Popen(
        [str(BIN / "datasette"), "serve", "--memory", "-p", "0"], env=env, stderr=subprocess.PIPE
    )
    status = Path(f"/proc/{process.pid}/status")
    until(lambda: int(status.read_text().split("SigCgt:\t")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1)
    process.terminate()
    log = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0
    assert b"Traceback" not in log


IN_A_FINALIZER = """
import signal
from datasette_guard import shutdown

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

shutdown.end_with_0()
Finalized()
raise SystemExit(3)
"""


def test_a_signal_ends_it_also_where_python_ignores_exceptions():
    done = subprocess.run([sys.executable, "-c", IN_A_FINALIZER], capture_output=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, b"")


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers every POST with the server's `status` and appends its path to `paths`."""

    def do_POST(self) -> None:
        self.server.paths.append(f"{self.headers['host']}{self.path}")  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(b'{"ok": true}')

    def log_message(self, *arguments) -> None:
        pass

    def address_string(self) -> str:
        return "a socket"


@contextmanager
def fly_socket(path: Path, status: int = 200) -> Iterator[list[str]]:
    """A stand-in for /.fly/api. It suspends nothing, so the caller goes on at once, as after a resumption."""
    with socketserver.ThreadingUnixStreamServer(str(path), Recorder) as server:
        server.paths, server.status = [], status  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.paths  # type: ignore[attr-defined]
        server.shutdown()


FLY = {"FLY_APP_NAME": "my-clip", "FLY_MACHINE_ID": "4d891d"}


def test_on_fly_it_asks_to_be_suspended_and_goes_on_when_it_is_back(awake, demo_dir, tmp_path):
    config = idle() | {"datasette-guard": {"suspend": str(tmp_path / "api")}}
    env = FLY | {"HOLD_AT_START": str(awake.folder)}
    with fly_socket(tmp_path / "api") as paths, running(tmp_path, demo_dir, config, **env) as server:
        time.sleep(PAST_IDLE_S)
        assert paths == []  # not while a request is in flight
        awake.release()
        until(lambda: len(paths) >= 2)  # it became idle twice
        assert httpx.get(f"{server.url}/_memory.json?sql=select+llm_embed('clip','awake')").status_code == 200
        assert server.process.poll() is None
    assert set(paths) == {"flaps/v1/apps/my-clip/machines/4d891d/suspend"}


@pytest.mark.parametrize(
    ("status", "fly", "why"),
    [
        (412, FLY, "HTTPStatusError: Client error '412 Precondition Failed'"),
        (None, FLY, "ConnectError: [Errno 2] No such file or directory"),
        (200, {}, "KeyError: 'FLY_APP_NAME'"),
    ],
)
def test_it_exits_if_it_cannot_be_suspended(status, fly, why, demo_dir, tmp_path):
    config = idle() | {"datasette-guard": {"suspend": str(tmp_path / "api")}}
    with (
        fly_socket(tmp_path / "api", status) if status else nullcontext(),
        running(tmp_path, demo_dir, config, **fly) as server,
    ):
        assert server.process.wait(PATIENCE_S) == 0
    text = server.log.read_text()
    assert f"cannot be suspended by {tmp_path / 'api'}, exits: {why}" in text
    assert "Traceback" not in text


def test_the_shutdown_url_of_scale_to_zero_is_called(demo_dir, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Recorder) as recorder:
        recorder.paths, recorder.status = [], 200  # type: ignore[attr-defined]
        threading.Thread(target=recorder.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{recorder.server_port}/bye"
        with running(tmp_path, demo_dir, idle(shutdown_url=url, shutdown_method="POST")) as server:
            server.check_ends_with_0()
        recorder.shutdown()
    assert recorder.paths == [f"127.0.0.1:{recorder.server_port}/bye"]  # type: ignore[attr-defined]
