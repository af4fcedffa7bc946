"""Instances hold no state: one of two behind a proxy is stopped and started, and no request fails."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import httpx
import pytest

from load import HAPROXY, instance, two_instances, wait_until_ready
from patience import PATIENCE_S, until

pytestmark = pytest.mark.skipif(
    shutil.which(HAPROXY) is None, reason="SKIPPED: no haproxy installed (Debian: apt install haproxy)"
)


def test_no_request_fails_while_one_of_two_instances_is_stopped_and_started(demo_dir):
    statuses, ended = [], threading.Event()

    def client() -> None:
        while not ended.is_set():
            statuses.append(httpx.get(f"http://{front}/_memory.json?{query}&n={len(statuses)}").status_code)

    def wait_for_50_more() -> None:
        before = len(statuses)
        until(lambda: len(statuses) > before + 50)

    query = urlencode({"sql": "select length(llm_embed('clip', 'number ' || :n))"})
    with two_instances(demo_dir) as (front, process, address), ThreadPoolExecutor(25) as pool:
        clients = [pool.submit(client) for _ in range(25)]
        try:
            wait_for_50_more()
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
            wait_for_50_more()
            with instance(demo_dir, address, core=1):
                wait_until_ready(address)
                wait_for_50_more()
                ended.set()
                for client_ in clients:
                    client_.result()
        finally:
            ended.set()
    assert set(statuses) == {200}
