"""The pages /-/clip/search and /-/clip/search/DATABASE/COLLECTION, and the links to them from Datasette's own pages.

What is found is what the JSON answers: search_views.py finds it. static/search.js asks for the page again at every key.
"""

from __future__ import annotations

import shlex
import time
from typing import Any
from urllib.parse import urlencode

from datasette.utils.asgi import Base400, Forbidden, Response

from clip_collections import query
from clip_collections.collection import quoted
from clip_collections.query import Term
from datasette_guard.access import ensure_instance, may
from llm_clip_onnx.errors import ClipError, InputError

from ..api import search as search_views
from ..api.embed_classify import METHODS
from ..api.search import SEARCH, Asked, Place
from ..config import config_of
from ..inference import in_thread, inference_of
from .about import sql_paths
from .classify import Page, open_engine, status_of
from .pictures import Fields, Picture, read_pictures

K = 24  # fills rows of 2, 3, 4, 6 and 8
CAPTION = 80  # characters of a caption
NAMING = ("label", "name", "title", "caption")  # keys of metadata that say what a picture shows
IMAGE_URLS = ("https://", "http://", "/", "data:image/")


async def collections_page(datasette, request) -> Response:
    """The collections that whoever asks may search."""
    await ensure_instance(datasette, request)
    page = {"collections": await search_views.collections_of(datasette, request.actor)}
    return Response.html(await datasette.render_template("collections.html", page, request=request))


async def search_page(datasette, request) -> Response:
    """A query, and the rows of a collection most like it; where there is no answer, a sentence and what was typed."""
    place = await search_views.place_of(datasette, request)
    if request.method not in METHODS:
        return Response.text(f"{request.method} is not a method of this page; expected GET or POST", status=405)
    path = search_views.path_of(datasette, place)
    page: Page = {"errors": [], "place": place, "path": path, "q": "", "kept": [], "where": "", "side": 224}
    page["may_sql"] = await may(datasette, request.actor, "execute-sql", place.database)
    status, begun_s = 200, time.perf_counter()
    try:
        await fill(datasette, request, place, page)
        page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    except Forbidden:
        page["errors"].append("where is SQL, which you may not run here")
        status = 403
    except (ClipError, Base400, ImportError) as error:
        page["errors"].append(str(error))
        status = int(status_of(error))
    return Response.html(await datasette.render_template("search.html", page, request=request), status=status)


async def fill(datasette, request, place: Place, page: Page) -> None:
    """Fill the page with what is asked, then with what is found. Raises ClipError, Base400, ImportError, Forbidden."""
    fields = await search_views.fields_of(datasette, request)
    page |= typed(fields)
    fields.options.setdefault("k", [str(K)])
    pictures = await look_at(datasette, request, fields, page)
    asked = search_views.asked_of(fields)
    if asked.where and not page["may_sql"]:
        raise Forbidden("execute-sql")
    words = terms_in(page["typed"]) + tuple(Term("id", value) for value in fields.all("id") if value)
    if len(page["typed"]) > 1 or fields.all("id"):
        page["q"] = written(words)
    terms = [*words, *terms_in(page["kept"]), *pictures]
    asked.terms = query.checked(terms) if terms else ()
    page |= await search_views.found(datasette, request, place, asked)
    page |= links(page, words, pictures, asked)
    origin = datasette.absolute_url(request, "/")
    page["results"] = [shown(page, words, result, origin) for result in page["results"]]
    page |= await elsewhere(datasette, request, place, page, asked)


def typed(fields: Fields) -> Page:
    """What a form asks for as it was typed, and vectors and images of a query, which are kept where nobody types."""
    all_ = fields.all("q")
    kept = [text for text in all_ if text.startswith(("vector:", "image:")) and not text.split(maxsplit=1)[1:]]
    words = [text for text in all_ if text not in kept]
    return {"q": " + ".join(words), "typed": words, "kept": kept, "where": fields.last("where")}


def terms_in(texts: list[str]) -> tuple[Term, ...]:
    return tuple(term for text in texts if text.strip() for term in query.parse(text))


def written(terms: tuple[Term, ...]) -> str:
    return query.written(terms) if terms else ""


async def look_at(datasette, request, fields: Fields, page: Page) -> list[Term]:
    """The picture of a form as a vector, also as the page keeps it. Raises InputError where it cannot be read."""
    img, config = fields.options.pop("img", [""])[-1], config_of(datasette)
    if fields.inputs:
        one = fields.inputs[-1]
        picture = Picture(one.name, one.content if isinstance(one.content, bytes) else b"")
    elif img:
        picture = Picture("the picture", None, img)
    elif fields.last("image") and request.method == "GET":
        name = fields.last("image")
        raise InputError(f"only the name of {name} has come: an image is sent by the button under it")
    else:
        return []
    page["img"] = img
    engine = await in_thread(open_engine, config)
    page["side"] = engine.manifest.preprocess.crop
    with inference_of(datasette).place():
        good, sentences = await read_pictures(request, engine, config, [picture])
    fields.inputs.clear()
    if not good:
        page["img"] = ""
        raise InputError(sentences[0])
    page |= {"picture": picture, "img": picture.img, "kept": []}  # it takes the place of one that was kept
    return [Term("vector", picture.vector)]


