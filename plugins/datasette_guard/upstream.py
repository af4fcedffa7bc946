"""Everything of Datasette, uvicorn and datasette-scale-to-zero that is private or patched, and nothing else.

PRIVATE says of each what it is, in which version it was seen and what a server without it lacks. `check` warns about
what is gone; the functions below then do without it.
"""

from __future__ import annotations

import logging
import signal
import sqlite3
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import wraps
from importlib import import_module
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import datasette_scale_to_zero

T = TypeVar("T")
log = logging.getLogger("datasette_guard")
LOGGED_CHARACTERS = 500  # of a URL
URL_BYTES = 300_000  # of a URL and headers, so that an image too large for a URL is refused with a sentence


class Private(NamedTuple):
    """A name that its project may change without notice."""

    seen_in: str
    lacks: str  # without it, completes "this server has no ..."


PRIVATE = {
    "Datasette._metadata_local": Private(
        "Datasette 0.65.5 and 1.0a41", "check for an allow_sql that Datasette 1.0 ignores"
    ),
    "Database.connect": Private("Datasette 0.65.5 and 1.0a41", "connections for the SQL functions of other plugins"),
    "Database.execute_fn": Private(
        "Datasette 0.65.5 and, as _execute_fn, 1.0a41", "sentences of its SQL functions in its answers, only in its log"
    ),
    "datasette.handle_exception.handle_exception": Private(
        "Datasette 0.65.5 and 1.0a41", "statuses and sentences for requests that Datasette fails on"
    ),
    "datasette.handle_exception.rich": Private(
        "Datasette 0.65.5 and 1.0a41", "way to keep rich from printing the local variables of requests"
    ),
    "datasette.views.base.DatasetteError": Private(
        "Datasette 0.65.5 and 1.0a41", "status 400 for sentences such as: Cannot sort table by nope"
    ),
    "datasette.database.QueryInterrupted": Private(
        "Datasette 0.65.5 and 1.0a41", "sentence for queries that take too long"
    ),
    "datasette.csrf.CrossOriginProtectionMiddleware": Private(
        "Datasette 1.0a41", "POST from pages of other origins to paths that change nothing"
    ),
    "datasette_scale_to_zero.start_that_loop": Private(
        "datasette-scale-to-zero 0.3.2", "wait for requests in flight before datasette-scale-to-zero ends it"
    ),
    "datasette_scale_to_zero.get_config": Private(
        "datasette-scale-to-zero 0.3.2", "support for an empty duration, nor a wait for requests in flight"
    ),
    "datasette_scale_to_zero.do_exit": Private(
        "datasette-scale-to-zero 0.3.2", "request to datasette-scale-to-zero's shutdown_url"
    ),
    "uvicorn.Server.handle_exit": Private("uvicorn 0.54.0", "bound on the seconds that ending takes"),
    "uvicorn.Config.h11_max_incomplete_event_size": Private(
        "uvicorn 0.54.0", "sentence for URLs and headers of more than 64 KiB"
    ),
    "uvicorn.access": Private("uvicorn 0.54.0", "bound on the length of URLs in the access log"),
}
RUNNERS = ("execute_fn", "execute_write_fn")  # of Database: methods that run a function with a connection
ORIGIN_CHECK = "datasette.csrf.CrossOriginProtectionMiddleware"
ORIGIN_HEADERS = {b"origin", b"sec-fetch-site"}
warned: set[str] = set()


def check(name: str, is_there: bool) -> bool:
    """The value of `is_there`. If it is False, one warning is logged per process."""
    if not is_there and name not in warned:
        warned.add(name)
        private = PRIVATE[name]
        log.warning("%s is not what it was in %s: this server has no %s", name, private.seen_in, private.lacks)
    return is_there


