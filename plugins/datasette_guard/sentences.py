"""Gives the client the message of an exception in an SQL function, in place of SQLite's own.

SQLite says `user-defined function raised exception` whatever the exception is.

A function keeps the sentence for its thread, and the place of the call that SQLite runs it in. Of the errors of that
thread only the one that leaves the same call gets the sentence: no other query, request or function ever does.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from functools import wraps
from types import FrameType
from typing import Any, NamedTuple

from datasette.utils.sqlite import sqlite3

SQLITES = "user-defined "  # how sqlite3's own sentences about functions and aggregates begin


class Sentence(str):
    """A sentence that bounds by itself what it quotes of the request, so that nobody need cut it."""


class Kept(NamedTuple):
    """A sentence, and the Python code that called SQLite: a frame, and the instruction that it is at."""

    sentence: str
    frame: FrameType
    instruction: int


thread = threading.local()  # .kept: the Kept of the last exception, during a call of Datasette's


def with_sentence(name: str, function: Callable, kinds: type[Exception] | tuple[type[Exception], ...]) -> Callable:
    """`function`, to be registered as an SQL function or as a method of an aggregate of this name.

    A client reads the sentences of its exceptions of these kinds, behind the name.
    """

    @wraps(function, updated=())
    def keeping(*arguments):
        try:
            return function(*arguments)
        except kinds as error:
            caller = sys._getframe(1)
            thread.kept = Kept(f"{name}: {error}", caller, caller.f_lasti)
            error.has_sentence = True  # type: ignore[attr-defined]
            raise

    return keeping


def print_no_tracebacks() -> None:
    """From now on Python prints no traceback of an exception in an SQL function whose message the client gets.

    It is a client's mistake, not a bug. Datasette has sqlite3 print the tracebacks of all of them.
    """
    print_traceback = sys.unraisablehook

    def hook(unraisable) -> None:
        if not getattr(unraisable.exc_value, "has_sentence", False):
            print_traceback(unraisable)

    sys.unraisablehook = hook


def telling(run: Callable) -> Callable:
    """`run`, a function that calls SQLite, whose sqlite3.OperationalError says what an SQL function of ours said."""

    def tell(*arguments, **named) -> Any:
        try:
            return run(*arguments, **named)
        except sqlite3.OperationalError as error:
            if (kept := getattr(thread, "kept", None)) and comes_from(error, kept):
                error.args = (Sentence(kept.sentence),)
            raise
        finally:
            thread.__dict__.clear()

    return tell


def comes_from(error: Exception, kept: Kept) -> bool:
    """True if an error of SQLite was raised by the very call in which the sentence was kept."""
    last = error.__traceback__
    while last and last.tb_next:
        last = last.tb_next
    at = last and (last.tb_frame, last.tb_lasti)
    return at == (kept.frame, kept.instruction) and str(error).startswith(SQLITES)