def links(page: Page, words: tuple[Term, ...], pictures: list[Term], asked: Asked) -> Page:
    """Queries of the page: without the picture, of its further rows, and as fields of a URL."""
    q: list[tuple[str, Any]] = [("q", query.written(words))] if words else []
    kept = [("q", text) for text in page["kept"]] + [("q", f"vector:{term.value}") for term in pictures]
    where = [("where", asked.where)] if asked.where else []
    more = [("k", asked.k)] if asked.k != K else []
    first = [*q, *kept, *where, *more]
    last = asked.offset + len(page["results"])
    return {
        "fields": {"kept": kept, "rest": [*where, *more]},
        "without": urled(page, [*q, *where, *more]),
        "first": urled(page, first) if asked.offset else None,
        "more": urled(page, [*first, ("offset", last)]) if page["next"] else None,
        "from_to": (asked.offset + 1, last),
        "asked": [*q, *kept, *where],
    }


def urled(page: Page, fields: list[tuple[str, Any]]) -> str:
    return page["path"] + (f"?{urlencode(fields)}" if fields else "")


def shown(page: Page, words: tuple[Term, ...], result: dict, origin: str) -> Page:
    """A row as the page shows it: caption, picture, score, and links that search on from it."""
    fields, id_ = page["fields"], str(result["id"])
    queries = {
        "more": query.written([*words, Term("id", id_)]),
        "less": query.written([*words, Term("id", id_, -1.0)]),
    }
    urls = {name: urled(page, [("q", q), *fields["kept"], *fields["rest"]]) for name, q in queries.items()}
    return {
        "id": id_,
        "caption": caption_of(result),
        "score": result["score"],
        "url": relative(result["url"], origin),
        "image": image_of(result["image"], origin),
        "like": urled(page, [("q", query.written([Term("id", id_)])), *fields["rest"]]),
        "queries": queries,
        "urls": urls,
    }


def caption_of(result: dict) -> str:
    """What a row shows, in words: by its metadata, its content, or its id."""
    metadata, content = result.get("metadata"), result.get("content")
    found = [metadata.get(name) for name in NAMING] if isinstance(metadata, dict) else []
    for text in [*found, content]:
        if isinstance(text, str) and text.strip():
            text = " ".join(text.split())
            return text if len(text) <= CAPTION else text[: CAPTION - 1] + "…"
    return str(result["id"])


def relative(url: str, origin: str) -> str:
    """A URL without what the page's own begins with, which a proxy may know better."""
    return "/" + url.removeprefix(origin) if url.startswith(origin) else url


def image_of(url: str | None, origin: str) -> str | None:
    """The URL of a picture, which may come from the database, unless it is none that shows pictures only."""
    if not url:
        return None
    url = relative(url, origin)
    return url if url.lower().startswith(IMAGE_URLS) else None


async def elsewhere(datasette, request, place: Place, page: Page, asked: Asked) -> Page:
    """The same answer as JSON, by curl and in SQL."""
    fields = [*page["asked"], ("k", asked.k), *([("offset", asked.offset)] if asked.offset else [])]
    url = datasette.absolute_url(request, f"{page['path']}.json")
    encoded = [part for name, value in fields for part in ("--data-urlencode", f"{name}={value}")]
    known: Page = {
        "json_page": f"{page['path']}.json?{urlencode(fields)}",
        "curl": shlex.join(["curl", "--get", *encoded, url]),
        "sql": None,
    }
    if page["may_sql"] and asked.terms and not asked.where and not asked.offset:
        known["sql"] = sql_of(place, asked.k)
        q = urlencode({"sql": known["sql"], "q": query.written(asked.terms)})
        known["sql_page"] = f"{sql_paths(datasette, place.database)[0]}?{q}"
    return known


def sql_of(place: Place, k: int) -> str:
    name = place.of.name.replace("'", "''")
    return (
        f"select e.*, s.value ->> 'score' as score\n"
        f"from json_each(clip_search('{name}', :q, {k})) s\n"
        f"join {quoted(place.of.table)} e on e.rowid = s.value ->> 'rowid'\n"
        "order by score desc"
    )


# Links from Datasette's own pages


async def on_home_page(datasette, request, view_name: str) -> Page:
    """What templates/index.html shows; nothing for other pages."""
    if view_name != "index":
        return {}
    return {"clip_collections": await search_views.collections_of(datasette, request.actor if request else None)}


async def in_menu(datasette, actor, links: dict[str, str]) -> list[dict[str, str]]:
    """Links of Datasette's menu: labels by path, and the search where there is something to search."""
    for database in datasette.databases:
        if await search_views.collections_of(datasette, actor, database):
            links |= {SEARCH: "Search by text or image"}
            break
    return [{"href": datasette.urls.path(path), "label": label} for path, label in links.items()]


async def in_actions(datasette, actor, database: str, table: str | None = None) -> list[dict]:
    """Links of a database's menu, or of a table's, to search its collections."""
    found = await search_views.collections_of(datasette, actor, database)
    return [
        {"href": one["path"], "label": f"Search {one['name']} by text or image"}
        for one in found
        if table in (None, one["table"])
    ]
