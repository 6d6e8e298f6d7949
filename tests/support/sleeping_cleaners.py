"""Who cleans up after a move, falls asleep over it, and wakes up when the tenant is back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from support.engines import TABLES
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.two_servers import SECOND, TwoServers
from support.writers import contents, filled, settled, written_to
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine

ROW, SCHEMA, DATABASE = IsolationLevel
MAIN: Final = ServerName("main")
WAIT_S: Final = 60.0
AT_ONCE: Final = 4
QUICK: Final[dict[str, Any]] = {
    "move_poll_s": 0.1,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_chunk_rows": 20,
    **FLAT_OUT,
    "move_owner_timeout_s": 1.0,
    "move_retry_s": 0.2,
    "move_idle_timeout_ms": 1_000,
    "moves_at_once_max": 2 * AT_ONCE,
    "removal_batch_rows_max": 20,
}
FENCED: Final = "execute insert into tenancy.fence"
AWAY, BESIDE = MoveTarget(server=ServerName(SECOND)), MoveTarget(level=SCHEMA)


@dataclass(frozen=True, slots=True)
class Nap:
    """Where a cleaner falls asleep: at a step, when it takes away what a tenant has left."""

    level: IsolationLevel
    target: MoveTarget
    step: str
    nth: int = 1
    beyond: str = ""


#: By what is about to be done.
NAPS: Final[dict[str, Nap]] = {
    "end sessions": Nap(SCHEMA, AWAY, "before execute alter role"),
    "drop triggers": Nap(SCHEMA, AWAY, "before execute set local role tenancy_owner; drop trigger"),
    "drop the move's schema": Nap(SCHEMA, AWAY, 'before execute drop schema if exists "m_'),
    "drop the tenant's schema": Nap(SCHEMA, AWAY, 'before execute drop schema if exists "t_'),
    "drop the role": Nap(SCHEMA, AWAY, "before execute drop role"),
    "drop the database": Nap(DATABASE, AWAY, "before execute drop database"),
    # Rows in shared tables have no name of their own: these are the same tables when it is back.
    "raise the fence": Nap(ROW, AWAY, "before execute insert into tenancy.fence"),
    "delete rows": Nap(ROW, AWAY, "before fetchval select case", beyond=FENCED),
    "delete more rows": Nap(ROW, AWAY, "after fetchval select case", 3, beyond=FENCED),
    "remove the fence": Nap(ROW, AWAY, "before execute delete from tenancy.fence"),
    "delete rows beside": Nap(
        ROW, BESIDE, "before fetchval select case", beyond='execute drop schema if exists "m_'
    ),
    "note that it is clean": Nap(ROW, BESIDE, "before fetchval update catalog.move set cleaned"),
}


async def slept(engine: Engine, name: str, nap: Nap) -> None:
    """Let a cleaner sleep until the tenant is back where it was, and see what it does then."""
    before = await filled(engine, name, level=nap.level, server=MAIN)
    fate = Fate(nap.step, beyond=nap.beyond, nth=nap.nth, freezes=True)
    async with written_to(engine, name) as writer:
        move = await engine.moves.start(name, nap.target)
        async with mover(engine, fate, only=move.move_id) as sleeper:
            ending = asyncio.create_task(settled(engine, move))
            async with asyncio.timeout(WAIT_S):
                await fate.happened.wait()
            done = len(fate.steps)
            await carried_out(engine, ending, move.move_id)
            await moved(engine, name, MoveTarget(level=nap.level, server=MAIN))
            await writer.more(5)
            assert sleeper._tasks
            fate.woken.set()
            async with asyncio.timeout(WAIT_S):
                while sleeper._tasks:
                    await asyncio.sleep(0.01)
            await writer.more(5)
            # It may try, but gets no answer. That to a sign of life can have come before.
            woken = [step for step in fate.steps[done:] if step != "after execute select"]
            assert [step for step in woken if step.startswith("after")] == [], (nap, woken)
        # All that a move needs is there.
        await moved(engine, name, nap.target)
        await writer.more(5)
    writer.check(await contents(engine, name), before)


async def moved(engine: Engine, name: str, target: MoveTarget) -> None:
    move = await engine.moves.start(name, target)
    await carried_out(engine, asyncio.create_task(settled(engine, move)), move.move_id)


async def carried_out(engine: Engine, ending: asyncio.Task[Any], move_id: Any) -> None:
    """Let somebody who is awake bring a move to its end."""
    async with mover(engine, Fate(), only=move_id):
        done = await ending
    assert done.state is MoveState.CONFIRMED, done


async def all_slept(two_servers: TwoServers, naps: Iterable[str]) -> None:
    """Try naps out, some at a time, each with a tenant and movers of its own."""
    turns = asyncio.Semaphore(AT_ONCE)
    async with await Engine.open(two_servers.config(**QUICK)) as engine:
        await engine.apply_migration("0001_users", TABLES)

        async def one(number: int, nap: Nap) -> None:
            async with turns:
                await slept(engine, f"tenant{number}", nap)

        async with asyncio.TaskGroup() as group:
            for number, name in enumerate(naps):
                group.create_task(one(number, NAPS[name]))
