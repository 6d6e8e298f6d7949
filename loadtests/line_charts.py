"""Charts of lines: `python line_charts.py FILE`, with what to draw as JSON on its input.

`{"title": ..., "x": ..., "panels": [{"title", "unit", "lines": {name: [[x, y], ...]}}, ...]}`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Where there is matplotlib; nothing else of a benchmark needs it.
PYTHON = Path(__file__).parents[1] / ".venv-loadtests" / "bin" / "python"
_COLUMNS = 2


def plot(path: Path, chart: Mapping[str, Any]) -> None:
    """Draw a chart into a file, in the environment that can."""
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([PYTHON, __file__, path], input=json.dumps(chart), text=True, check=True)
    print(f"drawn into {path}", file=sys.stderr)


def main() -> None:
    """Draw what the input says."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    # Names of elements are random otherwise, and the same figures would give another file.
    mpl.rcParams["svg.hashsalt"] = "loadtests"
    chart = json.loads(sys.stdin.read())
    panels: Sequence[Any] = chart["panels"]
    rows = -(-len(panels) // _COLUMNS)
    drawing, axes = plt.subplots(
        rows, _COLUMNS, figsize=(11, 3.2 * rows), layout="constrained", squeeze=False
    )
    for place, panel in zip(axes.flat, panels, strict=False):
        for name, points in panel["lines"].items():
            place.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        place.set_title(panel["title"], fontsize=10)
        place.set_xlabel(chart["x"])
        place.set_ylabel(panel["unit"])
        place.set_ylim(bottom=0)
        place.spines[["top", "right"]].set_visible(False)
        place.legend(fontsize=7, frameon=False)
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    drawing.suptitle(chart["title"])
    drawing.savefig(Path(sys.argv[1]), metadata={"Date": None})


if __name__ == "__main__":
    main()
