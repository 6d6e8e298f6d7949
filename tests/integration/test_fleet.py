"""Migrations over a fleet: tenants with rows, failures, interruptions, new tenants."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet_stage import Stage, failures, migrations, open_stage
from support.install import SERVER, Install
from support.random_schema import migration, new_table

from tenancy.data_isolation.core.errors import (
    ConflictError,
    MigrationConflictError,
    MigrationFailedError,
    OverloadedError,
    SchemaRefusedError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import Epoch
from tenancy.data_isolation.core.types import IsolationLevel, TenantStatus
from tenancy.data_isolation.engine.catalog_records import NamespaceKind, NamespaceState
from tenancy.data_isolation.engine.fleet import Fleet
from tenancy.data_isolation.engine.layout import APP_SCHEMA
from tenancy.data_isolation.engine.migration import Migration

LEVELS = tuple(IsolationLevel)
PLAN = "create table plan (id int generated always as identity primary key, name text unique)"


@pytest.fixture
async def stage(install: Install) -> AsyncIterator[Stage]:
    async with open_stage(install) as opened:
        yield opened


async def _versions(stage: Stage) -> dict[tuple[str, str], int]:
    return {
        (item.namespace.database, item.namespace.schema): item.version
        for item in await stage.fleet.status()
    }


# Rows of tenants


async def test_every_tenant_at_every_level_gets_its_own_rows(stage):
    tenants = [await stage.tenant(f"old-{level}", level) for level in LEVELS]
    tenants.append(await stage.tenant("another"))

    await stage.migrate(PLAN, "insert into plan (name) values ('free'), ('paid')")

    for tenant in tenants:
        assert await stage.rows(tenant, "select name from plan order by 1") == [
            ("free",),
            ("paid",),
        ]


async def test_statements_count_within_one_tenant(stage):
    await stage.migrate("create table t (id int primary key, rank int default 0, note text)")
    tenants = [await stage.tenant(f"t-{level}", level) for level in LEVELS]
    tenants.append(await stage.tenant("t-another"))
    for size, tenant in enumerate(tenants, 1):
        await stage.rows(tenant, "insert into t select generate_series(1, $1)", size)

    await stage.migrate(
        "create table t (id int primary key, rank int default 0, note text)",
        "update t set rank = (select count(*) from t);"
        "insert into t select coalesce(max(id), 0) + 1, 0, 'last' from t;"
        "delete from t where id = 1;"
        "merge into t using (values (2, 'two')) as s (id, note) on t.id = s.id "
        "when matched then update set note = s.note "
        "when not matched then insert values (2, 9, 'x')",
    )

    for size, tenant in enumerate(tenants, 1):
        found = await stage.rows(tenant, "select id, rank, note from t order by id")
        assert [row[0] for row in found] == list(range(2, size + 2))
        assert [row[1] for row in found] == [size] * (size - 1) + [0]
        assert found[0][2] == "two"
        assert found[-1][2] == ("two" if size == 1 else "last")


LATER = [
    "alter table c add column city text not null default 'Ulm'",
    "alter table c drop column gone",
    "alter table c alter column size type numeric(10, 2) using size * 1.5",
    "alter table c rename column name to title",
    "alter table c rename to customer",
    "create table address (id int primary key, customer_id int not null references customer)",
    "insert into address select id, id from customer",
    "alter table o add constraint o_positive check (amount > 0) not valid",
    "alter table o validate constraint o_positive",
    "alter table o add column c_id int; update o set c_id = customer_id",
    "alter table o add constraint o_c foreign key (c_id) references customer (id) not valid",
    "alter table o validate constraint o_c; alter table o alter column c_id set not null",
    "alter table o add unique (code); create index on o (amount); "
    "create unique index on o (lower(code))",
    "alter table customer alter column id type bigint",
    "alter type mood add value 'new'",
    "update customer set mood = 'new' where id = 1",
    "create view rich as select * from customer where size > 1; "
    "create or replace view rich as select *, 1 as one from customer where size > 1",
    "alter table o drop constraint o_pkey, add primary key (code, id)",
    "alter table customer add column serial serial; drop table address",
    "update customer set city = 'Bonn' where id = 2; "
    "alter table customer alter column city drop default; "
    "insert into customer (id, title, size, mood, city) values (99, 'z', 1, 'new', 'Köln') "
    "on conflict (id) do nothing",
]


async def test_later_migrations_change_tenants_that_have_rows_at_every_level(stage):
    first = (
        "create type mood as enum ('old');"
        "create table c (id int primary key, name text, size int, gone int, "
        "mood mood default 'old');"
        "create table o (id int primary key, customer_id int references c, amount int, code text)"
    )
    await stage.migrate(first)
    tenants = [await stage.tenant(f"t-{level}", level) for level in LEVELS]
    tenants.append(await stage.tenant("t-another"))
    for tenant in tenants:
        # The same keys everywhere: uniqueness is a tenant's own business.
        await stage.rows(tenant, "insert into c values (1, 'a', 2, 3), (2, 'b', 4, 5)")
        await stage.rows(
            tenant, "insert into o values (1, 1, 10, 'x'), (2, 1, 20, 'y'), (3, 2, 30, 'z')"
        )

    await stage.migrate(first, *LATER)

    for tenant in tenants:
        assert await stage.rows(
            tenant, "select id, title, size, mood, city from customer order by id"
        ) == [
            (1, "a", 3, "new", "Ulm"),
            (2, "b", 6, "old", "Bonn"),
            (99, "z", 1, "new", "Köln"),
        ]
        assert await stage.rows(tenant, "select count(distinct serial) from customer") == [(3,)]
        assert await stage.rows(tenant, "select id, c_id from o order by id") == [
            (1, 1),
            (2, 1),
            (3, 2),
        ]
        assert await stage.rows(tenant, "select one, city from rich order by id limit 1") == [
            (1, "Ulm")
        ]
        with pytest.raises(asyncpg.ForeignKeyViolationError):
            await stage.rows(tenant, "delete from customer where id = 1")
        if tenant.namespace.kind is NamespaceKind.OWN:
            # Compares with the reference: what grew step by step is what is made at once.
            async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
                await stage.fleet.create_namespace(connection, tenant.namespace)
    await stage.tenant("fresh", IsolationLevel.SCHEMA)


@st.composite
def _histories(draw: Any, name: str) -> tuple[list[str], list[tuple[str, list[Any]]], list[str]]:
    """How a table is made, rows for it, how it changes later, and what to read in the end."""
    table, made = draw(new_table(name, []))
    inserts = []
    for number in range(draw(st.integers(0, 4))):
        values = {column: table.value(draw, column) for column in table.columns}
        values["id"] = number
        marks = ", ".join(f"${index + 1}" for index in range(len(values)))
        text = f"insert into {name} ({', '.join(values)}) values ({marks}) on conflict do nothing"
        sent = [_sent(table.columns[column], value) for column, value in values.items()]
        inserts.append((text, sent))
    later = [draw(migration(table, number)) for number in range(draw(st.integers(1, 4)))]
    return [made, *later], inserts, sorted(table.columns)


async def test_any_history_gives_every_tenant_what_a_database_of_its_own_would_have(stage):
    drawn: list[Any] = []

    @settings(
        max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(data=st.data())
    def draw(data: st.DataObject) -> None:
        drawn.append(data.draw(_histories(f"h{len(drawn)}")))

    # Hypothesis drives synchronous code; the histories it draws are lived through afterwards.
    draw()
    tenants = [await stage.tenant(f"t-{level}", level) for level in LEVELS]
    plain = await asyncpg.connect(stage.install.admin_dsn(), server_settings={"search_path": "own"})
    await plain.execute("create schema own")
    texts = [steps[0] for steps, _, _ in drawn]
    await stage.migrate(*texts)
    await plain.execute(";".join(texts))
    for text, values in [insert for _, inserts, _ in drawn for insert in inserts]:
        expected = await _answer(plain.fetch(text, *values))
        for tenant in tenants:
            assert await _answer(stage.rows(tenant, text, *values)) == expected
    for step in [step for steps, _, _ in drawn for step in steps[1:]]:
        # What a database of one's own refuses is no migration to begin with.
        if await _answer(plain.execute(step)) == "done":
            texts.append(step)
    await stage.migrate(*texts)
    for index, (steps, _, columns) in enumerate(drawn):
        query = f"select {', '.join(columns)} from h{index} order by id"
        rows = [repr(tuple(row)) for row in await plain.fetch(query)]
        for tenant in tenants:
            assert [repr(row) for row in await stage.rows(tenant, query)] == rows, steps
    await plain.close()


async def _answer(work: Awaitable[Any]) -> str:
    """`done`, or the SQLSTATE of what went wrong."""
    try:
        await work
    except asyncpg.PostgresError as error:
        return error.sqlstate
    return "done"


def _sent(kind: str, value: Any) -> Any:
    """A drawn value as the driver takes it."""
    match kind:
        case "jsonb":
            return json.dumps(value)
        case "numeric" if value is not None:
            return Decimal(value)
        case "date" if value is not None:
            return date.max if value == "infinity" else date.fromisoformat(value)
    return value


async def test_a_deferred_trigger_runs_in_its_own_tenants_turn(stage):
    await stage.migrate(
        "create table t (id int primary key); create table log (id int primary key, n bigint);"
        "create function note() returns trigger language plpgsql as $$ begin "
        "insert into log (id, n) select new.id, count(*) from t; return null; end $$;"
        "create constraint trigger note after insert on t deferrable initially deferred "
        "for each row execute function note()"
    )
    tenants = [await stage.tenant("one"), await stage.tenant("two")]
    await stage.rows(tenants[0], "insert into t values (7)")
    await stage.fleet.register([Migration(number=2, name="two", sql="insert into t values (1)")])
    await stage.fleet.apply()

    assert await stage.rows(tenants[0], "select id, n from log order by id") == [(1, 2), (7, 1)]
    assert await stage.rows(tenants[1], "select id, n from log order by id") == [(1, 1)]


async def test_many_tenants_share_one_transaction_without_a_lock_each(install):
    async with open_stage(install, migration_bound_tenants_max=1) as stage:
        await stage.migrate(PLAN)
        tenants = [await stage.tenant(name) for name in ("one", "two", "three")]
        before = await stage.dump()
        await stage.migrate(PLAN, "insert into plan (name) select 'p' || count(*) from plan")
        after = await stage.dump()

        for tenant in tenants:
            assert await stage.rows(tenant, "select name from plan") == [("p0",)]
        # The policies that were opened for it are closed again.
        assert [row for row in after if row[0] == "policy"] == [
            row for row in before if row[0] == "policy"
        ]


async def test_suspended_tenants_are_migrated_and_stay_closed(stage):
    await stage.migrate(PLAN)
    tenant = await stage.tenant("asleep")
    await stage.catalog.set_status(
        tenant.tenant_no, TenantStatus.SUSPENDED, expected=TenantStatus.ACTIVE
    )
    await stage.root.execute("update tenancy.fence set open = false")

    await stage.migrate(PLAN, "insert into plan (name) values ('free')")

    assert await stage.root.fetchval("select open from tenancy.fence") is False
    with pytest.raises(asyncpg.PostgresError, match="closed"):
        await stage.rows(tenant, "select 1 from plan")
    await stage.root.execute("update tenancy.fence set open = true")
    assert await stage.rows(tenant, "select name from plan") == [("free",)]


async def test_a_tenant_that_is_being_moved_holds_its_namespace_back(stage):
    await stage.migrate(PLAN)
    await stage.tenant("moving")
    await stage.root.execute("update tenancy.fence set open = false")
    await stage.fleet.register(migrations("-", "insert into plan (name) values ('x')")[1:])

    report = await stage.fleet.apply()

    assert [item.namespace.kind for item in report.failures] == [NamespaceKind.SHARED]
    assert "is being moved" in failures(report)[0]
    await stage.root.execute("update tenancy.fence set open = true")
    assert (await stage.fleet.apply()).complete


# New tenants


SEEDS = """
create type mood as enum ('good', 'bad');
create type place as (street text, number int);
create domain short as text check (length(value) < 9);
create table node (id int generated always as identity primary key, up int references node,
    mood mood, moods mood[], place place, label short,
    twice int generated always as (id * 2) stored);
