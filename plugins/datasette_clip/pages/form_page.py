"""Renders the pages /-/clip/classify and /-/clip/compare around their forms: reads the form, shows results or errors.

pictures.py reads the pictures of the form. The pages work without scripts; static/pages.js sends the form whenever it
changes, and shows the response.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Response

from datasette_guard import collect_soon, ensure_instance
from llm_clip_onnx.errors import InputError, cited

from .. import paths
from ..config import Config, config_of
from ..failures import WITH_SENTENCE, status_of, unknown_method
from ..items import FormFields, read_form, receive_body
from ..model import default_model, in_thread, model_choices, permitted_engine
from .pictures import pictures_of, read_pictures

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine
    from llm_clip_onnx.model_dir import Preprocess

K = "5"
LINE = re.compile(r"\S[^\r\n]*")

Page = dict[str, Any]  # the variables of a template
Fill = Callable[[Any, Any, FormFields, Page], Awaitable[None]]  # Datasette, request, fields, page


async def render_form(datasette, request, template: str, fill: Fill) -> Response:
    """The page with the variables that `fill` sets. If it raises, the page has the sentence and those set so far."""
    await ensure_instance(datasette, request)
    if sentence := unknown_method(request, "page"):
        return Response.text(sentence, status=405)
    status, config = 200, config_of(datasette)
    page: Page = {"paths": paths, "errors": [], "pictures": [], "sets": {}, "k": K, **shrinking(None)}
    page |= {"models": model_choices(config), "model": default_model(config), "vectors_of": ""}
    try:
        chunks, content_type = await receive_body(request), request.headers.get("content-type", "")
        fields = await asyncio.to_thread(read_form, request.query_string, content_type, chunks, config.limits)
        page["vectors_of"] = fields.last("vectors_of") or fields.last("model") or page["model"]
        page["pictures"] = await asyncio.to_thread(pictures_of, fields)
        await fill(datasette, request, fields, page)
    except WITH_SENTENCE as error:
        page["errors"].append(str(error))
        status = status_of(error)
    finally:
        collect_soon()  # the body and the decoded images are large
    page["pictures"] = [picture for picture in page["pictures"] if picture.img or picture.vector]
    return Response.html(await datasette.render_template(template, page, request=request), status=status)


def shrinking(preprocess: Preprocess | None) -> Page:
    """What clip.js shrinks a picture by: `side` in pixels and `resize` of the model, or those of most without one."""
    return {"side": preprocess.crop, "resize": preprocess.resize} if preprocess else {"side": 224, "resize": "shortest"}


async def chosen_engine(config: Config, fields: FormFields, page: Page) -> Engine:
    """The engine of the model that a form chooses, which the page shows from now on.

    Kept pictures whose vectors are of another model, `vectors_of`, lose them, so that they are embedded again; all
    keep them if one has nothing else. Raises InputError, and as get_engine.
    """
    page["model"] = fields.last("model") or page["model"]
    engine = await in_thread(permitted_engine, config, page["model"])
    page |= shrinking(engine.manifest.preprocess)
    if page["vectors_of"] != page["model"]:
        for picture in page["pictures"]:
            if picture.vector and not picture.img:
                raise InputError(f"of {picture.name} only the vector is here, of the model {cited(page['vectors_of'])}")
        for picture in page["pictures"]:
            picture.vector = ""
        page["vectors_of"] = page["model"]
    return engine


def model_fields(page: Page) -> list[tuple[str, str]]:
    """The field of a URL that names the model of a page; [] if one is served."""
    return [("model", page["model"])] if page["models"] else []


async def read_page_pictures(datasette, request, engine: Engine, page: Page) -> None:
    """Keep the pictures of the page that can be read. Raises InputError with the first sentence if none can."""
    good, sentences = await read_pictures(request, engine, config_of(datasette), page["pictures"])
    page["pictures"] = good
    if not good:
        raise InputError(sentences[0])
    page["errors"] += sentences


def lines_of(text: str, most: int) -> list[str]:
    """The lines of a text that are not empty. If there are more than `most`, one more than that."""
    return [line[0].strip() for line in islice(LINE.finditer(text), most + 1)]
