"""The guard's limits: each refusal has its sentence, nothing is written, and no request gets 500."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from datasette.app import Datasette
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import ROOT, shipped_metadata
from datasette_guard import path_below, runs_sql
from datasette_guard.answer import ClientStalled, Load, Sender
from datasette_guard.body import Body
from datasette_guard.config import Limits
from datasette_guard.crawlers import is_crawler
from datasette_guard.gate import gate_around
from hold import Hold, serving_notes, takes_a_turn
from patience import PATIENCE_S, until
from serving import DATASETTES_LIMIT, environment, serving

# For the same reason as in test_sql_functions.py.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

LIMITS = {
    "requests": 4,
    "url_bytes": 2000,
    "fields": 10,
    "sql_bytes": 500,
    "body_bytes": 1000,
    "value_bytes": 200_000,
    "result_bytes": 300_000,
    "sqlite_bytes": 8_000_000,
    "sending_bytes": 1_000_000,
}


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("files") / "t.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "create table photos (id integer primary key, name text, image blob);"
            "insert into photos (name, image) values ('a', x'00'), ('b', null);"
            "create table pairs (a, b); insert into pairs values (1, 2);"
        )
    return path


@pytest.fixture(scope="module")
def server(demo_dir, database, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    metadata = {"plugins": {"datasette-guard": {"limits": LIMITS}, "datasette-clip": {"limits": {"text_bytes": 300}}}}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    env = environment(folder / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = [str(database), "--memory", "--cors", "-m", str(folder / "metadata.json")]
    arguments += ["--plugins-dir", str(ROOT / "tests/plugins")]
    with serving(*arguments, env=env, log=folder / "log") as url:
        yield url


STOPPED = "&_timelimit=500"  # ms, Datasette's own parameter; otherwise this server has no time limit


def sql(text: str) -> str:
    return str(httpx.QueryParams({"sql": text}))


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        (
            "/_memory.json?q=" + "x" * 2000,
            414,
            "query string of 2002 bytes; at most 2000 are accepted (plugins.datasette-guard.limits.url_bytes)",
        ),
        (
            "/_memory.json?" + "&".join(f"f{n}=" for n in range(11)),
            400,
            "query string of 11 fields; at most 10 are accepted (plugins.datasette-guard.limits.fields)",
        ),
        (
            "/_memory.json?" + sql("select 1 " + "-" * 492),
            400,
            "sql of 501 bytes; at most 500 are accepted (plugins.datasette-guard.limits.sql_bytes)",
        ),
        ("/_memory.json?" + sql("select zeroblob(200001)"), 400, "string or blob too big"),
        (
            "/_memory.json?" + sql("select zeroblob(199999), zeroblob(199999)"),
            400,
            "the result is larger than 300000 bytes: ask for fewer rows or columns (plugins.datasette-guard.limits.result_bytes)",
        ),
        (
            "/_memory.json?"
            + sql("with recursive c(x) as (select 1 union all select x + 1 from c limit 9) select zeroblob(99999) from c"),
            400,
            "the result is larger than 300000 bytes: ask for fewer rows or columns (plugins.datasette-guard.limits.result_bytes)",
        ),
        (
            "/_memory.json?"
            + sql("with recursive c(x) as (select 1 union all select x + 1 from c) select randomblob(99999) x from c order by x"),
            400,
            "the query needs more than the 8000000 bytes of memory (plugins.datasette-guard.limits.sqlite_bytes)",
        ),
        (
            "/_memory.json?" + sql("with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c") + STOPPED,
            400,
            "SQL query took too long",
        ),
        (
            "/_memory.json?" + sql("with recursive c(x) as (select 1 union all select x + 1 from c) select max(length(llm_embed('clip', x || ''))) from c") + STOPPED,
            400,
            "SQL query took too long",
        ),
        (
            "/_memory.csv?" + sql("with recursive c(x) as (select 1 union all select x + 1 from c) select max(x) from c") + STOPPED,
            400,
            "the query took longer than Datasette",
        ),
    ],
)  # fmt: skip
def test_a_bound_answers_with_its_sentence(path, status, sentence, server):
    response = httpx.get(server + path)
    assert response.status_code == status
    error = response.json()["error"] if ".json" in path else response.text
    assert sentence in error
    if ".json" in path:
        assert response.json()["ok"] is False
        assert response.headers["access-control-allow-origin"] == "*"
    assert httpx.get(f"{server}/_memory.json?sql=select+1").status_code == 200


def test_requests_just_within_the_limits_are_answered(server):
    for query in (
        "select 1 " + "-" * 491,
        "select length(zeroblob(200000))",
        "select randomblob(149900), randomblob(149900)",
    ):
        assert httpx.get(f"{server}/_memory.json?{sql(query)}").status_code == 200, query
    assert httpx.get(f"{server}/_memory.json?q=" + "x" * 1998).status_code == 200
    assert httpx.get(f"{server}/_memory.json?" + "&".join(f"f{n}=" for n in range(10))).status_code == 200


def test_a_text_that_is_too_long_is_refused_in_the_log(demo_dir, monkeypatch, caplog):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-clip": {"limits": {"text_bytes": 300}}}})
    assert ask(datasette, "/_memory.json?" + sql(f"select llm_embed('clip', '{'é' * 150}')")).status_code == 200
    assert ask(datasette, "/_memory.json?" + sql(f"select llm_embed('clip', '{'é' * 150}x')")).status_code == 400
    assert (
        "llm_embed: text of 301 bytes; at most 300 are accepted (plugins.datasette-clip.limits.text_bytes)"
        in caplog.messages
    )


def ask(datasette: Datasette, path: str, method: str = "GET", **options) -> httpx.Response:
    async def request():
        return await datasette.client.request(method, path, **options)

    return asyncio.run(request())


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_long_is_refused_announced_or_not(announced, server):
    body = b"x" * 1001
    response = httpx.post(f"{server}/upload", content=body if announced else iter([body]))
    assert response.status_code == 413
    assert "body of 1001 bytes" in response.text
    assert "at most 1000 are accepted (plugins.datasette-guard.limits.body_bytes)" in response.text
    assert httpx.post(f"{server}/upload", content=b"x" * 1000).text == "1000 bytes"


def test_excess_load_gets_503_and_retry_after_and_no_more(server, tmp_path):
    """The limit is four requests in flight. Six of ten are refused while four are held; later requests are served."""
    hold, answers = Hold(tmp_path / "hold"), []
    clients = [threading.Thread(target=lambda: answers.append(httpx.get(server + hold.page))) for _ in range(10)]
    for client in clients:
        client.start()
    until(lambda: len(answers) == 6)
    hold.wait_for(4)
    assert hold.begun == 4
    assert {(a.status_code, a.headers["retry-after"]) for a in answers} == {(503, "1")}
    assert "(plugins.datasette-guard.limits.requests)" in answers[0].text
    assert httpx.get(f"{server}/-/clip/health").status_code == 200
    hold.release()
    for client in clients:
        client.join()
    assert sorted(a.status_code for a in answers) == [200] * 4 + [503] * 6
    assert httpx.get(f"{server}/_memory.json?sql=select+1").status_code == 200


def test_answers_that_nobody_reads_are_bounded_and_keep_nobody_waiting(demo_dir, tmp_path):
    """The limits allow one unread answer of 8 MB and one query at a time. A second large answer gets 503; small ones are served."""
    limits = {"sending_bytes": 12_000_000, "queries": 1}
    (tmp_path / "metadata.json").write_text(json.dumps({"plugins": {"datasette-guard": {"limits": limits}}}))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", "-m", str(tmp_path / "metadata.json"), env=env, log=tmp_path / "log") as url:
        big = f"{url}/_memory.json?{sql('select hex(zeroblob(4000000)) as a')}"
        with httpx.stream("GET", big) as unread:
            assert unread.status_code == 200
            second = httpx.get(big)
            assert (second.status_code, second.headers["retry-after"]) == (503, "1")
            assert second.json()["error"].endswith("(plugins.datasette-guard.limits.sending_bytes)")
            assert httpx.get(f"{url}/_memory.json?sql=select+1").status_code == 200
            assert len(json.loads(unread.read())["rows"][0][0]) == 8_000_000
        assert len(httpx.get(big).json()["rows"][0][0]) == 8_000_000


def test_queries_beyond_those_that_may_run_at_once_wait_and_are_answered(demo_dir, tmp_path):
    (tmp_path / "metadata.json").write_text(json.dumps({"plugins": {"datasette-guard": {"limits": {"queries": 1}}}}))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = ["--memory", "-m", str(tmp_path / "metadata.json"), "--plugins-dir", str(ROOT / "tests/plugins")]
    hold = Hold(tmp_path / "hold")
    with serving(*arguments, env=env, log=tmp_path / "log") as url, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.get, url + hold.sql)
        hold.wait_for(1)
        waiting = [pool.submit(httpx.get, f"{url}/_memory.json?sql=select+nap(0.1)") for _ in range(3)]
        assert httpx.get(f"{url}/-/versions.json").status_code == 200  # runs no SQL, so it does not wait
        assert not any(query.done() for query in [first, *waiting])
        hold.release()
        assert [query.result().status_code for query in [first, *waiting]] == [200] * 4
        naps = sorted(httpx.get(f"{url}/naps").json())
    assert len(naps) == 3
    assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(naps))  # one at a time


def test_a_query_that_writes_takes_a_turn(demo_dir, tmp_path):
    note = {"sql": "insert into notes values (:a)", "write": True}
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving_notes(tmp_path, {"databases": {"t": {"queries": {"note": note}}}}, "-m", env) as url:
        takes_a_turn(url, "/t/note?_json=1", tmp_path / "hold", data={"a": "1"})
        assert httpx.get(f"{url}/t/notes.json?_shape=array").json() == [{"rowid": 1, "note": "1"}]


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"])
def test_of_requests_of_any_method_so_many_run_as_may(method):
    """Nothing here waits for a clock or a thread: after so many steps of the event loop all that may begin have begun."""
    begun, may_end = [], asyncio.Event()

    async def app(scope, receive, send):
        body = await receive()
        begun.append(body["body"])
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body["body"]})

    async def asked() -> list[int]:
        datasette = Datasette(memory=True, metadata={"plugins": {"datasette-guard": {"limits": {"queries": 2}}}})
        transport = httpx.ASGITransport(gate_around(datasette)(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            requests = [asyncio.create_task(client.request(method, "/_memory", content=b"x")) for _ in range(5)]
            for _ in range(1000):
                await asyncio.sleep(0)
            assert begun == [b"x"] * 2
            may_end.set()
            return [response.status_code for response in await asyncio.gather(*requests)]

    assert asyncio.run(asked()) == [200] * 5
    assert begun == [b"x"] * 5


@pytest.mark.parametrize(("in_flight", "status"), [(1, 400), (2, 503)])
def test_memory_that_runs_out_outside_datasettes_own_handler_gets_503_beside_other_requests(in_flight, status):
    arrived = []

    async def app(scope, receive, send):
        arrived.append(scope)
        while len(arrived) < in_flight:
            await asyncio.sleep(0)
        raise MemoryError

    async def asked() -> list[int]:
        datasette = Datasette(memory=True, metadata={"plugins": {"datasette-guard": {"limits": {"sqlite_bytes": 9}}}})
        transport = httpx.ASGITransport(gate_around(datasette)(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            responses = await asyncio.gather(*[client.get("/t") for _ in range(in_flight)])
        return [response.status_code for response in responses]

    assert max(asyncio.run(asked())) == status


def test_a_client_that_reads_nothing_is_waited_for_once():
    """Datasette would send it a page about the exception."""
    sends = []

    async def send(message):
        sends.append(message)
        await asyncio.Event().wait()

    async def stalled() -> None:
        sender = Sender(send, Load(1), Limits(stalled_s=0))
        sender.begun = True
        for _ in range(2):
            with pytest.raises(ClientStalled):
                await sender({"type": "http.response.body", "body": b"x"})

    asyncio.run(stalled())
    assert len(sends) == 1


def test_a_timeout_of_others_is_no_stalled_client():
    async def others(*message):
        raise TimeoutError("of another")

    async def both() -> None:
        sender = Sender(others, Load(1), Limits())
        sender.begun = True
        with pytest.raises(TimeoutError, match="of another"):
            await sender({"type": "http.response.body", "body": b"x"})
        with pytest.raises(TimeoutError, match="of another"):
            await Body(others, Load(1), Limits())()

    asyncio.run(both())


def test_a_plugin_that_asks_the_server_from_within_a_request_waits_for_nobody(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    metadata = {"plugins": {"datasette-guard": {"limits": {"queries": 1, "requests": 1}}}}
    datasette = Datasette(memory=True, metadata=metadata, plugins_dir=str(ROOT / "tests/plugins"))
    assert ask(datasette, "/nested").json() == [{"one": 1}]


def raw_responses(url: str, *requests: bytes) -> bytes:
    """The raw responses to raw requests that are sent at once on one connection. The last request must ask to close it."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(b"".join(requests))
        answer = b""
        while piece := raw.recv(65536):
            answer += piece
    return answer


