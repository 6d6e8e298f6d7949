"""A thousand tenants on one PostgreSQL server of a hundred connections.

Every tenant is of level SCHEMA: it has a login role of its own, so no session can serve two of
them, and there are many times more tenants than sessions. Run by `make bench-tenants` against an
engine in this process and an embedded server of its own. Each answer is compared with what the
tenant has to get, and while operations run pg_stat_activity tells how many connections there are.
The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import re
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
from report import Figure, figure, percentile, print_report
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tenancy.data_isolation.core import IsolationLevel, Operation, TenancyError, TenantContext
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.engine.engine import Engine

#: What the promise names.
SERVER_CONNECTIONS = 100
CREATION_GOAL_MS = 150

TABLES = """
create table canaries (
    id     integer primary key,
    owner  text not null,
    writes bigint not null default 0
);
"""
SEED = "insert into canaries (id, owner) values (1, $1)"
READ = "select owner, writes from canaries where id = $1"
WRITE = "update canaries set writes = writes + 1 where id = $1 returning owner, writes"
#: One in so many operations writes.
WRITES_EVERY = 4
CREATIONS_AT_ONCE = 4
VERIFIED_AT_ONCE = 64
#: Exponent of the rank in the skewed pattern: the first of 1,000 tenants gets an eighth of all.
ZIPF_EXPONENT = 1.0
SAMPLE_S = 0.01

#: Tenants' sessions, and all connections of clients without the one that counts.
COUNT_CONNECTIONS = """
select count(*) filter (where application_name like 'tenancy%.%'), count(*)
from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""
COUNT_OPENED = "select sum(sessions)::bigint from pg_stat_database"
#: How PostgreSQL refuses a connection for want of a slot, without the words of any one version.
REFUSED = re.compile(r"FATAL:.*(too many (clients|connections)|connection slots are reserved)")


@dataclass(slots=True)
class Outcome:
    """What came of the operations of one pattern."""

    name: str
    took_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0
    opened: int = 0
    served: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    #: Errors that say that nothing was done and the same operation can be sent again.
    turned_away: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class Peaks:
    """The most connections that were seen at any time."""

    samples: int = 0
    sessions: int = 0
    connections: int = 0


class Load:
    """Operations of many tenants at the same time, each answer compared with the expected one."""

    def __init__(self, engine: Engine, names: list[str], in_flight: int) -> None:
        self._engine = engine
        self._names = names
        self._in_flight = in_flight
        self._random = random.Random(1)
        #: Writes that were acknowledged, which at the end have to be those that are there.
        self._written: Counter[str] = Counter()

    def uniform(self) -> Iterator[str]:
        """Every tenant once in each round, in another order every time."""
        while True:
            yield from self._random.sample(self._names, len(self._names))

    def zipf(self) -> Iterator[str]:
        """A few tenants much more often than the others."""
        ranks = itertools.accumulate(n**-ZIPF_EXPONENT for n in range(1, len(self._names) + 1))
        weights, shuffled = list(ranks), self._random.sample(self._names, len(self._names))
        while True:
            yield from self._random.choices(shuffled, cum_weights=weights, k=1_000)

    async def run(self, name: str, tenants: Iterator[str], seconds: float) -> Outcome:
        """Keep so many operations in flight until the time is over or there are no more tenants."""
        outcome = Outcome(name)
        started = time.perf_counter()
        numbers = itertools.count()

        async def worker() -> None:
            while time.perf_counter() - started < seconds:
                tenant = next(tenants, None)
                if tenant is None:
                    return
                await self._once(outcome, tenant, next(numbers) % WRITES_EVERY == 0)

        await asyncio.gather(*(worker() for _ in range(self._in_flight)))
        outcome.seconds = time.perf_counter() - started
        return outcome

    async def verify(self) -> Outcome:
        """Every tenant has its own row with all of its own writes, and nobody else's."""
        outcome = Outcome("verify")
        gate = asyncio.Semaphore(min(self._in_flight, VERIFIED_AT_ONCE))

        async def check(tenant: str) -> None:
            async with gate:
                result = await self._engine.execute(tenant, Operation(query=READ, params=[1]))
            outcome.served.add(tenant)
            if result.rows != [[tenant, self._written[tenant]]]:
                outcome.wrong.append(f"{tenant}: {result.rows}, {self._written[tenant]} writes")

        await asyncio.gather(*map(check, self._names))
        return outcome

    async def _once(self, outcome: Outcome, tenant: str, writes: bool) -> None:
        operation = Operation(query=WRITE if writes else READ, params=[1])
        started = time.perf_counter()
        try:
            result = await self._engine.execute(tenant, operation)
        except TenancyError as error:
            kind = outcome.turned_away if error.retryable else outcome.failed
            kind[f"{type(error).__name__}: {error.detail}"] += 1
            await asyncio.sleep(error.retry_after_s or 0)
            return
        outcome.took_ms.append((time.perf_counter() - started) * 1_000)
        self._written[tenant] += writes
        outcome.served.add(tenant)
        if [row[0] for row in result.rows] != [tenant]:
            outcome.wrong.append(f"{tenant}: {result.rows}")


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tenants", type=int, default=1_000)
    arguments.add_argument("--in-flight", type=int, default=256, help="operations at the same time")
    arguments.add_argument("--seconds", type=float, default=25.0, help="time for each pattern")
    arguments.add_argument(
        "--sessions",
        type=int,
        default=Settings().server_connections_max,
        help="sessions that the engine may hold on the server",
    )
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        settings = Settings(home=Path(home), server_connections_max=wanted.sessions)
        figures = asyncio.run(_measure(settings, wanted))
    print_report(figures)


