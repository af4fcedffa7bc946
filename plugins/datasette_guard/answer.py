"""Sends responses: limits their bytes, keeps them out of search engines, and frees the SQL turn of a slow client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TypeVar
from weakref import WeakKeyDictionary

from datasette.utils.asgi import Base400

from . import memory
from .config import Limits, limits_of
from .upstream import per_datasette

T = TypeVar("T")
CROWDED = "this server is answering as much as it may at once (plugins.datasette-guard.limits"
PIECE_BYTES = 65_536
LARGE_BYTES = 1_000_000


class ResponseTooLarge(Base400):
    """One response is larger than plugins.datasette-guard.limits.sending_bytes."""

    status = HTTPStatus.BAD_REQUEST.value


class TooMuchToSend(Base400):
    """All responses together exceed plugins.datasette-guard.limits.sending_bytes. The client may try again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class ClientStalled(Exception):
    """A client reads nothing of a response for plugins.datasette-guard.limits.stalled_s."""


async def within(seconds: float | None, awaitable: Awaitable[T], error: Exception) -> T:
    """What `awaitable` returns or raises, its own TimeoutError too. Raises `error` if that takes longer."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            return await awaitable
    except TimeoutError:
        if timeout.expired():
            raise error from None
        raise


class Load:
    """What the requests in flight share: turns at SQL, and the bytes being sent and received."""

    def __init__(self, queries: int) -> None:
        self.turns = asyncio.Semaphore(queries)
        self.sending_bytes = self.receiving_bytes = 0


def load_of(datasette) -> Load:
    """The load of a Datasette in the running event loop. Tests have several loops."""
    loads, loop = loads_of(datasette), asyncio.get_running_loop()
    if loop not in loads:
        loads[loop] = Load(limits_of(datasette).queries)
    return loads[loop]


@per_datasette
def loads_of(datasette) -> WeakKeyDictionary[asyncio.AbstractEventLoop, Load]:
    return WeakKeyDictionary()


class Sender:
    """An ASGI `send` that adds `X-Robots-Tag: noindex`, because robots.txt alone keeps no URL out of an index.

    It holds status and headers back until there is a body, which Datasette may fail to encode. With the whole body the
    request's turn at SQL ends. The body goes out in pieces as the client reads them; ClientStalled is raised if it
    reads none for limits.stalled_s, and at once by what is sent after that.
    """

    def __init__(self, send, load: Load, limits: Limits) -> None:
        self.send, self.load, self.limits = send, load, limits
        self.start: dict = {}
        self.more_headers: list[tuple[bytes, bytes]] = []
        self.begun = self.ended = self.has_turn = self.stalled = False

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn at SQL. It ends with the whole body, or here."""
        await self.load.turns.acquire()
        self.has_turn = True
        try:
            yield
        finally:
            self.end_turn()

    def end_turn(self) -> None:
        if self.has_turn:
            self.has_turn = False
            self.load.turns.release()

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            later = [(b"retry-after", b"1")] if message["status"] == HTTPStatus.SERVICE_UNAVAILABLE else []
            headers = [*message.get("headers", ()), (b"x-robots-tag", b"noindex"), *later, *self.more_headers]
            self.start = message | {"headers": headers}
            return
        if message["type"] != "http.response.body":
            return await self.send(message)
        size = len(message.get("body", b""))
        if size > LARGE_BYTES:
            memory.collect_soon()
        if not message.get("more_body"):
            self.end_turn()
        if not self.begun:
            self.check_size(size)
            self.begun = True
            await self.send(self.start)
        self.load.sending_bytes += size
        try:
            await self.send_in_pieces(message)
        finally:
            self.load.sending_bytes -= size

    def check_size(self, size: int) -> None:
        """Raises ResponseTooLarge for a body that is never sent, TooMuchToSend for one that may be sent later."""
        limit = self.limits.sending_bytes
        if size > limit:
            sentence = f"the answer has {size} bytes; at most {limit} are sent: ask for fewer rows or columns"
            raise ResponseTooLarge(f"{sentence} (plugins.datasette-guard.limits.sending_bytes)")
        if size > PIECE_BYTES and self.load.sending_bytes + size > limit:
            raise TooMuchToSend(f"{CROWDED}.sending_bytes)")

    async def send_in_pieces(self, message: dict) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        error = ClientStalled(f"the client has read nothing for {self.limits.stalled_s} s")
        if self.stalled:
            raise error
        for begin in range(0, len(body) or 1, PIECE_BYTES):
            end = begin + PIECE_BYTES
            # set first, because uvicorn begins the next request inside the last send
            self.ended = not more and end >= len(body)
            self.stalled = True  # unless the next line returns
            piece = message | {"body": body[begin:end], "more_body": not self.ended}
            await within(self.limits.stalled_s, self.send(piece), error)
            self.stalled = False
