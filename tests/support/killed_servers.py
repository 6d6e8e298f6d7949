"""PostgreSQL servers that are killed in the middle of moves, and started again, under a history."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from support.history.statements import TABLES
from support.history.trial import Trial, run_trial
from support.history.workload import Plan
from support.install import MASTER_KEY_TEXT
from support.mortal_mover import Fate, mover
from support.pace import FLAT_OUT
from support.postgres import KillableServer, killable
from support.two_servers import SECOND
from tenancy.data_isolation.core.errors import OutcomeUnknownError, StatementError, TenancyError
from tenancy.data_isolation.core.identifiers import ServerName, TenantId
from tenancy.data_isolation.core.move import Move, MoveState, MoveTarget
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.core.types import IsolationLevel, Operation, QueryResult, TenantContext
from tenancy.data_isolation.engine.engine import Engine

MAIN = "main"
WAIT_S = 60.0
HELD = "execute select set_config('lock_timeout', $2"
#: When a server is killed: (step, what comes before it, which of them).
POINTS: dict[str, tuple[str, str, int]] = {
    "a chunk is copied": ("after copy in", "", 1),
    "the copies are compared": ("before asks with answer as (select 0 as place", "", 1),
    "the source is closed and the placement flipped": ("after execute COMMIT", HELD, 2),
    "the placement is about to be flipped": ("after fetchval with mine", HELD, 1),
    "the tenant is let go": ("after execute select pg_advisory_unlock", HELD, 1),
    "the source is about to go": ('before execute drop schema if exists "m_', "", 1),
}
QUICK: dict[str, Any] = {
    "move_poll_s": 0.1,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "move_chunk_rows": 500,
    **FLAT_OUT,
    "move_owner_timeout_s": 2.0,
    "move_retry_s": 0.2,
    "move_failures_max": 100,
}


class Told:
    """An executor that notes errors after which a client has nothing to do but to give up."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.final: list[TenancyError] = []
        self.passing = 0

    async def execute(self, tenant_id: TenantId | str, operation: Operation) -> QueryResult:
        try:
            return await self._engine.execute(tenant_id, operation)
        except TenancyError as error:
            self._note(error)
            raise

    async def execute_batch(
        self, tenant_id: TenantId | str, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        try:
            return await self._engine.execute_batch(tenant_id, operations, atomic=atomic)
        except TenancyError as error:
            self._note(error)
            raise

    def _note(self, error: TenancyError) -> None:
        if error.retryable or isinstance(error, OutcomeUnknownError):
            self.passing += 1
        elif not isinstance(error, StatementError):
            self.final.append(error)


@asynccontextmanager
async def opened_over(
    first: KillableServer, second: KillableServer, home: Path
) -> AsyncIterator[Engine]:
    settings = Settings(home=home, master_key=MASTER_KEY_TEXT)
    config = EngineConfig(
        servers=(
            ServerConfig(name=MAIN, dsn=first.server.admin_dsn),
            ServerConfig(name=SECOND, dsn=second.server.admin_dsn),
        ),
        settings=dataclasses.replace(settings, **QUICK),
    )
    async with await Engine.open(config) as engine:
        await engine.apply_migration("0001_history", TABLES)
        yield engine


async def killed_trial(postgres_bin: Path, home: Path, kills: Sequence[tuple[str, str]]) -> Trial:
    """Clients of a tenant that moves to and fro while, in turn, the server of a side is killed.

    `kills` are points and sides, `source` or `target`, each of one move. Of two that follow each
    other one goes away from the server that has the catalog.
    """
    with ExitStack() as stack:
        servers = {name: stack.enter_context(killable(postgres_bin)) for name in (MAIN, SECOND)}
        async with opened_over(servers[MAIN], servers[SECOND], home) as engine:
            context = TenantContext(tenant_id="acme")
            schema, main = IsolationLevel.SCHEMA, ServerName(MAIN)
            await engine.create_tenant(context, level=schema, server=main)
            told = Told(engine)

            async def nemesis(_: asyncio.Event) -> None:
                for point, side in kills:
                    move = await moved_and_killed(engine, servers, point, side)
                    assert move.state is MoveState.CONFIRMED, (point, side, move)

            trial = await run_trial(
                told,
                ["acme"],
                seconds=1,
                nemesis=nemesis,
                nemesis_s=WAIT_S * len(kills),
                plan=Plan(opening_amount=1_000_000, rate_per_s=60),
            )
    assert told.final == []
    # The control: clients did meet a server that was gone.
    assert told.passing
    return trial


async def moved_and_killed(
    engine: Engine, servers: dict[str, KillableServer], point: str, side: str
) -> Move:
    """Move the tenant to the other server, kill that of a side at the point, and let it go on."""
    here = (await engine.tenant("acme")).placement
    level = IsolationLevel.ROW if here.level is not IsolationLevel.ROW else IsolationLevel.SCHEMA
    there = SECOND if here.server == MAIN else MAIN
    victim = servers[here.server if side == "source" else there]
    step, beyond, nth = POINTS[point]
    fate = Fate(step, beyond=beyond, nth=nth, act=lambda _: victim.kill())
    move = await engine.moves.start("acme", MoveTarget(level=level, server=ServerName(there)))
    async with mover(engine, fate, only=move.move_id):
        confirming = asyncio.create_task(confirmed(engine, move))
        async with asyncio.timeout(WAIT_S):
            await fate.happened.wait()
        await asyncio.to_thread(victim.start)
        return await confirming


async def confirmed(engine: Engine, move: Move) -> Move:
    """Confirm the move when it is open, and wait until nothing is left to do for it."""
    asked = False
    async with asyncio.timeout(WAIT_S):
        while True:
            # The catalog is on a server that is killed.
            try:
                move = await engine.moves.move(move.move_id)
                if move.is_settled:
                    return move
                if move.state is MoveState.OPEN and not asked:
                    await engine.moves.confirm(move.move_id)
                    asked = True
            except (OutcomeUnknownError, TenancyError) as error:
                if not error.retryable and not isinstance(error, OutcomeUnknownError):
                    raise
            await asyncio.sleep(0.02)
