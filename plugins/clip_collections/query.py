"""Reads the query language and adds up its terms: `brushed brass faucet - chrome`, `id:123 + 0.5*"black"`, or JSON.

A query is a weighted sum of terms, each a text, an image, a stored id or a vector. The caller embeds the terms.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm_clip_onnx.errors import InputError, VectorError, cited, shortened
from llm_clip_onnx.vectors import unit

KINDS = ("text", "image", "id", "vector")
MAX_WEIGHT = 1e30
A_WEIGHT = f"expected a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}"
MAX_TERMS, MAX_CHARACTERS = 16, 200_000
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
HEAD = re.compile(rf"\s*(?:(?P<weight>[+-]?{NUMBER})\s*\*\s*)?(?:(?P<kind>(?i:{'|'.join(KINDS)})):)?")  # 0.5*id:
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)  # "black - not a minus", with the escapes \" and \\
BARE = re.compile(r"(?![+-](?:\s|$))\S++(?:\s++(?![+-](?:\s|$))\S++)*+")  # brushed brass faucet
SIGN = re.compile(r"\s*([+-])(?:\s|$)")
OPERATOR = re.compile(r"\s+([+-])(?:\s|$)")
MISPLACED = re.compile(  # a word that looks as if a term begins with it
    rf"""(?<!\S)(?: [+-]?(?i:{"|".join(KINDS)}|img):\S  # id:5
                  | [+-]?[\d.,]\S*\*\S                  # 1,5*blue
                  | \S*\*"                              # half*"blue"
                  | [+-](?=[^\W\d]|") )\S*              # -blue""",
    re.VERBOSE,
)
OPENING = re.compile(r'(?<!\S)"')
UNQUOTED = re.compile(r"[^\W\d]\w*(?: \w+)*")  # needs no quotes
EXPECTED = "expected a text, id: or image:"
QUOTE_IT = r"put quotes around a text like that, and \" for a quote in it"


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
    terms: list[Term] = []
    operator, at = SIGN.match(query), 0
    while True:
        at = operator.end() if operator else at
        term, at = read_term(query, at)
        terms.append(replace(term, weight=-term.weight) if operator and operator[1] == "-" else term)
        if not query[at:].strip():
            return check_terms(terms)
        operator = OPERATOR.match(query, at)
        if not operator:
            found = f"more after the quote that closes at character {at - 1}; expected + or - between two terms"
            raise InputError(f"query {cited(query)} has {found}; {QUOTE_IT}")


def read_term(query: str, at: int) -> tuple[Term, int]:
    """The term of a query that begins at character `at`, and the character after it. Raises InputError."""
    head = HEAD.match(query, at)
    assert head  # it matches nothing, too
    weight, kind, begin = float(head["weight"] or 1), (head["kind"] or "text").lower(), head.end()
    if query.startswith('"', begin):
        quoted = QUOTED.match(query, begin)
        if not quoted:
            raise InputError(f"query {cited(query)} has no end of the quote at character {begin}; {QUOTE_IT}")
        return Term(kind, re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL), weight), quoted.end()
    bare = BARE.match(query, begin)
    if not bare:
        written = head[0].strip()
        after = f"right after {cited(written)}; {QUOTE_IT}" if written else f"after character {at}; {EXPECTED}"
        raise InputError(f"query {cited(query)} has nothing {after}")
    check_words(query, bare, is_text=not head["kind"])
    return Term(kind, bare[0], weight), bare.end()


def check_words(query: str, bare: re.Match, is_text: bool) -> None:
    """Raises InputError if a term without quotes has a word that looks like another term, or an open quote.

    The first word of an id, an image or a vector may be anything.
    """
    begin = bare.start() if is_text else re.compile(r"\S*").match(query, bare.start()).end()  # type: ignore[union-attr]
    text = query[begin : bare.end()]
    if word := MISPLACED.search(text):
        found = f"{cited(word[0])} at character {begin + word.start()}; expected + or - and a space before a term"
        raise InputError(f"query {cited(query)} has {found}, and a number before *; {QUOTE_IT}")
    opened = OPENING.search(text)
    if opened and text.count('"') % 2:
        raise InputError(
            f"query {cited(query)} has no end of the quote at character {begin + opened.start()}; {QUOTE_IT}"
        )


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
                f"terms[{position}] is {shortened(json.dumps(term))}; expected one of {', '.join(KINDS)}, and weight"
            )
        value, weight = term[kinds[0]], term.get("weight", 1)
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise InputError(f"terms[{position}].{kinds[0]} is {shortened(json.dumps(value))}; expected a string")
        if not isinstance(weight, int | float) or isinstance(weight, bool) or not -MAX_WEIGHT < weight < MAX_WEIGHT:
            raise InputError(f"terms[{position}].weight is {shortened(json.dumps(weight))}; {A_WEIGHT}")
        check_unicode(f"terms[{position}].{kinds[0]}", str(value))
        terms.append(Term(kinds[0], str(value), float(weight)))
    return check_terms(terms)


def check_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """The terms. Raises InputError if there are none or too many, or if a weight is too large."""
    if not terms:
        raise InputError("the query has no terms; expected at least one text, image, id or vector")
    if len(terms) > MAX_TERMS:
        raise InputError(f"the query has {len(terms)} terms; at most {MAX_TERMS} are added up")
    if not all(abs(term.weight) < MAX_WEIGHT for term in terms):
        raise InputError(f"a weight of the query is too large; {A_WEIGHT}")
    return tuple(terms)


def format_query(terms: Sequence[Term]) -> str:
    """The terms as a query, from which `parse` reads the same terms."""
    parts = []
    for term in terms:
        kind = "" if term.kind == "text" else f"{term.kind}:"
        weight = "" if abs(term.weight) == 1 else f"{np.format_float_positional(abs(term.weight), trim='-')}*"
        value = term.value if isinstance(term.value, str) else base64.urlsafe_b64encode(term.value).decode().rstrip("=")
        if not UNQUOTED.fullmatch(value):
            value = '"' + value.replace("\\", r"\\").replace('"', r"\"") + '"'
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
