"""Functions of users that PostgreSQL would take for its own never run in an admin's session.

In a users' schema a bare call means the best match of all schemas in the search_path. Here
migrations define better matches for what the runtime calls, which try to go on as the admin.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

import asyncpg
import pytest
from support.doctoring import whole_look
from support.engines import ask, opened
from support.install import Install

from tenancy.data_isolation.core.errors import SchemaError
from tenancy.data_isolation.core.identifiers import SchemaName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine import sql_files
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.pinning import pinned
from tenancy.data_isolation.engine.scoping import enter_schema
from tenancy.data_isolation.engine.sql_files import SqlFile

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
WAIT_S = 30.0

#: A sequence is counted up for good, also in a transaction that is undone. None but the admin may.
_SPRUNG = """
    begin
        execute 'reset role';
        execute 'select pg_catalog.nextval(''traps.sprung'')';
    exception when others then null;
    end;
"""
_TRAP = (
    "create function {signature} returns {returned} language plpgsql as $trap$ begin"
    + _SPRUNG
    + "return null; end $trap$;\n"
)
#: What the runtime calls with arguments of other types than pg_catalog's functions take → what it
#: gives.
_SIGNATURES = {
    # Variadic or polymorphic there
    "format(text, name)": "text",
    "format(text, text)": "text",
    "format(text, regclass)": "text",
    "format(text, text, text)": "text",
    "format(text, name, name)": "text",
    "format(text, name, regclass)": "text",
    "format(text, text, name)": "text",
    "format(text, name, text)": "text",
    "format(text, name, name, text)": "text",
    "format(text, name, text, text)": "text",
    "format(text, bigint)": "text",
    "format(text, text, bigint, bigint, bigint, bigint, bigint, text)": "text",
    "concat_ws(text, text, bigint)": "text",
    "concat_ws(text, text, bigint, bigint, bigint, bigint, bigint, boolean)": "text",
    'concat_ws(text, "char", boolean)': "text",
    'concat_ws(text, "char", boolean, boolean, text[])': "text",
    'concat_ws(text, "char", boolean, oid[])': "text",
    'concat_ws(text, oid, smallint, "char")': "text",
    "concat_ws(text, text, boolean, text, jsonb, jsonb)": "text",
    "concat(text, integer)": "text",
    "to_jsonb(text[])": "jsonb",
    "jsonb_build_array(text, text)": "jsonb",
    "jsonb_build_array(name, text)": "jsonb",
    "jsonb_build_array(text, text, boolean)": "jsonb",
    "jsonb_build_array(text, text, text)": "jsonb",
    "jsonb_build_array(name, text, boolean)": "jsonb",
    "jsonb_build_object(text, integer)": "jsonb",
    "jsonb_agg(name)": "jsonb",
    "jsonb_agg(text)": "jsonb",
    "jsonb_agg(jsonb)": "jsonb",
    "array_agg(name)": "name[]",
    "array_agg(text)": "text[]",
    "array_agg(bigint)": "bigint[]",
    "array_agg(boolean)": "boolean[]",
    "array_to_string(text[], text)": "text",
    "array_position(smallint[], smallint)": "integer",
    "cardinality(smallint[])": "integer",
    "unnest(smallint[])": "smallint",
    "unnest(text[])": "text",
    "unnest(integer[])": "integer",
    "count(integer)": "bigint",
    # Of another type there
    "string_agg(name, text)": "text",
    "quote_ident(name)": "text",
    "md5(name)": "text",
    "min(name)": "name",
    "length(name)": "integer",
    "substr(name, integer)": "text",
    "starts_with(name, text)": "boolean",
    "obj_description(oid, text)": "text",
    "format_type(oid, text)": "text",
    "hashtextextended(text, integer)": "bigint",
    "set_config(text, integer, boolean)": "text",
    "setval(regclass, integer)": "bigint",
    "split_part(name, text, integer)": "text",
    "to_regnamespace(name)": "regnamespace",
    "current_setting(name)": "text",
}
_TRAPS = "".join(
    _TRAP.format(signature=signature, returned=returned)
    for signature, returned in _SIGNATURES.items()
)
_TABLES = f"""
create type mood as enum ('calm', 'wild');
create domain percent as integer check (value between 0 and 100);
create table teams (id bigint generated always as identity primary key, name text not null unique);
create table people (
    id     serial primary key,
    team   bigint references teams deferrable initially deferred,
    mood   mood not null default 'calm',
    share  percent,
    loud   text generated always as (upper(note)) stored,
    note   text
);
comment on table people is '@sensitive';
create index wild_people on people (team, id desc) where mood = 'wild';
create view calm_people as select id, note from people where mood = 'calm';
create sequence invoices increment by -2 start 1000 maxvalue 1000 minvalue -100000;
create table bills (number integer primary key default nextval('invoices'), day date);
create function touch() returns trigger language plpgsql as
$$ begin new.note := coalesce(new.note, '') || '!'; return new; end $$;
create trigger touched before insert or update on people for each row execute function touch();
create function checked(value text) returns boolean language plpgsql as $trap$
begin{_SPRUNG} return true; end $trap$;
create domain code as text check (checked(value));
create table codes (code code primary key, note code);
insert into teams (name) values ('first');
insert into bills (day) values ('2020-02-29');
"""
_LATER = """
alter table people add column extra text not null default '';
alter table teams add column lead integer references people deferrable initially deferred;
create view leads as select teams.name, people.note from teams join people on people.id = lead;
create sequence tickets;
alter table bills add constraint paid check (day > '0001-01-01');
comment on table bills is '@sensitive';
update teams set name = name || '?';
insert into teams (name) values ('later');
drop view calm_people;
"""
_FILL = [
    "insert into teams (name) select 'team ' || n from generate_series(1, 9) n",
    "insert into people (team, mood, note) select n, 'wild', 'n' from generate_series(2, 9) n",
    "insert into bills (day) values ('2021-01-01')",
    "insert into codes select n, 'x' from generate_series(1, 5) n",
]

pytestmark = pytest.mark.migrated("0001_tables", _TABLES)


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with install.connected() as admin:
        await admin.execute("create schema traps; create sequence traps.sprung")
    async with opened(install, tables=False, move_poll_s=0.05, move_follow_s=0.05) as made:
        await made.apply_migration("0001_tables", _TABLES)
        made.moves.work()
        yield made


async def sprung(install: Install) -> int:
    """How often something of users has worked as the admin."""
    async with install.connected() as admin:
        query = "select case when is_called then last_value else 0 end from traps.sprung"
        found: int = await admin.fetchval(query)
        return found


async def moved(engine: Engine, name: str, level: IsolationLevel) -> None:
    move = await engine.moves.start(name, MoveTarget(level=level))
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    assert move.state is MoveState.OPEN, move
    await ask(engine, name, "insert into bills (day) values ('2022-01-01')")
    await ask(engine, name, "update codes set note = 'y' where code = '3'")
    await engine.moves.confirm(move.move_id)
    move = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    assert move.state is MoveState.CONFIRMED, move


def call_of(signature: str) -> str:
    """A call with a null of each type."""
    name, _, rest = signature.partition("(")
    types = rest.removesuffix(")").split(", ")
    return f"select {name}({', '.join(f'null::{kind}' for kind in types)})"


async def test_nothing_that_the_runtime_does_springs_a_trap(engine: Engine, install: Install):
    report = await engine.apply_migration("0002_traps", _TRAPS)
    assert report.complete
    for name, level, hybrid in (
        ("rows", ROW, False),
        ("mixed", ROW, True),
        ("schema", SCHEMA, False),
        ("database", DATABASE, False),
    ):
        await engine.create_tenant(TenantContext(tenant_id=name), level=level, hybrid=hybrid)
        for text in _FILL:
            await ask(engine, name, text)
    report = await engine.apply_migration("0003_later", _LATER)
    assert report.complete
    await moved(engine, "rows", SCHEMA)
    await moved(engine, "rows", ROW)
    await engine.tenant_size("rows", rows_max=100)
    await engine.suspend_tenant("schema")
    await engine.resume_tenant("schema")
    await whole_look(install)
    for name in ("rows", "mixed", "schema", "database"):
        await engine.delete_tenant(name)
    assert await sprung(install) == 0


async def test_each_trap_is_taken_for_a_function_of_postgresql(engine: Engine, install: Install):
    await engine.apply_migration("0002_traps", _TRAPS)
    async with install.connected() as admin:
        for times, signature in enumerate(_SIGNATURES, start=1):
            async with admin.transaction():
                await enter_schema(admin, SchemaName("app"))
                await admin.execute(call_of(signature))
            assert await sprung(install) == times, signature


async def test_the_same_statements_as_they_are_written_spring_them(
    engine: Engine, install: Install, monkeypatch: pytest.MonkeyPatch
):
    await engine.apply_migration("0002_traps", _TRAPS)
    monkeypatch.setattr(sql_files, "PINNED_FILES", frozenset())
    async with install.connected() as admin:
        for file, statement, values in (
            ("namespace.sql", "lock_shared", ["app"]),
            ("namespace.sql", "open_policies", []),
            ("namespace.sql", "filled_tables_text", ["app"]),
            ("overlay.sql", "move_texts", ["app", "app", ["people"], 1]),
            ("overlay.sql", "astray", ["app", "app"]),
        ):
            before = await sprung(install)
            # What a trap gives is null.
            with suppress(asyncpg.PostgresError):
                async with admin.transaction():
                    await enter_schema(admin, SchemaName("app"))
                    await admin.fetch(SqlFile(file).statement(statement), *values)
            assert await sprung(install) > before, statement


#: What a migration's own function can make at the moment that it is called, unseen before.
_HIDDEN = """
create table outcomes (id integer primary key);
create function spring() returns integer language plpgsql as $f$
begin
    {attack}
    return 1;
