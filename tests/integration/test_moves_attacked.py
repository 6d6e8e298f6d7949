"""What an attack on moves found once, and what it comes to now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import ask
from support.install import Install
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.identifiers import Epoch, ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.fence import open_fence

ROW, SCHEMA = IsolationLevel.ROW, IsolationLevel.SCHEMA
WAIT_S = 30.0
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
}

#: `good` is called by a check of the rows that a move copies, as the migrations' role.
TABLES = """
create table prices (id numeric primary key, n integer not null default 0);
create table things (id integer primary key, v integer);
create function good(v integer) returns boolean language plpgsql as $$
declare
    move text;
begin
    execute 'select nspname from pg_namespace where nspname ~ ''^m_[0-9a-f]{20}$'' limit 1'
        into move;
    if move is not null then
        begin
            execute format('create function public.spring() returns trigger language plpgsql as '
                || '''begin reset role; create role sprung superuser; return null; end''');
        exception when others then null;
        end;
        begin
            execute format('create trigger spring after update on %I.mover '
                || 'for each row execute function public.spring()', move);
        exception when others then null;
        end;
        begin
            execute 'grant execute on function tenancy.run(text) to public';
        exception when others then null;
        end;
    end if;
    return true;
end $$;
alter table things add check (good(v));
"""


@pytest.fixture
async def pair(two_servers: TwoServers) -> AsyncIterator[Engine]:
    async with two_servers.opened(**QUICK) as made:
        await made.apply_migration("0001_tables", TABLES)
        context = TenantContext(tenant_id="acme")
        await made.create_tenant(context, level=ROW, server=ServerName("main"))
        yield made


async def reached(engine: Engine, state: MoveState, **target: Any) -> Move:
    move = await engine.moves.start("acme", MoveTarget(**target))
    move = await engine.moves.wait(move.move_id, [state], timeout_s=WAIT_S)
    assert move.state is state, move
    return move


async def test_what_a_check_does_while_rows_are_copied_does_not_reach_the_admin(pair, install):
    await ask(pair, "acme", "insert into things (id, v) select n, n from generate_series(1, 5) n")
    # The check has given the runner away, which undoes every transaction that it was called in.
    move = await reached(pair, MoveState.FAILED, level=SCHEMA, server=ServerName("main"))
    assert "tenancy.run" in move.error
    await pair.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    async with install.connected() as admin:
        assert await admin.fetchval("select count(*) from pg_roles where rolname = 'sprung'") == 0
        assert not await admin.fetchval(
            "select has_function_privilege('tenancy_rows', 'tenancy.run(text)', 'execute')"
        )
    assert (await ask(pair, "acme", "select count(*) from things")).rows == [[5]]


async def test_a_key_that_is_written_in_another_way_moves_there_and_back(pair):
    await ask(pair, "acme", "insert into prices (id) values (1), (2)")
    move = await reached(pair, MoveState.OPEN, level=SCHEMA, server=ServerName(SECOND))
    await ask(pair, "acme", "update prices set id = 1.00 where id = 1")
    await pair.moves.roll_back(move.move_id)
    move = await pair.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    assert move.state is MoveState.ROLLED_BACK, move
    rows = (await ask(pair, "acme", "select id from prices order by id")).rows
    assert rows == [["1.00"], ["2"]]


async def test_what_comes_late_does_not_open_the_place_that_was_left(pair, install: Install):
    move = await reached(pair, MoveState.OPEN, level=SCHEMA, server=ServerName(SECOND))
    tenant = await pair.tenant("acme")
    async with install.connected() as admin:
        await open_fence(admin, tenant.tenant_no, Epoch(move.source.epoch))
        fence = await admin.fetchrow(
            "select epoch, open from tenancy.fence where tenant_no = $1", tenant.tenant_no
        )
    assert tuple(fence) == (tenant.placement.epoch, False)


async def test_numbers_that_a_tenant_has_used_up_are_not_taken_from_those_who_share(pair):
    await pair.apply_migration("0009_tickets", "create table tickets (id smallserial primary key)")
    for name, level in (("victim", IsolationLevel.ROW), ("spender", IsolationLevel.SCHEMA)):
        context = TenantContext(tenant_id=name)
        await pair.create_tenant(context, level=level, server=ServerName("main"))
    fill = "insert into tickets select from generate_series(1, {})"
    await ask(pair, "spender", fill.format(20_000))
    move = await pair.moves.start("spender", MoveTarget(level=IsolationLevel.ROW))
    move = await pair.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=40)
    assert move.state is MoveState.FAILED
    assert "more than half of the numbers of tickets_id_seq" in (move.error or "")
    assert (await ask(pair, "victim", fill.format(16_000))).row_count == 16_000
