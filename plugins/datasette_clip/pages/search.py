"""Renders the search page /-/clip/search/DATABASE/COLLECTION, and the list of collections /-/clip/search.

api/search.py runs the search. static/search.js fetches the page again at every key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

from datasette.utils.asgi import Response

from clip_collections import query
from clip_collections.collection import Collection, quoted
from clip_collections.query import Term
from datasette_guard import ensure_instance, may
from llm_clip_onnx import models
from llm_clip_onnx.catalogue import CATALOGUE
from llm_clip_onnx.errors import ClipError, InputError, shortened

from .. import paths
from ..api.search import SearchRequest, read_search_fields, read_search_request, run_search
from ..api.thumbnail import SMALL
from ..collection_refs import CollectionRef, searchable_collections, visible_collection
from ..config import Config, config_of
from ..facets import Facet, Value, facets_of
from ..failures import WITH_SENTENCE, MayNotRunSql, status_of, unknown_method
from ..filters import TAKEN, is_filter, readable_filters
from ..items import FormFields
from ..model import default_model, embedding_queue, in_thread, manifest_of, model_choices
from ..sql.search import collection_engine, exchangeable_models
from .form_page import Page, shrinking
from .links import curl_command, sql_paths, sql_text
from .pictures import Picture, file_bytes, read_pictures

ROWS = 24  # fills rows of 2, 3, 4, 6 and 8
CHIPS = 10  # of a facet; the others are behind a summary
SIGN = re.compile(r"(?:^|(?<=\s))[+-](?=[^\s\d.+-])|(?<=[^\s+-])[+-](?=\s)")  # that lacks a space
MANY_LANGUAGES = re.compile("multilingual|xlm|m-clip", re.IGNORECASE)  # in the name of a model
CAPTION_CHARACTERS = 80
CAPTION_KEYS = ("label", "name", "title", "caption")  # of metadata
IMAGE_URLS = ("https://", "http://", "/", "data:image/")


async def collections_page(datasette, request) -> Response:
    """The page that lists the collections the client may search."""
    await ensure_instance(datasette, request)
    page = {"paths": paths, "collections": await searchable_collections(datasette, request.actor)}
    page["several"] = bool(model_choices(config_of(datasette)))
    return Response.html(await datasette.render_template("collections.html", page, request=request))


async def search_page(datasette, request) -> Response:
    """The search page of a collection: the form and the rows most like the query, or the form and an error."""
    ref = await visible_collection(datasette, request)
    if sentence := unknown_method(request, "page"):
        return Response.text(sentence, status=405)
    page = await empty_page(datasette, request, ref)
    begun_s = time.perf_counter()
    status = await status_after(fill_search(datasette, request, ref, page), page)
    page["ms"] = round((time.perf_counter() - begun_s) * 1000, 1)
    if page["errors"] and page["asked"]:
        page |= await kept_filters(datasette, ref, page, page["asked"])
    return Response.html(await datasette.render_template("search.html", page, request=request), status=status)


async def status_after(filling: Awaitable[None], page: Page) -> int:
    """The status of a page that is filled now. The sentence of an exception that is for the client is put into it."""
    try:
        await filling
    except MayNotRunSql as error:
        page["errors"].append(str(error))
        return 403
    except WITH_SENTENCE as error:
        page["errors"].append(str(error))
        return status_of(error)
    return 200


async def empty_page(datasette, request, ref: CollectionRef) -> Page:
    """The variables of a page about a collection before its fields are read."""
    names, config = (ref.database, ref.collection.name), config_of(datasette)
    own = ref.collection.model or default_model(config)
    return {
        "paths": paths,
        "errors": [],
        "asked": None,
        "ref": ref,
        "path": paths.search_path(datasette, *names),
        "viewer_path": paths.viewer_path(datasette, *names),
        "thumbnail_path": paths.thumbnail_path(datasette, *names),
        "q": "",
        "kept": [],
        "where": "",
        "own": own,
        "model": "",
        **await asyncio.to_thread(choices_of_model, config, ref.collection, own),
        "may_sql": await may(datasette, request.actor, "execute-sql", ref.database),
    }


def choices_of_model(config: Config, of: Collection, own: str) -> Page:
    """The models that may search a collection, with their languages; if several are served; facts of its own model.

    It reads folders.
    """
    ids = exchangeable_models(config, of)
    languages = {id: languages_of(id) for id in ids}
    return {"models": ids, "languages": languages, "several": bool(model_choices(config))} | facts_of_model(own)


async def fill_search(datasette, request, ref: CollectionRef, page: Page) -> None:
    """Fill the page with the query, then with the rows. Raises MayNotRunSql and the exceptions of WITH_SENTENCE."""
    fields = await read_search_fields(datasette, request)
    page |= typed_fields(fields) | {"asked": fields}
    await check_page_model(config_of(datasette), ref, page)
    if page["model"] not in ("", page["own"]):
        page |= await asyncio.to_thread(facts_of_model, page["model"])
    page |= spaced_query(page, fields)
    fields.options.setdefault("k", [str(ROWS)])
    picture = await read_picture(datasette, request, ref, fields, page)
    search_request = read_search_request(fields)
    if search_request.where and not page["may_sql"]:
        raise MayNotRunSql()
    words = terms_in(page["typed"]) + tuple(Term("id", value) for value in fields.all("id") if value)
    if len(page["typed"]) > 1 or fields.all("id"):
        page["q"] = query.format_query(words) if words else ""
    if picture:
        page["kept"] = [f"vector:{picture.vector}"]  # it replaces a kept one
    terms = [*words, *terms_in(page["kept"])]
    search_request.terms = query.check_terms(terms) if terms else ()
    # Before the search: what is counted says which rows have the filters' values.
    facets = await facets_of(datasette, ref, search_request.filters, search_request.where)
    content = await run_search(datasette, request, ref, search_request)
    page |= {name: value for name, value in content.items() if name != "model"}  # which the page has as it was asked
    page |= query_links(page, words, search_request)
    origin = datasette.absolute_url(request, "/")
    page["results"] = [
        render_row(page, words, result, origin, at)
        for at, result in enumerate(page["results"], search_request.offset + 1)
    ]
    page["weak_from"] = weak_from(page)
    page["rows_said"] = rows_said(page)
    page |= await other_ways(datasette, request, ref, page, search_request)
    page |= facet_chips(page, facets, search_request.where)


async def check_page_model(config: Config, ref: CollectionRef, page: Page) -> None:
    """Raises an exception of WITH_SENTENCE for a chosen model that may not search, which the page then forgets."""
    try:
        if page["model"]:
            await in_thread(collection_engine, config, ref.collection, page["model"])
    except WITH_SENTENCE:
        page["model"] = ""
        raise


async def kept_filters(datasette, ref: CollectionRef, page: Page, fields: FormFields) -> Page:
    """The filters and facets of a page with an error. The condition in SQL stays in links, and is not run."""
    filters = readable_filters(fields)
    query_fields = [("q", page["q"])] if page["q"] else []
    kept = [("q", text) for text in page["kept"]]
    links = {
        "query": query_fields,
        "fields": {"kept": kept},
        "filter_fields": filters.fields(),
        "unfiltered": search_url(page, [*query_fields, *kept, *model_fields(page)]),
        "filters": filters,
    }
    return links | facet_chips(page | links, await facets_of(datasette, ref, filters, ""), page["where"])


def typed_fields(fields: FormFields) -> Page:
    """The fields of a form as they were typed. kept: queries of one vector or image, which the page has no box for."""
    queries = fields.all("q")
    kept = [text for text in queries if text.startswith(("vector:", "image:")) and not text.split(maxsplit=1)[1:]]
    words = [text for text in queries if text not in kept]
    known: Page = {"where": fields.last("where"), "model": fields.last("model")}
    return known | {"q": " + ".join(words), "typed": words, "kept": kept}


def model_fields(page: Page) -> list[tuple[str, str]]:
    """The field of a URL that names another model than the collection's."""
    return [("model", page["model"])] if page["model"] else []


