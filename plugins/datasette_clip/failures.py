"""What the endpoints and pages of this plugin answer to an exception: its status, and its JSON. Also 405 and OPTIONS.

What Datasette's own URLs answer, SQL among them, is in datasette_guard/faults.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http import HTTPStatus

from datasette.utils.asgi import Base400, Forbidden, Response

from datasette_guard import CORS_HEADERS, is_private, may
from llm_clip_onnx.errors import ClipError, ModelDirError

METHODS = ("GET", "HEAD", "POST")
PRIVATE = "this instance is private; expected a token that it knows (Authorization: Bearer ...)"
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


def unknown_method(request, where: str, methods: Sequence[str] = METHODS) -> str | None:
    """The sentence for a method that a page or an endpoint does not take, else None. `where` is one of those words."""
    expected = " or ".join(method for method in methods if method != "HEAD")
    return (
        None if request.method in methods else f"{request.method} is not a method of this {where}; expected {expected}"
    )


async def refused(
    datasette, request, methods: Sequence[str] = METHODS, form: Callable[[str, int], dict] = failure_json
) -> Response | None:
    """The response to OPTIONS, to a client that may not see this instance, or to another method; None for the others.

    form: makes the JSON of a sentence and a status.
    """
    if request.method == "OPTIONS":
        return options_response(methods)
    headers = dict(CORS_HEADERS) if datasette.cors else {}
    if not await may(datasette, request.actor, "view-instance"):
        status, sentence = HTTPStatus.FORBIDDEN, "you may not see this instance"
        if is_private(datasette) and not request.actor:
            status, sentence = HTTPStatus.UNAUTHORIZED, PRIVATE
            headers["WWW-Authenticate"] = "Bearer"
    elif sentence := unknown_method(request, "endpoint", methods) or "":
        status = HTTPStatus.METHOD_NOT_ALLOWED
        headers["Allow"] = ", ".join((*methods, "OPTIONS"))
    else:
        return None
    return Response.json(form(sentence, status), status=int(status), headers=headers)


def options_response(methods: Sequence[str] = METHODS) -> Response:
    """The response to OPTIONS, the same to everybody. A plugin such as datasette-cors makes it allow a preflight."""
    return Response("", status=HTTPStatus.NO_CONTENT, headers={"Allow": ", ".join([*methods, "OPTIONS"])})


class MayNotRunSql(Forbidden):
    """A search has the field `where`, which is SQL, and the client may not run SQL in this database."""

    def __init__(self) -> None:
        super().__init__("where is SQL, which you may not run here")
