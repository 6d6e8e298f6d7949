"""What a process knows of where tenants are, when another process has moved them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from support.engines import ask, make_tenant, opened
from support.install import Install

from tenancy.data_isolation.core.errors import UnavailableError
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, Operation
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.engine import Engine

COUNT = "select count(*) from users"


@pytest.fixture
async def mover(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, placement_refresh_ms=1) as made:
        made.moves.work()
        yield made


async def _moved(mover: Engine, level: IsolationLevel, *, confirmed: bool) -> None:
    move = await mover.moves.start("acme", MoveTarget(level=level))
    await mover.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=20)
    if confirmed:
        await mover.moves.confirm(move.move_id)
        done = await mover.moves.wait(move.move_id, [], timeout_s=20)
        assert done.state is MoveState.CONFIRMED


@pytest.mark.parametrize("first", [IsolationLevel.ROW, IsolationLevel.DATABASE])
async def test_a_process_that_was_idle_meanwhile_asks_where_the_tenant_is(install, mover, first):
    """PostgreSQL does not look who asks of a table that it knows to be empty."""
    there = IsolationLevel.SCHEMA if first is IsolationLevel.ROW else IsolationLevel.ROW
    await make_tenant(mover, "acme", first)
    async with opened(install, tables=False, placement_refresh_ms=1) as other:
        assert (await ask(other, "acme", COUNT)).rows == [[3]]
        await _moved(mover, there, confirmed=True)
        async with install.connected() as admin:
            # So that the plan does not begin with an index, whose condition would be looked at.
            await admin.execute("vacuum (truncate, analyze) app.users")

        assert (await ask(other, "acme", COUNT)).rows == [[3]]
        insert = "insert into users (id, email) values (9, 'x')"
        assert (await ask(other, "acme", insert)).row_count == 1
        assert (await ask(mover, "acme", COUNT)).rows == [[4]]


async def test_sessions_to_a_place_that_a_tenant_has_left_are_closed(install, mover):
    tenant = await make_tenant(mover, "acme", IsolationLevel.SCHEMA)
    async with (
        opened(install, tables=False, placement_refresh_ms=1) as other,
        install.connected() as admin,
    ):
        await ask(other, "acme", COUNT)
        left = "select count(*) from pg_stat_activity where usename = $1"
        assert await admin.fetchval(left, tenant.placement.role) > 0

        # It is not confirmed, so nothing has been cleaned up yet.
        await _moved(mover, IsolationLevel.ROW, confirmed=False)
        for engine in (mover, other):
            assert (await ask(engine, "acme", COUNT)).rows == [[3]]

        while await admin.fetchval(left, tenant.placement.role):
            await asyncio.sleep(0.01)


async def test_a_catalog_that_is_away_keeps_no_tenant_from_working(install, mover):
    await make_tenant(mover)
    async with opened(install, tables=False, placement_refresh_ms=1) as other:
        await ask(other, "acme", COUNT)
        await other.catalog.close()

        for _ in range(3):
            assert (await ask(other, "acme", COUNT)).rows == [[3]]


async def _reads_after_a_write_elsewhere(install: Install, mover: Engine, refresh_ms: int) -> int:
    """What another process, at work all the time, counts just after a row was acknowledged."""
    async with opened(install, tables=False, placement_refresh_ms=refresh_ms) as other:
        assert (await ask(other, "acme", COUNT)).rows == [[0]]
        move = await mover.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))

        async def work() -> None:
            while True:
                await ask(other, "acme", COUNT)
                await asyncio.sleep(0.001)

        working = asyncio.create_task(work())
        try:
            await mover.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=20)
            await ask(mover, "acme", "insert into users (id, email) values (9, 'x')")
            return (await ask(other, "acme", COUNT)).rows[0][0]
        finally:
            working.cancel()
            await asyncio.wait([working])


@pytest.mark.parametrize(("refresh_ms", "counted"), [(500, 1), (60_000, 0)])
async def test_a_process_at_work_reads_no_empty_table_at_the_old_place(
    install, refresh_ms, counted
):
    """One that hears of moves less often than they wait for would, which shows what is at stake."""
    async with opened(install, placement_refresh_ms=500) as mover:
        mover.moves.work()
        await make_tenant(mover)
        await ask(mover, "acme", "delete from users")
        async with install.connected() as admin:
            await admin.execute("vacuum (truncate, analyze) app.users")

        assert await _reads_after_a_write_elsewhere(install, mover, refresh_ms) == counted


async def test_while_the_catalog_is_away_the_fence_is_asked_for_by_everybody(install, mover):
    tenant = await make_tenant(mover)
    await ask(mover, "acme", "delete from users")
    async with (
        opened(install, tables=False, placement_refresh_ms=1) as other,
        install.connected() as admin,
    ):
        await admin.execute("vacuum (truncate, analyze) app.users")
        assert (await ask(other, "acme", COUNT)).rows == [[0]]
        await other.catalog.close()
        assert (await ask(other, "acme", COUNT)).rows == [[0]]

        await admin.execute(
            "update tenancy.fence set epoch = epoch + 1 where tenant_no = $1", tenant.tenant_no
        )

        read, write = Operation(query=COUNT), Operation(query="update users set email = email")
        keyed = replace(write, idempotency_key="once")
        for operation in (read, write, keyed):
            with pytest.raises(UnavailableError):
                await other.execute("acme", operation)
        for atomic in (True, False):
            with pytest.raises(UnavailableError):
                await other.execute_batch("acme", [read, write, read], atomic=atomic)


async def _is_refused(engine: Engine, query: str = COUNT) -> bool:
    try:
        return (await ask(engine, "acme", query)).rows != [[0]]
    except UnavailableError:
        return True


@pytest.mark.parametrize(("refresh_ms", "refused"), [(1, True), (60_000, False)])
async def test_who_waits_long_for_a_session_asks_for_the_fence(install, mover, refresh_ms, refused):
    """The tenant may have moved meanwhile; with the longer time it is seen what would happen."""
    tenant = await make_tenant(mover)
    await ask(mover, "acme", "delete from users")
    one = {"tenant_connections_max": 1, "placement_refresh_ms": refresh_ms}
    async with (
        opened(install, tables=False, **one) as other,
        install.connected() as admin,
        asyncio.TaskGroup() as group,
    ):
        await admin.execute("vacuum (truncate, analyze) app.users")
        assert (await ask(other, "acme", COUNT)).rows == [[0]]
        async with admin.transaction():
            await admin.execute("lock table app.plans")
            blocked = group.create_task(_is_refused(other, "select count(*) from plans"))
            blocking = "select count(*) from pg_stat_activity where $1 = any(pg_blocking_pids(pid))"
            while not await admin.fetchval(blocking, admin.get_server_pid()):
                await asyncio.sleep(0)
            waiting = group.create_task(_is_refused(other))
            while not any(waits for _, waits in other._executor.statistics().values()):
                await asyncio.sleep(0)
            # Nothing says that it is on its way: this is how it looks to who has not heard of it.
            async with install.connected() as mover_like:
                raised = "update tenancy.fence set epoch = epoch + 1 where tenant_no = $1"
                await mover_like.execute(raised, tenant.tenant_no)
            until = asyncio.get_running_loop().time() + (refresh_ms / 1_000 if refused else 0)
            while asyncio.get_running_loop().time() <= until:
                await admin.fetchval("select 1")
        assert await waiting is refused
        await asyncio.wait([blocked])


async def test_what_a_tenant_asks_for_is_prepared_where_it_will_be(install, mover):
    await make_tenant(mover)
    async with opened(install, tables=False, placement_refresh_ms=500) as other:
        read = "select email from users where id = $1"
        heard = []
        learn = other._executor.flights.learn

        async def noted(connection: Connection, text: str) -> None:
            await learn(connection, text)
            heard.append((connection.key.role, text, connection.prepared(text) is not None))

        other._executor.flights.learn = noted

        async def work() -> None:
            while True:
                await ask(other, "acme", read, 1)
                await asyncio.sleep(0.01)

        working = asyncio.create_task(work())
        try:
            move = await mover.moves.start("acme", MoveTarget(level=IsolationLevel.SCHEMA))
            await mover.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=20)
        finally:
            working.cancel()
            await asyncio.wait([working])
        assert (move.target.role, read, True) in heard
