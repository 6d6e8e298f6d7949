"""What well-behaved tenants notice of one that attacks: their p50 and p99 with it and without it.

Run by `make bench-neighbours`, on an embedded server of its own with an engine and a watchdog in
this process. The attackers a, b and c are another process that comes straight to PostgreSQL with a
login's password, past the guard, and comes back as soon as it is put out; d sends operations
through the engine like everybody else. Rounds with and without an attacker take turns; each round
begins with the door open. A figure is the median over the rounds of one kind. The last line is one
JSON object: `{"machine": {...}, "figures": [...]}`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
from report import Figure, figure, percentile, print_report

from tenancy.data_isolation.actors.collector import relax_collector
from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Operation,
    Settings,
    TenancyError,
    TenantContext,
)
from tenancy.data_isolation.core.crypto import role_password
from tenancy.data_isolation.core.identifiers import RoleName
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.serve.watchdog_report import read_reports, report_path
from tenancy.data_isolation.serve.watchdog_thread import WatchdogThread

NEIGHBOURS = (IsolationLevel.ROW, IsolationLevel.ROW, IsolationLevel.ROW, IsolationLevel.SCHEMA)
PACE_S = 0.02
RATIO_GOAL = 1.5
SHARED_LOGIN = "tenancy_rows"
#: How long who was put out waits before it comes back.
BACK_S = 0.05
TABLE = "create table items (id integer primary key, name text not null, price integer not null)"
HEAVY = "select count(*), sum(n * 7 % 13) from generate_series(1, 30000000) n"
LARGE = "select n, repeat('x', 700) as filling from generate_series(1, 10000) n"
ATTACKS = {
    "a: heavy statements, own login": "heavy own",
    "a: heavy statements, shared login": "heavy shared",
    "b: ACCESS EXCLUSIVE": "lock shared",
    "c: open transactions": "open own",
    "d: stream of heavy statements": "stream",
    "d: stream of largest results": "results",
}


@dataclass(kw_only=True)
class Stage:
    """An open engine with its tenants, and the way to its server."""

    engine: Engine
    admin: asyncpg.Connection
    #: By the words of an attack: the DSN of a login.
    dsns: dict[str, str]
    home: Path
    own_login: str
    #: What came of the operations of an attacker through the engine.
    tally: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Measure, print a table for people, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each kind")
    parser.add_argument("--seconds", type=float, default=6, help="length of a round")
    parser.add_argument("--attack", choices=sorted(ATTACKS), action="append")
    parser.add_argument("--without-watchdog", action="store_true", help="how it would be else")
    parser.add_argument("--as-attacker", nargs=2, metavar=("ATTACK", "DSN"))
    wanted = parser.parse_args()
    if wanted.as_attacker:
        asyncio.run(_attacker(*wanted.as_attacker))
        return
    with tempfile.TemporaryDirectory(prefix="tenancy-bench-") as home:
        os.chmod(home, 0o755)  # The database server may run as another user.
        figures = asyncio.run(_measure(Path(home), wanted))
    print_report(figures)


async def _measure(home: Path, wanted: argparse.Namespace) -> list[Figure]:
    relax_collector()  # As in the process of a tenant actor.
    settings = Settings(home=home)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        stage = await _set_up(engine, home)
        watchdogs = WatchdogThread(settings, await master_key(settings), engine.servers)
        if not wanted.without_watchdog:
            watchdogs.start()
        try:
            await _round(stage, 2, None)  # Nothing is cold from here on.
            figures = []
            for name in wanted.attack or list(ATTACKS):
                figures += await _attacked(stage, name, wanted.rounds, wanted.seconds)
            return [*figures, *_watchdog_figures(home)]
        finally:
            if not wanted.without_watchdog:
                await asyncio.to_thread(watchdogs.stop)
            await stage.admin.close()


async def _attacked(stage: Stage, name: str, rounds: int, seconds: float) -> list[Figure]:
    calm, stormy = [], []
    stage.tally.clear()
    for _ in range(rounds):
        await _clear(stage)
        calm.append(await _round(stage, seconds, None))
        await _clear(stage)
        stormy.append(await _round(stage, seconds, ATTACKS[name]))
    print(f"# {name}: {dict(stage.tally)}", file=sys.stderr)
    return _figures(name, calm, stormy)


async def _set_up(engine: Engine, home: Path) -> Stage:
    await engine.apply_migration("0001_items", TABLE)
    tenants = {f"neighbour-{index}": level for index, level in enumerate(NEIGHBOURS)}
    tenants |= {"attacker": IsolationLevel.SCHEMA, "heavy": IsolationLevel.ROW}
    for name, level in tenants.items():
        await engine.create_tenant(TenantContext(tenant_id=name), level=level)
        rows = "insert into items select n, 'item ' || n, n % 97 from generate_series(1, 2000) n"
        await engine.execute(name, Operation(query=rows))
    placement = (await engine.tenant("attacker")).placement
    assert placement is not None, "it was made just now"
    key, server = await master_key(engine.settings), engine.servers[0]

    def dsn(login: str) -> str:
        password = role_password(key, server.name, RoleName(login))
        place = server.dsn.rpartition("@")[2].partition("/")[0]
        return f"postgresql://{login}:{password}@{place}/{engine.settings.database}"

    return Stage(
        engine=engine,
        admin=await asyncpg.connect(server.dsn),
        dsns={"own": dsn(placement.role), "shared": dsn(SHARED_LOGIN)},
        home=home,
        own_login=placement.role,
    )


async def _round(stage: Stage, seconds: float, attack: str | None) -> list[float]:
    """The neighbours' times in milliseconds, with the attacker at work from the beginning."""
    process, task = None, None
    if attack in ("stream", "results"):
        task = asyncio.create_task(_stream(stage, HEAVY if attack == "stream" else LARGE))
    elif attack is not None:
        kind, login = attack.split()
        command = [sys.executable, __file__, "--as-attacker", kind, stage.dsns[login]]
        process = subprocess.Popen(  # noqa: ASYNC220 - it takes a millisecond
            command, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None, "it is a pipe"
        await asyncio.to_thread(process.stdout.readline)  # It has begun.
    try:
        times = await asyncio.gather(
            *(_neighbour(stage.engine, f"neighbour-{n}", seconds) for n in range(len(NEIGHBOURS)))
        )
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            told = await asyncio.to_thread(process.communicate)
            stage.tally.update(json.loads(told[0] or "{}"))
    return [item for own in times for item in own]


async def _neighbour(engine: Engine, name: str, seconds: float) -> list[float]:
    """Asks at its own pace, whether the last answer was quick or not."""
    took: list[float] = []
    query = "select name, price from items where id = $1"

    async def ask(number: int) -> None:
        began = time.perf_counter()
        await engine.execute(name, Operation(query=query, params=[number % 2000]))
        took.append((time.perf_counter() - began) * 1000)

    async with asyncio.TaskGroup() as asking:
        began = time.perf_counter()
        for number in itertools.count(1):
            asking.create_task(ask(number))
            await asyncio.sleep(max(began + number * PACE_S - time.perf_counter(), 0))
            if number * PACE_S >= seconds:
                break
    return took


async def _stream(stage: Stage, query: str) -> None:
    """As many operations as the engine takes, each with a text of its own."""
    numbers = itertools.count()

    async def work() -> None:
        while True:
            operation = Operation(query=f"{query} where n <> -{next(numbers)}")
            try:
                await stage.engine.execute("heavy", operation)
                stage.tally["done"] += 1
            except TenancyError as error:
                stage.tally[type(error).__name__] += 1
                await asyncio.sleep(BACK_S)

    await asyncio.gather(*(work() for _ in range(32)))


# The attacker's own process


async def _attacker(attack: str, dsn: str) -> None:
    """Attack until the end comes, then tell what came of it.

    Attackers have machines of their own, so that their side takes nothing from the server's.
    """
    os.nice(19)
    work, at_once = {"heavy": (_heavy, 16), "lock": (_lock, 4), "open": (_open, 8)}[attack]
    tally: Counter[str] = Counter()
    ending = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ending.set)
    tasks = [asyncio.create_task(_again(dsn, work, tally)) for _ in range(at_once)]
    print("begun", flush=True)
    await ending.wait()
    print(json.dumps(tally), flush=True)
    for task in tasks:
        task.cancel()
    os._exit(0)


