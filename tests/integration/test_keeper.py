"""What users' migrations call can change nothing that the boundary rests on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from support.earlier_release import as_earlier, own_objects
from support.engines import opened
from support.install import Install

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.engine.engine import Engine

#: Runs a statement from inside a migration, as somebody would who hides it from its readers.
_MIGRATION = """
create table traps (id integer primary key);
create function spring() returns integer language plpgsql as $f$
begin
    execute $attack${attack}$attack$;
    return 1;
end;
$f$;
insert into traps values (spring());
"""
#: Runs many, whatever comes of them, and keeps what did.
_PATIENT = """
create table outcomes (sql text primary key, outcome text not null);
create function try_out(attack text) returns text language plpgsql as $f$
begin
    execute attack;
    return 'done';
exception when others then
    return sqlstate;
end;
$f$;
insert into outcomes (sql, outcome) values {rows};
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """A statement that what a migration calls runs."""

    sql: str
    #: Whether it did something when the schemas belonged to the role of the migrations. The others
    #: go for the keeper, whom they did not need then, or for what there was not then.
    worked: bool = True


_ATTACKS = [
    # Something new in the schema
    Attack("create table tenancy.mine (a int)"),
    Attack("create view tenancy.mine as select 1 as a"),
    Attack("create sequence tenancy.mine"),
    Attack("create domain tenancy.mine as int"),
    Attack("create function tenancy.mine() returns int language sql as 'select 1'"),
    Attack("create function tenancy.tenant(a int) returns bigint language sql as 'select 1::int8'"),
    Attack("create operator tenancy.= (leftarg = int8, rightarg = int8, function = int8eq)"),
    # The functions
    Attack(
        "create or replace function tenancy.tenant() returns bigint language sql "
        "as 'select 1::bigint'"
    ),
    Attack("alter function tenancy.tenant() security invoker"),
    Attack("alter function tenancy.tenant() rename to other"),
    Attack("alter function tenancy.bound_tenant() set search_path = app"),
    Attack("alter function tenancy.refuse(text) set schema app"),
    Attack("alter function tenancy.lock_key(bigint) volatile"),
    Attack("drop function tenancy.refuse(text)"),
    Attack("drop function tenancy.tenant() cascade"),
    Attack("grant execute on function tenancy.refuse(text) to public"),
    Attack("select tenancy.refuse('TN004')", worked=False),
    Attack("alter function catalog.epochs_only_rise() security definer"),
    # The tables, and what hangs on them
    Attack("alter table tenancy.fence rename to kept"),
    Attack("alter table tenancy.fence alter open set default true"),
    Attack("alter table tenancy.fence add column spy text"),
    Attack("alter table tenancy.fence add constraint odd check (epoch > 0)"),
    Attack("alter table tenancy.fence enable row level security"),
    Attack("alter table tenancy.overlay set schema app"),
    Attack("drop table tenancy.overlay"),
    Attack("truncate tenancy.fence"),
    Attack("lock table tenancy.fence in access exclusive mode"),
    Attack(
        "create trigger spy before update on tenancy.fence for each row "
        "execute function suppress_redundant_updates_trigger()"
    ),
    Attack("create rule spy as on update to tenancy.fence do instead nothing"),
    Attack("create policy spy on tenancy.fence using (true)"),
    Attack("create index spy on tenancy.fence (epoch)"),
    Attack("create statistics app.spy on epoch, open from tenancy.fence"),
    Attack("create table app.part () inherits (tenancy.fence)"),
    Attack("create table app.spy (tenant_no bigint references tenancy.fence)"),
    Attack("comment on table tenancy.fence is 'mine'"),
    Attack("grant select on tenancy.binding_key to tenancy_rows"),
    # The rows
    Attack("create table app.spy as select * from tenancy.binding_key"),
    Attack("update tenancy.fence set open = true, epoch = epoch + 1"),
    Attack("insert into tenancy.fence values (999, 1, true)"),
    Attack("insert into tenancy.binding_key (key_id, retired_at) values (77, now())"),
    Attack("insert into tenancy.overlay values (999, 'app')"),
    Attack("update tenancy.installation set version = 99"),
    Attack("create table app.spy as select digest from catalog.api_key"),
    Attack("update catalog.placement set role = 'tenancy_rows', epoch = epoch + 1"),
    Attack("delete from catalog.migration"),
    Attack("create rule spy as on insert to catalog.api_key do also select 1"),
    Attack("update catalog.proposal set target_level = 'row'", worked=False),
    Attack("insert into catalog.load values (now(), 1, 1, 1)", worked=False),
    Attack("update catalog.orchestrator set holder = 'me', mode = 'automatic'", worked=False),
    Attack("create table app.spy as select * from catalog.tendency", worked=False),
    Attack("create rule spy as on insert to catalog.load_window do also select 1", worked=False),
    Attack("alter table catalog.proposal owner to tenancy_owner", worked=False),
    # The schemas
    Attack("alter schema tenancy rename to other"),
    Attack("alter schema tenancy owner to tenancy_owner"),
    Attack("alter schema catalog rename to other"),
    Attack("drop schema tenancy cascade"),
    Attack("drop schema catalog cascade"),
    # The keeper
    Attack("reassign owned by tenancy_keeper to tenancy_owner", worked=False),
    Attack("drop owned by tenancy_keeper cascade", worked=False),
    Attack("set role tenancy_keeper", worked=False),
    Attack("set session authorization tenancy_keeper", worked=False),
    Attack("grant tenancy_keeper to tenancy_owner", worked=False),
    Attack("alter role tenancy_keeper login password 'x'", worked=False),
    Attack(
        "alter default privileges for role tenancy_keeper grant execute on functions to public",
        worked=False,
    ),
]
#: PostgreSQL only warns whoever may use an object and gives away what is not his.
_WITHOUT_EFFECT = [
    "grant create on schema tenancy to public",
    "grant execute on function tenancy.tenant() to tenancy_control",
    "revoke usage on schema tenancy from public",
]


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, tables=False) as opened_engine:
        yield opened_engine


