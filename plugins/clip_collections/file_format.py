"""Tells a file's encoding, its format (CSV, JSON or JSONL) and its delimiter from its first bytes and lines.

It makes no rows: rows.py does, with what is told here. The name of a file decides only what its content leaves open.
"""

from __future__ import annotations

import codecs
import json
import re
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from llm_clip_onnx.errors import InputError, cited

from .csv_records import records

Format = Literal["CSV", "JSON", "JSONL"]
SUFFIXES: dict[str, Format] = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".json": "JSON",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".nl": "JSONL",
}
DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
SAMPLE = 100_000  # characters, from which format and delimiter are told
SAMPLE_ROWS = 100
UNDECODABLE = "clip_collections.undecodable"  # how bytes are decoded that are not of an encoding: as BROKEN
BROKEN = "\udcff"  # stands for bytes that cannot be decoded, so that only their row is left out

# cp1252 is guessed only for bytes that look like it: letters beyond ASCII are rare in the languages that it is for.
UNLIKE_CP1252 = re.compile(
    rb"[\x80-\xff]{3}|[\x81\x8d\x8f\x90\x9d]|(?<![A-Za-z])[\xd0\xde\xf0\xfe\xff]|[\xc2\xc3](?![A-Za-z])"
)
BINARY = re.compile(r"[^\t\r\n\f -\U0010ffff]")  # control characters
SEP = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # Excel's own first line


class FileFormat(NamedTuple):
    """How a file of rows is written. delimiter: "" if the format is not CSV. guess: a sentence about one, or ""."""

    format: Format
    encoding: str
    delimiter: str = ""
    guess: str = ""

    @property
    def encoding_name(self) -> str:
        """The encoding for sentences, with what to do if it is the wrong one."""
        return f"{self.encoding.removesuffix('-sig').upper()}; --encoding names another one"


def file_format_of(file: Path, delimiter: str | None = None, encoding: str | None = None) -> FileFormat:
    """How a file is written; `delimiter` and `encoding` are not guessed where they are given.

    Raises InputError for an empty file, for one that is no text, and for an encoding that is unknown.
    """
    used = known_encoding(encoding) if encoding else encoding_of(file)
    guess = "read as cp1252, because it is not UTF-8" if not encoding and used == "cp1252" else ""
    with opened(file, used) as text:
        sample = text.read(SAMPLE)
    if not sample.strip():
        raise InputError("it is empty")
    if BINARY.search(sample.partition("\n")[0] + sample[:8]):
        raise InputError(f"it is no text, but begins with the bytes {first_bytes(file).hex()}")
    suffix = file.suffix.lower()
    format = format_of(sample, suffix)
    if format != "CSV":
        return FileFormat(format, used, "", guess)
    return FileFormat(format, used, delimiter or delimiter_of(sample, suffix), guess)


def opened(file: Path, encoding: str) -> TextIO:
    """The text of a file, its line ends as they are. BROKEN stands where it cannot be decoded."""
    return file.open(encoding=encoding, errors=UNDECODABLE, newline="")


codecs.register_error(UNDECODABLE, lambda error: (BROKEN, error.end))  # type: ignore[attr-defined]


def first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(8)


def known_encoding(encoding: str) -> str:
    """The name of an encoding, as given. UTF-8 may begin with a BOM. Raises InputError for one that is unknown."""
    try:
        "".encode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InputError(f"--encoding {cited(encoding)} is unknown; expected utf-8, cp1252, utf-16...") from error
    return "utf-8-sig" if name == "utf-8" else name


def encoding_of(file: Path) -> str:
    """UTF-16 and UTF-32 by a BOM or their NUL bytes, cp1252 if no line beyond ASCII is UTF-8 and all look like it.

    UTF-8 otherwise: a line that is not UTF-8 then is a fault of its row.
    """
    wide = json.detect_encoding(first_bytes(file))
    if wide not in ("utf-8", "utf-8-sig"):
        return wide
    found_cp1252 = False
    with file.open("rb") as stream:
        for line in stream:
            if line.isascii():
                continue
            if is_utf8(line) or UNLIKE_CP1252.search(line):
                return "utf-8-sig"
            found_cp1252 = True
    return "cp1252" if found_cp1252 else "utf-8-sig"


def is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def format_of(sample: str, suffix: str) -> Format:
    """The format of a text by its beginning. JSONL if at least half of its lines are JSON by themselves.

    The suffix decides if there is one line, longer than the sample, and if the text begins as none of them.
    """
    if sample.lstrip()[0] not in "[{":
        return SUFFIXES.get(suffix, "CSV")
    lines = [line for line in sample.splitlines() if line.strip()]
    is_cut = len(sample) == SAMPLE
    if is_cut:
        lines.pop()
    if not lines:
        return "JSONL" if SUFFIXES.get(suffix) == "JSONL" else "JSON"
    return "JSONL" if (is_cut or len(lines) > 1) and 2 * sum(map(is_json, lines)) >= len(lines) else "JSON"


def is_json(line: str) -> bool:
    """True if a line is a JSON object or list by itself."""
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def delimiter_of(sample: str, suffix: str) -> str:
    """The delimiter that splits the first line, and most of the next ones into as many cells; a comma if none does.

    A first line "sep=;" names it.
    """
    if named := SEP.match(sample):
        return named[1]
    at_first = "\t" if suffix == ".tsv" else ","

    def fit(delimiter: str) -> tuple:
        rows = [cells for _, cells in islice(records(sample.splitlines(True), delimiter), SAMPLE_ROWS) if cells]
        first = rows[0] if isinstance(rows[0], list) else []
        same = sum(isinstance(cells, list) and len(cells) == len(first) for cells in rows)
        spaces = sum(cell.startswith(" ") for cell in first)
        return len(first) > 1, same, -spaces, delimiter == at_first, len(first)

    return max(DELIMITERS, key=fit)
