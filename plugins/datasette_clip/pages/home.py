"""Gives Datasette's home page what our templates/index.html shows: collections with pictures of each, and ways in."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from clip_collections import query
from clip_collections.query import Term

from .. import paths
from ..api.health import why_not_ready
from ..collection_refs import CollectionRef, searchable_refs
from ..frame import Frame
from ..model import text_opening
from ..paths import search_path
from .about import example_calls
from .links import sql_database, sql_paths
from .samples import sample_rows

SHELVES = 4  # collections that are shown with pictures; the others are links
SAMPLES = 5  # of queries
PHOTO_SAMPLES = ("a dog on the beach", "sunset over water", "people around a table", "a red car", "food on a plate")


async def template_variables(datasette, request, view_name: str) -> dict[str, Any]:
    """The variables of every template, and those of templates/index.html."""
    variables: dict[str, Any] = {"clip_page": Frame(datasette, request)}
    if view_name == "index" and request:
        variables["clip_home"] = await home_variables(datasette, request)
    return variables


async def home_variables(datasette, request) -> dict[str, Any]:
    """What the home page shows to this client. why_not: why there is no model, None also while it is being opened."""
    refs = await searchable_refs(datasette, request.actor)
    database = await sql_database(datasette, request.actor)
    return {
        "paths": paths,
        "shelves": [await shelf(datasette, request, ref) for ref in refs[:SHELVES]],
        "more": [
            {"name": ref.collection.name, "path": search_path(datasette, ref.database, ref.collection.name)}
            for ref in refs[SHELVES:]
        ],
        "calls": await example_calls(datasette, request),
        "sql": database and sql_paths(datasette, database)[0],
        "why_not": await why_not_ready(datasette) if text_opening().done() else None,
    }


async def shelf(datasette, request, ref: CollectionRef) -> dict[str, Any]:
    """A collection with the path of its search page, some of its pictures, and sample queries."""
    path = search_path(datasette, ref.database, ref.collection.name)
    samples = await sample_rows(datasette, request, ref)
    queries = [row["caption"] for row in samples if row["is_query"]]
    for row in samples:
        row["path"] = query_path(path, query.format_query([Term("id", row["id"])]))
    return {
        "name": ref.collection.name,
        "path": path,
        "pictures": [row for row in samples if row["image"]],
        "samples": [
            {"text": text, "path": query_path(path, text)}
            for text in list(dict.fromkeys(queries))[:SAMPLES] or PHOTO_SAMPLES
        ],
    }


def query_path(path: str, q: str) -> str:
    """The path of a search page with a query."""
    return f"{path}?{urlencode({'q': q})}"
