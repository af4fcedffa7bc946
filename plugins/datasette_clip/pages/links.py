"""Makes links: from Datasette's own pages to ours, and from ours to Datasette's page of an SQL query."""

from __future__ import annotations

import shlex
from urllib.parse import urlencode

from datasette_guard import is_1, is_private, may, query_fits

from ..collection_refs import searchable_collections
from ..paths import ABOUT, CLASSIFY, SEARCH
from ..tables import like


async def menu(datasette, actor, request) -> list[dict[str, str]]:
    """Links of Datasette's menu. Search is among them if the actor may search a collection."""
    links = {ABOUT: "CLIP embeddings", CLASSIFY: "Classify an image"}
    for database in sorted(datasette.databases, key=lambda name: name == "_memory"):  # has none as a rule
        if await searchable(datasette, actor, database, request):
            links[SEARCH] = "Search by text or image"
            break
    return [{"href": datasette.urls.path(path), "label": label} for path, label in links.items()]


async def searchable(datasette, actor, database: str, request) -> list[dict[str, str]]:
    """The collections of a database that an actor may search, found once for a request, whose page asks twice."""
    known = request.scope.setdefault("clip_searchable", {}) if request else {}
    if database not in known:
        known[database] = await searchable_collections(datasette, actor, database)
    return known[database]


async def actions(datasette, actor, database: str, request, table: str | None = None) -> list[dict[str, str]]:
    """Links of a database's menu, or of a table's, to search its collections."""
    return [
        {"href": link["path"], "label": f"Search {link['name']} by text or image"}
        for link in await searchable(datasette, actor, database, request)
        if table in (None, link["table"])
    ]


async def table_actions(datasette, actor, database: str, table: str, request) -> list[dict[str, str]]:
    """Links of a table's menu: the search of its collections, and the ranked rows if it is filtered by likeness."""
    ranked = await like.ranked_link(datasette, request, database, table)
    ranking = [{"href": ranked[0], "label": ranked[1]}] if ranked else []
    return ranking + await actions(datasette, actor, database, request, table)


async def sql_database(datasette, actor: dict | None) -> str | None:
    """The first database that an actor may see and run SQL in, _memory before all others; None if there is none."""
    names = sorted((name for name in datasette.databases if name != "_internal"), key=lambda name: name != "_memory")
    for name in names:
        if all([await may(datasette, actor, action, name) for action in ("view-database", "execute-sql")]):
            return name
    return None


def sql_paths(datasette, database: str) -> tuple[str, str]:
    """The paths of SQL queries to a database, as a page and as JSON. Datasette 1.0 redirects from those of 0.65."""
    page = datasette.urls.database(database)
    if is_1(datasette):
        return f"{page}/-/query", f"{page}/-/query.json"
    return page, datasette.urls.database(database, format="json")


def sql_text(text: str) -> str:
    """A text as SQL has it, between quotes."""
    return "'" + text.replace("'", "''") + "'"


async def sql_page_path(datasette, request, query: dict[str, str]) -> str | None:
    """The path of Datasette's page of a query: None if the client may run no SQL, "" if the path is too long."""
    database = await sql_database(datasette, request.actor)
    return database and fitting_path(datasette, sql_paths(datasette, database)[0], query)


def curl_command(datasette, *arguments: str) -> str:
    """A curl command for the shell. For a private instance it names the variable that has the token, not the token."""
    header = '-H "Authorization: Bearer $CLIP_TOKEN" ' if is_private(datasette) else ""
    return f"curl {header}{shlex.join(arguments)}"


def fitting_path(datasette, path: str, query: dict[str, str] | list[tuple[str, str]]) -> str:
    """A path with a query string, or "" if the guard would refuse it as too long."""
    encoded = urlencode(query)
    return f"{path}?{encoded}" if query_fits(datasette, encoded) else ""
