"""One thing to embed: an entry of a source. Its content is read here, also if that is a file."""

from __future__ import annotations

import stat
import unicodedata
from pathlib import Path
from typing import NamedTuple

from llm_clip_onnx.errors import InputError, cited

BLANK_CATEGORIES = {"Cc", "Cf", "Zl", "Zp", "Zs"}  # control and format characters, spaces
BLANK_LETTERS = set("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2065\u2800\u3164\uffa0")  # of others
MAX_BYTES = 1_000_000_000  # of an image file; 200 megapixels without compression are 600 MB


class NothingToEmbed(InputError):
    """A text is empty, blank or NULL."""


class FileState(NamedTuple):
    """Size and times of a file, by which a later run sees that it need not be read again."""

    bytes: int
    modified_ns: int
    changed_ns: int


class Entry(NamedTuple):
    """One thing to embed. content: a text, image bytes, the file of an image, or the reason why there is none.

    id: the reason is shown with it, so a row that has no id has its place here, "line 7". metadata: None if there is
    none. state: only of the images of a folder, which get facts of their own as metadata.
    """

    id: str
    content: str | bytes | Path | InputError
    metadata: dict | None = None
    state: FileState | None = None


def content_of(entry: Entry) -> str | bytes:
    """The text or the image bytes of an entry. A file is read.

    Raises NothingToEmbed for an empty text, and InputError for a content that cannot be read or stored.
    """
    if isinstance(entry.content, InputError):
        raise entry.content
    try:
        entry.id.encode()
        content = read_file(entry.content) if isinstance(entry.content, Path) else entry.content
        if isinstance(content, str):
            content.encode()
    except UnicodeEncodeError as error:
        raise InputError("its name or text is not UTF-8, so SQLite cannot hold it; rename it") from error
    if isinstance(content, str) and is_blank(content):
        raise NothingToEmbed("there is no text")
    return content


def is_blank(text: str) -> bool:
    """True if a text shows nothing: it is empty, or all spaces, zero-width and control characters."""
    return all(map(shows_nothing, text))


def shows_nothing(letter: str) -> bool:
    is_selector = "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return unicodedata.category(letter) in BLANK_CATEGORIES or letter in BLANK_LETTERS or is_selector


def read_file(file: Path) -> bytes:
    """The bytes of a file that may be an image. Raises InputError, also for pipes and devices, which may never end."""
    try:
        check_file(file)
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}") from error


def check_file(file: Path) -> None:
    """Raises InputError for what is no regular file or too large, and OSError."""
    if "\0" in str(file):
        raise InputError(f"{cited(str(file))} is no name of a file")
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{file} is no regular file")
    if found.st_size > MAX_BYTES:
        raise InputError(f"{file} has {found.st_size:,} bytes; of an image at most {MAX_BYTES:,} are read")
