"""The query language: `brushed brass faucet - chrome`, `id:123 + 0.5*"black"`, or JSON, to one unit embedding.

A query is a sum of terms, each a text, an image, a stored id or a vector with a weight. What a term's embedding is, the
caller knows.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, VectorError, cited
from llm_clip_onnx.vectors import unit

KINDS = ("text", "image", "id", "vector")
MOST = 1e30  # of a weight
MAX_TERMS, MAX_CHARACTERS = 16, 200_000
NUMBER = r"\d+(?:\.\d*)?|\.\d+"
TERM = re.compile(
    rf"""\s*(?:(?P<weight>{NUMBER})\s*\*\s*)?       # 0.5*
    (?:(?P<kind>text|image|id|vector):)?            # id:
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\s|$)        # "black - not a minus", with \" and \\ for what they look like
       |(?P<bare>\S++(?:\s++(?![+-]\s)\S++)*+))    # brushed brass faucet
    \s*(?=\s[+-]\s|$)""",
    re.VERBOSE | re.DOTALL,
)
PLAIN = re.compile(r"[^\W\d]\w*(?: \w+)*")  # needs no quotes
SIGN = re.compile(r"\s*([+-])\s")


@dataclass(frozen=True)
class Term:
    """kind: one of KINDS. value: the text, the id, or an image or vector blob, as bytes or as a string of them."""

    kind: str
    value: str | bytes
    weight: float = 1.0


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query. A + or - counts with a space, or the beginning, before and a space after it.

    Raises InputError saying which part of it cannot be read.
    """
    if len(query) > MAX_CHARACTERS:
        raise InputError(f"the query has {len(query)} characters; at most {MAX_CHARACTERS} are read")
    if not query.isascii():
        check_unicode("the query", query)
    if query.lstrip().startswith(("[", "{")):
        return parse_json(query)
    terms, at, sign = [], 0, "+"
    if first := SIGN.match(query):
        sign, at = first[1], first.end()
    while True:
        found = TERM.match(query, at)
        if not found:
            raise InputError(f"query {cited(query)} has nothing after character {at}; expected a text, id: or image:")
        weight = float(found["weight"] or 1) * (-1 if sign == "-" else 1)
        quoted = found["quoted"]
        value = found["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        terms.append(Term(found["kind"] or "text", value, weight))
        if found.end() == len(query):
            return checked(terms)
        operator = SIGN.match(query, found.end())
        assert operator  # TERM ends before one
        sign, at = operator[1], operator.end()


def check_unicode(what: str, text: str) -> None:
    """Raises InputError for a text with half of a pair of surrogates, which no UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{what} has {cited(text[error.start])} at character {error.start}, which is no character"
        ) from None


def parse_json(query: str) -> tuple[Term, ...]:
    """The terms of `[{"text": "black", "weight": 0.5}, {"id": "123"}]`. Raises InputError naming the position."""
    try:
        found = json.loads(query)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the query begins as JSON and is none: {error}; put quotes around a text like that"
        ) from error
    terms = []
    for position, one in enumerate(found if isinstance(found, list) else [found]):
        kinds = [kind for kind in KINDS if isinstance(one, dict) and kind in one]
        if len(kinds) != 1 or one.keys() - {kinds[0], "weight"}:
            raise InputError(
                f"terms[{position}] is {json.dumps(one)[:60]}; expected one of {', '.join(KINDS)}, and weight"
            )
        value, weight = one[kinds[0]], one.get("weight", 1)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InputError(f"terms[{position}].{kinds[0]} is {json.dumps(value)[:60]}; expected a string")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not -MOST < weight < MOST:
            raise InputError(f"terms[{position}].weight is {json.dumps(weight)[:60]}; expected a number")
        check_unicode(f"terms[{position}].{kinds[0]}", str(value))
        terms.append(Term(kinds[0], str(value), float(weight)))
    return checked(terms)


def checked(terms: Sequence[Term]) -> tuple[Term, ...]:
    if not terms:
        raise InputError("the query has no terms; expected at least one text, image, id or vector")
    if len(terms) > MAX_TERMS:
        raise InputError(f"the query has {len(terms)} terms; at most {MAX_TERMS} are added up")
    if not all(math.isfinite(term.weight) for term in terms):
        raise InputError("a weight of the query is too large to be a number")
    return tuple(terms)


def written(terms: Sequence[Term]) -> str:
    """A query of these terms that `parse` reads as the same."""
    parts = []
    for term in terms:
        kind = "" if term.kind == "text" else f"{term.kind}:"
        weight = "" if abs(term.weight) == 1 else f"{np.format_float_positional(abs(term.weight), trim='-')}*"
        value = term.value if isinstance(term.value, str) else base64.urlsafe_b64encode(term.value).decode().rstrip("=")
        if not PLAIN.fullmatch(value):
            value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
        parts += ["-" if math.copysign(1, term.weight) < 0 else "+", f"{weight}{kind}{value}"]
    return " ".join(parts[1:] if parts[0] == "+" else parts)


def combined(terms: Sequence[Term], embedding_of: Callable[[Term], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The unit embedding [embed_dim] of a query: the weighted sum of its terms' unit embeddings, made unit.

    Raises VectorError where terms cancel out, and what `embedding_of` raises.
    """
    total = np.sum([term.weight * unit(embedding_of(term).astype(np.float64)) for term in terms], axis=0)
    norm = float(np.linalg.norm(total))
    if not 1e-6 * max(abs(term.weight) for term in terms) < norm < math.inf:
        raise VectorError("the terms of the query cancel out, or have no direction, so nothing is more like it")
    return (total / norm).astype(np.float32)
