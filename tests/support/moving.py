"""What happens to a tenant that is moved while it is in use: nemeses for trials (`history`)."""

from __future__ import annotations

import asyncio
import random

from support.history.nemesis import Nemesis
from support.history.pace import pause
from support.mortal_mover import Fate, mover
from support.two_servers import SECOND
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine

#: How long a move may take to be open, or to be over.
WAIT_S = 120.0


def moves_of(engine: Engine, name: str, count: int, seed: int, done: list[Move]) -> Nemesis:
    """A nemesis that moves a tenant to other places at random, and undoes some of it."""
    chance = random.Random(seed)
    places = [(level, server) for level in IsolationLevel for server in ("main", SECOND)]

    async def run(_: asyncio.Event) -> None:
        while len(done) < count:
            here = (await engine.tenant(name)).placement
            level, server = chance.choice(
                [place for place in places if place != (here.level, here.server)]
            )
            target = MoveTarget(level=level, server=ServerName(server))
            move = await engine.moves.start(name, target)
            move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
            assert move.state is MoveState.OPEN, move
            await pause(asyncio.Event(), chance.random() * 0.2)
            end = engine.moves.roll_back if chance.random() < 0.3 else engine.moves.confirm
            await end(move.move_id)
            done.append(await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S))
            assert done[-1].is_settled

    return run


def dying_movers(engine: Engine, seed: int) -> Nemesis:
    """A nemesis that carries moves out and dies at some step, again and again."""

    async def run(ended: asyncio.Event) -> None:
        chance = random.Random(seed)
        steps = ["before execute COMMIT", "after execute COMMIT", "before fetchval"]
        while not ended.is_set():
            fate = Fate(chance.choice(steps), nth=chance.randrange(1, 30))
            async with mover(engine, fate):
                waiting = [asyncio.ensure_future(event.wait()) for event in (fate.happened, ended)]
                await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    task.cancel()

    return run