def test_a_pipelined_request_is_checked_too(server):
    """The second of two pipelined requests begins in the task and the context of the first."""
    first = b"GET /-/versions.json HTTP/1.1\r\nHost: a\r\n\r\n"
    second = f"GET /_memory HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUser-Agent: {GOOGLEBOT}\r\n\r\n".encode()
    answer = raw_responses(server, first, second)
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"x-robots-tag: noindex") == 2
    assert b"HTTP/1.1 403 Forbidden" in answer


def test_stalled_clients_are_cut_off_and_block_nobody(demo_dir, tmp_path):
    """Two clients, as many as may run SQL, send half a form. Two more request 8 MB and read nothing."""
    limits = {"stalled_s": 2, "queries": 2, "sending_bytes": 17_000_000}
    (tmp_path / "metadata.json").write_text(json.dumps({"plugins": {"datasette-guard": {"limits": limits}}}))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    half = b"POST /_memory HTTP/1.1\r\nHost: a\r\nCookie: a=b\r\nContent-Length: 10\r\n"
    half += b"Content-Type: application/x-www-form-urlencoded\r\n\r\nx"
    with serving("--memory", "-m", str(tmp_path / "metadata.json"), env=env, log=tmp_path / "log") as url:
        big = f"/_memory.json?{sql('select hex(zeroblob(4000000)) as a')}"
        ask_big = f"GET {big} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        host, port = url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(4)]
        for one, request in zip(silent, (half, half, ask_big, ask_big)):
            one.sendall(request)
        assert httpx.get(f"{url}/_memory.json?sql=select+1").status_code == 200
        until(lambda: httpx.get(url + big).status_code == 200)
        for one in silent:
            one.close()


