"""Moves whose carrier dies or freezes at any step: the next one brings them to their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from support.engines import TABLES, ask
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.errors import UnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

pytestmark = pytest.mark.migrated("0001_users", TABLES)

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
MAIN = ServerName("main")
WAIT_S = 40.0

#: What the steps of the cutover come after.
HELD = "execute select set_config('lock_timeout', $2"

#: Steps before and after which a mover dies, by name: (step, what comes before it, which of them).
POINTS: dict[str, tuple[str, str, int]] = {
    "schema": ("after execute create schema", "", 1),
    "second schema": ("before execute create schema", "", 2),
    "term": ('after fetchval update "m_', "", 1),
    "triggers": ("after execute set local role tenancy_owner; create trigger", "", 1),
    "last triggers": ("before execute set local role tenancy_owner; create trigger", "", 8),
    "counted": ("before fetchval update catalog.move", "count(*)", 2),
    "first chunk is read": ("after copy out", "", 1),
    "first chunk is put in": ("before execute COMMIT", "copy in", 1),
    "first chunk is durable": ("after execute COMMIT", "copy in", 1),
    "second chunk": ("before copy in", "", 2),
    "notes are carried": ("before execute delete from", "copy in", 1),
    "compared": (
        "before fetchval update catalog.move",
        "before asks with answer as (select 0",
        1,
    ),
    "asks for the tenant": (f"before {HELD}", "", 1),
    "holds the tenant": (f"after {HELD}", "", 1),
    "last rows are put in": ("before execute COMMIT", HELD, 1),
    "last rows are durable": ("after execute COMMIT", HELD, 1),
    "about to flip": ("before fetchval with mine as", HELD, 1),
    "about to close the source and flip": ("before execute COMMIT", HELD, 2),
    "the source is closed": ("after execute COMMIT", HELD, 2),
    "about to open": ("before fetchval update tenancy.fence", HELD, 3),
    "opened": ("after fetchval update tenancy.fence", HELD, 3),
    "lets go": ("after execute select pg_advisory_unlock", "", 1),
    "reported": ("after fetchval update catalog.move set report", HELD, 1),
}

#: What is committed together depends on where the catalog is. From elsewhere to its database:
HOMEWARD: dict[str, tuple[str, str, int]] = {
    "about to close the source": ("before execute COMMIT", HELD, 1),
    "the source is closed": ("after execute COMMIT", HELD, 1),
    "about to flip and open": ("before execute COMMIT", HELD, 2),
    "flipped and open": ("after execute COMMIT", HELD, 2),
}
#: Between two databases without it:
ELSEWHERE: dict[str, tuple[str, str, int]] = {
    "about to close the source": ("before execute COMMIT", HELD, 2),
    "the source is closed": ("after execute COMMIT", HELD, 2),
    "about to flip": ("before fetchval with mine as", HELD, 1),
    "flipped": ("after fetchval with mine as", HELD, 1),
    "opened": ("after fetchval update tenancy.fence", HELD, 3),
}
#: And within one, of which some is as above:
WITHIN: dict[str, tuple[str, str, int]] = {
    "about to close the source": ("before execute COMMIT", HELD, 1),
    "the source is closed": ("after execute COMMIT", HELD, 1),
    "flipped": ("after fetchval with mine as", HELD, 1),
}


#: What somebody does who was cut off and looks again: end the session that was lost, own the move
#: if nobody else does, and read it.
LOOKS = (
    "after execute select pg_terminate_backend(pid, $2)",
    "after fetchval select pg_try_advisory_lock(",
    "after fetchval select set_config('idle_session_timeout'",
    "after fetchval update catalog.move set term = term + 1",
    "after fetchrow select m.*",
)
TARGET = MoveTarget(level=SCHEMA, server=ServerName(SECOND))
#: Where a tenant comes from and goes to, and where the mover dies on the way.
WAYS = {
    "homeward": (ROW, ServerName(SECOND), MoveTarget(level=SCHEMA, server=MAIN), HOMEWARD),
    "elsewhere": (DATABASE, ServerName(SECOND), MoveTarget(level=DATABASE, server=MAIN), ELSEWHERE),
    "within": (ROW, ServerName(SECOND), MoveTarget(level=SCHEMA), WITHIN),
}


@asynccontextmanager
async def opened_pair(two_servers: TwoServers, *, tables: bool = True) -> AsyncIterator[Engine]:
    limits: dict[str, Any] = {
        "move_poll_s": 0.05,
        "move_follow_s": 0.05,
        "move_warm_ms": 10,
        "placement_refresh_ms": 50,
        # Less would make many pieces of what is written meanwhile, and each takes as long.
        "move_chunk_rows": 100,
        **FLAT_OUT,
        "move_owner_timeout_s": 1.0,
        "move_retry_s": 0.2,
    }
    config = two_servers.config(**limits)
    async with await (Engine.open if tables else Engine.attach)(config) as made:
        if tables:
            await made.apply_migration("0001_users", TABLES)
        yield made


async def filled(
    engine: Engine, name: str, level: IsolationLevel = ROW, server: ServerName = MAIN
) -> list[list[Any]]:
    await engine.create_tenant(TenantContext(tenant_id=name), level=level, server=server)
    text = "insert into users (id, email) select n, n || '@x' from generate_series(1, 250) n"
    await ask(engine, name, text)
    return await contents(engine, name)


async def contents(engine: Engine, name: str) -> list[list[Any]]:
    return (await ask(engine, name, "select id, email, plan from users order by id")).rows


class Writer:
    """A client that writes all the time, and knows what it was told is there."""

    def __init__(self, engine: Engine, tenant: str) -> None:
        self._engine = engine
        self._tenant = tenant
        self.acknowledged: set[int] = set()

    async def run(self) -> None:
        text = "insert into users (id, email) values ($1::integer, $1::integer::text)"
        for number in range(1_000, 1_000_000):
            # While nobody is there to finish what was begun, the tenant can be closed.
            with suppress(UnavailableError):
                await ask(self._engine, self._tenant, text, number)
                self.acknowledged.add(number)
            await asyncio.sleep(0.005)

    def check(self, rows: list[list[Any]], before: list[list[Any]]) -> None:
        """Nothing is lost of what was acknowledged, and nothing else is there."""
        assert [row for row in rows if row[0] < 1_000] == before
        there = [row[0] for row in rows if row[0] >= 1_000]
        assert self.acknowledged <= set(there)
        # The last one was under way when the client stopped.
        assert len(there) - len(self.acknowledged) <= 1
        assert self.acknowledged


@asynccontextmanager
async def written_to(engine: Engine, tenant: str) -> AsyncIterator[Writer]:
    writer = Writer(engine, tenant)
    writing = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        writing.cancel()
        # Whatever else has ended it fails the test.
        with suppress(asyncio.CancelledError):
            await writing


async def finished(engine: Engine, move: Move) -> None:
    """Let a healthy mover bring the move to its end."""
    engine.moves.work()
    await confirmed(engine, move)


async def confirmed(engine: Engine, move: Move) -> None:
    """Confirm the move when it is open, and wait for its end."""
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    if move.state is MoveState.OPEN:
        await engine.moves.confirm(move.move_id)
    move = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    assert (move.state, move.is_settled) == (MoveState.CONFIRMED, True), move


GROUPS = [list(POINTS)[start::4] for start in range(4)]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("points", GROUPS)
async def test_who_dies_leaves_a_move_that_goes_on(two_servers, points):
    for number, point in enumerate(points):
        async with opened_pair(two_servers, tables=number == 0) as pair:
            name = f"tenant{number}"
            before = await filled(pair, name)
            await _goes_on_after(pair, POINTS[point], name, TARGET, before)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("way", WAYS)
async def test_who_dies_on_another_way_leaves_a_move_that_goes_on(two_servers, way):
    level, server, target, points = WAYS[way]
    for number, point in enumerate(points.values()):
        async with opened_pair(two_servers, tables=number == 0) as pair:
            name = f"tenant{number}"
            before = await filled(pair, name, level, server)
            await _goes_on_after(pair, point, name, target, before)


async def _goes_on_after(
    pair: Engine,
    point: tuple[str, str, int],
    name: str,
    target: MoveTarget,
    before: list[list[Any]],
) -> None:
    step, beyond, nth = point
    fate = Fate(step, beyond=beyond, nth=nth)
    async with written_to(pair, name) as writer:
        async with mover(pair, fate):
            move = await pair.moves.start(name, target)
            async with asyncio.timeout(WAIT_S):
                await fate.happened.wait()
        await finished(pair, move)
    writer.check(await contents(pair, name), before)


FROZEN = ("first chunk is read", "holds the tenant", "the source is closed", "about to open")


@pytest.mark.timeout(180)
async def test_who_freezes_loses_the_move_and_does_nothing_when_it_wakes(two_servers):
    for number, point in enumerate(FROZEN):
        async with opened_pair(two_servers, tables=number == 0) as pair:
            step, beyond, nth = POINTS[point]
            name = f"tenant{number}"
            before = await filled(pair, name)
            fate = Fate(step, beyond=beyond, nth=nth, freezes=True)
            async with written_to(pair, name) as writer, mover(pair, fate) as frozen:
                move = await pair.moves.start(name, TARGET)
                async with asyncio.timeout(WAIT_S):
                    await fate.happened.wait()
                done = len(fate.steps)
                await finished(pair, move)
                assert frozen._tasks
                fate.woken.set()
                async with asyncio.timeout(WAIT_S):
                    while frozen._tasks:
                        await asyncio.sleep(0.01)
                acknowledged = len(writer.acknowledged)
                async with asyncio.timeout(WAIT_S):
                    while len(writer.acknowledged) < acknowledged + 5:
                        await asyncio.sleep(0.01)
            # It may try, but gets no answer: its connections are gone. The answer to a sign of life
            # can have come before it froze. Over new ones it sees that nothing is left to do.
            woken = [step for step in fate.steps[done:] if step != "after execute select"]
            answered = [step for step in woken if step.startswith("after")]
            assert [step for step in answered if not step.startswith(LOOKS)] == [], woken
            writer.check(await contents(pair, name), before)


@pytest.mark.timeout(120)
async def test_two_movers_at_once_are_one_too_many(two_servers):
    async with opened_pair(two_servers) as pair:
        before = await filled(pair, "acme")
        fates = [Fate(), Fate(), Fate()]
        async with written_to(pair, "acme") as writer, AsyncExitStack() as stack:
            for fate in fates:
                await stack.enter_async_context(mover(pair, fate))
            move = await pair.moves.start("acme", TARGET)
            # The engine's own worker stays out of it.
            await confirmed(pair, move)
        writer.check(await contents(pair, "acme"), before)
        worked = [fate for fate in fates if any("copy in" in step for step in fate.steps)]
        assert len(worked) == 1
