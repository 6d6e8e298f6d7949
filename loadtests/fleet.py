"""Schemas of thousands of tenants: making them, and bringing migrations to them.

Run by `make bench-fleet` on an embedded server of its own, without Ray: 10,000 tenants of level
SCHEMA are made, each with a login and tables of its own; a migration is brought to the first 1,000
of them, then one to all, and a run with nothing to do is measured with both numbers. Times are told
per tenant. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.core.settings import EngineConfig, Settings
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.fleet_run import FleetProgress, FleetReport

TABLES = """
create table people (id integer primary key, email text unique);
create table notes (id integer primary key, author integer references people, body text);
create index notes_body on notes (body);
"""
CREATIONS_AT_ONCE = 4
FLEET = 1_000
#: A run that has nothing to do may take so long.
IDLE_MS_MAX = 100.0
IDLE_RUNS = 5
#: How many times as long as the first tenants the last ones may take.
GROWTH_MAX = 2.0


async def measure(settings: Settings, tenants: int) -> list[Figure]:
    """All figures of a server of its own."""
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_tables", TABLES)
        fleet = min(FLEET, tenants)
        first = await _create(engine, range(fleet))
        figures = [
            figure(f"a tenant of level schema, the first {fleet}, p50", percentile(first, 50), "ms")
        ]
        figures += await _migrated(engine, 2, fleet)
        if tenants > fleet:
            more = await _create(engine, range(fleet, tenants))
            last = more[-fleet:]
            growth = percentile(last, 50) / percentile(first, 50)
            figures += [
                figure(f"a tenant of level schema, the last of {tenants}, p50",
                       percentile(last, 50), "ms"),
                figure("the last tenants over the first", growth, "x", at_most=GROWTH_MAX),
                *await _migrated(engine, 3, tenants),
            ]  # fmt: skip
        return figures


async def _create(engine: Engine, numbers: range) -> list[float]:
    """Make tenants, some at a time; the time of each in ms, in the order in which they ended."""
    turns, took = asyncio.Semaphore(CREATIONS_AT_ONCE), []
    began = time.perf_counter()

    async def create(number: int) -> None:
        async with turns:
            started = time.perf_counter()
            context = TenantContext(tenant_id=f"tenant-{number:05}")
            await engine.create_tenant(context, level=IsolationLevel.SCHEMA)
            took.append((time.perf_counter() - started) * 1_000)
            if len(took) % 250 == 0:
                rate = len(took) / (time.perf_counter() - began)
                _note(f"{numbers.start + len(took)} tenants, {rate:.1f}/s")

    await asyncio.gather(*map(create, numbers))
    return took


async def _migrated(engine: Engine, number: int, tenants: int) -> list[Figure]:
    """A migration of all schemas there are, and runs after it that find nothing to do."""
    began = time.perf_counter()
    text = f"alter table notes add column extra_{number} text not null default 'none'"
    report = await engine.apply_migration(f"{number:04}_extra", text, progress=_show)
    seconds = time.perf_counter() - began
    _check(report)
    idle = []
    for _ in range(IDLE_RUNS):
        began = time.perf_counter()
        _check(await engine.fleet.apply())
        idle.append((time.perf_counter() - began) * 1_000)
    return [
        figure(f"migration of {tenants} schemas", seconds, "s"),
        figure(f"migration of {tenants} schemas, per tenant", seconds / tenants * 1_000, "ms"),
        figure(f"migration of {tenants} schemas, failed", len(report.failures), "schemas",
               at_most=0),
        figure(f"run with nothing pending, {tenants} schemas, p50", percentile(idle, 50), "ms",
               at_most=IDLE_MS_MAX),
    ]  # fmt: skip


def _check(report: FleetReport) -> None:
    if report.failures:
        raise SystemExit(f"schemas failed: {report.failures[0]}")


def _show(progress: FleetProgress) -> None:
    if progress.done % 250 == 0:
        _note(f"migrated {progress.done} of {progress.total}")


def _note(text: str) -> None:
    print(f"{text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=10_000, help="how many (default 10000)")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        figures = asyncio.run(measure(Settings(home=Path(home)), wanted.tenants))
    print_report(figures)


if __name__ == "__main__":
    main()
