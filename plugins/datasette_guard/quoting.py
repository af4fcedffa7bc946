"""Cuts values of requests and of the configuration to 60 characters, before a message of the guard quotes them."""

from __future__ import annotations

QUOTED_CHARACTERS = 60


def cited(value: object) -> str:
    """A value as Python writes it, cut."""
    return shortened(repr(value))


def shortened(text: object) -> str:
    """What came in, or another library's sentence about it, cut."""
    line = str(text)
    return line if len(line) <= QUOTED_CHARACTERS else f"{line[: QUOTED_CHARACTERS - 3]}..."
