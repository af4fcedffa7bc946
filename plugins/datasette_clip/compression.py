"""Compresses this plugin's own text: pages, scripts, styles and JSON. All other responses pass as they are."""

from __future__ import annotations

import re
import zlib

from datasette_guard import path_below

from .paths import is_ours

LEAST_BYTES, MOST_BYTES = 500, 1_000_000  # compressing more would keep all other requests waiting
LEVEL = 6
AS_GZIP = 16 + zlib.MAX_WBITS
TEXT = (b"text/", b"application/json", b"image/svg")
ACCEPTS = re.compile(rb"(^|[,\s])(gzip|\*)\s*(;\s*q\s*=\s*(0?\.\d*[1-9]|1)|,|$)", re.IGNORECASE)
MARK = b"content-security-policy"  # on our pages, Datasette's home page among them


def compressed(datasette, app):
    """An ASGI app that sends the responses of `app`, our texts compressed for clients that take gzip."""

    async def respond(scope, receive, send):
        if scope["type"] != "http":
            return await app(scope, receive, send)
        is_below = is_ours(path_below(datasette.setting("base_url"), scope))
        start: dict | None = None

        async def send_compressed(message):
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] == "http.response.body" and start is not None:
                first, start = start, None
                if is_text_of_ours(first, is_below):
                    first, message = compress(first, message, accepts_gzip(dict(scope["headers"])))
                await send(first)
            await send(message)

        await app(scope, receive, send_compressed)

    return respond


def accepts_gzip(headers: dict[bytes, bytes]) -> bool:
    """True if a client takes gzip. Not if it has Datasette's CSRF token, whose length compression would tell."""
    return bool(ACCEPTS.search(headers.get(b"accept-encoding", b""))) and b"ds_csrftoken" not in headers.get(
        b"cookie", b""
    )


def is_text_of_ours(start: dict, is_below: bool) -> bool:
    """True for the start of a response of ours that has text which nothing has encoded yet."""
    headers = {name.lower(): value for name, value in start.get("headers", ())}
    is_text = headers.get(b"content-type", b"").startswith(TEXT) and b"content-encoding" not in headers
    return is_text and (is_below or MARK in headers)


def compress(start: dict, message: dict, accepted: bool) -> tuple[dict, dict]:
    """A response's start and body, the body as gzip if that is accepted and if it is whole and of a fitting size."""
    body = message.get("body", b"")
    headers = [*start.get("headers", ()), (b"vary", b"Accept-Encoding")]
    if accepted and not message.get("more_body") and LEAST_BYTES <= len(body) <= MOST_BYTES:
        compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, AS_GZIP)
        body = compressor.compress(body) + compressor.flush()
        headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        headers += [(b"content-encoding", b"gzip"), (b"content-length", str(len(body)).encode())]
    return start | {"headers": headers}, message | {"body": body}
