"""The databases of single tenants come to the version of this release, whatever happens."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.earlier_release import as_earlier, earlier_steps, make_runner, own_objects
from support.engines import TABLES, ask, make_tenant
from support.install import Install, make_install

from tenancy.data_isolation.core.errors import (
    SetupError,
    UnavailableError,
    UnsafeRoleError,
)
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel, Tenant
from tenancy.data_isolation.engine import bootstrap, installation
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Severity
from tenancy.data_isolation.engine.layout import template_database

_NEWEST = installation.newest_version("tenancy")
_VERSION = "select version from tenancy.installation where component = 'tenancy'"
#: Nobody waits long for a lock here.
_HASTY = {"migration_lock_timeout_ms": 100, "migration_attempts_max": 1}


def config_of(install: Install, **settings: Any) -> EngineConfig:
    return EngineConfig(
        servers=install.config.servers, settings=dataclasses.replace(install.settings, **settings)
    )


def database_of(tenant: Tenant) -> str:
    assert tenant.placement is not None
    return str(tenant.placement.database)


async def take_back(install: Install, tenants: Sequence[Tenant]) -> None:
    """Let the tenants' databases be as an earlier release left them, which nobody has noted."""
    for tenant in tenants:
        async with install.connected(database=database_of(tenant)) as admin:
            await as_earlier(admin)
    async with install.connected() as admin:
        await admin.execute("delete from catalog.database")


async def version_in(install: Install, tenant: Tenant) -> int:
    async with install.connected(database=database_of(tenant)) as admin:
        return int(await admin.fetchval(_VERSION))


async def noted(install: Install) -> dict[int, int]:
    async with install.connected() as admin:
        rows = await admin.fetch("select tenant_no, version from catalog.database")
    return {row["tenant_no"]: row["version"] for row in rows}


async def _drop(install: Install, tenants: Sequence[Tenant]) -> None:
    async with install.connected(database="postgres") as admin:
        names = [*map(database_of, tenants), install.database, template_database(install.settings)]
        for name in names:
            await admin.execute(f'drop database if exists "{name}" with (force)')
        for tenant in tenants:
            assert tenant.placement is not None
            await admin.execute(f'drop role if exists "{tenant.placement.role}"')


async def _made(install: Install) -> list[Tenant]:
    async with await Engine.open(install.config) as engine:
        await engine.apply_migration("0001_users", TABLES)
        return [
            await make_tenant(engine, name, IsolationLevel.DATABASE)
            for name in ("acme", "birch", "cedar")
        ]


@pytest.fixture(scope="module")
def stage(
    installed_model: Install, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Install, list[Tenant]]]:
    """An installation with three tenants with databases of their own. Tests leave it current."""
    home = tmp_path_factory.mktemp("own_databases")
    made = make_install(installed_model.server, f"own_{secrets.token_hex(5)}", home)
    found = asyncio.run(_made(made))
    yield made, found
    asyncio.run(_drop(made, found))


@pytest.fixture
def install(stage: tuple[Install, list[Tenant]]) -> Install:
    return stage[0]


@pytest.fixture
def tenants(stage: tuple[Install, list[Tenant]]) -> list[Tenant]:
    return stage[1]


