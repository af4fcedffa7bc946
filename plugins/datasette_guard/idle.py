"""Fences in datasette-scale-to-zero: it still says when the time has come, but nothing in flight is lost, nothing
that should not count keeps the machine awake, and a Fly machine may be suspended in place of the exit.

That plugin keeps one clock, `datasette._scale_to_zero_last_asgi`, and ends the process by its `do_exit`; both are
taken over here.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic

import datasette_scale_to_zero
import httpx

from . import shutdown
from .config import config_of

log = logging.getLogger("datasette_guard")
FLY_SOCKET = "/.fly/api"
SUSPEND_S = 10.0
upstream_do_exit = datasette_scale_to_zero.do_exit


class Clock:
    """Tells datasette-scale-to-zero when the last request that counts ended: never, while one is in flight."""

    def __init__(self, datasette) -> None:
        self.datasette = datasette
        self.in_flight = 0  # requests, whether they count or not
        self.counted_in_flight = 0
        self.last_counted_s = monotonic()
        self.going: asyncio.Task | None = None  # to sleep, or away

    @contextmanager
    def request(self, counts: bool) -> Iterator[None]:
        """Around a request, from its first byte to the last of its answer."""
        self.in_flight += 1
        self.counted_in_flight += counts
        # datasette-scale-to-zero sets its clock as soon as it is called; this comes right after.
        asyncio.get_running_loop().call_soon(self.tell)
        try:
            yield
        finally:
            self.in_flight -= 1
            self.counted_in_flight -= counts
            if counts:
                self.last_counted_s = monotonic()
            self.tell()

    def tell(self) -> None:
        self.datasette._scale_to_zero_last_asgi = math.inf if self.in_flight else self.last_counted_s


def clock_of(datasette) -> Clock:
    if not hasattr(datasette, "_guard_clock"):
        datasette._guard_clock = Clock(datasette)
    return datasette._guard_clock


def fence_in() -> None:
    """Take over datasette-scale-to-zero's exit, which is `sys.exit` in a callback, in the midst of whatever goes on."""
    datasette_scale_to_zero.do_exit = when_its_time_has_come


def when_its_time_has_come(datasette) -> None:
    """What datasette-scale-to-zero calls, each second from when the server has idled or lived long enough."""
    logging.getLogger("uvicorn.error").disabled = False  # it mutes this for the traceback of its own exit
    clock = clock_of(datasette)
    if not clock.in_flight and not clock.going:
        clock.going = asyncio.get_running_loop().create_task(sleep_or_leave(datasette, clock))


async def sleep_or_leave(datasette, clock: Clock) -> None:
    suspended = config_of(datasette).suspend
    if suspended and await asyncio.to_thread(suspend, FLY_SOCKET if suspended is True else suspended):
        clock.last_counted_s = monotonic()
        clock.tell()
        clock.going = None
    else:
        await asyncio.to_thread(tell_shutdown_url, datasette)
        shutdown.drain_and_leave()


def suspend(socket: str) -> bool:
    """Have Fly suspend this machine, and come back resumed: whether it was.

    Source: "Machine Suspend and Resume" in Fly's documentation: POST .../suspend on the machine's own API socket.
    """
    try:
        path = f"/v1/apps/{os.environ['FLY_APP_NAME']}/machines/{os.environ['FLY_MACHINE_ID']}/suspend"
        with httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=SUSPEND_S) as client:
            client.post(f"http://flaps{path}").raise_for_status()
    except (httpx.ReadError, httpx.RemoteProtocolError):
        log.info("resumed: the connection that asked for the suspension is dead, as they all are after it")
    except Exception as error:  # whatever it is, the machine is not to stay awake for it
        log.warning("cannot be suspended by %s, exits: %s: %s", socket, type(error).__name__, error)
        return False
    return True


def tell_shutdown_url(datasette) -> None:
    """datasette-scale-to-zero's own end: a request to shutdown_url, where there is one, and an exit, which is ours."""
    with suppress(SystemExit):
        upstream_do_exit(datasette)
