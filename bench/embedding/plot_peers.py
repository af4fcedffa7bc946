"""Draws the results of peers: milliseconds for a text and for an image, and memory, a bar for each peer.

python -m bench.embedding.plot_peers [--of bench/embedding/results.json] [--to bench/embedding/peers.svg]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from bench.harness.plotting import OURS, main, new_figure, plain, save

OTHERS = "#1f77b4"
PANELS = (  # figure, title, digits after the point
    ("text_ms", "a text of 5 to 7 ids, median, ms", 1),
    ("image_ms", "a 640x480 JPEG, median, ms", 0),
    ("peak_mb", "peak memory, texts and images, MB", 0),
)


def panel(axes: Axes, peers: dict[str, dict[str, Any]], figure: str, title: str, digits: int) -> None:
    """A bar for each peer, the first on top; a peer without the figure has none."""
    rows = range(len(peers))
    values = [figures.get(figure, 0) for figures in peers.values()]
    axes.barh(rows, values, height=0.7, color=[OURS if name.startswith("ours") else OTHERS for name in peers])
    for row, value in zip(rows, values):
        text = f"{value:,.{digits}f}" if value else "not run"
        axes.annotate(text, (value, row), (3, 0), textcoords="offset points", va="center", fontsize=7)
    plain(axes, title, "")
    axes.grid(False, axis="y")
    axes.set_yticks(rows, list(peers))
    axes.set_ylim(len(peers) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max([*values, 1e-9]))
    axes.set_axisbelow(True)


def draw(results: dict[str, Any], to: Path) -> None:
    """Write the plot of the results, as SVG with its text as text."""
    peers = results["peers"]
    figure, axes = new_figure("peers", 1, len(PANELS), (13, 1 + 0.27 * len(peers)))
    for one, (name, title, digits) in zip(axes, PANELS):
        panel(one, peers, name, title, digits)
        one.tick_params(labelleft=one is axes[0])  # the names of the peers stand once
    figure.tight_layout()
    save(figure, to)


if __name__ == "__main__":
    main(__doc__, "embedding/peers", draw)
