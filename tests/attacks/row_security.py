"""R: faults in the definition of row security."""

from __future__ import annotations

import asyncpg

from attacks.attack import Attack, Goal, Play, WeakLogin
from attacks.scene import CANARY, Scene
from tenancy.data_isolation.core.errors import InvalidInputError, SchemaRefusedError
from tenancy.data_isolation.core.types import TenantContext

_READ = "select note from orders"


def refused(sql: str, weakness: str, reading: str) -> Play:
    """The schema has what should not be: the product refuses the migration that brings it."""

    async def play(scene: Scene) -> bool:
        if scene.is_weak:
            await scene.administrate(weakness)
        else:
            try:
                await scene.migrate(sql)
            except SchemaRefusedError as error:
                scene.note_error(error)
                return False
        await scene.attack(reading)
        return any(CANARY in text for text in scene.answers[-1].cells())

    return play


async def _exempt_login(scene: Scene) -> bool:
    """The login is exempt from row security: the start has to refuse."""
    role = scene.attacker.role
    await scene.administrate(f"alter role {role} bypassrls")
    try:
        if not scene.is_weak:
            return await scene.starts()
        await scene.attack(_READ)
    finally:
        await scene.administrate(f"alter role {role} nobypassrls")
    return any(CANARY in text for text in scene.answers[-1].cells())


async def _cached_plan(scene: Scene, prepare: str) -> bool:
    """A plan that was made for one tenant serves the next one in the same session."""
    async with scene.direct(scene.victim) as connection:
        await connection.execute(prepare)
        for _ in range(7):
            await connection.fetch("execute reading")
        await scene.hand_over(connection)
        try:
            rows = await connection.fetch("execute reading")
        except asyncpg.PostgresError as error:
            scene.note_error(error)
            return False
        scene.note_rows(rows)
        return any(CANARY in str(row) for row in rows)


async def _plan_of_a_function(scene: Scene) -> bool:
    name = "current_tenant()" if scene.is_weak else "tenancy.tenant()"
    column = scene.victim.column
    return await _cached_plan(
        scene, f"prepare reading as select note from orders where {column} = {name}"
    )


async def _plan_of_a_cte(scene: Scene) -> bool:
    return await _cached_plan(
        scene,
        "prepare reading as with o as (select * from orders) "
        "select note from o where id in (select id from orders) order by id limit 5",
    )


async def _pattern_as_tenant(scene: Scene) -> bool:
    """A tenant whose name matches all others."""
    await scene.attack_in_turn(["set {bind} = '%'", _READ])
    found = any(CANARY in text for answer in scene.answers for text in answer.cells())
    if not scene.is_weak:
        try:
            TenantContext(tenant_id="%")
        except InvalidInputError as error:
            scene.note_error(error)
            return found
    return found


async def _ungranted_table(scene: Scene) -> bool:
    """A table that came by no migration, in the schema of the tenants' tables."""
    schema = scene.attacker.schema
    await scene.administrate(
        f"create table {schema}.fresh as select 1 as id, '{CANARY}' as note;"
        + ("" if scene.is_weak else f"alter table {schema}.fresh owner to tenancy_owner;")
    )
    try:
        await scene.attack("select note from fresh")
    finally:
        await scene.administrate(f"drop table {schema}.fresh;")
    return any(CANARY in text for text in scene.answers[-1].cells())


async def _racing_lookup(scene: Scene) -> bool:
    """The attacker changes the table that a policy looks tenants up in."""
    if scene.is_weak:
        await scene.attack_in_turn(
            ["insert into membership values ('a', 'b')", "select note from orders"]
        )
    else:
        await scene.attack_in_turn(
            [
                "update tenancy.fence set open = true, epoch = 1",
                "insert into tenancy.fence values ({victim_value}, 1, true)",
                "insert into tenancy.binding_key values (2, '', '')",
                "select note from orders",
            ]
        )
    return any(CANARY in text for answer in scene.answers for text in answer.cells())


async def _column_rights(scene: Scene) -> bool:
    """A right that somebody gave to everybody: a start has to tell."""
    if scene.is_weak:
        await scene.administrate(
            "grant select (note) on tickets to public; alter table tickets disable row level"
            " security"
        )
        await scene.attack("select note from tickets")
        return any(CANARY in text for text in scene.answers[-1].cells())
    schema = scene.attacker.schema
    await scene.administrate(f"grant select (note) on {schema}.tickets to public")
    try:
        return not await scene.is_noticed()
    finally:
        await scene.administrate(f"revoke select (note) on {schema}.tickets from public")


