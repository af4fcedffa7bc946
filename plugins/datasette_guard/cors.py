"""Serves pages of other origins, if Datasette runs with --cors: answers preflights, and adds headers it leaves out.

Datasette 0.65 answers OPTIONS without the allowed methods and headers, and with 403 on a private instance, because a
preflight carries no token.
"""

from __future__ import annotations

HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, *",  # OpenAI's SDK in a browser sends some of its own
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Expose-Headers": "Link, Retry-After",
    "Access-Control-Max-Age": "3600",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
SCRIPTS = "/-/static-plugins/"  # ES modules, which another origin may import only with these headers


def is_preflight(scope: dict) -> bool:
    """True if a browser asks whether a page of another origin may send its request."""
    asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
    return scope["method"] == "OPTIONS" and asks


async def allow_preflight(send) -> None:
    """Allow the request, for an hour. The token decides what a client may see, not the origin of its page."""
    await send({"type": "http.response.start", "status": 204, "headers": RAW_HEADERS})
    await send({"type": "http.response.body", "body": b""})
