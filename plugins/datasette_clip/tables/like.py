"""Filters Datasette's table pages by likeness, `?_like=red+heart` or `?_like_id=ID`, to the nearest rows of a table.

Datasette's hook can filter and cannot rank: the rows come in Datasette's order. The search page ranks them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlencode

import markupsafe
from datasette.filters import FilterArguments
from datasette.utils import sqlite_timelimit
from datasette.utils.asgi import BadRequest, Forbidden

from clip_collections import query, search
from clip_collections.collection import (
    Collection,
    columns_of,
    has_llm_tables,
    quoted,
    rows,
    table_collection,
)
from clip_collections.query import Term
from datasette_guard import is_1
from llm_clip_onnx.errors import InputError, cited

from ..api.search import read_number
from ..collection_refs import may_view
from ..config import Config, config_of
from ..failures import WITH_SENTENCE, status_of
from ..model import embedding_queue, in_thread
from ..paths import search_path
from ..sql.search import MAX_K, collection_engine, embed_query, open_collection, read_stored
from .places import page_of, read_thumbnails

K = 100
LIKE, LIKE_ID, LIKE_K, LIKE_MODEL = "_like", "_like_id", "_like_k", "_like_model"
LIKE_COLLECTION, LIKE_COLUMN = "_like_collection", "_like_column"
SAMPLE_ROWS = 20  # of a table without a configured collection: a column of vectors has one in them


async def like_filter(datasette, request, database: str, table: str) -> FilterArguments | None:
    """The condition of the rows nearest to `_like` and `_like_id`, None for a request without them.

    Raises BadRequest with a sentence, also for a view and a table without vectors, and Forbidden.
    """
    if not is_asked(request):
        return None
    try:
        terms = read_terms(request.args)
        k = read_number(LIKE_K, request.args.get(LIKE_K) or str(K), 1, MAX_K)
        of, is_named = await open_for(datasette, request, database, table)
        model = request.args.get(LIKE_MODEL) or ""
        hits = await nearest_rows(datasette, database, of, terms, k, model)
    except WITH_SENTENCE as error:
        raise failure(error) from error
    among = ",".join(str(hit.rowid) for hit in hits)
    said = f"the row is among the {k:,} nearest to {query.format_query(terms)} (in the table's order, not ranked)"
    above = None
    if is_named and not is_1(datasette):
        ranked = ranked_rows(datasette, database, of.name, terms, model)
        above = description_with_link(datasette, database, table, ranked)
    return FilterArguments([f"rowid in ({among})"], human_descriptions=[said], extra_context=above)


def is_asked(request) -> bool:
    """True if a request filters by likeness."""
    return bool(request and (request.args.get(LIKE) or request.args.get(LIKE_ID)))


def failure(error: Exception) -> BadRequest:
    """An exception of WITH_SENTENCE as one that Datasette answers, with its status and sentence."""
    bad = BadRequest(str(error))
    bad.status = status_of(error)
    return bad


def read_terms(args) -> tuple[Term, ...]:
    """The terms of all `_like` and `_like_id` of a request. Raises InputError."""
    terms: list[Term] = []
    for text in args.getlist(LIKE):
        query.check_unicode(LIKE, text)
        terms += query.parse(text) if text.strip() else ()
    return query.check_terms([*terms, *(Term("id", id_) for id_ in args.getlist(LIKE_ID) if id_)])


async def open_for(datasette, request, database: str, table: str) -> tuple[Collection, bool]:
    """The collection of a table that a request means, and if it has a name. Raises InputError and Forbidden."""
    config, args, db = config_of(datasette), request.args, datasette.get_database(database)
    of, is_named = await db.execute_fn(lambda conn: collection_of(conn, config, database, table, args))
    if not await may_view(datasette, request.actor, database, of):
        raise Forbidden("view-table")
    return of, is_named


def collection_of(conn, config: Config, database: str, table: str, args) -> tuple[Collection, bool]:
    """The collection whose vectors are in a table, and if it has a name: one made up of a column of vectors has none.

    Raises InputError for a view, if there is none, or if there are several and the request names none of them.
    """
    if rows(conn, "select 1 from main.sqlite_master where type = 'view' and name = ?", [table]):
        raise InputError(f"{cited(table)} is a view, whose rows have no rowid; {LIKE} filters the rows of a table")
    names = names_in(conn, config, database, table, args)
    named = args.get(LIKE_COLLECTION)
    if named is not None:
        names = [name for name in names if name == named]
        if not names:
            raise InputError(f"{LIKE_COLLECTION} is {cited(named)}; the table has no collection of that name")
    if len(names) > 1:
        raise InputError(f"the table holds several collections; expected {LIKE_COLLECTION} with the name of one")
    if names:
        return open_collection(conn, config, database, names[0]), True
    column = args.get(LIKE_COLUMN) or vector_column(conn, table)
    return table_collection(conn, table, {"table": table, "vector": column}), False


def names_in(conn, config: Config, database: str, table: str, args) -> list[str]:
    """The names of the collections whose vectors are in a table; of llm's, those that collection_id leaves."""
    configured = config.collections.get(database, {})
    names = [name for name, settings in configured.items() if settings.get("table") == table]
    if table == "embeddings" and has_llm_tables(conn):
        only = args.get("collection_id") or args.get("collection_id__exact")
        where, parameters = ("where cast(id as text) = ?", [only]) if only else ("", [])
        names += [name for (name,) in rows(conn, f"select name from main.collections {where} order by id", parameters)]
    return names


