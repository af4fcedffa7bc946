"""The query language: every way to write a query gives its terms, and their weighted sum is computed."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_collections.query import KINDS, MAX_TERMS, Term, combine, format_query, parse
from llm_clip_onnx.errors import InputError, VectorError

QUOTE_IT = r"put quotes around a text like that, and \" for a quote in it"
A_WEIGHT = "expected a number between -1e+30 and 1e+30"
TOO_LARGE = f"a weight of the query is too large; {A_WEIGHT}"


def misplaced(query: str, word: str, at: int) -> str:
    """The sentence about a word that looks like a term."""
    expected = "expected + or - and a space before a term, and a number before *"
    return f"query '{query}' has '{word}' at character {at}; {expected}; {QUOTE_IT}"


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("red fruit", [Term("text", "red fruit")]),
        ("  red fruit ", [Term("text", "red fruit")]),
        ("brushed brass faucet - chrome", [Term("text", "brushed brass faucet"), Term("text", "chrome", -1)]),
        ('id:123 + 0.5*"black"', [Term("id", "123"), Term("text", "black", 0.5)]),
        ("t-shirt, blue+white", [Term("text", "t-shirt, blue+white")]),
        ("- chrome", [Term("text", "chrome", -1)]),
        ("+ a - b + c", [Term("text", "a"), Term("text", "b", -1), Term("text", "c")]),
        ('"a - b" - "say \\"c\\""', [Term("text", "a - b"), Term("text", 'say "c"', -1)]),
        ("2 * red", [Term("text", "red", 2)]),
        (".5*id:a/b.jpg - image:/9j_x", [Term("id", "a/b.jpg", 0.5), Term("image", "/9j_x", -1)]),
        ('id:"a + b"', [Term("id", "a + b")]),
        ("vector:0000803f", [Term("vector", "0000803f")]),
        ("5 red cars", [Term("text", "5 red cars")]),
        ("identity: lost", [Term("text", "identity: lost")]),
        ("1e-2*red + -0.5*blue", [Term("text", "red", 0.01), Term("text", "blue", -0.5)]),
        ("- -0.5*blue", [Term("text", "blue", 0.5)]),
        ("ID:5 - Text:red", [Term("id", "5"), Term("text", "red", -1)]),
        ("id:-5 x", [Term("id", "-5 x")]),
        ('id:a"b', [Term("id", 'a"b')]),
        ('red "heart" of gold', [Term("text", 'red "heart" of gold')]),
        ("at -5 degrees, 16:9, https://a.example", [Term("text", "at -5 degrees, 16:9, https://a.example")]),
        ("pre- and post-war", [Term("text", "pre- and post-war")]),
        ('"id: x"', [Term("text", "id: x")]),
        (r'"\"red heart"', [Term("text", '"red heart')]),
        ('5" nails', [Term("text", '5" nails')]),
        ('[{"text": "a", "weight": -0.5}, {"id": 7}]', [Term("text", "a", -0.5), Term("id", "7")]),
        ('{"image": "x"}', [Term("image", "x")]),
        ('"[a list]"', [Term("text", "[a list]")]),
        ("a\n- b", [Term("text", "a"), Term("text", "b", -1)]),
    ],
)
def test_a_query_is_read_as_it_is_meant(query, terms):
    assert parse(query) == tuple(terms)
    assert parse(format_query(terms)) == tuple(terms)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("", "query '' has nothing after character 0; expected a text, id: or image:"),
        ("  ", "query '  ' has nothing after character 0; expected a text, id: or image:"),
        ("[", "the query begins as JSON and is none: Expecting value: line 1 column 2 (char 1); put quotes around a text like that"),
        ("[]", "the query has no terms; expected at least one text, image, id or vector"),
        (f'["{"x" * 80}"]', f'terms[0] is "{"x" * 56}...; expected one of text, image, id, vector, and weight'),
        ("[3]", "terms[0] is 3; expected one of text, image, id, vector, and weight"),
        ('[{"text": "a"}, {"text": "a", "id": "b"}]', 'terms[1] is {"text": "a", "id": "b"}; expected one of text, image, id, vector, and weight'),
        ('{"text": null}', "terms[0].text is null; expected a string"),
        ('{"text": "a", "weight": "b"}', f'terms[0].weight is "b"; {A_WEIGHT}'),
        ('{"text": "a", "weight": NaN}', f"terms[0].weight is NaN; {A_WEIGHT}"),
        ('{"text": "a", "weight": 1%s}' % ("0" * 400), "terms[0].weight is 1" + "0" * 56 + f"...; {A_WEIGHT}"),
        ("a\ud800", "the query has '\\ud800' at character 1, which is no character"),
        (" + ".join("a" * (MAX_TERMS + 1)), "the query has 17 terms; at most 16 are added up"),
        ("9" * 400 + "*a", TOO_LARGE),
        ('1e400*"a"', TOO_LARGE),
        ('1e31*"a"', TOO_LARGE),
        ("id:", f"query 'id:' has nothing right after 'id:'; {QUOTE_IT}"),
        ("id: x", f"query 'id: x' has nothing right after 'id:'; {QUOTE_IT}"),
        ("red - 0.5*image: x", f"query 'red - 0.5*image: x' has nothing right after '0.5*image:'; {QUOTE_IT}"),
        ("2*", f"query '2*' has nothing right after '2*'; {QUOTE_IT}"),
        ("2* + red", f"query '2* + red' has nothing right after '2*'; {QUOTE_IT}"),
        ("red -", "query 'red -' has nothing after character 5; expected a text, id: or image:"),
        ("-", "query '-' has nothing after character 1; expected a text, id: or image:"),
        ("red - - blue", "query 'red - - blue' has nothing after character 6; expected a text, id: or image:"),
        ('"', f"query '\"' has no end of the quote at character 0; {QUOTE_IT}"),
        ('"red heart - blue', f"query '\"red heart - blue' has no end of the quote at character 0; {QUOTE_IT}"),
        ('id:"5', f"query 'id:\"5' has no end of the quote at character 3; {QUOTE_IT}"),
        ('red "heart - blue"', f"query 'red \"heart - blue\"' has no end of the quote at character 4; {QUOTE_IT}"),
        ('"red" heart', f"query '\"red\" heart' has more after the quote that closes at character 4; expected + or - between two terms; {QUOTE_IT}"),
        ('"red"- blue', f"query '\"red\"- blue' has more after the quote that closes at character 4; expected + or - between two terms; {QUOTE_IT}"),
        ("red id:5", misplaced("red id:5", "id:5", 4)),
        ("red -id:5", misplaced("red -id:5", "-id:5", 4)),
        ("img:abc", misplaced("img:abc", "img:abc", 0)),
        ("red -blue", misplaced("red -blue", "-blue", 4)),
        ("-blue", misplaced("-blue", "-blue", 0)),
        ("red 0.5*blue", misplaced("red 0.5*blue", "0.5*blue", 4)),
        ("1,5*red", misplaced("1,5*red", "1,5*red", 0)),
        ('half*"red"', misplaced('half*"red"', 'half*"red"', 0)),
        ("2*3*red", misplaced("2*3*red", "3*red", 2)),
    ],
)  # fmt: skip
def test_what_cannot_be_read_raises_with_its_sentence(query, sentence):
    with pytest.raises(InputError) as raised:
        parse(query)
    assert str(raised.value) == sentence


values = st.text(st.characters(codec="utf-8"), max_size=20)
weights = st.floats(-1000, 1000, allow_nan=False).filter(lambda w: w == 0 or abs(w) > 1e-6)
terms = st.lists(st.builds(Term, st.sampled_from(KINDS), values, weights), min_size=1, max_size=5)


@given(terms)
def test_what_is_written_is_read_as_the_same(terms):
    assert parse(format_query(terms)) == tuple(terms)
    as_json = json.dumps([{term.kind: term.value, "weight": term.weight} for term in terms])
    assert parse(as_json) == tuple(terms)


@given(st.text(max_size=40))
def test_any_text_is_a_query_or_gets_a_sentence(text):
    with suppress(InputError):
        assert all(isinstance(term, Term) for term in parse(text))


EMBEDDINGS = {"x": [2.0, 0, 0], "y": [0, 0.5, 0], "z": [0, 0, 1], "0": [0, 0, 0]}


def embedding_of(term: Term) -> np.ndarray:
    return np.array(EMBEDDINGS[term.value], np.float32)


@pytest.mark.parametrize(
    ("query", "expected"),
    [("x", [1, 0, 0]), ("x + y", [0.7071068, 0.7071068, 0]), ("3*x - 4*y", [0.6, -0.8, 0]), ("- z", [0, 0, -1])],
)
def test_unit_embeddings_are_weighed_and_added(query, expected):
    np.testing.assert_allclose(combine(parse(query), embedding_of), expected, atol=1e-6)


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.floats(0.1, 10)), min_size=1, max_size=6), st.floats(0.1, 10))
def test_neither_the_order_nor_a_common_factor_counts(parts, factor):
    terms = [Term("text", value, weight) for value, weight in parts]
    scaled = [Term("text", value, weight * factor) for value, weight in reversed(parts)]
    found = combine(terms, embedding_of)
    np.testing.assert_allclose(found, combine(scaled, embedding_of), atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("query", ["x - x", "0", "0*x", "1000000*x - 1000000*x + 0*y"])
def test_terms_that_cancel_out_raise(query):
    with pytest.raises(VectorError, match="the terms of the query cancel out"):
        combine(parse(query), embedding_of)
