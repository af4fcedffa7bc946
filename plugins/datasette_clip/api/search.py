"""Search over HTTP: /-/clip/search/DATABASE/COLLECTION as a page and as JSON, the list of collections, thumbnails.

A query is embedded in inference.py's threads, what is in the database is read and compared in SQL's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import sqlite3
import string
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from datasette.utils import sqlite_timelimit, tilde_decode, tilde_encode
from datasette.utils.asgi import Base400, Forbidden, NotFound, Response

from clip_collections import collection, query, search
from clip_collections.collection import Collection, quoted
from clip_collections.query import Term
from datasette_guard import memory as collecting
from datasette_guard.access import ensure_instance, may, may_view_table
from datasette_guard.cors import HEADERS
from llm_clip_onnx import MODEL_ID, vectors
from llm_clip_onnx.errors import ClipError, InputError

from .. import items as inputs
from ..config import Config, config_of
from ..inference import in_thread, inference_of
from ..pages.classify import open_engine, status_of
from ..pages.pictures import Fields, base64url, read_fields
from ..sql import search as searching
from . import thumbnail as row_pictures
from .embed_classify import METHODS, failure

log = logging.getLogger("datasette_clip")
SEARCH, THUMBNAIL = "/-/clip/search", "/-/clip/thumbnail"


@dataclass
class Asked:
    """What a search asks for. terms: none for the first rows as they are stored. images: that came with the request."""

    terms: tuple[Term, ...] = ()
    images: list[bytes] = field(default_factory=list)
    k: int = searching.K
    offset: int = 0
    where: str = ""


@dataclass(frozen=True)
class Place:
    """A collection that whoever asks may see."""

    database: str
    of: Collection


async def search_json(datasette, request) -> Response:
    """The rows of a collection most like a query, as JSON."""
    place = await place_of(datasette, request)
    content = await answer_of(datasette, request, place)
    return Response.json(content, status=content.get("status", 200), headers=HEADERS if datasette.cors else {})


async def place_of(datasette, request) -> Place:
    """The collection that a URL names. Raises NotFound where there is none, Forbidden where it may not be seen."""
    await ensure_instance(datasette, request)
    database, name = (tilde_decode(request.url_vars[part]) for part in ("database", "collection"))
    if database not in datasette.databases or database == "_internal":
        raise NotFound(f"there is no database {database!r}")
    if not await may(datasette, request.actor, "view-database", database):
        raise Forbidden("view-database")

    def open_it(conn):
        try:
            return searching.open_collection(conn, config_of(datasette), database, name)
        except (ClipError, sqlite3.Error) as error:  # which names what there is: not for strangers
            log.warning("%s: %s", database, error)
            raise NotFound(f"there is no collection {name!r} in database {database!r}") from error

    of = await datasette.get_database(database).execute_fn(open_it)
    if not await may_view_table(datasette, request.actor, database, of.table):
        raise Forbidden("view-table")
    return Place(database, of)


async def answer_of(datasette, request, place: Place) -> dict:
    """What a search answers, or a failure."""
    if request.method not in METHODS:
        return failure(f"{request.method} is not a method of this endpoint; expected GET or POST", 405)
    begun_s = time.perf_counter()
    try:
        asked = asked_of(await fields_of(datasette, request))
        if asked.where and not await may(datasette, request.actor, "execute-sql", place.database):
            raise Forbidden("execute-sql")
        content = await found(datasette, request, place, asked)
    except Forbidden:
        return failure("where is SQL, which you may not run here", 403)
    except (ClipError, Base400, ImportError) as error:
        return failure(str(error), status_of(error))
    return content | {"ms": round((time.perf_counter() - begun_s) * 1000, 1)}


async def fields_of(datasette, request) -> Fields:
    """The fields of a query string, a form or JSON, and images. Raises InputError."""
    pieces, kind = await inputs.pieces_of(request), request.headers.get("content-type", "")
    return await asyncio.to_thread(read_search, request.query_string, kind, pieces, config_of(datasette))


def read_search(query_string: str, content_type: str, pieces: list[bytes], config: Config) -> Fields:
    """Fields and images; a body that is no form is an image itself, or JSON. Raises InputError."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded") or not any(pieces):
        return read_fields(query_string, content_type, pieces, config.limits)
    body = b"".join(pieces)
    fields = read_fields(query_string, "", [], config.limits)
    if kind == "application/json":
        try:
            known = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the body is no JSON: {error}") from error
        if not isinstance(known, dict):
            raise InputError(f'the body is a JSON {type(known).__name__}; expected {{"q": ...}}')
        for name, value in known.items():
            fields.add(name, value if isinstance(value, str) else json.dumps(value))
    else:
        fields.add_input(inputs.Input("body", "image", body))
    return fields


