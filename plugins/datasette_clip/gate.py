"""The outermost ASGI wrapper: what is refused before Datasette sees it, and what counts as being awake.

Refusals here are cheap and each is a sentence. What SQL may use is bounded in sql_limits.py.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from urllib.parse import parse_qsl

from datasette.utils import add_cors_headers
from datasette.utils.asgi import Base400

from . import leaving
from .bad_requests import as_bad_request
from .config import Config, Limits, config_of
from .crawlers import is_refused
from .sleeping import clock_of

HEALTH = "/-/clip/health"
UNCOUNTED = {HEALTH, "/robots.txt", "/favicon.ico", "/-/static/favicon.png"}
CROWDED = "this server is answering as many requests as it may at once (plugins.datasette-clip.limits.requests)"
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
            if scope["type"] != "http":
                return await app(scope, receive, send)
            path = f"/{scope['path'].removeprefix(base_url).removeprefix('/')}"
            config, clock, send = config_of(datasette), clock_of(datasette), Answer(send)
            refusal = refuse(config, scope, path, clock.counted_in_flight)
            with clock.request(counts=refusal is None and path not in UNCOUNTED):
                if refusal is None:
                    refusal = await pass_on(app, scope, bounded(receive, config.limits.body_bytes), send, config)
                if refusal:
                    await answer(*refusal, path.endswith(".json"), datasette.cors, send)

        return gated

    return wrap


def refuse(config: Config, scope: dict, path: str, in_flight: int) -> tuple[int, str] | None:
    """Status and sentence for a request that goes no further, or None."""
    headers = dict(scope["headers"])
    if path in UNCOUNTED:
        return None
    if is_refused(headers.get(b"user-agent", b"").decode("latin-1"), config.refuse_crawlers):
        return HTTPStatus.FORBIDDEN, NO_CRAWLERS
    if in_flight >= config.limits.requests:
        return HTTPStatus.SERVICE_UNAVAILABLE, CROWDED
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
        sql = dict(parse_qsl(query.decode("latin-1"))).get("sql", "").encode()
        if len(sql) > limits.sql_bytes:
            return HTTPStatus.BAD_REQUEST, too_much("sql", len(sql), "bytes", limits.sql_bytes, "sql_bytes")
    if content_length.isdigit() and int(content_length) > limits.body_bytes:
        sentence = too_much("body", int(content_length), "bytes", limits.body_bytes, "body_bytes")
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, sentence
    return None


def too_much(what: str, found: int, unit: str, limit: int, name: str) -> str:
    return f"{what} of {found} {unit}; at most {limit} are accepted (plugins.datasette-clip.limits.{name})"


def bounded(receive, body_bytes: int):
    """`receive`, which raises BodyTooLarge once more than body_bytes have arrived, whatever was announced."""
    arrived = 0

    async def receive_bounded():
        nonlocal arrived
        message = await receive()
        arrived += len(message.get("body", b""))
        if arrived > body_bytes:
            raise BodyTooLarge(too_much("body", arrived, "bytes or more", body_bytes, "body_bytes"))
        return message

    return receive_bounded


class Answer:
    """`send`, with `X-Robots-Tag: noindex` on the answer: robots.txt alone keeps no URL out of an index.

    Status and headers are held back until there is a body, which Datasette may fail to encode.
    """

    def __init__(self, send) -> None:
        self.send = send
        self.start: dict = {}
        self.begun = False

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            self.start = message | {"headers": [*message.get("headers", ()), (b"x-robots-tag", b"noindex")]}
            return
        if not self.begun:
            self.begun = True
            await self.send(self.start)
        await self.send(message)


async def pass_on(app, scope: dict, receive, send: Answer, config: Config) -> tuple[int, str] | None:
    """Have Datasette answer: None, or status and sentence where it fails outside its own handling of exceptions.

    As on a Cookie that is not UTF-8. Raises what is a fault of ours, and all that comes once the answer has begun.
    """
    try:
        await app(scope, receive, send)
    except Exception as error:
        known = as_bad_request(error, config.limits)
        if send.begun or not isinstance(known, Base400):
            raise
        return known.status, str(known)
    return None


async def answer(status: int, sentence: str, as_json: bool, cors: bool, send) -> None:
    """A sentence as an answer: as JSON where JSON was asked for, else as text."""
    body = json.dumps({"ok": False, "error": sentence, "status": int(status)}) if as_json else sentence
    headers = {"Content-Type": "application/json" if as_json else "text/plain; charset=utf-8"}
    if cors:
        add_cors_headers(headers)
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = "1"
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": pairs})
    await send({"type": "http.response.body", "body": body.encode()})
