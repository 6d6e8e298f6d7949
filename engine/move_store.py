"""The durable rows of moves, in the catalog.

Rules this module keeps:

* Every change of a move that is under way names the term of whoever carries it out, and the state
  it starts from: of two that believe they carry it out, one learns that it does not.
* A tenant has one move at a time, until nothing is left of it.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg

from tenancy.data_isolation.core.errors import (
    ConflictError,
    MoveNotFoundError,
    OverloadedError,
    PlacementChangedError,
)
from tenancy.data_isolation.core.identifiers import (
    Epoch,
    TenantId,
    TenantNo,
)
from tenancy.data_isolation.core.move import (
    ASKABLE,
    Move,
    MoveId,
    MoveProgress,
    MoveState,
    MoveWish,
    Term,
)
from tenancy.data_isolation.core.move_estimate import SeenMove
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import IsolationLevel, Placement, Tenant
from tenancy.data_isolation.engine.catalog import Catalog, tenant_of_row
from tenancy.data_isolation.engine.catalog_records import placement_of_text, placement_text
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("move.sql")
_CATALOG_SQL = SqlFile("catalog.sql")


class SupersededError(Exception):
    """Somebody else carries the move out by now. Never crosses the public edge."""


def new_move_id() -> MoveId:
    """A fresh id, which is also the name of the move's schema in the databases it touches."""
    return MoveId(f"m_{secrets.token_hex(10)}")


class MoveStore:
    """Reads moves, and asks things of them. Safe as `Catalog` is, whose connections it uses."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self._catalog = catalog
        self._unsettled_max = settings.moves_unsettled_max
        self._seen_max = settings.move_estimate_moves

    async def move(self, move_id: str) -> Move:
        """The move of that id, or `MoveNotFoundError`."""
        row = await self._catalog.pool.row(_SQL.statement("one"), move_id)
        if row is None:
            raise MoveNotFoundError(f"there is no move {move_id[:80]}")
        return _move(row)

    async def moves(
        self,
        *,
        before: MoveId | None = None,
        tenant_no: TenantNo | None = None,
        unsettled: bool = False,
        limit: int = 100,
    ) -> list[Move]:
        """Moves, the newest first."""
        rows = await self._catalog.pool.rows(
            _SQL.statement("many"), before, tenant_no, unsettled, self._catalog.page_length(limit)
        )
        return [_move(row) for row in rows]

    async def unsettled(self) -> list[Move]:
        """What there is to do, the most urgent first."""
        rows = await self._catalog.pool.rows(_SQL.statement("unsettled"), self._unsettled_max)
        return [_move(row) for row in rows]

    async def of_tenant(self, tenant_no: TenantNo) -> Move | None:
        """The tenant's move of which something is left to do."""
        row = await self._catalog.pool.row(_SQL.statement("unsettled_of_tenant"), tenant_no)
        return None if row is None else _move(row)

    async def seen(
        self, *, one_server: bool, rows_min: int = 0, level: IsolationLevel | None = None
    ) -> list[SeenMove]:
        """What the last moves of a kind have shown, the newest first."""
        rows = await self._catalog.pool.rows(
            _SQL.statement("seen"), one_server, rows_min, level, self._seen_max
        )
        return [SeenMove(**dict(row)) for row in rows]

    async def ask(self, move_id: str, wish: MoveWish) -> Move:
        """Ask whoever carries the move out for something.

        Raises `MoveNotFoundError`, and `ConflictError` when it cannot be granted as things stand.
        Asking again for the same changes nothing.
        """
        move = await self.move(move_id)
        if move.wish is wish:
            return move
        move.check_wish(wish)
        done = await self._catalog.pool.write(
            _SQL.statement("set_wish"), move_id, wish, sorted(ASKABLE[wish])
        )
        if done is None:
            now = await self.move(move_id)
            if now.wish is wish:
                return now
            now.check_wish(wish)
            raise ConflictError(f"move {move_id} is already about to {now.wish or 'roll back'}")
        return await self.move(move_id)

    async def abandon(self, move: Move) -> Move:
        """Wait no more for the server of the other side. Raises `ConflictError`."""
        text = _SQL.statement("set_abandoned")
        server = move.other_side.server
        if not await self._catalog.pool.write(text, move.move_id, server, move.state):
            raise ConflictError(f"move {move.move_id} has gone on meanwhile; look at it again")
        return await self.move(move.move_id)

    async def pause(self, move_id: str, *, paused: bool) -> Move:
        """Let a move stand still, or go on. Raises `MoveNotFoundError` and `ConflictError`."""
        if not await self._catalog.pool.write(_SQL.statement("set_paused"), move_id, paused):
            (await self.move(move_id)).check_pause()
            raise ConflictError(f"move {move_id} has gone on meanwhile; look at it again")
        return await self.move(move_id)


async def insert_move(
    control: asyncpg.Connection,
    move_id: MoveId,
    tenant: Tenant,
    target: Placement,
    priority: int,
    *,
    planned: Mapping[str, Any],
    unsettled_max: int,
) -> None:
    """Record a move, in a transaction of the admin's `control` connection.

    `planned` is what its plan has said, for its report.

    Raises `OverloadedError` when there are `unsettled_max` moves already, `PlacementChangedError`
    when the tenant is not active where it was, and `ConflictError` when it is being moved, or a
    migration is under way.
    """
    source = tenant.placement
    assert source is not None  # noqa: S101 - only tenants with a place are planned for.
    if not await control.fetchval(_SQL.statement("run_idle")):
        raise ConflictError("a migration is under way; move the tenant when it is over")
    if await control.fetchval(_SQL.statement("unsettled_count")) >= unsettled_max:
        raise OverloadedError(
            f"there are {unsettled_max} moves that wait or are open (TENANCY_MOVES_UNSETTLED_MAX); "
            "confirm or cancel some first"
        )
    try:
        done = await control.fetchval(
            _SQL.statement("insert"),
            move_id,
            tenant.tenant_no,
            placement_text(source),
            placement_text(target),
            priority,
            json.dumps({"plan": dict(planned)}),
        )
    except asyncpg.UniqueViolationError:
        raise ConflictError(
            f"tenant {tenant.tenant_id} has a move already; see to that one first: cancel it, or "
            "when it is open confirm it or roll it back, and wait until it is cleaned up"
        ) from None
    if done is None:
        raise PlacementChangedError(
            f"tenant {tenant.tenant_id} is not active at the place the plan is made for; try again"
        )