def asked_of(fields: Fields) -> Asked:
    """Raises InputError naming the field that cannot be used."""
    for name, values in fields.options.items():
        for value in values:
            query.check_unicode(name, value)
    asked = Asked(images=[one.content for one in fields.inputs if isinstance(one.content, bytes)])
    terms: list[Term] = []
    for text in fields.all("q"):
        terms += query.parse(text) if text.strip() else ()
    terms += [Term("image", value) for value in fields.all("img") if value]
    terms += [Term("id", value) for value in fields.all("id") if value]
    asked.terms = query.checked(terms) if terms else ()
    asked.where = fields.last("where").strip()
    asked.k = read_number("k", fields.last("k") or str(searching.K), 1, searching.MAX_K)
    asked.offset = read_number("offset", fields.last("offset") or "0", 0, 10**6)
    return asked


def read_number(name: str, text: str, least: int, most: int) -> int:
    if not text.isascii() or not text.isdigit() or not least <= int(text[:10]) <= most:
        raise InputError(f"{name} is {text[:40]!r}; expected a whole number from {least} to {most}")
    return int(text)


async def found(datasette, request, place: Place, asked: Asked) -> dict:
    """The rows that a search finds, and what leads on from them. Raises ClipError, and Crowded where too many wait."""
    config, database = config_of(datasette), datasette.get_database(place.database)
    limit_ms = datasette.setting("sql_time_limit_ms")
    known = await database.execute_fn(lambda conn: searching.stored(conn, place.of, asked.terms))
    embedding = None
    if asked.terms or asked.images:
        with inference_of(datasette).place():
            embedding = await in_thread(embed, config, place.of, asked, known)
        if asked.images:
            collecting.soon.set()
    rows = await database.execute_fn(lambda conn: read_rows(conn, limit_ms, place.of, embedding, asked))
    origin = datasette.absolute_url(request, "/").removesuffix("/")
    results = [described(datasette, origin, place, row) for row in rows[: asked.k]]
    vector = base64url(vectors.to_blob(embedding)) if embedding is not None else None
    content = {
        "ok": True,
        "database": place.database,
        "collection": place.of.name,
        "query": query.written(asked.terms) if asked.terms else "",
        "vector": vector,
        "results": results,
        "next": None,
        "next_url": None,
    }
    if len(rows) > asked.k:
        content["next"] = asked.offset + asked.k
        content["next_url"] = datasette.absolute_url(request, next_path(datasette, place, asked, vector))
    return content


def embed(config: Config, of: Collection, asked: Asked, known):
    """The unit embedding of all terms and images that a search asks for."""
    engine = open_engine(config)
    collection.check_model(of, MODEL_ID, engine.manifest.embed_dim)
    images = [Term("image", base64.b64encode(image).decode()) for image in asked.images]
    return searching.embedded(engine, config, query.checked([*asked.terms, *images]), known)


def next_path(datasette, place: Place, asked: Asked, vector: str | None) -> str:
    fields = [("q", query.written(asked.terms))] if asked.terms and not asked.images else []
    if asked.images:
        fields = [("q", f"vector:{vector}")]
    fields += [("where", asked.where)] if asked.where else []
    return f"{path_of(datasette, place)}.json?" + urlencode(
        [*fields, ("k", asked.k), ("offset", asked.offset + asked.k)]
    )


def path_of(datasette, place: Place) -> str:
    return datasette.urls.path(f"{SEARCH}/{tilde_encode(place.database)}/{tilde_encode(place.of.name)}")


def read_rows(conn, limit_ms: int, of: Collection, embedding, asked: Asked) -> list[dict]:
    """Rows most like an embedding, or the first ones, one more than is wanted: id, score, and what facts_of knows.

    Raises InputError where `where` is no condition, or takes too long.
    """
    wanted, columns = asked.k + 1, [column for column in (of.content, of.metadata) if column]
    try:
        with sqlite_timelimit(conn, limit_ms):
            if embedding is None:
                hits = first_rows(conn, of, wanted, asked)
            else:
                hits = search.search(conn, of, embedding, wanted, asked.where, (), (), asked.offset)
            facts = facts_of(conn, of, [hit.rowid for hit in hits], columns)
            pictured = row_pictures.pictured(conn, of, [hit.rowid for hit in hits])
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise InputError(
                f"the search took longer than {limit_ms} ms (Datasette's setting sql_time_limit_ms): "
                "without an index, llm clip index makes it fast"
            ) from error
        raise InputError(f"where is no condition that SQLite can read: {error}") from error
    except sqlite3.Error as error:
        raise InputError(f"where is no condition that SQLite can read: {error}") from error
    return [
        {"id": hit.id, "score": hit.score, "rowid": hit.rowid, "pictured": hit.rowid in pictured}
        | facts.get(hit.rowid, {})
        for hit in hits
    ]


