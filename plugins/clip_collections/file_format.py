"""Tells a file's encoding, its format (CSV, JSON or JSONL) and its delimiter from its first bytes and lines.

It makes no rows: rows.py does, with what is told here. The name of a file decides only what its content leaves open.
"""

from __future__ import annotations

import codecs
import json
import re
from html import unescape
from io import StringIO
from itertools import islice, takewhile
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from llm_clip_onnx.errors import InputError, cited
from llm_clip_onnx.images.signatures import LOOKED_AT, name_of

from .csv_records import SEP, is_comment, table_records
from .entry import is_blank

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
# Angle brackets may enclose the names of columns: "<DATE>,<TIME>"
MARKUP = re.compile(r"\s*(?!<[^<>\n]*>\s*[,;\t|])<[!?/a-z]", re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.IGNORECASE | re.DOTALL)
NO_WORDS = re.compile(
    r"<(script|style)\b.*?(?:</\1[^>]*>|\Z)|<!--.*?(?:-->|\Z)|<[^>]*(?:>|\Z)", re.IGNORECASE | re.DOTALL
)
HTTP_HEADERS = re.compile(r"HTTP/[\d.]+ \d{3}")
OTHER_FILES = ("a Git LFS pointer", "a PDF", "PostScript", "a SQLite file")  # that may begin as text does
ADVICE = {"a Git LFS pointer": "; git lfs pull fetches the file", "a SQLite file": "; --sql names its rows"}
BRACKETED = re.compile(r"\[[^][{}\"'\n,;\t|]*\]\s*[,;\t|]")  # names of columns as SQL Server writes them
ENOUGH = 0.75  # share of rows that agree with the first one; others may be broken


class FileFormat(NamedTuple):
    """How a file of rows is written. delimiter: "" if the format is not CSV. guesses: sentences about them."""

    format: Format
    encoding: str
    delimiter: str = ""
    guesses: tuple[str, ...] = ()

    @property
    def encoding_name(self) -> str:
        """The encoding for sentences, with what to do if it is the wrong one."""
        return f"{self.encoding.removesuffix('-sig').upper()}; --encoding names another one"


def file_format_of(file: Path, delimiter: str | None = None, encoding: str | None = None) -> FileFormat:
    """How a file is written; `delimiter` and `encoding` are not guessed where they are given.

    Raises InputError for an empty file, for one that has no rows but a page or bytes, for an encoding that is unknown,
    and for a delimiter that is given for JSON.
    """
    used = known_encoding(encoding) if encoding else encoding_of(file)
    guesses = ["read as cp1252, because it is not UTF-8"] if not encoding and used == "cp1252" else []
    with opened(file, used) as text:
        sample = text.read(SAMPLE)
    check_is_rows(sample, first_bytes(file))
    suffix = file.suffix.lower()
    format = format_of(sample, suffix)
    if format != "CSV" and delimiter:
        raise InputError(f"it is {format}; --delimiter cannot be used with it")
    if format != "CSV":
        return FileFormat(format, used, "", tuple(guesses))
    if SUFFIXES.get(suffix, "CSV") != "CSV":
        guesses.append(f"read as CSV, although its name ends with {suffix}")
    if delimiter is None:
        delimiter, doubt = delimiter_of(sample, suffix)
        guesses += [doubt] * bool(doubt)
    return FileFormat(format, used, delimiter, (*guesses, *comments_in(sample, delimiter)))


def check_is_rows(sample: str, head: bytes) -> None:
    """Raises InputError for a file that is empty, no text, or an HTML page or another text that has no rows."""
    if is_blank(sample):
        raise InputError("it is empty")
    found = name_of(head)
    if found in OTHER_FILES:
        raise InputError(f"it is {found}, not rows{ADVICE.get(found, '')}")
    if BINARY.search(sample.partition("\n")[0] + sample[:8]):
        raise InputError(f"it is no text, but begins with the bytes {head[:8].hex()}")
    if HTTP_HEADERS.match(sample):
        raise InputError(
            f"it begins with the headers of HTTP, {cited(sample.splitlines()[0])}; curl sends none without -i"
        )
    if MARKUP.match(sample):
        found = "HTML or XML" if found == "text" else found
        says = f"; it says {cited(words)}" if (words := words_in(sample)) else ""
        raise InputError(f"it is {found}, not rows{says}")


def words_in(markup: str) -> str:
    """The title of an HTML page, or the words that it or an XML document shows."""
    title = TITLE.search(markup)
    return " ".join(unescape(NO_WORDS.sub(" ", title[1] if title else markup)).split())