Work = Callable[[asyncpg.Connection, Counter[str]], Coroutine[Any, Any, None]]


async def _again(dsn: str, work: Work, tally: Counter[str]) -> None:
    """Do it again and again, whatever is done against it."""
    while True:
        connection = None
        try:
            connection = await asyncpg.connect(dsn, timeout=20)
            tally["sessions"] += 1
            await work(connection, tally)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            tally[type(error).__name__] += 1
        finally:
            if connection is not None:
                connection.terminate()
        await asyncio.sleep(BACK_S)


async def _heavy(connection: asyncpg.Connection, tally: Counter[str]) -> None:
    """Heavy statements, without a timeout of its own."""
    await connection.execute("set statement_timeout = 0; set work_mem = '1GB'")
    while True:
        await connection.fetch(HEAVY)
        tally["statements"] += 1


async def _lock(connection: asyncpg.Connection, tally: Counter[str]) -> None:
    """The strongest lock on a table that all tenants of level ROW share; it is kept."""
    await connection.execute("begin; lock table app.items in access exclusive mode")
    tally["locks"] += 1
    while True:
        await connection.fetch("select 1")
        await asyncio.sleep(BACK_S)


async def _open(connection: asyncpg.Connection, tally: Counter[str]) -> None:
    """A transaction that stays open, with a snapshot that holds up the cleaning of all tables."""
    await connection.execute("begin isolation level repeatable read; select pg_current_xact_id()")
    tally["transactions"] += 1
    while True:
        await asyncio.sleep(1)
        await connection.fetch("select 1")


