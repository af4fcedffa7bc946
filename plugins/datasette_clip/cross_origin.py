"""Lets pages of other origins POST to our endpoints and pages: they change nothing, so there is nothing to forge.

Datasette 0.65 refuses a POST that has a cookie but no CSRF token, and has a hook for exceptions. 1.0 refuses a POST
that the browser marks as cross-site, and has no such hook: here the headers that mark it are removed.
"""

from __future__ import annotations

from datasette_guard import path_below

from .paths import is_read_only

ORIGIN_HEADERS = {b"origin", b"sec-fetch-site"}


def changes_nothing(scope: dict, base_url: str) -> bool:
    """True if a request goes to a path of ours that only reads."""
    return is_read_only(path_below(base_url, scope))


def without_origin(base_url: str):
    """An ASGI wrapper that removes the headers that say where a request comes from, if it changes nothing."""

    def wrap(app):
        async def remove_origin(scope, receive, send):
            if scope["type"] == "http" and changes_nothing(scope, base_url):
                scope = scope | {"headers": [(k, v) for k, v in scope["headers"] if k.lower() not in ORIGIN_HEADERS]}
            await app(scope, receive, send)

        return remove_origin

    return wrap
