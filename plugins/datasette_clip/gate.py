"""The outermost ASGI wrapper: what is refused before Datasette sees it, what waits, and what counts as being awake.

Refusals here are cheap and each is a sentence. What SQL may use is bounded in sql_limits.py.
"""

from __future__ import annotations

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
UNCOUNTED = {HEALTH, "/robots.txt", "/favicon.ico", "/-/static/favicon.png"}
within_another = ContextVar("within_another", default=False)  # datasette.client asks the server from within a request
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
            if scope["type"] != "http" or within_another.get():
                return await app(scope, receive, send)
            path = f"/{scope['path'].removeprefix(base_url).removeprefix('/')}"
            config, clock = config_of(datasette), clock_of(datasette)
            refusal = refuse(config, scope, path, clock.counted_in_flight)
            with clock.request(counts=refusal is None and path not in UNCOUNTED):
                sent = Answer(send, traffic_of(datasette), config.limits)
                if refusal is None:
                    async with sent.turn() if may_run_sql(path) else nullcontext():
                        refusal = await pass_on(app, scope, bounded(receive, config.limits.body_bytes), sent, config)
                if refusal:
                    await answer(*refusal, path.endswith(".json"), datasette.cors, sent)

        return gated

    return wrap


def may_run_sql(path: str) -> bool:
    """Whether Datasette may run SQL for a path: not under /-/, where pages about the server itself are."""
    return not path.startswith("/-/") and path not in UNCOUNTED


def refuse(config: Config, scope: dict, path: str, in_flight: int) -> tuple[int, str] | None:
    """Status and sentence for a request that goes no further, or None."""
    headers = dict(scope["headers"])
    if path in UNCOUNTED:
        return None
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


async def pass_on(app, scope: dict, receive, send: Answer, config: Config) -> tuple[int, str] | None:
    """Have Datasette answer: None, or status and sentence where it fails outside its own handling of exceptions.

    As on a Cookie that is not UTF-8. Raises what is a fault of ours, and all that comes once the answer has begun.
    """
    token = within_another.set(True)
    try:
        await app(scope, receive, send)
    except Exception as error:
        known = as_bad_request(error, config.limits)
        if send.begun or not isinstance(known, Base400):
            raise
        return known.status, str(known)
    finally:
        within_another.reset(token)
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
