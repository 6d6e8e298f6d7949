"""What a tenant's login can reach with SQL of its own, sent straight to its own connection."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.install import SERVER, Install

from tenancy.data_isolation.core.identifiers import DatabaseName, RoleName, opaque_name
from tenancy.data_isolation.engine.databases import ensure_database, grant_connect
from tenancy.data_isolation.engine.layout import template_database
from tenancy.data_isolation.engine.login_roles import ensure_login_role

_FORBIDDEN = [
    # Locks that would hold off, or wait on, a drain.
    "select pg_advisory_lock(1)",
    "select pg_advisory_xact_lock(1, 2)",
    "select pg_advisory_lock_shared(1)",
    "select pg_advisory_xact_lock_shared(1)",
    "select pg_try_advisory_lock(1)",
    "select pg_try_advisory_xact_lock(1)",
    "select pg_try_advisory_lock_shared(1, 2)",
    "select pg_try_advisory_xact_lock_shared(1)",
    "select pg_advisory_unlock(1)",
    # Large objects.
    "select lo_create(0)",
    "select lo_creat(-1)",
    "select lo_from_bytea(0, 'x')",
    "select lo_put(1, 0, 'x')",
    "select lo_get(1)",
    "select lo_unlink(1)",
    "select lo_open(1, 131072)",
    # Other sessions.
    "select pg_terminate_backend(pg_backend_pid())",
    "select pg_cancel_backend(pg_backend_pid())",
    "select * from pg_stat_activity",
    "select * from pg_locks",
    "select pg_stat_get_activity(null)",
    "select pg_stat_get_backend_activity(1)",
    "select * from pg_stat_user_tables",
    "select pg_blocking_pids(1)",
    "select pg_export_snapshot()",
    "select pg_notify('a', 'b')",
    "select pg_sleep(0)",
    "select pg_sleep_for('0')",
    # SQL hidden in a string.
    "select query_to_xml('select 1', true, true, '')",
    "select query_to_xmlschema('select 1', true, true, '')",
    "select cursor_to_xml('c', 1, true, true, '')",
    "select table_to_xml('pg_class', true, true, '')",
    "select schema_to_xml('app', true, true, '')",
    "select database_to_xml(true, true, '')",
    "select ts_stat('select to_tsvector(1::text)')",
    "select ts_rewrite('a'::tsquery, 'select ''a''::tsquery, ''b''::tsquery')",
    # Sizes, files, the log, replication.
    "select pg_database_size(current_database())",
    "select pg_total_relation_size('pg_class')",
    "select pg_read_file('postgresql.conf')",
    "select pg_ls_dir('.')",
    "select pg_logical_emit_message(false, 'a', 'b')",
    "select pg_create_physical_replication_slot('s')",
    "select pg_stat_reset()",
    # Objects of its own.
    "create table app.mine (a int)",
    "create table public.mine (a int)",
    "create table tenancy.mine (a int)",
    "create temp table mine (a int)",
    "create schema mine",
    "create function pg_temp.mine() returns int language sql as 'select 1'",
    "create function app.mine() returns int language sql as 'select 1'",
    "create domain app.mine as int",
    "create extension dblink schema app",
    "do $$ begin perform 1; end $$",
    "copy (select 1) to program 'true'",
    # The runtime's own tables and functions.
    "select * from tenancy.binding_key",
    "select * from tenancy.fence",
    "update tenancy.fence set open = true",
    "select * from tenancy.installation",
    "select tenancy.refuse('TN001')",
    "select tenancy.lock_key(1)",
    "select * from catalog.tenant",
    "select * from catalog.api_key",
    "insert into catalog.placement default values",
    # Becoming somebody else.
    "set role tenancy_owner",
    "select set_config('role', 'tenancy_owner', false)",
    "set session authorization tenancy_control",
    "set session_replication_role = replica",
    "alter role tenancy_owner login",
    "create role mine",
    "grant tenancy_owner to current_user",
    "alter database postgres set search_path = public",
    "select rolpassword from pg_authid",
]

_ALLOWED = [
    "select now(), clock_timestamp(), random(), gen_random_uuid()",
    "select set_config('work_mem', '1MB', true)",
    "select count(*) from generate_series(1, 10)",
    "select upper('a') || to_json(1)::text || md5('x')",
    "select pg_advisory_unlock_all()",
    "select format_type(23, null)",
    "select count(*) from pg_attribute",
    "select * from information_schema.columns limit 1",
    "discard all",
]


async def _sqlstates(connection: asyncpg.Connection, queries: list[str]) -> dict[str, str]:
    """What each query fails with; "" when it works."""
    found = {}
    for query in queries:
        try:
            await connection.execute(query)
        except asyncpg.PostgresError as error:
            found[query] = str(error.sqlstate)
        else:
            found[query] = ""
    return found


@pytest.fixture
async def own_database(install: Install) -> AsyncIterator[tuple[str, str]]:
    """A database of level DATABASE as the provisioner makes it, and its login."""
    database, role = DatabaseName(opaque_name()), RoleName(opaque_name())
    async with install.connected() as admin:
        await ensure_database(admin, database, template=template_database(install.settings))
        await ensure_login_role(admin, master_key=install.master_key, server=SERVER, role=role)
        await grant_connect(admin, database, role)
        yield database, role
        await admin.execute(f'drop database "{database}" with (force)')
        await admin.execute(f'drop role "{role}"')


async def test_the_shared_login_can_do_nothing_that_it_need_not(install: Install):
    async with install.connected("tenancy_rows") as rows:
        assert {
            query: state
            for query, state in (await _sqlstates(rows, _FORBIDDEN)).items()
            if state != "42501"
        } == {}
        assert set((await _sqlstates(rows, _ALLOWED)).values()) == {""}


async def test_a_cloned_database_is_closed_in_the_same_way(
    install: Install, own_database: tuple[str, str]
):
    database, role = own_database
    queries = [query for query in _FORBIDDEN if "catalog." not in query]
    async with install.connected(role, database) as tenant:
        assert {
            query: state
            for query, state in (await _sqlstates(tenant, queries)).items()
            if state != "42501"
        } == {}
        assert set((await _sqlstates(tenant, _ALLOWED)).values()) == {""}
        with pytest.raises(asyncpg.PostgresError) as raised:
            await tenant.execute("select tenancy.tenant()")
        assert raised.value.sqlstate == "TN001"


async def test_the_superuser_can_do_what_tenants_cannot(install: Install):
    """The positive control: the statements fail for want of rights, not of sense."""
    chosen = [
        "select pg_advisory_xact_lock_shared(1)",
        "select * from pg_stat_activity",
        "select ts_stat('select to_tsvector(1::text)')",
        "select pg_notify('a', 'b')",
        "select lo_create(0)",
        "create temp table mine (a int)",
        "do $$ begin perform 1; end $$",
        "select * from tenancy.fence",
    ]
    async with install.connected() as admin:
        assert set((await _sqlstates(admin, chosen)).values()) == {""}


async def test_statistics_tell_nothing_of_rows(install: Install):
    async with install.connected() as admin:
        await admin.execute(
            "set role tenancy_owner;"
            "create table app.note (tenant_id bigint, body text);"
            "create table app.plain (body text);"
            "grant select on app.note, app.plain to tenancy_rows;"
            "alter table app.note enable row level security, force row level security;"
            "create policy tenant on app.note using (tenant_id = (select tenancy.tenant()));"
            "reset role;"
            "insert into app.note select 2, 'secret of two' from generate_series(1, 100);"
            "insert into app.plain select 'open' from generate_series(1, 100);"
            "analyze app.note, app.plain"
        )
    async with install.connected("tenancy_rows") as rows:
        seen = await rows.fetch("select tablename::text from pg_stats where schemaname = 'app'")
    assert [row[0] for row in seen] == ["plain"]


async def test_logins_enter_their_own_database_only(
    install: Install, own_database: tuple[str, str]
):
    database, role = own_database
    template = template_database(install.settings)
    for login, place in (
        ("tenancy_rows", template),
        ("tenancy_rows", database),
        ("tenancy_control", template),
        ("tenancy_control", database),
        (role, template),
        (role, install.database),
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with install.connected(login, place):
                pass


async def test_the_catalogs_login_reaches_the_catalog_and_nothing_else(install: Install):
    async with install.connected() as admin:
        await admin.execute("create table app.note (a int)")
    async with install.connected("tenancy_control") as control:
        refused = await _sqlstates(
            control,
            [
                "select * from app.note",
                "select * from tenancy.fence",
                "select * from tenancy.binding_key",
                "create table catalog.mine (a int)",
                "truncate catalog.tenant",
                "drop table catalog.tenant",
                "alter table catalog.placement disable trigger all",
                "create temp table mine (a int)",
                "select setval('catalog.tenant_tenant_no_seq', 1)",
            ],
        )
        assert set(refused.values()) == {"42501"}, refused
        assert await control.fetchval("select count(*) from catalog.tenant") == 0


async def test_the_clone_of_the_template_accepts_no_key_at_all(
    install: Install, own_database: tuple[str, str]
):
    database, role = own_database
    async with install.connected(role, database) as tenant:
        for name in (database, template_database(install.settings), install.database):
            text = install.binding(1, 1, tenant.get_server_pid(), database=name)
            await tenant.execute("select set_config('tenancy.binding', $1, false)", text)
            with pytest.raises(asyncpg.PostgresError) as raised:
                await tenant.execute("select tenancy.tenant()")
            assert raised.value.sqlstate == "TN002"


async def test_users_functions_are_not_executable_until_they_are_granted(install: Install):
    async with install.connected() as admin:
        await admin.execute("set role tenancy_owner")
        await admin.execute("create function app.f() returns int language sql as 'select 1'")
    async with install.connected("tenancy_rows") as rows:
        assert set((await _sqlstates(rows, ["select app.f()"])).values()) == {"42501"}


async def test_triggers_of_users_still_run_for_tenants(install: Install):
    async with install.connected() as admin:
        await admin.execute(
            "set role tenancy_owner;"
            "create table app.note (a int);"
            "grant insert on app.note to tenancy_rows;"
            "create function app.double() returns trigger language plpgsql as "
            "$$ begin new.a := new.a * 2; return new; end $$;"
            "create trigger double before insert on app.note "
            "for each row execute function app.double()"
        )
        async with install.connected("tenancy_rows") as rows:
            await rows.execute("insert into app.note values (21)")
        assert await admin.fetchval("select a from app.note") == 42
