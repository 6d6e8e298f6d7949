"""Setting up servers: again, at the same time, interrupted, and without a superuser."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from support.engines import TABLES, ask, make_tenant
from support.install import SERVER, Install, make_install
from support.postgres import PostgresServer, postgres_server

from tenancy.data_isolation.core.crypto import MasterKey, binding_key
from tenancy.data_isolation.core.errors import (
    ServerUnavailableError,
    SettingError,
    SetupError,
    TenancyError,
    UnsafeRoleError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, ServerName, opaque_name
from tenancy.data_isolation.core.settings import ServerConfig
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.binding_keys import replace_keys
from tenancy.data_isolation.engine.bootstrap import Bootstrap, BootstrapReport
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.inspection import unsafe
from tenancy.data_isolation.engine.layout import template_database
from tenancy.data_isolation.engine.login_roles import ensure_login_role

_MANAGED_ADMIN, _MANAGED_PASSWORD = "managed_admin", "managed"


def bootstrap_of(install: Install, **changes: Any) -> Bootstrap:
    given: dict[str, Any] = {
        "settings": install.settings,
        "master_key": install.master_key,
        "servers": (install.server_config,),
    }
    return Bootstrap(**(given | changes))


async def drop(install: Install) -> None:
    async with install.connected(database="postgres") as admin:
        for name in (install.database, template_database(install.settings)):
            await admin.execute(f'drop database if exists "{name}" with (force)')


@pytest.fixture
async def fresh(installed_model: Install, tmp_path: Path) -> AsyncIterator[Install]:
    """An installation of which nothing exists yet but the roles of the server."""
    made = make_install(installed_model.server, f"fresh_{secrets.token_hex(5)}", tmp_path)
    yield made
    await drop(made)


@pytest.fixture(scope="module")
def second_server(postgres_bin: Path) -> Iterator[PostgresServer]:
    """A server on which nothing was ever set up: the same fixture once more."""
    yield from inspect.unwrap(postgres_server)(postgres_bin)


async def wipe(server: PostgresServer) -> None:
    """Remove everything of ours from a server."""
    superuser = await asyncpg.connect(server.admin_dsn)
    try:
        for name in await superuser.fetch(
            "select datname from pg_database where pg_get_userbyid(datdba) = 'tenancy_owner'"
        ):
            await superuser.execute(f'drop database "{name[0]}" with (force)')
        for role in await superuser.fetch(
            "select rolname from pg_roles where rolname ~ '^(t_|tenancy_|managed)'"
        ):
            await superuser.execute(f'drop role "{role[0]}"')
    finally:
        await superuser.close()


@pytest.fixture
async def bare(second_server: PostgresServer) -> PostgresServer:
    """A server on which nothing of ours exists, not even roles."""
    await wipe(second_server)
    return second_server


async def works(install: Install) -> None:
    """Fail unless a bound session gets its number, and the clone of the template is closed."""
    async with install.connected() as admin:
        await admin.execute("insert into tenancy.fence values (1, 1, true) on conflict do nothing")
        assert await admin.fetchval("select count(*) from catalog.server") >= 1
    async with install.connected("tenancy_rows") as rows:
        await install.bind(rows, 1)
        assert await rows.fetchval("select tenancy.tenant()") == 1
    async with install.connected(database=template_database(install.settings)) as admin:
        assert await admin.fetchval("select count(*) from tenancy.binding_key") == 0


async def test_the_first_run_sets_everything_up_and_the_second_changes_nothing(fresh: Install):
    first = await bootstrap_of(fresh).run()
    await works(fresh)
    second = await bootstrap_of(fresh).run()

    assert len(first.changes) == 5
    assert second == dataclasses.replace(first, changes=())
    assert first.servers[0].version_num // 10_000 == fresh.server.major_version
    await works(fresh)


async def test_two_runs_at_once_end_well(fresh: Install):
    reports = await asyncio.gather(*(bootstrap_of(fresh).run() for _ in range(3)))

    assert sorted(len(report.changes) for report in reports) == [0, 0, 5]
    await works(fresh)


async def test_two_runs_at_once_from_different_maintenance_databases_end_well(
    bare: PostgresServer, tmp_path: Path
):
    """Advisory locks know one database only, so here nothing keeps the two apart."""
    install = make_install(bare, "twice", tmp_path)
    servers = [ServerConfig(dsn=bare.dsn(name)) for name in ("postgres", "template1")]

    results = await asyncio.gather(
        *(bootstrap_of(install, servers=(server,)).run() for server in servers),
        return_exceptions=True,
    )
    report = await bootstrap_of(install).run()

    assert all(isinstance(result, BootstrapReport | SetupError) for result in results), results
    assert any(isinstance(result, BootstrapReport) for result in results), results
    assert report.changes == ()
    await works(install)


@pytest.mark.parametrize("first", [1, 2, 3])
async def test_a_run_killed_at_any_step_is_finished_by_the_next(
    bare: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
):
    """The connection is cut before the n-th statement, for every n until a run gets through."""
    fresh = make_install(bare, "interrupted", tmp_path)
    execute, killed_at = asyncpg.Connection.execute, first
    report: BootstrapReport | None = None
    while report is None:
        left = killed_at

        async def cut(self: asyncpg.Connection, *arguments: Any, **options: Any) -> str:
            nonlocal left
            left -= 1
            if left == 0:
                self.terminate()
            return await execute(self, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(asyncpg.Connection, "execute", cut)
            try:
                report = await bootstrap_of(fresh).run()
            except ServerUnavailableError:
                # Somebody else gets in between only where nothing is open to the public.
                await nothing_is_open(fresh)
        killed_at += 3
        if report is None and killed_at % 10 == 0:
            # From the beginning again with this cut alone; otherwise cuts add up.
            await bootstrap_of(fresh).run()
            await works(fresh)
            await wipe(bare)

    assert killed_at > 15
    await works(fresh)


async def nothing_is_open(install: Install) -> None:
    async with install.connected(database="postgres") as admin:
        open_to_public = await admin.fetch(
            "select datname from pg_database d where datname like $1 and datallowconn and exists "
            "(select from aclexplode(coalesce(datacl, acldefault('d', datdba))) a "
            "where a.grantee = 0)",
            f"{install.database}%",
        )
    assert open_to_public == []


async def test_a_second_server_gets_no_catalog_and_is_known_to_the_first(
    fresh: Install, bare: PostgresServer
):
    other = ServerConfig(name="far", dsn=bare.admin_dsn, region="moon")

    report = await bootstrap_of(fresh, servers=(fresh.server_config, other)).run()

    assert [facts.name for facts in report.servers] == ["main", "far"]
    async with fresh.connected() as admin:
        servers = await admin.fetch("select name, region from catalog.server order by name")
        assert [tuple(row) for row in servers] == [("far", "moon"), ("main", None)]
    far = await asyncpg.connect(bare.dsn(fresh.database))
    try:
        assert await far.fetchval("select to_regnamespace('catalog')") is None
        assert await far.fetchval("select to_regrole('tenancy_control')") is None
        assert await far.fetchval("select count(*) from tenancy.binding_key") == 1
    finally:
        await far.close()


async def test_a_server_that_sorts_text_in_another_way_is_noted(
    fresh: Install, bare: PostgresServer
):
    other = ServerConfig(name="far", dsn=bare.admin_dsn)
    servers = (fresh.server_config, other)
    assert (await bootstrap_of(fresh, servers=servers).run()).notes == ()
    far = await asyncpg.connect(bare.admin_dsn)
    try:
        await far.execute(f'drop database "{fresh.database}"')
        await far.execute(
            f'create database "{fresh.database}" template template0 encoding "UTF8" '
            "locale_provider libc lc_collate 'C' lc_ctype 'C.UTF-8' owner tenancy_owner"
        )
        same = await far.fetchval(
            "select count(distinct (datlocprovider, datcollate, datctype)) = 1 from pg_database "
            "where datname in ('template0', $1)",
            fresh.database,
        )
    finally:
        await far.close()

    report = await bootstrap_of(fresh, servers=servers).run()

    assert not same
    assert "far: text is sorted by" in report.notes[0]


# What it refuses


async def test_another_master_key_is_refused_and_changes_nothing(fresh: Install):
    with pytest.raises(SetupError, match="another TENANCY_MASTER_KEY"):
        await bootstrap_of(fresh, master_key=MasterKey(bytes(32))).run()
    async with fresh.connected(database="postgres") as admin:
        query = "select exists (select from pg_database where datname = $1)"
        assert not await admin.fetchval(query, fresh.database)


async def test_a_database_of_somebody_else_is_refused(fresh: Install):
    async with fresh.connected(database="postgres") as admin:
        await admin.execute(f'create database "{fresh.database}"')

    with pytest.raises(SetupError, match="belongs to 'test_admin'"):
        await bootstrap_of(fresh).run()


async def test_what_a_newer_release_set_up_is_refused(install: Install):
    async with install.connected() as admin:
        await admin.execute("update tenancy.installation set version = 99")

    with pytest.raises(SetupError, match="at version 99, this release knows 4"):
        await bootstrap_of(install).run()


async def test_an_unsafe_role_stops_the_start_and_is_told_with_its_mend(install: Install):
    async with install.connected() as admin:
        await admin.execute("create table app.open (a int)")
        await admin.execute("grant connect on database postgres to public")

    with pytest.raises(UnsafeRoleError) as raised:
        await bootstrap_of(install).run()

    assert "table app.open has no row security" in str(raised.value)
    assert "alter table app.open enable row level security" in str(raised.value)


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://nobody:secret-word@{host}:{port}/postgres", SettingError),
        ("postgresql://{user}:secret-word@{host}:{port}/postgres", SettingError),
        ("postgresql://{user}:{password}@{host}:{port}/missing", ServerUnavailableError),
        ("postgresql://{user}:secret-word@{host}:1/postgres", ServerUnavailableError),
        ("postgresql://{user}:secret-word@{host}:x/postgres", SettingError),
        ("not a dsn secret-word", SettingError),
    ],
)
async def test_a_dsn_that_does_not_work_is_told_without_its_secret(
    fresh: Install, dsn: str, expected: type[TenancyError]
):
    server = fresh.server
    text = dsn.format(
        host=server.host, port=server.port, user=server.user, password=server.password
    )

    with pytest.raises(expected) as raised:
        await bootstrap_of(fresh, servers=(ServerConfig(dsn=text),)).run()

    shown = repr(raised.value)
    assert "secret-word" not in shown
    assert server.password not in shown
    assert "main" in shown


async def test_an_admin_without_the_rights_is_told_which_ones(fresh: Install):
    async with fresh.connected(database="postgres") as admin:
        await admin.execute("create role weak_admin login createdb password 'weak'")
        try:
            dsn = fresh.server.dsn("postgres", "weak_admin", "weak")
            with pytest.raises(SetupError, match="alter role weak_admin createrole createdb"):
                await bootstrap_of(fresh, servers=(ServerConfig(dsn=dsn),)).run()
        finally:
            await admin.execute("drop role weak_admin")


# Without a superuser, as on a managed server


async def test_an_admin_that_is_no_superuser_sets_up_what_it_can_and_says_what_not(
    bare: PostgresServer, tmp_path: Path
):
    superuser = await asyncpg.connect(bare.admin_dsn)
    try:
        await superuser.execute(
            f"create role {_MANAGED_ADMIN} login createrole createdb password '{_MANAGED_PASSWORD}'"
        )
    finally:
        await superuser.close()
    limited = dataclasses.replace(bare, user=_MANAGED_ADMIN, password=_MANAGED_PASSWORD)
    install = make_install(limited, "managed", tmp_path)

    first = await bootstrap_of(install).run()
    second = await bootstrap_of(install).run()

    assert not first.servers[0].superuser
    assert any("is a member of tenancy_owner" in change for change in first.changes)
    assert second.changes == ()
    told = "\n".join(second.notes)
    assert "PUBLIC still has function pg_advisory_lock(bigint)" in told
    assert "PUBLIC still has language plpgsql" in told
    await works(install)
    await a_tenant_of_its_own_can_be_made(install)


async def a_tenant_of_its_own_can_be_made(install: Install) -> None:
    """What the provisioner does for level DATABASE, with the same admin."""
    database, role = DatabaseName(opaque_name()), RoleName(opaque_name())
    async with install.connected() as admin:
        await ensure_database(admin, database, template=template_database(install.settings))
        await ensure_login_role(admin, master_key=install.master_key, server=SERVER, role=role)
        await grant_connect(admin, database, role)
    async with install.connected(database=database) as admin:
        await replace_keys(admin, [binding_key(install.master_key, SERVER, database, 1)])
        await admin.execute("set role tenancy_owner")
        await admin.execute(f'grant usage on schema app to "{role}"')
        await admin.execute("reset role")
        await admin.execute("insert into tenancy.fence values (1, 1, true)")
    async with install.connected(role, database) as tenant:
        text = install.binding(1, 1, tenant.get_server_pid(), database=database)
        await tenant.execute("select set_config('tenancy.binding', $1, false)", text)
        assert await tenant.fetchval("select tenancy.tenant()") == 1
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await tenant.execute("create temp table mine (a int)")
    assert unsafe(await bootstrap_of(install).audit()) == []


# Admin connections


async def test_admin_connections_are_bounded_and_give_their_slots_back(install: Install):
    settings = dataclasses.replace(install.settings, admin_connections_max=1, connection_wait_ms=50)
    admin = AdminConnections(settings=settings, servers=(install.server_config,))
    for _ in range(3):
        async with admin.session(SERVER, install.database) as connection:
            assert await connection.fetchval("show search_path") == "pg_catalog, pg_temp"
            with pytest.raises(TenancyError, match="1 admin connections are at work"):
                await admin.connect(SERVER)
    broken = await admin.connect(SERVER)
    broken.terminate()
    async with admin.session(SERVER):
        pass


async def test_a_name_of_no_server_is_told_with_those_there_are(install: Install):
    admin = AdminConnections(settings=install.settings, servers=(install.server_config,))

    with pytest.raises(TenancyError, match="no server is called 'moon'; the servers are main"):
        await admin.connect(ServerName("moon"))


async def test_keys_of_another_name_of_the_server_are_replaced_and_retired_ones_are_not(
    install: Install,
):
    corrupt = "update tenancy.binding_key set inner_pad = outer_pad, outer_pad = inner_pad"
    async with install.connected() as admin:
        await admin.execute(corrupt)
        await admin.execute(
            "insert into tenancy.binding_key (key_id, retired_at) values (99, now())"
        )
        async with await Engine.open(install.config) as engine:
            await engine.apply_migration("0001_users", TABLES)
            await make_tenant(engine)
            assert (await ask(engine, "acme", "select count(*) from users")).rows == [[3]]
        kept = "select inner_pad is null from tenancy.binding_key where key_id = 99"
        assert await admin.fetchval(kept)
