"""D: keeping others from working, and getting around limits."""

from __future__ import annotations

from attacks.attack import Attack, Goal, WeakLogin
from attacks.scene import Scene

#: Connections that a login of a tenant's own may hold, and a few more.
_MANY = 40


async def _locked_out(scene: Scene) -> bool:
    """A table that the victim uses too is locked, and the transaction stays open."""
    async with scene.direct(scene.attacker) as connection:
        session = scene.around(connection)
        for text in ("begin", "lock table orders in access exclusive mode"):
            scene.answers.append(await session.send(text))
        return await scene.is_held_up("select count(*) from orders")


async def _lock_through_the_runtime(scene: Scene) -> bool:
    """The same as operations."""
    await scene.attack_in_turn(["begin", "lock table orders in access exclusive mode"])
    held_up = await scene.is_held_up("select count(*) from orders")
    await scene.send("rollback")
    return held_up


async def _ended(scene: Scene) -> bool:
    """The victim's session is ended."""
    async with scene.direct(scene.victim) as connection:
        await scene.attack(f"select pg_terminate_backend({connection.get_server_pid()})")
        return not await scene.is_alive(connection)


async def _connections(scene: Scene) -> bool:
    """All connections that the login can get."""
    return await scene.connections_of_attacker(_MANY) >= _MANY


async def _squatted(scene: Scene) -> bool:
    """The lock that a move of the victim waits for, by way of a binding that is not valid."""
    async with scene.direct(scene.attacker) as connection:
        session = scene.around(connection)
        if scene.is_weak:
            steps = ["begin", "select pg_advisory_xact_lock_shared(4611686018427387904 | 7)"]
        else:
            steps = [
                "begin",
                "savepoint s",
                "set {bind} = '1.{victim_value}.1." + str(connection.get_server_pid()) + ".0'",
                "select tenancy.tenant()",
                "rollback to s",
            ]
        for text in steps:
            scene.answers.append(await session.send(scene.filled(text)))
        number = "7" if scene.is_weak else "{victim_value}"
        free = await scene.administrate(
            f"select pg_try_advisory_xact_lock(4611686018427387904 | {number})", scene.victim
        )
        return not free[0][0]


_WATCHED_LOCKS = {
    "row/direct": "table-locks",
    "hybrid/direct": "table-locks",
}
_OWN_SETTINGS = {
    f"{level}/{way}": "own-settings"
    for level in ("row", "schema", "database", "hybrid")
    for way in ("direct", "handed")
}

ATTACKS = (
    Attack(
        id="D01",
        title="LOCK TABLE in a transaction that stays open",
        goal=Goal.HINDER,
        play=_locked_out,
        one_way=True,
        accepted=_WATCHED_LOCKS,
    ),
    Attack(
        id="D01",
        variant="operations",
        title="LOCK TABLE as an operation",
        goal=Goal.HINDER,
        play=_lock_through_the_runtime,
        accepted=_WATCHED_LOCKS,
        weak_as=WeakLogin.SHARED,
    ),
    Attack(
        id="D02",
        title="a session lifts its own limits",
        goal=Goal.RUN,
        steps=["set statement_timeout = 0", "set work_mem = '2GB'", "select 1"],
        accepted=_OWN_SETTINGS,
    ),
    Attack(
        id="D02",
        variant="temp",
        title="a session lifts the limit on temporary files",
        goal=Goal.RUN,
        steps=["set temp_file_limit = -1"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="D03",
        title="the victim's session is ended",
        goal=Goal.HINDER,
        play=_ended,
    ),
    Attack(
        id="D04",
        title="all connections are taken",
        goal=Goal.RUN,
        play=_connections,
        one_way=True,
        accepted={"row": "shared-login"},
    ),
    Attack(
        id="D05",
        title="a transaction that is left open",
        goal=Goal.RUN,
        steps=["begin", "select count(*) from orders", "select 1"],
        accepted={
            f"{level}/{way}": "open-transactions"
            for level in ("row", "schema", "database", "hybrid")
            for way in ("direct", "handed")
        },
    ),
    Attack(
        id="D05",
        variant="sleep",
        title="a statement that sleeps",
        goal=Goal.RUN,
        steps=["select pg_sleep(0)"],
    ),
    Attack(
        id="D06",
        title="numbers of a sequence are used up",
        goal=Goal.RUN,
        steps=["select count(nextval('tickets_id_seq')) from generate_series(1, 10)"],
        accepted={
            f"{level}/{way}": "sequence-use"
            for level in ("row", "schema", "database", "hybrid")
            for way in ("direct", "handed")
        },
    ),
    Attack(
        id="D06",
        variant="setval",
        title="a sequence is set to its end",
        goal=Goal.RUN,
        steps=["select setval('tickets_id_seq', 9000000000000000000)"],
        weakness=["grant update on sequence tickets_id_seq to public"],
    ),
    Attack(
        id="D07",
        title="the lock that a move of the victim needs",
        goal=Goal.HINDER,
        play=_squatted,
        one_way=True,
    ),
    Attack(
        id="D08",
        title="programs and files of the server",
        goal=Goal.RUN,
        steps=["select pg_read_file('PG_VERSION')"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="D08",
        variant="program",
        title="COPY runs a program",
        goal=Goal.RUN,
        steps=["copy (select 1) to program 'cat > /dev/null';"],
        weak_as=WeakLogin.BOSS,
    ),
    Attack(
        id="D08",
        variant="import",
        title="a file of the server as a large object",
        goal=Goal.RUN,
        steps=["select lo_import('PG_VERSION')"],
        weak_as=WeakLogin.BOSS,
    ),
)
