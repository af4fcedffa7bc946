"""Limits the bodies of requests: how many bytes may arrive, in one body and in all together, and how slowly."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from http import HTTPStatus

from datasette.utils.asgi import Base400

from .answer import CROWDED, Load, within
from .config import Limits


class BodyTooLarge(Base400):
    """The body of a request is longer than plugins.datasette-guard.limits.body_bytes."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE.value


class BodyStalled(Base400):
    """A client sends no more of a body for plugins.datasette-guard.limits.stalled_s."""

    status = HTTPStatus.REQUEST_TIMEOUT.value


class TooMuchToReceive(Base400):
    """All bodies together are longer than plugins.datasette-guard.limits.receiving_bytes. The client may try again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE.value


class Body:
    """An ASGI `receive` with bounds. As a context: its bytes count among those that are held until its end.

    Raises BodyTooLarge, whatever length was announced, TooMuchToReceive and BodyStalled.
    """

    def __init__(self, receive, load: Load, limits: Limits) -> None:
        self.receive, self.load, self.limits = receive, load, limits
        self.arrived_bytes = self.held_bytes = 0
        self.complete = False
        self.ahead: deque[dict] = deque()  # messages that are received but not yet returned

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_) -> None:
        self.load.receiving_bytes -= self.held_bytes

    async def read_ahead(self) -> None:
        """Receive the whole body, or the news that the client has left, before the first call."""
        while not self.complete:
            self.ahead.append(await self.next_message())

    @property
    def ends_with_departure(self) -> bool:
        """True if the last message read ahead says that the client has disconnected."""
        return self.ahead[-1]["type"] == "http.disconnect"

    async def client_has_left(self) -> bool:
        """True if the client has disconnected by now. Only after read_ahead."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):  # a disconnection that the server knows of comes at once
                self.ahead.append(await self.receive())
        return self.ends_with_departure

    async def __call__(self) -> dict:
        return self.ahead.popleft() if self.ahead else await self.next_message()

    async def next_message(self) -> dict:
        stalled = BodyStalled(f"nothing more of the body came for {self.limits.stalled_s} s")
        # after the end of a body there is nothing but the client's leaving, which may take its time
        message = await within(None if self.complete else self.limits.stalled_s, self.receive(), stalled)
        self.arrived_bytes += len(message.get("body", b""))
        self.complete = not message.get("more_body", False)
        if self.arrived_bytes > self.limits.body_bytes:
            raise BodyTooLarge(body_too_large(f"{self.arrived_bytes} bytes or more", self.limits))
        self.hold()
        return message

    def hold(self) -> None:
        """Count the bytes that have arrived among those held. Raises TooMuchToReceive if there is no room for them."""
        more = self.arrived_bytes - self.held_bytes
        if more and self.load.receiving_bytes + more > self.limits.receiving_bytes:
            raise TooMuchToReceive(f"{CROWDED}.receiving_bytes)")
        self.load.receiving_bytes += more
        self.held_bytes += more


def body_too_large(size: str, limits: Limits) -> str:
    return f"body of {size}; at most {limits.body_bytes} are accepted (plugins.datasette-guard.limits.body_bytes)"
