"""THE DOORS: a Datasette plugin that serves the model in SQL, JSON and pages. It only wires."""

from __future__ import annotations

from datasette_guard import declare, is_server

from .model import text_opening, wait_for_opening

if is_server():
    text_opening()  # before the rest of Datasette, and of this, is even imported

from datasette import hookimpl

from .api import embed_classify
from .api import search as search_api
from .config import config_of
from .cross_origin import only_reads, unasked
from .pages import about, classify
from .pages import search as search_page
from .sql import functions
from .sql import search as sql_search

COLLECTION = "(?P<database>[^/.]+)/(?P<collection>[^/.]+)"  # each tilde-encoded, as in Datasette's own URLs
HEALTH = "/-/clip/health"

declare(uncounted_paths=[HEALTH], run_sql_below=[f"{search_api.SEARCH}/", f"{search_api.THUMBNAIL}/"])


@hookimpl
def startup(datasette):
    config_of(datasette)
    text_opening()


@hookimpl
def asgi_wrapper(datasette):
    base_url = datasette.setting("base_url")
    waiting, unasking = wait_for_opening(base_url), unasked(base_url)
    return lambda app: waiting(unasking(app))


@hookimpl
def skip_csrf(datasette, scope):  # Datasette 0.65's; these only read, so there is nothing to forge
    return only_reads(scope, datasette.setting("base_url"))


@hookimpl(trylast=True)  # after datasette-llm-embed, whose functions ours replace
def prepare_connection(conn, database, datasette):
    functions.register(conn, config_of(datasette))
    sql_search.register(conn, datasette, database)


@hookimpl
def register_routes():
    return [
        (r"^/-/clip$", about.clip_page),
        (r"^/-/clip\.json$", about.clip_json),
        (rf"^{HEALTH}$", about.health),
        (r"^/-/clip/embed\.json$", embed_classify.embed_json),
        (r"^/-/clip/classify\.json$", embed_classify.classify_json),
        (rf"^{classify.CLASSIFY}$", classify.classify_page),
        (rf"^{classify.COMPARE}$", classify.compare_page),
        (rf"^{search_api.SEARCH}$", search_page.collections_page),
        (rf"^{search_api.SEARCH}/{COLLECTION}$", search_page.search_page),
        (rf"^{search_api.SEARCH}/{COLLECTION}\.json$", search_api.search_json),
        (rf"^{search_api.THUMBNAIL}/{COLLECTION}$", search_api.thumbnail),
    ]


@hookimpl
def menu_links(datasette, actor):
    links = {"/-/clip": "CLIP embeddings", classify.CLASSIFY: "Classify an image"}
    return search_page.in_menu(datasette, actor, links)


@hookimpl
def database_actions(datasette, actor, database):
    return search_page.in_actions(datasette, actor, database)


@hookimpl
def table_actions(datasette, actor, database, table):
    return search_page.in_actions(datasette, actor, database, table)


@hookimpl
def extra_template_vars(datasette, request, view_name):
    return search_page.on_home_page(datasette, request, view_name)
