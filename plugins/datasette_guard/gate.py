"""The ASGI wrapper around Datasette: refuses crawlers, too many and too large requests, and has SQL wait its turn.

A request counts as SQL by its path alone, whatever it is for: every GET of a path that is not below /-/ (a database, a
table, a row, a canned query, and the home page), every other method at the path of a database, and what another plugin
has declared. A plugin can also declare paths of its own that are not below /-/ and run no SQL.

What SQL may use is bounded in sql_limits.py, bodies in body.py, responses in answer.py.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl

from datasette.utils import tilde_decode
from datasette.utils.asgi import Base400, Response

from . import shutdown, upstream
from .answer import CROWDED, Sender, load_of
from .body import Body, body_too_large
from .config import Config, Limits, config_of, limits_of
from .cors import HEADERS, RAW_HEADERS, SCRIPTS, allow_preflight, is_preflight
from .crawlers import is_crawler
from .faults import translate
from .hosts import refuse_host
from .idle import Clock, clock_of

log = logging.getLogger("datasette_guard")
ErrorJson = Callable[[str, int], dict]  # a sentence and a status -> the error in JSON

READING = {"GET", "HEAD"}
uncounted = {"/robots.txt", "/favicon.ico"}  # paths that keep no server awake
sql_paths: list[str] = []  # beginnings of paths under /-/ that run SQL
own_paths: list[tuple[Callable[[str], bool], ErrorJson]] = []  # of other plugins, outside /-/: predicate, errors
read_only_paths: list[Callable[[str], bool]] = []  # predicates: a POST to this path changes nothing
current: ContextVar[Sender | None] = ContextVar("current", default=None)  # set during a request, for datasette.client
BY_POST = "send less, or send it by POST to an endpoint that takes one"
NO_CRAWLERS = "crawlers and AI bots are not served here, see /robots.txt (plugins.datasette-guard.refuse_crawlers)"


class Refusal(NamedTuple):
    """The response to a request that Datasette does not answer."""

    status: int
    sentence: str


def declare(
    uncounted_paths: Iterable[str] = (),
    run_sql_below: Iterable[str] = (),
    is_read_only: Callable[[str], bool] = lambda path: False,
    is_own: Callable[[str], bool] | None = None,
    error_json: ErrorJson | None = None,
) -> None:
    """Declare another plugin's paths: some keep no server awake, and below some that begin with /-/ SQL runs.

    Paths are those below base_url. A GET of an uncounted path neither waits nor is refused as a crawler's. A POST to a
    path that is read only may come from a page of any origin, because it changes nothing. is_own: predicate of paths
    outside /-/ that run no SQL; error_json makes the JSON of errors there.
    """
    uncounted.update(uncounted_paths)
    sql_paths.extend(run_sql_below)
    read_only_paths.append(is_read_only)
    if is_own and error_json:
        own_paths.append((is_own, error_json))


def path_below(base_url: str, scope: dict) -> str:
    """The path of a request below Datasette's setting base_url, percent-encoded, as Datasette's router finds it."""
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1").partition("?")[0]
    return f"/{path.removeprefix(base_url)}" if path.startswith(base_url) else path


def runs_sql(path: str) -> bool:
    """True if a request to this path (see path_below) may run SQL.

    Paths under /-/ are about the server itself and run none, except those declared.
    """
    return not is_outside_databases(path) or path.startswith(tuple(sql_paths))


def is_outside_databases(path: str) -> bool:
    """True if a path is under /-/, or a plugin has declared that it is its own."""
    return path.startswith("/-/") or own_error_json(path) is not None


def own_error_json(path: str) -> ErrorJson | None:
    """What makes the JSON of errors at a path that a plugin has declared as its own, None for other paths."""
    return next((error_json for is_own, error_json in own_paths if is_own(path)), None)


def takes_a_turn(datasette, method: str, path: str) -> bool:
    """True if a request waits for a turn at SQL.

    A request that is not a GET waits only where SQL can be its purpose: at a database, or at a declared path. Its body
    is read before, which would keep another plugin's own path from reading a body while it arrives.
    """
    if method in READING or is_outside_databases(path):
        return runs_sql(path)
    name = path.split("/")[1]
    routes = {database.route or database.name for database in datasette.databases.values()}
    return not routes.isdisjoint({tilde_decode(name), tilde_decode(name.rpartition(".")[0])})


def changes_nothing(datasette, scope: dict) -> bool:
    """True if a request goes to a path that is declared as read only: there is nothing to forge."""
    path = path_below(datasette.setting("base_url"), scope)
    return any(is_read_only(path) for is_read_only in read_only_paths)


def query_fits(datasette, query: str) -> bool:
    """True if the gate lets a request with this query string pass."""
    return refuse_size(limits_of(datasette), query.encode(), 0) is None


def gate_around(datasette):
    """An ASGI wrapper around a Datasette, to be the outermost."""
    base_url = datasette.setting("base_url")

    def wrap(app):
        async def gated(scope, receive, send):
            if scope["type"] == "lifespan":
                shutdown.bound_drain()
                upstream.shorten_access_log()
            if scope["type"] != "http" or is_nested():
                return await app(scope, receive, send)
            path = path_below(base_url, scope)
            config, clock = config_of(datasette), clock_of(datasette)
            counts = not (path in uncounted and scope["method"] in READING)
            refusal = refuse_name(config, scope) or (refuse(config, scope, clock.counted_in_flight) if counts else None)
            waits = counts and takes_a_turn(datasette, scope["method"], path)
            with clock.request(counts=counts and refusal is None):
                sender = Sender(send, load_of(datasette), config.limits)
                if datasette.cors and path.startswith(SCRIPTS):
                    sender.more_headers = RAW_HEADERS
                if refusal is None and datasette.cors and is_preflight(scope):
                    await allow_preflight(sender)
                elif refusal is None:
                    refusal = await respond(app, scope, receive, sender, waits, clock)
                if refusal:
                    form = own_error_json(path) or (datasettes_error if path.endswith(".json") else None)
                    await send_refusal(refusal, form, datasette.cors, sender)

        return gated

    return wrap


def is_nested() -> bool:
    """True inside another request, where a plugin calls datasette.client."""
    sender = current.get()
    return sender is not None and not sender.ended


async def respond(app, scope: dict, receive, sender: Sender, waits: bool, clock: Clock) -> Refusal | None:
    """Have Datasette respond. A refusal comes back for known faults outside Datasette's own handling of exceptions.

    Re-raises bugs, and anything raised after the response has started.
    """
    try:
        with Body(receive, sender.load, sender.limits) as body:
            await (respond_in_turn if waits else respond_now)(app, scope, body, sender)
    except Exception as error:
        known = translate(error, sender.limits, clock.counted_in_flight)
        if sender.begun or not isinstance(known, Base400):
            raise
        return Refusal(known.status, str(known))
    return None


async def respond_in_turn(app, scope: dict, body: Body, sender: Sender) -> None:
    """Have Datasette respond after a turn at SQL, unless the client has left meanwhile.

    The turn begins when the body has arrived, so that no client holds one by sending slowly.
    """
    await body.read_ahead()
    turn_is_free = not sender.load.turns.locked()
    async with sender.turn():
        if not (body.ends_with_departure if turn_is_free else await body.client_has_left()):
            await respond_now(app, scope, body, sender)


async def respond_now(app, scope: dict, body: Body, sender: Sender) -> None:
    token = current.set(sender)
    try:
        await app(scope, body, sender)
    finally:
        sender.ended = True
        current.reset(token)


def refuse_name(config: Config, scope: dict) -> Refusal | None:
    """The refusal of a request under a name that is not this server's, or None."""
    sentence = refuse_host(config.hosts, dict(scope["headers"]).get(b"host"))
    return Refusal(HTTPStatus.MISDIRECTED_REQUEST, sentence) if sentence else None


