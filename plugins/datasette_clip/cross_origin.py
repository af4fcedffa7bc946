"""Lets pages of other origins POST to what only reads: there is nothing to forge, so nothing to protect from forgery.

Datasette 0.65 refuses a POST with a cookie but without its token, and has a hook to say otherwise; 1.0 refuses one that
a browser says comes from elsewhere, and has none, so there those who only read are not asked where they come from.
"""

from __future__ import annotations

READ_ONLY = {"/-/clip/embed.json", "/-/clip/classify.json", "/-/clip/classify", "/-/clip/compare"}
SEARCH = "/-/clip/search/"  # and a database and a collection, as a page or as JSON
WHENCE = {b"origin", b"sec-fetch-site"}


def only_reads(scope: dict, base_url: str) -> bool:
    """Whether a request goes to one of these paths, found as Datasette's router finds them."""
    path = (scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0].decode("latin-1")
    path = path.removeprefix(base_url.rstrip("/"))
    return path in READ_ONLY or path.startswith(SEARCH)


def unasked(base_url: str):
    """An ASGI wrapper that takes from such a request what says where it comes from."""

    def wrap(app):
        async def unasking(scope, receive, send):
            if scope["type"] == "http" and only_reads(scope, base_url):
                scope = scope | {"headers": [(k, v) for k, v in scope["headers"] if k.lower() not in WHENCE]}
            await app(scope, receive, send)

        return unasking

    return wrap