def terms_in(texts: list[str]) -> tuple[Term, ...]:
    """The terms of all queries."""
    return tuple(term for text in texts if text.strip() for term in query.parse(text))


async def read_picture(datasette, request, ref: CollectionRef, fields: FormFields, page: Page) -> Picture | None:
    """The picture of a form, also in the page, which keeps it. Raises InputError for one that cannot be read."""
    img, config = fields.options.pop("img", [""])[-1], config_of(datasette)
    if fields.items:
        picture = Picture(fields.items[-1].name, file_bytes(fields.items[-1]))
    elif img:
        picture = Picture("the picture", None, img)
    elif fields.last("image") and request.method == "GET":
        name = fields.last("image")
        raise InputError(f"only the name of {shortened(name)} has come: an image is sent by the button under it")
    else:
        return None
    _, engine = await in_thread(collection_engine, config, ref.collection, fields.last("model"))
    page |= shrinking(engine.manifest.preprocess)
    with embedding_queue(datasette).slot():
        good, sentences = await read_pictures(request, engine, config, [picture])
    fields.items.clear()
    if not good:
        raise InputError(sentences[0])
    page["picture"] = picture
    return picture


def rows_said(page: Page) -> str:
    """How many rows the page has, and whether they are all: "The first 24 rows, best first"."""
    shown = len(page["results"])
    said = f"{shown} {'row' if shown == 1 else 'rows'}"
    is_first = page["more"] and not page["first"]
    order = ", best first" if page["kept"] or page["q"] else ""
    return (f"The first {said}" if is_first else said) + order if shown else "No rows"


