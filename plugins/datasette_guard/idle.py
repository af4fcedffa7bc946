"""Decides when an idle server ends, or has Fly suspend its machine: not while a request is in flight.

datasette-scale-to-zero's configuration says after how many seconds; its own loop, which ends the process in the midst
of requests and takes health checks for signs of life, is replaced (see upstream.py).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from . import shutdown, upstream
from .config import config_of
from .upstream import per_datasette

log = logging.getLogger("datasette_guard")
FLY_SOCKET = "/.fly/api"
SUSPEND_S = 10.0
CHECK_EVERY_S = 1.0


class Clock:
    """Counts the requests in flight, and knows when the last that counts ended. Health checks do not count."""

    def __init__(self) -> None:
        self.in_flight = self.counted_in_flight = 0
        self.last_counted_s = monotonic()
        self.watch: asyncio.Task | None = None  # a reference, because the event loop keeps none

    @contextmanager
    def request(self, counts: bool) -> Iterator[None]:
        """A request in flight, from its first byte to the last byte of its response."""
        self.in_flight += 1
        self.counted_in_flight += counts
        try:
            yield
        finally:
            self.in_flight -= 1
            self.counted_in_flight -= counts
            if counts:
                self.last_counted_s = monotonic()


@per_datasette
def clock_of(datasette) -> Clock:
    """The clock of this Datasette."""
    return Clock()


def start_watch(datasette) -> None:
    """Start the task that ends or suspends an idle server. Called with the first request if a duration is set."""
    clock_of(datasette).watch = asyncio.get_running_loop().create_task(watch(datasette, clock_of(datasette)))


async def watch(datasette, clock: Clock) -> None:
    """End the server, or suspend it, once it has idled or lived long enough and nothing is in flight."""
    duration_s, max_age_s = upstream.idle_durations(datasette)
    begun_s = monotonic()
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        is_idle = duration_s is not None and monotonic() - clock.last_counted_s > duration_s
        is_old = max_age_s is not None and monotonic() - begun_s > max_age_s
        if (is_idle or is_old) and not clock.in_flight:
            if not await was_suspended(datasette):
                break
            clock.last_counted_s = monotonic()
    await asyncio.to_thread(upstream.tell_shutdown_url, datasette)
    shutdown.drain()


async def was_suspended(datasette) -> bool:
    """True once the machine is resumed, after a suspension that plugins.datasette-guard.suspend asks for."""
    socket = config_of(datasette).suspend
    return bool(socket) and await asyncio.to_thread(suspend, FLY_SOCKET if socket is True else str(socket))


def suspend(socket: str) -> bool:
    """Have Fly suspend this machine, and return when it is resumed: True if it was.

    Source: "Machine Suspend and Resume" in Fly's documentation: POST .../suspend on the machine's own API socket.
    """
    import httpx  # here: the start does not wait for it

    try:
        path = f"/v1/apps/{os.environ['FLY_APP_NAME']}/machines/{os.environ['FLY_MACHINE_ID']}/suspend"
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=SUSPEND_S) as client:
            client.post(f"http://flaps{path}").raise_for_status()
    except (httpx.ReadError, httpx.RemoteProtocolError):
        log.info("resumed: the connection that asked for the suspension is dead, as all are that were open before it")
    except Exception as error:  # any error: a machine that cannot be suspended ends
        log.warning("cannot be suspended by %s, exits: %s: %s", socket, type(error).__name__, error)
        return False
    return True
