"""THE PORTER: a Datasette plugin that keeps a public Datasette on a small machine alive.

It needs no CLIP, and knows only a name of it: the token may be in the environment's CLIP_TOKEN (access.py).
Other plugins import the names in `__all__` from here, and nothing else of this package.
"""

from __future__ import annotations

from datasette import hookimpl

from . import access, memory, sentences, shutdown, sign_in, sql_limits, upstream
from .access import ensure_instance, is_1, is_private, may, may_view_table
from .config import ConfigError, config_of, limits_of, read_limits, read_object
from .cors import HEADERS as CORS_HEADERS
from .faults import translate
from .gate import changes_nothing, declare, gate_around, own_error, path_below, query_fits, runs_sql
from .idle import clock_of, start_watch
from .memory import collect_soon
from .sentences import Sentence, telling, with_sentence
from .shutdown import is_server
from .sign_in import SIGN_OUT
from .upstream import connect, hide_tables, per_datasette

__all__ = [
    "CORS_HEADERS",
    "SIGN_OUT",
    "ConfigError",
    "Sentence",
    "collect_soon",
    "connect",
    "declare",
    "ensure_instance",
    "hide_tables",
    "is_1",
    "is_private",
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
    "telling",
    "with_sentence",
]

if is_server():
    shutdown.end_with_0()
    memory.collect_apart()
    sentences.print_no_tracebacks()
upstream.take_over_scale_to_zero(start_watch)
upstream.exempt_from_origin_check(changes_nothing)


@hookimpl
def startup(datasette):
    config_of(datasette)
    clock_of(datasette)  # begins to idle
    upstream.check_at_start(datasette)
    upstream.wrap_runs(telling)
    return access.refuse_to_be_public(datasette)


@hookimpl(trylast=True)  # outermost
def asgi_wrapper(datasette):
    return gate_around(datasette)


@hookimpl
def skip_csrf(datasette, scope):  # Datasette 0.65's; 1.0 has no such hook
    return changes_nothing(datasette, scope)


@hookimpl
def actor_from_request(datasette, request):
    return access.actor_of(datasette, request.headers.get("authorization")) or sign_in.actor_of(
        datasette, request.cookies
    )


@hookimpl
def register_routes():
    return [(rf"^{sign_in.SIGN_IN}$", sign_in.sign_in), (rf"^{sign_in.SIGN_OUT}$", sign_in.sign_out)]


@hookimpl
def forbidden(datasette, request):
    return sign_in.forbidden_page(datasette, request)


@hookimpl
def menu_links(datasette, actor):
    return sign_in.menu(datasette, actor)


@hookimpl(trylast=True)  # Datasette 0.65 takes the last opinion
def permission_allowed(datasette, actor):
    return access.permission(datasette, actor)


@hookimpl
def permission_resources_sql(datasette, actor):  # Datasette 1.0's
    return access.allowed_resources(datasette, actor)


@hookimpl(tryfirst=True)
def handle_exception(datasette, request, exception):
    known = translate(exception, limits_of(datasette), clock_of(datasette).counted_in_flight)
    if response := own_error(datasette, request, known):
        return response
    return None if known is exception else upstream.respond_to(datasette, request, known)


@hookimpl
def prepare_connection(conn, datasette):
    sql_limits.bound(conn, limits_of(datasette))
