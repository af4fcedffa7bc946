"""Renders the page /-/clip/compare: the cosines of texts with pictures, as a heat map."""

from __future__ import annotations

import csv
import io
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
from ..labels import DIGITS
from ..model import embedding_queue
from ..paths import COMPARE
from .form_page import Page, chosen_engine, lines_of, model_fields, read_page_pictures, render_form
from .links import fitting_path
from .pictures import Picture
from .samples import pictures_to_try, read_sample

if TYPE_CHECKING:
    from llm_clip_onnx.engine import Engine

SHADES = 21  # of the heat map, in clip.css


async def compare_page(datasette, request) -> Response:
    """The cosines of some texts with some pictures, as a heat map."""
    return await render_form(datasette, request, "compare.html", fill_compare)


async def fill_compare(datasette, request, fields: FormFields, page: Page) -> None:
    """Fill the page with the cosines of its texts and pictures."""
    config = config_of(datasette)
    page["texts"] = fields.last("texts")
    remove, samples = fields.all("remove"), fields.all("sample")
    page["samples"] = await pictures_to_try(datasette, request)
    if not page["pictures"]:
        page["pictures"] = [await read_sample(datasette, request, sample) for sample in samples[: config.limits.items]]
    page["pictures"] = [picture for n, picture in enumerate(page["pictures"]) if str(n) not in remove]
    engine = await chosen_engine(config, fields, page)
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
        page["permalink"] = permalink(datasette, page)
        if not texts:
            return  # pictures may come first
        embeddings = await embed_lines(request, engine, config, texts)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    page["even_cosine"] = engine.manifest.even_cosine
    page |= {"columns": texts, "rows": heat_map(page["pictures"], embeddings)}
    page["csv"] = csv_of(texts, page["rows"])


def permalink(datasette, page: Page) -> str:
    """The path of the page with these texts and the pictures' vectors, "" if it is too long."""
    query = [("texts", page["texts"]), *model_fields(page)]
    for picture in page["pictures"]:
        query += [("name", picture.name), ("vector", picture.vector)]
    return fitting_path(datasette, datasette.urls.path(COMPARE), query)


def csv_of(texts: list[str], rows: list[dict]) -> str:
    """The cosines as CSV: a column for each text, a row for each picture."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["image", *texts])
    for row in rows:
        writer.writerow([row["picture"].name, *(f"{cell['cosine']:.{DIGITS}f}" for cell in row["cells"])])
    return stream.getvalue()


async def embed_lines(request, engine: Engine, config: Config, texts: list[str]) -> NDArray[np.float32]:
    """The embeddings [n, embed_dim] of texts. Raises InputError naming the first line that cannot be embedded."""
    items = [Item(f"line {number}", "text", text) for number, text in enumerate(texts, 1)]
    results = await results_of(request, items, lambda item: {"embedding": item_embedding(engine, config, item)})
    for result in results:
        if "error" in result:
            raise InputError(result["error"])
    return np.stack([result["embedding"] for result in results])


def heat_map(pictures: list[Picture], texts: NDArray[np.float32]) -> list[dict]:
    """A row for each picture, with a cell for each text embedding [n, embed_dim]: cosine and shade."""
    embeddings = np.stack([picture.embedding for picture in pictures])  # type: ignore[misc]
    cosines = vectors.unit(embeddings) @ vectors.unit(texts).T
    shades = shades_of(cosines)
    return [
        {
            "picture": picture,
            "cells": [
                {"cosine": float(cosine), "best": cosine == row.max(), "shade": int(shade)}
                for cosine, shade in zip(row, shades_of_row)
            ],
        }
        for picture, row, shades_of_row in zip(pictures, cosines, shades)
    ]


def shades_of(cosines: NDArray[np.float32]) -> NDArray[np.int64]:
    """The shade of each cosine, as clip.css numbers them: 0 for the least of all, SHADES - 1 for the most."""
    low, high = cosines.min(), cosines.max()
    return np.rint((cosines - low) / ((high - low) or 1) * (SHADES - 1)).astype(np.int64)
