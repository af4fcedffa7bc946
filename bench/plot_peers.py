"""Draws what bench/peers.py found: milliseconds for a text and for an image, and memory, a bar for each peer.

    python bench/plot_peers.py [--of bench/results/peers.json] [--to bench/results/peers.svg]

The same file is drawn from the same results: nothing in it tells when.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes

OURS, OTHERS = "#c1121f", "#1f77b4"
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
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_yticks(rows, list(peers))
    axes.set_ylim(len(peers) - 0.4, -0.6)
    axes.set_xlim(0, 1.15 * max([*values, 1e-9]))
    axes.tick_params(labelsize=8)
    axes.grid(True, axis="x", lw=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw(found: dict[str, Any], to: Path) -> None:
    """Write the plot of what was found, as SVG with its text as text."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "peers", "font.family": "sans-serif"})
    peers = found["peers"]
    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(13, 1 + 0.27 * len(peers)), sharey=True)
    for one, (name, title, digits) in zip(axes, PANELS):
        panel(one, peers, name, title, digits)
    figure.tight_layout()
    figure.savefig(to, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", type=Path, default=Path("bench/results/peers.json"))
    parser.add_argument("--to", type=Path, default=Path("bench/results/peers.svg"))
    options = parser.parse_args()
    draw(json.loads(options.of.read_text()), options.to)


if __name__ == "__main__":
    main()
