"""The endpoint for a search, /-/clip/search/DATABASE/COLLECTION.json: reads the request, runs it, and writes the rows.

The search page reads and runs its searches by the functions here.

Queries are embedded in the threads of model.py; the database is read and searched in Datasette's SQL threads. The page
is in pages/search.py, the SQL function in sql/search.py.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from datasette.utils import sqlite_timelimit, tilde_encode
from datasette.utils.asgi import Forbidden, NotFound, Response
from numpy.typing import NDArray

from clip_collections import query, search
from clip_collections.collection import (
    Collection,
    columns_of,
    cursor_of,
    from_clause,
    quoted,
    quoted_key,
    rows,
)
from clip_collections.floor import floor_of
from clip_collections.query import Term
from datasette_guard import CORS_HEADERS, Sentence, collect_soon, may, telling
from llm_clip_onnx import vectors
from llm_clip_onnx.errors import InputError, VectorError, cited, cited_json, shortened

from ..collection_refs import CollectionRef, visible_collection
from ..config import Config, config_of
from ..counts import counted_rowids, kept_of
from ..failures import (
    WITH_SENTENCE,
    MayNotRunSql,
    failure_json,
    failure_of,
    options_response,
    unknown_method,
)
from ..filters import FIELD_NAMES, RowFilters, is_filter, read_filters
from ..items import (
    IGNORED,
    MULTIPART,
    FormFields,
    Item,
    base64url,
    is_form,
    is_json,
    json_object,
    media_type,
    read_form,
    receive_body,
)
from ..labels import DIGITS
from ..model import default_model, embedding_queue, in_thread
from ..paths import search_path, thumbnail_path
from ..progress import filling_of
from ..sql.search import MAX_K, K, collection_engine, embed_query, json_value, read_stored
from .thumbnail import may_view_made, rowids_with_picture

MAX_OFFSET = 10**6
FIELDS = {  # name -> what is expected there
    "q": 'a query, or terms such as [{"text": "red"}]',
    "id": "the id of a stored row",
    "img": "an image as base64url",
    "k": f"a whole number from 1 to {MAX_K}",
    "offset": f"a whole number from 0 to {MAX_OFFSET}",
    "where": "an SQL condition",
    "model": "the id of a model",
}


@dataclass
class SearchRequest:
    """A search. terms: of its query. images: of the request's body, each a term too. where: an SQL condition, or "".
    filters: what needs no permission to run SQL. model: as `asked` of collection_engine.

    Without terms and images, the first rows of the table are returned.
    """

    terms: tuple[Term, ...] = ()
    images: tuple[Term, ...] = ()
    k: int = K
    offset: int = 0
    where: str = ""
    filters: RowFilters = field(default_factory=RowFilters)
    model: str = ""


async def search_json(datasette, request) -> Response:
    """The response to a search: the rows most like the query, or an error."""
    if request.method == "OPTIONS":
        return options_response()
    try:
        content = await search_response(datasette, request, await visible_collection(datasette, request))
    except Forbidden as error:
        content = failure_json(str(error), 403)
    except NotFound as error:
        content = failure_json(str(error), 404)
    headers = CORS_HEADERS if datasette.cors else {}
    return Response.json(content, status=content.get("status", 200), headers=headers)


async def search_response(datasette, request, ref: CollectionRef) -> dict:
    """The content of the response to a search, or a failure."""
    if sentence := unknown_method(request, "endpoint"):
        return failure_json(sentence, 405)
    begun_s = time.perf_counter()
    try:
        search_request = read_search_request(await read_search_fields(datasette, request))
        if search_request.where and not await may(datasette, request.actor, "execute-sql", ref.database):
            raise MayNotRunSql()
        content = await run_search(datasette, request, ref, search_request)
    except MayNotRunSql as error:
        return failure_json(str(error), 403)
    except WITH_SENTENCE as error:
        return failure_of(error)
    return content | {"ms": round((time.perf_counter() - begun_s) * 1000, 1)}


async def read_search_fields(datasette, request) -> FormFields:
    """The fields and images of a query string, a form or JSON. Raises InputError."""
    chunks, content_type = await receive_body(request), request.headers.get("content-type", "")
    return await asyncio.to_thread(search_fields, request.query_string, content_type, chunks, config_of(datasette))


def search_fields(query_string: str, content_type: str, chunks: list[bytes], config: Config) -> FormFields:
    """The fields and images of a search. A body that is neither a form nor JSON is an image. Raises InputError."""
    kind = media_type(content_type)
    if kind == MULTIPART or not any(chunks):
        return read_form(query_string, content_type, chunks, config.limits)
    body = b"".join(chunks)
    if is_form(kind, body):
        return read_form(query_string, content_type, [body], config.limits)
    fields = read_form(query_string, "", [], config.limits)
    if not is_json(kind, body):
        fields.add_item(Item("body", "image", body))
        return fields
    for name, value in json_object(body, '{"q": ...}').items():
        for text in field_values(name, value):
            fields.add(name, text)
    return fields


def field_values(name: str, value: object) -> list[str]:
    """The values of a key of JSON, as a form has them. A list is a field that is repeated. Raises InputError."""
    if name not in FIELDS and not is_filter(name):
        return [""]  # it is refused by its name
    values = value if isinstance(value, list) else [value]
    if name == "q" and any(isinstance(term, dict) for term in values):
        return [json.dumps(value)]
    kinds = str if name in ("q", "img", "where", "model") else str | int
    for item in values:
        if not isinstance(item, kinds) or isinstance(item, bool):
            raise InputError(f"{name} is {cited_json(item)}; expected {FIELDS.get(name, 'a text')}")
    return [str(item) for item in values]


def read_search_request(fields: FormFields) -> SearchRequest:
    """The search in these fields. Raises InputError naming the field that cannot be used."""
    for name, values in fields.options.items():
        is_empty_file = name == "image" and not any(values)  # of the page's form, sent without JavaScript
        is_known = name in (*FIELDS, *IGNORED) or is_filter(name) or name.startswith("_") or is_empty_file
        if not is_known:
            raise InputError(f"{cited(name)} is not a field of a search; expected {', '.join([*FIELDS, *FIELD_NAMES])}")
        for value in values:
            query.check_unicode(name, value)
    terms: list[Term] = []
    for text in fields.all("q"):
        terms += query.parse(text) if text.strip() else ()
    terms += [Term("image", value) for value in fields.all("img") if value]
    terms += [Term("id", value) for value in fields.all("id") if value]
    return SearchRequest(
        terms=query.check_terms(terms) if terms else (),
        images=tuple(Term("image", item.content) for item in fields.items),
        k=read_number("k", fields.last("k") or str(K), 1, MAX_K),
        offset=read_number("offset", fields.last("offset") or "0", 0, MAX_OFFSET),
        where=fields.last("where").strip(),
        filters=read_filters(fields),
        model=fields.last("model"),
    )


def read_number(name: str, text: str, least: int, most: int) -> int:
    """The whole number in a field. Raises InputError."""
    if not text.isascii() or not text.isdigit() or not least <= int(text[:10]) <= most:
        raise InputError(f"{name} is {cited(text)}; expected a whole number from {least} to {most}")
    return int(text)


async def run_search(datasette, request, ref: CollectionRef, search_request: SearchRequest) -> dict:
    """The JSON of a search: its rows, and the URL of the next ones. Raises ClipError and Crowded."""
    config, database, terms = config_of(datasette), datasette.get_database(ref.database), search_request.terms
    limit_ms = datasette.setting("sql_time_limit_ms")
    stored = await database.execute_fn(lambda conn: read_stored(conn, ref.collection, terms))
    model_id = own = ref.collection.model or default_model(config)
    embedding = None
    if terms or search_request.images:
        with embedding_queue(datasette).slot():
            model_id, embedding = await in_thread(search_embedding, config, ref.collection, search_request, stored)
        if search_request.images:
            collect_soon()
    elif search_request.model:
        model_id, _ = await in_thread(collection_engine, config, ref.collection, search_request.model)
    is_of_words = not search_request.images and all(term.kind == "text" for term in terms)
    has_floor = is_of_words and model_id == own  # which was measured with the texts of the collection's model
    made = await may_view_made(datasette, request.actor, ref.database)

    def among(conn) -> NDArray[np.int64] | None:
        filters = search_request.filters
        is_counted = filters and not search_request.where
        return counted_rowids(kept_of(datasette), ref, filters, conn) if is_counted else None

    rows, filling, floor = await database.execute_fn(
        lambda conn: (
            read_rows(conn, limit_ms, ref.collection, embedding, search_request, made, among(conn)),
            filling_of(conn, ref.collection),
            floor_of(conn, ref.collection, embedding) if embedding is not None and has_floor else None,
        )
    )
    origin = datasette.absolute_url(request, "/").removesuffix("/")
    results = [row_json(datasette, origin, ref, row) for row in rows[: search_request.k]]
    vector = base64url(vectors.to_blob(embedding)) if embedding is not None else None
    content = {
        "ok": True,
        "database": ref.database,
        "collection": ref.collection.name,
        "model": model_id,
        "query": query.format_query(terms) if terms else "",
        "vector": vector,
        "results": results,
        "next": None,
        "next_url": None,
    }
    content |= {"filling": filling} if filling else {}
    content |= {"floor": round(floor, DIGITS)} if floor is not None else {}
    if len(rows) > search_request.k:
        content["next"] = search_request.offset + search_request.k
        content["next_url"] = datasette.absolute_url(request, next_path(datasette, ref, search_request, vector))
    return content


def search_embedding(
    config: Config, collection: Collection, search_request: SearchRequest, stored: Mapping[Term, NDArray[np.float32]]
) -> tuple[str, NDArray[np.float32]]:
    """The id of the model that embeds, and the unit embedding [embed_dim] of all terms and images of a search.

    Raises ClipError.
    """
    model_id, engine = collection_engine(config, collection, search_request.model)
    terms = query.check_terms([*search_request.terms, *search_request.images])
    embed_item = partial(engine.embed_item, orient=collection.orient)
    return model_id, embed_query(engine, config, terms, stored, embed_item)


def next_path(datasette, ref: CollectionRef, search_request: SearchRequest, vector: str | None) -> str:
    """The path of the next rows. It has the vector in place of images, which are too large for a URL."""
    fields: list[tuple[str, Any]] = []
    if search_request.images:
        fields = [("q", f"vector:{vector}")]
    elif search_request.terms:
        fields = [("q", query.format_query(search_request.terms))]
    fields += [("where", search_request.where)] if search_request.where else []
    fields += search_request.filters.fields()
    fields += [("model", search_request.model)] if search_request.model else []
    fields += [("k", search_request.k), ("offset", search_request.offset + search_request.k)]
    return f"{search_path(datasette, ref.database, ref.collection.name)}.json?{urlencode(fields)}"


def read_rows(
    conn,
    limit_ms: int,
    collection: Collection,
    embedding,
    search_request: SearchRequest,
    made: bool,
    among: NDArray[np.int64] | None = None,
) -> list[dict]:
    """The k + 1 rows most like an embedding, or the first rows if it is None, each with the facts of `row_facts`.

    among: the rowids for which the filters hold, None if they are not known.
    Raises InputError if `where` is no SQL condition, and if the search takes too long.
    """
    wanted, columns = search_request.k + 1, [column for column in (collection.content, collection.metadata) if column]
    try:
        with sqlite_timelimit(conn, limit_ms):
            hits = telling(find_rows)(conn, collection, embedding, wanted, search_request, among)
            facts = row_facts(conn, collection, [hit.rowid for hit in hits], columns)
            pictured = rowids_with_picture(conn, collection, [hit.rowid for hit in hits], made)
            starts = rowids_with_direction(conn, collection, [hit.rowid for hit in hits if hit.score is None])
    except sqlite3.OperationalError as error:
        if "interrupted" in str(error):
            raise InputError(
                f"the search took longer than {limit_ms} ms (Datasette's setting sql_time_limit_ms): "
                "an index makes it fast (llm clip index), and so does a where that reads less"
            ) from error
        if isinstance(error.args[0], Sentence):
            raise InputError(f"where: {error}") from error
        raise InputError(f"where is no condition that SQLite can read: {shortened(error)}") from error
    except sqlite3.Error as error:
        raise InputError(f"where is no condition that SQLite can read: {shortened(error)}") from error
    return [
        {
            "id": hit.id,
            "score": hit.score,
            "has_id": isinstance(hit.id, str | int),
            "has_vector": hit.score is not None or hit.rowid in starts,
            "pictured": hit.rowid in pictured,
        }
        | facts.get(hit.rowid, {})
        for hit in hits
    ]


def find_rows(
    conn, collection: Collection, embedding, wanted: int, search_request: SearchRequest, among: NDArray[np.int64] | None
) -> list[search.Hit]:
    """The rows most like an embedding, or the first rows if it is None."""
    where, parameters = search_request.filters.condition(collection, search_request.where)
    offset = search_request.offset
    if embedding is not None:
        return search.search(conn, collection, embedding, wanted, where, parameters, offset=offset, among=among)
    if among is not None:
        where, parameters = f"rowid in ({','.join(map(str, among[offset : offset + wanted].tolist()))})", {}
        offset = 0
    return first_rows(conn, collection, wanted, offset, where, parameters)


def first_rows(
    conn, collection: Collection, wanted: int, offset: int, where: str, parameters: dict
) -> list[search.Hit]:
    """The first rows in the order of the table, without a score."""
    sql = f"select {quoted_key(collection)}, rowid {from_clause(collection, where)}"
    sql += f" order by rowid limit {wanted} offset {offset}"
    return [search.Hit(id, None, rowid) for id, rowid in rows(conn, sql, parameters)]  # type: ignore[arg-type]


def rowids_with_direction(conn, collection: Collection, rowids: Sequence[int]) -> set[int]:
    """The rowids of the rows whose vector has a direction, so that a search can start from it."""
    among = ",".join(str(int(rowid)) for rowid in rowids)
    sql = f"select rowid, {quoted(collection.vector)} from main.{quoted(collection.table)} where rowid in ({among})"
    found = set()
    for rowid, blob in rows(conn, sql):
        with suppress(VectorError):
            vectors.check_direction(vectors.from_blob(blob, collection.embed_dim))
            found.add(rowid)
    return found


def row_facts(conn, collection: Collection, rowids: Iterable[int], columns: list[str]) -> dict[int, dict]:
    """Facts of rows by rowid: content, metadata, path of the row's page, URL of its image."""
    positions = columns_of(conn, collection.table)  # in the primary key, 0 for none
    keys = sorted((name for name, position in positions.items() if position), key=positions.__getitem__)
    names = ["rowid", *(quoted(name) for name in (keys or ["rowid"]))]
    names += [quoted(column) for column in columns]
    selected = ", ".join(names) + (", *" if collection.url else "")
    among = ",".join(str(int(rowid)) for rowid in rowids)
    cursor = cursor_of(conn).execute(f"select {selected} from main.{quoted(collection.table)} where rowid in ({among})")
    facts: dict[int, dict] = {}
    for row in cursor:
        key, rest = row[1 : 1 + len(keys or [1])], row[1 + len(keys or [1]) :]
        fact: dict[str, Any] = {"path": ",".join(tilde_encode(str(part)) for part in key)}
        if collection.content:
            fact["content"] = json_value(rest[0])
        if collection.metadata:
            fact["metadata"] = parse_metadata(rest[len(columns) - 1])
        if collection.url:
            columns_by_name = dict(zip((c[0] for c in cursor.description[len(names) :]), row[len(names) :]))
            columns_by_name["id"] = columns_by_name.get(collection.key, row[0])
            fact["image_url"] = image_url(collection.url, columns_by_name)
        facts[row[0]] = fact
    return facts


