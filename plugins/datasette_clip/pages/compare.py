"""Renders the page /-/clip/compare: the cosines of texts with pictures, as a heat map."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
from datasette.utils.asgi import Response
from numpy.typing import NDArray

from llm_clip_onnx import vectors
from llm_clip_onnx.errors import InputError

from ..api.embed_classify import item_embedding, results_of
from ..config import PLUGIN, Config, config_of
from ..items import FormFields, Item
from ..model import embedding_queue, in_thread, permitted_engine
from .form_page import Page, lines_of, read_page_pictures, render_form
from .pictures import Picture

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine

PALE, DEEP = np.array([247, 251, 255]), np.array([8, 48, 107])  # ends of the heat map: red, green, blue


async def compare_page(datasette, request) -> Response:
    """The cosines of some texts with some pictures, as a heat map."""
    return await render_form(datasette, request, "compare.html", fill_compare)


async def fill_compare(datasette, request, fields: FormFields, page: Page) -> None:
    """Fill the page with the cosines of its texts and pictures."""
    config = config_of(datasette)
    page["texts"] = fields.last("texts")
    remove = fields.all("remove")
    page["pictures"] = [picture for n, picture in enumerate(page["pictures"]) if str(n) not in remove]
    engine = await in_thread(permitted_engine, config)
    page["side"] = engine.manifest.preprocess.crop
    limit = config.limits.items
    texts = lines_of(page["texts"], limit)
    if len(texts) + len(page["pictures"]) > limit:
        raise InputError(
            f"there are more than {limit} texts and pictures; at most so many are compared "
            f"(plugins.{PLUGIN}.limits.items)"
        )
    if not page["pictures"]:
        if request.method == "POST" and not remove:
            raise InputError("there is no picture yet; choose, drop or paste some")
        return
    with embedding_queue(datasette).slot():
        begun_s = time.perf_counter()
        await read_page_pictures(datasette, request, engine, page)
        if not texts:
            return  # pictures may come first
        embeddings = await embed_lines(request, engine, config, texts)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    page |= {"columns": texts, "rows": heat_map(page["pictures"], embeddings)}


async def embed_lines(request, engine: Engine, config: Config, texts: list[str]) -> NDArray[np.float32]:
    """The embeddings [n, embed_dim] of texts. Raises InputError naming the first line that cannot be embedded."""
    items = [Item(f"line {number}", "text", text) for number, text in enumerate(texts, 1)]
    results = await results_of(request, items, lambda item: {"embedding": item_embedding(engine, config, item)})
    for result in results:
        if "error" in result:
            raise InputError(result["error"])
    return np.stack([result["embedding"] for result in results])


def heat_map(pictures: list[Picture], texts: NDArray[np.float32]) -> list[dict]:
    """A row for each picture, with a cell for each text embedding [n, embed_dim]: cosine and colours."""
    embeddings = np.stack([picture.embedding for picture in pictures])  # type: ignore[misc]
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
    """Background and ink of a cell. share: where its cosine is between the table's least, 0, and its most, 1."""
    background = np.round(PALE + float(share) * (DEEP - PALE)).astype(int)
    ink = max(("black", "white"), key=lambda ink: contrast(background, 0.0 if ink == "black" else 1.0))
    return {"background": f"#{bytes(background.tolist()).hex()}", "ink": ink}


def contrast(background: NDArray, ink_luminance: float) -> float:
    """Contrast ratio of an ink on a background, 1 to 21. Source: relative luminance, WCAG 2.2."""
    linear = np.where(background / 255 <= 0.04045, background / 3294.6, ((background / 255 + 0.055) / 1.055) ** 2.4)
    darker, lighter = sorted([float(linear @ [0.2126, 0.7152, 0.0722]), ink_luminance])
    return (lighter + 0.05) / (darker + 0.05)
