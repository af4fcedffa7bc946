"""What the endpoints and pages of this plugin answer to an exception: its status, and its JSON. Also 405 and OPTIONS.

What Datasette's own URLs answer, SQL among them, is in datasette_guard/faults.py.
"""

from __future__ import annotations

from http import HTTPStatus

from datasette.utils.asgi import Base400, Forbidden, Response

from llm_clip_onnx.errors import ClipError, ModelDirError

METHODS = ("GET", "HEAD", "POST")
WITH_SENTENCE = (ClipError, Base400, ImportError)  # their message is for the client


def status_of(error: Exception) -> int:
    """The status of a response to an exception of WITH_SENTENCE: 503 if the model cannot be opened."""
    if isinstance(error, Base400):  # each subclass has its own
        return int(error.status)
    unavailable = isinstance(error, ModelDirError | ImportError)
    return int(HTTPStatus.SERVICE_UNAVAILABLE if unavailable else HTTPStatus.BAD_REQUEST)


def failure_json(sentence: str, status: int) -> dict:
    """An error as JSON endpoints answer it."""
    return {"ok": False, "error": sentence, "status": int(status)}


def failure_of(error: Exception) -> dict:
    """An exception of WITH_SENTENCE as JSON endpoints answer it."""
    return failure_json(str(error), status_of(error))


def unknown_method(request, where: str) -> str | None:
    """The sentence for a method that no page and no endpoint takes, None for the others. `where` is one of those."""
    return (
        None if request.method in METHODS else f"{request.method} is not a method of this {where}; expected GET or POST"
    )


def options_response() -> Response:
    """The response to OPTIONS, the same to everybody. A plugin such as datasette-cors makes it allow a preflight."""
    return Response("", status=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join([*METHODS, "OPTIONS"])})


class MayNotRunSql(Forbidden):
    """A search has the field `where`, which is SQL, and the client may not run SQL in this database."""

    def __init__(self) -> None:
        super().__init__("where is SQL, which you may not run here")