def test_a_client_that_left_while_it_waited_is_not_served(demo_dir, tmp_path):
    """20 queries wait for their turn while their clients disconnect. None of them begins."""
    (tmp_path / "metadata.json").write_text(json.dumps({"plugins": {"datasette-guard": {"limits": {"queries": 1}}}}))
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    arguments = ["--memory", "-m", str(tmp_path / "metadata.json"), "--plugins-dir", str(ROOT / "tests/plugins")]
    hold = Hold(tmp_path / "hold")
    with serving(*arguments, env=env, log=tmp_path / "log") as url, ThreadPoolExecutor(1) as pool:
        first = pool.submit(httpx.get, url + hold.sql)
        hold.wait_for(1)
        host, port = url.removeprefix("http://").split(":")
        for _ in range(20):
            with socket.create_connection((host, int(port))) as gone:
                gone.sendall(b"GET /_memory.json?sql=select+nap(0) HTTP/1.1\r\nHost: a\r\n\r\n")
        assert httpx.get(f"{url}/-/versions.json").status_code == 200  # by now the server has seen the disconnects
        hold.release()
        assert first.result().status_code == 200
        assert httpx.get(f"{url}/_memory.json?sql=select+1").status_code == 200
        assert httpx.get(f"{url}/naps").json() == []


