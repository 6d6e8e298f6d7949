"""The audit finds what would let a tenant cross its boundary, and tells how to mend it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import pytest
from support.install import SERVER, Install

from tenancy.data_isolation.core.identifiers import RoleName, opaque_name
from tenancy.data_isolation.engine.bootstrap import Bootstrap
from tenancy.data_isolation.engine.databases import grant_connect
from tenancy.data_isolation.engine.login_roles import ensure_login_role
from tenancy.data_isolation.engine.mending import carry_out
from tenancy.data_isolation.engine.roles import audit_database, audit_server

_OWN = "t_00000000000000000000"
_SOUND = f"""
set role tenancy_owner;
create table app.note (tenant_id bigint, id int, primary key (tenant_id, id));
alter table app.note enable row level security, force row level security;
create policy tenant on app.note
    using (tenant_id = (select tenancy.tenant()))
    with check (tenant_id = (select tenancy.tenant()));
create policy narrower on app.note as restrictive using (id > 0);
grant select, insert, update, delete on app.note to tenancy_rows;
create view app.notes with (security_invoker) as select * from app.note;
create schema {_OWN};
create table {_OWN}.note (like app.note including all);
alter table {_OWN}.note enable row level security, force row level security;
create policy tenant on {_OWN}.note using (tenant_id = (select tenancy.tenant()));
create table app.bookkeeping (id int);
alter table app.bookkeeping enable row level security, force row level security;
create policy ours on app.bookkeeping to tenancy_owner using (true);
reset role;
"""


@pytest.fixture
async def admin(install: Install) -> AsyncIterator[asyncpg.Connection]:
    """The admin in the shared database, which has sound tables and a view."""
    async with install.connected() as connection:
        await connection.execute("set search_path = pg_catalog, pg_temp")
        await connection.execute(_SOUND)
        yield connection


@pytest.fixture
async def own_login(install: Install, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """A tenant's login with rights on its own schema."""
    role = RoleName(opaque_name())
    await ensure_login_role(admin, master_key=install.master_key, server=SERVER, role=role)
    await grant_connect(admin, install.database, role)
    await admin.execute(f'grant usage on schema {_OWN} to "{role}"')
    await admin.execute(f'grant select, insert, update, delete on {_OWN}.note to "{role}"')
    yield role
    await admin.execute(f'drop owned by "{role}"')
    await admin.execute(f'drop role "{role}"')


async def found(connection: asyncpg.Connection, install: Install) -> list[str]:
    findings = [
        *await audit_server(connection, settings=install.settings),
        *await audit_database(connection),
    ]
    return [f"{finding.subject} {finding.problem}" for finding in findings]


async def test_a_sound_installation_has_no_finding(
    install: Install, admin: asyncpg.Connection, own_login: str
):
    assert await found(admin, install) == []


