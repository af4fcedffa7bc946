"""Renders the page that shows one row of a collection large: /-/clip/view/DATABASE/COLLECTION?id=...

With the query of a search and `at`, the row's place in its results, the page leads to the rows before and after it.
static/viewer.js shows the same page over the search page.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from datasette.utils.asgi import NotFound, Response

from clip_collections.query import Term
from llm_clip_onnx.errors import cited

from ..api.original import ids_with_large_picture
from ..api.search import SearchRequest, read_number, read_search_fields, read_search_request, run_search
from ..collection_refs import CollectionRef, visible_collection
from ..failures import MayNotRunSql
from ..filters import RowFilters
from ..paths import original_path
from .form_page import Page
from .search import ROWS, empty_page, query_links, render_row, search_url, status_after, terms_in, typed_fields

FIRST_KEYS = ("taken", "camera", "folder")  # of metadata, shown before the others
MAX_AT = 10**6


async def viewer_page(datasette, request) -> Response:
    """The page of a row: its picture, what is known of it, and links. Raises NotFound if there is no such row."""
    ref = await visible_collection(datasette, request)
    if request.method not in ("GET", "HEAD"):
        return Response.text(f"{request.method} is not a method of this page; expected GET", status=405)
    page = await empty_page(datasette, request, ref)
    status = await status_after(fill_viewer(datasette, request, ref, page), page)
    return Response.html(await datasette.render_template("viewer.html", page, request=request), status=status)


async def fill_viewer(datasette, request, ref: CollectionRef, page: Page) -> None:
    """Fill the page with a row and its neighbours. Raises NotFound, MayNotRunSql and those of WITH_SENTENCE."""
    fields = await read_search_fields(datasette, request)
    ids, places = fields.options.pop("id", []), fields.options.pop("at", [])
    at = read_number("at", places[-1], 1, MAX_AT) if places and places[-1] else None
    page |= typed_fields(fields)
    search_request = read_search_request(fields)
    if search_request.where and not page["may_sql"]:
        raise MayNotRunSql()
    id_ = ids[-1] if ids and ids[-1] else None
    neighbours = await read_neighbours(datasette, request, ref, search_request, at) if at else {}
    result = neighbours.get(at)
    if result is None or (id_ is not None and str(result["id"]) != id_):
        result = await read_row(datasette, request, ref, search_request, id_)
    words = terms_in(page["typed"])
    page |= query_links(page | {"results": [], "next": None}, words, search_request)
    await fill_row(datasette, request, ref, page, words, result, neighbours, at)


async def read_neighbours(
    datasette, request, ref: CollectionRef, search_request: SearchRequest, at: int
) -> dict[int | None, dict]:
    """The row at a place of the results and those before and after it, by their places, as JSON has them."""
    offset = max(0, at - 2)
    content = await run_search(datasette, request, ref, replace(search_request, offset=offset, k=at + 1 - offset))
    return dict(enumerate(content["results"], offset + 1))


async def read_row(datasette, request, ref: CollectionRef, search_request: SearchRequest, id: str | None) -> dict:
    """A row by its id, with its score if the search can give it one. Raises NotFound."""
    if id is None:
        raise NotFound("there is no row at this place of the results")
    only = replace(search_request, filters=RowFilters(id=id), where="", offset=0, k=1)
    for one in (only, SearchRequest(filters=only.filters)):
        results = (await run_search(datasette, request, ref, one))["results"]
        if results:
            return results[0]
    raise NotFound(f"there is no row with the id {cited(id)}")


async def fill_row(
    datasette,
    request,
    ref: CollectionRef,
    page: Page,
    words: tuple[Term, ...],
    result: dict,
    neighbours: dict[int | None, dict],
    at: int | None,
) -> None:
    """Fill the page with what it shows of a row, and with links to its neighbours."""
    origin = datasette.absolute_url(request, "/")
    is_there = at in neighbours and neighbours[at] is result
    if not is_there and not page["query_fields"]:
        at, neighbours = None, {}  # of the rows as they are stored, of which it is not at this place
    row = render_row(page, words, result, origin, at)
    around = {
        name: render_row(page, words, neighbours[place], origin, place)
        for name, place in (("previous", (at or 0) - 1), ("next", (at or 0) + 1))
        if place in neighbours
    }
    large = await ids_with_large_picture(datasette, ref, [one["id"] for one in (row, *around.values())])
    for one in (row, *around.values()):
        url = f"{original_path(datasette, ref.database, ref.collection.name)}?{urlencode({'id': one['id']})}"
        one["large"], one["download"] = (url, f"{url}&download=1") if one["id"] in large else (one["image"], None)
    page |= {"row": row, "around": around, "at": at, "is_there": is_there, "content": text_of(result.get("content"))}
    page |= {"facts": facts_of(result.get("metadata")), "share": datasette.absolute_url(request, row["view"])}
    shown = -(-(at or 1) // ROWS) * ROWS  # rows of the search page that has this one
    more = [("k", shown)] if shown > ROWS else []
    page["back"] = search_url(page, [*page["query_fields"], *more]) + (f"#row-{at}" if at else "")


def text_of(content: object) -> str:
    """The content of a row if it is a text, else ""."""
    return content if isinstance(content, str) else ""


def facts_of(metadata: object) -> list[tuple[str, str]]:
    """What is known of a row, as names and texts: when and with what it was taken first, its size as one line."""
    if not isinstance(metadata, dict):
        return []
    facts = dict(metadata)
    named = {name: facts.pop(name) for name in FIRST_KEYS if facts.get(name)}
    size = size_of(facts.pop("width", None), facts.pop("height", None), facts.pop("bytes", None))
    named |= {"size": size} if size else {}
    others = {name: value for name, value in facts.items() if value not in (None, "", [], {})}
    return [(str(name).replace("_", " "), fact_text(name, value)) for name, value in (named | others).items()]


def size_of(width: Any, height: Any, size_bytes: Any) -> str:
    """The size of a picture: "4,032 × 3,024 pixels, 3.2 MB"; "" if it is not known."""
    parts = []
    if isinstance(width, int) and isinstance(height, int):
        parts.append(f"{width:,} × {height:,} pixels")
    if isinstance(size_bytes, int):
        parts.append(f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1e5 else f"{size_bytes / 1e3:.0f} kB")
    return ", ".join(parts)


def fact_text(name: str, value: object) -> str:
    """A value of metadata as text, a time in words."""
    if name == "taken" and isinstance(value, str):
        try:
            taken = datetime.fromisoformat(value)
        except ValueError:
            return value
        return f"{taken.day} {taken:%B %Y}, {taken:%H:%M}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
