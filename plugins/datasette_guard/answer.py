"""What a server does at once: which requests have their turn at SQL, and how their answers go out without piling up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from weakref import WeakKeyDictionary

from datasette.utils.asgi import Base400

from . import memory
from .config import Limits, config_of

CROWDED = "this server is answering as much as it may at once (plugins.datasette-guard.limits"
PIECE_BYTES = 65_536
LARGE_BYTES = 1_000_000


class AnswerTooLarge(Base400):
    """One answer is larger than plugins.datasette-guard.limits.sending_bytes."""

    status = HTTPStatus.BAD_REQUEST.value


class TooMuchToSend(Base400):
    """More is being sent than plugins.datasette-guard.limits.sending_bytes: whoever comes back is served."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class Traffic:
    """What a server does at once: the requests that have a turn at SQL, and the bytes being sent and received."""

    def __init__(self, queries: int) -> None:
        self.turns = asyncio.Semaphore(queries)
        self.sending_bytes = self.receiving_bytes = 0


def traffic_of(datasette) -> Traffic:
    """The traffic of a Datasette in the running event loop, of which tests have several."""
    known, loop = datasette.__dict__.setdefault("_guard_traffic", WeakKeyDictionary()), asyncio.get_running_loop()
    if loop not in known:
        known[loop] = Traffic(config_of(datasette).limits.queries)
    return known[loop]


class Answer:
    """`send`, with `X-Robots-Tag: noindex` on the answer, for robots.txt alone keeps no URL out of an index.

    Status and headers are held back until there is a body, which Datasette may fail to encode. Once the whole body is
    there the request's turn ends, so that whoever reads slowly keeps nobody waiting, and it goes out in pieces, as the
    reader takes them; who takes none for limits.stalled_s is left alone.
    """

    def __init__(self, send, traffic: Traffic, limits: Limits) -> None:
        self.send, self.traffic, self.limits = send, traffic, limits
        self.start: dict = {}
        self.more_headers: list[tuple[bytes, bytes]] = []
        self.begun = self.ended = self.has_turn = False

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until it is this request's turn at SQL, which ends with its whole body, or at the latest here."""
        await self.traffic.turns.acquire()
        self.has_turn = True
        try:
            yield
        finally:
            self.end_turn()

    def end_turn(self) -> None:
        if self.has_turn:
            self.has_turn = False
            self.traffic.turns.release()

    async def __call__(self, message: dict) -> None:
        if message["type"] == "http.response.start":
            later = [(b"retry-after", b"1")] if message["status"] == HTTPStatus.SERVICE_UNAVAILABLE else []
            headers = [*message.get("headers", ()), (b"x-robots-tag", b"noindex"), *later, *self.more_headers]
            self.start = message | {"headers": headers}
            return
        size = len(message.get("body", b""))
        if size > LARGE_BYTES:
            memory.soon.set()
        if not message.get("more_body"):
            self.end_turn()
        if not self.begun:
            self.refuse_size(size)
            self.begun = True
            await self.send(self.start)
        self.traffic.sending_bytes += size
        try:
            await self.send_in_pieces(message)
        finally:
            self.traffic.sending_bytes -= size

    def refuse_size(self, size: int) -> None:
        """Raise where a body is larger than may ever be sent, or than may be now beside all that is being sent."""
        limit = self.limits.sending_bytes
        if size > limit:
            sentence = f"the answer has {size} bytes; at most {limit} are sent: ask for fewer rows or columns"
            raise AnswerTooLarge(f"{sentence} (plugins.datasette-guard.limits.sending_bytes)")
        if size > PIECE_BYTES and self.traffic.sending_bytes + size > limit:
            raise TooMuchToSend(f"{CROWDED}.sending_bytes)")

    async def send_in_pieces(self, message: dict) -> None:
        body, more = message.get("body", b""), message.get("more_body", False)
        for begin in range(0, len(body) or 1, PIECE_BYTES):
            end = begin + PIECE_BYTES
            self.ended = not more and end >= len(body)  # before it is sent: uvicorn begins the next request within that
            async with asyncio.timeout(self.limits.stalled_s):
                await self.send(message | {"body": body[begin:end], "more_body": not self.ended})