async def _contents(admin: asyncpg.Connection) -> dict[Any, Any]:
    """The runtime's own schemas, rows included, and what there is in those of users."""
    found: dict[Any, Any] = dict(await own_objects(admin))
    for table in ("fence", "binding_key", "overlay", "installation"):
        found[table] = [tuple(row) for row in await admin.fetch(f"table tenancy.{table}")]
    found["migrations"] = await admin.fetchval("select count(*) from catalog.migration")
    found["users"] = {
        row[0]
        for row in await admin.fetch(
            "select oid::regclass::text from pg_class where relnamespace in "
            "('app'::regnamespace, 'tenancy_reference'::regnamespace)"
        )
    }
    return found


async def test_no_migration_changes_what_the_keeper_owns(engine: Engine, install: Install):
    attacks = [attack.sql for attack in _ATTACKS]
    rows = ", ".join(f"($a${sql}$a$, try_out($a${sql}$a$))" for sql in [*attacks, "select 1"])
    async with install.connected() as admin:
        before = await _contents(admin)

        report = await engine.apply_migration("0001_patient", _PATIENT.replace("{rows}", rows))

        assert report.complete
        found = await admin.fetch("select sql, outcome from tenancy_reference.outcomes")
        outcomes = {row["sql"]: row["outcome"] for row in found}
        assert outcomes.pop("select 1") == "done"
        assert outcomes == dict.fromkeys(attacks, "42501")
        after = await _contents(admin)
        assert after.pop("migrations") == before.pop("migrations") + 1
        assert after.pop("users") > before.pop("users")
        assert after == before


@pytest.mark.parametrize(
    "attack",
    [
        "create or replace function tenancy.tenant() returns bigint language sql "
        "as 'select 1::bigint'",
        "create rule spy as on update to tenancy.fence do instead nothing",
        "drop schema tenancy cascade",
        "reassign owned by tenancy_keeper to tenancy_owner",
        "drop owned by tenancy_owner cascade",
    ],
)
async def test_a_migration_that_tries_fails_and_leaves_nothing(
    engine: Engine, install: Install, attack: str
):
    async with install.connected() as admin:
        before = await _contents(admin)

        with pytest.raises(SchemaError):
            await engine.apply_migration("0001_evil", _MIGRATION.replace("{attack}", attack))

        assert await _contents(admin) == before
    await engine.apply_migration("0001_good", _MIGRATION.replace("{attack}", "select 1"))


async def test_rights_that_are_not_his_are_nothing_to_give_or_take(install: Install):
    async with install.connected() as admin:
        before = await own_objects(admin)
        async with admin.transaction():
            await admin.execute("set local role tenancy_owner")
            for sql in _WITHOUT_EFFECT:
                await admin.execute(sql)
        assert await own_objects(admin) == before


