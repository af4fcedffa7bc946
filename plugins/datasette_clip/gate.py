"""The outermost ASGI wrapper: what is refused before Datasette sees it, what waits, and what counts as being awake.

Refusals here are cheap and each is a sentence. What SQL may use is bounded in sql_limits.py.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from contextvars import ContextVar
from http import HTTPStatus
from urllib.parse import parse_qsl

from datasette.utils import add_cors_headers
from datasette.utils.asgi import Base400

from . import leaving
from .bad_requests import as_bad_request
from .config import Config, Limits, config_of
from .crawlers import is_refused
from .sleeping import clock_of
from .traffic import CROWDED, Answer, traffic_of

HEALTH = "/-/clip/health"
UNCOUNTED = {HEALTH, "/robots.txt", "/favicon.ico"}
READING = {"GET", "HEAD"}
within: ContextVar[Answer | None] = ContextVar("within", default=None)  # datasette.client asks from within a request
NO_CRAWLERS = "crawlers and AI bots are not served here, see /robots.txt (plugins.datasette-clip.refuse_crawlers)"


class BodyTooLarge(Base400):
    """The body of a request is longer than plugins.datasette-clip.limits.body_bytes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value


def gate(datasette):
    """An ASGI wrapper, to be the outermost, around a Datasette."""
    base_url = datasette.setting("base_url")

    def wrap(app):
        async def gated(scope, receive, send):
            if scope["type"] == "lifespan":
                leaving.bound_the_drain()
            if scope["type"] != "http" or ((outer := within.get()) and not outer.ended):
                return await app(scope, receive, send)
            path = f"/{scope['path'].removeprefix(base_url).removeprefix('/')}"
            config, clock = config_of(datasette), clock_of(datasette)
            counts = not (path in UNCOUNTED and scope["method"] in READING)
            refusal = refuse(config, scope, clock.counted_in_flight) if counts else None
            with clock.request(counts=counts and refusal is None):
                sent, body = Answer(send, traffic_of(datasette), config.limits), Body(receive, config.limits)
                if refusal is None:
                    waits = counts and may_run_sql(path) and scope["method"] in READING
                    async with sent.turn() if waits else nullcontext():
                        if waits and await body.reader_is_gone():
                            return
                        refusal = await pass_on(app, scope, body, sent, config)
                if refusal:
                    await answer(*refusal, path.endswith(".json"), datasette.cors, sent)

        return gated

    return wrap


def may_run_sql(path: str) -> bool:
    """Whether Datasette may run SQL for a path: not under /-/, where pages about the server itself are."""
    return not path.startswith("/-/")


def refuse(config: Config, scope: dict, in_flight: int) -> tuple[int, str] | None:
    """Status and sentence for a request that goes no further, or None."""
    headers = dict(scope["headers"])
    if is_refused(headers.get(b"user-agent", b"").decode("latin-1"), config.refuse_crawlers):
        return HTTPStatus.FORBIDDEN, NO_CRAWLERS
    if in_flight >= config.limits.requests:
        return HTTPStatus.SERVICE_UNAVAILABLE, f"{CROWDED}.requests)"
    return refuse_size(config.limits, scope.get("query_string", b""), headers.get(b"content-length", b"0"))


def refuse_size(limits: Limits, query: bytes, content_length: bytes) -> tuple[int, str] | None:
    """Status and sentence for a request that asks too much in its URL or announces too long a body, or None."""
    if len(query) > limits.url_bytes:
        return HTTPStatus.REQUEST_URI_TOO_LONG, too_much(
            "query string", len(query), "bytes", limits.url_bytes, "url_bytes"
        )
    if (fields := query.count(b"&") + 1) > limits.fields:
        return HTTPStatus.BAD_REQUEST, too_much("query string", fields, "fields", limits.fields, "fields")
    if len(query) > limits.sql_bytes:
        sql = max((len(v.encode()) for k, v in parse_qsl(query.decode("latin-1")) if k in ("sql", "_where")), default=0)
        if sql > limits.sql_bytes:
            return HTTPStatus.BAD_REQUEST, too_much("sql", sql, "bytes", limits.sql_bytes, "sql_bytes")
    if content_length.isdigit() and int(content_length) > limits.body_bytes:
        sentence = too_much("body", int(content_length), "bytes", limits.body_bytes, "body_bytes")
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence
    return None


def too_much(what: str, found: int, unit: str, limit: int, name: str) -> str:
    return f"{what} of {found} {unit}; at most {limit} are accepted (plugins.datasette-clip.limits.{name})"


class Body:
    """`receive`, which raises BodyTooLarge once too much has arrived, whatever was announced, and TimeoutError after
    limits.stalled_s of silence.
    """

    def __init__(self, receive, limits: Limits) -> None:
        self.receive, self.limits = receive, limits
        self.arrived_bytes = 0
        self.complete = False
        self.first: dict | None = None  # received, and not yet passed on

    async def reader_is_gone(self) -> bool:
        """Whether who sent a request without a body has left since."""
        self.first = await self()
        return self.first["type"] == "http.disconnect"

    async def __call__(self) -> dict:
        message, self.first = self.first, None
        if message is None:
            async with asyncio.timeout(None if self.complete else self.limits.stalled_s):
                message = await self.receive()
            self.arrived_bytes += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)  # what comes then is that the client has left
        if self.arrived_bytes > self.limits.body_bytes:
            limit = self.limits.body_bytes
            raise BodyTooLarge(too_much("body", self.arrived_bytes, "bytes or more", limit, "body_bytes"))
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
        add_cors_headers(headers)
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": pairs})
    await send({"type": "http.response.body", "body": body.encode()})
