"""A server sleeps when nobody asks, loses nothing on the way, and ends with 0: real servers, seconds for minutes."""

from __future__ import annotations

import http.server
import json
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from datasette.app import Datasette
from datasette_scale_to_zero import get_config

from conftest import ROOT, shipped_metadata
from serving import BIN, environment, free_port, wait_for

IDLE_S = 2
SLOWER_S = 5  # than IDLE_S and the second that datasette-scale-to-zero looks only once in
GOOGLEBOT = {"user-agent": "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"}


class Running:
    """A `datasette serve` that is to end by itself or by a signal: its process, its address, its log."""

    def __init__(self, process: subprocess.Popen, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    def ends_with_0(self, seconds: float) -> bool:
        """True if it ends within these seconds, with 0 and without a traceback."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        text = self.log.read_text()
        assert code == 0, text
        assert not any(word in text for word in ("Traceback", "Error", "exception")), text
        return True


@contextmanager
def running(tmp_path: Path, demo_dir: Path, plugins: dict, **env: str) -> Iterator[Running]:
    metadata, log, port = tmp_path / "metadata.json", tmp_path / "log", free_port()
    metadata.write_text(json.dumps({"plugins": plugins}))
    command = [str(BIN / "datasette"), "serve", "--memory", "--port", str(port), "-m", str(metadata)]
    command += ["--plugins-dir", str(ROOT / "tests/plugins"), "--setting", "sql_time_limit_ms", "60000"]
    with log.open("w") as stream:
        own = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir), **env)
        process = subprocess.Popen(command, env=own, stdout=stream, stderr=stream)
    try:
        yield Running(process, wait_for(f"http://127.0.0.1:{port}", process, log), log)
    finally:
        process.kill()
        process.wait()


def idle(**more: object) -> dict:
    return {"datasette-scale-to-zero": {"duration": f"{IDLE_S}s", **more}}


def test_a_server_that_nobody_asks_ends_with_0(demo_dir, tmp_path):
    with running(tmp_path, demo_dir, idle()) as server:
        assert server.ends_with_0(IDLE_S + 5)


def test_slow_requests_finish_before_the_exit(demo_dir, tmp_path):
    """A page, a query in an SQL thread, and an upload that is still arriving, all longer than the server would idle."""

    def arriving():
        for _ in range(SLOWER_S * 2):
            time.sleep(0.5)
            yield b"x" * 100

    with running(tmp_path, demo_dir, idle()) as server, ThreadPoolExecutor() as pool:
        calls = [
            pool.submit(httpx.get, f"{server.url}/slow?s={SLOWER_S}", timeout=30),
            pool.submit(httpx.get, f"{server.url}/_memory.json?sql=select+nap({SLOWER_S + 1})", timeout=30),
            pool.submit(httpx.post, f"{server.url}/upload", content=arriving(), timeout=30),
        ]
        codes_texts = [(call.result().status_code, call.result().text) for call in calls]
        assert server.ends_with_0(IDLE_S + 5)
    assert [code for code, _ in codes_texts] == [200] * 3
    assert (codes_texts[0][1], codes_texts[2][1]) == ("done", f"{SLOWER_S * 200} bytes")


@pytest.mark.parametrize(("value", "duration_s"), [("10m", 600), (None, None)])
def test_the_shipped_metadata_takes_its_duration_from_the_environment(value, duration_s, monkeypatch):
    monkeypatch.delenv("SLEEP_AFTER", raising=False)
    if value:
        monkeypatch.setenv("SLEEP_AFTER", value)
    assert get_config(Datasette(memory=True, metadata=shipped_metadata()))["duration"] == duration_s


def test_max_age_too_waits_for_what_is_in_flight(demo_dir, tmp_path):
    with running(tmp_path, demo_dir, {"datasette-scale-to-zero": {"max_age": "2s"}}) as server:
        assert httpx.get(f"{server.url}/slow?s={SLOWER_S}", timeout=30).text == "done"
        assert server.ends_with_0(5)


def keep_asking(url: str, seconds: float, **options) -> bool:
    """Ask every 0.3 s, until the server does not answer, which gives True, or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            httpx.get(url, timeout=30, **options)
        except (httpx.NetworkError, httpx.ProtocolError):
            return True
        time.sleep(0.3)
    return False


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/-/clip/health", {}), ("/robots.txt", {}), ("/favicon.ico", {}), ("/robots.txt", GOOGLEBOT), ("/", GOOGLEBOT)],
)
def test_what_does_not_count_does_not_keep_it_awake(path, headers, demo_dir, tmp_path):
    with running(tmp_path, demo_dir, idle()) as server:
        assert keep_asking(server.url + path, IDLE_S + 6, headers=headers)
        assert server.ends_with_0(10)  # nothing asks any more: it had begun to end while it was asked


