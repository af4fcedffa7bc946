"""Answers with 400 and a sentence what Datasette 0.65 answers with 500 though it is the request that is wrong.

`?_sort=nope`, `?id__gt=99999999999999999999`, `?_through={`, a POST to a table, a query that runs out of SQLite's
memory: of a server that only reads, whatever fails in Datasette itself is asked for by the request. What fails in
these two packages is a fault of theirs, and stays 500.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from datasette.utils.asgi import BadRequest, Base400

from .config import Limits

OURS = {str(file.parent) for file in Path(__file__).parent.parent.rglob("*.py")}
WRAPPERS = {"cross_origin.py", "gate.py", "model.py", "answer.py"}  # every request passes through these


class OutOfMemory(Base400):
    """The queries that run at once need more memory than plugins.datasette-guard.limits.sqlite_bytes."""

    status = 503


def as_bad_request(exception: Exception, limits: Limits, in_flight: int = 1) -> Exception:
    """The exception to answer with: this one, where it says its status itself or is a fault of ours."""
    from datasette.database import QueryInterrupted  # here: these load all plugins, this one unfinished among them
    from datasette.views.base import DatasetteError

    if isinstance(exception, DatasetteError) and exception.status == 500:
        exception.status = 400  # the default, for sentences such as "Cannot sort table by nope"
    if isinstance(exception, DatasetteError | Base400) or is_ours(exception):
        return exception
    if isinstance(exception, MemoryError):
        needed = f"than the {limits.sqlite_bytes} bytes of memory (plugins.datasette-guard.limits.sqlite_bytes)"
        if in_flight > 1:
            return OutOfMemory(f"the queries that run now need more {needed}")
        return BadRequest(f"the query needs more {needed}")
    if isinstance(exception, QueryInterrupted):
        return BadRequest("the query took longer than Datasette's setting sql_time_limit_ms allows")
    return BadRequest(f"Datasette cannot answer this request: {type(exception).__name__}: {exception}")


def is_ours(exception: Exception) -> bool:
    """Whether the exception passed through code of these packages, beyond the wrappers around every request."""
    files = (Path(frame.filename) for frame in traceback.extract_tb(exception.__traceback__))
    return any(str(file.parent) in OURS and file.name not in WRAPPERS for file in files)