def first_rows(conn, of: Collection, wanted: int, asked: Asked) -> list[search.Hit]:
    """Rows as they are stored, without a score."""
    key, source = search.quoted_key(of), search.source(of, asked.where)
    sql = f"select {key}, rowid {source} order by rowid limit {wanted} offset {asked.offset}"
    return [search.Hit(id, None, rowid) for id, rowid in collection.rows(conn, sql)]  # type: ignore[arg-type]


def facts_of(conn, of: Collection, rowids: Iterable[int], columns: list[str]) -> dict[int, dict]:
    """What rows say beside their vectors, by rowid: content, metadata, path of their own page, URL of their image."""
    keys = [name for name, place in sorted(collection.columns_of(conn, of.table).items(), key=lambda c: c[1]) if place]
    names = ["rowid", *(quoted(name) for name in (keys or ["rowid"]))]
    names += [quoted(column) for column in columns]
    listed = ",".join(str(int(rowid)) for rowid in rowids)
    read = collection.cursor_of(conn).execute(
        f"select {', '.join(names)}{', *' if of.url else ''} from {quoted(of.table)} where rowid in ({listed})"
    )
    facts: dict[int, dict] = {}
    for row in read:
        key, rest = row[1 : 1 + len(keys or [1])], row[1 + len(keys or [1]) :]
        fact: dict[str, Any] = {"path": ",".join(tilde_encode(str(part)) for part in key)}
        if of.content:
            fact["content"] = searching.plain(rest[0])
        if of.metadata:
            fact["metadata"] = as_json(rest[len(columns) - 1])
        if of.url:
            row_of = dict(zip((c[0] for c in read.description[len(names) :]), row[len(names) :]))
            fact["image_url"] = url_of(of.url, row_of | {"id": row_of.get(of.key, row[0])})
        facts[row[0]] = fact
    return facts


def url_of(template: str, row: dict[str, Any]) -> str | None:
    """The address of a row's image; None where a value is missing, or where it is none that a page may load.

    Values are quoted, but of a template that is one whole column, which has the address itself.
    """
    places = [place for _, place, _, _ in string.Formatter().parse(template) if place]
    if any(not isinstance(row[place], str | int | float) for place in places):
        return None
    whole = template == f"{{{places[0]}}}"
    url = template.format(**{p: row[p] if whole else quote(str(row[p]), safe="") for p in places})
    return url if url.startswith(("https://", "http://", "/", "data:image/")) else None


def as_json(text: object) -> object:
    """What a metadata column holds, which `llm` writes as JSON."""
    try:
        return json.loads(text, parse_constant=lambda _: None) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return text


def described(datasette, origin: str, place: Place, row: dict) -> dict:
    """A row as JSON, with links to it and to its picture, which begin with `origin`."""
    path = datasette.urls.row(place.database, place.of.table, row.get("path", ""))
    image = row.get("image_url")
    if image is None and row["pictured"]:
        base = datasette.urls.path(f"{THUMBNAIL}/{tilde_encode(place.database)}/{tilde_encode(place.of.name)}")
        image = f"{origin}{base}?{urlencode({'id': row['id']})}"
    known = {name: row[name] for name in ("content", "metadata") if name in row}
    score = None if row["score"] is None else round(row["score"], searching.DIGITS)
    links = {"url": origin + path, "image": image}
    return {"id": searching.plain(row["id"]), "score": score} | links | known


async def thumbnail(datasette, request) -> Response:
    """The small picture of a row."""
    place = await place_of(datasette, request)
    id_ = request.args.get("id") or ""
    database = datasette.get_database(place.database)
    picture = await database.execute_fn(lambda conn: row_pictures.picture_of(conn, place.of, id_))
    if not picture:
        raise NotFound("there is no small picture of this row; llm clip index makes them")
    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}
    headers |= HEADERS if datasette.cors else {}
    return Response(picture[0], headers=headers, content_type=picture[1])


async def collections_of(datasette, actor, within: str | None = None) -> list[dict[str, str]]:
    """The collections that an actor may search, of all databases or of one: database, table, name and path of each."""
    found = []
    for database in [name for name in datasette.databases if name != "_internal" and within in (None, name)]:
        if not await may(datasette, actor, "view-database", database):
            continue
        read = partial(opened, config=config_of(datasette), database=database)
        for of in await datasette.get_database(database).execute_fn(read):
            if await may_view_table(datasette, actor, database, of.table):
                path = path_of(datasette, Place(database, of))
                found.append({"database": database, "table": of.table, "name": of.name, "path": path})
    return found


def opened(conn, config: Config, database: str) -> list[Collection]:
    """The collections of a database that can be searched by this model."""
    found = []
    for name in searching.names_of(conn, config, database):
        try:
            of = searching.open_collection(conn, config, database, name)
            if of.model in (None, MODEL_ID) and of.embed_dim:
                found.append(of)
        except (ClipError, sqlite3.Error):
            continue  # who asks for it hears why
    return found
