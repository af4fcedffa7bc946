"""Answers known faults of Datasette with status 400 and a sentence: wrong requests to which it responds with 500.

FAULTS lists them. Every other exception, of Datasette, of this package or of another plugin, stays a 500 with its
traceback in the log, and so does an error of SQLite from a damaged file or disk.
"""

from __future__ import annotations

import json
import re
import sys
import traceback
from typing import NamedTuple

from datasette.utils import ValueAsBooleanError
from datasette.utils.asgi import BadRequest, Base400
from datasette.utils.sqlite import sqlite3

from . import sentences
from .config import Limits
from .quoting import shortened
from .sentences import Sentence
from .sql_limits import ResultTooLarge
from .upstream import class_of


class Fault(NamedTuple):
    """An exception that a request can raise in Datasette, and the sentence to answer it with, by status 400."""

    exceptions: type[BaseException] | tuple[type[BaseException], ...]
    place: str  # Datasette's innermost function in the traceback
    sentence: str  # {error}: the exception's own


ROUTER = "datasette.app:route_path"
DATASETTE_PACKAGES = {"datasette", "asgi_csrf"}
TRANSPARENT_PACKAGES = sys.stdlib_module_names | {"asyncinject"}  # ignored between two functions of Datasette
BAD_VALUE = (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeEncodeError)
SERVER_ERROR_CODES = {  # SQLite's primary result codes of a damaged file, and of a disk that cannot be read or written
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_FULL,
}
OUT_OF_MEMORY = (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_IOERR_NOMEM)
NOT_A_NUMBER = "a field is no whole number: {error}"
NOT_BOOLEAN = "a field is neither on nor off"
BAD_FORM = "the body is a form that is not UTF-8"
BAD_JSON = (json.JSONDecodeError, KeyError, TypeError, RecursionError)
FAULTS = (  # seen in Datasette 0.65.5 and 1.0a41 while fuzzing
    Fault(BAD_VALUE, "datasette.database:sql_operation_in_thread", "{error}"),
    Fault(
        BAD_JSON, "datasette.filters:inner", '_through is no JSON such as {{"table": "a", "column": "b", "value": "1"}}'
    ),
    Fault(BAD_JSON, "datasette.filters:split_value", "a filter that takes several values has no JSON list: {error}"),
    Fault(BAD_JSON, "datasette.facets:load_facet_configs", "a facet is neither a column nor JSON: {error}"),
    Fault(BAD_JSON, "datasette.facets:facet_results", 'a facet is neither a column nor JSON such as {{"simple": "a"}}'),
    Fault(TypeError, "datasette.utils:actor_matches_allow", "actor is no JSON object"),
    Fault(ValueAsBooleanError, "datasette.utils:value_as_boolean", NOT_BOOLEAN),
    Fault(ValueAsBooleanError, "datasette.views.table:table_view_traced", NOT_BOOLEAN),  # 1.0, which raises it again
    Fault(ValueAsBooleanError, "datasette.views.database:get", NOT_BOOLEAN),  # 1.0, as above
    Fault(IndexError, "datasette.utils:path_from_row_pks", "this page cannot show the BLOBs of a view; its .json can"),
    Fault(UnicodeDecodeError, "asgi_csrf:cookies_from_scope", "the Cookie header is not UTF-8"),  # 0.65
    Fault(IndexError, "asgi_csrf:app_wrapped_with_csrf", "the body is a form without a boundary"),  # 0.65
    # 0.65: asgi-csrf 0.11 reads forms by a class that python-multipart 0.0.34 calls otherwise.
    Fault(
        TypeError, "asgi_csrf:_parse_multipart_form_data", "a form with files is not taken here; send it url-encoded"
    ),
    Fault(UnicodeDecodeError, "datasette.app:__call__", "the path has bytes that are not ASCII"),
    Fault(UnicodeDecodeError, "datasette.utils.asgi:post_vars", BAD_FORM),
    Fault(UnicodeDecodeError, "datasette.views.database:data", BAD_FORM),  # 0.65
    Fault(UnicodeDecodeError, "datasette.views.database:post", BAD_FORM),  # 1.0
    Fault(ValueError, "datasette.views.database:data", NOT_A_NUMBER),  # 0.65
    Fault(ValueError, "datasette.views.database:get", NOT_A_NUMBER),  # 1.0
    Fault(ValueError, "datasette.views.table:_data_traced", NOT_A_NUMBER),  # 0.65
    Fault(ValueError, "datasette.views.table:table_view_data", NOT_A_NUMBER),  # 1.0
    Fault(AssertionError, "datasette.views.table:post", "{error}"),  # 0.65: You may only POST to a canned query
    Fault(AssertionError, "datasette.views.table:table_view_traced", "{error}"),  # 1.0: Invalid format: x
    Fault(AssertionError, "datasette.views.database:get", "{error}"),  # 1.0, as above
    Fault(AttributeError, ROUTER, "a canned query that only reads takes no POST"),  # 0.65
    Fault(KeyError, "datasette.app:resolve_table", "a query takes no POST here"),  # 1.0
    Fault(KeyError, "datasette.views.base:as_csv", "there is no sql to answer as CSV"),  # 0.65
)


