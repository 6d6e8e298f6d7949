"""Schemas of thousands of tenants: making them, and bringing migrations to them.

Run by `make bench-fleet` on an embedded server of its own, without Ray: 10,000 tenants of level
SCHEMA are made, each with a login and tables of its own; a migration is brought to the first 1,000
of them, then one to all, and a run with nothing to do is measured with both numbers. Times are told
per tenant. With `--home DIR` the server's data is kept: a later run with more tenants goes on with
those that are there, so that it can be done in parts. The last line is one JSON object.
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
from tenancy.data_isolation.core.rules import StrategyName
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


async def measure(settings: Settings, wanted: argparse.Namespace) -> list[Figure]:
    """All figures of a server of its own."""
    began = time.perf_counter()
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        opened_s = time.perf_counter() - began
        await engine.apply_migration("0001_tables", TABLES)
        there = await _there(engine)
        figures = [figure(f"start of the engine, {there} tenants", opened_s, "s")]
        _note(f"{there} tenants are there, started in {opened_s:.1f} s")
        while there < wanted.tenants:
            # The first thousand by themselves: they get a migration before there are more.
            until = min(wanted.tenants, FLEET) if there < FLEET else wanted.tenants
            figures += await _made(engine, there, until)
            there = until
            if there == min(FLEET, wanted.tenants):
                figures += await _migrated(engine, there)
        if there > FLEET and wanted.migrate:
            figures += await _migrated(engine, there)
        return figures


async def _there(engine: Engine) -> int:
    """How many tenants an earlier run has made."""
    counts = await engine.strategy_counts()
    return counts.get(StrategyName.SCHEMA_LEVEL, 0)


async def _made(engine: Engine, there: int, until: int) -> list[Figure]:
    """Make more tenants."""
    began = time.perf_counter()
    took = await _create(engine, range(there, until))
    seconds = time.perf_counter() - began
    part = max(1, min(FLEET, len(took) // 2))
    growth = percentile(took[-part:], 50) / percentile(took[:part], 50)
    what = f"tenants of level schema, {there} to {until}"
    return [
        figure(f"{what}: made", len(took) / seconds, "/s"),
        figure(f"{what}: each, {CREATIONS_AT_ONCE} at a time, p50", percentile(took, 50), "ms"),
        figure(f"{what}: p99", percentile(took, 99), "ms"),
        figure(f"{what}: the last {part} over the first", growth, "x", at_most=GROWTH_MAX),
    ]


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


async def _migrated(engine: Engine, tenants: int) -> list[Figure]:
    """A migration of all schemas there are, and runs after it that find nothing to do."""
    number = 1 + len(await engine.fleet.migrations())
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
    add = parser.add_argument
    add("--tenants", type=int, default=10_000, help="how many (default 10000)")
    add("--home", type=Path, metavar="DIR", help="where the server's data stays")
    add("--no-migrate", dest="migrate", action="store_false",
        help="leave out the migration of all of them")  # fmt: skip
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as folder:
        os.chmod(folder, 0o755)  # The database server may run as another user.
        settings = Settings(home=wanted.home or Path(folder))
        figures = asyncio.run(measure(settings, wanted))
    print_report(figures)


if __name__ == "__main__":
    main()
