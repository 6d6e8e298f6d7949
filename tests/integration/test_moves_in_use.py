"""Tenants that are moved while they are in use: no client sees anything but waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from support.history.nemesis import SessionKiller, alongside
from support.history.pace import pause
from support.history.statements import TABLES
from support.history.trial import run_trial
from support.history.workload import Plan
from support.mortal_mover import Fate, mover
from support.two_servers import SECOND, TwoServers

from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

WAIT_S = 60.0
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "move_chunk_rows": 500,
}
#: So much that no transfer is refused for want of money: then every error is one too many.
RICH = Plan(opening_amount=1_000_000, rate_per_s=200)


@pytest.fixture
async def pair(two_servers: TwoServers) -> AsyncIterator[Engine]:
    async with two_servers.opened(**QUICK, move_owner_timeout_s=2.0) as made:
        await made.apply_migration("0001_history", TABLES)
        for name in ("acme", "other"):
            context = TenantContext(tenant_id=name)
            level = IsolationLevel.ROW
            await made.create_tenant(context, level=level, server=ServerName("main"))
        yield made


def moves_of(
    engine: Engine, name: str, count: int, seed: int, done: list[Move]
) -> Callable[[asyncio.Event], Awaitable[None]]:
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


@pytest.mark.timeout(300)
async def test_clients_of_a_tenant_that_moves_see_no_error_and_lose_nothing(pair, two_servers):
    done: list[Move] = []
    async with two_servers.opened(**QUICK) as second:
        trial = await run_trial(
            pair,
            ["acme", "other"],
            others=[second],
            seconds=3,
            nemesis=moves_of(pair, "acme", 12, 1, done),
            nemesis_s=240,
            plan=RICH,
        )
    assert trial.anomalies == [], str(trial)
    for name, report in trial.reports.items():
        assert report.figures.errors == {}, (name, str(trial))
    assert len(done) == 12


@pytest.mark.timeout(300)
async def test_nothing_is_lost_while_movers_and_sessions_die(pair, install):
    done: list[Move] = []

    async def login() -> str:
        return (await pair.tenant("acme")).placement.role

    async def dying_movers(ended: asyncio.Event) -> None:
        chance = random.Random(2)
        steps = ["before execute COMMIT", "after execute COMMIT", "before fetchval"]
        while not ended.is_set():
            fate = Fate(chance.choice(steps), nth=chance.randrange(1, 30))
            async with mover(pair, fate):
                waiting = [asyncio.ensure_future(event.wait()) for event in (fate.happened, ended)]
                await asyncio.wait(waiting, timeout=2, return_when=asyncio.FIRST_COMPLETED)
                for task in waiting:
                    task.cancel()

    async with install.connected() as admin:
        killer = SessionKiller(admin, login, every_s=0.3)
        trial = await run_trial(
            pair,
            ["acme"],
            seconds=3,
            nemesis=alongside(moves_of(pair, "acme", 8, 3, done), killer, dying_movers),
            nemesis_s=240,
            plan=RICH,
        )
    assert trial.anomalies == [], str(trial)
    assert len(done) == 8
