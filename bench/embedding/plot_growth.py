"""Draws the results of growth: a panel for each axis, a line for each stack.

python -m bench.embedding.plot_growth [--of bench/embedding/results.json] [--to bench/embedding/growth.svg]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.harness.plotting import OURS, logarithmic, main, new_figure, plain, save

LOOKS = {  # line: colour, style, marker
    "ours": (OURS, "-", "o"),
    "ours, fp32": ("#e88d8d", "--", "o"),
    "sentence-transformers": ("#1f77b4", "-", "s"),
    "bare": ("#7f7f7f", "-", "x"),
}
NAMES = {"bare": "bare Datasette, select 1", "ours": "ours, 8 bits"}
PANELS = (  # axis, title, label below, logarithmic axes
    ("ids", "one text, ms", "ids of the text", ()),
    ("texts", "a call of many texts, ms a text", "texts in the call", ("x",)),
    ("clients", "clients over HTTP, median and (dotted) p99, ms", "clients at once", ("x", "y")),
    ("pixels", "one JPEG, ms", "pixels wide, 4:3", ("x",)),
)


def panel(axes: Axes, lines: dict[str, Any], title: str, along: str, scales: tuple[str, ...]) -> None:
    for name, (colour, style, marker) in LOOKS.items():
        sizes = [int(size) for size in lines.get(name, {})]
        points = list(lines.get(name, {}).values())
        look = {"color": colour, "lw": 1.4, "zorder": 3 if name == "ours" else 2, "clip_on": False}
        if points and "p99_ms" in points[0]:
            axes.plot(sizes, [point["p99_ms"] for point in points], ":", **look | {"lw": 1.0})
        if points:
            values = [point["ms"] if "ms" in point else point["p50_ms"] for point in points]
            axes.plot(sizes, values, style, marker=marker, ms=4.5, label=NAMES.get(name, name), **look)
    plain(axes, title, along)
    logarithmic(axes, *scales)
    if "x" in scales:
        axes.set_xticks(sorted({int(size) for points in lines.values() for size in points}))
    if "y" not in scales:
        axes.set_ylim(bottom=0)


def draw(results: dict[str, Any], to: Path) -> None:
    """Write the plot of the results, as SVG with its text as text."""
    figure, axes = new_figure("growth", 2, 2, (11, 7.5))
    for one, (axis, title, along, scales) in zip(axes.flat, PANELS):
        panel(one, results["medians"][axis], title, along, scales)
    handles = {label: handle for one in axes.flat for handle, label in zip(*one.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    save(figure, to)


if __name__ == "__main__":
    main(__doc__, "embedding/growth", draw)
