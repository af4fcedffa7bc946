"""What tests need of a server: /slow?s=, POST to /upload, /nested asking the server itself, nap(seconds) in SQL, /naps."""

from __future__ import annotations

import asyncio
import time

from datasette import Response, hookimpl


async def slow(request):
    await asyncio.sleep(float(request.args["s"]))
    return Response.text("done")


async def upload(request):
    return Response.text(f"{len(await request.post_body())} bytes")


async def nested(datasette):
    return Response.json((await datasette.client.get("/_memory.json?sql=select+1+as+one&_shape=array")).json())


naps: list[float] = []


def nap(seconds):
    naps.append(seconds)
    time.sleep(seconds)


@hookimpl
def register_routes():
    return [
        (r"^/slow$", slow),
        (r"^/upload$", upload),
        (r"^/nested$", nested),
        (r"^/naps$", lambda: Response.json(naps)),
    ]


@hookimpl
def prepare_connection(conn):
    conn.create_function("nap", 1, nap)
