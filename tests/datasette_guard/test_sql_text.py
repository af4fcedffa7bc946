"""instr, replace and trim return what SQLite's own return, in time that grows with the length of the texts."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasette_guard import sql_text

CALLS = {"instr": "instr(?, ?)", "replace": "replace(?, ?, ?)"} | {n: f"{n}(?, ?)" for n in ("trim", "ltrim", "rtrim")}
TEXTS = st.text("ab é😀", max_size=8)
VALUES = (
    TEXTS | TEXTS.map(str.encode) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([None, 0.5, 1e20, -2.0, 1e-7])
)


@pytest.fixture(scope="module")
def connections():
    """A connection with SQLite's own functions, and one with ours."""
    plain, ours = sqlite3.connect(":memory:"), sqlite3.connect(":memory:")
    for name, (arguments, function) in sql_text.functions(1_000_000).items():
        ours.create_function(name, arguments, function, deterministic=True)
    return plain, ours


@pytest.mark.long
@settings(max_examples=2000, deadline=None)
@given(name=st.sampled_from(sorted(CALLS)), values=st.tuples(VALUES, VALUES, VALUES))
def test_the_results_equal_sqlites_own(name, values, connections):
    arguments = values[: CALLS[name].count("?")]
    theirs, ours = (conn.execute(f"select {CALLS[name]}", arguments).fetchone()[0] for conn in connections)
    # replace('x', '', ...) returns its argument unchanged, of whatever type.
    if isinstance(theirs, bytes | int | float) and name != "instr":
        theirs = sql_text.as_text(theirs)
    assert ours == theirs


@pytest.mark.parametrize(
    "sql",
    [
        "select instr(zeroblob(4000000), zeroblob(2000000) || x'01')",
        "select length(replace(hex(zeroblob(400000)), hex(zeroblob(200000)) || '1', ''))",
        "select length(trim(hex(zeroblob(400000)), hex(zeroblob(200000))))",
    ],
)
def test_two_long_texts_take_linear_time(sql, connections):
    """SQLite's own functions take minutes here. The test is that these end."""
    assert connections[1].execute(sql).fetchone()[0] is not None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_sql_functions.py
def test_a_result_that_would_not_fit_is_refused_before_it_is_made(connections):
    with pytest.raises(sqlite3.OperationalError):
        connections[1].execute("select replace(hex(zeroblob(400000)), '0', hex(zeroblob(400000)))").fetchone()
