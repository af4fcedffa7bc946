"""What tests need of a server: requests and queries that last, and a request that asks the server itself.

/-/turns says whether all turns at SQL are taken. /hold?at=FOLDER and hold('FOLDER') in SQL last until the test releases them (tests/support/hold.py), and so does any request with
the header x-hold: FOLDER. POST to /upload
answers the size of its body. /nested asks the server itself. nap(seconds) in SQL, and /naps says when each began and
ended. HOLD_AT_START in the environment is the folder of a request that is there before all others. DRAIN_S there is
the time for which a server that was told to end waits for what is in flight.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path

from datasette import Response, hookimpl

from datasette_guard import shutdown
from datasette_guard.answer import load_of

shutdown.DRAIN_S = float(os.environ.get("DRAIN_S", shutdown.DRAIN_S))
naps: list[tuple[float, float]] = []
tasks: set[asyncio.Task] = set()  # asyncio itself keeps only weak references


def begin(folder: str) -> Path:
    """Note that a request has begun. Returns the file that ends it."""
    os.close(tempfile.mkstemp(prefix="begun-", dir=folder)[0])
    return Path(folder, "released")


async def hold_request(folder):
    released = begin(folder)
    while not released.exists():
        await asyncio.sleep(0.01)


async def hold_page(request):
    await hold_request(request.args["at"])
    return Response.text("done")


def hold(folder):
    released = begin(folder)
    while not released.exists():
        time.sleep(0.01)


async def upload(request):
    if "at" in request.args:
        begin(request.args["at"])
    return Response.text(f"{len(await request.post_body())} bytes")


async def nested(datasette):
    return Response.json((await datasette.client.get("/_memory.json?sql=select+1+as+one&_shape=array")).json())


async def turns(datasette):
    return Response.json({"all_taken": load_of(datasette).turns.locked()})


def nap(seconds):
    begun_s = time.monotonic()
    time.sleep(seconds)
    naps.append((begun_s, time.monotonic()))


@hookimpl
def register_routes():
    return [
        (r"^/hold$", hold_page),
        (r"^/upload$", upload),
        (r"^/nested$", nested),
        (r"^/-/turns$", turns),
        (r"^/naps$", lambda: Response.json(naps)),
    ]


@hookimpl
def actor_from_request(request):
    folder = request.headers.get("x-hold")
    return hold_request(folder) if folder else None


@hookimpl
def prepare_connection(conn):
    conn.create_function("nap", 1, nap)
    conn.create_function("hold", 1, hold)


@hookimpl
def asgi_wrapper(datasette):
    def wrap(app):
        async def wrapped(scope, receive, send):
            if scope["type"] == "lifespan" and (folder := os.environ.get("HOLD_AT_START")):
                tasks.add(asyncio.create_task(datasette.client.get("/hold", params={"at": folder}, timeout=None)))
            await app(scope, receive, send)

        return wrapped

    return wrap
