"""The pages /-/clip/classify and /-/clip/compare: pictures and words in a form, answered in the page, scripts or not.

static/pages.js sends the same forms as they are changed, and puts the answers into the page.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import islice
from typing import Any
from urllib.parse import urlencode

import numpy as np
from datasette.utils.asgi import Base400, Response
from numpy.typing import NDArray

from datasette_guard import limits_of, query_fits
from datasette_guard import memory as collecting
from datasette_guard.access import ensure_instance
from llm_clip_onnx import MODEL_ID, vectors, zero_shot
from llm_clip_onnx.errors import ClipError, InputError, ModelDirError

from .. import items as inputs
from .. import labels
from ..api.embed_classify import METHODS, each, embedding_of
from ..config import PLUGIN, Config, config_of
from ..inference import in_thread, inference_of
from ..items import Input
from ..sql.functions import check_model, check_text
from .about import sql_database, sql_paths
from .pictures import Fields, Picture, pictures_of, read_fields, read_pictures

CLASSIFY, COMPARE = "/-/clip/classify", "/-/clip/compare"
K = "5"
LINE = re.compile(r"\S[^\r\n]*")
PALE, DEEP = np.array([247, 251, 255]), np.array([8, 48, 107])  # ends of the heat map: red, green, blue

Page = dict[str, Any]  # what a template shows


async def classify_page(datasette, request) -> Response:
    """A picture, and the labels of a set or of one's own that fit it best."""
    return await show(datasette, request, "classify.html", classify)


async def compare_page(datasette, request) -> Response:
    """The cosines of some texts with some pictures, as a heat map."""
    return await show(datasette, request, "compare.html", compare)


async def show(datasette, request, template: str, fill: Callable[..., Awaitable[None]]) -> Response:
    """The page that `fill` fills; where that raises, with the sentence, and with all that was filled in by then."""
    await ensure_instance(datasette, request)
    if request.method not in METHODS:
        return Response.text(f"{request.method} is not a method of this page; expected GET or POST", status=405)
    page: Page = {"errors": [], "pictures": [], "side": 224, "sets": {}, "k": K}
    status, config = 200, config_of(datasette)
    try:
        pieces, content_type = await inputs.pieces_of(request), request.headers.get("content-type", "")
        fields = await asyncio.to_thread(read_fields, request.query_string, content_type, pieces, config.limits)
        page["pictures"] = await asyncio.to_thread(pictures_of, fields)
        await fill(datasette, request, fields, page)
    except (ClipError, Base400, ImportError) as error:
        page["errors"].append(str(error))
        status = status_of(error)
    finally:
        collecting.soon.set()  # what was sent, and what images took, is to be given back
    page["pictures"] = [one for one in page["pictures"] if one.img or one.vector]  # others are not kept
    return Response.html(await datasette.render_template(template, page, request=request), status=int(status))


def status_of(error: Exception) -> int:
    if isinstance(error, Base400):  # Crowded, BodyTooLarge
        return error.status
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, ModelDirError | ImportError) else HTTPStatus.BAD_REQUEST


async def look_at(datasette, request, engine, page: Page) -> None:
    """Leave those pictures in the page that can be read. Raises InputError with the first sentence where none can."""
    good, sentences = await read_pictures(request, engine, config_of(datasette), page["pictures"])
    page["pictures"] = good
    if not good:
        raise InputError(sentences[0])
    page["errors"] += sentences


def open_engine(config: Config):
    """Raises InputError where the model is not to be called, ModelDirError and ImportError where it cannot be."""
    from llm_clip_onnx.engine import default_engine

    check_model(config, MODEL_ID)
    return default_engine()


def lines(text: str, most: int) -> list[str]:
    """The lines of a text that are not empty; of more than `most`, one more than that."""
    return [found[0].strip() for found in islice(LINE.finditer(text), most + 1)]


# /-/clip/classify


