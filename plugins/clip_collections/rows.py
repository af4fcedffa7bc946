"""Makes a row, a dict of columns, of each line of CSV or object of JSON in a file whose format is known.

A row that cannot be read is the reason, with its place; all others are read. sources.py decides which column is the id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from sqlite_utils.utils import decode_base64_values, dedupe_keys

from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.images.signatures import SUFFIXES

from .csv_records import table_records
from .error_answers import error_in
from .file_format import BROKEN, FileFormat, opened

SURROGATE = re.compile("[\ud800-\udfff]")
# A first line is a row if its first cell is a number, a date or a UUID, or if any is an address or an image's file
NO_ID_NAME = re.compile(r"\s*[+-]?\d[\d.,:/\sTZ-]*|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
NO_NAME = re.compile(
    r"\s*(https?://|data:[^,]*,).*|.*[^.\s](" + "|".join(map(re.escape, sorted(SUFFIXES))) + r")\s*", re.I
)

# Names of the list of rows in the answers of APIs
ENVELOPES = {
    *("rows", "results", "result", "data", "items", "records", "features", "hits", "entries", "objects", "values"),
    *("value", "docs", "documents", "list", "content", "elements", "nodes"),
}


class RepeatedName(str):
    """The name of a column made unique, because a column before it has its `original` name."""

    original: str


class Row(NamedTuple):
    """place: "line 7" in a file of lines, else "row 7". columns: by their names, or the reason why there are none."""

    place: str
    columns: dict[str, Any] | InputError


def read_rows(file: Path, format: FileFormat) -> tuple[int, Iterator[Row], str]:
    """How many rows a file has, the rows, and a sentence if Datasette says that there are more, or "".

    Raises InputError for a file of which no row can be read, also while its rows are read, and OSError.
    """
    if format.format == "JSON":
        with opened(file, format.encoding) as text:
            document = loads(text.read())
        rows = [Row(f"row {number}", json_row(row)) for number, row in enumerate(document_rows(document), 1)]
        return len(rows), (decoded(row, format.encoding_name) for row in rows), more_rows(document)
    return sum(1 for _ in rows_of_lines(file, format)), rows_of_lines(file, format), ""


def rows_of_lines(file: Path, format: FileFormat) -> Iterator[Row]:
    """The rows of CSV or of JSON by lines, read one by one."""
    with opened(file, format.encoding) as lines:
        if format.format == "CSV":
            rows = csv_rows(lines, format.delimiter)
        else:
            rows = (Row(f"line {number}", json_line(line)) for number, line in enumerate(lines, 1) if line.strip())
        for row in rows:
            yield decoded(row, format.encoding_name)


def first_line(file: Path, format: FileFormat) -> str:
    """The names of the columns of CSV, as they are written."""
    with opened(file, format.encoding) as lines:
        records = (cells for _, cells in table_records(lines, format.delimiter) if isinstance(cells, list))
        return format.delimiter.join(next(records, []))


def decoded(row: Row, encoding: str) -> Row:
    """A row, or the reason if a text in it cannot be stored: with NUL, half a character, or bytes not of `encoding`."""
    if isinstance(row.columns, dict):
        for name, value in row.columns.items():
            if fault := fault_of("".join([name, *texts_in(value)]), encoding):
                return Row(row.place, InputError(f"column {cited(name)} has {fault}"))
    return row


def texts_in(value: Any) -> Iterator[str]:
    """The texts in a value, also those in its lists and objects, and the names in them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield name
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def fault_of(text: str, encoding: str) -> str:
    """Why a text cannot be stored, or ""."""
    if "\0" in text:
        return "bytes that are NUL"
    if BROKEN in text:
        return f"bytes that are not {encoding}"
    return "half a character, a surrogate without its other half" if SURROGATE.search(text) else ""


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """The rows of CSV, whose first record has the names of the columns. Raises InputError."""
    names: list[str] = []
    for number, cells in table_records(lines, delimiter):
        if isinstance(cells, InputError):
            if not names:
                raise cells
            yield Row(f"line {number}", cells)
        elif not names:
            names = names_of(cells)
        else:
            yield Row(f"line {number}", csv_row(names, cells))


def names_of(cells: list[str]) -> list[str]:
    """Names of columns, of which no two are one. Raises InputError where they are no names but a row."""
    if any(BROKEN in cell for cell in cells):
        raise InputError("its first line cannot be decoded; name its encoding with --encoding")
    names = [cell.strip("\ufeff \t") for cell in cells]
    if NO_ID_NAME.fullmatch(names[0]):
        raise InputError(
            f"its first line begins with {cited(names[0][:20])}; expected a line with the names of the columns"
        )
    if row := [name for name in names if NO_NAME.fullmatch(name)]:
        raise InputError(f"its first line has {cited(row[0])}; expected a line with the names of the columns")
    return unique_names(names)


def unique_names(names: Iterable[str]) -> list[str]:
    """The names of columns, those that come again as RepeatedName: t, t_2."""
    originals, unique = list(names), list[str]()
    for original, name in zip(originals, dedupe_keys(originals)):
        if name != original:
            name = RepeatedName(name)
            name.original = original
        unique.append(name)
    return unique


def csv_row(names: list[str], cells: list[str]) -> dict[str, Any] | InputError:
    """The row of these cells. Empty ones beyond the last name are ignored."""
    if len(cells) < len(names) or any(cells[len(names) :]):
        return InputError(f"it has {len(cells)} cells; expected {len(names)}, as the first line has")
    return dict(zip(names, cells))


