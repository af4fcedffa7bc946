"""What came in as messages of the guard show it: at most 60 characters of it."""

from __future__ import annotations

QUOTED_CHARACTERS = 60


def cited(value: object) -> str:
    """A value as Python writes it, cut."""
    return shortened(repr(value))


def shortened(text: object) -> str:
    """What came in, or another library's sentence about it, cut."""
    line = str(text)
    return line if len(line) <= QUOTED_CHARACTERS else f"{line[: QUOTED_CHARACTERS - 3]}..."
