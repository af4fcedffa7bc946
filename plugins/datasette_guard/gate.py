"""The outermost ASGI wrapper: what is refused before Datasette sees it, what waits, and what counts as being awake.

Refusals here are cheap and each is a sentence. What SQL may use is bounded in sql_limits.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from http import HTTPStatus
from urllib.parse import parse_qsl

from datasette.utils.asgi import Base400

from . import shutdown
from .answer import CROWDED, Answer, Traffic, traffic_of
from .config import Config, Limits, config_of
from .cors import HEADERS, RAW_HEADERS, SCRIPTS, answer_preflight, is_preflight
from .crawlers import is_refused
from .faults import as_bad_request
from .idle import clock_of

uncounted = {"/robots.txt", "/favicon.ico"}  # paths that keep no server awake
run_sql: list[str] = []  # beginnings of paths under /-/ that run SQL
READING = {"GET", "HEAD"}
within: ContextVar[Answer | None] = ContextVar("within", default=None)  # datasette.client asks from within a request
LOGGED = 500  # characters of a URL
READ_BYTES = 300_000  # of a URL and headers, so that who sends an image by GET that is too large hears why
BY_POST = "send less, or send it by POST to an endpoint that takes one"
NO_CRAWLERS = "crawlers and AI bots are not served here, see /robots.txt (plugins.datasette-guard.refuse_crawlers)"


class BodyTooLarge(Base400):
    """The body of a request is longer than plugins.datasette-guard.limits.body_bytes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value


def declare(uncounted_paths: Iterable[str] = (), run_sql_below: Iterable[str] = ()) -> None:
    """Tell the gate of another plugin's paths: those that keep no server awake, and those under /-/ that run SQL."""
    uncounted.update(uncounted_paths)
    run_sql.extend(run_sql_below)


def gate(datasette):
    """An ASGI wrapper, to be the outermost, around a Datasette."""
    base_url = datasette.setting("base_url")

    def wrap(app):
        async def gated(scope, receive, send):
            if scope["type"] == "lifespan":
                shutdown.bound_the_drain()
                read_long_urls()
                logging.getLogger("uvicorn.access").addFilter(shorten)
            if scope["type"] != "http" or ((outer := within.get()) and not outer.ended):
                return await app(scope, receive, send)
            path = f"/{scope['path'].removeprefix(base_url).removeprefix('/')}"
            config, clock = config_of(datasette), clock_of(datasette)
            counts = not (path in uncounted and scope["method"] in READING)
            refusal = refuse(config, scope, clock.counted_in_flight) if counts else None
            with clock.request(counts=counts and refusal is None):
                sent = Answer(send, traffic_of(datasette), config.limits)
                if datasette.cors and path.startswith(SCRIPTS):
                    sent.more_headers = RAW_HEADERS
                if refusal is None and datasette.cors and is_preflight(scope):
                    await answer_preflight(sent)
                elif refusal is None:
                    waits = counts and may_run_sql(path) and scope["method"] in READING
                    refusal = await let_in(app, scope, receive, sent, config, waits)
                if refusal:
                    await answer(*refusal, path.endswith(".json"), datasette.cors, sent)

        return gated

    return wrap


def shorten(record: logging.LogRecord) -> bool:
    """Keep the pictures that URLs carry out of the access log, whose third argument is the URL."""
    if isinstance(record.args, tuple) and len(record.args) > 2 and len(url := str(record.args[2])) > LOGGED:
        record.args = (*record.args[:2], f"{url[:LOGGED]}...", *record.args[3:])
    return True


def read_long_urls() -> None:
    """Have uvicorn read URLs and headers of up to READ_BYTES: by itself it answers 65,537 with no more than 400."""
    if uvicorn := shutdown.uvicorns_config():
        uvicorn.h11_max_incomplete_event_size = READ_BYTES


async def let_in(app, scope: dict, receive, sent: Answer, config: Config, waits: bool) -> tuple[int, str] | None:
    """Have a request answered, in its turn at SQL where it waits for one, while there is room for its body.

    As pass_on gives it: None, or status and sentence.
    """
    with Body(receive, sent.traffic, config.limits) as body:
        async with sent.turn() if waits else nullcontext():
            if waits and await body.reader_is_gone():
                return None
            return await pass_on(app, scope, body, sent, config)


def content_length(scope: dict) -> int:
    """How many bytes of body a request announces, 0 where it does not say."""
    announced = dict(scope["headers"]).get(b"content-length", b"")
    return int(announced) if announced.isdigit() else 0


def may_run_sql(path: str) -> bool:
    """Whether SQL may run for a path: of those under /-/, which are about the server itself, only for a search."""
    return not path.startswith("/-/") or path.startswith(tuple(run_sql))


