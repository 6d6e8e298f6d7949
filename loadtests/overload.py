"""More than can be done: 50,000 operations at once, and ten times what the runtime manages.

Run by `make bench-overload` against a runtime of its own, by the asynchronous Python client.

* At once: so many operations are begun in one go. Each has to be answered or refused before its
  deadline (and the grace of an actor that is stuck); memory is looked at meanwhile.
* Overload: first what a closed loop manages, then an open loop with ten times as many operations
  per second, each with a deadline. What is answered in time is the goodput. Two kinds of statement:
  point reads, of which one process cannot begin ten times as many on two cores as the runtime
  answers (it is told how many there were), and statements that keep PostgreSQL busy for longer.

Every refusal has to say when to come again. In the end nothing may be left: operations under way,
sessions of PostgreSQL at work. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable

import asyncpg
from filled_tenants import make_filled_tenants, tenant_name
from loops import GOODPUT_MIN, SETTLE_S, Memory, Tally, closed_loop, open_loop
from own_runtime import OwnRuntime, own_runtime
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.actors import connect
from tenancy.data_isolation.actors.client import TenancyClient
from tenancy.data_isolation.core import Operation, TenancyError
from tenancy.data_isolation.core.errors import (
    OverloadedError,
    RateLimitedError,
    StatementTimeoutError,
)

LIGHT = "select bal from users where id = $1"
HEAVY = (
    "select count(*) from users a join users b on b.id <= a.id and b.bal <> $1::bigint "
    "where a.email <> b.email"
)
WRITE = "update users set email = 'changed' || id where id = $1"
TENANTS, ROWS = 200, 400
#: Of so many operations one is a write.
WRITES_OF = 10
BURST, BURST_DEADLINE_S = 50_000, 30.0
CLOSED, DEADLINE_S = 256, 2.0


class Work:
    """Operations of one kind on tenants that are drawn."""

    def __init__(self, client: TenancyClient, read: str, seed: int = 7) -> None:
        self._client = client
        self._read = read
        self._draw = random.Random(seed)

    async def run(self, tally: Tally, deadline_s: float) -> None:
        """One operation; what became of it."""
        draw, began = self._draw, time.perf_counter()
        write = draw.randrange(WRITES_OF) == 0
        operation = Operation(
            query=WRITE if write else self._read,
            params=[draw.randrange(1, ROWS + 1)],
            deadline_s=deadline_s,
        )
        try:
            await self._client.gateway.execute(tenant_name(draw.randrange(TENANTS)), operation)
        except (OverloadedError, RateLimitedError) as error:
            tally.untold += error.retry_after_s is None
            tally.note("refused", began, deadline_s)
        except StatementTimeoutError:
            tally.note("deadline", began, deadline_s)
        except TenancyError as error:
            tally.note(type(error).__name__, began, deadline_s)
        else:
            tally.note("answered", began, deadline_s)


async def at_once(client: TenancyClient, count: int) -> list[Figure]:
    """So many operations in one go."""
    memory, tally = Memory(await _pids(client)), Tally()
    watching = asyncio.create_task(memory.watch())
    work = Work(client, LIGHT)
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        # All have begun before one of them is heard of again.
        for _ in range(count):
            group.create_task(work.run(tally, BURST_DEADLINE_S))
    seconds = time.perf_counter() - began
    watching.cancel()
    _note(f"{count} at once: {dict(tally.outcomes)} in {seconds:.1f} s")
    what = f"{count} at once"
    return [
        *tally.figures(what),
        figure(f"{what}: answered per second", tally.outcomes["answered"] / seconds, "/s"),
        *memory.figures(what),
    ]


async def overload(
    client: TenancyClient, name: str, read: str, wanted: argparse.Namespace
) -> list[Figure]:
    """What a closed loop manages, and what is left of that at ten times as many operations."""
    work = Work(client, read)
    _, took = await closed_loop(work.run, CLOSED, BURST_DEADLINE_S, wanted.seconds)
    first = len(took) / wanted.seconds
    _note(f"{name}: {first:.0f}/s")
    memory, tally = Memory(await _pids(client)), Tally()
    watching = asyncio.create_task(memory.watch())
    since = time.perf_counter() + SETTLE_S
    offered = await open_loop(
        work.run, tally, first * wanted.factor, DEADLINE_S, wanted.seconds + SETTLE_S
    )
    watching.cancel()
    good = len(tally.within(since, wanted.seconds)) / wanted.seconds
    _note(f"{name}: {offered:.0f}/s offered, {good:.0f}/s good, {dict(tally.outcomes)}")
    # Before and after: others may be at work on the machine, and not always as much.
    _, took = await closed_loop(work.run, CLOSED, BURST_DEADLINE_S, wanted.seconds)
    most = (first + len(took) / wanted.seconds) / 2
    what = f"overload, {name}"
    return [
        figure(f"{what}: closed loop of {CLOSED}, before and after", most, "/s"),
        figure(f"{what}: offered over that", offered / most, "x"),
        figure(f"{what}: goodput over it", good / most, "x", at_least=GOODPUT_MIN),
        *tally.figures(what),
        figure(f"{what}: p50 of what was answered",
               percentile(tally.took_s or [0.0], 50) * 1_000, "ms"),
        *memory.figures(what),
    ]  # fmt: skip


async def left(runtime: OwnRuntime, client: TenancyClient) -> list[Figure]:
    """What is still there when all has ended."""
    await asyncio.sleep(1.0)
    counts = [
        await client.gateway.call(name, "statistics") for name in client.directory.shared_names()
    ]
    waiting = sum(item["waiting"] for item in client.gateway.statistics().values())
    state = runtime.tenancy("status")
    connection = await asyncpg.connect(state["postgres_dsn"])
    try:
        active = await connection.fetchval(
            "select count(*) from pg_stat_activity where usename = 'tenancy_rows' "
            "and state <> 'idle'"
        )
    finally:
        await connection.close()
    return [
        figure("left: operations that wait at the client", waiting, "operations", at_most=0),
        figure("left: operations under way in the actors",
               sum(item["under_way"] for item in counts), "operations", at_most=0),
        figure("left: sessions of PostgreSQL at work", active, "sessions", at_most=0),
        figure("the runtime runs", float(state["state"] == "running"), "", at_least=1),
    ]  # fmt: skip


async def measured(runtime: OwnRuntime, wanted: argparse.Namespace) -> list[Figure]:
    """All figures."""
    figures: list[Figure] = []
    async with connect(home=runtime.home) as client:
        await make_filled_tenants(runtime, TENANTS, ROWS)
        steps: dict[str, Callable[[], Awaitable[list[Figure]]]] = {
            "at-once": lambda: at_once(client, wanted.at_once),
            "light": lambda: overload(client, "point reads", LIGHT, wanted),
            "heavy": lambda: overload(client, "long statements", HEAVY, wanted),
        }
        for name in wanted.parts:
            figures += await steps[name]()
        figures += await left(runtime, client)
    return figures


async def _pids(client: TenancyClient) -> dict[str, int]:
    names = client.directory.shared_names()
    found = [(await client.gateway.call(name, "statistics"))["pid"] for name in names]
    return {"this process": os.getpid()} | {
        f"actor {number}": pid for number, pid in enumerate(found)
    }


def _note(text: str) -> None:
    print(f"{text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--at-once", type=int, default=BURST, help=f"operations in one go (default {BURST})")
    add("--factor", type=float, default=10.0, help="times the capacity that is offered")
    add("--seconds", type=float, default=15.0, help="window of each measurement (default 15)")
    add("--parts", nargs="+", choices=("at-once", "light", "heavy"),
        default=("at-once", "light", "heavy"))  # fmt: skip
    wanted = parser.parse_args()
    with own_runtime() as runtime:
        figures = asyncio.run(measured(runtime, wanted))
    print_report(figures)


if __name__ == "__main__":
    main()
