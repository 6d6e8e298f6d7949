"""Clients of tenants that write all the time while moves come and go, and know what is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

from support.engines import ask
from tenancy.data_isolation.core.errors import OutcomeUnknownError, TenancyError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveState
from tenancy.data_isolation.core.types import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.engine import Engine

WAIT_S: Final = 60.0
_MAIN: Final = ServerName("main")
#: Numbers of the writers' rows; those of `filled` are below.
_FIRST: Final = 1_000


async def filled(
    engine: Engine,
    name: str,
    *,
    level: IsolationLevel = IsolationLevel.ROW,
    server: ServerName = _MAIN,
) -> list[list[Any]]:
    """A new tenant with some rows; its rows."""
    await engine.create_tenant(TenantContext(tenant_id=name), level=level, server=server)
    text = "insert into users (id, email) select n, n || '@x' from generate_series(1, 50) n"
    await ask(engine, name, text)
    return await contents(engine, name)


async def contents(engine: Engine, name: str) -> list[list[Any]]:
    """A tenant's rows in the order of their keys."""
    return (await ask(engine, name, "select id, email, plan from users order by id")).rows


class Writer:
    """A client that writes all the time, and knows what it was told is there.

    While nobody is there to finish what was begun, or a server is down, it is told to come again.
    """

    def __init__(self, engine: Engine, tenant: str) -> None:
        self._engine = engine
        self._tenant = tenant
        self.acknowledged: set[int] = set()
        #: Writes that may be there: their answers were lost, or the client stopped meanwhile.
        self.unknown: set[int] = set()
        #: Errors by which it was told to come again.
        self.refusals = 0
        #: The longest time between two acknowledgements.
        self.longest_gap_s = 0.0

    async def run(self) -> None:
        text = "insert into users (id, email) values ($1::integer, $1::integer::text)"
        last_s = time.monotonic()
        for number in range(_FIRST, 1_000_000):
            self.unknown.add(number)
            try:
                await ask(self._engine, self._tenant, text, number)
            except OutcomeUnknownError:
                self.refusals += 1
            except TenancyError as error:
                if not error.retryable:
                    raise
                # A client can come again, and nothing was done.
                self.unknown.discard(number)
                self.refusals += 1
            else:
                self.unknown.discard(number)
                self.acknowledged.add(number)
                now_s = time.monotonic()
                self.longest_gap_s = max(self.longest_gap_s, now_s - last_s)
                last_s = now_s
            await asyncio.sleep(0.02)

    async def more(self, count: int) -> None:
        """Wait until so many more writes are acknowledged."""
        wanted = len(self.acknowledged) + count
        async with asyncio.timeout(WAIT_S):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.01)

    def check(self, rows: list[list[Any]], before: list[list[Any]]) -> None:
        """Nothing is lost of what was acknowledged, and nothing is there that was not written."""
        assert [row for row in rows if row[0] < _FIRST] == before
        there = [row[0] for row in rows if row[0] >= _FIRST]
        assert len(there) == len(set(there))
        assert self.acknowledged <= set(there)
        assert set(there) <= self.acknowledged | self.unknown
        assert all(row[1] == str(row[0]) for row in rows if row[0] >= _FIRST)
        assert self.acknowledged


@asynccontextmanager
async def written_to(engine: Engine, tenant: str) -> AsyncIterator[Writer]:
    """A writer at work within the block."""
    writer = Writer(engine, tenant)
    writing = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        writing.cancel()
        # Whatever else has ended it fails the test.
        with suppress(asyncio.CancelledError):
            await writing


async def settled(engine: Engine, move: Move) -> Move:
    """Confirm the move when it is open, and wait until nothing is left to do for it."""
    move = await engine.moves.wait(move.move_id, [MoveState.OPEN], timeout_s=WAIT_S)
    if move.state is MoveState.OPEN:
        await engine.moves.confirm(move.move_id)
    return await engine.moves.wait(move.move_id, [], timeout_s=WAIT_S)
