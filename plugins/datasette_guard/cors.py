"""For browsers on other origins, where Datasette runs with --cors: preflights, and headers that it leaves out.

Datasette 0.65 answers OPTIONS without saying which methods and headers are allowed, and asks for permission before it
does, which a preflight carries none of.
"""

from __future__ import annotations

HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Expose-Headers": "Link, Retry-After",
    "Access-Control-Max-Age": "3600",
}
RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
SCRIPTS = "/-/static-plugins/"  # ES modules, which another origin may import only with these headers


def is_preflight(scope: dict) -> bool:
    """Whether a browser asks if it may ask."""
    asks = any(name == b"access-control-request-method" for name, _ in scope["headers"])
    return scope["method"] == "OPTIONS" and asks


async def answer_preflight(send) -> None:
    """Yes, for an hour: what is served here is for whoever may see it, wherever the page comes from."""
    await send({"type": "http.response.start", "status": 204, "headers": RAW_HEADERS})
    await send({"type": "http.response.body", "body": b""})
