"""Where endpoints and pages embed: in threads of their own, neither the event loop's nor SQL's, by a bounded queue.

Two threads are for images, and one is for all that takes no decoder, so that words do not wait for photographs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from typing import TypeVar

from datasette.utils.asgi import Base400

from .config import config_of

CROWDED = "this server is embedding as much as it may at once (plugins.datasette-clip.limits.embedding)"

T = TypeVar("T")


class Crowded(Base400):
    """More requests wait to be embedded than plugins.datasette-clip.limits.embedding: whoever comes back is served."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class Inference:
    """Counts the requests that wait for an embedding or are in one."""

    def __init__(self, limit: int) -> None:
        self.limit, self.taken = limit, 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Around the work of a request. Raises Crowded where there are as many as there may be."""
        if self.taken >= self.limit:
            raise Crowded(CROWDED)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


def inference_of(datasette) -> Inference:
    if not hasattr(datasette, "_clip_inference"):
        datasette._clip_inference = Inference(config_of(datasette).limits.embedding)
    return datasette._clip_inference


@cache
def executor(of_images: bool) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2 if of_images else 1, thread_name_prefix="clip-images" if of_images else "clip-words")


async def in_thread(function: Callable[..., T], *arguments, of_images: bool = False) -> T:
    """What `function(*arguments)` returns or raises, run in one of these threads when it is its turn."""
    return await asyncio.get_running_loop().run_in_executor(executor(of_images), function, *arguments)