class MoveDesk:
    """What whoever carries a move out records of it, over a connection of its own.

    Every method raises `SupersededError` when the term is not the newest any more.
    """

    def __init__(self, control: asyncpg.Connection, move_id: MoveId) -> None:
        self.control = control
        #: The connection takes one statement at a time, and is also kept from being silent.
        self._turn = asyncio.Lock()
        self._move_id = move_id
        self.term = Term(0)

    async def begin(self) -> Move:
        """Take the next term; the move as it stands."""
        self.term = Term(await self.ask("next_term"))
        return await self.read()

    async def ask(self, name: str, *arguments: Any) -> Any:
        """The value of a statement about the move."""
        async with self._turn:
            return await self.control.fetchval(_SQL.statement(name), self._move_id, *arguments)

    async def keep(self, every_s: float) -> None:
        """Show the server that we are alive, until this is cancelled."""
        while True:
            await asyncio.sleep(every_s)
            async with self._turn:
                await self.control.execute("select")

    async def read(self) -> Move:
        """The move as it stands."""
        async with self._turn:
            row = await self.control.fetchrow(_SQL.statement("one"), self._move_id)
        if row is None:
            raise SupersededError
        move = _move(row)
        if move.term != self.term:
            raise SupersededError
        return move

    async def tenant(self, tenant_no: TenantNo) -> Tenant:
        """The tenant as the catalog has it now.

        Over this connection, which is known to work, because a tenant may be closed meanwhile.
        """
        async with self._turn:
            text = _CATALOG_SQL.statement("tenant_by_number")
            row = await self.control.fetchrow(text, tenant_no)
        if row is None:
            raise SupersededError
        return tenant_of_row(row)

    async def advance(
        self,
        move: Move,
        state: MoveState,
        *,
        error: str | None = None,
        reversing: bool = False,
        granted: bool = False,
    ) -> Move:
        """Record the next state; `granted` = the wish is fulfilled with it."""
        move.check_next(state)
        await self._change(
            "advance", move.state, state, error and error[:2_000], reversing, granted
        )
        return await self.read()

    async def flip(
        self,
        placement: Placement,
        left: Epoch,
        state: MoveState,
        *,
        connection: asyncpg.Connection | None = None,
    ) -> None:
        """Let the tenant be at `placement`, whose placement had the epoch `left` until now.

        `connection` is another one to the same database, in whose transaction it happens.
        """
        values = (*_columns(placement), left, state)
        if connection is None:
            await self._change("flip", *values)
            return
        statement = _SQL.statement("flip")
        if not await connection.fetchval(statement, self._move_id, self.term, *values):
            raise SupersededError

    async def rehearse_flip(
        self, placement: Placement, state: MoveState, connection: asyncpg.Connection | None
    ) -> None:
        """Have the server and the driver know `flip`; nothing changes."""
        values = (Term(-1), *_columns(placement), placement.epoch, state)
        if connection is None:
            await self.ask("flip", *values)
        else:
            await connection.fetchval(_SQL.statement("flip"), self._move_id, *values)

    async def raise_epoch(self, tenant_no: TenantNo, epoch: Epoch, before: Epoch) -> None:
        """Let the tenant stay where it is, under a higher epoch."""
        await self._change("raise_epoch", tenant_no, epoch, before)

    async def note_progress(self, progress: MoveProgress) -> None:
        """Record how far it has come."""
        await self._change("note_progress", json.dumps(progress.document()))

    async def note_error(self, error: str) -> None:
        """Record what stood in the way."""
        await self._change("note_error", error[:2_000])

    async def note_report(self, report: Mapping[str, Any]) -> None:
        """Add to the report."""
        await self._change("note_report", json.dumps(report))

    async def note_cleaned(self) -> None:
        """Record that nothing is left of the side at which the tenant does not work."""
        await self._change("note_cleaned")

    async def _change(self, name: str, *arguments: Any) -> None:
        if not await self.ask(name, self.term, *arguments):
            raise SupersededError


def _columns(placement: Placement) -> tuple[object, ...]:
    """A placement as `flip` takes it."""
    return (
        placement.level,
        placement.server,
        placement.database,
        placement.schema,
        placement.role,
        placement.epoch,
        placement.sensitive_schema,
    )


def _move(row: asyncpg.Record) -> Move:
    known: Sequence[str] = MoveProgress.__slots__
    progress = {name: value for name, value in json.loads(row["progress"]).items() if name in known}
    return Move(
        move_id=MoveId(row["move_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        tenant_no=TenantNo(row["tenant_no"]),
        state=MoveState(row["state"]),
        source=placement_of_text(row["source"]),
        target=placement_of_text(row["target"]),
        term=Term(row["term"]),
        priority=row["priority"],
        paused=row["paused"],
        wish=None if row["wish"] is None else MoveWish(row["wish"]),
        reversing=row["reversing"],
        cleaned=row["cleaned"],
        progress=MoveProgress(**progress),
        report=json.loads(row["report"]),
        error=row["error"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
        opened_at=row["opened_at"],
    )
