"""THE DOORS: a Datasette plugin that serves the model in SQL, JSON and pages. It only wires."""

from __future__ import annotations

import sys

from .opening import text_opening, wait_for_opening

if sys.argv[1:2] == ["serve"]:
    text_opening()  # before the rest of Datasette, and of this, is even imported

import click
from datasette import hookimpl

from . import (
    collecting,
    endpoints,
    leaving,
    pages,
    permissions,
    search_pages,
    search_views,
    searching,
    sql_functions,
    sql_limits,
    tokens,
    views,
)
from .bad_requests import as_bad_request
from .config import config_of
from .forgery import only_reads, unasked
from .gate import HEALTH, gate
from .sleeping import clock_of, fence_in

COLLECTION = "(?P<database>[^/.]+)/(?P<collection>[^/.]+)"  # each tilde-encoded, as in Datasette's own URLs

if sys.argv[1:2] == ["serve"]:
    leaving.end_with_0()
    collecting.collect_apart()
fence_in()


@hookimpl
def startup(datasette):
    config_of(datasette)
    clock_of(datasette)
    text_opening()
    command = click.get_current_context(silent=True)
    if command and command.command.name == "serve":  # which `datasette photos.db` is too
        leaving.end_with_0()
        collecting.collect_apart()
    return permissions.refuse_to_be_public(datasette)


@hookimpl(trylast=True)  # outermost: datasette-scale-to-zero is to see only what counts
def asgi_wrapper(datasette):
    base_url = datasette.setting("base_url")
    waiting, unasking, outermost = wait_for_opening(base_url), unasked(base_url), gate(datasette)
    return lambda app: outermost(waiting(unasking(app)))


@hookimpl
def skip_csrf(datasette, scope):  # Datasette 0.65's; these only read, so there is nothing to forge
    return only_reads(scope, datasette.setting("base_url"))


@hookimpl
def actor_from_request(request):
    return tokens.actor_of(request.headers.get("authorization"))


@hookimpl(trylast=True)  # the last opinion is the one that Datasette 0.65 takes
def permission_allowed(actor):
    return tokens.permission(actor)


@hookimpl
def permission_resources_sql(actor):  # Datasette 1.0's
    return permissions.resources_left(actor)


@hookimpl(tryfirst=True)
def handle_exception(datasette, request, exception):
    from datasette.handle_exception import handle_exception as answer_exception  # here: it loads all plugins

    known = as_bad_request(exception, config_of(datasette).limits, clock_of(datasette).counted_in_flight)
    return None if known is exception else answer_exception(datasette, request, known)


@hookimpl(trylast=True)  # after datasette-llm-embed, whose functions ours replace
def prepare_connection(conn, database, datasette):
    config = config_of(datasette)
    sql_limits.bound(conn, config.limits)
    sql_functions.register(conn, config)
    searching.register(conn, datasette, database)


@hookimpl
def register_routes():
    return [
        (r"^/-/clip$", views.clip_page),
        (r"^/-/clip\.json$", views.clip_json),
        (rf"^{HEALTH}$", views.health),
        (r"^/-/clip/embed\.json$", endpoints.embed_json),
        (r"^/-/clip/classify\.json$", endpoints.classify_json),
        (rf"^{pages.CLASSIFY}$", pages.classify_page),
        (rf"^{pages.COMPARE}$", pages.compare_page),
        (rf"^{search_views.SEARCH}$", search_pages.collections_page),
        (rf"^{search_views.SEARCH}/{COLLECTION}$", search_pages.search_page),
        (rf"^{search_views.SEARCH}/{COLLECTION}\.json$", search_views.search_json),
        (rf"^{search_views.THUMBNAIL}/{COLLECTION}$", search_views.thumbnail),
    ]


@hookimpl
def menu_links(datasette, actor):
    links = {"/-/clip": "CLIP embeddings", pages.CLASSIFY: "Classify an image"}
    return search_pages.in_menu(datasette, actor, links)


@hookimpl
def database_actions(datasette, actor, database):
    return search_pages.in_actions(datasette, actor, database)


@hookimpl
def table_actions(datasette, actor, database, table):
    return search_pages.in_actions(datasette, actor, database, table)


@hookimpl
def extra_template_vars(datasette, request, view_name):
    return search_pages.on_home_page(datasette, request, view_name)
