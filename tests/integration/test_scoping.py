"""Scoped schemas on a real server: what the catalogs say afterwards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fleet_stage import Stage, migrations, open_stage
from support.install import SERVER, Install
from support.random_schema import new_table

from tenancy.data_isolation.core.errors import MigrationFailedError, SchemaError, SchemaRefusedError
from tenancy.data_isolation.core.identifiers import SchemaName
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.layout import APP_SCHEMA, REFERENCE_SCHEMA, template_database
from tenancy.data_isolation.engine.roles import audit_database
from tenancy.data_isolation.engine.schema_differences import differences
from tenancy.data_isolation.engine.schema_snapshot import SchemaSnapshot
from tenancy.data_isolation.engine.scope_plan import plan_scope
from tenancy.data_isolation.engine.scoping import enter_schema, read_snapshot, scope

RICH = """
create type mood as enum ('good', 'bad');
create type place as (street text, number int);
create domain email as text check (value like '%@%');
create sequence tickets;

create table customer (
    id int generated always as identity primary key,
    email email not null unique,
    name text,
    mood mood default 'good',
    home place,
    lower_name text generated always as (lower(name)) stored,
    unique nulls not distinct (name, mood)
);
create table orders (
    id serial primary key,
    ticket int not null default nextval('tickets'),
    customer_id int references customer on delete cascade,
    parent_id int references orders (id) on delete set null,
    buyer email references customer (email) on update cascade on delete set default
        deferrable initially deferred,
    "Total" numeric check ("Total" > 0),
    code text,
    doc jsonb,
    constraint orders_code unique (code) include ("Total")
);
create table line (
    order_id int references orders match full on delete restrict,
    no int,
    primary key (order_id, no)
);
create table note (
    id uuid primary key default gen_random_uuid(),
    order_id int,
    no int,
    foreign key (order_id, no) references line on delete set null (no)
);
create index on orders (code desc nulls last, lower(code) text_pattern_ops)
    include (id) where "Total" > 10;
create unique index on orders (lower(code) collate "C");
create index on orders using gin (doc);
create view big as select * from orders where "Total" > 5;
create view named as select c.name, o.* from orders o join customer c on c.id = o.customer_id;
create function total(of_customer int) returns numeric language sql stable
    as $$ select sum("Total") from orders where customer_id = of_customer $$;
create function stamp() returns trigger language plpgsql
    as $$ begin new.name := initcap(new.name); return new; end $$;
