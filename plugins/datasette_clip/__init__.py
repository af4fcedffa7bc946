"""THE DOORS: a Datasette plugin with the model as SQL functions, JSON endpoints and pages. Only hooks are here."""

from __future__ import annotations

from datasette_guard import declare, hide_tables, is_server

from .model import log_twins, open_towers_outside_sql, text_opening

if is_server():
    text_opening()  # before the rest of Datasette and of this plugin is imported

from datasette import hookimpl

from llm_clip_onnx import models

from . import paths, static_files
from .api import embed_classify, health, openai, original, text_url, thumbnail
from .api import search as search_api
from .collection_refs import is_internal
from .compression import compressed
from .config import config_of
from .frame import with_policy
from .pages import about, classify, compare, home, links, viewer
from .pages import search as search_page
from .sql import functions
from .sql import search as sql_search
from .tables import cells, like

declare(
    [paths.HEALTH],
    [f"{paths.SEARCH}/", f"{paths.VIEWER}/", f"{paths.THUMBNAIL}/", f"{paths.ORIGINAL}/"],
    paths.is_read_only,
    paths.is_openai,
    openai.failure,
)


@hookimpl(tryfirst=True)  # before others return coroutines, which Python reports as never awaited if this raises
def startup(datasette):
    models.keep_open(config_of(datasette).limits.models_bytes)
    log_twins()
    hide_tables(is_internal)
    original.folders_of(datasette)
    text_opening()


@hookimpl(tryfirst=True)  # innermost: what runs again is Datasette, and no wrapper of another plugin
def asgi_wrapper(datasette):
    with_towers = open_towers_outside_sql(datasette)
    return lambda app: compressed(datasette, with_policy(datasette, with_towers(app)))


@hookimpl(trylast=True)  # after datasette-llm-embed, whose functions ours replace
def prepare_connection(conn, database, datasette):
    functions.register(conn, config_of(datasette))
    sql_search.register(conn, datasette, database)


@hookimpl
def menu_links(datasette, actor, request):
    return links.menu(datasette, actor, request)


@hookimpl
def database_actions(datasette, actor, database, request):
    return links.actions(datasette, actor, database, request)


@hookimpl
def table_actions(datasette, actor, database, table, request):
    return links.table_actions(datasette, actor, database, table, request)


@hookimpl
def filters_from_request(request, database, table, datasette):
    return lambda: like.like_filter(datasette, request, database, table)


@hookimpl(optionalhook=True)  # Datasette 1.0's
def top_table(datasette, request, database, table):
    return lambda: like.top_of_table(datasette, request, database, table)


@hookimpl(optionalhook=True)  # Datasette 1.0's
def row_actions(datasette, actor, database, table, row):
    return lambda: cells.row_links(datasette, actor, database, table, row)


@hookimpl
def extra_css_urls(view_name, datasette):
    return [static_files.static_path(datasette, "tables.css")] if view_name == "table" else []


@hookimpl
def render_cell(row, value, column, table, database, datasette):
    return cells.cell(datasette, database, table, row, column, value)


@hookimpl
def extra_template_vars(datasette, request, view_name):
    return home.template_variables(datasette, request, view_name)


@hookimpl
def register_routes():
    return [
        (rf"^{paths.ABOUT}$", about.clip_page),
        (rf"^{paths.ABOUT}\.json$", about.clip_json),
        (rf"^{paths.STATIC}/(?P<hash>[0-9a-f]+)/(?P<name>[\w.-]+)$", static_files.static_file),
        (rf"^{paths.HEALTH}$", health.health),
        (rf"^{paths.EMBED}\.json$", embed_classify.embed_json),
        (rf"^{paths.TEXT_URL}/(?P<sha256>[0-9a-f]+)/text\.(?P<form>json|npy|f32)$", text_url.text_at_url),
        (rf"^{paths.EMBEDDINGS}$", openai.embeddings),
        (rf"^{paths.MODELS}$", openai.list_models),
        (rf"^{paths.MODELS}/(?P<model>[^/]+)$", openai.list_models),
        (rf"^{paths.CLASSIFY}\.json$", embed_classify.classify_json),
        (rf"^{paths.CLASSIFY}$", classify.classify_page),
        (rf"^{paths.COMPARE}$", compare.compare_page),
        (rf"^{paths.SEARCH}$", search_page.collections_page),
        (rf"^{paths.SEARCH}{paths.COLLECTION}$", search_page.search_page),
        (rf"^{paths.SEARCH}{paths.COLLECTION}\.json$", search_api.search_json),
        (rf"^{paths.VIEWER}{paths.COLLECTION}$", viewer.viewer_page),
        (rf"^{paths.THUMBNAIL}{paths.COLLECTION}$", thumbnail.thumbnail),
        (rf"^{paths.ORIGINAL}{paths.COLLECTION}$", original.original),
    ]