def vector_column(conn, table: str) -> str:
    """The first column of a table that holds vector blobs. Raises InputError if none does."""
    for column in columns_of(conn, table):
        sql = f"select {quoted(column)} from main.{quoted(table)} where {quoted(column)} is not null"
        if any(is_vector_blob(value) for (value,) in rows(conn, f"{sql} limit {SAMPLE_ROWS}")):
            return column
    raise InputError(f"table {cited(table)} has no column of vectors, so {LIKE} cannot filter it")


def is_vector_blob(value: object) -> bool:
    """True if a value is likely an embedding: float32 numbers, 64 or more, none of them very large."""
    if not isinstance(value, bytes) or len(value) % 4 or not 64 <= len(value) // 4 <= 4096:
        return False
    import numpy as np  # here: Datasette's start does not wait for it

    with np.errstate(all="ignore"):
        sizes = np.abs(np.frombuffer(value, "<f4"))
        return bool(sizes.max() < 1e4 and 2 * np.count_nonzero(sizes > 1e-8) > len(sizes))  # not if one is NaN


async def nearest_rows(
    datasette, database: str, of: Collection, terms: Sequence[Term], k: int, model_id: str = ""
) -> list[search.Hit]:
    """The k rows of a collection nearest to a query. model_id: as `asked` of collection_engine.

    Raises ClipError and Crowded.
    """
    config, db, limit_ms = (
        config_of(datasette),
        datasette.get_database(database),
        datasette.setting("sql_time_limit_ms"),
    )

    def embed(stored):
        _, engine = collection_engine(config, of, model_id)
        return embed_query(engine, config, terms, stored, partial(engine.embed_item, orient=of.orient))

    def find(conn, embedding):
        page = page_of(datasette, database)  # after the embedding, which may take longer than a page is kept
        with sqlite_timelimit(conn, limit_ms):
            hits = search.search(conn, of, embedding, k)
            read_thumbnails(conn, page, of.name, [hit.id for hit in hits])  # at once, and not for each cell
        return hits

    has_ids = any(term.kind == "id" for term in terms)
    stored = await db.execute_fn(lambda conn: read_stored(conn, of, terms)) if has_ids else {}
    with embedding_queue(datasette).slot():
        embedding = await in_thread(embed, stored)
    try:
        return await db.execute_fn(lambda conn: find(conn, embedding))
    except sqlite3.OperationalError as error:
        raise InputError(f"the search took longer than {limit_ms} ms: llm clip index makes it fast") from error


async def ranked_link(datasette, request, database: str, table: str) -> tuple[str, str] | None:
    """The path and label of the search page with the rows of `_like` ranked; None if there is none.

    A table that no collection is configured for has no search page.
    """
    if not is_asked(request):
        return None
    config, db = config_of(datasette), datasette.get_database(database)
    try:
        terms = read_terms(request.args)
        names = await db.execute_fn(lambda conn: names_in(conn, config, database, table, request.args))
    except WITH_SENTENCE:
        return None
    name = request.args.get(LIKE_COLLECTION) or (names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        return None
    return ranked_rows(datasette, database, name, terms, request.args.get(LIKE_MODEL) or "")


def ranked_rows(datasette, database: str, name: str, terms: Sequence[Term], model: str) -> tuple[str, str]:
    """The path and label of the search page of a collection with the rows nearest to a query, ranked."""
    text = query.format_query(terms)
    fields = {"q": text} | ({"model": model} if model else {})
    return f"{search_path(datasette, database, name)}?{urlencode(fields)}", f"Rank by likeness to {text}"


def description_with_link(datasette, database: str, table: str, ranked: tuple[str, str]) -> dict:
    """The variable of Datasette 0.65's template whose description stands above a table, with the link to ranked rows.

    0.65 has no hook for HTML above a table. A filter may set variables of the template, and this is one of them.
    """
    metadata = dict(datasette.table_metadata(database, table))
    datasette.update_with_inherited_metadata(metadata)
    described = metadata.get("description_html") or markupsafe.escape(metadata.get("description") or "")
    return {"metadata": metadata | {"description_html": f"{described}{as_paragraph(ranked)}"}}


async def top_of_table(datasette, request, database: str, table: str) -> str:
    """HTML above a table that is filtered by likeness: the link to the same rows ranked. Datasette 1.0 shows it."""
    ranked = await ranked_link(datasette, request, database, table)
    return as_paragraph(ranked) if ranked else ""


def as_paragraph(ranked: tuple[str, str]) -> markupsafe.Markup:
    return markupsafe.Markup('<p class="clip-ranked"><a href="{}">{}</a></p>').format(*ranked)