_IN_THE_DATABASE = [
    ("grant create on schema app to tenancy_rows", "schema app tenancy_rows has CREATE"),
    ("grant usage on schema public to public", "schema public PUBLIC has USAGE"),
    ("grant usage on schema catalog to tenancy_rows", "schema catalog tenancy_rows has USAGE"),
    (f"grant usage on schema {_OWN} to tenancy_rows", f"schema {_OWN} tenancy_rows has USAGE"),
    (f"grant usage on schema {_OWN} to public", f"schema {_OWN} PUBLIC has USAGE"),
    ("alter table app.note owner to current_user", "table app.note belongs to test_admin"),
    ("alter table app.note disable row level security", "table app.note has no row security"),
    (
        "alter table app.note no force row level security",
        "table app.note does not force row security",
    ),
    ("drop policy tenant on app.note", "table app.note has no tenant policy"),
    (
        "create policy more on app.note using (true)",
        "table app.note policy more lets through rows by another rule",
    ),
    (
        "create policy more on app.note for insert with check (true)",
        "table app.note policy more lets through rows by another rule",
    ),
    (
        "alter policy tenant on app.note using (tenant_id = (select tenancy.bound_tenant()))",
        "table app.note policy tenant lets through rows by another rule",
    ),
    (
        "alter policy tenant on app.note with check (true)",
        "table app.note policy tenant lets through rows by another rule",
    ),
    (
        "alter policy tenant on app.note to tenancy_rows",
        "table app.note policy tenant lets through rows by another rule",
    ),
    ("grant truncate on app.note to tenancy_rows", "table app.note tenancy_rows has TRUNCATE"),
    ("grant trigger on app.note to tenancy_rows", "table app.note tenancy_rows has TRIGGER"),
    (
        "grant references (id) on app.note to tenancy_rows",
        "table app.note tenancy_rows has REFERENCES",
    ),
    (
        "grant select on app.note to tenancy_rows with grant option",
        "table app.note tenancy_rows has SELECT with grant option",
    ),
    ("grant select on app.note to public", "table app.note PUBLIC has SELECT"),
    (
        "grant select on tenancy.binding_key to tenancy_rows",
        "table tenancy.binding_key tenancy_rows has SELECT",
    ),
    (
        "grant update on tenancy.fence to tenancy_rows",
        "table tenancy.fence tenancy_rows has UPDATE",
    ),
    # What is the keeper's is nothing for the role of migrations.
    (
        "alter table tenancy.fence owner to tenancy_owner",
        "table tenancy.fence belongs to tenancy_owner",
    ),
    (
        "alter table catalog.placement owner to tenancy_owner",
        "table catalog.placement belongs to tenancy_owner",
    ),
    ("alter schema tenancy owner to tenancy_owner", "schema tenancy belongs to tenancy_owner"),
    ("alter schema app owner to tenancy_keeper", "schema app belongs to tenancy_keeper"),
    (f"alter schema {_OWN} owner to tenancy_rows", f"schema {_OWN} belongs to tenancy_rows"),
    (
        "grant select on tenancy.binding_key to tenancy_owner",
        "table tenancy.binding_key tenancy_owner has SELECT",
    ),
    (
        "grant select on catalog.api_key to tenancy_owner",
        "table catalog.api_key tenancy_owner has SELECT",
    ),
    ("grant create on schema tenancy to tenancy_owner", "schema tenancy tenancy_owner has CREATE"),
    ("grant usage on schema catalog to tenancy_owner", "schema catalog tenancy_owner has USAGE"),
    (
        "grant execute on function tenancy.refuse(text) to tenancy_owner",
        "function tenancy.refuse(text) tenancy_owner has EXECUTE",
    ),
    (
        "grant select on catalog.api_key to tenancy_rows",
        "table catalog.api_key tenancy_rows has SELECT",
    ),
    (
        "grant truncate on catalog.tenant to tenancy_control",
        "table catalog.tenant tenancy_control has TRUNCATE",
    ),
    (
        "alter view app.notes reset (security_invoker)",
        "view app.notes is checked with its owner's rights",
    ),
    (
        "create materialized view app.copied as select 1 as a",
        "materialized view app.copied cannot have row security",
    ),
    (
        "create function app.around() returns int security definer language sql as 'select 1'; "
        "grant execute on function app.around() to public",
        "function app.around() runs with the rights of its owner",
    ),
    ("create table app.bare (id int)", "table app.bare has no row security"),
]


async def test_each_fault_of_a_database_is_found(install: Install, admin: asyncpg.Connection):
    for fault, expected in _IN_THE_DATABASE:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(fault)

        assert expected in await found(admin, install), fault

        await transaction.rollback()
    assert await found(admin, install) == []


async def test_the_mend_of_a_fault_mends_it(install: Install, admin: asyncpg.Connection):
    for fault, _ in _IN_THE_DATABASE:
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(fault)
        # What is mended can show what was hidden: a policy that was dropped is missing then.
        for _ in range(3):
            for finding in await audit_database(admin):
                assert await carry_out(admin, finding.statements) is None
        assert await audit_database(admin) == [], fault
        await transaction.rollback()