async def _planted_trigger(scene: Scene) -> bool:
    """A trigger of the attacker's copies what the victim writes."""
    await scene.attack_in_turn(
        [
            "create table loot (note text)",
            "create function take() returns trigger language plpgsql as "
            "$$ begin insert into loot values (new.note){semicolon} return new{semicolon} end $$",
            "create trigger take before insert on tickets for each row execute function take()",
            "grant insert on loot to public",
        ]
    )
    await scene.ask_victim("insert into tickets (id, note) values (900099, '{canary} new')")
    answer = await scene.attack("select note from loot")
    await scene.ask_victim("delete from tickets where id = 900099")
    return any(CANARY in text for text in answer.cells())


async def _given_to_all(scene: Scene) -> bool:
    """GRANT by somebody who may not is a warning, not an error: the effect counts."""
    await scene.attack("grant select on orders to public")
    given = await scene.administrate(
        "select from pg_class c cross join lateral aclexplode(relacl) a "
        "where relname = 'orders' and a.grantee = 0"
    )
    return bool(given)


_UNFORCED = ["alter table orders no force row level security"]

ATTACKS = (
    Attack(
        id="R01",
        title="the login is exempt from row security",
        goal=Goal.READ,
        play=_exempt_login,
        one_way=True,
    ),
    Attack(
        id="R02",
        title="the owner switches row security off",
        goal=Goal.READ,
        steps=[
            "alter table orders no force row level security",
            "alter table orders disable row level security",
            _READ,
        ],
        weak_as=WeakLogin.OWNER,
    ),
    Attack(
        id="R03",
        title="a role with CREATEROLE grants itself the victim's",
        goal=Goal.READ,
        steps=[
            "grant {victim_role} to {own_role}",
            "set role {victim_role}",
            "select note from {by_role}",
        ],
        weak_as=WeakLogin.OWNER,
        weakness=[
            "alter role {p}_owner createrole",
            "grant {p}_b to {p}_owner with admin option",
        ],
    ),
    Attack(
        id="R04",
        title="SET ROLE to one that is exempt",
        goal=Goal.READ,
        steps=["set role {strong_role}", _READ],
        weakness=["alter role {p}_b bypassrls", "grant select on orders to {p}_b"],
    ),
    Attack(
        id="R05",
        title="SET row_security = off",
        goal=Goal.READ,
        steps=["set row_security = off", _READ],
        weak_as=WeakLogin.OWNER,
        weakness=_UNFORCED,
    ),
    Attack(
        id="R06",
        title="a new table without row security",
        goal=Goal.READ,
        play=_ungranted_table,
        weakness=["alter default privileges grant select on tables to public"],
    ),
    Attack(
        id="R07",
        title="one more permissive policy",
        goal=Goal.READ,
        steps=["create policy more on orders using (true)", _READ],
        weak_as=WeakLogin.OWNER,
    ),
    Attack(
        id="R08",
        title="a row for another tenant is inserted",
        goal=Goal.CHANGE,
        steps=[
            "insert into orders (id, {column}, note) values (50, {quoted_victim}, 'forged')",
            "insert into orders (id, {column}, note) values (50, {quoted_victim}, 'forged')"
            " on conflict do nothing",
        ],
        weakness=["create policy lax on orders for insert with check (true)"],
    ),
    Attack(
        id="R08",
        variant="update",
        title="a row is moved to another tenant",
        goal=Goal.CHANGE,
        steps=["update orders set {column} = {quoted_victim} where id = {own_order}"],
        weakness=[
            "create policy lax on orders for update using (true) with check (true)",
            "create policy seen on orders for select using (true)",
        ],
    ),
    Attack(
        id="R09",
        title="a partition is read directly",
        goal=Goal.READ,
        play=refused(
            "create table parts (id bigint primary key, note text) partition by range (id);"
            "create table part_1 partition of parts for values from (1) to (1000000);",
            "create table parts (id bigint, tenant text, note text) partition by range (id);"
            "create table part_1 partition of parts for values from (1) to (1000000);"
            "alter table parts enable row level security, force row level security;"
            "create policy tenant on parts using (tenant = current_setting('app.tenant', true));"
            "insert into parts values (1, 'b', '{canary}');"
            "grant select on parts, part_1 to public;",
            "select note from part_1",
        ),
        one_way=True,
    ),
    Attack(
        id="R09",
        variant="inheritance",
        title="a table that inherits is read directly",
        goal=Goal.READ,
        play=refused(
            "create table heirs (primary key (id)) inherits (orders);",
            "create table heirs () inherits (orders);"
            "insert into heirs values (1, 'b', null, '{canary}');"
            "grant select on heirs to public;",
            "select note from heirs",
        ),
        one_way=True,
    ),
    Attack(
        id="R10",
        title="TRUNCATE knows no row security",
        goal=Goal.CHANGE,
        steps=["truncate orders cascade", "truncate items"],
        weakness=["grant truncate on orders, items, receipts to public"],
    ),
    Attack(
        id="R11",
        title="a trigger that fires in the victim's session",
        goal=Goal.READ,
        play=_planted_trigger,
        weak_as=WeakLogin.OWNER,
    ),
    Attack(
        id="R12",
        title="a pattern as the name of a tenant",
        goal=Goal.READ,
        play=_pattern_as_tenant,
        weakness=[
            "alter policy tenant on orders using (tenant like current_setting('app.tenant'))"
        ],
    ),
    Attack(
        id="R13",
        title="a function in a policy is folded into a cached plan",
        goal=Goal.READ,
        play=_plan_of_a_function,
        one_way=True,
        weakness=[
            "create function current_tenant() returns text immutable language sql as "
            "$$ select current_setting('app.tenant', true) $$",
            "alter policy tenant on orders using (tenant = current_tenant())",
        ],
    ),
    Attack(
        id="R14",
        title="rows of nobody are rows of everybody",
        goal=Goal.CHANGE,
        steps=["insert into orders (id, {column}, note) values (60, null, 'of nobody')"],
        weakness=[
            "alter policy tenant on orders using "
            "(tenant is null or tenant = current_setting('app.tenant', true))"
        ],
    ),
    Attack(
        id="R15",
        title="the attacker changes what a policy looks up",
        goal=Goal.READ,
        play=_racing_lookup,
        weakness=[
            "create table membership (login text, tenant text);"
            "grant insert, select on membership to public;"
            "alter policy tenant on orders using (tenant in (select m.tenant from membership m "
            "where m.login = current_setting('app.tenant', true)));"
        ],
    ),
    Attack(
        id="R16",
        title="MERGE updates rows of others",
        goal=Goal.CHANGE,
        steps=[
            "merge into orders o using (select 1) s on true"
            " when matched then update set note = 'mine'"
        ],
        weak_as=WeakLogin.OWNER,
        weakness=_UNFORCED,
    ),
    Attack(
        id="R17",
        title="a cached plan with CTE and sublink serves the next tenant",
        goal=Goal.READ,
        play=_plan_of_a_cte,
        one_way=True,
        weakness=[
            "create function current_tenant() returns text immutable language sql as "
            "$$ select current_setting('app.tenant', true) $$",
            "alter policy tenant on orders using (tenant = current_tenant())",
        ],
    ),
    Attack(
        id="R18",
        title="COPY TO",
        goal=Goal.READ,
        steps=["copy (select note from orders) to stdout"],
        weak_as=WeakLogin.OWNER,
        weakness=_UNFORCED,
    ),
    Attack(
        id="R18",
        variant="from",
        title="COPY FROM with rows for another tenant",
        goal=Goal.CHANGE,
        steps=["copy orders (id, {column}, note) from stdin -- 50\t{victim_value}\tforged\n"],
        weak_as=WeakLogin.OWNER,
        weakness=_UNFORCED,
    ),
    Attack(
        id="R19",
        title="triggers and foreign keys are switched off",
        goal=Goal.RUN,
        steps=["set session_replication_role = replica"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="R20",
        title="rights are given to everybody",
        goal=Goal.RUN,
        play=_given_to_all,
        weak_as=WeakLogin.OWNER,
    ),
    Attack(
        id="R20",
        variant="drift",
        title="somebody gave rights to everybody",
        goal=Goal.READ,
        play=_column_rights,
        one_way=True,
    ),
)