def comments_in(sample: str, delimiter: str) -> list[str]:
    """A sentence about the comments before the names of the columns, if there are any."""
    lines = list(takewhile(lambda line: is_blank(line) or is_comment(line, delimiter), StringIO(sample, newline="")))
    if comments := [line.strip() for line in lines if not is_blank(line)]:
        others = f" and {len(comments) - 1:,} others" if len(comments) > 1 else ""
        return [f"read without the comment {cited(comments[0])}{others}"]
    return []


def opened(file: Path, encoding: str) -> TextIO:
    """The text of a file, its line ends as they are. BROKEN stands where it cannot be decoded."""
    return file.open(encoding=encoding, errors=UNDECODABLE, newline="")


codecs.register_error(UNDECODABLE, lambda error: (BROKEN, error.end))  # type: ignore[attr-defined]


def first_bytes(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(LOOKED_AT)


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
    wide = json.detect_encoding(first_bytes(file)[:8])
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

    The suffix decides if there is one line, longer than the sample, and if the text begins as none of them and is no
    table either.
    """
    lines = [line for line in StringIO(sample, newline="") if not is_blank(line)]
    begin = next((line for line in lines if not line.startswith("#")), lines[0]).lstrip()
    if begin[0] not in "[{" or BRACKETED.match(begin):
        named = SUFFIXES.get(suffix, "CSV")
        return "CSV" if is_table(sample, lines) else named
    is_cut = len(sample) == SAMPLE
    if is_cut:
        lines.pop()
    if not lines:
        return "JSONL" if SUFFIXES.get(suffix) == "JSONL" else "JSON"
    return "JSONL" if (is_cut or len(lines) > 1) and 2 * sum(map(is_json, lines)) >= len(lines) else "JSON"


def is_table(sample: str, lines: list[str]) -> bool:
    """True if a delimiter splits the lines of a text alike, and none of them begins as JSON."""
    if len(lines) < 2 or any(line.lstrip().startswith(("{", "[{")) for line in lines):
        return False
    return any(fit.splits and fit.agreement == ENOUGH for fit in fits_of(sample, "").values())


def is_json(line: str) -> bool:
    """True if a line is a JSON object or list by itself."""
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


class Fit(NamedTuple):
    """How well a delimiter fits, compared in this order.

    splits: the first row has more than one cell. agreement: the share of rows that have as many cells as it, at most
    ENOUGH. quotes: minus the cells with an odd number of quotes, which it splits. spaces: minus the names of columns
    that begin with a space. delimiters: how many of it are in the rows that agree.
    """

    splits: bool
    agreement: float
    quotes: int
    spaces: int
    delimiters: int
    is_usual: bool
    first: int  # minus the length of the first name


def delimiter_of(sample: str, suffix: str) -> tuple[str, str]:
    """The delimiter that splits the rows most alike, and a sentence if another does as well or none does, or "".

    A first line "sep=;" names it.
    """
    if named := SEP.match(sample):
        return named[1], ""
    fits = fits_of(sample, suffix)
    best = max(fits, key=fits.__getitem__)
    if not fits[best].splits:
        return best, "read as one column; --delimiter names what is between cells"
    is_doubtful = sum(fit[:3] == fits[best][:3] for fit in fits.values()) > 1
    return best, f"read with {cited(best)} between cells; --delimiter says otherwise" if is_doubtful else ""


def fits_of(sample: str, suffix: str) -> dict[str, Fit]:
    """How well each delimiter fits a text whose last line may be cut."""
    if len(sample) == SAMPLE and "\n" in sample:
        sample = sample[: sample.rindex("\n") + 1]
    return {delimiter: fit_of(sample, delimiter, suffix == ".tsv" and delimiter == "\t") for delimiter in DELIMITERS}


def fit_of(sample: str, delimiter: str, is_usual: bool) -> Fit:
    """How well a delimiter fits the first rows of a text."""
    rows = [cells for _, cells in islice(table_records(StringIO(sample, newline=""), delimiter), SAMPLE_ROWS)]
    first = rows[0] if rows and isinstance(rows[0], list) else []
    alike = [cells for cells in rows if isinstance(cells, list) and len(cells) == len(first)]
    return Fit(
        splits=len(first) > 1,
        agreement=min(len(alike) / max(len(rows), 1), ENOUGH),
        quotes=-sum(cell.count('"') % 2 for cells in alike for cell in cells),
        spaces=-sum(cell.startswith(" ") for cell in first),
        delimiters=len(alike) * (len(first) - 1),
        is_usual=is_usual,
        first=-len(first[0]) if first else 0,
    )