def weak_from(page: Page) -> int | None:
    """The place of the first row whose score is below the floor; None if it is not on this page."""
    weak = [row["at"] for row in page["results"] if "floor" in page and row["score"] < page["floor"]]
    return weak[0] if weak and (weak[0] == 1 or weak[0] > page["results"][0]["at"]) else None


def query_links(page: Page, words: tuple[Term, ...], search_request: SearchRequest) -> Page:
    """The query as fields of a URL, and links to it without the picture, to its first rows and to further ones."""
    q: list[tuple[str, Any]] = [("q", query.format_query(words))] if words else []
    kept = [("q", text) for text in page["kept"]]
    rest = [("where", search_request.where)] if search_request.where else []
    rest += [*search_request.filters.fields(), *model_fields(page)]
    first = [*q, *kept, *rest]
    last = search_request.offset + len(page["results"])
    return {
        "query": q,
        "fields": {"kept": kept, "rest": rest},
        "without": search_url(page, [*q, *rest]),
        "first": search_url(page, first) if search_request.offset else None,
        "more": search_url(page, [*first, ("offset", last)]) if page["next"] else None,
        "from_to": (search_request.offset + 1, last),
        "query_fields": first,
        "filter_fields": search_request.filters.fields(),
        "unfiltered": search_url(page, [*q, *kept, *model_fields(page)]),
        "filters": search_request.filters,
    }


def facet_chips(page: Page, facets: list[Facet], where: str) -> Page:
    """The facets of the rows, each value with a link to the same search with or without it; and if dates are one."""
    conditions = [*([("where", where)] if where else []), *model_fields(page)]

    def chip(value: Value) -> Page:
        fields = [*page["query"], *page["fields"]["kept"], *conditions, *value.toggled.fields()]
        return {"text": value.text, "count": value.count, "chosen": value.is_chosen, "url": search_url(page, fields)}

    def chips(facet: Facet) -> Page:
        values = sorted(facet.values, key=lambda value: not value.is_chosen) if facet.key != TAKEN else facet.values
        made = [chip(value) for value in values]
        return {"key": facet.key, "chips": made[:CHIPS], "more": made[CHIPS:]}

    return {"facets": [chips(facet) for facet in facets], "has_dates": any(facet.key == TAKEN for facet in facets)}


def spaced_query(page: Page, fields: FormFields) -> Page:
    """The query with spaces around its signs and its URL, if one lacks a space; else nothing."""
    better = spaced(page["q"])
    kept = [("q", text) for text in page["kept"]]
    others = [
        (name, value)
        for name in fields.options
        for value in fields.all(name)
        if is_filter(name) or name in ("where", "model")
    ]
    return {"spaced": better, "spaced_url": search_url(page, [("q", better), *kept, *others])} if better else {}


def spaced(q: str) -> str | None:
    """The query with spaces around each sign that lacks one, None if none does or if it has quotes."""
    better = SIGN.sub(lambda match: f" {match[0].strip()} ", q)
    return " ".join(better.split()) if better != q and not set('"[{') & set(q) else None


def facts_of_model(model_id: str) -> Page:
    """`shrinking` of a model, and reads_english: it was trained on English texts, so its tokens are CLIP's own."""
    try:
        manifest = manifest_of(models.path_of(model_id))
    except ClipError:
        return shrinking(None) | {"reads_english": False}
    is_english = manifest.tokens is None and not MANY_LANGUAGES.search(manifest.source.id)
    return shrinking(manifest.preprocess) | {"reads_english": is_english}


def languages_of(model_id: str) -> str:
    """The languages of a model as the catalogue has them, such as "English" or "50 languages"; "" if it has not."""
    with suppress(ClipError):
        id = models.catalogue_id(models.path_of(model_id))
        said = next((entry.languages for entry in CATALOGUE if entry.id == id), "")
        return f"{said} languages" if said.isdigit() else said
    return ""