create trigger stamp before insert on customer for each row execute function stamp();
"""

_POLICY = "(tenant_id = ( SELECT tenancy.tenant() AS tenant))"


@pytest.fixture
async def stage(install: Install) -> AsyncIterator[Stage]:
    async with open_stage(install) as opened:
        yield opened


async def _snapshot(stage: Stage, schema: str, database: str | None = None) -> SchemaSnapshot:
    connection = await asyncpg.connect(
        stage.install.admin_dsn(database), server_settings={"search_path": schema}
    )
    try:
        return await read_snapshot(connection, SchemaName(schema))
    finally:
        await connection.close()


def _constraints(snapshot: SchemaSnapshot, kinds: str) -> dict[str, str]:
    return {
        item.name: item.definition
        for item in snapshot.constraints
        if item.type in kinds and not item.table.startswith("tenancy_")
    }


async def test_keys_indexes_and_rights_of_a_rich_schema_are_scoped(stage):
    await stage.migrate(RICH)

    found = await _snapshot(stage, APP_SCHEMA)

    assert _constraints(found, "pu") == {
        "customer_pkey": "PRIMARY KEY (tenant_id, id)",
        "customer_email_key": "UNIQUE (tenant_id, email)",
        "customer_name_mood_key": "UNIQUE NULLS NOT DISTINCT (tenant_id, name, mood)",
        "orders_pkey": "PRIMARY KEY (tenant_id, id)",
        "orders_code": 'UNIQUE (tenant_id, code) INCLUDE ("Total")',
        "line_pkey": "PRIMARY KEY (tenant_id, order_id, no)",
        "note_pkey": "PRIMARY KEY (tenant_id, id)",
    }
    assert _constraints(found, "f") == {
        "orders_customer_id_fkey": "FOREIGN KEY (tenant_id, customer_id) "
        "REFERENCES customer(tenant_id, id) ON DELETE CASCADE",
        "orders_parent_id_fkey": "FOREIGN KEY (tenant_id, parent_id) "
        "REFERENCES orders(tenant_id, id) ON DELETE SET NULL (parent_id)",
        "orders_buyer_fkey": "FOREIGN KEY (tenant_id, buyer) "
        "REFERENCES customer(tenant_id, email) ON UPDATE CASCADE ON DELETE SET DEFAULT (buyer) "
        "DEFERRABLE INITIALLY DEFERRED",
        "line_order_id_fkey": "FOREIGN KEY (tenant_id, order_id) "
        "REFERENCES orders(tenant_id, id) ON DELETE RESTRICT",
        "note_order_id_no_fkey": "FOREIGN KEY (tenant_id, order_id, no) "
        "REFERENCES line(tenant_id, order_id, no) ON DELETE SET NULL (no)",
    }
    assert {item.name: item.tail for item in found.indexes if not item.of_constraint} == {
        "orders_code_lower_id_idx": "tenant_id, code DESC NULLS LAST, "
        'lower(code) text_pattern_ops) INCLUDE (id) WHERE ("Total" > (10)::numeric)',
        "orders_lower_idx": 'tenant_id, lower(code) COLLATE "C")',
        "orders_doc_idx": "doc)",
    }
    tables = [table for table in found.tables if table.name != "tenancy_schema_version"]
    assert len(tables) == 5
    assert all(table.row_security and table.forced for table in tables)
    assert {(item.table, item.using, item.check) for item in found.policies} >= {
        (table.name, _POLICY, _POLICY) for table in tables
    }
    views = {item.name: item for item in found.relations if item.kind == "v"}
    assert [column.name for column in views["named"].columns] == [
        "name",
        "id",
        "ticket",
        "customer_id",
        "parent_id",
        "buyer",
        "Total",
        "code",
        "doc",
    ]
    assert views["big"].options == ("security_invoker=true",)


async def test_only_the_namespaces_role_has_rights_and_exactly_those(stage):
    await stage.migrate(RICH)
    tenant = await stage.tenant("own", IsolationLevel.SCHEMA)

    for schema, roles in (
        (APP_SCHEMA, {"tenancy_rows", "tenancy_hybrid"}),
        (tenant.namespace.schema, {tenant.role}),
    ):
        found = await _snapshot(stage, schema)
        rights = {
            (item.kind, grant.role, grant.privilege, grant.grantable)
            for item in found.relations
            for grant in item.grants
        }
        assert rights == {
            *((kind, role, name, False) for kind in "rv" for name in _RIGHTS for role in roles),
            *(("S", role, "USAGE", False) for role in roles),
        }
        routines = {
            (grant.role, grant.privilege) for item in found.routines for grant in item.grants
        }
        assert routines == {(role, "EXECUTE") for role in roles}
        versions = found.relation("tenancy_schema_version")
        assert versions is not None
        assert versions.grants == ()
    for schema in (REFERENCE_SCHEMA,):
        found = await _snapshot(stage, schema)
        assert found.grants == ()
        assert all(not item.grants for item in (*found.relations, *found.routines))


_RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE")


async def test_every_namespace_has_the_same_tables_and_nothing_is_left_to_do(stage):
    await stage.migrate(RICH)
    schema_tenant = await stage.tenant("one", IsolationLevel.SCHEMA)
    database_tenant = await stage.tenant("two", IsolationLevel.DATABASE)
    template = template_database(stage.settings)
    reference = await _snapshot(stage, REFERENCE_SCHEMA)

    for schema, database in (
        (APP_SCHEMA, None),
        (schema_tenant.namespace.schema, None),
        (APP_SCHEMA, database_tenant.namespace.database),
        (APP_SCHEMA, template),
        (REFERENCE_SCHEMA, template),
    ):
        found = await _snapshot(stage, schema, database)
        roles = () if schema == REFERENCE_SCHEMA or database == template else None
        plan = plan_scope(found, roles=roles)
        assert differences(found, reference) == []
        assert (plan.statements, plan.refusals) == ((), ())


async def test_the_audit_of_roles_has_nothing_to_say_about_a_scoped_schema(stage):
    await stage.migrate(RICH)
    tenant = await stage.tenant("two", IsolationLevel.DATABASE)
    await stage.tenant("one", IsolationLevel.SCHEMA)

    for database in (None, tenant.namespace.database, template_database(stage.settings)):
        connection = await asyncpg.connect(
            stage.install.admin_dsn(database), server_settings={"search_path": "pg_catalog"}
        )
        try:
            assert await audit_database(connection) == []
        finally:
            await connection.close()


async def _made_by_hand(connection: asyncpg.Connection, schema: str, sql: str) -> None:
    """Tables as their author wrote them, in a schema of the owner's."""
    await connection.execute(f"create schema {schema} authorization tenancy_owner")
    await enter_schema(connection, SchemaName(schema))
    await connection.execute(sql)


