"""The pages /-/clip and /-/clip.json: what model this instance serves, how faithful it is, and how to call it."""

from __future__ import annotations

from dataclasses import asdict
from urllib.parse import urlencode

from datasette.utils import add_cors_headers
from datasette.utils.asgi import Response

from llm_clip_onnx.errors import ClipError

from .config import Config, of
from .opening import text_opening

EXAMPLE_SQL = "select hex(llm_embed('clip', :q)) as x"


def report(config: Config) -> dict:
    """What /-/clip.json answers: whether the model is ready, or the sentence why not, and the facts of its manifest."""
    from llm_clip_onnx.engine import default_engine

    facts: dict = {"ok": True, "ready": False, "why_not": None, "models": list(config.models), "open_towers": []}
    try:
        engine = default_engine()
    except ClipError as error:
        return facts | {"why_not": str(error)}
    manifest = asdict(engine.manifest)
    facts |= {"ready": "text" in engine.open_towers, "open_towers": engine.open_towers}
    if not facts["ready"]:
        facts["why_not"] = text_opening().result() if text_opening().done() else "the text tower is being opened"
    return facts | {"logit_scale": round(engine.manifest.logit_scale, 4)} | manifest


def calls(datasette, request) -> dict[str, str] | None:
    """Links and addresses of an example query on this very instance; None where no database may run it."""
    names = [name for name in datasette.databases if name != "_internal"]
    if not names or not datasette.setting("default_allow_sql"):
        return None
    database = "_memory" if "_memory" in names else names[0]
    query = urlencode({"sql": EXAMPLE_SQL, "q": "purple and gold"})
    page = f"{datasette.urls.database(database)}?{query}"
    json_url = datasette.absolute_url(
        request, f"{datasette.urls.database(database, format='json')}?{query}&_shape=array"
    )
    return {"sql": EXAMPLE_SQL, "page": page, "json": json_url}


async def clip_json(datasette, request) -> Response:
    await datasette.ensure_permissions(request.actor, ["view-instance"])
    headers: dict[str, str] = {}
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(report(of(datasette)), headers=headers)


async def clip_page(datasette, request) -> Response:
    await datasette.ensure_permissions(request.actor, ["view-instance"])
    context = {"report": report(of(datasette)), "calls": calls(datasette, request)}
    return Response.html(await datasette.render_template("clip.html", context, request=request))
