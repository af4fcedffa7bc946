"""Draws the results of search: time, memory and recall against the number of vectors.

python -m bench.search.plot_search [--of bench/search/results.json] [--to bench/search/search.svg]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.harness.plotting import logarithmic, main, new_figure, plain, save

# Searcher: colour, line, marker. Ours are red, exact ones are dashed.
LOOKS = {
    "ours, indexed": ("#c1121f", "-", "o"),
    "ours, no index": ("#c1121f", "--", "o"),
    "ours, llm_embed_cosine": ("#e88d8d", "--", "o"),
    "datasette-llm-embed": ("#7f7f7f", "--", "x"),
    "numpy, from the file": ("#bcbd22", "--", "v"),
    "numpy, all in memory": ("#8c6d31", "--", "^"),
    "sqlite-vec, exact": ("#1f77b4", "--", "s"),
    "sqlite-vec, bits, best 100": ("#6baed6", "-", "s"),
    "sqlite-vec, bits, best 4000": ("#1f77b4", "-", "s"),
    "sqlite-vec, rescore index": ("#17becf", "-", "D"),
    "sqlite-vec, DiskANN index": ("#9467bd", "-", "D"),
    "datasette-faiss": ("#2ca02c", "--", "P"),
    "usearch, from its file": ("#ff7f0e", "-", "*"),
}
PANELS = (  # figure, title, the goal at a million
    ("p50_ms", "query, median, ms", 150),
    ("peak_mb", "peak memory, MB", 400),
    ("recall", "recall@10", 0.95),
)


def line_of(results: dict[str, Any], name: str, figure: str) -> tuple[list[int], list[float]]:
    """The sizes at which a searcher was measured, and its figure at each."""
    at = {int(size): facts["searchers"].get(name, {}) for size, facts in results["sizes"].items()}
    points = [(size, figures[figure]) for size, figures in at.items() if figure in figures]
    return [size for size, _ in points], [value for _, value in points]


def panel(axes: Axes, results: dict[str, Any], figure: str, title: str, goal: float) -> None:
    for name, (colour, style, marker) in LOOKS.items():
        sizes, values = line_of(results, name, figure)
        if sizes:
            front = 3 if name.startswith("ours") else 2
            axes.plot(
                sizes,
                values,
                style,
                color=colour,
                marker=marker,
                ms=4.5,
                lw=1.4,
                label=name,
                zorder=front,
                clip_on=False,
            )
    axes.axhline(goal, color="#000000", lw=0.6, ls=":", zorder=1)
    axes.annotate(
        f"goal {goal:g}", (1_000, goal), (2, -9 if figure == "recall" else 2), textcoords="offset points", fontsize=7
    )
    plain(axes, title, "vectors")
    if figure == "recall":
        logarithmic(axes, "x")
        axes.set_ylim(0.5, 1)
    else:
        logarithmic(axes, "x", "y")


def draw(results: dict[str, Any], to: Path) -> None:
    """Write the plot of the results, as SVG with its text as text."""
    figure, axes = new_figure("search", 1, len(PANELS), (13, 4.6))
    for one, (name, title, goal) in zip(axes, PANELS):
        panel(one, results, name, title, goal)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=5, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.15, 1, 1))
    save(figure, to)


if __name__ == "__main__":
    main(__doc__, "search/search", draw)