def refuse(config: Config, scope: dict, in_flight: int) -> tuple[int, str] | None:
    """Status and sentence for a request that goes no further, or None."""
    headers = dict(scope["headers"])
    if is_refused(headers.get(b"user-agent", b"").decode("latin-1"), config.refuse_crawlers):
        return HTTPStatus.FORBIDDEN, NO_CRAWLERS
    if in_flight >= config.limits.requests:
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{CROWDED}.requests)"
    return refuse_size(config.limits, scope.get("query_string", b""), content_length(scope))


def refuse_size(limits: Limits, query: bytes, body_bytes: int) -> tuple[int, str] | None:
    """Status and sentence for a request that asks too much in its URL or announces too long a body, or None."""
    if len(query) > limits.url_bytes:
        sentence = too_much("query string", len(query), "bytes", limits.url_bytes, "url_bytes")
        return HTTPStatus.REQUEST_URI_TOO_LONG, f"{sentence}: {BY_POST}"
    if (fields := query.count(b"&") + 1) > limits.fields:
        return HTTPStatus.BAD_REQUEST, too_much("query string", fields, "fields", limits.fields, "fields")
    if len(query) > limits.sql_bytes:
        sql = max((len(v.encode()) for k, v in parse_qsl(query.decode("latin-1")) if k in ("sql", "_where")), default=0)
        if sql > limits.sql_bytes:
            return HTTPStatus.BAD_REQUEST, too_much("sql", sql, "bytes", limits.sql_bytes, "sql_bytes")
    if body_bytes > limits.body_bytes:
        sentence = too_much("body", body_bytes, "bytes", limits.body_bytes, "body_bytes")
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence
    return None


def too_much(what: str, found: int, unit: str, limit: int, name: str) -> str:
    return f"{what} of {found} {unit}; at most {limit} are accepted (plugins.datasette-guard.limits.{name})"


class Stalled(Base400):
    """A client sends no more of the body that it began, for plugins.datasette-guard.limits.stalled_s."""

    status = HTTPStatus.REQUEST_TIMEOUT.value


class TooMuchToReceive(Base400):
    """More is being received than plugins.datasette-guard.limits.receiving_bytes: whoever comes back is served."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class Body:
    """`receive`, which raises BodyTooLarge once too much has arrived, whatever was announced, TooMuchToReceive where
    that is too much beside all other bodies, and Stalled after limits.stalled_s of silence.

    A context, at whose end the body no longer counts among those that are held.
    """

    def __init__(self, receive, traffic: Traffic, limits: Limits) -> None:
        self.receive, self.traffic, self.limits = receive, traffic, limits
        self.arrived_bytes = self.held_bytes = 0
        self.complete = False
        self.first: dict | None = None  # received, and not yet passed on

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_) -> None:
        self.traffic.receiving_bytes -= self.held_bytes

    def hold(self) -> bool:
        """Whether there is room for what has arrived of this body beside all others; if so, it counts from now on."""
        more = self.arrived_bytes - self.held_bytes
        if more and self.traffic.receiving_bytes + more > self.limits.receiving_bytes:
            return False
        self.traffic.receiving_bytes += more
        self.held_bytes += more
        return True

    async def reader_is_gone(self) -> bool:
        """Whether who sent a request without a body has left since."""
        self.first = await self()
        return self.first["type"] == "http.disconnect"

    async def __call__(self) -> dict:
        message, self.first = self.first, None
        if message is None:
            try:
                async with asyncio.timeout(None if self.complete else self.limits.stalled_s):
                    message = await self.receive()
            except TimeoutError:
                raise Stalled(f"nothing more of the body came for {self.limits.stalled_s} s") from None
            self.arrived_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)  # what comes then is that the client has left
        if self.arrived_bytes > self.limits.body_bytes:
            limit = self.limits.body_bytes
            raise BodyTooLarge(too_much("body", self.arrived_bytes, "bytes or more", limit, "body_bytes"))
        if not self.hold():
            raise TooMuchToReceive(f"{CROWDED}.receiving_bytes)")
        return message


async def pass_on(app, scope: dict, receive, send: Answer, config: Config) -> tuple[int, str] | None:
    """Have Datasette answer: None, or status and sentence where it fails outside its own handling of exceptions.

    As on a Cookie that is not UTF-8. Raises what is a fault of ours, and all that comes once the answer has begun.
    """
    token = within.set(send)
    try:
        await app(scope, receive, send)
    except TimeoutError:
        raise  # of a client that neither sends nor reads: there is nobody to answer
    except Exception as error:
        known = as_bad_request(error, config.limits)
        if send.begun or not isinstance(known, Base400):
            raise
        return known.status, str(known)
    finally:
        send.ended = True
        within.reset(token)
    return None


async def answer(status: int, sentence: str, as_json: bool, cors: bool, send) -> None:
    """A sentence as an answer: as JSON where JSON was asked for, else as text."""
    body = json.dumps({"ok": False, "error": sentence, "status": int(status)}) if as_json else sentence
    headers = {"Content-Type": "application/json" if as_json else "text/plain; charset=utf-8"}
    if cors:
        headers |= HEADERS
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": pairs})
    await send({"type": "http.response.body", "body": body.encode()})
