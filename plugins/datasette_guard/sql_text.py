"""SQLite's instr, replace, trim, ltrim and rtrim with the same results in linear time.

Its own compare every place of one text with all of another: minutes for two of some megabytes, in which neither the
time limit nor anything else can interrupt them.
"""

from __future__ import annotations

from collections.abc import Callable

DISTINCT_CHARACTERS = 1000


class TextError(ValueError):
    """An argument or a result of a text function is too long."""


Value = str | bytes | int | float | None


def text_of(value: str | bytes | int | float) -> str:
    """A value as SQLite casts it to text."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if not isinstance(value, float):
        return str(value)
    if value in (float("inf"), float("-inf")):
        return "Inf" if value > 0 else "-Inf"
    mantissa, e, exponent = f"{value:.15g}".partition("e")
    return mantissa + ("" if "." in mantissa else ".0") + e + exponent


def instr(value: Value, part: Value) -> int | None:
    """Where `part` begins, counted from 1 in bytes of two BLOBs, else in characters; 0 where it is not there."""
    if value is None or part is None:
        return None
    if isinstance(value, bytes) and isinstance(part, bytes):
        return value.find(part) + 1
    return text_of(value).find(text_of(part)) + 1


def replacing(value_bytes: int) -> Callable[[Value, Value, Value], str | None]:
    """`replace`, whose result may have as many bytes as this. It raises TextError where it has more."""

    def replace(value: Value, old: Value, new: Value) -> str | None:
        if value is None or old is None:
            return None
        text, old = text_of(value), text_of(old)
        if new is None or not old:
            return None if old else text
        new = text_of(new)
        if len(text) + text.count(old) * (len(new) - len(old)) > value_bytes:
            raise TextError(f"the result is longer than {value_bytes} bytes")
        return text.replace(old, new)

    return replace


def trimming(strip: Callable[[str, str], str]) -> Callable[[Value, Value], str | None]:
    """`trim` and its kin of two arguments, of which the second holds the characters to strip."""

    def trim(value: Value, characters: Value) -> str | None:
        if value is None or characters is None:
            return None
        distinct = "".join(dict.fromkeys(text_of(characters)))
        if len(distinct) > DISTINCT_CHARACTERS:
            raise TextError(f"{len(distinct)} different characters to strip; at most {DISTINCT_CHARACTERS} are")
        return strip(text_of(value), distinct) if distinct else text_of(value)

    return trim


def functions(value_bytes: int) -> dict[str, tuple[int, Callable]]:
    """Name -> number of arguments and function."""
    trims: dict[str, Callable[[str, str], str]] = {"trim": str.strip, "ltrim": str.lstrip, "rtrim": str.rstrip}
    found: dict[str, tuple[int, Callable]] = {name: (2, trimming(strip)) for name, strip in trims.items()}
    return found | {"instr": (2, instr), "replace": (3, replacing(value_bytes))}
