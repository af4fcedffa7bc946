"""Opens the text tower in the background while Datasette starts, and lets requests that may need it wait outside SQL.

Inside SQL the wait would count: the clock of Datasette's one-second limit runs while a function works.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from urllib.parse import unquote_to_bytes

from llm_clip_onnx.errors import ClipError

FOR_IMAGES = re.compile(rb"clip_(?:image|classify)", re.IGNORECASE)


@cache
def text_opening() -> Future[str | None]:
    """Start opening the text tower, once: a future of None, or of the sentence that says why it cannot be opened."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="clip-opening")
    future = executor.submit(open_text)
    executor.shutdown(wait=False)
    return future


def open_text() -> str | None:
    """Open the text tower, if it is not open: None, or the sentence that says why it cannot be opened."""
    try:
        from llm_clip_onnx.engine import default_engine  # here, so that importing onnxruntime overlaps too

        default_engine().open_text()
    except ClipError as error:
        return str(error)
    except Exception as error:  # whatever it is, the server is to start and to say it
        return f"{type(error).__name__}: {error}"
    return None


def open_image() -> str | None:
    """As open_text, of the image tower."""
    try:
        from llm_clip_onnx.engine import default_engine

        default_engine().open_image()
    except Exception as error:
        return str(error)
    return None


def wait_for_opening(base_url: str):
    """An ASGI wrapper by which requests wait while the text tower is still being opened, and those whose SQL names a
    function for images while the image tower is.

    Those to /-/ do not: no SQL runs there.
    """

    def wrap(app):
        async def waiting(scope, receive, send):
            may_run_sql = scope["type"] == "http" and not scope["path"].startswith(("/-/", f"{base_url}-/"))
            if may_run_sql and not text_opening().done():
                await asyncio.shield(asyncio.wrap_future(text_opening()))
            if may_run_sql and FOR_IMAGES.search(unquote_to_bytes(scope.get("query_string", b""))):
                await asyncio.to_thread(open_image)
            await app(scope, receive, send)

        return waiting

    return wrap