def json_line(line: str) -> dict[str, Any] | InputError:
    """The row of a line of JSON. An error that an API wrote among its rows is none."""
    try:
        row = loads(line.strip())
        if isinstance(row, dict) and (said := error_in([row])) is not None:
            return InputError(f"it is an error: {cited(said)}")
        return json_row(row)
    except InputError as error:
        return InputError(str(error).replace("line 1 ", ""))  # the line is named before


def json_row(row: Any) -> dict[str, Any] | InputError:
    """A row of JSON; Datasette's `{"$base64": true, "encoded": ...}` are BLOBs."""
    if not isinstance(row, dict):
        return InputError(f"{cited(row)} is not a row; expected an object of columns")
    if not row:
        return InputError("it has no columns")
    try:
        return decode_base64_values(row)
    except (ValueError, TypeError) as error:
        return InputError(f"it has a BLOB that is not base64: {error}")


def loads(text: str) -> Any:
    """The value of a JSON text. Raises InputError.

    NaN and infinities, which are not JSON, are None. A whole number too long for Python is the text of its digits. A
    name that comes again in an object is a RepeatedName.
    """
    try:
        return json.loads(
            text.strip("\ufeff"),
            parse_constant=lambda name: None,
            parse_int=whole_number,
            parse_float=finite_number,
            object_pairs_hook=object_of,
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON: {error}") from error


def whole_number(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:  # beyond sys.get_int_max_str_digits
        return digits


def finite_number(digits: str) -> float | None:
    number = float(digits)
    return number if isfinite(number) else None


def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) == len(pairs):
        return columns
    return dict(zip(unique_names(name for name, _ in pairs), (value for _, value in pairs)))


def document_rows(document: Any) -> list:
    """The rows of a JSON document: a list, one object, or an answer of Datasette in any `_shape`.

    Raises InputError for any other document.
    """
    if not isinstance(document, dict | list):
        raise InputError(f"it is {cited(document)}; expected a list of rows")
    if not document:
        return []
    if not is_keyed(document) and (said := error_in(document)) is not None:
        raise InputError(f"it is an error: {cited(said)}")
    if isinstance(document, list):
        if not any(isinstance(row, dict) for row in document):
            raise InputError(f"it is a list of {cited(document[0])}...; expected one of objects (_shape=array)")
        return document
    if isinstance(rows := document.get("rows"), list):
        return [with_names(row, document.get("columns")) for row in rows]
    if document.get("ok") is True or {"database", "tables"} <= document.keys():
        raise InputError("it is an answer of Datasette that has no rows")
    if all(isinstance(row, dict) for row in document.values()):  # _shape=object
        return with_keys(document)
    check_is_row(document)
    return [document]


def is_keyed(document: Any) -> bool:
    """True for more than one object, all with the same columns, by their keys: Datasette's _shape=object."""
    if not isinstance(document, dict) or not all(isinstance(row, dict) for row in document.values()):
        return False
    return len(document) > 1 and len({frozenset(row) for row in document.values()}) == 1


def check_is_row(document: dict) -> None:
    """Raises InputError for an object that holds rows, or texts by their ids, and is not a row itself."""
    for name, value in document.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            raise InputError(f"it is an object with a list of objects, {cited(name)}; expected that list alone")
        if value == [] and name.lower() in ENVELOPES:
            raise InputError(f"it is an object with an empty list, {cited(name)}; expected a list of rows")
    if all(map(str.isdigit, document)):
        raise InputError("it is an object whose columns have numbers for names; expected a list of rows")


def with_names(row: Any, columns: Any) -> Any:
    """A row that is a list as an object, its columns named, or else numbered from 1."""
    if not isinstance(row, list):
        return row
    names = columns if isinstance(columns, list) else range(1, len(row) + 1)
    return dict(zip(unique_names(map(str, names)), row)) if len(names) == len(row) else row


def with_keys(document: dict[str, dict]) -> list[dict]:
    """The rows of an object by their keys, which are the first column in all of them, or become it.

    Raises InputError for columns by their names, as pandas writes them, and for objects that are no rows.
    """
    if not set.intersection(*map(set, document.values())):
        raise InputError("it is an object of objects that have no column in common; expected a list of rows")
    if len(document) == 1:
        [inner] = document.values()
        if (said := error_in([inner])) is not None:
            raise InputError(f"it is an error: {cited(said)}")
        check_is_row(inner)
        if (name := next(iter(document))).lower() in ENVELOPES:
            raise InputError(f"it is an object with an object, {cited(name)}; expected a list of rows")
    if all(row and all(map(str.isdigit, row)) for row in document.values()):
        raise InputError("it is a table by columns; expected a list of rows, as to_json(orient='records') writes it")
    if all(str(next(iter(row.values()), None)) == key for key, row in document.items()):
        return list(document.values())
    return [{"key": key} | {name: row[name] for name in row if name != "key"} for key, row in document.items()]


def more_rows(document: Any) -> str:
    """A sentence if Datasette says that there are more rows than its answer has, or ""."""
    if isinstance(document, dict) and isinstance(document.get("rows"), list):
        if document.get("next") or document.get("next_url"):
            return "Datasette has more rows than this page of them"
        if document.get("truncated") is True:
            return "Datasette left rows out of this answer"
    return ""
