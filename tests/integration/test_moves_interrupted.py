"""Moves whose carrier dies or freezes at any step: the next one brings them to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from support.engines import TABLES, ask
from support.mortal_mover import Fate, mover
from support.two_servers import SECOND, TwoServers
from tenancy.data_isolation.core.errors import UnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.move_worker import MoveWorker

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
MAIN = ServerName("main")
WAIT_S = 40.0

#: What a step of the cutover comes after, and what begins in it.
HOLD = "fetchval select set_config('lock_timeout', $2"
HELD = "execute select set_config('lock_timeout', $2"
NOTES = "update users set plan = null"

#: Steps before and after which a mover dies, by name: (step, what comes before it, which of them).
POINTS: dict[str, tuple[str, str, int]] = {
    "schema": ("after execute create schema", "", 1),
    "second schema": ("before execute create schema", "", 2),
    "term": ('after fetchval update "m_', "", 1),
    "triggers": ("after execute set local role tenancy_owner; create table", "", 1),
    "last triggers": ("before execute set local role tenancy_owner; create table", "", 8),
    "counted": ("before fetchval update catalog.move", "count(*)", 2),
    "first chunk is read": ("after copy out", "", 1),
    "first chunk is put in": ("before execute COMMIT", "copy in", 1),
    "first chunk is durable": ("after execute COMMIT", "copy in", 1),
    "second chunk": ("before copy in", "", 2),
    "notes are carried": ("before execute delete from", "copy in", 1),
    "compared": ("before fetchval update catalog.move", "hash_record", 1),
    "asks for the tenant": (f"before {HELD}", "", 1),
    "holds the tenant": (f"after {HELD}", "", 1),
    "last rows are put in": ("before execute COMMIT", HELD, 1),
    "last rows are durable": ("after execute COMMIT", HELD, 1),
    "the source is about to be closed": ("before execute COMMIT", HELD, 2),
    "the source is closed": ("after execute COMMIT", HELD, 2),
    "about to flip": ("before fetchval with mine as", HELD, 1),
    "flipped": ("after fetchval with mine as", HELD, 1),
    "about to open": ("before fetchval update tenancy.fence", "after fetchval with mine", 1),
    "opened": ("after fetchval update tenancy.fence", "after fetchval with mine", 1),
    "lets go": ("after execute select pg_advisory_unlock", "", 1),
    "reported": ("after fetchval update catalog.move set report", HELD, 1),
}


@pytest.fixture
async def pair(two_servers: TwoServers) -> AsyncIterator[Engine]:
    limits: dict[str, Any] = {
        "move_poll_s": 0.05,
        "move_follow_s": 0.05,
        "move_chunk_rows": 20,
        "move_owner_timeout_s": 1.0,
        "move_retry_s": 0.2,
    }
    async with await Engine.open(two_servers.config(**limits)) as made:
        await made.apply_migration("0001_users", TABLES)
        yield made


async def filled(engine: Engine) -> list[list[Any]]:
    await engine.create_tenant(TenantContext(tenant_id="acme"), level=ROW, server=MAIN)
    await ask(
        engine,
        "acme",
        "insert into users (id, email) select n, n || '@x' from generate_series(1, 50) n",
    )
    return await contents(engine)


async def contents(engine: Engine) -> list[list[Any]]:
    return (await ask(engine, "acme", "select id, email, plan from users order by id")).rows


class Writer:
    """A client that writes all the time, and knows what it was told is there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.acknowledged: set[int] = set()
        self.longest_s = 0.0

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        last = clock()
        for number in range(1_000, 1_000_000):
            # While nobody is there to finish what was begun, the tenant can be closed.
            with suppress(UnavailableError):
                await ask(
                    self._engine,
                    "acme",
                    "insert into users (id, email) values ($1::integer, $1::integer::text)",
                    number,
                )
                self.acknowledged.add(number)
                self.longest_s = max(self.longest_s, clock() - last)
                last = clock()


@pytest.mark.parametrize("point", POINTS)
async def test_who_dies_leaves_a_move_that_goes_on(pair, point):
    before = await filled(pair)
    step, beyond, nth = POINTS[point]
    fate = Fate(step, beyond=beyond, nth=nth)
    writer = Writer(pair)
    writing = asyncio.create_task(writer.run())
    try:
        async with mover(pair, fate):
            move = await pair.moves.start(
                "acme", MoveTarget(level=SCHEMA, server=ServerName(SECOND))
            )
            async with asyncio.timeout(WAIT_S):
                await fate.happened.wait()
        pair.moves.work()
        move = await pair.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        assert move.state is MoveState.OPEN, move
        await pair.moves.confirm(move.move_id)
        move = await pair.moves.wait(move.move_id, [], timeout_s=WAIT_S)
        assert move.is_settled
    finally:
        writing.cancel()
        await asyncio.wait([writing])
    found = await contents(pair)
    assert [row for row in found if row[0] < 1_000] == before
    there = {row[0] for row in found if row[0] >= 1_000}
    assert writer.acknowledged <= there
    assert len(there - writer.acknowledged) <= 1
    assert writer.acknowledged
