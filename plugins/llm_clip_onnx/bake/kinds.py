"""Says what the value of each kind of key in a checkpoint's JSON files must be: its type and its range.

Which key is of which kind is in keys.py. A value of another kind is refused when its file is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 1_000_000_000  # of a whole number
NO_LIMIT = 1e20  # a longer model_max_length means none; transformers writes 1e30. Source: LARGE_INTEGER, transformers
FILTERS = range(6)  # Pillow's numbers of them


@dataclass(frozen=True)
class Kind:
    """What a value must be: in words, for messages, and as a test. Where null is no default, its reader refuses it."""

    expected: str
    holds: Callable[[Any], bool]


def is_whole(value: object, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= MOST


def is_number(value: object) -> bool:
    """True for a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST


def is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def are_two(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_whole, value))


def is_square(value: Any) -> bool:
    return is_whole(value) or (are_two(value) and value[0] == value[1])


def is_crop(value: Any) -> bool:
    is_object = isinstance(value, dict) and value.keys() == {"height", "width"}
    return is_whole(value) or are_two(list(value.values()) if is_object else value)


def is_size(value: Any) -> bool:
    is_object = isinstance(value, dict) and value.keys() == {"shortest_edge"}
    return is_whole(value["shortest_edge"] if is_object else value)


def is_length(value: Any) -> bool:
    return is_whole(value, 2) or (isinstance(value, int | float) and NO_LIMIT < value < math.inf)


def is_filter(value: object) -> bool:
    return (is_whole(value, 0) and value in FILTERS) or (isinstance(value, str) and value.lower() == "bicubic")


def are_three(value: object, each: Callable[[Any], bool]) -> bool:
    return each(value) or (isinstance(value, list) and len(value) == 3 and all(map(each, value)))


ANYTHING = Kind("anything", lambda value: True)  # its reader says what is expected
TEXT = Kind("text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
TOKENS = Kind("a list of tokens, or an object of them by name", lambda value: isinstance(value, list | dict))
WHOLE = Kind("a whole number above 0", is_whole)
POSITIVE = Kind("a number above 0", is_positive)
SQUARE = Kind("a whole number above 0, or two equal ones", is_square)
THREE_CHANNELS = Kind("3", lambda value: value == 3)
ACTIVATION = Kind('"quick_gelu" or "gelu"', lambda value: value in ("quick_gelu", "gelu"))
ANY_ACTIVATION = Kind(
    '"gelu_pytorch_tanh", "gelu" or "quick_gelu"', lambda value: value in ("gelu_pytorch_tanh", "gelu", "quick_gelu")
)
LENGTH = Kind("a whole number above 1, or one above 1e20 for no limit", is_length)
SIZE = Kind('a whole number above 0, or it as {"shortest_edge": 224}', is_size)
CROP = Kind("a whole number above 0, or two of them as height and width", is_crop)
FILTER = Kind('the number of a filter, 0 to 5, or "bicubic"', is_filter)
MEANS = Kind("three numbers, or one for all channels", lambda value: are_three(value, is_number))
DEVIATIONS = Kind("three numbers above 0, or one for all channels", lambda value: are_three(value, is_positive))