async def classify(datasette, request, fields: Fields, page: Page) -> None:
    """Fill the page with the labels that fit the picture best."""
    config = config_of(datasette)
    page["pictures"] = page["pictures"][-2:]  # the one that was kept, and the one that has just come
    page |= {"k": fields.last("k", K), "own": fields.last("own")}
    for text in (page["own"], *fields.all("labels")):
        check_text(config, text)
    page |= words_of(fields)
    engine = await in_thread(open_engine, config)
    page |= await in_thread(choices, engine, page)
    if not page["pictures"]:
        if request.method == "POST":
            raise InputError("there is no picture yet; choose, drop or paste one")
        return
    with inference_of(datasette).place():
        begun_s = time.perf_counter()
        await look_at(datasette, request, engine, page)
        page["pictures"] = page["pictures"][-1:]  # the one that has just come, where it can be read
        page |= await in_thread(ranked, engine, config, page)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    page |= await elsewhere(datasette, request, page)


def words_of(fields: Fields) -> Page:
    """Which labels a form asks for: the name of a label set, None where there are none, or "" and labels of one's own.

    Labels typed win over the set chosen, unless they are those that the page had `shown` already.
    """
    asked, own = fields.all("labels"), fields.last("own")
    chosen = asked[0] if asked else None
    if len(asked) > 1:
        chosen, own = "", as_lines(asked)
    elif chosen and chosen.lstrip().startswith("["):  # as a permalink has them
        chosen, own = "", as_lines(read_list(chosen))
    elif own.strip() and with_plain_ends(own) != with_plain_ends(fields.last("shown")):
        chosen = ""
    elif not chosen and not own.strip():
        chosen = None
    return {"chosen": chosen, "own": own}


def with_plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def as_lines(labels: list[str]) -> str:
    """Labels one a line. Raises InputError for one that has several."""
    for position, label in enumerate(labels):
        if len(lines(label, 1)) > 1:
            raise InputError(f"label {position} is {label!r}; on this page a label is a line")
    return "\n".join(labels)


def read_list(text: str) -> list[str]:
    try:
        return [str(label) for label in json.loads(text)]
    except (ValueError, RecursionError) as error:
        raise InputError(f"labels begins as a JSON list and is none: {error}") from error


def choices(engine, page: Page) -> Page:
    """The label sets with their sizes, the one that is chosen, and the side in pixels of what CLIP looks at."""
    sets = {name: len(engine.label_set(name).labels) for name in labels.sets_of(engine)}
    chosen = page["chosen"]
    if chosen is None:
        chosen = labels.default_set(engine) if sets else ""
    return {"sets": sets, "chosen": chosen, "side": engine.manifest.preprocess.crop}


def ranked(engine, config: Config, page: Page) -> Page:
    """The best labels for the picture. Raises InputError and ModelDirError where labels or k cannot be used."""
    k, most = inputs.read_k(page["k"]), config.limits.prompts
    own = lines(page["own"], most)
    if not page["chosen"] and len(own) > most:
        raise InputError(
            f"there are more than {most} labels; at most so many are embedded for a request "
            f"(plugins.{PLUGIN}.limits.prompts): bake a label set of them"
        )
    classifier = labels.classifier_of(engine, config.limits, page["chosen"] or own)
    matches = zero_shot.classify(classifier, page["pictures"][0].embedding, engine.manifest.logit_scale, k)
    none_of_these = zero_shot.is_none_of_these(classifier, matches[0])
    known = {"count": len(classifier.labels), "unrelated_cosine": classifier.unrelated_cosine}
    return known | {"matches": [row_of(match) for match in matches], "none_of_these": none_of_these}


def row_of(match: zero_shot.Match) -> dict:
    """A match, its probability also in percent and as the width of a bar."""
    percent = 100 * match.probability
    as_text = f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"
    return {"label": match.label, "cosine": match.cosine, "percent": as_text, "width": round(percent, 2)}


async def elsewhere(datasette, request, page: Page) -> Page:
    """The same answer by URL, in SQL and by curl."""
    limits = config_of(datasette).limits
    asked = page["chosen"] or json.dumps(lines(page["own"], limits.prompts), ensure_ascii=False)
    img = page["pictures"][0].img
    quoted = asked.replace("'", "''")
    sql = f"select clip_classify(clip_image(:img), '{quoted}', {int(page['k'])})"
    url = datasette.absolute_url(request, datasette.urls.path(f"{CLASSIFY}.json"))
    form = ["curl", "-F", "image=@photo.jpg", "--form-string", f"labels={asked}", "-F", f"k={page['k']}"]
    asked_again = {"labels": asked, "k": page["k"], "img": img}
    return {
        "permalink": link_to(datasette, datasette.urls.path(CLASSIFY), asked_again),
        "url_bytes": limits_of(datasette).url_bytes,
        "sql": sql,
        "sql_page": await sql_page(datasette, request, {"sql": sql, "img": img}),
        "curl": shlex.join([*form, "-F", "orient=exif", url]),
    }