def test_a_wide_result_of_numbers_counts_too(demo_dir, monkeypatch):
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    limits = {"limits": {"result_bytes": 1_000_000}}
    datasette = Datasette(memory=True, metadata={"plugins": {"datasette-guard": limits}})
    rows = "with recursive c(x) as (select 1 union all select x + 1 from c limit 1000)"
    assert ask(datasette, "/_memory.json?" + sql(f"{rows} select {', '.join(['x'] * 100)} from c")).status_code == 400
    assert ask(datasette, "/_memory.json?" + sql(f"{rows} select {', '.join(['x'] * 10)} from c")).status_code == 200


@pytest.mark.parametrize("extra", ["&sql=x", "&_where=1"])
def test_no_second_field_hides_a_long_sql(extra, server):
    response = httpx.get(f"{server}/_memory.json?{sql('select 1 ' + '-' * 492)}{extra}")
    assert "sql of 501 bytes" in response.json()["error"]


def test_a_body_for_a_page_that_does_not_count_is_a_request_like_others(server):
    response = httpx.post(f"{server}/robots.txt", content=b"x" * 1001)
    assert response.status_code == 413


def test_one_heavy_query_after_the_other_starves_nobody(demo_dir, tmp_path):
    """One client repeats a query that never ends. All queries of another client are answered."""
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    heavy = sql(
        "with recursive c(x) as (select 1 union all select x + 1 from c) select max(llm_embed('clip', x || 'y')) from c"
    )
    stop = threading.Event()
    codes: list[int] = []
    with serving("--memory", *DATASETTES_LIMIT, env=env, log=tmp_path / "log") as url:

        def attack():
            while not stop.is_set():
                codes.append(httpx.get(f"{url}/_memory.json?{heavy}").status_code)

        attacker = threading.Thread(target=attack)
        attacker.start()
        texts = [f"text {n}" for n in range(60)]
        answers = [
            httpx.get(
                f"{url}/_memory.json",
                params={"sql": "select hex(llm_embed('clip', :q)) as x", "q": q, "_shape": "array"},
            )
            for q in texts
        ]
        until(lambda: len(codes) >= 2)
        stop.set()
        attacker.join()
    assert set(codes) == {400}
    assert all(len(answer.json()[0]["x"]) == 4096 for answer in answers)


GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
GPTBOT = "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)"
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36"


@pytest.mark.parametrize("agent", [GOOGLEBOT, GPTBOT, "CCBot/2.0 (https://commoncrawl.org/faq/)", "Bytespider"])
def test_crawlers_are_refused_but_may_read_robots_txt(agent, server):
    response = httpx.get(f"{server}/_memory", headers={"user-agent": agent})
    assert response.status_code == 403
    assert response.text.startswith("crawlers and AI bots are not served here, see /robots.txt")
    assert "Disallow: /" in httpx.get(f"{server}/robots.txt", headers={"user-agent": agent}).text


@pytest.mark.parametrize(
    "agent", [CHROME, "curl/8.5.0", "python-httpx/0.28", "Python-urllib/3.13", "Wget/1.21", "Slackbot 1.0", ""]
)
def test_people_and_their_programs_are_served(agent, server):
    assert httpx.get(f"{server}/_memory.json?sql=select+1", headers={"user-agent": agent}).status_code == 200


def test_which_crawlers_are_refused_can_be_chosen():
    assert not is_crawler(GOOGLEBOT, ("ai-crawler",))
    assert is_crawler(GPTBOT, ("ai-crawler",))
    assert not is_crawler(GPTBOT, ())
    assert is_crawler("curl/8.5.0", ("http-library",))


