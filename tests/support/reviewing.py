"""A fleet whose time is cut into windows by hand, and what looks after its levels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from support.engines import ask, opened
from support.install import Install
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState
from tenancy.data_isolation.core.proposal import OrchestrationMode, Proposal, ProposalState
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.level_review import LevelReview
from tenancy.data_isolation.engine.loads import Loads, window_of
from tenancy.data_isolation.engine.proposals import Proposals
from tenancy.data_isolation.strategies.base import rule_book

WINDOW_S = 60.0
#: Operations in a window that lead up, and what is so few that it leads down.
BUSY, QUIET = 30, 2
#: So that a test does not wait for the next look of a mover, and needs few windows.
QUICK: dict[str, Any] = {
    "move_poll_s": 0.05,
    "move_follow_s": 0.05,
    "move_warm_ms": 10,
    "placement_refresh_ms": 50,
    "load_window_s": WINDOW_S,
    "schema_promote_operations_per_s": BUSY / WINDOW_S,
    "schema_demote_operations_per_s": BUSY / WINDOW_S / 2,
    "promote_windows": 2,
    "demote_windows": 3,
    "orchestrated_latency_operations_min": 5,
    "orchestrated_latency_windows": 2,
}
WAIT_S = 30.0


class HandClock:
    """A clock that goes when it is told to. It begins an hour before the present."""

    def __init__(self) -> None:
        self._now = window_of(datetime.now(UTC) - timedelta(hours=1), WINDOW_S)

    def now(self) -> datetime:
        return self._now

    def monotonic_s(self) -> float:
        return self._now.timestamp()

    def pass_s(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    def catch_up(self, seconds: float = 0.0) -> None:
        """Be in the present, or so much later, at the beginning of a window."""
        self._now = window_of(datetime.now(UTC) + timedelta(seconds=seconds + WINDOW_S), WINDOW_S)


@dataclass
class Fleet:
    """An engine that counts, by the test's clock, and reviews of it."""

    engine: Engine
    clock: HandClock
    reviews: list[LevelReview] = field(default_factory=list)

    def review(self, mode: OrchestrationMode, engine: Engine | None = None) -> LevelReview:
        """What looks, in this process or, with an engine of its own, as if in another one."""
        engine = engine or self.engine

        async def measured(tenant_id: Any, rows_max: int) -> Any:
            return await engine.tenant_size(tenant_id, rows_max=rows_max)

        made = LevelReview(
            settings=engine.settings,
            catalog=engine.catalog,
            moves=engine.moves,
            store=engine.proposals.store,
            book=rule_book(None),
            measure=measured,
            mode=mode,
            clock=self.clock,
        )
        self.reviews.append(made)
        return made

    def proposals(self, engine: Engine | None = None) -> Proposals:
        """Proposals as a process sees them whose time is the test's."""
        engine = engine or self.engine
        return Proposals(
            settings=engine.settings, catalog=engine.catalog, moves=engine.moves, clock=self.clock
        )

    async def window(self, look: LevelReview | None = None, **operations: int) -> None:
        """One window in which tenants do so much, told of; then a look at it."""
        for tenant, number in operations.items():
            await asyncio.gather(
                *(ask(self.engine, tenant, "select count(*) from users") for _ in range(number))
            )
        self.clock.pass_s(WINDOW_S)
        await self.engine.loads.tell()
        if look is not None:
            # The processes have half a window to tell of it.
            self.clock.pass_s(WINDOW_S / 2)
            assert await look.look()
            self.clock.pass_s(WINDOW_S / 2)

    async def windows(self, count: int, look: LevelReview, **operations: int) -> None:
        for _ in range(count):
            await self.window(look, **operations)

    async def proposed(self, tenant: str | None = None) -> list[Proposal]:
        """What waits for somebody to decide."""
        found = await self.engine.proposals.proposals(state=ProposalState.PROPOSED)
        return [item for item in found if tenant in (None, item.tenant_id)]

    async def level(self, tenant: str) -> IsolationLevel:
        placement = (await self.engine.tenant(tenant)).placement
        assert placement is not None
        return placement.level

    async def is_open(self, move_id: str | None) -> Move:
        assert move_id is not None
        move = await self.engine.moves.wait(move_id, [MoveState.OPEN], timeout_s=WAIT_S)
        assert move.state is MoveState.OPEN, move
        return move

    async def settled(self, move_id: str | None) -> Move:
        assert move_id is not None
        move = await self.engine.moves.wait(move_id, [], timeout_s=WAIT_S)
        assert move.is_settled, move
        return move


@asynccontextmanager
async def over(engine: Engine) -> AsyncIterator[Fleet]:
    """An engine whose moves are carried out, and whose windows are cut by hand."""
    engine.moves.work()
    clock = HandClock()
    engine.loads = Loads(
        settings=engine.settings,
        catalog=engine.catalog,
        servers=(ServerName("main"),),
        clock=clock,
    )
    engine.operations.loads = engine.loads
    made = Fleet(engine, clock)
    try:
        yield made
    finally:
        for review in made.reviews:
            await review.close()


@asynccontextmanager
async def fleet(install: Install, **settings: Any) -> AsyncIterator[Fleet]:
    """A fleet over an installation that has tables; its moves are carried out."""
    async with (
        opened(install, tables=False, **(QUICK | settings)) as engine,
        over(engine) as made,
    ):
        yield made


async def tell_load(
    connection: asyncpg.Connection, tenant_no: int, began_at: datetime, operations: int, ms: float
) -> None:
    """Note a window of a tenant as if a process had told of it."""
    await connection.execute(
        "insert into catalog.load values ($1, $2, $3, $4) on conflict (began_at, tenant_no) "
        "do update set operations = excluded.operations, busy_us = excluded.busy_us",
        began_at,
        tenant_no,
        operations,
        round(operations * ms * 1_000),
    )
