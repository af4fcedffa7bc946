"""The pages /-/clip and /-/clip.json: what model this instance serves, how faithful it is, and how to call it."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from urllib.parse import urlencode

from datasette.utils import add_cors_headers
from datasette.utils.asgi import Response

from datasette_guard.access import ensure_instance, is_1, may
from llm_clip_onnx import MODEL_ID

from ..config import config_of
from ..model import open_text, text_opening

EXAMPLE_SQL = "select hex(llm_embed('clip', :q)) as x"


async def why_not_ready() -> str | None:
    """The sentence why no text can be embedded, or None: it can be."""
    if text_opening().done():
        return await asyncio.to_thread(open_text)  # at once where it is open; else somebody may have baked since
    return "the text tower is being opened"


async def report(datasette) -> dict:
    """What /-/clip.json answers: whether the model is ready, or the sentence why not, and the facts of its manifest."""
    why_not = await why_not_ready()
    facts: dict = {
        "ok": True,
        "ready": why_not is None,
        "why_not": why_not,
        "models": list(config_of(datasette).models),
    }
    try:
        from llm_clip_onnx.engine import default_engine

        engine = default_engine()
    except Exception:  # whatever it is, why_not says it
        return facts | {"open_towers": []}
    known = {"open_towers": engine.open_towers, "logit_scale": round(engine.manifest.logit_scale, 4)}
    known |= {"levels": engine.levels, "described": {name: t.described for name, t in engine.manifest.towers.items()}}
    return facts | known | asdict(engine.manifest)


async def calls(datasette, request) -> dict[str, str] | None:
    """Links and addresses of an example query that works here for whoever asks; None where there is none."""
    name = await sql_database(datasette, request.actor)
    if name is None or MODEL_ID not in config_of(datasette).models:
        return None
    query = urlencode({"sql": EXAMPLE_SQL, "q": "purple and gold"})
    page, as_json = sql_paths(datasette, name)
    json_url = datasette.absolute_url(request, f"{as_json}?{query}&_shape=array")
    return {"sql": EXAMPLE_SQL, "page": f"{page}?{query}", "json": json_url}


async def sql_database(datasette, actor: dict | None) -> str | None:
    """The first database in which an actor may run SQL, _memory before all others; None where there is none."""
    names = sorted((name for name in datasette.databases if name != "_internal"), key=lambda name: name != "_memory")
    for name in names:
        if await may(datasette, actor, "execute-sql", name):
            return name
    return None


def sql_paths(datasette, name: str) -> tuple[str, str]:
    """Where a database answers SQL, as a page and as JSON: Datasette 1.0 only redirects from where 0.65 does."""
    page = datasette.urls.database(name)
    if is_1(datasette):
        return f"{page}/-/query", f"{page}/-/query.json"
    return page, datasette.urls.database(name, format="json")


async def health() -> Response:
    """200 where the model is ready, 503 and the sentence where it is not; for whoever asks, and keeps nobody awake."""
    why_not = await why_not_ready()
    answer = {"ok": why_not is None, "error": why_not, "status": 503 if why_not else 200}
    return Response.json(answer, status=answer["status"])


async def clip_json(datasette, request) -> Response:
    await ensure_instance(datasette, request)
    headers: dict[str, str] = {}
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(await report(datasette), headers=headers)


async def clip_page(datasette, request) -> Response:
    await ensure_instance(datasette, request)
    context = {"report": await report(datasette), "calls": await calls(datasette, request)}
    return Response.html(await datasette.render_template("clip.html", context, request=request))