def check_at_start(datasette) -> None:
    """Warn about each private name of Datasette and datasette-scale-to-zero that is gone, and turn rich off.

    Where rich is installed, Datasette prints all local variables of a request that fails, and answers an unknown path
    with 500, because rich finds no exception to print.
    """
    # here: the modules load all plugins, this one unfinished among them
    from datasette import __version__, database, handle_exception

    check("Datasette._metadata_local", hasattr(datasette, "_metadata_local"))
    check("Database.connect", hasattr(database.Database, "connect"))
    check("Database.execute_fn", hasattr(database.Database, "execute_fn"))
    check("datasette.handle_exception.handle_exception", hasattr(handle_exception, "handle_exception"))
    for name in ("datasette.views.base.DatasetteError", "datasette.database.QueryInterrupted"):
        check(name, class_of(name) != ())
    check(ORIGIN_CHECK, __version__.startswith("0.") or class_of(ORIGIN_CHECK) != ())
    if check("datasette.handle_exception.rich", hasattr(handle_exception, "rich")):
        handle_exception.rich = None
    for name in ("start_that_loop", "get_config", "do_exit"):
        check(f"datasette_scale_to_zero.{name}", hasattr(datasette_scale_to_zero, name))


# Datasette


def per_datasette(make: Callable[[Any], T]) -> Callable[[Any], T]:
    """A function of a Datasette that is called once for each, and gives that result from then on.

    Nothing is put on the Datasette object. The result must not refer to the Datasette, because neither would then ever
    be freed.
    """
    results: WeakKeyDictionary[Any, T] = WeakKeyDictionary()

    @wraps(make)
    def of_datasette(datasette) -> T:
        if datasette not in results:
            results[datasette] = make(datasette)
        return results[datasette]

    return of_datasette


def connect(datasette, database: str) -> sqlite3.Connection:
    """A new read-only connection to a database, without the functions that plugins add. The caller closes it.

    Raises KeyError for a database that Datasette does not have, and RuntimeError where Database.connect is gone.
    """
    connect_to = getattr(datasette.get_database(database), "connect", None)
    if connect_to is None:
        raise RuntimeError("this version of Datasette opens no connections for plugins: Database.connect is gone")
    return connect_to()


def wrap_runs(wrap: Callable[[Callable], Callable]) -> None:
    """From now on Datasette runs `wrap(function)` in place of every function that reads or writes a database.

    In Datasette 1.0 its own queries go through _execute_fn, and so does execute_fn.
    """
    from datasette.database import Database

    for public in RUNNERS:
        name = f"_{public}" if hasattr(Database, f"_{public}") else public
        run = getattr(Database, name, None)
        if run and not hasattr(run, "of_guard"):
            setattr(Database, name, running(run, wrap))


def hide_tables(is_hidden: Callable[[Any, str, str], bool]) -> None:
    """From now on Datasette hides the tables for which `is_hidden(datasette, database, table)` is True, as it hides
    those of full-text search: they are in no list, and their pages stay."""
    from datasette.database import Database

    names_hidden = Database.hidden_table_names
    if hasattr(names_hidden, "of_guard"):
        return

    @wraps(names_hidden)
    async def hidden_table_names(self):
        names = await names_hidden(self)
        others = [name for name in await self.table_names() if name not in names]
        return [*names, *(name for name in others if is_hidden(self.ds, self.name, name))]

    hidden_table_names.of_guard = True  # type: ignore[attr-defined]
    Database.hidden_table_names = hidden_table_names  # type: ignore[method-assign]


def running(run: Callable, wrap: Callable[[Callable], Callable]) -> Callable:
    """A method of Database whose first argument is wrapped. It adds no frame to the traceback of a coroutine."""

    @wraps(run)
    def run_wrapped(self, function, *arguments, **named):
        return run(self, wrap(function), *arguments, **named)

    run_wrapped.of_guard = True  # type: ignore[attr-defined]
    return run_wrapped


def local_metadata(datasette) -> dict:
    """The metadata that the server was started with."""
    return getattr(datasette, "_metadata_local", None) or {}


def class_of(name: str) -> Any:
    """Datasette's class of this name, or (), of which nothing is an instance."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute, ())
    except ImportError:
        return ()


def respond_to(datasette, request, exception: Exception) -> Any:
    """Datasette's own response to an exception, or None, which leaves the exception to Datasette."""
    from datasette import handle_exception

    respond = getattr(handle_exception, "handle_exception", None)
    return respond and respond(datasette, request, exception)


