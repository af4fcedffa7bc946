"""Replaces SQLite's instr, replace, trim, ltrim and rtrim by functions with the same results in linear time.

SQLite's own compare each place of one text with the whole of another. For two of some megabytes that takes minutes, and
nothing interrupts it, the time limit included.
"""

from __future__ import annotations

from collections.abc import Callable

DISTINCT_CHARACTERS = 1000


class TextError(ValueError):
    """An argument or a result of a text function is too long."""


Value = str | bytes | int | float | None


def as_text(value: str | bytes | int | float) -> str:
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
    """The place of `part` in `value`, from 1, in bytes for two BLOBs and else in characters; 0 if it is absent."""
    if value is None or part is None:
        return None
    if isinstance(value, bytes) and isinstance(part, bytes):
        return value.find(part) + 1
    return as_text(value).find(as_text(part)) + 1


def make_replace(value_bytes: int) -> Callable[[Value, Value, Value], str | None]:
    """SQL's `replace`. It raises TextError for a result of more than value_bytes."""

    def replace(value: Value, old: Value, new: Value) -> str | None:
        if value is None or old is None:
            return None
        text, old = as_text(value), as_text(old)
        if new is None or not old:
            return None if old else text
        new = as_text(new)
        if len(text) + text.count(old) * (len(new) - len(old)) > value_bytes:
            raise TextError(f"the result is longer than {value_bytes} bytes")
        return text.replace(old, new)

    return replace


def make_trim(strip: Callable[[str, str], str]) -> Callable[[Value, Value], str | None]:
    """SQL's `trim`, `ltrim` or `rtrim` of two arguments. The second holds the characters to strip."""

    def trim(value: Value, characters: Value) -> str | None:
        if value is None or characters is None:
            return None
        distinct = "".join(dict.fromkeys(as_text(characters)))
        if len(distinct) > DISTINCT_CHARACTERS:
            raise TextError(f"{len(distinct)} different characters to strip; at most {DISTINCT_CHARACTERS} are")
        return strip(as_text(value), distinct) if distinct else as_text(value)

    return trim


def functions(value_bytes: int) -> dict[str, tuple[int, Callable]]:
    """Name -> number of arguments, and the function."""
    trims: dict[str, Callable[[str, str], str]] = {"trim": str.strip, "ltrim": str.lstrip, "rtrim": str.rstrip}
    found: dict[str, tuple[int, Callable]] = {name: (2, make_trim(strip)) for name, strip in trims.items()}
    return found | {"instr": (2, instr), "replace": (3, make_replace(value_bytes))}