end;
$f$;
insert into outcomes values (spring());
"""
_OPERATORS = "".join(
    f"""
    execute $q$create or replace function trap({left}, {right}) returns boolean
    language plpgsql as $trap$ begin {_SPRUNG} return false; end $trap$$q$;
    execute 'create operator {sign} (leftarg = {left}, rightarg = {right}, function = trap)';
"""
    for sign, left, right in (
        ("=", "oid", "regclass"),
        ("=", "oid", "regnamespace"),
        ("=", "name", "varchar"),
        ("<>", "oid", "regnamespace"),
    )
)
_VIEWS = f"""
    execute $q$create function trap() returns boolean language plpgsql as $trap$
    begin {_SPRUNG} return true; end $trap$$q$;
    execute 'create view pg_namespace as select * from pg_catalog.pg_namespace where trap()';
    execute 'create view pg_class as select * from pg_catalog.pg_class where trap()';
    perform set_config('search_path', current_schema() || ', pg_catalog', true);
"""


async def test_an_operator_that_is_there_for_a_moment_is_not_called(
    engine: Engine, install: Install
):
    hidden = _HIDDEN.replace("{attack}", _OPERATORS)
    with pytest.raises(SchemaError, match="operator"):
        await engine.apply_migration("0002_operators", hidden)
    assert await sprung(install) == 0
    # The same, with the statements as they are written.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_files, "PINNED_FILES", frozenset())
        with pytest.raises(SchemaError):
            await engine.apply_migration("0002_operators", hidden)
    assert await sprung(install) > 0


async def test_views_that_are_there_for_a_moment_do_not_stand_in_for_the_catalogs(
    engine: Engine, install: Install
):
    hidden = _HIDDEN.replace("{attack}", _VIEWS)
    with pytest.raises(SchemaError, match="view pg_class"):
        await engine.apply_migration("0002_views", hidden)
    assert await sprung(install) == 0


@pytest.mark.parametrize("local", ["true", "false"])
async def test_a_search_path_that_a_migration_leaves_is_put_back(install: Install, local: str):
    """Else it would hold for what the admin does next, without the role of migrations."""
    leave = f"select set_config('search_path', 'app', {local})"
    start = "pg_catalog, pg_temp"
    async with install.connected() as admin:
        await admin.execute(f"set search_path = {start}")
        for text, values, within, after in (
            (SqlFile("namespace.sql").statement("run"), [leave], "app, pg_temp", start),
            ("select tenancy.run($1)", [leave], "app", start if local == "true" else "app"),
        ):
            async with admin.transaction():
                await enter_schema(admin, SchemaName("app"))
                await admin.fetch(text, *values)
                assert await admin.fetchval("show search_path") == within
            assert await admin.fetchval("show search_path") == after


async def test_a_pinned_expression_gives_what_it_gave(install: Install):
    forms = (
        *("a in (b, 3)", "a not in (b, 3)", "a in (select b)", "a is distinct from b"),
        *("a is not distinct from b", "nullif(a, b)", "a between b and 2", "a not between b and 2"),
        *(
            "case a when b then 1 when 2 then 2 end",
            "a::text like b::text",
            "a = any (array[b, 2])",
        ),
        *("not a = b and a <> 2 or b is null", "a + b * 2 - 1 > b", "-a < b", "a || '' ~ '^1'"),
    )
    rows = "from (values (1), (2), (null)) x (a), (values (1), (2), (null)) y (b)"
    text = f"select {', '.join(forms)} {rows}"
    async with install.connected() as admin:
        assert await admin.fetch(pinned(text)) == await admin.fetch(text)


_OWN = f"""
    execute $q$create or replace function fire() returns trigger language plpgsql as $trap$
    begin {_SPRUNG} return new; end $trap$$q$;
    execute $q$create or replace function hold() returns boolean language plpgsql as $trap$
    begin {_SPRUNG} return true; end $trap$$q$;
    execute $q${{change}}$q$;