async def test_the_same_attacks_worked_while_migrations_owned_the_schemas(
    engine: Engine, install: Install
):
    async with install.connected() as admin:
        await as_earlier(admin, catalog=True)
        before = await own_objects(admin)
        for sql in (*(attack.sql for attack in _ATTACKS if attack.worked), *_WITHOUT_EFFECT):
            transaction = admin.transaction()
            await transaction.start()
            await admin.execute("set local role tenancy_owner")
            await admin.execute(sql)
            await transaction.rollback()
        assert await own_objects(admin) == before
        await admin.execute(
            "begin; set local role tenancy_owner; create or replace function tenancy.tenant() "
            "returns bigint language sql security definer as 'select 1::bigint'; commit"
        )
        assert await own_objects(admin) != before


async def test_the_role_of_migrations_has_what_everybody_has_there(install: Install):
    async with install.connected() as admin:
        rights = await admin.fetch(
            "select n.nspname::text, has_schema_privilege('tenancy_owner', n.oid, 'USAGE'), "
            "has_schema_privilege('tenancy_owner', n.oid, 'CREATE') "
            "from pg_namespace n where nspname in ('tenancy', 'catalog') order by 1"
        )
        assert [tuple(row) for row in rights] == [
            ("catalog", False, False),
            ("tenancy", True, False),
        ]
        usable = await admin.fetch(
            "select p.oid::regprocedure::text from pg_proc p where pronamespace in "
            "('tenancy'::regnamespace, 'catalog'::regnamespace) "
            "and has_function_privilege('tenancy_owner', p.oid, 'EXECUTE') order by 1"
        )
        assert [row[0] for row in usable] == [
            "tenancy.bound_tenant()",
            "tenancy.run(text)",
            "tenancy.tenant()",
        ]
        readable = await admin.fetchval(
            "select count(*) from pg_class where relkind in ('r', 'S') and relnamespace in "
            "('tenancy'::regnamespace, 'catalog'::regnamespace) "
            "and has_table_privilege('tenancy_owner', oid, "
            "'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
        )
        assert readable == 0
        assert not await admin.fetchval(
            "select pg_has_role('tenancy_owner', 'tenancy_keeper', 'MEMBER') "
            "or pg_has_role('tenancy_keeper', 'tenancy_owner', 'MEMBER')"
        )


async def test_the_keeper_has_nothing_but_what_its_functions_need(install: Install):
    """tenancy.tenant() works as the keeper, so whoever misleads it has no more than this."""
    async with install.connected() as admin:
        owned = await admin.fetch(
            "select relnamespace::regnamespace::text || '.' || relname from pg_class "
            "where pg_get_userbyid(relowner) = 'tenancy_keeper' and relkind = 'r' "
            "and relnamespace not in ('tenancy'::regnamespace, 'catalog'::regnamespace) "
            "and relnamespace <> 'pg_toast'::regnamespace"
        )
        assert owned == []
        # For pg_temp and the like it has what PUBLIC has, which is nothing.
        assert not await admin.fetchval(
            "select has_database_privilege('tenancy_keeper', current_database(), "
            "'CONNECT, CREATE, TEMP')"
        )
        for schema in ("app", "tenancy_reference"):
            query = "select has_schema_privilege('tenancy_keeper', $1, 'USAGE, CREATE')"
            assert not await admin.fetchval(query, schema)
        row = await admin.fetchrow(
            "select rolcanlogin, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, "
            "rolreplication from pg_roles where rolname = 'tenancy_keeper'"
        )
        assert not any(row)


_BY_PLANNING = """
create table things (id int primary key);
create function who() returns int immutable language plpgsql as
$f$ begin
    if current_user <> 'tenancy_owner' then raise exception 'planned as %', current_user; end if;
    return 1;
end; $f$;
"""
_SPIES = ["on things (id) where who() = 1", "on things ((id + who()))"]


@pytest.mark.parametrize("spy", _SPIES)
async def test_nothing_that_a_migration_leaves_runs_while_the_admin_plans(
    engine: Engine, install: Install, spy: str
):
    with pytest.raises(SchemaError, match="calls who, which would run"):
        await engine.apply_migration("0001_spy", f"{_BY_PLANNING} create index spy {spy}")

    # What would have been: the admin who only looks runs the migration's function.
    async with install.connected() as admin:
        await admin.execute(
            f"begin; set local role tenancy_owner; set local search_path = app; {_BY_PLANNING} "
            f"create index spy {spy}; commit"
        )
        user = await admin.fetchval("select current_user")
        with pytest.raises(asyncpg.RaiseError, match=f"planned as {user}"):
            await admin.fetch("select from app.things")
