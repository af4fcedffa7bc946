"""instr, replace and trim give what SQLite's own give, for any values, in time that does not explode."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_guard import sql_text as linear

CALLS = {"instr": "instr(?, ?)", "replace": "replace(?, ?, ?)"} | {n: f"{n}(?, ?)" for n in ("trim", "ltrim", "rtrim")}
TEXTS = st.text("ab é😀", max_size=8)
VALUES = (
    TEXTS | TEXTS.map(str.encode) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([None, 0.5, 1e20, -2.0, 1e-7])
)


@pytest.fixture(scope="module")
def both():
    plain, ours = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    for name, (arguments, function) in linear.functions(1_000_000).items():
        ours.create_function(name, arguments, function, deterministic=True)
    return plain, ours


@settings(max_examples=2000, deadline=None)
@given(name=st.sampled_from(sorted(CALLS)), values=st.tuples(VALUES, VALUES, VALUES))
def test_the_results_are_sqlites_own(name, values, both):
    arguments = values[: CALLS[name].count("?")]
    theirs, ours = (conn.execute(f"select {CALLS[name]}", arguments).fetchone()[0] for conn in both)
    if isinstance(theirs, bytes | int | float) and name != "instr":  # replace('x', '', ...) gives back what it got
        theirs = linear.text_of(theirs)
    assert ours == theirs


@pytest.mark.parametrize(
    "sql",
    [
        "select instr(zeroblob(4000000), zeroblob(2000000) || x'01')",
        "select length(replace(hex(zeroblob(400000)), hex(zeroblob(200000)) || '1', ''))",
        "select length(trim(hex(zeroblob(400000)), hex(zeroblob(200000))))",
    ],
)
def test_two_long_texts_are_gone_through_once(sql, both):
    """SQLite's own would be at it for minutes: whether this ends is the test."""
    assert both[1].execute(sql).fetchone()[0] is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_sql_functions.py
def test_a_result_that_would_not_fit_is_refused_before_it_is_made(both):
    with pytest.raises(sqlite3.OperationalError):
        both[1].execute("select replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))").fetchone()
