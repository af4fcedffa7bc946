"""The container under load and abuse, with 256 MB and 200 MB: no request fails, memory stays flat, no query ends it."""

from __future__ import annotations

import http.client
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlencode

import pytest

from building import why_not
from containers import EMBED, Container, started
from llm_clip_onnx.engine import CACHE_BYTES, ENTRY_BYTES
from load import HEAVY, resident_mb

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ROWS = "with recursive c(x) as (select 1 union all select x + 1 from c limit 1000)"
LARGE = [  # each just within or just above the limits, in forms that grow on the way to JSON
    "select hex(zeroblob(2490000))",
    "select hex(zeroblob(4900000))",
    "select zeroblob(4900000)",
    "select replace(hex(zeroblob(1200000)), '0', char(1))",
    "select randomblob(9000000), randomblob(9000000), randomblob(9000000)",
    f"{ROWS} select zeroblob(4900) from c",
    f"{ROWS} select zeroblob(40000) from c",
    f"{ROWS} select printf('%.40000c', 'x') from c",
    *HEAVY.values(),
]


TEXTS = 2 * CACHE_BYTES // (4 * 512 + ENTRY_BYTES)  # twice as many as the cache of texts holds


def test_25_clients_in_256_mb_see_no_error_and_memory_stays_flat(demo_image):
    """The first texts fill the cache, which takes 8 MB. After that, memory must not grow."""
    with started(demo_image, "--memory", "256m", "--memory-swap", "256m") as container, ThreadPoolExecutor(25) as pool:
        container.ready()
        held_mb = []
        for begin in range(0, 2 * TEXTS, TEXTS // 8):
            texts = [f"text {n}" for n in range(begin, begin + TEXTS // 8)]
            assert set(pool.map(partial(status_of, container), texts)) == {200}
            if begin >= TEXTS:
                held_mb.append(resident_mb(container))
        assert container.exit_code is None
    assert max(held_mb) <= 1.05 * held_mb[0], held_mb


def status_of(container: Container, text: str) -> int:
    """Request an embedding over a new connection: its status. Fails unless the answer is complete."""
    query = urlencode({"sql": EMBED, "q": text, "_shape": "array"})
    client = http.client.HTTPConnection("127.0.0.1", container.port)
    client.sock = container.connected()
    client.request("GET", f"/_memory.json?{query}", headers={"Connection": "close"})
    response = client.getresponse()
    [row] = json.loads(response.read())
    assert len(row["x"]) == 4096
    return response.status


@pytest.fixture(scope="module")
def small(demo_image):
    """A container of 200 MB. The demo model leaves 20 MB more of it free than ViT-B/32's text tower does of 256 MB."""
    with started(demo_image, "--memory", "200m", "--memory-swap", "200m") as container:
        container.ready()
        yield container


@pytest.mark.parametrize("sql", LARGE)
def test_the_largest_results_asked_for_by_25_clients_at_once_do_not_end_it(sql, small: Container):
    with ThreadPoolExecutor(25) as pool:
        codes = {
            answer.status_code for answer in pool.map(lambda n: small.get("/_memory.json", sql=sql, q=n), range(25))
        }
    assert codes <= {200, 400, 503}
    assert small.exit_code is None, small.logs()[-2000:]
    assert small.get("/-/clip/embed.json", text="still here").status_code == 200


def test_heavy_queries_are_stopped_while_others_are_answered(small: Container):
    stop, codes = threading.Event(), []

    def attack(sql: str) -> None:
        while not stop.is_set():
            codes.append(small.get("/_memory.json", sql=sql, q=len(codes)).status_code)

    threads = [threading.Thread(target=attack, args=(sql,)) for sql in HEAVY.values()]
    for thread in threads:
        thread.start()
    meanwhile = [small.get("/-/clip/embed.json", text=f"meanwhile {n}").status_code for n in range(20)]
    stop.set()
    for thread in threads:
        thread.join()
    assert meanwhile == [200] * 20
    assert 400 in codes
    assert set(codes) <= {400, 503}  # one of the queries uses all memory that SQLite may have
