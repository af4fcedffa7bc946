"""THE DOORS: a Datasette plugin that serves the model in SQL, JSON and pages. It only wires."""

from __future__ import annotations

import sys

import click
from datasette import hookimpl

from llm_clip_onnx.errors import ConfigError

from . import sql_functions, views
from .config import config_of
from .opening import text_opening, wait_for_opening

if sys.argv[1:2] == ["serve"]:
    text_opening()  # before the rest of Datasette is even imported


@hookimpl
def startup(datasette):
    try:
        config_of(datasette)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    text_opening()


@hookimpl
def asgi_wrapper(datasette):
    return wait_for_opening(datasette.setting("base_url"))


@hookimpl(trylast=True)  # after datasette-llm-embed, whose functions ours replace
def prepare_connection(conn, datasette):
    sql_functions.register(conn, config_of(datasette))


@hookimpl
def register_routes():
    return [
        (r"^/-/clip$", views.clip_page),
        (r"^/-/clip\.json$", views.clip_json),
    ]


@hookimpl
def menu_links(datasette):
    return [{"href": datasette.urls.path("/-/clip"), "label": "CLIP embeddings"}]