def search_url(page: Page, fields: list[tuple[str, Any]], path: str = "path") -> str:
    """The URL of the search page, or of another page whose path is in `page`, with these fields."""
    return page[path] + (f"?{urlencode(fields)}" if fields else "")


def render_row(page: Page, words: tuple[Term, ...], result: dict, origin: str, at: int | None) -> Page:
    """The variables of a row: caption, picture, score, and links to it and to searches that start from it.

    at: its place in the order of the results, from 1; None if it is not known.
    """
    fields, id_, image = page["fields"], str(result["id"]), safe_image(result["image"], origin)
    queries = {
        "more": query.format_query([*words, Term("id", id_)]),
        "less": query.format_query([*words, Term("id", id_, -1.0)]),
    }
    urls = {name: search_url(page, [("q", q), *fields["kept"], *fields["rest"]]) for name, q in queries.items()}
    named = [("id", id_)] if isinstance(result["id"], str | int) else []
    place = [("at", at)] if at else []
    return {
        "id": id_,
        "at": at,
        "caption": caption_of(result),
        "name": caption_of(result).rpartition("/")[2] if caption_of(result) == id_ else caption_of(result),
        "score": result["score"],
        "url": relative(result["url"], origin),
        "image": image,
        "small": f"{image}&size={SMALL}" if image and image.startswith(page["thumbnail_path"]) else image,
        "view": search_url(page, [*named, *page["query_fields"], *place], "viewer_path"),
        "like": search_url(page, [("q", query.format_query([Term("id", id_)])), *fields["rest"]]),
        "has_vector": result.get("has_vector", True),
        "queries": queries,
        "urls": urls,
    }


def caption_of(result: dict) -> str:
    """A caption of a row: from its metadata, else its content, else its id."""
    metadata, content = result.get("metadata"), result.get("content")
    titles = [metadata.get(name) for name in CAPTION_KEYS] if isinstance(metadata, dict) else []
    for text in [*titles, content]:
        if isinstance(text, str) and text.strip():
            text = " ".join(text.split())
            return text if len(text) <= CAPTION_CHARACTERS else text[: CAPTION_CHARACTERS - 1] + "…"
    return str(result["id"])


def relative(url: str, origin: str) -> str:
    """A URL of ours as a path, because behind a proxy Datasette may not know its own origin."""
    return "/" + url.removeprefix(origin) if url.startswith(origin) else url


def safe_image(url: str | None, origin: str) -> str | None:
    """The URL of a picture if a browser runs nothing from it, else None. It may come from the database."""
    if not url:
        return None
    url = relative(url, origin)
    return url if url.lower().startswith(IMAGE_URLS) else None


async def other_ways(datasette, request, ref: CollectionRef, page: Page, search_request: SearchRequest) -> Page:
    """The same search as JSON, by curl and in SQL."""
    fields = [
        *page["query_fields"],
        ("k", search_request.k),
        *([("offset", search_request.offset)] if search_request.offset else []),
    ]
    url = datasette.absolute_url(request, f"{page['path']}.json")
    encoded = [part for name, value in fields for part in ("--data-urlencode", f"{name}={value}")]
    ways: Page = {
        "json_page": f"{page['path']}.json?{urlencode(fields)}",
        "curl": curl_command(datasette, "--get", *encoded, url),
        "sql": None,
    }
    is_whole = not (search_request.where or search_request.filters or search_request.offset)
    if page["may_sql"] and search_request.terms and is_whole:
        ways["sql"] = collection_sql(ref, search_request.k, search_request.model)
        q = urlencode({"sql": ways["sql"], "q": query.format_query(search_request.terms)})
        ways["sql_page"] = f"{sql_paths(datasette, ref.database)[0]}?{q}"
    return ways


def collection_sql(ref: CollectionRef, k: int, model: str) -> str:
    """SQL that gives the rows of a search, with the query in :q. model: another one than the collection's, or ""."""
    by_model = f", {sql_text(model)}" if model else ""
    name = sql_text(ref.collection.name)
    return (
        f"select e.*, s.value ->> 'score' as score\n"
        f"from json_each(clip_search({name}, :q, {k}{by_model})) s\n"
        f"join main.{quoted(ref.collection.table)} e on e.rowid = s.value ->> 'rowid'\n"
        "order by score desc"
    )
