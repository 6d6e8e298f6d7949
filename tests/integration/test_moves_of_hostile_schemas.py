"""A migration's author cannot become more by what a move makes of its schema.

The mover works as the owner in a session of the admin. Whatever code of users PostgreSQL reaches
from its statements (a cast, a check that is evaluated while planning, a policy that was made a
moment ago) says `reset role`, and must not be able to.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest
from support.engines import ask
from support.install import Install
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext

QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
}
#: Takes what it can get, and says nothing.
SPRING = """
create function spring() returns boolean language plpgsql as $$
declare step text;
begin
    foreach step in array array[
        'grant execute on all functions in schema ' || current_schema() || ' to public',
        'reset role', 'create role sprung superuser',
        'grant select on tenancy.binding_key to public'
    ] loop
        begin execute step; exception when others then null; end;
    end loop;
    return true;
end $$;
"""
#: Statements of a migration cannot make a cast, so a function does, when a column is added.
CAST = (
    SPRING
    + """
create type mood as enum ('calm', 'wild');
create function told(m mood) returns text language plpgsql as $$
begin perform spring(); return pg_catalog.enum_out(m)::text; end $$;
create function setup() returns integer language plpgsql as $$
begin execute 'create cast (mood as text) with function told(mood)'; return 1; end $$;
create function wrapped() returns integer language plpgsql immutable as $$
begin return setup(); end $$;
create table seed (id integer primary key);
alter table seed add column c integer default wrapped();
create table things (id integer primary key, mood mood);
create table keyed (mood mood, id integer, primary key (mood, id));
"""
)
EXCLUSION = (
    SPRING
    + """
create function evil(v integer) returns boolean language plpgsql immutable as $$
begin return spring(); end $$;
create function poison(v integer) returns boolean language plpgsql as $$
begin perform set_config('constraint_exclusion', 'on', false); return true; end $$;
create table things (id integer primary key, v integer, check (poison(v)), check (evil(1)));
"""
)
POLICY = (
    SPRING
    + """
create function armed(v integer) returns boolean language plpgsql as $$
begin
    begin
        execute format('create policy evil on %I.others as restrictive using (%I.spring())',
                       current_schema(), current_schema());
    exception when others then null;
    end;
    return true;
end $$;
create table others (id integer primary key, v integer);
create table things (id integer primary key, v integer, check (armed(v)));
"""
)
HOSTILE = {
    "cast": (
        CAST,
        ["insert into things values (1, 'calm')", "insert into keyed values ('wild', 1)"],
    ),
    "exclusion": (EXCLUSION, ["insert into things values (1, 1), (2, 2)"]),
    "policy": (POLICY, ["insert into things values (1, 1)", "insert into others values (1, 1)"]),
}
MORE = {
    "cast": "insert into keyed values ('calm', 9)",
    "exclusion": "insert into things values (9, 9)",
    "policy": "insert into others values (9, 9)",
}
SPRUNG = (
    "select exists (select from pg_roles where rolname = 'sprung') "
    "or has_table_privilege('tenancy_rows', 'tenancy.binding_key', 'select')"
)


async def sprung(admin: asyncpg.Connection) -> bool:
    found: bool = await admin.fetchval(SPRUNG)
    return found


@pytest.mark.timeout(120)
@pytest.mark.parametrize("server", ["main", SECOND])
@pytest.mark.parametrize("name", HOSTILE)
async def test_a_move_gives_a_migrations_author_nothing(
    two_servers: TwoServers, install: Install, name: str, server: str
):
    tables, fill = HOSTILE[name]
    async with two_servers.opened(**QUICK) as engine, install.connected() as admin:
        await engine.apply_migration("0001_hostile", tables)
        context = TenantContext(tenant_id="acme")
        await engine.create_tenant(context, level=IsolationLevel.ROW, server=ServerName("main"))
        for text in fill:
            await ask(engine, "acme", text)
        target = MoveTarget(level=IsolationLevel.SCHEMA, server=ServerName(server))
        move = await engine.moves.start("acme", target)
        move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=60)
        if move.state is MoveState.OPEN:
            # Its writes call what notes the keys.
            await ask(engine, "acme", MORE[name])
            await engine.moves.roll_back(move.move_id)
        await engine.moves.wait(move.move_id, [], timeout_s=60)
        assert not await sprung(admin)


@pytest.mark.parametrize(
    ("name", "look"),
    [
        ("cast", "select mood::text from app.things"),
        ("exclusion", "select from app.things where v > 0"),
        ("policy", "create policy e on others using (spring()); table others"),
    ],
)
async def test_in_the_admins_session_it_would_be_had(
    two_servers: TwoServers, install: Install, name: str, look: str
):
    tables, fill = HOSTILE[name]
    async with two_servers.opened(**QUICK) as engine, install.connected() as admin:
        await engine.apply_migration("0001_hostile", tables)
        context = TenantContext(tenant_id="acme")
        await engine.create_tenant(context, level=IsolationLevel.ROW, server=ServerName("main"))
        for text in fill:
            await ask(engine, "acme", text)
        transaction = admin.transaction()
        await transaction.start()
        await admin.execute("set local constraint_exclusion = on")
        for (table,) in await admin.fetch(
            "select tablename from pg_tables where schemaname = 'app'"
        ):
            await admin.execute(f"drop policy if exists tenancy_isolation on app.{table}")
            if name != "policy":
                await admin.execute(f"alter table app.{table} disable row level security")
        await admin.execute(f"set local role tenancy_owner; set local search_path = app; {look}")
        await admin.execute("reset role")
        assert await sprung(admin)
        await transaction.rollback()