_PLAIN = RICH.replace("select * from orders where", 'select id, "Total" from orders where').replace(
    "o.*", "o.id"
)


async def test_scoping_from_the_catalogs_alone_gives_what_migrating_gives(stage):
    await stage.migrate(_PLAIN)
    transaction = stage.root.transaction()
    await transaction.start()
    await _made_by_hand(stage.root, "hand", _PLAIN)

    first = await scope(stage.root, SchemaName("hand"), roles=())
    again = await scope(stage.root, SchemaName("hand"), roles=())
    found = await read_snapshot(stage.root, SchemaName("hand"))
    await transaction.rollback()

    migrated = await _snapshot(stage, REFERENCE_SCHEMA)
    assert len(first) > 20
    assert again == []
    left = [name for name in differences(found, migrated) if "tenancy_" not in name]
    # Columns that were added come last, where a table that was made so has them too.
    assert left == []


@st.composite
def _schemas(draw: Any) -> list[str]:
    tables: list[Any] = []
    texts = []
    for index in range(draw(st.integers(1, 3))):
        table, sql = draw(new_table(f"t{index}", list(tables)))
        tables.append(table)
        texts.append(sql)
        if draw(st.booleans()):
            columns = draw(
                st.permutations([c for c in table.columns if table.columns[c] != "jsonb"])
            )
            unique = draw(st.sampled_from(["", "unique "]))
            texts.append(f"create {unique}index on t{index} ({', '.join(columns[:2])})")
    return texts


