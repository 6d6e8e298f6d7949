"""Tenants that come straight to PostgreSQL, and the watchdog that holds them to their limits.

Each attack is also made without a watchdog, where it goes on: only then does its end say anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest
from support.engines import TABLES, ask, make_tenant, opened
from support.install import SERVER, Install
from support.watching import counts_one, looks, tiers, until, watched

from tenancy.data_isolation.core.crypto import session_mark
from tenancy.data_isolation.core.identifiers import RoleName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.watch_rules import HANDOVER_FACTOR, Offence

pytestmark = pytest.mark.migrated("0001_users", TABLES)

SLOW = "select count(*) from generate_series(1, 3000000000) n"
ROWS = "tenancy_rows"
MARKED = (
    "select pid, application_name from pg_stat_activity "
    "where usename = $1 and datname = current_database()"
)
END_WATCHDOG = (
    "select count(pg_terminate_backend(pid)) from pg_stat_activity "
    "where application_name = 'tenancy admin' and datname = current_database()"
)
LIMIT = "select rolconnlimit from pg_roles where rolname = $1"
#: What the shared login may have while a watchdog is there and its door is open.
OPEN = Settings().server_connections_max * HANDOVER_FACTOR


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install) as made:
        yield made


@pytest.fixture
async def login(engine: Engine) -> str:
    """The login of a tenant that has one of its own."""
    tenant = await make_tenant(engine, "attacker", IsolationLevel.SCHEMA)
    assert tenant.placement is not None
    return tenant.placement.role


async def ends(connection: asyncpg.Connection) -> None:
    """Wait until somebody has ended the session."""
    await until(connection.is_closed)


async def test_a_statement_straight_on_the_tenants_own_connection_ends_in_time(install, login):
    async with install.connected(login) as attacker:
        await attacker.execute("set statement_timeout = 0")
        with pytest.raises(TimeoutError):
            await attacker.fetch(SLOW, timeout=0.5)
        # Now that one has ended, which the driver asked for.
        assert await attacker.fetchval("select 1") == 1

        async with watched(install, tiers=tiers(statement_timeout_ms=200)) as watchdog:
            with pytest.raises(asyncpg.QueryCanceledError):
                await attacker.fetch(SLOW)
            assert watchdog.report.actions[Offence.STATEMENT_TIME] == 1
            # Of the same session, what is within the limit goes on.
            assert await attacker.fetchval("select 1") == 1


async def test_a_table_lock_on_shared_tables_is_over_at_once_and_does_not_come_back(
    install, engine
):
    await make_tenant(engine, "victim")
    count = "select count(*) from users"

    async with install.connected(ROWS) as attacker:
        await attacker.execute("begin; lock table app.users in access exclusive mode")
        waiting = asyncio.create_task(ask(engine, "victim", count))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done, "without a watchdog everybody waits"

        async with watched(install) as watchdog:
            assert (await waiting).rows == [[3]]
            await ends(attacker)
            await counts_one(watchdog, Offence.TABLE_LOCK)
            await looks(watchdog, 1)  # The door is closed behind whom was put out.
            with pytest.raises(asyncpg.TooManyConnectionsError):
                async with install.connected(ROWS):
                    pass
            # The runtime goes on with the sessions that it has.
            assert (await ask(engine, "victim", count)).rows == [[3]]


async def test_a_table_lock_that_waits_is_over_as_well(install, engine):
    await make_tenant(engine, "victim")
    async with install.connected() as holder, install.connected(ROWS) as attacker:
        holding = holder.transaction()
        await holding.start()
        await holder.execute("lock table app.users in access share mode")
        locking = asyncio.create_task(
            attacker.execute("begin; lock table app.users in access exclusive mode")
        )
        queued = (
            "select exists (select from pg_locks where mode = 'AccessExclusiveLock'"
            " and not granted and pid = $1)"
        )
        while not await holder.fetchval(queued, attacker.get_server_pid()):
            await asyncio.sleep(0)
        waiting = asyncio.create_task(ask(engine, "victim", "select count(*) from users"))
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done

        async with watched(install):
            assert (await waiting).rows == [[3]]
            with pytest.raises((asyncpg.PostgresError, OSError)):
                await locking
        await holding.rollback()


async def test_an_old_transaction_and_an_idle_one_are_ended(install, login):
    for limit, offence in (
        ({"transaction_timeout_ms": 300}, Offence.TRANSACTION_AGE),
        ({"idle_transaction_timeout_ms": 300}, Offence.IDLE_TRANSACTION),
    ):
        async with install.connected(login) as attacker:
            await attacker.execute("begin")
            async with watched(install, tiers=tiers()) as watchdog:
                await looks(watchdog)
                assert not attacker.is_closed()
            async with watched(install, tiers=tiers(**limit)) as watchdog:
                await ends(attacker)
                await counts_one(watchdog, offence)


async def test_a_session_holds_so_many_locks_and_no_more(install, login):
    async with install.connected(login) as attacker:
        await attacker.execute("begin; lock table users, plans, late in access share mode")
        async with watched(install, tiers=tiers(locks_max=100)) as watchdog:
            await looks(watchdog)
            assert not attacker.is_closed()
        async with watched(install, tiers=tiers(locks_max=3)) as watchdog:
            await ends(attacker)
            await counts_one(watchdog, Offence.LOCKS)


async def test_a_stranger_on_the_shared_login_is_put_out(install, engine):
    await make_tenant(engine, "victim")
    async with install.connected(ROWS) as stranger:
        async with watched(install) as watchdog:
            await ends(stranger)
            await counts_one(watchdog, Offence.STRANGER)
            await looks(watchdog, 1)
            assert (await ask(engine, "victim", "select 1")).rows == [[1]]
            async with install.connected() as admin:
                assert await admin.fetchval(LIMIT, ROWS) < OPEN
        # And it leaves no limit behind.
        async with install.connected() as admin:
            assert await admin.fetchval(LIMIT, ROWS) == -1


async def test_statements_that_take_long_are_so_many_at_the_same_time(install, login):
    limits = tiers(long_statements_max=1, connections_max=4)
    async with watched(install, tiers=limits, long_statement_ms=50) as watchdog:
        attackers = [await asyncpg.connect(install.role_dsn(login)) for _ in range(4)]
        running = [asyncio.create_task(item.fetch(SLOW)) for item in attackers]
        await until(lambda: sum(item.is_closed() for item in attackers) == 3)
        await looks(watchdog, 5)

        assert sum(item.is_closed() for item in attackers) == 3
        assert watchdog.report.actions[Offence.LONG_STATEMENTS] == 3
        # Who was put out finds the door closed.
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await asyncpg.connect(install.role_dsn(login))
        for task, item in zip(running, attackers, strict=True):
            task.cancel()
            item.terminate()
        await asyncio.gather(*running, return_exceptions=True)


async def test_a_login_has_so_many_sessions_and_the_watchdog_brings_them_back_to_it(install, login):
    async with install.connected() as admin:
        assert await admin.fetchval(LIMIT, login) == 16, "twice what the pool takes"
        await admin.execute(f"alter role {login} connection limit -1")
        attackers = [await asyncpg.connect(install.role_dsn(login)) for _ in range(5)]
        async with watched(install, tiers=tiers(connections_max=2)) as watchdog:
            # The runtime has one more of it, which stays.
            await until(lambda: sum(item.is_closed() for item in attackers) == 2)
            await looks(watchdog, 5)
            assert [item.is_closed() for item in attackers] == [False] * 3 + [True] * 2
            assert watchdog.report.actions[Offence.CONNECTIONS] == 2
        assert await admin.fetchval(LIMIT, login) == 4
        for item in attackers:
            item.terminate()


async def test_what_a_login_changes_of_itself_is_taken_back(install, engine, login):
    await make_tenant(engine, "victim")
    settings = "select count(*) from pg_db_role_setting s, unnest(setconfig) c where c like $1"
    stored = "select rolpassword from pg_authid where rolname = $1"
    async with install.connected() as admin:
        before = await admin.fetchval(stored, ROWS)
        for role in (ROWS, login):
            async with install.connected(role) as attacker:
                await attacker.execute("alter role current_user set default_statistics_target = 7")
                await attacker.execute("alter role current_user password 'mine'")
        assert await admin.fetchval(settings, "default_statistics_target=%") == 2
        assert await admin.fetchval(stored, ROWS) != before
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(install.role_dsn(ROWS))

        async with watched(install) as watchdog:
            actions = watchdog.report.actions
            await until(lambda: actions[Offence.LOGIN_PASSWORD] >= 1)
            await until(lambda: actions[Offence.LOGIN_SETTINGS] >= 2)
            assert await admin.fetchval(settings, "default_statistics_target=%") == 0
            assert await admin.fetchval(stored, ROWS) == before
            assert (await ask(engine, "victim", "select 1")).rows == [[1]]


async def test_temporary_files_have_a_limit_that_the_tenant_cannot_change(install):
    spill = "select count(*) from (select n from generate_series(1, 300000) n order by n desc) x"
    async with opened(install, tiers=tiers(temp_file_bytes_max=1 << 20)) as engine:
        tenant = await make_tenant(engine, "acme", IsolationLevel.SCHEMA)
        async with install.connected(tenant.placement.role) as attacker:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await attacker.execute("set temp_file_limit = -1")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await attacker.execute("alter role current_user reset temp_file_limit")
            await attacker.execute("alter role current_user reset all")
            await attacker.execute("set work_mem = '64kB'")
            with pytest.raises(asyncpg.PostgresError, match="temp_file_limit"):
                await attacker.fetch(spill)
        async with install.connected(tenant.placement.role) as attacker:
            assert await attacker.fetchval("show temp_file_limit") == "1MB"


async def test_of_several_watchdogs_one_acts_and_another_takes_over(install, login):
    limits = tiers(statement_timeout_ms=200)
    async with watched(install, tiers=limits) as first:
        second_starts = asyncio.create_task(_second(install, login, limits, first))
        await until(lambda: second_starts.done())
        await second_starts


async def _second(install, login, limits, first) -> None:
    import dataclasses

    from tenancy.data_isolation.engine.admin import AdminConnections
    from tenancy.data_isolation.engine.watchdog import Watchdog

    settings = dataclasses.replace(install.settings, tiers=limits, watchdog_tick_ms=20)
    admin = AdminConnections(settings=settings, servers=[install.server_config])
    second = Watchdog(settings=settings, master_key=install.master_key, admin=admin, server=SERVER)
    task = asyncio.create_task(second.run())
    try:
        await until(lambda: second.report.state == "standby")
        async with install.connected(login) as attacker:
            with pytest.raises(asyncpg.QueryCanceledError):
                await attacker.fetch(SLOW)
        assert first.report.actions[Offence.STATEMENT_TIME] == 1
        assert not second.report.actions
        first.stop()
        await until(lambda: second.report.state == "acting")
        async with install.connected(login) as attacker:
            with pytest.raises(asyncpg.QueryCanceledError):
                await attacker.fetch(SLOW)
        assert second.report.actions[Offence.STATEMENT_TIME] == 1
    finally:
        second.stop()
        await task
        await admin.close()


async def test_a_watchdog_survives_the_loss_of_its_connection(install, login):
    async with watched(install, tiers=tiers(statement_timeout_ms=200)) as watchdog:
        async with install.connected() as admin:
            ended = await admin.fetchval(END_WATCHDOG)
        assert ended >= 1
        await until(lambda: watchdog.report.state != "acting")
        async with install.connected(login) as attacker:
            with pytest.raises(asyncpg.QueryCanceledError):
                await attacker.fetch(SLOW)


async def test_a_closed_door_outlives_the_connection_of_the_watchdog(install, login):
    async with (
        watched(install, tiers=tiers(connections_max=1)) as watchdog,
        install.connected() as admin,
    ):
        async with install.connected(login) as attacker:
            with suppress(asyncpg.PostgresError, OSError):
                await attacker.execute("begin; lock table users in access exclusive mode")
            await ends(attacker)
        await looks(watchdog, 2)
        closed = await admin.fetchval(LIMIT, login)
        await admin.execute(END_WATCHDOG)
        await until(lambda: watchdog.report.state != "acting")
        await until(lambda: watchdog.report.state == "acting")
        await looks(watchdog, 3)
        assert closed < 2
        assert await admin.fetchval(LIMIT, login) == closed
    async with install.connected() as admin:
        assert await admin.fetchval(LIMIT, login) == 2


@pytest.mark.parametrize("way", ["settings", "password", "storm"])
async def test_a_login_that_alters_itself_does_not_keep_the_watchdog_from_others(
    install, engine, login, way
):
    """Held for as long as the limit of transactions allows, which here is beyond the test."""
    await make_tenant(engine, "victim")
    async with (
        install.connected(login) as first,
        install.connected(login) as second,
        install.connected() as admin,
        watched(install) as watchdog,
    ):
        await looks(watchdog)
        storm: list[asyncio.Task[None]] = []
        if way == "storm":
            storm = [asyncio.create_task(_alter(item)) for item in (first, second)]
            await until(lambda: watchdog.report.actions[Offence.LOGIN_SETTINGS] >= 1)
        elif way == "settings":
            await second.execute("begin")
            await first.execute("alter role current_user set work_mem = '1MB'")
            await second.execute("alter role current_user set work_mem = '2MB'")
            await ends(second)
        else:
            await second.execute("begin; alter role current_user password 'x'")
            with suppress(asyncpg.PostgresError, OSError):
                await first.execute("begin; lock table users in access exclusive mode")
            await ends(second)
        async with install.connected(ROWS) as stranger:
            await ends(stranger)
        await looks(watchdog, 2)
        assert watchdog.report.state_now == "acting"
        assert await admin.fetchval(LIMIT, ROWS) < OPEN, "the door of the shared login is closed"
        if way != "storm":
            assert {Offence.LOGIN_LOCK, Offence.TABLE_LOCK} & set(watchdog.report.actions)
            assert way == "password" or watchdog.report.actions[Offence.LOGIN_LOCK] >= 1
            await until(lambda: first.is_closed())
        for task in storm:
            task.cancel()
        await asyncio.gather(*storm, return_exceptions=True)
    async with install.connected() as admin:
        assert await admin.fetchval(LIMIT, ROWS) == -1
        assert await admin.fetchval(LIMIT, login) == 16


async def _alter(session: asyncpg.Connection) -> None:
    while True:
        with suppress(asyncpg.InternalServerError):
            await session.execute("alter role current_user set work_mem = '1MB'")
            await session.execute("alter role current_user set work_mem = '2MB'")


async def test_a_change_that_somebody_else_holds_up_is_made_later_and_delays_no_look(
    install, engine, login
):
    """Held by one who is no tenant, so that nobody is put out for it."""
    async with install.connected() as admin, watched(install) as watchdog:
        await admin.execute(f"alter role {login} set work_mem = '1MB'")
        holding = admin.transaction()
        await holding.start()
        await admin.execute(f"alter role {login} set work_mem = '2MB'")
        await looks(watchdog, 60)  # Those that look at logins are among them, once a second.
        assert watchdog.report.actions[Offence.LOGIN_SETTINGS] == 0
        assert watchdog.report.state_now == "acting"
        await holding.commit()
        await until(lambda: watchdog.report.actions[Offence.LOGIN_SETTINGS] >= 1)


async def test_a_watchdog_whose_look_is_overdue_does_not_act(install):
    from tenancy.data_isolation.engine.watchdog import WatchdogReport

    report = WatchdogReport(SERVER, state="acting", looked_at=time.monotonic())
    assert report.plain()["state"] == "acting"
    report.looked_at -= 5
    assert report.plain()["state"] == "late: the last look ended 5 s ago"


async def test_a_mark_that_a_tenant_has_seen_is_worth_nothing_in_its_own_sessions(
    install, engine, login
):
    async with install.connected(login) as older, install.connected() as admin:
        await make_tenant(engine, "victim")
        assert (await ask(engine, "victim", "select count(*) from users")).rows == [[3]]
        (runtimes,) = await admin.fetch(MARKED, ROWS)
        async with watched(install) as watchdog:
            await looks(watchdog)
            await older.execute(f"set application_name = '{runtimes['application_name']}'")
            await looks(watchdog, 3)
            assert await admin.fetch(MARKED, ROWS) == [runtimes], "the runtime's stays"
            assert await admin.fetchval(LIMIT, ROWS) == OPEN
            assert not watchdog.report.actions


async def test_of_two_sessions_with_one_mark_the_one_that_it_was_made_for_stays(install, engine):
    await make_tenant(engine, "victim")
    async with install.connected() as admin, install.connected(ROWS) as older:
        await admin.execute("select pg_sleep(1.1)")
        place = install.database
        mark = session_mark(
            install.master_key, SERVER, RoleName(ROWS), place, int(time.time() * 1_000)
        )
        genuine = await asyncpg.connect(
            install.role_dsn(ROWS), server_settings={"application_name": mark}
        )
        await older.execute(f"set application_name = '{mark}'")
        async with watched(install) as watchdog:
            await ends(older)
            await looks(watchdog, 3)
            assert not genuine.is_closed()
            assert await admin.fetchval(LIMIT, ROWS) == OPEN, "no door is closed because of it"
            # Nor because of another name, which a statement of a tenant can set.
            await genuine.execute("set application_name = 'x'")
            await looks(watchdog, 3)
            assert not genuine.is_closed()
            assert watchdog.report.actions == {Offence.STRANGER: 1}
            # When it is gone the mark is not worth another session.
            await genuine.close()
            async with install.connected(ROWS) as late:
                await late.execute(f"set application_name = '{mark}'")
                await ends(late)


async def test_a_session_that_changed_hands_is_left_alone(install, login):
    """What was seen is compared in the statement that acts."""
    import datetime

    from tenancy.data_isolation.engine.sql_files import SqlFile

    act = SqlFile("watchdog.sql").statement("act")
    seen = "select backend_start, query_start, xact_start from pg_stat_activity where pid = $1"
    second = datetime.timedelta(microseconds=1)
    async with install.connected() as admin, install.connected(login) as session:
        pid = session.get_server_pid()
        # One message: with a prepared statement each message is a new query_start.
        running = asyncio.create_task(session.execute(SLOW))
        while (await admin.fetchrow(seen, pid))["xact_start"] is None:
            await asyncio.sleep(0.01)
        began, asked, opened_at = tuple(await admin.fetchrow(seen, pid))
        for values in (
            (began - second, asked, opened_at),
            (began, asked - second, opened_at),
            (began, asked, opened_at - second),
        ):
            arguments = [[pid], *([value] for value in values), [True]]
            assert await admin.fetch(act, *arguments) == []
        assert not running.done()
        arguments = [[pid], [began], [asked], [opened_at], [False]]
        assert len(await admin.fetch(act, *arguments)) == 1
        with pytest.raises(asyncpg.QueryCanceledError):
            await running


async def test_the_daemons_thread_watches_tells_and_stops(install, login):
    import dataclasses

    from tenancy.data_isolation.serve.watchdog_report import read_reports, report_path
    from tenancy.data_isolation.serve.watchdog_thread import WatchdogThread

    settings = dataclasses.replace(install.settings, tiers=tiers(statement_timeout_ms=200))
    path = report_path(settings.home)
    admins = (
        "select count(*) from pg_stat_activity where application_name = 'tenancy admin' "
        "and datname = current_database()"
    )
    async with install.connected() as admin:
        before = await admin.fetchval(admins)
    thread = WatchdogThread(settings, install.master_key, [install.server_config])
    thread.start()
    try:
        await until(lambda: [item["state"] for item in read_reports(path)] == ["acting"])
        async with install.connected(login) as attacker:
            with pytest.raises(asyncpg.QueryCanceledError):
                await attacker.fetch(SLOW)
    finally:
        await asyncio.to_thread(thread.stop)
    (told,) = read_reports(path)
    assert (told["state"], told["actions"]["statement_time"]) == ("stopped", 1)
    assert path.stat().st_mode & 0o077 == 0
    async with install.connected() as admin:
        assert await admin.fetchval(admins) == before


async def test_an_admin_that_sees_nothing_says_so_and_watches_nothing(install, login):
    import dataclasses

    from tenancy.data_isolation.core.settings import ServerConfig
    from tenancy.data_isolation.engine.admin import AdminConnections
    from tenancy.data_isolation.engine.watchdog import Watchdog

    settings = dataclasses.replace(install.settings, watchdog_tick_ms=20)
    async with install.connected() as admin:
        await admin.execute("create role plain_admin login password 'plain'")
        await admin.execute(f'grant connect on database "{install.database}" to plain_admin')
        try:
            dsn = install.server.dsn("postgres", "plain_admin", "plain")
            connections = AdminConnections(
                settings=settings, servers=[ServerConfig(name=SERVER, dsn=dsn)]
            )
            watchdog = Watchdog(
                settings=settings, master_key=install.master_key, admin=connections, server=SERVER
            )
            watching = asyncio.create_task(watchdog.run())
            mend = "grant pg_monitor, pg_signal_backend to plain_admin"
            await until(lambda: watchdog.report.state == f"blind: {mend}")
            # The remedy as it is told gives it its sight.
            await admin.execute(mend)
            await until(lambda: not watchdog.report.state.startswith("blind"))
            watchdog.stop()
            await watching
        finally:
            await admin.execute("drop owned by plain_admin")
            await admin.execute("drop role plain_admin")