def test_people_keep_it_awake(demo_dir, tmp_path):
    with running(tmp_path, demo_dir, idle()) as server:
        assert not keep_asking(server.url, IDLE_S + 6)
        assert server.process.poll() is None
        assert server.ends_with_0(IDLE_S + 5)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_once_it_has_answered(by, demo_dir, tmp_path):
    with running(tmp_path, demo_dir, {}) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.get, f"{server.url}/_memory.json?sql=select+nap(2)", timeout=30)
        time.sleep(1)
        server.process.send_signal(by)
        assert server.ends_with_0(5)
        assert call.result().status_code == 200


@pytest.mark.parametrize("slow", ["/slow?s=60", "/_memory.json?sql=select+nap(60)"])
def test_a_signal_ends_it_with_0_in_5_seconds_whatever_goes_on(slow, demo_dir, tmp_path):
    with running(tmp_path, demo_dir, {}) as server, ThreadPoolExecutor() as pool:
        call = pool.submit(httpx.get, server.url + slow, timeout=30)
        time.sleep(1)
        server.process.terminate()
        assert server.ends_with_0(5)
        with pytest.raises(httpx.TransportError):
            call.result()
    assert "what was still in flight 4 s after the signal is cut off" in server.log.read_text()


def test_datasette_without_the_word_serve_ends_with_0_too(demo_dir, tmp_path):
    env, log, port = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir)), tmp_path / "log", free_port()
    with log.open("w") as stream:
        process = subprocess.Popen([str(BIN / "datasette"), "--memory", "-p", str(port)], env=env, stderr=stream)
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()


def test_a_signal_before_it_serves_ends_it_with_0(demo_dir, tmp_path):
    """As process 1 of a container it would ignore a signal that it has no handler for."""
    command = [str(BIN / "datasette"), "serve", "--memory", "--port", str(free_port())]
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    while "SigCgt:\t0000000000000000" in (status := Path(f"/proc/{process.pid}/status").read_text()) or not (
        int(status.split("SigCgt:\t")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1
    ):
        time.sleep(0.01)
    process.terminate()
    assert process.wait(5) == 0
    assert "Traceback" not in process.stderr.read()


class Recorder(http.server.BaseHTTPRequestHandler):
    """Answers every POST with the server's `status`, and notes its path."""

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
    """A stand-in of /.fly/api: it suspends nothing, so that what asked it goes on at once, as after a resumption."""
    with socketserver.ThreadingUnixStreamServer(str(path), Recorder) as server:
        server.paths, server.status = [], status  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.paths  # type: ignore[attr-defined]
        server.shutdown()


FLY = {"FLY_APP_NAME": "my-clip", "FLY_MACHINE_ID": "4d891d"}


def test_on_fly_it_asks_to_be_suspended_and_goes_on_when_it_is_back(demo_dir, tmp_path):
    config = idle() | {"datasette-guard": {"suspend": str(tmp_path / "api")}}
    with fly_socket(tmp_path / "api") as paths, running(tmp_path, demo_dir, config, **FLY) as server:
        assert httpx.get(f"{server.url}/slow?s={SLOWER_S}", timeout=30).text == "done"
        assert paths == []  # not while that was in flight
        assert not server.ends_with_0(2 * IDLE_S + 4)  # idle twice
        assert httpx.get(f"{server.url}/_memory.json?sql=select+llm_embed('clip','awake')").status_code == 200
    assert len(paths) >= 2
    assert set(paths) == {"flaps/v1/apps/my-clip/machines/4d891d/suspend"}


@pytest.mark.parametrize(
    ("status", "fly", "why"),
    [
        (412, FLY, "HTTPStatusError: Client error '412 Precondition Failed'"),
        (None, FLY, "ConnectError: [Errno 2] No such file or directory"),
        (200, {}, "KeyError: 'FLY_APP_NAME'"),
    ],
)
def test_where_it_cannot_be_suspended_it_exits(status, fly, why, demo_dir, tmp_path):
    config = idle() | {"datasette-guard": {"suspend": str(tmp_path / "api")}}
    with running(tmp_path, demo_dir, config, **fly) as server:
        if status:
            with fly_socket(tmp_path / "api", status):
                assert server.process.wait(IDLE_S + 5) == 0
        else:
            assert server.process.wait(IDLE_S + 5) == 0
    text = server.log.read_text()
    assert f"cannot be suspended by {tmp_path / 'api'}, exits: {why}" in text
    assert "Traceback" not in text


def test_the_shutdown_url_of_scale_to_zero_is_still_told(demo_dir, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Recorder) as told:
        told.paths, told.status = [], 200  # type: ignore[attr-defined]
        threading.Thread(target=told.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{told.server_port}/bye"
        with running(tmp_path, demo_dir, idle(shutdown_url=url, shutdown_method="POST")) as server:
            assert server.ends_with_0(IDLE_S + 5)
        told.shutdown()
    assert told.paths == [f"127.0.0.1:{told.server_port}/bye"]  # type: ignore[attr-defined]
