"""What measuring costs: operations with it and without it, in turn, in one process.

Run by `make bench-measured` against embedded servers of its own. Closed loop, 64 reads in flight,
through a tenant actor as its callers reach it, in this process in place of Ray (with Ray an
operation costs more, and measuring the same), and through the engine alone. While the reads go on,
measuring is switched on and off for slices of milliseconds, in pairs of a random order, so that
what else runs on the machine falls on both alike. Processor time is this process's: PostgreSQL has
no part in it. Of the slices the middle half is averaged; the uncertainty is twice the standard
error.

Apart from that, noting an operation is timed by itself, at its least: on a busy machine that is the
figure to trust. The last line is one JSON object (`report.py`).
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
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, QueryResult, TenantType
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.measured_windows import (
    Cell,
    MeasuredTenant,
    MeasuredWindow,
    MeasuredWindows,
)
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.window_files import WindowFiles

SCHEMA = "create table users (id integer primary key, bal bigint not null)"
FILL = "insert into users select n, n from generate_series(1, 500) n"
READ = "select bal from users where id = $1"
ROWS = 500
TENANTS = (1, 100)
IN_FLIGHT = 64
#: What measuring may add, in percent.
GOAL_PERCENT = 3
ACTOR = "through the actor"
CELLS = 5_000
#: Operations of a flight, and flights that are noted at a time, so often.
FLIGHT, FLIGHTS, TIMES = 16, 40, 200
#: Times that the slices are drawn again to see how sure a figure is.
REDRAWS = 400
DEADLINE_S = 30.0

#: Runs one read of one tenant; its rows.
Read = Callable[[str, int], Awaitable[list[list[Any]]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """What a slice of the run has shown."""

    rate: float
    cpu_us: float


class Reads:
    """Reads that go on until they are stopped; raises `SystemExit` for a wrong answer."""

    def __init__(self, read: Read, tenants: int) -> None:
        self._read, self._tenants = read, tenants
        self._done = 0
        self._stopped = False

    async def work(self, seed: int) -> None:
        """One read after the other."""
        draw = random.Random(seed)
        while not self._stopped:
            row = draw.randrange(1, ROWS + 1)
            if await self._read(f"t-{draw.randrange(self._tenants)}", row) != [[row]]:
                raise SystemExit("a wrong answer")
            self._done += 1

    async def slice(self, seconds: float) -> Slice:
        """What goes on for so long."""
        done, cpu_s, began = self._done, time.process_time(), time.perf_counter()
        await asyncio.sleep(seconds)
        count, spent_s = self._done - done, time.process_time() - cpu_s
        elapsed_s = time.perf_counter() - began
        return Slice(rate=count / elapsed_s, cpu_us=spent_s / max(count, 1) * 1e6)

    def stop(self) -> None:
        """Let each worker end with its read."""
        self._stopped = True


async def compared(
    name: str, engine: Engine, read: Read, tenants: int, arguments: argparse.Namespace
) -> list[Figure]:
    """What measuring adds to reads of so many tenants."""
    windows = MeasuredWindows(engine.settings, SystemClock())
    draw, reads = random.Random(tenants), Reads(read, tenants)
    found: dict[bool, list[Slice]] = {True: [], False: []}
    async with asyncio.TaskGroup() as group:
        for seed in range(IN_FLIGHT):
            group.create_task(reads.work(seed))
        await reads.slice(1.0)
        for _ in range(arguments.pairs):
            for measured in draw.sample((True, False), 2):
                engine.observe(windows if measured else None, None)
                found[measured].append(await reads.slice(arguments.seconds))
        reads.stop()
    engine.observe(None, None)
    cpu = {on: [item.cpu_us for item in slices] for on, slices in found.items()}
    times = {on: [1 / max(item.rate, 1.0) for item in slices] for on, slices in found.items()}
    who = f"{name}, {'1 tenant' if tenants == 1 else f'{tenants} tenants'}"
    # The engine alone is less than any operation takes.
    goal = {"at_most": GOAL_PERCENT} if name == ACTOR else {}
    return [
        figure(f"processor time added, {who}", _added(cpu), "%", **goal),
        figure(f"uncertainty of it, {who}", _uncertainty(cpu), "%"),
        figure(f"rate lost, {who}", _added(times), "%", **goal),
        figure(f"uncertainty of the rate lost, {who}", _uncertainty(times), "%"),
        figure(f"processor time, {who}", _middle(cpu[False]), "us"),
        figure(f"operations/s, {who}", 1 / _middle(times[False]), "/s"),
    ]


def _added(found: Mapping[bool, Sequence[float]]) -> float:
    return (_middle(found[True]) / _middle(found[False]) - 1) * 100


def _middle(values: Sequence[float]) -> float:
    """The mean of the middle half."""
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def _uncertainty(found: Mapping[bool, Sequence[float]]) -> float:
    """Twice the standard error of `_added`, by drawing again from the pairs (bootstrap)."""
    draw, pairs = random.Random(0), list(zip(found[True], found[False], strict=True))
    again = []
    for _ in range(REDRAWS):
        drawn = draw.choices(pairs, k=len(pairs))
        again.append(_added({True: [on for on, _ in drawn], False: [off for _, off in drawn]}))
    return 2 * statistics.stdev(again)


async def noted(engine: Engine) -> list[Figure]:
    """What noting an operation takes, in flights of one tenant and of many."""
    connection: Any = None  # No flight is looked at from outside here.
    statement = engine.guard.check("select 1")
    result = QueryResult(columns=(), rows=[[1]], row_count=1)
    figures = []
    for tenants in (1, FLIGHT):
        routes = [await engine._routes.route(TenantId(f"t-{n}")) for n in range(tenants)]
        windows = MeasuredWindows(engine.settings, SystemClock())
        took = []
        for _ in range(TIMES):
            flights = [
                [_ticket(routes[n % tenants], statement, result) for n in range(FLIGHT)]
                for _ in range(FLIGHTS)
            ]
            began = time.perf_counter()
            for flight in flights:
                windows.land(connection, flight, time.monotonic())
            took.append((time.perf_counter() - began) / (FLIGHT * FLIGHTS) * 1e6)
        who = "one tenant" if tenants == 1 else "a tenant each"
        figures.append(
            figure(f"noting an operation, {FLIGHT} of {who} in a flight", min(took), "us")
        )
    return figures


def _ticket(route: Route, statement: Statement, result: QueryResult) -> Ticket:
    made = Ticket(
        route.key,
        route.tenant.tenant_no,
        route.placement.epoch,
        limits=route.limits,
        statement=statement,
    )
    made.route, made.began_s = route, time.monotonic()
    made.answer(result)
    return made


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
                    await compared(ACTOR, host.engine, read, tenants, arguments)
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
        figures += await noted(engine)
    return figures + await asyncio.to_thread(written, home)


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.03, help="of a slice (default 0.03)")
    parser.add_argument("--pairs", type=int, default=600, help="pairs of slices (default 600)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        print_report(uvloop.run(measured(Path(home) / "home", arguments)))


if __name__ == "__main__":
    main()
