"""THE PORTER: a Datasette plugin that keeps a public Datasette on a small machine alive. It knows no CLIP.

Other plugins import the names in `__all__` from here, and nothing else of this package.
"""

from __future__ import annotations

from datasette import hookimpl

from . import access, memory, shutdown, sql_limits
from .access import ensure_instance, is_1, may, may_view_table
from .config import ConfigError, config_of, limits_of, read_limits, read_object
from .cors import HEADERS as CORS_HEADERS
from .faults import as_bad_request
from .gate import declare, gate, path_below, query_fits, runs_sql
from .idle import clock_of, fence_in
from .memory import collect_soon
from .shutdown import is_server
from .upstream import connect, per_datasette

__all__ = [
    "CORS_HEADERS",
    "ConfigError",
    "collect_soon",
    "connect",
    "declare",
    "ensure_instance",
    "is_1",
    "is_server",
    "limits_of",
    "may",
    "may_view_table",
    "path_below",
    "per_datasette",
    "query_fits",
    "read_limits",
    "read_object",
    "runs_sql",
]

if is_server():
    shutdown.end_with_0()
    memory.collect_apart()
fence_in()


@hookimpl
def startup(datasette):
    config_of(datasette)
    clock_of(datasette)
    return access.refuse_to_be_public(datasette)


@hookimpl(trylast=True)  # outermost, so that datasette-scale-to-zero sees only what counts
def asgi_wrapper(datasette):
    return gate(datasette)


@hookimpl
def actor_from_request(request):
    return access.actor_of(request.headers.get("authorization"))


@hookimpl(trylast=True)  # Datasette 0.65 takes the last opinion
def permission_allowed(actor):
    return access.permission(actor)


@hookimpl
def permission_resources_sql(actor):  # Datasette 1.0's
    return access.resources_left(actor)


@hookimpl(tryfirst=True)
def handle_exception(datasette, request, exception):
    from datasette.handle_exception import handle_exception as answer_exception  # here: it loads all plugins

    known = as_bad_request(exception, config_of(datasette).limits, clock_of(datasette).counted_in_flight)
    return None if known is exception else answer_exception(datasette, request, known)


@hookimpl
def prepare_connection(conn, datasette):
    sql_limits.bound(conn, config_of(datasette).limits)
