"""Writes into README the tables of what bench/results.json holds, in place of those that it shows.

    python bench/tables.py

A table of a bench ends with the command that measured it, by which it is known; that of the searches is known by its
head. Sentences with figures are not written; tests/test_docs.py tells which are wrong.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import search

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"```\n((?:(?!```).)*?python bench/(\w+)\.py[^\n]*)\n```", re.DOTALL)


def shown(readme: str) -> list[tuple[str, str]]:
    """Bench and table, of each that is in the text."""
    return [(match[2], match[1]) for match in FENCE.finditer(readme)]


def written(readme: str, kept: dict[str, Any]) -> str:
    """The text with the tables of what is kept."""

    def table(match: re.Match[str]) -> str:
        return f"```\n{importlib.import_module(match[2]).table(kept[match[2]])}\n```"

    rows = re.compile(re.escape(search.BRIEF_HEAD) + r"(?:\n\|.*)+")
    return rows.sub(lambda _: search.brief(kept["search"]), FENCE.sub(table, readme))


if __name__ == "__main__":
    file = ROOT / "README.md"
    file.write_text(written(file.read_text(), json.loads((ROOT / "bench/results.json").read_text())["benches"]))
