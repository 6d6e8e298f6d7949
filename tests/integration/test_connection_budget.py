"""Many times more logins than sessions: the budget of a server holds, and everybody is served.

A tenant of level SCHEMA or DATABASE has a login role of its own, so no session serves two of them.
`make bench-tenants` shows the same with a thousand tenants.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from support.engines import ask, opened
from support.install import Install

from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

TABLES = "create table canaries (id integer primary key, owner text not null, writes integer)"
SEED = "insert into canaries values (1, $1, 0)"
READ = "select owner, writes from canaries where id = 1"
WRITE = "update canaries set writes = writes + 1 where id = 1 returning owner, writes"

#: Tenants' sessions, and all connections of clients without the one that counts.
COUNT = """
select count(*) filter (where application_name like 'tenancy%.%') as sessions,
       count(*) as connections
from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()
"""
BUDGET = 8
ROUNDS = 3
READS = 2


@dataclass(slots=True)
class Peak:
    """The most connections that were seen at any time."""

    sessions: int = 0
    connections: int = 0


async def make(engine: Engine, names: dict[str, IsolationLevel]) -> None:
    """Tenants with one row each, which names its owner; a few at a time."""
    await engine.apply_migration("0001_canaries", TABLES)
    gate = asyncio.Semaphore(4)

    async def one(name: str, level: IsolationLevel) -> None:
        async with gate:
            await engine.create_tenant(TenantContext(tenant_id=name), level=level)
            await ask(engine, name, SEED, name)

    await asyncio.gather(*(one(*item) for item in names.items()))


@asynccontextmanager
async def counted(install: Install) -> AsyncIterator[Peak]:
    """Count connections for as long as the block takes, and at least once."""
    peak = Peak()

    async def count() -> None:
        row = await admin.fetchrow(COUNT)
        peak.sessions = max(peak.sessions, row["sessions"])
        peak.connections = max(peak.connections, row["connections"])

    async def watch() -> None:
        while not over.is_set():
            await count()
            await asyncio.sleep(0.005)

    over = asyncio.Event()
    async with install.connected() as admin:
        watching = asyncio.create_task(watch())
        try:
            yield peak
        finally:
            over.set()
            await watching
            await count()


async def all_at_once(engine: Engine, names: list[str], written: int) -> int:
    """Rounds in which every tenant reads and writes; returns how often each has written by now."""
    for _ in range(ROUNDS):
        # In another order each time, as far from each other as possible.
        names = names[1::2] + names[::2]
        statements = [(name, READ) for name in names * READS]
        statements[len(names) : len(names)] = [(name, WRITE) for name in names]
        results = await asyncio.gather(*(ask(engine, *statement) for statement in statements))
        for (name, statement), result in zip(statements, results, strict=True):
            owner, writes = result.rows[0]
            assert owner == name, statement
            assert written <= writes <= written + 1
        written += 1
    return written


async def test_a_hundred_logins_share_eight_sessions(install: Install):
    levels = {f"s{n}": IsolationLevel.SCHEMA for n in range(100)}
    levels |= {f"d{n}": IsolationLevel.DATABASE for n in range(3)}
    limits = {"tables": False, "connection_wait_ms": 30_000}
    async with opened(install, server_connections_max=BUDGET, **limits) as engine:
        async with counted(install) as making:
            await make(engine, levels)
        async with counted(install) as peak:
            written = await all_at_once(engine, list(levels), 0)
        settings = engine.settings
    assert max(making.sessions, peak.sessions) <= BUDGET
    others = settings.admin_connections_max + settings.catalog_connections_max
    assert max(making.connections, peak.connections) <= BUDGET + others

    # The same load takes more where it may take more, and the count sees it.
    async with (
        opened(install, server_connections_max=3 * BUDGET, **limits) as engine,
        counted(install) as peak,
    ):
        await all_at_once(engine, list(levels), written)
    assert BUDGET < peak.sessions <= 3 * BUDGET


async def test_nobody_starves_beside_tenants_that_hold_or_never_give_up_sessions(install: Install):
    """Some wait for a lock with all they may have, some never stop: the others do not notice."""
    held, hot = ["held0", "held1", "held2"], ["hot0", "hot1"]
    cold = [f"cold{n}" for n in range(25)]
    levels = dict.fromkeys(held + hot + cold, IsolationLevel.SCHEMA)
    async with opened(install, tables=False, server_connections_max=BUDGET) as engine:
        await make(engine, levels)
        async with install.connected() as admin, counted(install) as peak:
            schemas = [(await engine.tenant(name)).placement.schema for name in held]
            lock = admin.transaction()
            await lock.start()
            for schema in schemas:
                await admin.execute(f'lock table "{schema}".canaries in access exclusive mode')
            waiting = [asyncio.create_task(ask(engine, name, READ)) for name in held * 12]
            stop = asyncio.Event()

            async def never_stops(name: str) -> int:
                done = 0
                while not stop.is_set():
                    assert (await ask(engine, name, WRITE)).rows[0][0] == name
                    done += 1
                return done

            busy = [asyncio.create_task(never_stops(name)) for name in hot * 6]
            # Whoever waits longer than `connection_wait_ms` for a session is turned away.
            await all_at_once(engine, cold, 0)
            assert not any(task.done() for task in waiting)
            stop.set()
            assert min(await asyncio.gather(*busy)) > 0
            await lock.rollback()
            results = await asyncio.gather(*waiting)
    assert [result.rows[0][0] for result in results] == held * 12
    assert peak.sessions <= BUDGET
