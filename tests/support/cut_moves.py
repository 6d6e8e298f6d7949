"""Moves whose mover loses a line to a server at a step of our choice, while their tenants write."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import asyncpg

from support.engines import TABLES
from support.faulty_line import FaultyLine, Loss, Wire, faulty_line
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.two_servers import SECOND, TwoServers
from support.writers import contents, filled, settled, written_to
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine

ROW, SCHEMA = IsolationLevel.ROW, IsolationLevel.SCHEMA
MAIN = ServerName("main")
WAIT_S: Final = 60.0
AT_ONCE: Final = 4
#: What the steps of the cutover come after.
HELD: Final = "execute select set_config('lock_timeout', $2"
LIMITS: Final[dict[str, Any]] = {
    "move_poll_s": 0.1,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_chunk_rows": 40,
    **FLAT_OUT,
    "move_owner_timeout_s": 2.0,
    "move_retry_s": 0.2,
    "moves_at_once_max": 8,
    "move_hold_max_ms": 500,
    "move_statement_timeout_ms": 2_000,
    "move_answer_timeout_s": 0.5,
    "move_idle_timeout_ms": 1_000,
}
#: Limits of all but the hold that are far beyond what a tenant may be closed for. No mover may wait
#: for them while it has closed one.
PATIENT: Final[dict[str, Any]] = {
    "move_owner_timeout_s": 60.0,
    "move_statement_timeout_ms": 60_000,
    "move_answer_timeout_s": 60.0,
}
#: How long a tenant may be closed to its clients by what its mover does not hear: the limit of the
#: hold, and what looking again takes on a machine that does other things.
CLOSED_MAX_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Point:
    """A step of a mover: how its name begins, what comes before it, and which of them it is."""

    step: str
    beyond: str = ""
    nth: int = 1
    #: Whether it is of a move within one database, whose cutover is one transaction.
    within: bool = False


#: Requests of a move, by name. What a server is asked for may be done, or not.
POINTS: Final[dict[str, Point]] = {
    "make the move's schema": Point("before execute create schema"),
    # From then on everybody's writes of it wait, until the mover goes on or its session ends.
    "lock a table": Point("before execute set local role tenancy_owner; create trigger"),
    "read a chunk": Point("before copy out"),
    "write a chunk": Point("before copy in"),
    "commit a chunk": Point("before execute COMMIT", "copy in"),
    "forget notes": Point("before execute delete from", "copy in"),
    "compare": Point("before asks with answer as (select 0 as place"),
    "hold the tenant": Point(f"before {HELD}"),
    "commit the last rows": Point("before execute COMMIT", HELD),
    "close the source": Point("before execute COMMIT", HELD, 2),
    "flip": Point("before fetchval with mine as", HELD),
    "open the target": Point("before fetchval update tenancy.fence", "after fetchval with mine"),
    "let go": Point("before execute select pg_advisory_unlock", HELD),
    "report": Point("before fetchval update catalog.move set report", HELD),
    "flip at once": Point("before execute COMMIT", HELD, within=True),
    "clean up": Point('before execute drop schema if exists "m_'),
    "take the source away": Point('before execute drop schema if exists "t_'),
    "note that it is clean": Point("before fetchval update catalog.move set cleaned"),
}
#: Those at which the tenant is held, or closed.
HOLDING: Final = (
    "hold the tenant",
    "commit the last rows",
    "close the source",
    "flip",
    "open the target",
    "let go",
    "flip at once",
)


class Stage:
    """An engine that clients work with, and a mover elsewhere, whose lines to servers we have."""

    def __init__(self, near: Engine, far: Engine, lines: list[FaultyLine]) -> None:
        self.near = near
        self.far = far
        self._lines = lines

    def wire(self, connection: asyncpg.Connection) -> Wire:
        """What a connection of the mover passes through."""
        (wire,) = [found for line in self._lines if (found := line.wire(connection)) is not None]
        return wire

    async def try_out(self, name: str, point: Point, loss: Loss) -> Move:
        """Move a tenant that writes, lose something at the point, and see it through to the end."""
        # From a schema, so that there is one to be taken away.
        before = await filled(self.near, name, level=SCHEMA, server=MAIN)
        target = MoveTarget(level=ROW, server=None if point.within else ServerName(SECOND))
        wires: list[Wire] = []

        def lose(connection: asyncpg.Connection) -> None:
            wires.append(self.wire(connection))
            wires[0].lose(loss)

        fate = Fate(point.step, beyond=point.beyond, nth=point.nth, act=lose)
        async with written_to(self.near, name) as writer:
            move = await self.near.moves.start(name, target)
            async with mover(self.far, fate, only=move.move_id):
                move = await settled(self.near, move)
                async with asyncio.timeout(WAIT_S):
                    await fate.happened.wait()
                    await wires[0].lost.wait()
            await writer.more(5)
        assert move.state is MoveState.CONFIRMED, (move, point, loss)
        writer.check(await contents(self.near, name), before)
        assert writer.longest_gap_s < CLOSED_MAX_S, (point, loss)
        return move


async def tried_out(
    stage: Stage, trials: Sequence[tuple[str, Loss]], *, name: str = "tenant"
) -> None:
    """Carry trials out, some at a time, each with a mover and a tenant of its own."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, point: str, loss: Loss) -> None:
        async with turns:
            await stage.try_out(f"{name}{number}", POINTS[point], loss)

    async with asyncio.TaskGroup() as group:
        for number, (point, loss) in enumerate(trials):
            group.create_task(one(number, point, loss))


@asynccontextmanager
async def staged(two_servers: TwoServers, **settings: Any) -> AsyncIterator[Stage]:
    """Two engines over the same servers."""
    config = two_servers.config(**(LIMITS | settings))
    async with (
        await Engine.open(config) as near,
        faulty_line(two_servers.install.server.port) as first,
        faulty_line(two_servers.other.port) as second,
    ):
        await near.apply_migration("0001_users", TABLES)
        lines = [first, second]
        servers = tuple(
            dataclasses.replace(server, dsn=line.dsn(server.dsn))
            for server, line in zip(near.servers, lines, strict=True)
        )
        async with await Engine.attach(dataclasses.replace(config, servers=servers)) as far:
            yield Stage(near, far, lines)
