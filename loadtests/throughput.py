"""Operations per second and their times through tenant actors, at each isolation level.

Run by `make bench-throughput` (and `make bench`) against a runtime of its own, by the asynchronous
Python client. Closed loop: so many operations are in flight, and each is followed by the next one
when it is answered. Every answer is looked at: a wrong one ends the run. The cells are measured in
turn, again and again, and the medians are told.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from filled_tenants import FILL, SCHEMA
from own_runtime import own_runtime
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.client import TenancyClient

READ = "select bal from users where id = $1"
WRITE = "update users set email = $2 where id = $1 returning bal"
#: Tenants of each level, of which one alone or all are used.
TENANTS = {"row": 100, "schema": 20, "database": 5}
ROWS = 500
IN_FLIGHT = (1, 64, 512)
#: Of so many operations one is a write, in the cells with writes.
WRITES_OF = 5
#: Operations per second at least, and the time of half of them in ms at most, at 64 in flight.
GOALS = {"row": (10_000, 10), "schema": (5_000, 25), "database": (1_000, 50)}
GOALS_AT = 64
P99_OF_P50 = 4
WARM_UP_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """What is measured: of one level, with so many tenants and operations in flight."""

    level: str
    tenants: int
    in_flight: int
    writes: bool = False

    def __str__(self) -> str:
        who = "1 tenant" if self.tenants == 1 else f"{self.tenants} tenants"
        what = f", 1 of {WRITES_OF} writes" if self.writes else ""
        return f"{self.level}, {who}, {self.in_flight} in flight{what}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What one window of a cell has shown."""

    rate: float
    p50_ms: float
    p99_ms: float


def cells() -> list[Cell]:
    """All of them: reads of one and of all tenants, and some with writes."""
    found = [
        Cell(level=level, tenants=tenants, in_flight=in_flight)
        for level, most in TENANTS.items()
        for tenants in (1, most)
        for in_flight in IN_FLIGHT
    ]
    return found + [
        Cell(level=level, tenants=most, in_flight=GOALS_AT, writes=True)
        for level, most in TENANTS.items()
    ]


async def make_tenants(url: str, key: str) -> None:
    """The tenants, with their rows. Of the type whose rate is limited least."""
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
        body = {"name": "0001_users", "sql": SCHEMA}
        (await client.post("/v1/schema/migrations", json=body)).raise_for_status()
        for level, most in TENANTS.items():
            for number in range(most):
                tenant = f"{level}-{number}"
                wish = {"tenant_id": tenant, "tenant_type": "enterprise", "isolation_level": level}
                (await client.post("/v1/tenants", json=wish)).raise_for_status()
                fill = {"query": FILL, "params": [number, ROWS]}
                path = f"/v1/tenants/{tenant}/query"
                (await client.post(path, json=fill)).raise_for_status()


async def window(client: TenancyClient, cell: Cell, seconds: float) -> Window:
    """Work for so long after a warm-up; raises `SystemExit` for a wrong answer."""
    began = time.perf_counter() + WARM_UP_S
    until, took = began + seconds, []

    async def work(seed: int) -> None:
        draw = random.Random(seed)
        for turn in itertools.count(seed):
            started = time.perf_counter()
            if started >= until:
                return
            number, row = draw.randrange(cell.tenants), draw.randrange(1, ROWS + 1)
            text, params = READ, [row]
            if cell.writes and turn % WRITES_OF == 0:
                text, params = WRITE, [row, f"user{turn}@example.com"]
            result = await client.execute(f"{cell.level}-{number}", text, params)
            if result.rows != [[number * 1000 + row]]:
                raise SystemExit(f"a wrong answer: {result.rows} for row {row} of {number}")
            ended = time.perf_counter()
            if began <= ended < until:
                took.append(ended - started)

    async with asyncio.TaskGroup() as group:
        for seed in range(cell.in_flight):
            group.create_task(work(seed))
    return Window(
        rate=len(took) / seconds,
        p50_ms=percentile(took, 50) * 1_000,
        p99_ms=percentile(took, 99) * 1_000,
    )


def figures_of(cell: Cell, windows: Sequence[Window]) -> list[Figure]:
    """The medians of a cell's windows."""
    rate, p50_ms, p99_ms = (
        statistics.median(getattr(one, name) for one in windows)
        for name in ("rate", "p50_ms", "p99_ms")
    )
    goal: dict[str, Any] = {"rate": {}, "p50": {}, "p99": {}}
    if cell.in_flight == GOALS_AT and not cell.writes:
        least, most_ms = GOALS[cell.level]
        goal = {"rate": {"at_least": least}, "p50": {"at_most": most_ms}}
        goal["p99"] = {"at_most": P99_OF_P50}
    return [
        figure(f"operations/s, {cell}", rate, "/s", **goal["rate"]),
        figure(f"p50, {cell}", p50_ms, "ms", **goal["p50"]),
        figure(f"p99 over p50, {cell}", p99_ms / p50_ms, "x", **goal["p99"]),
    ]


def stolen() -> tuple[float, float]:
    """Time that the host has taken from the processors, and all of theirs, in ticks (proc(5))."""
    fields = [float(text) for text in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)


async def measured(home: Path, *, seconds: float, repeats: int) -> list[Figure]:
    """Every cell's figures, and what the host took meanwhile."""
    windows: dict[Cell, list[Window]] = defaultdict(list)
    before = stolen()
    async with connect(home=home) as client:
        for _ in range(repeats):
            for cell in cells():
                windows[cell].append(await window(client, cell, seconds))
                print(f"{cell}: {windows[cell][-1].rate:,.0f}/s", flush=True)
    after = stolen()
    steal = (after[0] - before[0]) / (after[1] - before[1])
    figures = [item for cell, found in windows.items() for item in figures_of(cell, found)]
    return [*figures, figure("time that the host took, throughput", steal * 100, "%")]


def throughput(*, seconds: float, repeats: int) -> list[Figure]:
    """The figures of a runtime of its own."""
    with own_runtime() as runtime:
        asyncio.run(make_tenants(runtime.url, runtime.key))
        return asyncio.run(measured(runtime.home, seconds=seconds, repeats=repeats))


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each window (default 3)")
    parser.add_argument("--repeats", type=int, default=3, help="windows of each cell (default 3)")
    arguments = parser.parse_args()
    print_report(throughput(seconds=arguments.seconds, repeats=arguments.repeats))


if __name__ == "__main__":
    main()