@pytest.mark.parametrize("tag", ["ai-crawler", "search-engine", "http-library", "seo"])
def test_the_patterns_of_the_list_are_regular_expressions(tag):
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA

    agents = {agent[:512] for one in CRAWLER_USER_AGENTS_DATA for agent in one.get("instances", ())} | {CHROME, ""}
    patterns = [re.compile(one["pattern"]) for one in CRAWLER_USER_AGENTS_DATA if tag in one.get("tags", ())]
    refused = {agent for agent in agents if is_crawler(agent, (tag,))}
    assert refused == {agent for agent in agents if any(pattern.search(agent) for pattern in patterns)}
    assert 1 < len(refused) < len(agents)


def test_the_tags_are_those_of_the_list():
    from crawleruseragents import CRAWLER_USER_AGENTS_DATA

    from datasette_guard.crawlers import REFUSED, TAGS

    assert set(TAGS) == {tag for one in CRAWLER_USER_AGENTS_DATA for tag in one.get("tags", ())}
    assert set(REFUSED) < set(TAGS)


@pytest.mark.parametrize(
    ("path", "agent"),
    [
        ("/", CHROME),
        ("/_memory.json?sql=select+1", CHROME),
        ("/_memory.json?sql=x", CHROME),
        ("/nope", CHROME),
        ("/robots.txt", CHROME),
        ("/", GPTBOT),
        ("/-/static/app.css", CHROME),
        ("/-/clip/health", CHROME),
    ],
)
def test_every_answer_says_noindex(path, agent, server):
    assert httpx.get(server + path, headers={"user-agent": agent}).headers["x-robots-tag"] == "noindex"


@pytest.mark.parametrize(
    "text",
    [
        "select load_extension('mod')",
        "select readfile('/etc/passwd')",
        "select writefile('x', 'y')",
        "select edit('x')",
        "select fts3_tokenizer('simple', x'00')",
        "attach 'x.db' as x",
        "with x as (select 1) delete from photos",
        "with x as (select 1) insert into photos (name) select 'c'",
        "vacuum into 'copy.db'",
        "pragma hard_heap_limit = 1",
        "select * from pragma_hard_heap_limit(1)",
        "explain delete from photos",
        "create table x (y)",
        "drop table photos",
        "update photos set name = 'z'",
        "select 1; drop table photos",
    ],
)  # fmt: skip
def test_sql_reaches_no_file_and_writes_nothing(text, server, database):
    before = database.read_bytes()
    response = httpx.get(f"{server}/t.json?{sql(text)}")
    assert response.status_code == 400, response.text
    assert database.read_bytes() == before
    assert sorted(p.name for p in database.parent.iterdir()) == ["t.db"]


def test_there_is_no_endpoint_that_writes(demo_dir, database, monkeypatch):
    """No method on any route changes a row."""
    monkeypatch.setenv("CLIP_MODEL_DIR", str(demo_dir))
    before = database.read_bytes()
    datasette = Datasette([str(database)], memory=True)
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in (
            "/",
            "/t",
            "/t/photos",
            "/t/photos/1",
            "/t/-/create",
            "/t/photos/-/insert",
            "/t/photos/1/-/delete",
            "/_memory/embed",
            "/-/clip",
            "/-/clip.json",
        ):
            ask(datasette, path, method, json={"rows": [{"name": "c"}], "sql": "delete from photos"})
    assert database.read_bytes() == before


