"""What measuring costs: operations with it and without it, in turn, in one process.

Run by `make bench-measured` against embedded servers of its own. Closed loop, 64 reads in flight,
through the engine alone and through a tenant actor as its callers reach it, in this process in
place of Ray: with Ray an operation costs more, and measuring the same. Each pair of windows is on
and off in a random order; processor time per operation is this process's, so PostgreSQL has no part
in it. What else runs on the machine only ever adds to a window, so the quarter of the windows with
the least is what is compared. The last line is one JSON object (`report.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvloop
from report import Figure, figure, print_report

from tenancy.data_isolation.actors.channel import ActorChannel, Limits
from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
    write_configuration,
)
from tenancy.data_isolation.actors.directory import build_directory
from tenancy.data_isolation.actors.statement_kind import changes_nothing
from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.actors.wire import pack_operation
from tenancy.data_isolation.core import EngineConfig, IsolationLevel, Settings, TenantContext
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.types import Operation, TenantType
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.measured_windows import (
    Cell,
    MeasuredTenant,
    MeasuredWindow,
    MeasuredWindows,
)
from tenancy.data_isolation.engine.window_files import WindowFiles

SCHEMA = "create table users (id integer primary key, bal bigint not null)"
FILL = "insert into users select n, n from generate_series(1, 500) n"
READ = "select bal from users where id = $1"
ROWS = 500
TENANTS = (1, 100)
IN_FLIGHT = 64
#: What measuring may add, in percent.
GOAL_PERCENT = 3
CELLS = 5_000
DEADLINE_S = 30.0

#: Runs one read of one tenant; its rows.
Read = Callable[[str, int], Awaitable[list[list[Any]]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What a window has shown."""

    rate: float
    cpu_us: float


async def window(read: Read, tenants: int, seconds: float) -> Window:
    """Work for so long; raises `SystemExit` for a wrong answer."""
    done = 0
    cpu_s, began = time.process_time(), time.perf_counter()
    until = began + seconds

    async def work(seed: int) -> None:
        nonlocal done
        draw = random.Random(seed)
        while time.perf_counter() < until:
            row = draw.randrange(1, ROWS + 1)
            if await read(f"t-{draw.randrange(tenants)}", row) != [[row]]:
                raise SystemExit("a wrong answer")
            done += 1

    async with asyncio.TaskGroup() as group:
        for seed in range(IN_FLIGHT):
            group.create_task(work(seed))
    spent_s = time.process_time() - cpu_s
    return Window(rate=done / (time.perf_counter() - began), cpu_us=spent_s / done * 1e6)


async def compared(
    name: str, engine: Engine, read: Read, tenants: int, arguments: argparse.Namespace
) -> list[Figure]:
    """What measuring adds to reads of so many tenants."""
    windows = MeasuredWindows(engine.settings, SystemClock())
    draw = random.Random(tenants)
    pairs: list[dict[bool, Window]] = []
    await window(read, tenants, 1.0)
    for _ in range(arguments.pairs):
        pair = {}
        for measured in draw.sample((True, False), 2):
            engine.observe(windows if measured else None, None)
            pair[measured] = await window(read, tenants, arguments.seconds)
        pairs.append(pair)
        windows.cut()
    engine.observe(None, None)
    cpu = [pair[True].cpu_us / pair[False].cpu_us for pair in pairs]
    least = {on: _quarter([pair[on].cpu_us for pair in pairs]) for on in (True, False)}
    longest = {on: _quarter([1 / pair[on].rate for pair in pairs]) for on in (True, False)}
    who = f"{name}, {'1 tenant' if tenants == 1 else f'{tenants} tenants'}"
    return [
        figure(f"processor time added, {who}", _added(least), "%", at_most=GOAL_PERCENT),
        figure(f"rate lost, {who}", _added(longest), "%", at_most=GOAL_PERCENT),
        figure(f"spread of the pairs, {who}", _spread(cpu), "%"),
        figure(f"processor time, {who}", least[False], "us"),
        figure(f"operations/s, {who}", 1 / longest[False], "/s"),
    ]


