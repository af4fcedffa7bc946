"""Reads the query language and adds up its terms: `brushed brass faucet - chrome`, `id:123 + 0.5*"black"`, or JSON.

A query is a weighted sum of terms, each a text, an image, a stored id or a vector. The caller embeds the terms.
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
MAX_WEIGHT = 1e30
MAX_TERMS, MAX_CHARACTERS = 16, 200_000
NUMBER = r"\d+(?:\.\d*)?|\.\d+"
TERM = re.compile(
    rf"""\s*(?:(?P<weight>{NUMBER})\s*\*\s*)?       # 0.5*
    (?:(?P<kind>text|image|id|vector):)?            # id:
    (?:"(?P<quoted>(?:[^"\\]|\\.)*)"(?=\s|$)        # "black - not a minus", with the escapes \" and \\
       |(?P<bare>\S++(?:\s++(?![+-]\s)\S++)*+))    # brushed brass faucet
    \s*(?=\s[+-]\s|$)""",
    re.VERBOSE | re.DOTALL,
)
UNQUOTED = re.compile(r"[^\W\d]\w*(?: \w+)*")  # needs no quotes
SIGN = re.compile(r"\s*([+-])\s")


@dataclass(frozen=True)
class Term:
    """A term. kind: one of KINDS. value: the text or the id; an image or a vector blob as bytes or as base64url."""

    kind: str
    value: str | bytes
    weight: float = 1.0


def parse(query: str) -> tuple[Term, ...]:
    """The terms of a query. A + or - is an operator if a space follows, and a space or the query's start precedes it.

    Raises InputError naming the part that cannot be read.
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
        term = TERM.match(query, at)
        if not term:
            raise InputError(f"query {cited(query)} has nothing after character {at}; expected a text, id: or image:")
        weight = float(term["weight"] or 1) * (-1 if sign == "-" else 1)
        quoted = term["quoted"]
        value = term["bare"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        terms.append(Term(term["kind"] or "text", value, weight))
        if term.end() == len(query):
            return check_terms(terms)
        operator = SIGN.match(query, term.end())
        assert operator  # TERM ends at an operator or at the end
        sign, at = operator[1], operator.end()


def check_unicode(name: str, text: str) -> None:
    """Raises InputError naming a text that has a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} has {cited(text[error.start])} at character {error.start}, which is no character"
        ) from None


def parse_json(query: str) -> tuple[Term, ...]:
    """The terms of `[{"text": "black", "weight": 0.5}, {"id": "123"}]`. Raises InputError naming the position."""
    try:
        content = json.loads(query)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"the query begins as JSON and is none: {error}; put quotes around a text like that"
        ) from error
    terms = []
    for position, term in enumerate(content if isinstance(content, list) else [content]):
        kinds = [kind for kind in KINDS if isinstance(term, dict) and kind in term]
        if len(kinds) != 1 or term.keys() - {kinds[0], "weight"}:
            raise InputError(
                f"terms[{position}] is {json.dumps(term)[:60]}; expected one of {', '.join(KINDS)}, and weight"
            )
        value, weight = term[kinds[0]], term.get("weight", 1)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InputError(f"terms[{position}].{kinds[0]} is {json.dumps(value)[:60]}; expected a string")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not -MAX_WEIGHT < weight < MAX_WEIGHT:
            raise InputError(f"terms[{position}].weight is {json.dumps(weight)[:60]}; expected a number")
        check_unicode(f"terms[{position}].{kinds[0]}", str(value))
        terms.append(Term(kinds[0], str(value), float(weight)))
    return check_terms(terms)


def check_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms. Raises InputError if there are none or too many, or if a weight is infinite."""
    if not terms:
        raise InputError("the query has no terms; expected at least one text, image, id or vector")
    if len(terms) > MAX_TERMS:
        raise InputError(f"the query has {len(terms)} terms; at most {MAX_TERMS} are added up")
    if not all(math.isfinite(term.weight) for term in terms):
        raise InputError("a weight of the query is too large to be a number")
    return tuple(terms)


def format_query(terms: Sequence[Term]) -> str:
    """The terms as a query, from which `parse` reads the same terms."""
    parts = []
    for term in terms:
        kind = "" if term.kind == "text" else f"{term.kind}:"
        weight = "" if abs(term.weight) == 1 else f"{np.format_float_positional(abs(term.weight), trim='-')}*"
        value = term.value if isinstance(term.value, str) else base64.urlsafe_b64encode(term.value).decode().rstrip("=")
        if not UNQUOTED.fullmatch(value):
            value = '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'
        parts += ["-" if math.copysign(1, term.weight) < 0 else "+", f"{weight}{kind}{value}"]
    return " ".join(parts[1:] if parts[0] == "+" else parts)


def combine(terms: Sequence[Term], embedding_of: Callable[[Term], NDArray[np.float32]]) -> NDArray[np.float32]:
    """The unit embedding [embed_dim] of a query: its terms' unit embeddings, weighted, added up and made unit again.

    Raises VectorError if the terms cancel out, and what `embedding_of` raises.
    """
    total = np.sum([term.weight * unit(embedding_of(term).astype(np.float64)) for term in terms], axis=0)
    norm = float(np.linalg.norm(total))
    if not 1e-6 * max(abs(term.weight) for term in terms) < norm < math.inf:
        raise VectorError("the terms of the query cancel out, or have no direction, so nothing is more like it")
    return (total / norm).astype(np.float32)
