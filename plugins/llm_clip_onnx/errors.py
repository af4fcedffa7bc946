"""Defines the exceptions of the model and the collections. A message says what was found, expected, and what to do.

ClipError
├── InputError          an item to embed is neither text nor a readable image
├── VectorError         a vector blob, or a pair of them, has no usable numbers or sizes
├── ModelDirError       the model directory is absent, incomplete, damaged or of another format
├── CheckpointError     the source of a bake cannot be fetched or read, or is no CLIP
├── FidelityError       a baked tower does not agree with its reference
└── ConfigError         a configuration key has a value that cannot be used
"""

from __future__ import annotations

import json

QUOTED_CHARACTERS = 60  # of what came in, in a message


def cited(value: object) -> str:
    """A value that came in as messages quote it: as Python writes it, cut to 60 characters. Bytes are only counted."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"a BLOB of {counted(len(value), 'byte')}"
    written = repr(value[:QUOTED_CHARACTERS] if isinstance(value, str) else value)
    is_cut = isinstance(value, str) and len(value) > QUOTED_CHARACTERS
    return f"{written[: QUOTED_CHARACTERS - 3]}..." if is_cut or len(written) > QUOTED_CHARACTERS + 2 else written


def shortened(text: object) -> str:
    """What came in, or another library's sentence about it, as messages show it: one line of at most 60 characters."""
    line = printable(" ".join(str(text)[: 2 * QUOTED_CHARACTERS].split()))
    return line if len(line) <= QUOTED_CHARACTERS else f"{line[: QUOTED_CHARACTERS - 3]}..."


def cited_json(value: object) -> str:
    """A value of JSON as messages quote it: a string as `cited`, anything else as JSON writes it, cut the same."""
    return cited(value) if isinstance(value, str) else shortened(json.dumps(value, default=cited))


def printable(text: str) -> str:
    """The text with � for each letter that a terminal would obey, or that UTF-8 cannot hold."""
    return "".join(letter if letter.isprintable() else "�" for letter in text)


def counted(number: int, noun: str) -> str:
    """A number with its unit: "1 photo", "2 photos"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


class ClipError(Exception):
    """Anything that datasette-clip refuses to do, with the sentence that says why."""


class InputError(ClipError, ValueError):
    """An item to embed is neither text nor a readable image."""


class VectorError(ClipError, ValueError):
    """A vector blob, or a pair of them, has no usable numbers or sizes."""


class ModelDirError(ClipError):
    """The model directory is absent, incomplete, damaged or of another format."""


class CheckpointError(ClipError):
    """The source of a bake cannot be fetched or read, or is no CLIP."""


class FidelityError(ClipError):
    """A baked tower does not agree with its reference."""


class ConfigError(ClipError, ValueError):
    """A configuration key has a value that cannot be used."""
