"""What tests need of a server: /slow?s=, a POST to /upload, /nested asking the server itself, and nap(seconds) in SQL."""

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


@hookimpl
def register_routes():
    return [(r"^/slow$", slow), (r"^/upload$", upload), (r"^/nested$", nested)]


@hookimpl
def prepare_connection(conn):
    conn.create_function("nap", 1, time.sleep)
