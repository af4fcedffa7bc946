"""Makes the response with an image, for thumbnail.py and original.py."""

from __future__ import annotations

import hashlib

from datasette.utils.asgi import Response

from llm_clip_onnx.images.signatures import FORMATS, format_of


def picture_response(request, blob: bytes, headers: dict[str, str] | None = None) -> Response:
    """A response with an image, which the browser keeps and asks for again only by its ETag."""
    tag = f'"{hashlib.sha256(blob).hexdigest()[:20]}"'
    headers = {
        "Cache-Control": "private, max-age=3600",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "ETag": tag,
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    if tag in request.headers.get("if-none-match", ""):
        return Response("", status=304, headers=headers)
    return Response(blob, headers=headers, content_type=FORMATS[format_of(blob) or "JPEG"].content_type)