create table leaf (id serial primary key, node_id int not null references node);
create table log (id int primary key);
create table a (id int primary key, b int);
create table b (id int primary key, a int references a deferrable);
alter table a add foreign key (b) references b;
create function note() returns trigger language plpgsql
    as $$ begin insert into log (id) values (new.id); return new; end $$;
create trigger note after insert on leaf for each row execute function note();
insert into node (up, mood, moods, place, label)
    values (null, 'good', '{good,bad}', ('Elm', 5), 'root');
insert into node (up, mood) values (1, 'bad');
insert into leaf (node_id) values (1), (2);
insert into a values (1), (2); insert into b values (1, 1); update a set b = 1;
"""


async def test_a_new_tenant_at_any_level_starts_with_the_rows_of_the_reference(stage):
    await stage.migrate(SEEDS)

    for level in LEVELS:
        tenant = await stage.tenant(f"new-{level}", level)
        assert await stage.rows(
            tenant, "select id, up, mood::text, moods::text, place::text, label, twice from node"
        ) == [
            (1, None, "good", "{good,bad}", "(Elm,5)", "root", 2),
            (2, 1, "bad", None, None, None, 4),
        ]
        assert await stage.rows(tenant, "select id, node_id from leaf") == [(1, 1), (2, 2)]
        # What the trigger did is copied, and not done again.
        assert await stage.rows(tenant, "select id from log order by 1") == [(1,), (2,)]
        assert await stage.rows(tenant, "select a.id, b.a from a join b on b.id = a.b") == [
            (1, 1),
            (2, 1),
        ]
        for table in ("node (up) values (1)", "leaf (node_id) values (1)"):
            ((fresh,),) = await stage.rows(tenant, f"insert into {table} returning id")
            assert fresh > 2


async def test_a_tenant_gets_its_first_rows_once(stage):
    await stage.migrate(PLAN, "insert into plan (name) values ('free')")
    tenant = await stage.tenant("new")
    await stage.rows(tenant, "delete from plan")

    async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
        again = await stage.fleet.seed_tenant(
            connection, tenant.namespace, tenant.tenant_no, Epoch(1)
        )

    assert again is False
    assert await stage.rows(tenant, "select * from plan") == []


async def test_sequences_never_move_back_for_a_new_tenant(stage):
    await stage.migrate(PLAN, "insert into plan (name) values ('free')")
    old = await stage.tenant("old")
    for _ in range(5):
        await stage.rows(old, "insert into plan (name) values (gen_random_uuid())")
    last = await stage.rows(old, "select max(id) from plan")

    await stage.tenant("new")

    fresh = await stage.rows(old, "insert into plan (name) values ('x') returning id")
    assert fresh > last


async def test_a_tenant_between_its_first_rows_and_its_activation_is_migrated_once(stage):
    await stage.migrate(PLAN, "insert into plan (name) values ('first')")
    seeded = await stage.tenant("seeded", status=TenantStatus.CREATING)
    await stage.migrate(
        PLAN,
        "insert into plan (name) values ('first')",
        "insert into plan (name) values ('second')",
    )

    assert await stage.rows(seeded, "select name from plan order by 1") == [("first",), ("second",)]


async def test_a_tenant_without_its_first_rows_gets_all_of_them_later(stage):
    await stage.migrate(PLAN, "insert into plan (name) values ('first')")
    tenant = await stage.tenant("new", status=TenantStatus.CREATING)
    # As if it had been killed before the rows came.
    await stage.root.execute("delete from app.plan; delete from app.tenancy_idempotency")
    await stage.migrate(
        PLAN,
        "insert into plan (name) values ('first')",
        "insert into plan (name) values ('second')",
    )
    assert await stage.rows(tenant, "select name from plan") == []

    async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
        await stage.fleet.seed_tenant(connection, tenant.namespace, tenant.tenant_no, Epoch(1))

    assert await stage.rows(tenant, "select name from plan order by 1") == [("first",), ("second",)]


async def test_first_rows_wait_for_a_namespace_that_is_behind(stage):
    await stage.migrate(PLAN)
    await stage.fleet.register(migrations("-", "insert into plan (name) values ('x')")[1:])

    with pytest.raises(UnavailableError, match="finish the migration first"):
        await stage.tenant("early")


async def test_first_rows_do_not_open_the_fence_of_a_later_placement(stage):
    tenant = await stage.tenant("one")
    await stage.root.execute("update tenancy.fence set epoch = 2, open = false")

    async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
        with pytest.raises(ConflictError, match="no open fence"):
            await stage.fleet.seed_tenant(connection, tenant.namespace, tenant.tenant_no, Epoch(1))
    assert not await stage.root.fetchval("select open from tenancy.fence")


async def test_a_database_that_was_cloned_before_a_migration_is_brought_up(stage):
    await stage.migrate(PLAN)
    tenant = await stage.tenant("clone", IsolationLevel.DATABASE)
    database = tenant.namespace.database
    await stage.fleet.register(migrations("-", "insert into plan (name) values ('x')")[1:])
    async with stage.admin.session(SERVER, database) as connection:
        await connection.execute("delete from app.tenancy_idempotency")
        await stage.catalog.set_status(
            tenant.tenant_no, TenantStatus.SUSPENDED, expected=TenantStatus.ACTIVE
        )
        await connection.execute("delete from tenancy.fence where tenant_no <> $1", 0)
        await connection.execute("insert into tenancy.fence values ($1, 1, true)", tenant.tenant_no)
        await stage.root.execute("update catalog.tenant set status = 'creating'")
        await stage.fleet.create_namespace(connection, tenant.namespace)
        await stage.fleet.seed_tenant(connection, tenant.namespace, tenant.tenant_no, Epoch(1))

    assert await stage.rows(tenant, "select name from plan") == [("x",)]


# Order, failures, interruptions


async def test_registering_again_changes_nothing(stage):
    wanted = migrations(PLAN, "insert into plan (name) values ('free')")

    assert await stage.fleet.register(wanted) == tuple(wanted)
    assert await stage.fleet.register(reversed(wanted)) == ()
    assert await stage.fleet.migrations() == tuple(wanted)


async def test_another_text_under_a_known_number_is_a_conflict(stage):
    await stage.migrate(PLAN)

    other = Migration(number=1, name="other", sql="create table other (id int primary key)")
    with pytest.raises(MigrationConflictError) as caught:
        await stage.fleet.register([other])

    assert str(caught.value) == (
        "migration 1 (step-1) exists already with another text; give the new one (other) a number "
        "above 1"
    )


async def test_what_is_registered_stays_so_even_if_it_would_be_refused_today(stage):
    await stage.migrate(PLAN)
    # An older release has registered files without a statement.
    await stage.root.execute("update catalog.migration set sql = '', checksum = sha256('')")

    fleet = Fleet(
        settings=stage.settings, catalog=stage.catalog, admin=stage.admin, keys=stage.keys
    )

    assert await fleet.register(migrations("")) == ()
    with pytest.raises(SchemaRefusedError, match=r"migration 2 \(step-2\) holds no statement"):
        await fleet.register(migrations("", "-- later"))


async def test_a_new_value_of_an_enum_waits_for_the_next_migration(stage):
    await stage.migrate("create type mood as enum ('old'); create table t (m mood primary key)")

    with pytest.raises(MigrationFailedError, match="unsafe use of new value") as caught:
        await stage.fleet.register(
            migrations("-", "alter type mood add value 'new'; insert into t values ('new')")[1:]
        )

    assert caught.value.sqlstate == "55P04"


async def test_a_unique_index_can_become_a_primary_key(stage):
    await stage.migrate(
        "create table t (a int not null); create unique index k on t (a);"
        "alter table t add constraint k primary key using index k",
        "create table u (a int); alter table only u add constraint u_pkey primary key (a)",
    )
    tenant = await stage.tenant("one", IsolationLevel.SCHEMA)

    await stage.rows(tenant, "insert into t values (1)")
    with pytest.raises(asyncpg.UniqueViolationError):
        await stage.rows(tenant, "insert into t values (1)")


async def test_a_number_below_the_newest_comes_too_late(stage):
    await stage.fleet.register([Migration(number=5, name="five", sql=PLAN)])

    with pytest.raises(MigrationConflictError, match="number above 5"):
        await stage.fleet.register([Migration(number=3, name="three", sql="")])


async def test_migrations_before_a_bad_one_are_registered(stage):
    wanted = migrations(PLAN, "alter table missing add column a int")

    with pytest.raises(MigrationFailedError):
        await stage.fleet.register(wanted)

    assert await stage.fleet.migrations() == (wanted[0],)


async def test_a_migration_that_no_rule_allows_keeps_all_others_back(stage):
    with pytest.raises(SchemaRefusedError):
        await stage.fleet.register(migrations(PLAN, "drop schema app"))

    assert await stage.fleet.migrations() == ()


async def test_a_tenant_whose_rows_do_not_fit_stays_behind_and_is_taken_up_later(stage):
    await stage.migrate("create table t (id int primary key, a int)")
    bad = await stage.tenant("bad", IsolationLevel.SCHEMA)
    good = await stage.tenant("good", IsolationLevel.SCHEMA)
    await stage.rows(bad, "insert into t values (1, 5), (2, 5)")
    await stage.rows(good, "insert into t values (1, 5), (2, 6)")
    before = await stage.rows(bad, "select * from t order by 1")
    wanted = migrations(
        "create table t (id int primary key, a int)",
        "create table u (id int primary key); update t set a = a + 1;alter table t add unique (a)",
        "alter table t add column b int",
    )
    await stage.fleet.register(wanted)

    report = await stage.fleet.apply()

    (failed,) = report.failures
    assert (failed.namespace.schema, failed.from_version, failed.to_version) == (
        bad.namespace.schema,
        1,
        1,
    )
    assert failed.error is not None
    assert failed.error.startswith("migration 2 (step-2), line 1: could not create unique index")
    assert failed.error.endswith(" (tenant bad). Key (a)=(6) is duplicated.")
    assert report.left == 0
    versions = await _versions(stage)
    assert versions.pop((stage.install.database, bad.namespace.schema)) == 1
    assert set(versions.values()) == {3}
    # Nothing of the second migration is left where it failed.
    assert await stage.rows(bad, "select * from t order by 1") == before
    with pytest.raises(asyncpg.UndefinedTableError):
        await stage.rows(bad, "select * from u")
    assert await stage.rows(good, "select a, b from t order by 1") == [(6, None), (7, None)]
    status = {item.namespace.schema: item for item in await stage.fleet.status()}
    assert status[bad.namespace.schema].state is NamespaceState.FAILED
    assert status[bad.namespace.schema].error == failed.error

    await stage.rows(bad, "update t set a = 7 where id = 2")
    second = await stage.fleet.apply()

    assert second.complete
    assert [item.namespace.schema for item in second.outcomes] == [bad.namespace.schema]
    assert await stage.rows(bad, "select a, b from t order by 1") == [(6, None), (8, None)]


async def test_the_key_that_is_told_leaves_the_tables_as_they_were(stage):
    await stage.migrate("create table t (id int primary key, a int)")
    first, other = await stage.tenant("first"), await stage.tenant("other")
    await stage.rows(first, "insert into t values (1, 5), (2, 6)")
    await stage.rows(other, "insert into t values (1, 5), (2, 5)")
    before = await stage.dump()
    wanted = "create unique index on t ((a + 1)) where id > 0"
    await stage.fleet.register(migrations("-", wanted)[1:])

    (failed,) = (await stage.fleet.apply()).failures

    assert failed.error.endswith(" (tenant other). Key ((a + 1))=(6) is duplicated.")
    assert await stage.rows(first, "select a from t order by id") == [(5,), (6,)]
    forced = "select relforcerowsecurity from pg_class where oid = 'app.t'::regclass"
    assert await stage.root.fetchval(forced)
    assert [line for line in before if line not in await stage.dump()] == []


async def test_a_run_stops_at_its_failure_budget(install):
    changes = {"migration_failures_max": 2, "migration_concurrency": 1}
    async with open_stage(install, **changes) as stage:
        await stage.migrate("create table t (id int primary key, a int)")
        for index in range(4):
            tenant = await stage.tenant(f"bad-{index}", IsolationLevel.SCHEMA)
            await stage.rows(tenant, "insert into t values (1, 5), (2, 5)")
        await stage.fleet.register(migrations("-", "alter table t add unique (a)")[1:])
        seen = []

        report = await stage.fleet.apply(progress=seen.append)

        assert len(report.failures) == 2
        assert report.left == 2
        assert not report.complete
        assert [(item.done, item.failed, item.total) for item in seen][-1] == (3, 2, 7)
        assert seen[-1].current == report.outcomes[-1].namespace


async def test_progress_counts_up_to_the_number_of_namespaces(stage):
    for index in range(3):
        await stage.tenant(f"t-{index}", IsolationLevel.SCHEMA)
    await stage.fleet.register(migrations(PLAN))
    seen = []

    report = await stage.fleet.apply(progress=seen.append)

    assert [(item.done, item.failed, item.total) for item in seen] == [
        (done, 0, 6) for done in range(1, 7)
    ]
    assert report.complete
    kinds = [item.namespace.kind for item in report.outcomes]
    assert set(kinds[:2]) == {NamespaceKind.REFERENCE, NamespaceKind.TEMPLATE}
    # The control server's reference took the migration when it was registered.
    assert kinds.count(NamespaceKind.REFERENCE) == 1


async def test_a_run_with_nothing_to_do_does_nothing(stage):
    await stage.migrate(PLAN)
    before = await stage.dump()

    report = await stage.fleet.apply()

    assert (report.version, report.outcomes, report.complete) == (1, (), True)
    assert await stage.dump() == before


async def test_a_run_that_was_killed_is_taken_up_again(stage, tmp_path):
    await stage.migrate(PLAN)
    for index in range(4):
        await stage.tenant(f"t-{index}", IsolationLevel.SCHEMA)
    await stage.fleet.register(migrations("-", "insert into plan (name) values ('x')")[1:])

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "killed_run.py"),
        stage.install.server.admin_dsn,
        stage.install.database,
        str(stage.install.settings.home),
    )
    assert await process.wait() == 9

    versions = sorted((await _versions(stage)).values())
    assert versions[0] == 1
    assert versions[-1] == 2
    report = await stage.fleet.apply()
    assert report.complete
    assert set((await _versions(stage)).values()) == {2}
    rows = await stage.root.fetch(
        "select schemaname from pg_tables where tablename = 'plan' "
        "and schemaname not in ('app', 'tenancy_reference')"
    )
    assert len(rows) == 4
    for (schema,) in rows:
        assert await stage.root.fetchval(f'select count(*) from "{schema}".plan') == 1


async def test_what_was_applied_but_not_noted_is_recognised(stage):
    tenant = await stage.tenant("one", IsolationLevel.SCHEMA)
    await stage.migrate(PLAN, "insert into plan (name) values ('free')")
    await stage.root.execute(
        "update catalog.namespace set version = 1, state = 'migrating' where kind = 'own'"
    )

    report = await stage.fleet.apply()

    assert report.complete
    assert len(report.outcomes) == 1
    assert await stage.rows(tenant, "select name from plan") == [("free",)]


async def test_two_runs_at_once_are_one_too_many(stage):
    await stage.fleet.register(migrations(PLAN))
    async with open_stage(stage.install) as other:
        second: list[asyncio.Task[object]] = []
        report = await stage.fleet.apply(
            progress=lambda _: second.append(asyncio.create_task(other.fleet.apply()))
        )
        outcomes = await asyncio.gather(*second, return_exceptions=True)

    assert report.complete
    assert any(isinstance(outcome, ConflictError) for outcome in outcomes)
    assert (await stage.fleet.apply()).complete


async def test_a_callback_that_fails_ends_the_run_and_frees_the_lock(stage):
    await stage.fleet.register(migrations(PLAN))

    def fail(_: object) -> None:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        await stage.fleet.apply(progress=fail)
    assert (await stage.fleet.apply()).complete


async def test_a_lock_that_does_not_come_is_a_failure_of_that_namespace_alone(install):
    changes = {"migration_lock_timeout_ms": 50, "migration_retry_ms": 1}
    async with open_stage(install, **changes) as stage:
        await stage.migrate(PLAN)
        tenant = await stage.tenant("busy", IsolationLevel.SCHEMA)
        await stage.fleet.register(migrations("-", "alter table plan add column a int")[1:])
        transaction = stage.root.transaction()
        await transaction.start()
        await stage.root.execute(f'select from "{tenant.namespace.schema}".plan')

        report = await stage.fleet.apply()

        assert [item.namespace.schema for item in report.failures] == [tenant.namespace.schema]
        assert "lock timeout (after 3 attempts)" in failures(report)[0]
        await transaction.rollback()
        assert (await stage.fleet.apply()).complete


async def test_a_namespace_that_is_made_during_a_run_ends_at_the_newest_version(stage):
    await stage.migrate(PLAN)
    await stage.tenant("old", IsolationLevel.SCHEMA)
    making: list[asyncio.Task[object]] = []

    def make(_: object) -> None:
        making.append(
            asyncio.create_task(stage.tenant(f"new-{len(making)}", IsolationLevel.SCHEMA))
        )

    making.append(asyncio.create_task(stage.tenant("early", IsolationLevel.SCHEMA)))
    await stage.fleet.register(migrations("-", "alter table plan add column a int")[1:])
    await stage.fleet.apply(progress=make)
    made = await asyncio.gather(*making)

    assert len(made) == 5
    assert set((await _versions(stage)).values()) == {2}
    for tenant in made:
        await stage.rows(tenant, "select a from plan")


async def test_making_and_registering_at_once_leaves_nobody_behind(stage):
    texts = [f"create table t{number} (id int primary key)" for number in range(6)]

    async def register() -> None:
        for number in range(1, len(texts) + 1):
            await stage.fleet.register(migrations(*texts[:number]))

    async def make(lane: int) -> None:
        for index in range(3):
            await stage.tenant(f"t-{lane}-{index}", IsolationLevel.SCHEMA)

    await asyncio.gather(register(), make(1), make(2))
    await stage.fleet.apply()

    status = await stage.fleet.status()
    assert len(status) == 4 + 6
    assert {(item.version, item.newest, item.state) for item in status} == {
        (6, 6, NamespaceState.CURRENT)
    }
    tables = await stage.root.fetch(
        "select schemaname, count(*) from pg_tables where tablename ~ '^t[0-9]$' group by 1"
    )
    assert {count for _, count in tables} == {6}


async def test_a_namespace_that_is_gone_is_no_failure(stage):
    tenant = await stage.tenant("gone", IsolationLevel.SCHEMA)
    await stage.fleet.register(migrations(PLAN))
    namespace = tenant.namespace

    def drop(progress: object) -> None:
        removals.append(
            asyncio.create_task(
                stage.catalog.remove_namespace(
                    namespace.server, namespace.database, namespace.schema
                )
            )
        )

    removals: list[asyncio.Task[None]] = []
    await stage.root.execute(f'drop schema "{namespace.schema}" cascade')
    report = await stage.fleet.apply(progress=drop)
    await asyncio.gather(*removals)

    assert len(report.failures) <= 1
    assert (await stage.fleet.apply()).complete


async def test_tables_that_somebody_made_by_hand_are_in_the_way_of_that_namespace_alone(stage):
    tenant = await stage.tenant("odd", IsolationLevel.SCHEMA)
    await stage.root.execute(f'create table "{tenant.namespace.schema}".plan (a int)')
    await stage.fleet.register(migrations(PLAN))

    report = await stage.fleet.apply()

    assert [item.namespace.schema for item in report.failures] == [tenant.namespace.schema]
    assert "already exists" in failures(report)[0]


async def test_preparing_again_changes_nothing(stage):
    await stage.migrate(PLAN)
    before = await stage.dump()

    await stage.fleet.prepare()

    assert await stage.dump() == before


async def test_a_server_that_joins_late_gets_everything(stage):
    await stage.migrate(PLAN, "insert into plan (name) values ('free')")
    # As if the databases had just been bootstrapped.
    await stage.root.execute(
        "drop schema app cascade; drop schema tenancy_reference cascade;"
        "create schema app authorization tenancy_owner;"
        "create schema tenancy_reference authorization tenancy_owner;"
        "delete from catalog.namespace where schema in ('app', 'tenancy_reference')"
    )

    await stage.fleet.prepare()

    tenant = await stage.tenant("new")
    assert await stage.rows(tenant, "select name from plan") == [("free",)]
    assert set((await _versions(stage)).values()) == {2}


async def test_the_template_is_left_alone_while_it_is_cloned(install):
    async with open_stage(install, migration_lock_timeout_ms=50) as stage:
        await stage.fleet.register(migrations(PLAN))
        async with stage.fleet.template_idle():
            with pytest.raises(OverloadedError, match="takes too long"):
                await stage.fleet.apply()
        assert (await stage.fleet.apply()).complete


async def test_rows_of_other_tenants_are_out_of_reach_at_shared_tables(stage):
    await stage.migrate(PLAN)
    one, two = await stage.tenant("one"), await stage.tenant("two")
    await stage.rows(one, "insert into plan (name) values ('mine')")

    assert await stage.rows(two, "select * from plan") == []
    assert await stage.rows(two, "update plan set name = 'x' returning 1") == []
    # The positive control: it is there.
    assert await stage.root.fetchval(f"select count(*) from {APP_SCHEMA}.plan") == 1