TYPED = st.sampled_from(["nope", "1", "-1", "99999999999999999999", "1e999", "{", "{}", "[", "on", "\0", "\ud7ff", "%", "'", "select 1", "id", "name", "é", "../..", "true"])  # fmt: skip
KEYS = st.sampled_from(["sql", "q", "text", "_size", "_next", "_sort", "_sort_desc", "_facet", "_facet_array", "_facet_date", "_facet_size", "_where", "_shape", "_nl", "_json", "_col", "_nocol", "_labels", "_timelimit", "_ttl", "_search", "_searchmode", "_through", "_filter_column", "_filter_op", "_stream", "_trace", "_extra", "_blob_column", "_json_infinity", "img", "image", "vector", "labels", "templates", "k", "format", "normalize", "orient", "texts", "id", "id__gt", "name__like", "name__in", "name__arraycontains", "a", "\0", "__x"])  # fmt: skip
PLACES = st.sampled_from(["/", "/t", "/t/photos", "/t/photos/1", "/t/pairs", "/_memory", "/_memory/embed", "/nope", "/t/nope", "/t/photos/nope", "/t/photos/99999999999999999999", "/t/~", "/t/%00", "/-/clip", "/-/clip/health", "/-/clip/embed", "/-/clip/classify", "/-/clip/compare", "/-/allow-debug", "/-/permissions", "/-/messages", "/-/patterns", "/-/logout", "/-/auth-token", "/-/plugins", "/-/static/x", "/-/nope", "/robots.txt", "/_internal", "//", "/t/photos/-/x"])  # fmt: skip
HEADERS = st.dictionaries(st.sampled_from(["cookie", "authorization", "accept", "content-type", "host", "range", "x-forwarded-proto", "origin", "user-agent", "if-none-match"]), st.sampled_from([b"x", b"\xff", b"ds_actor=x; ds_csrftoken=y", b"Bearer \xe9", b"Bearer dstok_x", b"application/json", b"application/x-www-form-urlencoded", b"multipart/form-data; boundary=x", b""]), max_size=2)  # fmt: skip


@pytest.fixture(scope="module")
def fuzzed(demo_dir, database):
    """A Datasette in this process with the shipped metadata, and the runner of its event loop."""
    with pytest.MonkeyPatch.context() as patch, asyncio.Runner() as runner:
        patch.setenv("CLIP_MODEL_DIR", str(demo_dir))
        patch.setattr("datasette.handle_exception.rich", None)  # a deployment has no rich
        yield Datasette([str(database)], memory=True, cors=True, metadata=shipped_metadata()), runner


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    method=st.sampled_from(["GET"] * 6 + ["POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"]),
    place=PLACES | st.text(st.characters(codec="utf-8"), max_size=12).map(lambda s: f"/{s}"),
    extension=st.sampled_from(["", "", ".json", ".csv", ".blob", ".db", ".x"]),
    query=st.lists(st.tuples(KEYS | st.text(max_size=5), TYPED | st.text(st.characters(codec="utf-8"), max_size=20)), max_size=4),
    headers=HEADERS,
    body=st.sampled_from([b"", b"x=1", b"\xff", b"{", b'{"a": 1}', b'{"texts": ["a", 1, null], "labels": {"a": []}}', b'{"images": "YWJj", "k": [1], "format": []}', b'{"vectors": [[1]], "templates": 3, "labels": 5}', b"img=a&text=b&labels=%ff", b"--x--", b"--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"\xff\"\r\n\r\nabc\r\n--x--"]),
)  # fmt: skip
def test_no_request_gets_500(method, place, extension, query, headers, body, fuzzed):
    from urllib.parse import quote, urlencode

    datasette, runner = fuzzed
    path = f"{quote(place, safe='/%~')}{extension}?{urlencode(query, errors='replace')}"
    asked = datasette.client.request(method, path, headers=headers, content=body if method != "GET" else None)
    response = runner.run(asked)
    assert response.status_code < 500, response.text[-500:]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nCookie: \xff\r\nConnection: close\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /t.blob?sql=select+1+as+a&_blob_column=a HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ],
)
def test_raw_bytes_that_are_no_good_request_get_400_or_nothing(request_bytes, server):
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as raw:
        raw.sendall(request_bytes)
        raw.shutdown(socket.SHUT_WR)
        status = raw.recv(100).split(b" ")[1:2]
    assert status in ([b"400"], [b"404"], [])
    assert httpx.get(f"{server}/_memory.json?sql=select+1").status_code == 200


