"""Tells if a JSON document is an error that an API answered in place of rows, and what the error says."""

from __future__ import annotations

import re
from typing import Any

ERROR = re.compile(
    r"(api|server|http|validation|(non)?field|global|internal|request)?err(or)?s?"
    r"(msg|message|code|description|details?|text|type|string|info|list|id|summary|title|name|status|reason|number)?"
    r"|exceptions?|faults?(code|string)?|traceback"
)
SAYS = ("message", "messages", "msg", "detail", "details", "reason")  # names of what an error says
SAYS_WITH_STATUS = ("title", "description", "statustext", "text", "body")  # the same, beside a status of HTTP
STATUS = ("status", "statuscode", "httpstatus", "httpcode", "cod")
BESIDE = {  # other names in an answer that is no row
    *STATUS,
    *("code", "ok", "success", "type", "timestamp", "requestid", "traceid", "correlationid", "instance", "path"),
    *("documentationurl", "docs", "docurl", "moreinfo", "help", "hint", "helplink", "support", "jsonrpc", "result"),
    *("response", "retryafter", "level", "severity", "service", "method"),
}
FAILED = ("error", "fail", "failed", "failure", "false")
WRAPPED = 5  # objects and lists around the words of an error, at most


def error_in(document: Any) -> Any:
    """What an error says, in an object or in all objects of a list; None if it is no error.

    A list of rows may have columns with the names of errors, so there all names must be those of errors.
    """
    if isinstance(document, dict) and is_error(document):
        return words_of(document)
    if isinstance(document, list) and document and all(isinstance(item, dict) for item in document):
        return words_of(document[0]) if all(map(is_error_alone, document)) else None
    return None


def is_error(document: dict) -> bool:
    """True if an object by itself is an error, by its names, by `"ok": false`, or by a status from 400 on."""
    values = filled(document)
    if document.get("ok") is False or any(map(ERROR.fullmatch, values)):
        return True
    first = letters(next(iter(document), ""))
    if has_failed(document) and is_of_errors(first):
        return True
    names = (*SAYS, *SAYS_WITH_STATUS) if has_status(values) else SAYS
    if not any(name in values for name in names):
        return False
    return first in SAYS or has_status(values) or all(map(is_of_errors, values))


def is_error_alone(document: dict) -> bool:
    """True if an object has a name of errors, says that something failed, or begins with what an error says.

    It has no other names than those.
    """
    values = filled(document)
    has_error = any(map(ERROR.fullmatch, values)) or has_failed(document) or next(iter(values), "") in SAYS
    return has_error and all(map(is_of_errors, values))


def letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def filled(document: dict) -> dict[str, Any]:
    """The values of an object that are not null, false or empty, by their names in small letters alone."""
    return {letters(name): value for name, value in document.items() if value not in (None, False, "", [], {})}


def is_of_errors(name: str) -> bool:
    return bool(ERROR.fullmatch(name)) or name in SAYS or name in BESIDE


def has_status(values: dict[str, Any]) -> bool:
    """True if a name of a status has 400 to 599, also in words: "404 Not Found"."""
    return any(re.match(r"[45]\d\d\b", str(values.get(name))[:10]) for name in STATUS)


def has_failed(document: dict) -> bool:
    """True if an object says that something has failed: `"success": false`, `"status": "error"`..."""
    names = ("success", "status", "response", "result")
    return any(str(value)[:10].lower() in FAILED for name, value in document.items() if name.lower() in names)


def words_of(error: Any) -> Any:
    """The words of an error, of the first one in a list, in whatever it is wrapped."""
    for _ in range(WRAPPED):
        if isinstance(error, list) and error:
            error = error[0]
        elif isinstance(error, dict) and (said := said_by(error)):
            error = said[0]
    return error


def said_by(error: dict) -> list:
    """What an error says, the best first: Datasette says it in "error", others in "message" rather."""
    values = filled(error)
    said = [values[name] for name in (*SAYS, *SAYS_WITH_STATUS) if name in values]
    errors = [value for name, value in values.items() if ERROR.fullmatch(name) and value is not True]
    errors.sort(key=lambda value: isinstance(value, int | float))  # codes say less than words
    return [*errors, *said] if "ok" in error else [*said, *errors]