def exempt_from_origin_check(is_exempt: Callable[[Any, dict], bool]) -> None:
    """From now on Datasette 1.0 lets pages of other origins POST where `is_exempt(datasette, scope)` is True.

    Only its own check does not see the headers that say where a request comes from. All other code does.
    """
    origin_check = class_of(ORIGIN_CHECK)
    if origin_check == ():
        return
    respond = origin_check.__call__

    async def call(self, scope, receive, send):
        if scope["type"] != "http" or not is_exempt(self.datasette, scope):
            return await respond(self, scope, receive, send)

        async def app(checked, receive, send):
            await self.app(checked | {"headers": scope["headers"]}, receive, send)

        unmarked = [(name, value) for name, value in scope["headers"] if name.lower() not in ORIGIN_HEADERS]
        await respond(origin_check(app, self.datasette), scope | {"headers": unmarked}, receive, send)

    origin_check.__call__ = call


# datasette-scale-to-zero: its loop ends the process by sys.exit in the midst of requests, and takes each request, that
# of a health check too, for a sign of life. It crashes on a duration of "", which is what an empty variable gives.


def take_over_scale_to_zero(watch: Callable[[Any], None]) -> None:
    """From now on `watch` is called with a Datasette that may idle, in place of datasette-scale-to-zero's own loop."""
    plugin = datasette_scale_to_zero
    if hasattr(plugin, "get_config"):
        plugin.get_config = without_empty_durations(plugin.get_config)
        if hasattr(plugin, "start_that_loop"):
            plugin.start_that_loop = watch


def without_empty_durations(read_config: Callable[[Any], dict]) -> Callable[[Any], dict]:
    """datasette-scale-to-zero's reader of its configuration, for which an empty duration is now none."""

    def read(datasette) -> dict:
        settings = datasette.plugin_config("datasette-scale-to-zero") or {}
        if isinstance(settings, dict):
            durations = ("duration", "max_age", "max-age")
            settings = {name: value for name, value in settings.items() if value != "" or name not in durations}
        return read_config(SimpleNamespace(plugin_config=lambda name: settings))

    return read


def idle_durations(datasette) -> tuple[int | None, int | None]:
    """Seconds without a request, and seconds of life, after which datasette-scale-to-zero would end the server."""
    config = datasette_scale_to_zero.get_config(datasette)
    return config["duration"], config["max_age"]


def tell_shutdown_url(datasette) -> None:
    """Send datasette-scale-to-zero's request to shutdown_url, if it is configured."""
    with suppress(SystemExit):  # by which it ends the process; here shutdown.py does
        getattr(datasette_scale_to_zero, "do_exit", lambda datasette: None)(datasette)


# uvicorn


def uvicorn_handlers(signals: Iterable[signal.Signals]) -> dict[int, Any]:
    """Signal -> the method of the running uvicorn that begins its drain. Empty where there is none."""
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in signals}
    running = {
        number: handler
        for number, handler in handlers.items()
        if getattr(handler, "__module__", "").startswith("uvicorn.") and hasattr(handler, "__self__")
    }
    check("uvicorn.Server.handle_exit", bool(running) or "uvicorn" not in sys.modules)
    return running


def accept_long_urls(handlers: dict[int, Any]) -> None:
    """From now on uvicorn reads URLs and headers of URL_BYTES. By itself it answers 65,537 with a bare 400."""
    name = "h11_max_incomplete_event_size"
    for handler in handlers.values():
        config = getattr(handler.__self__, "config", None)
        if check(f"uvicorn.Config.{name}", hasattr(config, name)):
            setattr(config, name, URL_BYTES)


def shorten_access_log() -> None:
    """From now on uvicorn's access log cuts URLs after LOGGED_CHARACTERS: some carry a picture."""
    logging.getLogger("uvicorn.access").addFilter(shorten_url)


def shorten_url(record: logging.LogRecord) -> bool:
    """Cut the URL of a log record. Returns True, so that the record is logged.

    A record's arguments are client, method, URL, HTTP version and status.
    """
    arguments = record.args
    is_there = isinstance(arguments, tuple) and len(arguments) == 5
    if check("uvicorn.access", is_there) and isinstance(arguments, tuple):
        url = str(arguments[2])
        if len(url) > LOGGED_CHARACTERS:
            record.args = (*arguments[:2], f"{url[:LOGGED_CHARACTERS]}...", *arguments[3:])
    return True
