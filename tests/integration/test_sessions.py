"""Sessions on a real server: budgets, limits of the server, and the driver's private names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import Install
from support.postgres import PostgresServer
from support.sessions import ask as ask_session
from support.sessions import open_session, run

from tenancy.data_isolation.core.errors import PlacementChangedError, ServerUnavailableError
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.wire import Section, Step

pytestmark = pytest.mark.migrated("0001_users", TABLES)

HELD = "select count(*) from pg_stat_activity where application_name like 'tenancy%.%'"
SLOW = "select count(*) from generate_series(1, 3000000000) n"


async def test_many_tenants_with_logins_of_their_own_share_a_few_sessions(install):
    """Each tenant has its own role, so a session serves one of them; there are five times more."""
    async with opened(install, server_connections_max=4, connection_wait_ms=30_000) as engine:
        names = [f"t{n}" for n in range(20)]
        for index, name in enumerate(names):
            await make_tenant(engine, name, IsolationLevel.SCHEMA, users=index + 1)
        most = 0

        async def watch() -> None:
            nonlocal most
            async with install.connected() as admin:
                while True:
                    most = max(most, await admin.fetchval(HELD))
                    await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        for _ in range(2):
            results = await asyncio.gather(
                *(ask(engine, name, "select count(*) from users") for name in names * 3)
            )
            counts = [result.rows[0][0] for result in results]
            assert counts == [index + 1 for index in range(20)] * 3
        watching.cancel()
        await asyncio.wait([watching])

        assert 1 <= most <= 4


async def test_a_server_that_has_no_slot_left_makes_operations_wait_and_not_fail(install):
    async with opened(install) as engine:
        tenant = await make_tenant(engine, "acme", IsolationLevel.SCHEMA)
        async with install.connected() as admin:
            await admin.execute(f'alter role "{tenant.placement.role}" connection limit 1')
            writes = [
                ask(
                    engine, "acme", "update users set plan = null where id = $1 returning id", n % 3
                )
                for n in range(40)
            ]
            results = await asyncio.gather(*writes)
            assert len(results) == 40
            roles = await admin.fetchval(
                "select count(*) from pg_stat_activity where usename = $1", tenant.placement.role
            )
            assert roles == 1


async def test_idle_sessions_are_given_back(install):
    async with opened(install, connection_idle_s=0.05) as engine, install.connected() as admin:
        await make_tenant(engine, "acme", IsolationLevel.SCHEMA)
        await make_tenant(engine, "other")
        async with asyncio.timeout(20):
            while await admin.fetchval(HELD):
                await asyncio.sleep(0.02)
        assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]


async def test_a_session_of_another_tenant_is_of_no_use_to_anybody_else(install):
    """Bound sessions go from tenant to tenant; what is read is always the tenant's own."""
    async with opened(install, server_connections_max=1) as engine:
        for name, users in (("one", 1), ("two", 2)):
            await make_tenant(engine, name, users=users)
        for turn in range(20):
            name, users = (("one", 1), ("two", 2))[turn % 2]
            assert (await ask(engine, name, "select count(*) from users")).rows == [[users]]
            if turn % 5 == 0:
                with pytest.raises(Exception, match="division"):
                    await ask(engine, name, "select 1 / 0 from users")


async def test_a_cancelled_statement_leaves_a_session_that_works(postgres_server: PostgresServer):
    session = await open_session(postgres_server)
    try:
        await ask_session(session, "select 1")
        step = Step()
        messages = [wire.parse(b"", SLOW), wire.bind(b"", ()), wire.execute()]
        exchange = session.start([Section(messages, [step])])
        await asyncio.sleep(0.05)
        session.cancel()
        session.cancel()
        await session.finish(exchange)

        assert exchange.sections[0].error is not None
        assert exchange.sections[0].error["C"] == "57014"
        assert (await ask_session(session, "select 2")).rows == [[2]]
    finally:
        await session.close()
    assert session.closed
    await session.close()


async def test_a_server_that_does_not_obey_loses_the_session(
    postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
):
    session = await open_session(postgres_server, cancel_timeout_ms=50)

    async def never_arrives() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(session._driver, "cancel", never_arrives)
    messages = [wire.parse(b"", SLOW), wire.bind(b"", ()), wire.execute()]
    exchange = session.start([Section(messages, [Step()])])
    session.cancel()
    await session.finish(exchange)

    assert exchange.lost
    assert session.closed
    await session.close()


async def test_a_transaction_that_was_left_open_can_be_undone(postgres_server: PostgresServer):
    session = await open_session(postgres_server)
    try:
        await ask_session(session, "create temp table t (n integer)")
        section = Section(
            [wire.parse(b"", "insert into t values (1)"), wire.bind(b"", ()), wire.execute()],
            [Step()],
            sync=False,
        )
        await session.perform([section])
        assert section.ended
        await session.undo()
        assert (await ask_session(session, "select count(*) from t")).rows == [[0]]

        await run(session, [wire.parse(b"", "set datestyle = 'SQL'")])
        await session.discard()
        assert not session.closed
        assert (await ask_session(session, "select current_date > '2000-01-01'")).rows == [[True]]
        assert (await ask_session(session, "select to_regclass('t')")).rows == [[None]]
    finally:
        await session.close()


async def test_many_texts_do_not_fill_the_session(postgres_server: PostgresServer):
    session = await open_session(postgres_server, connection_statements_max=5)
    try:
        for number in range(30):
            assert (await ask_session(session, f"select {number}")).rows == [[number]]
        held = await ask_session(session, "select count(*) from pg_prepared_statements")
        assert held.rows[0][0] <= 7
    finally:
        await session.close()


async def test_a_role_or_database_that_is_gone_means_that_the_placement_changed(
    postgres_server: PostgresServer, installed_model: Install
):
    wrong: dict[str, Any] = {"role": "tenancy_rows", "password": "wrong"}
    with pytest.raises(PlacementChangedError):
        await open_session(postgres_server, **wrong)
    with pytest.raises(PlacementChangedError):
        await open_session(postgres_server, database="no_such_database")


async def test_a_server_that_is_not_there_is_unavailable(postgres_server: PostgresServer):
    away = replace(postgres_server, port=1)
    with pytest.raises(ServerUnavailableError, match="does not answer"):
        await open_session(away)
