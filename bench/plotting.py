"""What the plots share: where results are read, how a panel looks, and how a figure is written.

The same file is written from the same results: nothing in it tells when.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

OURS = "#c1121f"  # red, in every plot


def results(file: Path, name: str) -> dict[str, Any]:
    """What the bench `name` found, from bench/results.json or from what it wrote with --to."""
    found = json.loads(file.read_text())
    return found["benches"][name] if "benches" in found else found


def thousands(value: float, _position: object = None) -> str:
    """A number as it stands beside an axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:,g}"


def plain(axes: Axes, title: str, along: str) -> None:
    """A panel with a title above, `along` below, a thin grid, and lines at left and bottom only."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(along, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(True, which="major", lw=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def logarithmic(axes: Axes, *names: str) -> None:
    """Make these axes, of "x" and "y", logarithmic, with plain numbers beside them."""
    for name in names:
        getattr(axes, f"set_{name}scale")("log")
        getattr(axes, f"{name}axis").set_major_formatter(FuncFormatter(thousands))
    axes.minorticks_off()


def new_figure(salt: str, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure and its panels. Its text stays text, and names within its file depend on `salt` alone."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"})
    return pyplot.subplots(rows, columns, figsize=size)


def save(figure: Figure, to: Path) -> None:
    figure.savefig(to, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main(doc: str | None, name: str, draw: Callable[[dict[str, Any], Path], None]) -> None:
    """The command of a plot: --of results, --to a file."""
    root = Path(__file__).parent
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, default=root / "results.json")
    parser.add_argument("--to", type=Path, default=root / "results" / f"{name}.svg")
    options = parser.parse_args()
    draw(results(options.of, name), options.to)