def refuse(config: Config, scope: dict, in_flight: int) -> Refusal | None:
    """The refusal of a request that goes no further, or None."""
    headers = dict(scope["headers"])
    if is_crawler(headers.get(b"user-agent", b"").decode("latin-1"), config.refuse_crawlers):
        return Refusal(HTTPStatus.FORBIDDEN, NO_CRAWLERS)
    if in_flight >= config.limits.requests:
        return Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{CROWDED}.requests)")
    announced = headers.get(b"content-length", b"")
    body_bytes = int(announced) if announced.isdigit() else 0
    return refuse_size(config.limits, scope.get("query_string", b""), body_bytes)


def refuse_size(limits: Limits, query: bytes, body_bytes: int) -> Refusal | None:
    """The refusal of a query string that is too long, or of a body that is announced as too long, or None."""
    if len(query) > limits.url_bytes:
        sentence = too_much("query string", len(query), "bytes", limits.url_bytes, "url_bytes")
        return Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, f"{sentence}: {BY_POST}")
    if (fields := query.count(b"&") + 1) > limits.fields:
        return Refusal(HTTPStatus.BAD_REQUEST, too_much("query string", fields, "fields", limits.fields, "fields"))
    if len(query) > limits.sql_bytes and (size := sql_bytes(query)) > limits.sql_bytes:
        return Refusal(HTTPStatus.BAD_REQUEST, too_much("sql", size, "bytes", limits.sql_bytes, "sql_bytes"))
    if body_bytes > limits.body_bytes:
        return Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, body_too_large(f"{body_bytes} bytes", limits))
    return None


def sql_bytes(query: bytes) -> int:
    """The size of the longest SQL in a query string: of its fields `sql` and `_where`."""
    fields = parse_qsl(query.decode("latin-1"))
    return max((len(value.encode()) for name, value in fields if name in ("sql", "_where")), default=0)


def too_much(name: str, size: int, unit: str, limit: int, key: str) -> str:
    return f"{name} of {size} {unit}; at most {limit} are accepted (plugins.datasette-guard.limits.{key})"


def own_error(datasette, request, exception: Exception) -> Response | None:
    """The response to an exception at a path that a plugin has declared as its own, None at other paths."""
    error_json = own_error_json(path_below(datasette.setting("base_url"), request.scope))
    if error_json is None:
        return None
    status, sentence = int(HTTPStatus.INTERNAL_SERVER_ERROR), "this server has failed; its log says why"
    if isinstance(exception, Base400):
        status, sentence = int(exception.status), str(exception)
    else:
        log.error("%s %s", request.method, request.path, exc_info=exception)
    return Response.json(error_json(sentence, status), status=status, headers=HEADERS if datasette.cors else {})


def datasettes_error(sentence: str, status: int) -> dict:
    return {"ok": False, "error": sentence, "status": status}


async def send_refusal(refusal: Refusal, form: ErrorJson | None, cors: bool, send) -> None:
    """Send a refusal: as JSON in a form, or as text."""
    status = int(refusal.status)
    body = json.dumps(form(refusal.sentence, status)) if form else refusal.sentence
    headers = {"Content-Type": "application/json" if form else "text/plain; charset=utf-8"}
    if cors:
        headers |= HEADERS
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body.encode()})
