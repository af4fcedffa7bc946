"""Writes the tables of the kept results into the rooms' READMEs, in place of the old ones, or prints some of them.

The catalogue's figures are written too, from the results of the bench of models.

    python -m bench.harness.tables [--check]     --check writes nothing, and fails if a table is stale
    python -m bench.harness.tables NAME ...      prints the tables of these benches

A table ends with the command that measured it, by which its bench is known; the short table of search is known by its
head. Sentences with figures are not written.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.embedding import models
from bench.harness import ROOT
from bench.search import search
from llm_clip_onnx import measured

ROOMS = ("embedding", "photos", "search", "server", "container")
FENCE = re.compile(r"```\n(?:(?!```).)*?(python -m bench\.[^\n]*)\n```", re.DOTALL)
BRIEF = re.compile(re.escape(search.BRIEF_HEAD) + r"(?:\n\|.*)+")


def results_of(room: str) -> dict[str, Any]:
    """Bench -> its kept results."""
    return json.loads((ROOT / f"bench/{room}/results.json").read_text())["benches"]


def table_of(name: str, results: dict[str, Any]) -> str:
    """The table of a bench's results: the short one of search, else the one that its command prints."""
    return search.brief(results) if name == "search" else importlib.import_module(module_of(results)).table(results)


def module_of(results: dict[str, Any]) -> str:
    return results["command"].split()[2]  # python -m MODULE ...


def written(readme: str, kept: dict[str, Any]) -> str:
    """The text with the tables of the kept results."""
    names = {results["command"]: name for name, results in kept.items()}

    def fenced(match: re.Match[str]) -> str:
        name = names[match[1]]
        return f"```\n{table_of(name, kept[name])}\n```"

    return BRIEF.sub(lambda _: table_of("search", kept["search"]), FENCE.sub(fenced, readme))


def catalogue_figures() -> str:
    """What llm_clip_onnx/measured.json holds: nothing before the bench of models has kept results."""
    results = results_of("embedding").get("models")
    return json.dumps(models.measured(results) if results else {}, indent=1) + "\n"


def files() -> Iterator[tuple[Path, str]]:
    """Each file that is written, and its new content."""
    for room in ROOMS:
        file = ROOT / "bench" / room / "README.md"
        yield file, written(file.read_text(), results_of(room))
    yield measured.FILE, catalogue_figures()


def main() -> None:
    if names := [word for word in sys.argv[1:] if word != "--check"]:
        kept = {name: results for room in ROOMS for name, results in results_of(room).items()}
        return print(*(table_of(name, kept[name]) for name in names), sep="\n\n")
    stale = []
    for file, new in files():
        if new != file.read_text():
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in sys.argv:
                file.write_text(new)
    if "--check" in sys.argv and stale:
        sys.exit(f"stale tables in {', '.join(stale)}: python -m bench.harness.tables writes them")
    return None


if __name__ == "__main__":
    main()
