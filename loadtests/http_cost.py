"""What a request costs: processor time in each process, and in the parts that were chosen between.

Processor time and not elapsed time, so that a machine with other work on it says much the same. Run
by `make bench-http`; docs/benchmarks.md says what came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
parts = list
from peers import measurement, stage
from peers.measurement import Plan
from peers.variants import BY_KEY, Variant
from report import Figure, figure, print_report

_IN_FLIGHT = 64
_TENANTS = 100
_KINDS = (
    ("haproxy", "HAProxy"),
    ("ServeReplica", "HTTP replica"),
    ("Tenant", "tenant actors"),
    ("postgres", "PostgreSQL"),
    ("uvicorn", "uvicorn worker"),
)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=5.0, help="window of a cell (default 5)")
    add("--warm-up", type=float, default=3.0, help="seconds before it (default 3)")
    add("--only", choices=("parts", "processes"), help="a half of it")
    wanted = parser.parse_args()
    figures: list[Figure] = []
    if wanted.only != "processes":
        figures += parts()
    if wanted.only != "parts":
        figures += asyncio.run(_processes(wanted))
    print_report(figures)


async def _processes(wanted: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as folder:
        os.chmod(folder, 0o755)  # The database server may run as another user.
        async with stage.server(Path(folder), _TENANTS, 100) as place:
            figures: list[Figure] = []
            figures += [item async for item in _cells(wanted, place, place.target(), "http-by-hand")]
            async with stage.runtime(place) as reached:
                target = place.target() | reached
                figures += [item async for item in _cells(wanted, place, target, "http-ours-row")]
    return figures


async def _cells(
    wanted: argparse.Namespace, place: stage.Stage, target: dict[str, Any], key: str
) -> AsyncIterator[Figure]:
    for variant in (BY_KEY[key], BY_KEY[f"{key}-batch"]):
        plan = Plan(
            variants=(variant,),
            in_flight=frozenset({_IN_FLIGHT}),
            seconds=wanted.seconds,
            warm_s=wanted.warm_up,
            repeats=1,
            rows=100,
        )
        watching = asyncio.create_task(_watch(place.home.parent, wanted.warm_up + 2.0, wanted.seconds - 2.0))
        cell = await measurement._cell(plan, place, target, (variant, _TENANTS, _IN_FLIGHT), 0)
        spent = await watching
        requests = cell["ops_per_s"] / variant.per_call
        total = 0.0
        for kind, share in spent.items():
            total += share / requests
            yield figure(f"{variant.title}: {kind}", share / requests * 1e6, "us/request")
        yield figure(f"{variant.title}: all but the client", total * 1e6, "us/request")
        yield figure(f"{variant.title}: requests", requests, "1/s")


async def _watch(folder: Path, after_s: float, for_s: float) -> dict[str, float]:
    """Seconds of processor per second, by kind of process."""
    await asyncio.sleep(after_s)
    before, began = _times(folder), time.monotonic()
    await asyncio.sleep(for_s)
    after, elapsed_s = _times(folder), time.monotonic() - began
    found: dict[str, float] = defaultdict(float)
    for pid, (kind, spent) in after.items():
        if pid in before:
            found[kind] += (spent - before[pid][1]) / elapsed_s
    return {kind: share for kind, share in sorted(found.items()) if share > 0.005}


def _times(folder: Path) -> dict[int, tuple[str, float]]:
    """Kind and processor time of every process that was started from here."""
    found = {}
    for process in _ours(folder):
        with contextlib.suppress(psutil.Error):
            words = f"{process.name()} {' '.join(process.cmdline()[:6])}"
            if "peers.cell" in words:
                continue
            kind = next((kind for word, kind in _KINDS if word in words), "the rest")
            times = process.cpu_times()
            found[process.pid] = (kind, times.user + times.system)
    return found


def _ours(folder: Path) -> Iterator[psutil.Process]:
    """What was started from here, and what has let go of it: a daemon and a database server."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            told = [*process.cmdline(), process.environ().get("TENANCY_HOME", "")]
            if any(str(folder) in text for text in told):
                found[process.pid] = process
                found |= {child.pid: child for child in process.children(recursive=True)}
    yield from found.values()


if __name__ == "__main__":
    main()
