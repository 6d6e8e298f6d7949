"""P: what one tenant leaves in a session for the next one."""

from __future__ import annotations

import asyncpg

from attacks.attack import Attack, Goal, WeakPool
from attacks.scene import CANARY, Scene

_OWN = "select note from orders"


async def _shadowed_table(scene: Scene) -> bool:
    """The victim writes into a temporary table of the attacker's."""
    await scene.attack_in_turn(["create temp table tickets (id bigint, note text)"])
    await scene.ask_victim("insert into tickets (id, note) values (900099, '{canary} secret')")
    answer = await scene.attack("select note from pg_temp.tickets")
    await scene.ask_victim("delete from tickets where id = 900099")
    return any(CANARY in text for text in answer.cells())


async def _planted_plan(scene: Scene) -> bool:
    """The victim's driver runs a statement that the attacker prepared under the same name."""
    planted = "prepare get_orders as select set_config('{bind}', '{own}', false), note from orders"
    await scene.attack_in_turn([planted])
    answer = await scene.ask_victim("execute get_orders")
    return not answer.failed


async def _changed_settings(scene: Scene) -> bool:
    """Settings that the next tenant works under."""
    await scene.attack_in_turn(
        [
            "set default_transaction_read_only = on",
            "set search_path = pg_catalog",
            "set statement_timeout = 1",
            "set timezone = 'Asia/Tokyo'",
        ]
    )
    written = await scene.ask_victim("update tickets set note = note")
    zone = await scene.ask_victim("select current_setting('timezone')")
    asked = zone if not zone.failed else await scene.ask_victim("select now()::text")
    return written.failed or any("Tokyo" in text or "+09" in text for text in asked.cells())


async def _left_role(scene: Scene) -> bool:
    """The role of the session stays what the attacker made it."""
    await scene.attack_in_turn(["set role {own_role}"])
    answer = await scene.ask_victim("select current_setting('role')")
    return answer.rows not in (((scene.victim.role,),), (("none",),)) and not answer.failed


async def _overtaken(scene: Scene, change: str) -> bool:
    """A session that was right when it was bound goes on after the tenant was closed or moved."""
    async with scene.direct(scene.attacker) as connection:
        assert await connection.fetch(_OWN)
        await scene.administrate(change)
        try:
            rows = await connection.fetch(_OWN)
        except asyncpg.PostgresError as error:
            scene.note_error(error)
            return False
        finally:
            if not scene.is_weak:
                await scene.administrate(
                    "update tenancy.fence set open = true, epoch = "
                    f"{scene.names['epoch']} where tenant_no = {{own_value}}"
                )
        scene.note_rows(rows)
        return bool(rows)


async def _closed(scene: Scene) -> bool:
    return await _overtaken(
        scene,
        "update orders set note = note where false"
        if scene.is_weak
        else "update tenancy.fence set open = false where tenant_no = {own_value}",
    )


async def _moved(scene: Scene) -> bool:
    return await _overtaken(
        scene,
        "update orders set note = note where false"
        if scene.is_weak
        else "update tenancy.fence set epoch = epoch + 1 where tenant_no = {own_value}",
    )


async def _listening_on(scene: Scene) -> bool:
    """A LISTEN of the attacker's stays in the session."""
    await scene.attack_in_turn(["listen orders"])
    answer = await scene.ask_victim("select count(*) from pg_listening_channels()")
    return answer.rows == ((1,),)


async def _kept_lock(scene: Scene) -> bool:
    """A lock that the victim took for its session is the attacker's to free, and to see."""
    await scene.ask_victim("select pg_advisory_lock(4711)")
    answer = await scene.attack("select pg_advisory_unlock(4711)")
    return answer.rows == ((True,),)


ATTACKS = (
    Attack(
        id="P01",
        title="a temporary table in front of a real one",
        goal=Goal.READ,
        play=_shadowed_table,
    ),
    Attack(
        id="P02",
        title="a cursor of the victim's that is still open",
        goal=Goal.READ,
        before=["declare c cursor with hold for select note from orders"],
        steps=["fetch all from c"],
    ),
    Attack(
        id="P03",
        title="a prepared statement under a name that the victim uses",
        goal=Goal.CHANGE,
        play=_planted_plan,
    ),
    Attack(
        id="P04",
        title="settings of the session",
        goal=Goal.HINDER,
        play=_changed_settings,
    ),
    Attack(
        id="P05",
        title="the role of the session",
        goal=Goal.CHANGE,
        play=_left_role,
    ),
    Attack(
        id="P06",
        title="a pool that resets settings only leaves temporary tables",
        goal=Goal.READ,
        play=_shadowed_table,
        weak_pool=WeakPool.ASYNCPG,
    ),
    Attack(
        id="P06",
        variant="plans",
        title="a pool that resets settings only leaves prepared statements",
        goal=Goal.CHANGE,
        play=_planted_plan,
        weak_pool=WeakPool.ASYNCPG,
    ),
    Attack(
        id="P07",
        title="a pool that only rolls back lets the last tenant's name come back",
        goal=Goal.READ,
        before=[_OWN + " limit 1"],
        steps=["select 1/0", "rollback", _OWN],
        weak_pool=WeakPool.IN_TRANSACTION,
    ),
    Attack(
        id="P09",
        title="numbers that the victim took from a sequence",
        goal=Goal.RUN,
        before=["insert into tickets (note) values ('{canary} numbered')"],
        steps=["select currval('tickets_id_seq')"],
    ),
    Attack(
        id="P09",
        variant="last",
        title="the number that the victim took last",
        goal=Goal.RUN,
        before=["insert into tickets (note) values ('{canary} numbered')"],
        steps=["select lastval()"],
    ),
    Attack(
        id="P09",
        variant="listen",
        title="a channel that the attacker listens on",
        goal=Goal.CHANGE,
        play=_listening_on,
    ),
    Attack(
        id="P09",
        variant="locks",
        title="an advisory lock of the victim's",
        goal=Goal.RUN,
        play=_kept_lock,
    ),
    Attack(
        id="P10",
        title="a session that was bound before the tenant was closed",
        goal=Goal.RUN,
        play=_closed,
        one_way=True,
    ),
    Attack(
        id="P10",
        variant="moved",
        title="a session that was bound before the tenant moved",
        goal=Goal.RUN,
        play=_moved,
        one_way=True,
    ),
    Attack(
        id="P11",
        title="set_config with parameters",
        goal=Goal.READ,
        steps=["select set_config('{bind}', concat('{forged}', ''), false)", _OWN],
    ),
)