def image_url(template: str, row: dict[str, Any]) -> str | None:
    """The URL of a row's image, None if a value is missing or a page must not load the URL.

    Values are quoted, except where the template is one column: it holds the whole URL.
    """
    places = [place for _, place, _, _ in string.Formatter().parse(template) if place]
    if any(not isinstance(row[place], str | int | float) for place in places):
        return None
    whole = template == f"{{{places[0]}}}"
    url = template.format(**{p: row[p] if whole else quote(str(row[p]), safe="") for p in places})
    return url if url.startswith(("https://", "http://", "/", "data:image/")) else None


def parse_metadata(text: object) -> object:
    """The value of a metadata column, which `llm` writes as JSON. A text that is no JSON stays a text."""
    try:
        return json.loads(text, parse_constant=lambda _: None) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return text


def row_json(datasette, origin: str, ref: CollectionRef, row: dict) -> dict:
    """A row as JSON, with URLs of its page and its picture that begin with `origin`."""
    path = datasette.urls.row(ref.database, ref.collection.table, row.get("path", ""))
    image = row.get("image_url")
    if image is None and row["pictured"] and row["has_id"]:
        image = f"{origin}{thumbnail_path(datasette, ref.database, ref.collection.name)}?{urlencode({'id': row['id']})}"
    facts = {name: row[name] for name in ("content", "metadata") if name in row}
    if not (row["has_vector"] and row["has_id"]):
        facts["has_vector"] = False
    score = None if row["score"] is None else round(row["score"], DIGITS)
    links = {"url": origin + path, "image": image}
    return {"id": json_value(row["id"]), "score": score} | links | facts
