"""V: the rights of others, and objects that stand in front of others."""

from __future__ import annotations

from attacks.attack import Attack, Goal, Play, WeakLogin
from attacks.row_security import refused
from attacks.scene import Scene


def _definer() -> Play:
    return refused(
        "create function all_notes() returns setof text security definer language sql "
        "begin atomic select note from orders; end;",
        "create function all_notes() returns setof text security definer language sql "
        "as $$ select note from orders $$;",
        "select * from all_notes()",
    )


async def _shadowed_definer(scene: Scene) -> bool:
    """A function with its owner's rights meets a temporary table of the attacker's."""
    await scene.attack("create temp table orders (id bigint, note text)")
    asked = "select count_orders()" if scene.is_weak else "select tenancy.tenant()"
    answer = await scene.attack(asked)
    return not answer.failed and answer.rows[0][0] == 0


async def _shadowed_function(scene: Scene) -> bool:
    """What the victim calls is the attacker's."""
    await scene.attack(
        "create function {own_schema}.length(text) returns int language sql as 'select 666'"
    )
    answer = await scene.ask_victim("select length('abc')")
    return answer.rows != ((3,),)


ATTACKS = (
    Attack(
        id="V01",
        title="a view that is checked with its owner's rights",
        goal=Goal.READ,
        steps=["select note from order_notes"],
        weakness=["create or replace view order_notes as select id, note from orders"],
    ),
    Attack(
        id="V02",
        title="a copy of the rows without row security",
        goal=Goal.READ,
        steps=["create materialized view loot as select note from orders", "select * from loot"],
        weak_as=WeakLogin.OWNER,
        weakness=["alter table orders no force row level security"],
    ),
    Attack(
        id="V02",
        variant="schema",
        title="a materialized view in the schema",
        goal=Goal.READ,
        play=refused(
            "create materialized view cache as select note from orders;",
            "create materialized view cache as select note from orders;"
            "grant select on cache to public;",
            "select note from cache",
        ),
        one_way=True,
    ),
    Attack(
        id="V03",
        title="a function with its owner's rights",
        goal=Goal.READ,
        play=_definer(),
        one_way=True,
    ),
    Attack(
        id="V04",
        title="a temporary table in front of what such a function reads",
        goal=Goal.RUN,
        play=_shadowed_definer,
        weakness=[
            "create function count_orders() returns bigint security definer language plpgsql as "
            "$$ begin return (select count(*) from orders); end $$;"
        ],
    ),
    Attack(
        id="V05",
        title="a function of the attacker's in front of PostgreSQL's",
        goal=Goal.CHANGE,
        play=_shadowed_function,
        before=["set search_path = public, pg_catalog"],
    ),
    Attack(
        id="V06",
        title="a cast that fails tells of rows behind a view's condition",
        goal=Goal.READ,
        steps=["select id from order_notes where note::integer = 1 and id > 1000"],
        weakness=[
            "create function is_mine(text) returns boolean cost 1000000 language plpgsql as "
            "$$ begin return $1 = current_setting('app.tenant', true); end $$;"
            "create or replace view order_notes as select id, note from orders"
            " where is_mine(tenant);"
        ],
    ),
    Attack(
        id="V07",
        title="a trigger with its owner's rights",
        goal=Goal.READ,
        play=refused(
            "create function take() returns trigger security definer language plpgsql as "
            "$$ begin return new; end $$;"
            "create trigger take before insert on orders for each row execute function take();",
            "create table loot (note text); grant select on loot to public;"
            "create function take() returns trigger security definer language plpgsql as "
            "$$ begin insert into loot select note from orders; return new; end $$;"
            "create trigger take before insert on tickets for each row execute function take();"
            "insert into tickets (id, note) values (1, 'x');",
            "select note from loot",
        ),
        one_way=True,
    ),
    Attack(
        id="V08",
        title="CREATE SCHEMA with objects in it (CVE-2023-2454)",
        goal=Goal.RUN,
        steps=["create schema evil create table loot (note text)"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="V09",
        title="REFRESH MATERIALIZED VIEW by somebody with more rights (CVE-2024-0985)",
        goal=Goal.RUN,
        steps=[
            "create materialized view loot as select 1 as id",
            "create unique index on loot (id)",
            "refresh materialized view concurrently loot",
        ],
    ),
    Attack(
        id="V10",
        title="CREATE EXTENSION",
        goal=Goal.RUN,
        steps=["create extension if not exists pg_trgm"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="V11",
        title="a foreign table, which cannot have row security",
        goal=Goal.RUN,
        steps=[
            "create foreign data wrapper evil",
            "create server evil foreign data wrapper evil",
            "create foreign table {own_schema}.far (note text) server evil",
        ],
        weak_as=WeakLogin.BOSS,
    ),
)