async def _measure(settings: Settings, wanted: argparse.Namespace) -> list[Figure]:
    console = Console(stderr=True)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        server = engine.servers[0]
        limit = await _server_limit(server)
        await engine.apply_migration("0001_canaries", TABLES)
        names = [f"tenant-{number:04}" for number in range(wanted.tenants)]
        figures = await _create(engine, names, console)
        load, peaks = Load(engine, names, wanted.in_flight), Peaks()
        outcomes = []
        patterns = (("once", iter(names), 600.0), ("uniform", load.uniform(), wanted.seconds),
                    ("zipf", load.zipf(), wanted.seconds))  # fmt: skip
        async with _watched(server, peaks) as counted:
            for name, tenants, seconds in patterns:
                console.print(f"{name}: {wanted.in_flight} operations in flight ...")
                before = await counted.fetchval(COUNT_OPENED)
                outcome = await load.run(name, tenants, seconds)
                outcome.opened = await counted.fetchval(COUNT_OPENED) - before
                outcomes.append(outcome)
            outcomes.append(await load.verify())
    for outcome in outcomes:
        for told in (outcome.wrong[:5], outcome.turned_away.items(), outcome.failed.items()):
            for item in told:
                console.print(f"{outcome.name}: {item}", style="red")
    refused = sum(_refusals(path) for path in (settings.home / "postgres").glob("**/*.log"))
    return figures + _summary(settings, limit, names, outcomes, peaks, refused)


async def _create(engine: Engine, names: list[str], console: Console) -> list[Figure]:
    """All tenants, a few at a time, each with a row that names it."""
    gate = asyncio.Semaphore(CREATIONS_AT_ONCE)
    took_ms: list[float] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    started = time.perf_counter()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("tenants", total=len(names))

        async def create(name: str) -> None:
            async with gate:
                begun = time.perf_counter()
                await engine.create_tenant(
                    TenantContext(tenant_id=name), level=IsolationLevel.SCHEMA
                )
                took_ms.append((time.perf_counter() - begun) * 1_000)
                await engine.execute(name, Operation(query=SEED, params=[name]))
            progress.advance(task)

        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(create(name))
    seconds = time.perf_counter() - started
    at_once = f"{CREATIONS_AT_ONCE} at once"
    return [
        figure("tenants created", len(names), "tenants"),
        figure("time per created tenant, with its first row", seconds * 1_000 / len(names), "ms",
                at_most=CREATION_GOAL_MS),
        figure(f"creation of a tenant p50, {at_once}", percentile(took_ms, 50), "ms"),
        figure(f"creation of a tenant p99, {at_once}", percentile(took_ms, 99), "ms"),
    ]  # fmt: skip


