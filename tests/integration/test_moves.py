"""Tenants move between placements: every direction, every kind of column, every ending."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from support.engines import ask, opened
from support.install import Install
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.errors import ConflictError, LimitError, TenancyError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE
#: So that a test does not wait for the next look.
QUICK: dict[str, Any] = {"move_poll_s": 0.05, "move_follow_s": 0.05, "move_warm_ms": 10}
WAIT_S = 30.0

TABLES = """
create type mood as enum ('calm', 'wild');
create domain percent as integer check (value between 0 and 100);
create type point_of_sale as (city text, moods mood[]);
create table teams (
    id      integer primary key,
    name    text not null unique,
    lead    integer
);
create table people (
    id      bigint generated always as identity primary key,
    team    integer not null references teams,
    email   text not null unique,
    feeling mood not null default 'calm',
    moods   mood[],
    share   percent,
    place   point_of_sale,
    tags    text[],
    doc     jsonb,
    raw     json,
    photo   bytea,
    price   numeric,
    ratio   double precision,
    span    interval,
    born    date,
    seen    timestamptz not null default now(),
    address inet,
    token   uuid,
    times   tstzrange,
    total   numeric generated always as (price * 2) stored
);
alter table teams add foreign key (lead) references people deferrable initially deferred;
create table notes (
    mood    mood,
    day     date,
    "Odd ""name" text,
    text    text,
    primary key (mood, day, "Odd ""name")
);
create table counters (id serial primary key, n integer not null default 0);
create sequence invoices increment by -2 start 1000 maxvalue 1000 minvalue -100000;
create table bills (number integer primary key default nextval('invoices'), text text);
create index people_by_tag on people using gin (tags);
create view calm_people as select id, email from people where feeling = 'calm';
create function touch() returns trigger language plpgsql as
$$ begin new.text := coalesce(new.text, '') || '!'; return new; end $$;
create trigger touched before insert or update on notes
for each row execute function touch();
"""

FILL = [
    "insert into teams (id, name) select n, 'team ' || n from generate_series(1, 3) n",
    """insert into people (team, email, feeling, moods, share, place, tags, doc, raw, photo, price,
        ratio, span, born, address, token, times)
    select n % 3 + 1, n || '@x', case when n % 2 = 0 then 'wild' else 'calm' end::mood,
        array['calm', null, 'wild']::mood[], n % 101,
        row('Rome', array['wild']::mood[])::point_of_sale,
        array['a', null, 'ü' || n], jsonb_build_object('n', n, 'x', 1.10), '{"a" :  1.0}',
        decode('00ff' || lpad(to_hex(n), 4, '0'), 'hex'), n + 0.10, n / 3.0,
        interval '1 day' * n, date '2000-01-01' + n, '10.0.0.1/8',
        '00000000-0000-0000-0000-000000000001', '[2020-01-01, 2021-01-01)'
    from generate_series(1, 40) n""",
    "insert into people (team, email, price, ratio) values (1, 'nan@x', 'NaN', '-0')",
    "update teams set lead = (select min(id) from people where team = teams.id)",
    """insert into notes (mood, day, "Odd ""name", text) values
        ('wild', '2020-02-29', 'back\\slash ''quoted''', E'line\\nbreak'),
        ('calm', '0001-01-01', '', null)""",
    "insert into counters (n) select n from generate_series(1, 7) n",
    "insert into bills (text) values ('one'), ('two')",
]
TABLE_NAMES = ("teams", "people", "notes", "counters", "bills")


@pytest.fixture
async def engine(install: Install) -> AsyncIterator[Engine]:
    async with opened(install, tables=False, **QUICK) as made:
        await made.apply_migration("0001_tables", TABLES)
        made.moves.work()
        yield made


@pytest.fixture
async def pair(two_servers: TwoServers) -> AsyncIterator[Engine]:
    async with two_servers.opened(**QUICK) as made:
        await made.apply_migration("0001_tables", TABLES)
        yield made


async def filled(engine: Engine, name: str, level: IsolationLevel, **where: Any) -> None:
    await engine.create_tenant(TenantContext(tenant_id=name), level=level, **where)
    for text in FILL:
        await ask(engine, name, text)


async def contents(engine: Engine, name: str) -> dict[str, list[Any]]:
    found = {}
    for table in TABLE_NAMES:
        rows = await ask(engine, name, f"select * from {table} order by 1, 2")
        found[table] = rows.rows
    found["view"] = (await ask(engine, name, "select * from calm_people order by id")).rows
    return found


async def move_to(engine: Engine, name: str, **target: Any) -> Move:
    move = await engine.moves.start(name, MoveTarget(**target))
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    assert move.state is MoveState.OPEN, move
    return move


async def settled(engine: Engine, move: Move) -> Move:
    move = await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
    assert move.is_settled, move
    return move


async def moved(engine: Engine, name: str, **target: Any) -> Move:
    move = await move_to(engine, name, **target)
    await engine.moves.confirm(move.move_id)
    move = await settled(engine, move)
    assert move.state is MoveState.CONFIRMED, move
    return move


async def check_writable(engine: Engine, name: str) -> None:
    """New rows get new numbers, and constraints, triggers and defaults are at work."""
    result = await ask(
        engine,
        name,
        "insert into people (team, email) values (2, gen_random_uuid()::text) "
        "returning id, feeling",
    )
    ids = (await ask(engine, name, "select id from people order by id")).rows
    assert result.rows[0] == [ids[-1][0], "calm"]
    await ask(engine, name, "insert into counters (n) values (0)")
    with pytest.raises(TenancyError, match="people_email_key"):
        await ask(engine, name, "insert into people (team, email) values (1, '3@x')")
    with pytest.raises(TenancyError, match="foreign key"):
        await ask(engine, name, "insert into people (team, email) values (99, 'y')")
    await ask(engine, name, "insert into bills (text) values ('more')")


@pytest.mark.parametrize("levels", [(ROW, SCHEMA, DATABASE, ROW), (SCHEMA, ROW, DATABASE, SCHEMA)])
async def test_every_direction_within_a_server(engine, levels):
    first, *others = levels
    await filled(engine, "acme", first)
    await filled(engine, "other", ROW)
    before = await contents(engine, "acme")
    for level in others:
        move = await moved(engine, "acme", level=level)
        tenant = await engine.tenant("acme")
        assert tenant.placement.level is level
        assert tenant.placement.epoch > move.source.epoch
        assert await contents(engine, "acme") == before
        assert [item["equal"] for item in move.report["after"]] == [True] * 6
        await check_writable(engine, "acme")
        before = await contents(engine, "acme")
    assert len((await contents(engine, "other"))["people"]) == 41


@pytest.mark.parametrize(
    "levels", [(ROW, ROW, SCHEMA), (SCHEMA, SCHEMA, DATABASE), (DATABASE, DATABASE, ROW)]
)
async def test_every_direction_to_another_server_and_back(pair, levels):
    first, there, back = levels
    await filled(pair, "acme", first, server=ServerName("main"))
    before = await contents(pair, "acme")
    for level, server in ((there, SECOND), (back, "main")):
        await moved(pair, "acme", level=level, server=ServerName(server))
        placement = (await pair.tenant("acme")).placement
        assert (placement.level, placement.server) == (level, server)
        assert await contents(pair, "acme") == before
        await check_writable(pair, "acme")
        before = await contents(pair, "acme")


async def test_a_move_that_is_rolled_back_brings_back_what_was_written_since(pair):
    await filled(pair, "acme", ROW, server=ServerName("main"))
    move = await move_to(pair, "acme", level=DATABASE, server=ServerName(SECOND))
    await check_writable(pair, "acme")
    await ask(pair, "acme", "delete from people where id % 5 = 0 and team <> 2")
    await ask(pair, "acme", "update notes set mood = 'calm' where mood = 'wild'")
    written = await contents(pair, "acme")
    await pair.moves.roll_back(move.move_id)
    move = await settled(pair, move)
    assert move.state is MoveState.ROLLED_BACK
    placement = (await pair.tenant("acme")).placement
    assert (placement.level, placement.server) == (ROW, "main")
    assert await contents(pair, "acme") == written
    await check_writable(pair, "acme")
    # Nothing is left that would stand against the next move.
    await moved(pair, "acme", level=SCHEMA)


async def test_a_move_is_paused_resumed_and_cancelled_without_a_trace(install):
    async with opened(install, tables=False, **QUICK, move_chunk_rows=2) as engine:
        await engine.apply_migration("0001_tables", TABLES)
        await filled(engine, "acme", ROW)
        there = await traces(install)
        before = await contents(engine, "acme")
        move = await engine.moves.start("acme", MoveTarget(level=SCHEMA))
        move = await engine.moves.pause(move.move_id)
        engine.moves.work()
        assert move.paused
        with pytest.raises(LimitError):
            await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=1)
        assert not (await engine.moves.resume(move.move_id)).paused
        await engine.moves.cancel(move.move_id)
        move = await settled(engine, move)
        assert move.state is MoveState.CANCELLED
        assert await contents(engine, "acme") == before
    assert await traces(install) == there


async def traces(install: Install) -> list[str]:
    """What moves have left behind on a server."""
    async with install.connected() as admin:
        rows = await admin.fetch(
            """
            select 'schema ' || nspname from pg_namespace where nspname ~ '^[mt]_[0-9a-f]{20}$'
            union all select 'trigger ' || tgname from pg_trigger where tgname ~ '^tenancy_m_'
            union all select 'role ' || rolname from pg_roles where rolname ~ '^t_[0-9a-f]{20}$'
            union all select 'database ' || datname from pg_database
                where datname ~ '^t_[0-9a-f]{20}$'
            union all select 'namespace ' || schema from catalog.namespace where kind = 'own'
            """
        )
    return [row[0] for row in rows]


async def test_what_cannot_be_is_refused_before_anything_is_made(pair, install):
    await filled(pair, "acme", ROW, server=ServerName("main"))
    await pair.create_tenant(TenantContext(tenant_id="resident", region="north"), level=ROW)
    await pair.create_tenant(
        TenantContext(tenant_id="both"), level=ROW, hybrid=True, server=ServerName("main")
    )
    for name, target, words in (
        ("acme", {"level": ROW}, "already"),
        ("acme", {"server": "main"}, "already"),
        ("acme", {"server": "nowhere"}, "no server 'nowhere'"),
        ("acme", {"region": "moon"}, "no server is in region 'moon'"),
        ("acme", {"server": "main", "region": "south"}, "not south"),
        ("resident", {"server": SECOND}, "has to be in region north"),
        ("both", {"level": SCHEMA}, "hybrid"),
        ("nobody", {"level": SCHEMA}, "no tenant nobody"),
    ):
        with pytest.raises(TenancyError, match=words):
            await pair.moves.start(name, MoveTarget(**target))
    with pytest.raises(TenancyError, match="say where to"):
        MoveTarget()
    await pair.suspend_tenant("acme")
    with pytest.raises(TenancyError, match="suspended"):
        await pair.moves.start("acme", MoveTarget(level=SCHEMA))
    await pair.resume_tenant("acme")
    move = await move_to(pair, "acme", level=SCHEMA, server=ServerName("main"))
    for attempt in (
        pair.moves.start("acme", MoveTarget(level=DATABASE)),
        pair.suspend_tenant("acme"),
        pair.delete_tenant("acme"),
        pair.apply_migration("0002_more", "create table more (id integer primary key)"),
    ):
        with pytest.raises(TenancyError, match=move.move_id):
            await attempt
    with pytest.raises(ConflictError, match="cancelled"):
        await pair.moves.cancel(move.move_id)
    await pair.moves.confirm(move.move_id)
    await settled(pair, move)
    with pytest.raises(ConflictError, match="rolled back"):
        await pair.moves.roll_back(move.move_id)
    await pair.apply_migration("0002_more", "create table more (id integer primary key)")
    await moved(pair, "acme", level=ROW)
    await pair.delete_tenant("acme")
    # Of the hybrid tenant, its schema is there.
    own = [item for item in await traces(install) if item.startswith(("schema", "namespace"))]
    assert len(own) == 1


async def test_a_plan_says_what_there_is_to_do(engine):
    await filled(engine, "acme", ROW)
    plan = await engine.moves.plan("acme", MoveTarget(level=DATABASE))
    document = plan.document()
    assert document["possible"]
    assert document["refused"] == []
    assert document["target"] == {"isolation_level": "database", "server": "main"}
    assert document["rows"] == 3 + 41 + 2 + 7 + 2
    assert document["bytes"] > 1000
    assert document["sequences"] == 3
    assert document["duration_s"] > 0
    refused = (await engine.moves.plan("acme", MoveTarget(level=ROW))).document()
    assert not refused["possible"]
    assert refused["refused"][0]["code"] == "already_there"
