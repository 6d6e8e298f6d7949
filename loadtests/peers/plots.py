"""Bar charts of a run: `python -m peers.plots DIR`, with what to draw as JSON on its input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt

_SHADES = {True: ("#9ecae1", "#4292c6", "#08519c"), False: ("#d9d9d9", "#969696", "#525252")}


def main() -> None:
    """Draw each chart into a file."""
    folder = Path(sys.argv[1])
    # Names of elements are random otherwise, and the same figures would give another file.
    mpl.rcParams["svg.hashsalt"] = "bench-peers"
    for chart in json.loads(sys.stdin.read()):
        _draw(chart, folder / chart["file"])


def _draw(chart: dict[str, Any], path: Path) -> None:
    labels, series = chart["labels"], chart["series"]
    drawing, axes = plt.subplots(figsize=(10, 1.2 + 0.55 * len(labels)), layout="constrained")
    height = 0.8 / len(series)
    for turn, (in_flight, rates) in enumerate(series.items()):
        places = [place + (turn - 1) * height for place in range(len(labels))]
        drawn = [
            (at, rate, mine)
            for at, rate, mine in zip(places, rates, chart["ours"], strict=True)
            if rate
        ]
        bars = axes.barh(
            [at for at, _, _ in drawn],
            [rate for _, rate, _ in drawn],
            height,
            color=[_SHADES[mine][turn] for _, _, mine in drawn],
            label=f"{in_flight} in flight",
        )
        axes.bar_label(bars, [f"{rate:,.0f}" for _, rate, _ in drawn], padding=2, fontsize=7)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("operations/s (logarithmic); from light to dark 1, 64 and 512 in flight")
    axes.set_title(chart["title"])
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, metadata={"Date": None})
    plt.close(drawing)


if __name__ == "__main__":
    main()