@asynccontextmanager
async def entered(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """The databases that the admin connects to within the block."""
    connect, names = AdminConnections.connect, []

    async def noting(self: AdminConnections, server: Any, database: Any = None) -> Any:
        names.append(str(database))
        return await connect(self, server, database)

    with monkeypatch.context() as patch:
        patch.setattr(AdminConnections, "connect", noting)
        yield names


async def test_what_an_earlier_release_has_set_up_becomes_what_this_one_sets_up(
    installed_model: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By its own steps, not by undoing ours."""
    install = make_install(installed_model.server, f"earlier_{secrets.token_hex(5)}", tmp_path)
    databases = (str(install.database), str(template_database(install.settings)))
    boot = bootstrap.Bootstrap(
        settings=install.settings, master_key=install.master_key, servers=(install.server_config,)
    )
    try:
        with monkeypatch.context() as patch:
            patch.setattr(installation, "STEPS", earlier_steps())
            # What it leaves is unsafe by the rules of this release.
            with pytest.raises(UnsafeRoleError, match=r"tenancy\.tenant belongs to tenancy_owner"):
                await boot.run()
        for database in databases:
            async with install.connected(database=database) as admin:
                await make_runner(admin)

        with pytest.raises(SetupError, match="schema tenancy is at version 2, this release needs"):
            await Engine.attach(install.config)
        report = await boot.run()

        assert sorted(change.rpartition(": ")[2] for change in report.changes) == [
            f"schema catalog, version {installation.newest_version('catalog')}",
            *[f"schema tenancy, version {_NEWEST}"] * 2,
        ]
        for database in databases:
            model = database.replace(install.database, installed_model.database)
            async with (
                install.connected(database=database) as admin,
                installed_model.connected(database=model) as other,
            ):
                assert await own_objects(admin) == await own_objects(other)
                # The control: there was something to do.
                await as_earlier(admin)
                assert await own_objects(admin) != await own_objects(other)
    finally:
        async with install.connected(database="postgres") as admin:
            for database in databases:
                await admin.execute(f'drop database if exists "{database}" with (force)')


async def test_a_start_brings_all_there_and_the_next_enters_none(
    install: Install, tenants: list[Tenant], monkeypatch: pytest.MonkeyPatch
):
    assert await noted(install) == {tenant.tenant_no: _NEWEST for tenant in tenants}
    await take_back(install, tenants)

    async with entered(monkeypatch) as first, await Engine.open(install.config):
        assert {database_of(tenant) for tenant in tenants} <= set(first)
    assert [await version_in(install, tenant) for tenant in tenants] == [_NEWEST] * 3
    assert await noted(install) == {tenant.tenant_no: _NEWEST for tenant in tenants}

    async with entered(monkeypatch) as second, await Engine.open(install.config) as engine:
        assert {database_of(tenant) for tenant in tenants}.isdisjoint(second)
        for tenant in tenants:
            found = await ask(engine, tenant.tenant_id, "select count(*) from users")
            assert found.rows == [[3]]


async def test_a_start_that_is_killed_at_any_statement_is_finished_by_the_next(
    install: Install, tenants: list[Tenant], monkeypatch: pytest.MonkeyPatch
):
    tenant = tenants[0]
    async with install.connected(database=database_of(tenant)) as admin:
        wanted = await own_objects(admin)
    execute = asyncpg.Connection.execute
    seen = set()
    async with await Engine.attach(install.config) as engine:
        for cut_at in range(1, 60, 4):
            await take_back(install, [tenant])
            left = cut_at

            async def cut(self: asyncpg.Connection, *arguments: Any, **options: Any) -> str:
                nonlocal left
                if self._params.database == database_of(tenant):
                    left -= 1
                    if left == 0:
                        self.terminate()
                return await execute(self, *arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(asyncpg.Connection, "execute", cut)
                report = await engine.databases.ensure_all()
            seen.add(await version_in(install, tenant))
            assert bool(report.failed) == (left <= 0)
            assert (await noted(install)).get(tenant.tenant_no) == (_NEWEST if left > 0 else None)

            assert (await engine.databases.ensure_all()).failed == ()
            async with install.connected(database=database_of(tenant)) as admin:
                assert await own_objects(admin) == wanted
            if left > 0:
                break
    # Before the first step, after it, and after the last one.
    assert {2, 3, _NEWEST} <= seen


async def test_one_that_cannot_be_entered_stops_only_its_own_tenant(
    install: Install, tenants: list[Tenant]
):
    await take_back(install, tenants)
    closed, *others = tenants
    switch = f'alter database "{database_of(closed)}" allow_connections '
    async with install.connected(database="postgres") as admin:
        await admin.execute(switch + "false")
        async with await Engine.open(install.config) as engine:
            for tenant in others:
                await ask(engine, tenant.tenant_id, "select count(*) from users")
            with pytest.raises(UnavailableError):
                await ask(engine, closed.tenant_id, "select count(*) from users")
            looks = await inspection_of(install.settings, engine.admin).look(install.master_key)
            told = [item for look in looks for item in look.findings if item.check == "reachable"]
            assert [item.database for item in told] == [database_of(closed)]
            assert told[0].severity is Severity.BROKEN
            assert "cannot be entered" in told[0].problem
            seen = looks[0].fingerprint
            assert seen is not None
            assert seen.unseen == {database_of(closed)}
            assert seen.versions[f"{database_of(others[0])}/tenancy"] == _NEWEST

            await admin.execute(switch + "true")
            # Nobody has to start anything again.
            await ask(engine, closed.tenant_id, "select count(*) from users")
    assert await version_in(install, closed) == _NEWEST


async def test_one_that_is_behind_serves_nothing_until_it_is_not(
    install: Install, tenants: list[Tenant]
):
    await take_back(install, tenants)
    tenant, other, _ = tenants
    async with (
        install.connected(database=database_of(tenant)) as blocker,
        await Engine.attach(config_of(install, **_HASTY)) as engine,
    ):
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("lock table tenancy.fence in access share mode")

        with pytest.raises(UnavailableError, match="could not be brought there; nothing was done"):
            await ask(engine, tenant.tenant_id, "insert into plans (id, name) values (1, 'x')")
        assert await version_in(install, tenant) == 3
        await ask(engine, other.tenant_id, "select count(*) from users")
        await transaction.rollback()

        found = await ask(engine, tenant.tenant_id, "select count(*) from plans where id = 1")
        assert found.rows == [[0]]
    assert await version_in(install, tenant) == _NEWEST


async def test_one_whose_tables_were_replaced_is_not_touched_and_not_served(
    install: Install, tenants: list[Tenant]
):
    await take_back(install, tenants)
    tenant = tenants[0]
    async with install.connected(database=database_of(tenant)) as admin:
        await admin.execute(
            "set role tenancy_owner; create rule spy as on update to tenancy.fence do also select 1"
        )
    async with await Engine.open(install.config) as engine:
        with pytest.raises(UnavailableError):
            await ask(engine, tenant.tenant_id, "select count(*) from users")
        await ask(engine, tenants[1].tenant_id, "select count(*) from users")
        assert await version_in(install, tenant) == 2

        async with install.connected(database=database_of(tenant)) as admin:
            await admin.execute("drop rule spy on tenancy.fence")
        await ask(engine, tenant.tenant_id, "select count(*) from users")
    assert await version_in(install, tenant) == _NEWEST


async def test_the_doctor_tells_what_is_behind_and_nothing_that_the_start_will_mend(
    install: Install, tenants: list[Tenant]
):
    await take_back(install, tenants[:1])
    async with await Engine.attach(install.config) as engine:
        looks = await inspection_of(install.settings, engine.admin).look(install.master_key)
    there = [
        item for look in looks for item in look.findings if item.database == database_of(tenants[0])
    ]
    assert [(item.check, item.severity, item.by_hand) for item in there] == [
        (installation.CHECK, Severity.BROKEN, True)
    ]
    assert there[0].subject == "schema tenancy"
    assert there[0].problem == f"is at version 2, this release needs {_NEWEST}"
    assert "tenancy up" in there[0].advice
    async with await Engine.open(install.config):
        pass


async def test_too_many_that_fail_are_left_to_who_uses_them(
    install: Install, tenants: list[Tenant]
):
    await take_back(install, tenants)
    async with install.connected(database="postgres") as admin:
        for tenant in tenants:
            await admin.execute(f'alter database "{database_of(tenant)}" allow_connections false')
    settings = {"migration_failures_max": 1, "migration_concurrency": 1}
    async with await Engine.open(config_of(install, **settings)) as engine:
        report = await engine.databases.ensure_all()
        assert (len(report.brought), len(report.failed)) == (0, 1)
        async with install.connected(database="postgres") as admin:
            for tenant in tenants:
                name = database_of(tenant)
                await admin.execute(f'alter database "{name}" allow_connections true')
        assert len((await engine.databases.ensure_all()).brought) == 3
        assert (await engine.databases.ensure_all()).brought == ()


async def test_a_migration_brings_a_database_there_before_it_changes_it(
    install: Install, tenants: list[Tenant]
):
    async with await Engine.attach(install.config) as engine:
        await take_back(install, tenants)
        report = await engine.apply_migration("0002_more", "insert into plans values (9, 'late')")
        assert report.complete, report.failures
        for tenant in tenants:
            assert await version_in(install, tenant) == _NEWEST
            found = await ask(engine, tenant.tenant_id, "select name from plans where id = 9")
            assert found.rows == [["late"]]


@asynccontextmanager
async def bound(install: Install, tenant: Tenant) -> AsyncIterator[asyncpg.Connection]:
    """A session of the tenant's, as the runtime's are."""
    placement = tenant.placement
    assert placement is not None
    async with install.connected(placement.role, placement.database) as session:
        text = install.binding(
            tenant.tenant_no,
            placement.epoch,
            session.get_server_pid(),
            database=placement.database,
        )
        await session.execute("select set_config('tenancy.binding', $1, false)", text)
        yield session


async def waits(admin: asyncpg.Connection, pids: Sequence[int], count: int) -> None:
    """Wait until `count` sessions wait for a table's lock, all of `pids` among them."""
    query = (
        "select array_agg(distinct pid) from pg_locks where not granted and locktype = 'relation' "
        "and database = (select oid from pg_database where datname = current_database())"
    )
    for _ in range(500):
        found = await admin.fetchval(query) or []
        if len(found) >= count and set(pids) <= set(found):
            return
        await asyncio.sleep(0.02)
    pytest.fail("nobody waits")


async def meanwhile(
    install: Install, tenant: Tenant, change: Callable[[], Awaitable[None]]
) -> list[Any]:
    """What becomes of statements that wait for tables that `change` gives to another role."""
    counted = "select count(*) from app.users"
    async with (
        install.connected(database=database_of(tenant)) as blocker,
        install.connected(database=database_of(tenant)) as watcher,
        bound(install, tenant) as one,
        bound(install, tenant) as two,
    ):
        transaction = blocker.transaction()
        await transaction.start()
        await blocker.execute("lock table tenancy.binding_key in access share mode")
        changing = asyncio.create_task(change())
        await waits(watcher, (), 1)
        at_work = [asyncio.create_task(session.fetchval(counted)) for session in (one, two)]
        await waits(watcher, [one.get_server_pid(), two.get_server_pid()], 3)
        await transaction.rollback()
        outcomes = await asyncio.gather(*at_work, return_exceptions=True)
        await changing
    return outcomes


async def test_statements_that_wait_while_the_tables_change_hands_do_not_fail(
    install: Install, tenants: list[Tenant]
):
    tenant = tenants[0]
    await take_back(install, [tenant])

    async def start() -> None:
        async with await Engine.open(install.config):
            pass

    assert await meanwhile(install, tenant, start) == [3, 3]
    assert await version_in(install, tenant) == _NEWEST

    # The control: in one transaction they would have asked for the keys as somebody else.
    await take_back(install, [tenant])

    async def at_once() -> None:
        async with install.connected(database=database_of(tenant)) as admin, admin.transaction():
            for step in installation.STEPS["tenancy"]:
                if step.version > 2:
                    await admin.execute(step.file.statement(step.statement))

    outcomes = await meanwhile(install, tenant, at_once)
    assert {type(outcome) for outcome in outcomes} == {asyncpg.InsufficientPrivilegeError}
    async with await Engine.open(install.config):
        pass


async def test_what_a_later_release_has_installed_is_used(install: Install, tenants: list[Tenant]):
    """What is in the database judges bindings by itself."""
    tenant = tenants[0]
    async with install.connected() as admin:
        await admin.execute("update catalog.database set version = version + 1")
    async with install.connected(database=database_of(tenant)) as admin:
        await admin.execute("update tenancy.installation set version = version + 1")
    async with await Engine.open(install.config) as engine:
        await ask(engine, tenant.tenant_id, "select count(*) from users")
    async with install.connected(database=database_of(tenant)) as admin:
        await admin.execute("update tenancy.installation set version = version - 1")
    async with install.connected() as admin:
        await admin.execute("update catalog.database set version = version - 1")


async def test_a_tenant_that_is_deleted_is_not_remembered(install: Install):
    async with await Engine.attach(install.config) as engine:
        tenant = await make_tenant(engine, "dogwood", IsolationLevel.DATABASE)
        assert (await noted(install))[tenant.tenant_no] == _NEWEST
        await engine.delete_tenant("dogwood")
    assert tenant.tenant_no not in await noted(install)
