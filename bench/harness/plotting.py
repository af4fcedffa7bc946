"""What all plots share: reading results, the look of a panel, writing a figure.

The same results give the same file, byte by byte: it holds no date.
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

from bench.harness import ROOT

OURS = "#c1121f"  # red, in every plot


def results_of(file: Path, name: str) -> dict[str, Any]:
    """The results of the bench `name`, from a room's results.json or from the file that it wrote with --to."""
    content = json.loads(file.read_text())
    return content["benches"][name] if "benches" in content else content


def thousands(value: float, _position: object = None) -> str:
    """The text of a number beside an axis."""
    return f"{value:,.0f}" if value >= 1 else f"{value:,g}"


def plain(axes: Axes, title: str, along: str) -> None:
    """Give a panel a title above, `along` below, a thin grid, and lines only at the left and the bottom."""
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
    """A figure and its panels. Text stays text in its file, and ids in it depend on `salt` alone."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"})
    return pyplot.subplots(rows, columns, figsize=size)


def save(figure: Figure, to: Path) -> None:
    figure.savefig(to, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def main(doc: str | None, plot: str, draw: Callable[[dict[str, Any], Path], None]) -> None:
    """The command of the plot ROOM/NAME: --of results, --to a file."""
    room, name = plot.split("/")
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, default=ROOT / "bench" / room / "results.json")
    parser.add_argument("--to", type=Path, default=ROOT / "bench" / room / f"{name}.svg")
    options = parser.parse_args()
    draw(results_of(options.of, name), options.to)