async def _clear(stage: Stage) -> None:
    """End what an attacker left at work, and open the doors: each round starts from there."""
    admin = stage.admin
    await admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where "
        f"usename in ('{SHARED_LOGIN}', '{stage.own_login}') and application_name = ''"
    )
    with suppress(TimeoutError):
        async with asyncio.timeout(30):
            while await admin.fetchval(  # noqa: ASYNC110 - the server tells nobody
                "select count(*) from pg_stat_activity where state = 'active' "
                "and backend_type = 'client backend' and pid <> pg_backend_pid() "
                "and clock_timestamp() - query_start > interval '50 ms'"
            ):
                await asyncio.sleep(0.05)
    await admin.execute(f"alter role {SHARED_LOGIN} connection limit 60")
    await admin.execute(f"alter role {stage.own_login} connection limit 16")


# Figures


def _figures(name: str, calm: list[list[float]], stormy: list[list[float]]) -> list[Figure]:
    found = []
    for label, hundredth in (("p50", 50), ("p99", 99)):
        before = statistics.median(percentile(times, hundredth) for times in calm)
        during = statistics.median(percentile(times, hundredth) for times in stormy)
        found += [
            figure(f"{name}, {label} without", before, "ms"),
            figure(f"{name}, {label} with", during, "ms"),
            figure(f"{name}, {label} ratio", during / before, "times", at_most=RATIO_GOAL),
        ]
    return found


def _watchdog_figures(home: Path) -> list[Figure]:
    reports = read_reports(report_path(home))
    return [
        item
        for report in reports
        for item in (
            figure("watchdog, one look", report["look_ms"], "ms"),
            *(
                figure(f"watchdog, {offence}", count, "times")
                for offence, count in report["actions"].items()
                if count
            ),
        )
    ]


if __name__ == "__main__":
    main()