def _added(found: Mapping[bool, float]) -> float:
    return (found[True] / found[False] - 1) * 100


def _quarter(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def _spread(ratios: Sequence[float]) -> float:
    """Half of the ratios are within so much of each other."""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return (high - low) * 100


def written(home: Path) -> list[Figure]:
    """What keeping a window with all kinds of statement that there may be takes."""
    tenants = []
    for number in range(CELLS // 10):
        tenant = MeasuredTenant(number + 1, None)
        for kind in range(10):
            cell = tenant.cells[str(kind)] = Cell(f"{kind:016x}", "read", ("users",))
            cell.operations = 20
            cell.latencies = dict.fromkeys(range(100, 120), 1)
        tenants.append(tenant)
    window = MeasuredWindow(began_at=datetime.now(UTC), length_s=60.0, tenants=tuple(tenants))
    files = WindowFiles(Settings(home=home, server_free_disk_min_bytes=1), "bench")
    took = []
    for _ in range(15):
        began = time.process_time()
        files.write(window)
        took.append(time.process_time() - began)
    share = statistics.mean(took) / 60 * 100
    return [
        figure(f"written, {CELLS} kinds of statement, mean of a file", statistics.mean(took), "s"),
        figure(f"written, {CELLS} kinds, share of a processor", share, "%"),
    ]


async def through_actor(
    engine: Engine, settings: Settings, arguments: argparse.Namespace
) -> list[Figure]:
    """The same through an actor, by a channel that calls it in this process."""
    configuration = ActorConfiguration(
        settings=settings,
        servers=engine.servers,
        directory=build_directory(version=1, actors_per_region=1),
    )
    path = configuration_path(settings)
    write_configuration(configuration, path)
    name = configuration.directory.shared_names()[0]
    actor = TenantActor(name, str(path))
    await actor.reload()

    async def connect() -> Any:
        return actor.execute_many

    channel = ActorChannel(
        name=name,
        connect=connect,
        changes_nothing=changes_nothing,
        limits=Limits.of(settings),
        clock=SystemClock(),
    )

    async def read(tenant: str, row: int) -> list[list[Any]]:
        operation = Operation(query=READ, params=[row])
        packed = (pack_operation(operation, settings.request_bytes_max),)
        result = await channel.perform(
            tenant, packed, atomic=None, deadline_s=DEADLINE_S, final=True
        )
        rows: list[list[Any]] = result.rows
        return rows

    host = await actor._opened()  # It measures by itself otherwise.
    try:
        return list(
            itertools.chain.from_iterable(
                [
                    await compared("through the actor", host.engine, read, tenants, arguments)
                    for tenants in TENANTS
                ]
            )
        )
    finally:
        await channel.close()
        await actor.close()


async def measured(home: Path, arguments: argparse.Namespace) -> list[Figure]:
    """All figures."""
    settings = Settings(home=home, measurement_window_s=0)
    figures = []
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_users", SCHEMA)
        for number in range(max(TENANTS)):
            context = TenantContext(tenant_id=f"t-{number}", tenant_type=TenantType.ENTERPRISE)
            await engine.create_tenant(context, level=IsolationLevel.ROW)
            await engine.execute(f"t-{number}", Operation(query=FILL))

        async def read(tenant: str, row: int) -> list[list[Any]]:
            return (await engine.execute(tenant, Operation(query=READ, params=[row]))).rows

        figures += await through_actor(engine, settings, arguments)
        for tenants in TENANTS:
            figures += await compared("the engine alone", engine, read, tenants, arguments)
    return figures + await asyncio.to_thread(written, home)


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each window (default 0.3)")
    parser.add_argument("--pairs", type=int, default=80, help="pairs of windows (default 80)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        print_report(uvloop.run(measured(Path(home) / "home", arguments)))


if __name__ == "__main__":
    main()