async def sql_page(datasette, request, query: dict[str, str]) -> str | None:
    """The path of Datasette's page for a query, for who may run one; "" where it is too long."""
    database = await sql_database(datasette, request.actor)
    return database and link_to(datasette, sql_paths(datasette, database)[0], query)


def link_to(datasette, path: str, query: dict[str, str]) -> str:
    """A path and a query; "" where the gate would refuse it."""
    encoded = urlencode(query)
    return f"{path}?{encoded}" if query_fits(datasette, encoded) else ""


# /-/clip/compare


async def compare(datasette, request, fields: Fields, page: Page) -> None:
    """Fill the page with the cosines of its texts and pictures."""
    config = config_of(datasette)
    page["texts"] = fields.last("texts")
    remove = fields.all("remove")
    page["pictures"] = [one for at, one in enumerate(page["pictures"]) if str(at) not in remove]
    engine = await in_thread(open_engine, config)
    page["side"] = engine.manifest.preprocess.crop
    limit = config.limits.items
    texts = lines(page["texts"], limit)
    if len(texts) + len(page["pictures"]) > limit:
        raise InputError(
            f"there are more than {limit} texts and pictures; at most so many are compared "
            f"(plugins.{PLUGIN}.limits.items)"
        )
    if not page["pictures"]:
        if request.method == "POST" and not remove:
            raise InputError("there is no picture yet; choose, drop or paste some")
        return
    with inference_of(datasette).place():
        begun_s = time.perf_counter()
        await look_at(datasette, request, engine, page)
        if not texts:
            return  # pictures may come first
        embeddings = await embed_texts(request, engine, config, texts)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    page |= {"columns": texts, "rows": heat_map(page["pictures"], embeddings)}


async def embed_texts(request, engine, config: Config, texts: list[str]) -> NDArray[np.float32]:
    """The embeddings [n, embed_dim] of texts. Raises InputError naming the first line that cannot be embedded."""
    items = [Input(f"line {number}", "text", text) for number, text in enumerate(texts, 1)]
    results = await each(request, items, lambda one: {"embedding": embedding_of(engine, config, one, None)})
    for result in results:
        if "error" in result:
            raise InputError(result["error"])
    return np.stack([result["embedding"] for result in results])


def heat_map(pictures: list[Picture], texts: NDArray[np.float32]) -> list[dict]:
    """A row for each picture, a cell for each of the texts [n, embed_dim]: its cosine and colours, scaled over all."""
    embeddings = np.stack([one.embedding for one in pictures])  # type: ignore[misc]
    cosines = vectors.unit(embeddings) @ vectors.unit(texts).T
    low, high = float(cosines.min()), float(cosines.max())
    return [
        {
            "picture": picture,
            "cells": [
                {"cosine": float(cosine), "best": cosine == row.max(), **colours((cosine - low) / ((high - low) or 1))}
                for cosine in row
            ],
        }
        for picture, row in zip(pictures, cosines)
    ]


def colours(share: float) -> dict[str, str]:
    """Background and ink of a cell whose cosine is this share, 0 to 1, of the way from the table's least to most."""
    background = np.round(PALE + float(share) * (DEEP - PALE)).astype(int)
    ink = max(("black", "white"), key=lambda ink: contrast(background, 0.0 if ink == "black" else 1.0))
    return {"background": f"#{bytes(background.tolist()).hex()}", "ink": ink}


def contrast(background: NDArray, ink_luminance: float) -> float:
    """Contrast ratio of an ink on a background, 1 to 21. Source: relative luminance, WCAG 2.2."""
    linear = np.where(background / 255 <= 0.04045, background / 3294.6, ((background / 255 + 0.055) / 1.055) ** 2.4)
    darker, lighter = sorted([float(linear @ [0.2126, 0.7152, 0.0722]), ink_luminance])
    return (lighter + 0.05) / (darker + 0.05)
