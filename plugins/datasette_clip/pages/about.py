"""Renders the page /-/clip and its JSON: the models of this instance, their fidelity, and how to call them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils import add_cors_headers
from datasette.utils.asgi import Response

from datasette_guard import ensure_instance, is_private
from llm_clip_onnx import models
from llm_clip_onnx.errors import ClipError

from .. import paths
from ..api.health import known_engine, why_not_ready
from ..config import Config, config_of
from ..model import (
    default_model,
    get_engine,
    manifest_of,
    manifests_of,
    model_choices,
    permitted_models,
)
from ..sql.search import exchangeable_with
from .links import curl_command, sql_database, sql_paths, sql_text

if TYPE_CHECKING:
    from llm_clip_onnx.model_dir import Manifest

EXAMPLE_SQL = "select hex(llm_embed({}, :q)) as x"


async def report(datasette) -> dict:
    """The content of /-/clip.json: if the model is ready, else why not, and the facts of its manifest."""
    config, why_not = config_of(datasette), await why_not_ready(datasette)
    facts: dict = {
        "ok": True,
        "ready": why_not is None,
        "why_not": why_not,
        "models": permitted_models(config),
    }
    facts |= await asyncio.to_thread(served_models, config)
    model_id = default_model(config)
    try:
        engine = known_engine(models.path_of(model_id)) or get_engine(model_id)
    except Exception:  # any: why_not says it
        return facts | {"open_towers": []}
    facts |= {"open_towers": engine.open_towers, "logit_scale": round(engine.manifest.logit_scale, 4)}
    facts |= {"levels": engine.levels, "described": {name: t.summary for name, t in engine.manifest.towers.items()}}
    return facts | engine.manifest.to_dict() | {"sha256": engine.manifest.sha256}


def served_models(config: Config) -> dict:
    """{"model", "served", "twins"} where several models are served, else {}.

    They are the default model, the facts of each, and the sentences about ids that several directories have.
    """
    choices = model_choices(config)
    manifests = manifests_of(choices)
    served = [model_facts(id, manifests) for id in choices]
    return {"model": default_model(config), "served": served, "twins": models.twins()} if choices else {}


def model_facts(id: str, manifests: Mapping[str, Manifest]) -> dict:
    """What is known of one of several models, or {"id", "error"} if it cannot be used.

    manifests: of the models among which others are looked for whose vectors can be compared with its own.
    """
    try:
        manifest = manifest_of(models.path_of(id))
        engine = known_engine(models.path_of(id))
    except (ClipError, ImportError) as error:
        return {"id": id, "error": str(error)}
    return {
        "id": id,
        "source": manifest.source.id,
        "sha256": manifest.sha256,
        "embed_dim": manifest.embed_dim,
        "context_length": manifest.context_length,
        "image_side": manifest.preprocess.crop,
        "open_towers": engine.open_towers if engine else [],
        "opened_bytes": sum(engine.held_bytes().values()) if engine else 0,
        "exchangeable_with": exchangeable_with(id, manifests),
    }


async def example_calls(datasette, request) -> dict[str, Any] | None:
    """An example query with the URLs at which this client may run it, None if it may run no SQL here."""
    name = await sql_database(datasette, request.actor)
    config = config_of(datasette)
    model_id = default_model(config)
    if name is None or model_id not in permitted_models(config):
        return None
    sql = EXAMPLE_SQL.format(sql_text(model_id))
    query = urlencode({"sql": sql, "q": "purple and gold"})
    page, json_path = sql_paths(datasette, name)
    json_url = datasette.absolute_url(request, f"{json_path}?{query}&_shape=array")
    calls = {"sql": sql, "page": f"{page}?{query}", "json": json_url}
    return calls | {"curl": curl_command(datasette, "-s", json_url), "private": is_private(datasette)}


async def clip_json(datasette, request) -> Response:
    """The facts of this instance's model, as JSON."""
    await ensure_instance(datasette, request)
    headers: dict[str, str] = {}
    if datasette.cors:
        add_cors_headers(headers)
    return Response.json(await report(datasette), headers=headers)


async def clip_page(datasette, request) -> Response:
    """The facts of this instance's model, and how to call it."""
    await ensure_instance(datasette, request)
    context = {"paths": paths, "report": await report(datasette), "calls": await example_calls(datasette, request)}
    context["model"] = default_model(config_of(datasette))
    return Response.html(await datasette.render_template("clip.html", context, request=request))
