"""THE PORTER: a Datasette plugin that keeps a public Datasette on a small machine alive. It knows no CLIP."""

from __future__ import annotations

from datasette import hookimpl

from . import access, memory, shutdown, sql_limits
from .config import Limits, config_of
from .faults import as_bad_request
from .gate import declare, gate, refuse_size
from .idle import clock_of, fence_in
from .shutdown import is_server

__all__ = ["declare", "is_server", "limits_of", "query_fits"]

if is_server():
    shutdown.end_with_0()
    memory.collect_apart()
fence_in()


def limits_of(datasette) -> Limits:
    """The limits of this Datasette."""
    return config_of(datasette).limits


def query_fits(datasette, query: str) -> bool:
    """True if the gate lets a request with this query string pass."""
    return refuse_size(limits_of(datasette), query.encode(), 0) is None


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