async def test_scoping_any_schema_twice_changes_nothing_and_names_stay(stage):
    @settings(
        max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(texts=_schemas())
    def check(texts: list[str]) -> None:
        seen.append(texts)

    # Hypothesis drives synchronous code; the schemas it draws are tried one after the other.
    seen: list[list[str]] = []
    check()
    for texts in seen:
        transaction = stage.root.transaction()
        await transaction.start()
        await _made_by_hand(stage.root, "hand", ";".join(texts))
        before = await read_snapshot(stage.root, SchemaName("hand"))
        await scope(stage.root, SchemaName("hand"), roles=())
        assert await scope(stage.root, SchemaName("hand"), roles=()) == [], texts
        after = await read_snapshot(stage.root, SchemaName("hand"))
        await transaction.rollback()

        def names(snapshot: SchemaSnapshot) -> set[tuple[str, str]]:
            keys = {(item.table, item.name) for item in snapshot.constraints if item.type in "puf"}
            return keys | {(item.table, item.name) for item in snapshot.indexes}

        assert names(after) == names(before), texts
        assert all(
            item.columns[0] == "tenant_id" for item in after.constraints if item.type in "puf"
        )
        assert all(item.keys[0] == "tenant_id" for item in after.indexes)


_BASE = """
create table p (id int primary key, code text unique, z int);
create table q (id int, p_id int, doc jsonb, primary key (id));
create table "Rather long name of a table that leaves no room" (id int primary key);
"""
_NAMELESS = [
    "create table c (id int primary key, a int unique references p, b text, unique (a, b), "
    "foreign key (b) references p (code))",
    "create table c2 (id int, a int, primary key (id, a), unique (a) include (id))",
    "alter table q add unique (p_id)",
    "alter table q add unique (p_id, id)",
    "alter table q add foreign key (p_id) references p",
    "alter table q add foreign key (p_id) references p",
    "alter table q add column w int unique references p",
    "alter table q drop constraint q_pkey, add primary key (p_id)",
    "create index on p (code)",
    "create index on p (code)",
    "create unique index on p (lower(code), upper(code), lower(code))",
    "create index on p ((z + 1), z) include (code)",
    "create index on p (coalesce(z, 1), greatest(z, 2), nullif(z, 3))",
    "create index on p ((case when z > 1 then z end), (case when z > 1 then 1 else 2 end))",
    'create index on p ((z::text::int), (code collate "C"), ((z, code) is null))',
    "create index on p ((array[z]), (z is null), (code like 'a%'))",
    "create index on q ((doc -> 'a'), (doc ->> 'a'), jsonb_array_length(doc))",
    'create index on "Rather long name of a table that leaves no room" (id)',
    'alter table "Rather long name of a table that leaves no room" '
    'add column "an equally long name of a column that has no room at all" int unique',
    'create index on "Rather long name of a table that leaves no room" (id) include '
    '("an equally long name of a column that has no room at all")',
    'alter table "Rather long name of a table that leaves no room" '
    'add column "ééééééééééééééééééééé" int references p',
]


async def test_what_is_made_without_a_name_is_called_as_in_a_plain_database(stage):
    await stage.migrate(_BASE, *_NAMELESS)
    scoped = await _snapshot(stage, APP_SCHEMA)
    transaction = stage.root.transaction()
    await transaction.start()
    await _made_by_hand(stage.root, "plain", ";".join([_BASE, *_NAMELESS]))
    plain = await read_snapshot(stage.root, SchemaName("plain"))
    await transaction.rollback()

    def names(snapshot: SchemaSnapshot) -> list[str]:
        keys = [f"{item.type} {item.table}.{item.name}" for item in snapshot.constraints]
        found = [name for name in keys if name[0] in "puf" and "tenancy_" not in name]
        return sorted(
            found + [item.name for item in snapshot.indexes if "tenancy_" not in item.name]
        )

    assert names(scoped) == names(plain)
    assert len(names(plain)) > 40


REFUSALS = {
    "table t: it has no primary key": "create table t (a int)",
    "function f(a p): it takes or returns rows of table p": "create function f(a p) returns int "
    "language sql return 1",
    "index by_f: it calls f, which": "create function f() returns int immutable language plpgsql "
    "as 'begin return 1; end'; create index by_f on p (id) where f() = 1",
    "index by_f: it calls f, g, which": "create function f(int) returns int immutable language "
    "plpgsql as 'begin return 1; end'; create function g(int) returns int immutable language sql "
    "return $1; create index by_f on p (f(id), g(id))",
    "table t: its column a is oid": "create table t (id int primary key, a oid)",
    "table t: its column a holds rows of table p": "create table t (id int primary key, a p)",
    "line 2: CREATE MATERIALIZED VIEW m": "\ncreate materialized view m as select 1",
    "foreign keys form a circle (": "create table a (id int primary key, b int); "
    "create table b (id int primary key, a int references a); insert into a values (1); "
    "insert into b values (1, 1); update a set b = 1; "
    "alter table a add foreign key (b) references b",
}


async def test_a_refusal_leaves_everything_as_it_was(stage):
    await stage.migrate("create table p (id int primary key); insert into p values (1)")
    before = await stage.dump()
    good = "create table good (id int primary key); insert into good values (1);"

    for reason, sql in REFUSALS.items():
        with pytest.raises(SchemaRefusedError) as caught:
            await stage.fleet.register(migrations("-", good + sql)[1:])
        assert reason in str(caught.value)
        assert await stage.dump() == before, reason
    assert len(await stage.fleet.migrations()) == 1


FAILURES = {
    'line 2: relation "missing" does not exist': "create table good (id int primary key);\n"
    "alter table missing add column a int",
    'line 1: type "citext" does not exist': "create table t (id int primary key, a citext)",
    "line 1: there is no unique constraint": "create table t (id int primary key, "
    "a text references p (name))",
    "line 2: duplicate key value": "insert into p values (5, 'x');\ninsert into p values (5, 'y')",
    "line 1: permission denied": "insert into p select 1, pg_read_file('PG_VERSION')",
}


async def test_a_failure_leaves_everything_as_it_was(stage):
    await stage.migrate("create table p (id int primary key, name text)")
    before = await stage.dump()

    for reason, sql in FAILURES.items():
        with pytest.raises(MigrationFailedError) as caught:
            await stage.fleet.register(migrations("-", sql)[1:])
        assert f"migration 2 (step-2), {reason}" in str(caught.value)
        assert await stage.dump() == before, reason
    assert len(await stage.fleet.migrations()) == 1


_STRANGE = {
    "it refers to": "create table public.far (id int primary key); "
    "create table t (id int primary key references public.far)",
    "materialized view m": "create materialized view m as select 1 as a",
    "SECURITY DEFINER": "create function f() returns int language sql security definer return 1",
    "policy open of table t": "create table t (id int primary key); "
    "create policy open on t using (true)",
    "its partitions": "create table t (id int primary key) partition by range (id)",
    "rewrite statements": "create table t (id int primary key); "
    "create rule r as on insert to t do instead nothing",
    "exclusion": "create table t (id int primary key, r int4range, exclude using gist (r with &&))",
    "empty after a crash": "create unlogged table t (id int primary key)",
    "inherits": "create table t (id int primary key); "
    "create table u (primary key (id)) inherits (t)",
    "is integer, not bigint": "create table t (id int primary key, tenant_id int)",
    "is generated": "create table t (id int primary key, "
    "tenant_id bigint generated always as identity)",
    "range type": "create type r as range (subtype = int)",
    "aggregate": "create aggregate a (int) (sfunc = int4pl, stype = int)",
    "procedure p()": "create procedure p() language sql as ''",
    "operator": "create operator ### (function = int4pl, leftarg = int, rightarg = int)",
    "extended statistics": "create table t (id int primary key, a int); "
    "create statistics s on id, a from t",
    "its owner is": "create table t (id int primary key); reset role; "
    "create table u (id int primary key)",
}


async def test_what_somebody_made_by_hand_is_refused_from_the_catalogs(stage):
    for reason, sql in _STRANGE.items():
        transaction = stage.root.transaction()
        await transaction.start()
        await stage.root.execute("grant create on schema public to tenancy_owner")
        await _made_by_hand(stage.root, "hand", sql)
        await stage.root.execute("set local role tenancy_owner")
        with pytest.raises(SchemaRefusedError) as caught:
            await scope(stage.root, SchemaName("hand"), roles=())
        assert reason in str(caught.value)
        await transaction.rollback()


async def test_a_schema_that_is_not_there_is_an_error(stage):
    async with stage.root.transaction():
        with pytest.raises(SchemaError, match="no schema missing"):
            await scope(stage.root, SchemaName("missing"))


async def test_a_namespace_that_was_changed_by_hand_is_told_apart(stage):
    await stage.migrate("create table p (id int primary key, a int)")
    tenant = await stage.tenant("one", IsolationLevel.SCHEMA)
    schema = tenant.namespace.schema
    await stage.root.execute(f'alter table "{schema}".p add column extra int')

    async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
        with pytest.raises(SchemaError, match="differs from the reference in relation p"):
            await stage.fleet.create_namespace(connection, tenant.namespace)


async def test_rights_that_somebody_changed_are_mended(stage):
    await stage.migrate("create table p (id int primary key)")
    tenant = await stage.tenant("one", IsolationLevel.SCHEMA)
    schema = tenant.namespace.schema
    await stage.root.execute(
        f'grant usage on schema "{schema}" to tenancy_rows; grant all on "{schema}".p to public; '
        f'revoke select on "{schema}".p from "{tenant.role}"; '
        f'alter table "{schema}".p no force row level security'
    )

    async with stage.admin.session(SERVER, tenant.namespace.database) as connection:
        await stage.fleet.create_namespace(connection, tenant.namespace)

    found = await _snapshot(stage, schema)
    assert plan_scope(found, roles=(tenant.role,)).statements == ()
    assert [(grant.role, grant.privilege) for grant in found.grants] == [(tenant.role, "USAGE")]


async def test_users_code_in_a_migration_cannot_become_the_admin(stage):
    sql = """
    create table p (id int primary key, a text);
    create function climb() returns trigger language plpgsql
        as $$ begin execute 'reset role'; return new; end $$;
    create trigger climb before insert on p for each row execute function climb();
    """
    await stage.migrate(sql)

    with pytest.raises(MigrationFailedError, match='cannot set parameter "role"'):
        await stage.fleet.register(migrations("-", "insert into p values (1)")[1:])
    late = (
        "drop trigger climb on p; create constraint trigger climb after insert on p "
        "deferrable initially deferred for each row execute function climb(); "
        "insert into p values (1)"
    )
    with pytest.raises(MigrationFailedError, match='cannot set parameter "role"'):
        await stage.fleet.register(migrations("-", late)[1:])
