"""What a request costs: processor time in each process, and in the parts that were chosen between.

Processor time and not elapsed time, so that a machine with other work on it says much the same. Run
by `make bench-http`; docs/decisions.md says what came of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil
from peers import measurement, stage
from peers.variants import BY_KEY
from peers.window import Window, in_batches, one_by_one
from peers.work import Work
from report import Figure, figure, print_report
from runtime_processes import command, kind_of, processes_below

_IN_FLIGHT = 64
_TENANTS = 100
_ROWS = 100


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--seconds", type=float, default=5.0, help="window of a cell (default 5)")
    add("--warm-up", type=float, default=3.0, help="seconds before it (default 3)")
    add("--only", choices=("parts", "processes"), help="a half of it")
    add("--profile", type=Path, metavar="DIR", help="write stacks of processes, by py-spy")
    wanted = parser.parse_args()
    figures: list[Figure] = []
    if wanted.only != "processes":
        # Imported late: for the other half it is in the way of profiles of another release.
        from http_parts import parts

        figures += parts()
    if wanted.only != "parts":
        figures += asyncio.run(_processes(wanted))
    print_report(figures)


async def _processes(wanted: argparse.Namespace) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as folder:
        os.chmod(folder, 0o755)  # The database server may run as another user.
        async with stage.server(Path(folder), _TENANTS, _ROWS) as place:
            figures: list[Figure] = []
            figures += [
                item async for item in _cells(wanted, place, place.target(), "http-by-hand")
            ]
            async with stage.runtime(place) as reached:
                target = place.target() | reached
                figures += [item async for item in _cells(wanted, place, target, "http-ours-row")]
    return figures


async def _cells(
    wanted: argparse.Namespace, place: stage.Stage, target: dict[str, Any], key: str
) -> AsyncIterator[Figure]:
    for variant in (BY_KEY[key], BY_KEY[f"{key}-batch"]):
        asked = target | {"level": variant.level, "in_flight": _IN_FLIGHT}
        async with measurement._served(variant, asked) as reached:
            module, _, name = variant.driver.partition(":")
            driver = getattr(import_module(module), name)(asked | reached)
            window = Window(warm_s=wanted.warm_up, seconds=wanted.seconds)
            await driver.open()
            try:
                spent, _ = await asyncio.gather(
                    _watch(wanted, place.home.parent, window, variant.key),
                    _drive(window, driver, variant.per_call),
                )
            finally:
                await driver.close()
        requests = len(window.latencies)
        for kind, seconds in spent.items():
            yield figure(f"{variant.title}: {kind}", seconds / requests * 1e6, "us/request")
        total = sum(spent.values()) / requests
        yield figure(f"{variant.title}: all but the client", total * 1e6, "us/request")
        yield figure(f"{variant.title}: requests", requests / wanted.seconds, "1/s")


async def _drive(window: Window, driver: Any, per_call: int) -> None:
    pairs = Work(tenants=_TENANTS, rows=_ROWS).drawn(0)
    if per_call == 1:
        await one_by_one(window, driver.read, pairs, _IN_FLIGHT)
    else:
        await in_batches(window, driver.read_many, pairs, _IN_FLIGHT, per_call)


async def _watch(
    wanted: argparse.Namespace, folder: Path, window: Window, name: str
) -> dict[str, float]:
    """Seconds of processor time within the window, by kind of process."""
    await asyncio.sleep(0)  # The window opens.
    await asyncio.sleep(window.begins - time.perf_counter())
    before = _times(folder)
    spies = _spies(wanted, before, name)
    await asyncio.sleep(window.ends - time.perf_counter())
    after = _times(folder)
    for spy in spies:
        spy.wait()
    found: dict[str, float] = defaultdict(float)
    for pid, (kind, spent) in after.items():
        found[kind] += spent - before.get(pid, (kind, 0.0))[1]
    return {kind: seconds for kind, seconds in sorted(found.items()) if seconds > 0.02}


def _spies(
    wanted: argparse.Namespace, processes: dict[int, tuple[str, float]], name: str
) -> list[subprocess.Popen[bytes]]:
    """py-spy at work on the processes of ours that do most."""
    if wanted.profile is None:
        return []
    wanted.profile.mkdir(parents=True, exist_ok=True)
    return [
        subprocess.Popen(
            [
                *(Path(sys.executable).with_name("py-spy"), "record", "--nonblocking"),
                *("--format", "raw", "--rate", "200", "--duration", str(int(wanted.seconds))),
                *("--pid", str(pid), "--output", wanted.profile / f"{name}-{kind}-{pid}.txt"),
            ],
            stdout=subprocess.DEVNULL,
        )
        for pid, (kind, _) in processes.items()
        if kind in ("HTTP replica", "tenant actors")
    ]


def _times(folder: Path) -> dict[int, tuple[str, float]]:
    """Kind and processor time of every process that was started from here."""
    found = {}
    for process in processes_below(folder):
        with contextlib.suppress(psutil.Error):
            if "peers.cell" in command(process):
                continue
            times = process.cpu_times()
            found[process.pid] = (kind_of(process), times.user + times.system)
    return found


if __name__ == "__main__":
    main()
