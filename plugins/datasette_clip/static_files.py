"""Serves the scripts and styles of our pages, compressed, at URLs that change with their content.

The hash of all files together is a folder in the URL, so that a script that imports "./clip.js" imports it by its hash
too. Datasette serves the same files at /-/static-plugins/datasette-clip/, for the pages of others.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from datasette.utils.asgi import NotFound, Response

from datasette_guard import CORS_HEADERS

from .paths import STATIC

FOLDER = Path(__file__).parent / "static"
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
HASH_DIGITS = 12
FOREVER = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class StaticFiles:
    """The content of each static file by its name, and the hash of all."""

    contents: dict[str, bytes]
    hash: str


@cache
def static_files() -> StaticFiles:
    """The static files, read once."""
    contents = {file.name: file.read_bytes() for file in sorted(FOLDER.iterdir()) if file.suffix in TYPES}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name} {len(content)} ".encode() + content)
    return StaticFiles(contents, digest.hexdigest()[:HASH_DIGITS])


def static_path(datasette, name: str) -> str:
    """The path of a static file, with base_url."""
    return datasette.urls.path(f"{STATIC}/{static_files().hash}/{name}")


async def static_file(datasette, request) -> Response:
    """A static file. Raises NotFound. At the hash of another version it is the present file, which no cache keeps."""
    name, files = request.url_vars["name"], static_files()
    if name not in files.contents:
        raise NotFound("there is no static file of this name")
    is_present = request.url_vars["hash"] == files.hash
    headers = {
        "Cache-Control": FOREVER if is_present else "no-cache",
        "ETag": f'"{files.hash}"',
        "X-Content-Type-Options": "nosniff",
        **(CORS_HEADERS if datasette.cors else {}),
    }
    if f'"{files.hash}"' in request.headers.get("if-none-match", ""):
        return Response("", status=304, headers=headers)
    return Response(files.contents[name], headers=headers, content_type=TYPES[Path(name).suffix])