"""


@pytest.mark.parametrize(
    ("change", "touch"),
    [
        (
            "create trigger t before insert on tenancy_schema_version for each row "
            "execute function fire()",
            "insert into tenancy_schema_version values (99, 'x')",
        ),
        (
            "alter policy tenancy_schema_version on tenancy_schema_version using (hold())",
            "select from tenancy_schema_version",
        ),
        (
            "create trigger t before insert on tenancy_idempotency for each row "
            "execute function fire()",
            "insert into tenancy_idempotency (tenant_id, key, request_hash) values (1, 'x', '')",
        ),
    ],
)
async def test_what_the_runtimes_own_tables_call_does_not_work_as_the_admin(
    engine: Engine, install: Install, change: str, touch: str
):
    await engine.create_tenant(TenantContext(tenant_id="rows"), level=ROW)
    await engine.apply_migration(
        "0002_own", _HIDDEN.replace("{attack}", _OWN.format(change=change))
    )
    await engine.create_tenant(TenantContext(tenant_id="next"), level=ROW)
    # Hybrid tenants could not follow when the table is another one.
    with suppress(SchemaError):
        await engine.apply_migration("0003_later", _LATER)
    assert await sprung(install) == 0
    # The same where the admin touches the table by itself.
    async with install.connected() as admin:
        with suppress(asyncpg.PostgresError):
            async with admin.transaction():
                await enter_schema(admin, SchemaName("app"))
                await admin.execute("set local tenancy.binding = '0.1.0.0.'")
                await admin.execute(touch)
    assert await sprung(install) > 0