@asynccontextmanager
async def _watched(server: ServerConfig, peaks: Peaks) -> AsyncIterator[asyncpg.Connection]:
    """Count connections within the block; gives another connection, for questions."""
    counting = await asyncpg.connect(server.dsn)
    asking = await asyncpg.connect(server.dsn)

    async def watch() -> None:
        statement = await counting.prepare(COUNT_CONNECTIONS)
        while True:
            for sessions, connections in await statement.fetch():
                peaks.sessions = max(peaks.sessions, sessions)
                peaks.connections = max(peaks.connections, connections)
            peaks.samples += 1
            await asyncio.sleep(SAMPLE_S)

    watching = asyncio.create_task(watch())
    try:
        yield asking
        if watching.done():
            watching.result()
    finally:
        watching.cancel()
        await asyncio.wait([watching])
        await counting.close()
        await asking.close()


def _summary(
    settings: Settings,
    limit: int,
    names: list[str],
    outcomes: list[Outcome],
    peaks: Peaks,
    refused: int,
) -> list[Figure]:
    served = set.intersection(
        *(outcome.served for outcome in outcomes if outcome.name in ("once", "verify"))
    )
    done = sum(len(outcome.took_ms) for outcome in outcomes)
    wrong = sum(len(outcome.wrong) for outcome in outcomes)
    away = sum(outcome.turned_away.total() for outcome in outcomes)
    failed = sum(outcome.failed.total() for outcome in outcomes)
    figures = [
        figure("max_connections of the server", limit, "connections", at_most=SERVER_CONNECTIONS),
        figure("tenants served by it, all of them twice", len(served), "tenants",
                at_least=len(names)),
        figure("operations done", done, "operations"),
        figure("answers that were not the tenant's own", wrong, "answers", at_most=0),
        figure("operations that failed", failed, "operations", at_most=0),
        figure("operations turned away, to be sent again", away, "operations", at_most=0),
        figure("connections that PostgreSQL refused", refused, "connections", at_most=0),
        figure("most sessions of tenants at a time", peaks.sessions, "connections",
               at_least=1, at_most=settings.server_connections_max),
        figure("most connections of all kinds at a time", peaks.connections, "connections",
                at_most=limit),
        figure("samples of the number of connections", peaks.samples, "samples"),
    ]  # fmt: skip
    for outcome in outcomes:
        if outcome.took_ms:
            figures += _pace(outcome, settings.connection_wait_ms)
    return figures


def _pace(outcome: Outcome, wait_ms: int) -> list[Figure]:
    """How fast one pattern went. Who waits longer than `wait_ms` for a session is turned away."""
    name, count = outcome.name, len(outcome.took_ms)
    return [
        figure(f"{name}: rate", count / outcome.seconds, "op/s"),
        figure(f"{name}: p50", percentile(outcome.took_ms, 50), "ms"),
        figure(f"{name}: p99", percentile(outcome.took_ms, 99), "ms", at_most=wait_ms),
        figure(f"{name}: connections opened", outcome.opened, "connections"),
        figure(f"{name}: operations per connection", count / max(1, outcome.opened), "operations"),
    ]


async def _server_limit(server: ServerConfig) -> int:
    connection = await asyncpg.connect(server.dsn)
    try:
        return int(await connection.fetchval("show max_connections"))
    finally:
        await connection.close()


def _refusals(log: Path) -> int:
    with log.open(errors="replace") as lines:
        return sum(REFUSED.search(line) is not None for line in lines)


if __name__ == "__main__":
    main()