_IN_THE_SERVER = [
    ("alter role tenancy_rows superuser", "role tenancy_rows is superuser"),
    ("alter role tenancy_rows bypassrls", "role tenancy_rows has BYPASSRLS"),
    ("alter role tenancy_control createrole", "role tenancy_control has CREATEROLE"),
    ("alter role tenancy_rows createdb", "role tenancy_rows has CREATEDB"),
    ("alter role tenancy_rows replication", "role tenancy_rows has REPLICATION"),
    ("alter role tenancy_owner login", "role tenancy_owner may log in"),
    ("alter role tenancy_owner bypassrls", "role tenancy_owner has BYPASSRLS"),
    ("alter role tenancy_keeper login", "role tenancy_keeper may log in"),
    ("alter role tenancy_keeper superuser", "role tenancy_keeper is superuser"),
    ("grant tenancy_keeper to tenancy_owner", "role tenancy_owner is a member of tenancy_keeper"),
    ("grant tenancy_owner to tenancy_keeper", "role tenancy_keeper is a member of tenancy_owner"),
    ("create role stranger; grant tenancy_keeper to stranger", "role stranger is a member of "),
    ("alter role {own} bypassrls", "role {own} has BYPASSRLS"),
    ("grant tenancy_owner to tenancy_rows", "role tenancy_rows is a member of tenancy_owner"),
    ("grant pg_read_all_data to {own}", "role {own} is a member of pg_read_all_data"),
    ("grant {own} to tenancy_rows", "role tenancy_rows is a member of {own}"),
    ("create role stranger; grant tenancy_owner to stranger", "role stranger is a member of "),
    ("create table app.mine (id int); alter table app.mine owner to {own}", "role {own} owns 1 "),
    (
        "alter role tenancy_rows set search_path = evil",
        "role tenancy_rows has settings of its own: search_path=evil",
    ),
    (
        "alter role {own} in database {database} set row_security = off",
        "role {own} has settings of its own: row_security=off",
    ),
    ("grant connect on database {database} to public", "database {database} PUBLIC has CONNECT"),
    ("grant temp on database {database} to public", "database {database} PUBLIC has TEMPORARY"),
    ("grant temp on database {database} to {own}", "database {database} {own} has TEMPORARY"),
    ("grant create on database {database} to {own}", "database {database} {own} has CREATE"),
    (
        "grant connect on database {database}_template to tenancy_rows",
        "database {database}_template tenancy_rows has CONNECT",
    ),
    ("alter database {database} owner to {own}", "database {database} belongs to {own}"),
]


async def test_each_fault_of_the_server_is_found(
    install: Install, admin: asyncpg.Connection, own_login: str
):
    for fault, expected in _IN_THE_SERVER:
        names = {"own": own_login, "database": install.database}
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute(fault.format(**names))

        seen = await audit_server(admin, settings=install.settings)

        assert any(
            f"{finding.subject} {finding.problem}".startswith(expected.format(**names))
            for finding in seen
        ), fault
        await transaction.rollback()
    assert await audit_server(admin, settings=install.settings) == []


async def test_a_login_poisoned_by_itself_is_told_and_stops_nothing(install: Install):
    """ALTER ROLE CURRENT_USER SET needs no right, so it must not keep others from starting."""
    async with install.connected("tenancy_rows") as rows:
        await rows.execute("alter role current_user set search_path = 'evil'")
    try:
        report = await Bootstrap(
            settings=install.settings,
            master_key=install.master_key,
            servers=(install.server_config,),
        ).run()
        mends = [item.mend for item in report.warnings if item.check == "role_settings"]
        assert mends == ["alter role tenancy_rows reset search_path"]
    finally:
        async with install.connected() as admin:
            await admin.execute("alter role tenancy_rows reset all")


async def test_a_password_changed_by_a_tenant_is_put_right_by_the_next_start(install: Install):
    async with install.connected("tenancy_rows") as rows:
        await rows.execute("alter role current_user password 'mine'")
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with install.connected("tenancy_rows"):
            pass

    await Bootstrap(
        settings=install.settings,
        master_key=install.master_key,
        servers=(install.server_config,),
    ).run()

    async with install.connected("tenancy_rows") as rows:
        assert await rows.fetchval("select 1") == 1


async def test_several_logins_on_one_own_schema_are_found(
    install: Install, admin: asyncpg.Connection, own_login: str
):
    other = opaque_name()
    await admin.execute(f'create role "{other}"')
    try:
        await admin.execute(f'grant usage on schema {_OWN} to "{other}"')
        assert any("is open to several logins" in text for text in await found(admin, install))
    finally:
        await admin.execute(f'drop owned by "{other}"')
        await admin.execute(f'drop role "{other}"')
