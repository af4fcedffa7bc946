"""Opens the text tower in the background while Datasette starts, and lets requests that may need it wait outside SQL.

Inside SQL the wait would count: the clock of Datasette's one-second limit runs while a function works.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache

from llm_clip_onnx.errors import ClipError


@cache
def text_opening() -> Future[str | None]:
    """Start opening the text tower, once: a future of None, or of the sentence that says why it cannot be opened."""
    executor = ThreadPoolExecutor(1, thread_name_prefix="clip-opening")
    future = executor.submit(open_text)
    executor.shutdown(wait=False)
    return future


def open_text() -> str | None:
    try:
        from llm_clip_onnx.engine import default_engine  # here, so that importing onnxruntime overlaps too

        default_engine().open_text()
    except ClipError as error:
        return str(error)
    return None


def wait_for_opening(app):
    """An ASGI application like `app`, whose requests wait while the text tower is still being opened.

    Those to /-/ do not: no SQL runs there.
    """

    async def waiting(scope, receive, send):
        if scope["type"] == "http" and not text_opening().done() and not scope["path"].startswith("/-/"):
            await asyncio.shield(asyncio.wrap_future(text_opening()))
        await app(scope, receive, send)

    return waiting
