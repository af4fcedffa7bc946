"""Puts the `where` of a search in parentheses, so that it cannot end or change the SQL that it is put into."""

from __future__ import annotations

import re

from llm_clip_onnx.errors import InputError

TOKEN = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]   # texts and names, with whatever is in them
    | --[^\n]* | /\*.*?(?:\*/|\Z)                                      # comments
    | [^'"`\[/();-]+ | .""",
    re.VERBOSE | re.DOTALL,
)
DEPTH = {"(": 1, ")": -1}


def expression(condition: str) -> str:
    """A condition in parentheses, without comments and without semicolons at its end; "" if nothing else is in it.

    Raises InputError for one that closes a parenthesis which it has not opened: it would end ours.
    """
    tokens, depth = [], 0
    for token in TOKEN.findall(condition):
        depth += DEPTH.get(token, 0)
        if depth < 0:
            raise InputError("where is no condition that SQLite can read: it closes a parenthesis that is not open")
        tokens.append(" " if token.startswith(("--", "/*")) else token)
    text = "".join(tokens).strip("; \t\r\n")
    return f"({text})" if text else ""