def test_the_log_has_the_beginning_of_a_url_and_no_picture(demo_dir, tmp_path):
    env = environment(tmp_path / "llm", CLIP_MODEL_DIR=str(demo_dir))
    with serving("--memory", env=env, log=tmp_path / "log") as url:
        assert httpx.get(f"{url}/_memory.json?sql=select+1&img={'x' * 5000}y").status_code == 200
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if "img=" in line]
    assert len(lines) == 1
    assert "sql=select+1&img=xxx" in lines[0]
    assert len(lines[0]) < 700
    assert 'xxx... HTTP/1.1" 200' in lines[0]


@pytest.mark.parametrize(
    ("base_url", "scope", "path"),
    [
        ("/", {"path": "/-/clip"}, "/-/clip"),
        ("/", {"path": "/-/clip", "raw_path": b"/-%2Fclip?sql=/x"}, "/-%2Fclip"),
        ("/", {"path": "//-/clip", "raw_path": b"//-/clip"}, "//-/clip"),
        ("/clip/", {"path": "/clip/-/clip"}, "/-/clip"),
        ("/clip/", {"path": "/clip/", "raw_path": b"/clip/"}, "/"),
        ("/clip/", {"path": "/-/clip"}, "/-/clip"),
        ("/clip/", {"path": "/clip"}, "/clip"),
        ("/", {"path": "/é"}, "/Ã©"),
        ("/", {"path": "/x", "raw_path": b"/\xff"}, "/ÿ"),
    ],
)
def test_the_path_below_base_url_is_the_one_that_datasettes_router_finds(base_url, scope, path):
    assert path_below(base_url, scope) == path


@pytest.mark.parametrize(
    ("path", "runs"),
    [("/", True), ("/t.json", True), ("/t/-/query", True), ("/-/versions", False), ("/-/clip", False), ("/nope", True)],
)
def test_sql_runs_for_every_path_but_those_of_the_server(path, runs):
    assert runs_sql(path) is runs


def test_declared_paths_run_sql_below_and_keep_no_server_awake(monkeypatch):
    from datasette_guard import declare, gate

    monkeypatch.setattr(gate, "sql_paths", [])
    assert not runs_sql("/-/mine/a")
    declare(run_sql_below=["/-/mine/"])
    assert (runs_sql("/-/mine/a"), runs_sql("/-/mine")) == (True, False)


def test_messages_that_are_neither_start_nor_body_pass_as_they_are():
    """An early hint comes before the start, trailers after the body. Each is a message of the ASGI specification."""
    hint = {"type": "http.response.early_hint", "links": [b"</a.css>"]}
    start = {"type": "http.response.start", "status": 200, "headers": [], "trailers": True}
    trailers = {"type": "http.response.trailers", "headers": [(b"a", b"b")], "more_trailers": False}
    sent: list[dict] = []

    async def send(message):
        sent.append(message)

    async def respond():
        sender = Sender(send, Load(1), Limits())
        for message in (hint, start, {"type": "http.response.body", "body": b"x"}, trailers):
            await sender(message)

    asyncio.run(respond())
    assert [sent[0], sent[1]["trailers"], sent[2]["body"], sent[3]] == [hint, True, b"x", trailers]
