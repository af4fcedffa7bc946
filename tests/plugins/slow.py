"""What tests need of a server that takes its time: /slow?s=, a POST to /upload, and the SQL function nap(seconds)."""

from __future__ import annotations

import asyncio
import time

from datasette import Response, hookimpl


async def slow(request):
    await asyncio.sleep(float(request.args["s"]))
    return Response.text("done")


async def upload(request):
    return Response.text(f"{len(await request.post_body())} bytes")


@hookimpl
def register_routes():
    return [(r"^/slow$", slow), (r"^/upload$", upload)]


@hookimpl
def prepare_connection(conn):
    conn.create_function("nap", 1, time.sleep)
