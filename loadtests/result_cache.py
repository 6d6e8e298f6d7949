"""What keeping results saves, and what it costs: point reads, reports, writes, tenants without.

One engine in this process over an embedded PostgreSQL and an embedded Redis of its own. The same
statements run for two tenants with the same rows, one of which keeps its results; turns of both
follow each other, and of each the median counts. Every answer is compared. Run by
`make bench-cache`. The last line is one JSON object:
`{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}, ...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from report import Figure, figure, print_report

from tenancy.data_isolation.core import IsolationLevel, Operation, TenantContext, TenantType
from tenancy.data_isolation.core.settings import EngineConfig, Settings
from tenancy.data_isolation.engine.engine import Engine

TABLES = """
create table orders (
    id integer primary key, customer integer not null, total integer not null, note text not null
);
create table notes (id integer primary key, n integer not null);
"""
SEED = (
    "insert into orders select n, n % 997, n % 1013, repeat('x', 100) from generate_series(1, $1) n"
)
ROWS = 20_000
POINT = "select customer, total from orders where id = $1"
REPORT = (
    "select customer, sum(total), count(*) from orders group by customer order by 2 desc limit 20"
)
BETWEEN = "update orders set total = total + 1 where id = $1"
WRITE = "update notes set n = n + 1 where id = $1"
POINT_BY_DEFAULT = "point read with the default settings"
#: At least so many times the operations.
GOALS = {"report": 5.0, POINT_BY_DEFAULT: 0.9}
#: How much longer an operation of a tenant without may take because there is such a thing.
UNCACHED_GOAL_PERCENT = 2.0


async def measured(settings: Settings, turns: int) -> list[Figure]:
    """The figures, with every statement looked for however cheap it is."""
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_orders", TABLES)
        for name in ("plain", "kept"):
            context = TenantContext(tenant_id=name, tenant_type=TenantType.ENTERPRISE)
            await engine.create_tenant(context, level=IsolationLevel.ROW)
            await engine.execute(name, Operation(query=SEED, params=[ROWS]))
            notes = "insert into notes select n, 0 from generate_series(1, 64) n"
            await engine.execute(name, Operation(query=notes))
        await engine.keep_results("kept", True)
        await settled(engine)
        figures = []
        for what, query, count, most in (
            ("point read", POINT, 3_000, 64),
            ("report", REPORT, 40, 4),
            ("write", WRITE, 400, 64),
        ):
            for at_once in (1, most):
                figures += await compared(engine, what, query, count, at_once, turns)
        figures += [await uncached(engine, turns), *churn(await churned(engine))]
        # What is cheap is left to PostgreSQL, unless settings say otherwise.
        engine.results._settings = Settings(home=settings.home)
        return figures + await compared(engine, POINT_BY_DEFAULT, POINT, 3_000, 64, turns)


async def settled(engine: Engine) -> None:
    """Until results are given."""
    while engine.results.statistics.hits_memory == 0:
        await engine.execute("kept", Operation(query=POINT, params=[1]))


async def compared(
    engine: Engine, what: str, query: str, count: int, at_once: int, turns: int
) -> list[Figure]:
    """Operations per second with and without, in turns."""
    rates: dict[str, list[float]] = {"plain": [], "kept": []}
    for _ in range(turns):
        for name in rates:
            rates[name].append(await rate(engine, name, query, count, at_once))
    plain, kept = (statistics.median(rates[name]) for name in ("plain", "kept"))
    goal = {"at_least": GOALS[what]} if what in GOALS else {}
    return [
        figure(f"{what}, {at_once} at once, not kept", plain, "ops/s"),
        figure(f"{what}, {at_once} at once, kept", kept, "ops/s"),
        figure(f"{what}, {at_once} at once, kept / not kept", kept / plain, "times", **goal),
    ]


async def rate(engine: Engine, name: str, query: str, count: int, at_once: int) -> float:
    """Operations per second; every answer of a read is compared with the first."""
    left = iter(range(count))
    has_parameter = "$1" in query
    first: dict[int, Any] = {}

    async def work() -> None:
        for number in left:
            key = 1 + number % 64
            params = [key] if has_parameter else []
            result = await engine.execute(name, Operation(query=query, params=params))
            if result.columns and first.setdefault(key, result.rows) != result.rows:
                raise SystemExit(f"{query} gave two answers")

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return count / (time.perf_counter() - started)


async def uncached(engine: Engine, turns: int) -> Figure:
    """What the question whether results are kept costs a tenant for which they are not."""
    rates = [await rate(engine, "plain", POINT, 4_000, 64) for _ in range(turns)]
    whole = 1 / statistics.median(rates)
    route = engine._routes.known("plain")
    if route is None:
        raise SystemExit("the way to the tenant is not known")
    runner: Any = None
    started = time.perf_counter()
    for _ in range(100_000):
        runner = engine._executor if route.tenant.cache is None else engine.results
    each = (time.perf_counter() - started) / 100_000
    if runner is engine.results:
        raise SystemExit("the tenant's results are kept")
    return figure(
        "a tenant without: the added question, share of a point read",
        100 * each / whole,
        "%",
        at_most=UNCACHED_GOAL_PERCENT,
    )


async def churned(engine: Engine) -> tuple[float, float]:
    """A report that is read ten times between two writes: operations per second of both."""
    found = []
    for name in ("plain", "kept"):
        started = time.perf_counter()
        for number in range(10):
            await engine.execute(
                name,
                Operation(
                    query="update orders set total = total + 1 where id = $1", params=[number + 1]
                ),
            )
            for _ in range(10):
                await engine.execute(name, Operation(query=REPORT))
        found.append(110 / (time.perf_counter() - started))
    return found[0], found[1]


def churn(rates: tuple[float, float]) -> list[Figure]:
    """The figures of that."""
    return [
        figure("10 reports per write, not kept", rates[0], "ops/s"),
        figure("10 reports per write, kept", rates[1], "ops/s"),
        figure("10 reports per write, kept / not kept", rates[1] / rates[0], "times", at_least=3.0),
    ]


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--turns", type=int, default=5, help="times that each is measured")
    wanted = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        Path(home).chmod(0o755)  # The servers may run as another user.
        settings = Settings(
            home=Path(home) / "home",
            cache_statement_min_us=0,
            cache_age_s=3_600.0,
        )
        print_report(asyncio.run(measured(settings, wanted.turns)))


if __name__ == "__main__":
    main()
