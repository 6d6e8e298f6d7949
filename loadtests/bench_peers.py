"""The same read through this product and through what people use instead, side by side.

Run by `make bench-peers`: a server of its own, one process per cell, cells interleaved over
repeats, every value checked. docs/benchmarks.md says what is measured and what came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from peers import stage
from peers.measurement import Plan, measure, versions
from peers.summary import Summary
from peers.variants import IN_FLIGHT, VARIANTS
from report import machine, print_report

_PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"


def main() -> None:
    """Measure, print the tables, then the figures and one line of JSON."""
    wanted = _arguments()
    if wanted.results_of is None:
        try:
            results = asyncio.run(_run(wanted))
        except asyncio.CancelledError:
            raise SystemExit("ended before all was measured; nothing is left behind") from None
    else:
        results = json.loads(wanted.results_of.read_text())
    summary = Summary(results["cells"])
    for line in _heading(results):
        print(line)
    for line in summary.text():
        print(line)
    if wanted.markdown is not None:
        wanted.markdown.write_text("\n".join(summary.markdown()) + "\n")
    if wanted.plot is not None:
        _plot(summary, wanted.plot)
    print_report(summary.figures())


async def _run(wanted: argparse.Namespace) -> dict[str, Any]:
    # Whoever ends this ends the servers with it; Ctrl-C does the same by itself.
    me = asyncio.current_task()
    if me is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    keys = wanted.only or [""]
    chosen = tuple(item for item in VARIANTS if any(word in item.key for word in keys))
    if not chosen:
        raise SystemExit(f"no variant is called like that; there are: {_names()}")
    plan = Plan(
        variants=chosen,
        in_flight=frozenset(wanted.in_flight),
        seconds=wanted.seconds,
        warm_s=wanted.warm_up,
        repeats=wanted.repeats,
        rows=wanted.rows,
    )
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as folder:
        os.chmod(folder, 0o755)  # The database server may run as another user.
        async with stage.server(Path(folder), wanted.tenants, wanted.rows) as place:
            cells: list[dict[str, Any]] = []
            try:
                await measure(plan, place, cells)
            finally:
                # What was measured before a failure is worth keeping too.
                results = _results(wanted, plan, cells, place.server_version)
                if wanted.save is not None:
                    wanted.save.write_text(json.dumps(results, indent=1) + "\n")
    return results


def _results(
    wanted: argparse.Namespace, plan: Plan, cells: list[dict[str, Any]], server_version: str
) -> dict[str, Any]:
    return {
        "machine": machine() | {"load_1m_after": round(os.getloadavg()[0], 1)},
        "versions": versions(cells) | {"PostgreSQL": server_version},
        "plan": {
            "seconds": plan.seconds,
            "warm_s": plan.warm_s,
            "repeats": plan.repeats,
            "tenants": wanted.tenants,
            "rows": plan.rows,
        },
        "cells": cells,
    }


def _heading(results: dict[str, Any]) -> list[str]:
    plan, place = results["plan"], results["machine"]
    told = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    return [
        f"{plan['tenants']} x {plan['rows']} rows; window {plan['seconds']:g} s after "
        f"{plan['warm_s']:g} s of warm-up; medians of {plan['repeats']} [least-most]",
        f"load before {place['load_1m']}, after {place['load_1m_after']} (its own included); "
        f"{place['cores']} cores, {place['system']}",
        told,
    ]


def _plot(summary: Summary, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [_PEERS_PYTHON, "-m", "peers.plots", folder],
        input=json.dumps(summary.bars()),
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        text=True,
        check=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=4.0, help="window of a cell (default 4)")
    add("--warm-up", type=float, default=2.0, help="seconds before it (default 2)")
    add("--repeats", type=int, default=3, help="how often each cell is measured (default 3)")
    add("--only", nargs="+", metavar="WORD", help=f"variants with that in their name: {_names()}")
    add("--in-flight", nargs="+", type=int, choices=IN_FLIGHT, default=IN_FLIGHT)
    add("--tenants", type=int, default=1_000, help="tenants that have rows (default 1000)")
    add("--rows", type=int, default=500, help="rows of each (default 500)")
    add("--plot", type=Path, metavar="DIR", help="write bar charts (SVG)")
    add("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    add("--save", type=Path, metavar="FILE", help="write every measured cell as JSON")
    add("--results-of", type=Path, metavar="FILE", help="tell what was saved; measure nothing")
    return parser.parse_args()


def _names() -> str:
    return ", ".join(item.key for item in VARIANTS)


if __name__ == "__main__":
    main()