def without_input(exception: Exception) -> str:
    """The sentence of an exception, cut, because it may quote the request. What json and our SQL functions say is not.

    json quotes nothing, and the functions cut what they quote.
    """
    is_bounded = isinstance(exception, json.JSONDecodeError) or isinstance(next(iter(exception.args), None), Sentence)
    return str(exception) if is_bounded else shortened(exception)


class OutOfMemory(Base400):
    """The queries that run at once need more memory than plugins.datasette-guard.limits.sqlite_bytes."""

    status = 503


def translate(exception: Exception, limits: Limits, in_flight: int) -> Exception:
    """Map an exception to the one Datasette should answer with: itself, unless it is a known fault."""
    if isinstance(exception, Base400):
        return exception
    if limits.sqlite_bytes and is_out_of_memory(exception):
        return out_of_memory(limits, in_flight)
    if isinstance(exception, class_of("datasette.database.QueryInterrupted")):
        return BadRequest("the query took longer than Datasette's setting sql_time_limit_ms allows")
    if isinstance(exception, ResultTooLarge):
        return BadRequest(str(exception))
    place = place_of(exception)
    if isinstance(exception, class_of("datasette.views.base.DatasetteError")) and exception.status == 500 and place:
        exception.status = 400  # 500 is the default, also for sentences such as "Cannot sort table by nope"
    for fault in FAULTS:
        if fault.place == place and isinstance(exception, fault.exceptions) and not is_server_error(exception):
            return BadRequest(fault.sentence.format(error=without_input(exception)))
    return exception


def is_out_of_memory(exception: Exception) -> bool:
    """True for SQLite's want of memory, also where a file of its own in memory needs it."""
    return isinstance(exception, MemoryError) or getattr(exception, "sqlite_errorcode", 0) in OUT_OF_MEMORY


def is_server_error(exception: Exception) -> bool:
    """True for SQLite's errors that no request causes, by the lower 8 bits of their result code."""
    return getattr(exception, "sqlite_errorcode", 0) & 0xFF in SERVER_ERROR_CODES


def out_of_memory(limits: Limits, in_flight: int) -> Exception:
    needed = f"than the {limits.sqlite_bytes} bytes of memory (plugins.datasette-guard.limits.sqlite_bytes)"
    if in_flight > 1:
        return OutOfMemory(f"the queries that run now need more {needed}")
    return BadRequest(f"the query needs more {needed}")


def place_of(exception: Exception) -> str:
    """The function of Datasette that raised an exception, such as "datasette.filters:inner".

    "" if another package's view answers the request, or if another package raised it or called what raised it.
    """
    places: list[str] = []
    for frame, _ in traceback.walk_tb(exception.__traceback__):
        module = frame.f_globals.get("__name__", "")
        place = f"{module}:{frame.f_code.co_name}"
        if place == ROUTER:
            if not getattr(frame.f_locals.get("view"), "__module__", "").startswith("datasette."):
                return ""
            places = [place]
        elif module != sentences.__name__ and module.partition(".")[0] not in TRANSPARENT_PACKAGES:
            places.append(place)
    inside = places if ROUTER in places else places[-1:]  # outside the router other packages only pass requests on
    return inside[-1] if inside and all(re.split("[.:]", place)[0] in DATASETTE_PACKAGES for place in inside) else ""
