"""The moment at which a tenant changes its place.

Nobody works for the tenant within it: the exclusive lock is granted when the last statement has
ended, whoever sent it, and what comes meanwhile waits. Then the last changed rows are carried and
compared, the side that is left is closed, the catalog's placement is replaced by compare-and-set,
and the other side is opened under a higher epoch, in this order. What is in one database is one
transaction: all of it, or the flip with the closing or the opening.

Who dies in the middle leaves either everything as it was, or a tenant that is closed where the
catalog says it is; `reopen` mends that, and nothing else can be.
"""

from __future__ import annotations

import asyncio
import functools
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import asyncpg

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import DatabaseName, Epoch, ServerName
from tenancy.data_isolation.core.move import Move, MoveState
from tenancy.data_isolation.core.types import Placement
from tenancy.data_isolation.engine.impatient_connection import given_up_after
from tenancy.data_isolation.engine.move_copy import Carried, Commit, MoveCopier
from tenancy.data_isolation.engine.move_proof import MoveProof, TableProof
from tenancy.data_isolation.engine.move_sequences import MoveSequences
from tenancy.data_isolation.engine.move_side import MoveSide
from tenancy.data_isolation.engine.move_store import MoveDesk


class UnequalError(ConflictError):
    """The sides of a move do not hold the same rows; the tenant stays where it is."""

    slug = "move-unequal"


@dataclass(frozen=True, kw_only=True, slots=True)
class CutoverReport:
    """How the tenant changed its place. Times in milliseconds."""

    #: Until the last statement had ended.
    drain_ms: float
    #: From then until the other side was open; what came meanwhile has waited so long.
    held_ms: float
    rows: int
    epoch: Epoch
    #: Whether it was one transaction.
    atomic: bool

    def document(self) -> dict[str, Any]:
        """As the report has it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """What the catalog has of the tenant after it: where it is, and the state of the move."""

    placement: Placement
    #: The epoch of the placement that is left.
    left: Epoch
    after: MoveState


class Cutover:
    """Lets a tenant leave `copier.source` for `copier.target`."""

    def __init__(
        self,
        copier: MoveCopier,
        proof: MoveProof,
        desk: MoveDesk,
        *,
        clock: Clock,
        control: tuple[ServerName, DatabaseName],
    ) -> None:
        """`control` is where the catalog is."""
        self._copier = copier
        self._proof = proof
        self._sequences = MoveSequences(copier.source, copier.target)
        self._desk = desk
        self._clock = clock
        #: The sides whose transactions can flip the catalog's placement.
        self._with_catalog = [
            side
            for side in (copier.target, copier.source)
            if (side.placement.server, side.placement.database) == control
        ]

    async def run(self, left: Placement, after: MoveState) -> CutoverReport:
        """Carry it out; `left` is the catalog's placement now, and `after` the state then.

        Raises `OverloadedError` when statements of the tenant do not end in time, `UnequalError`,
        `SupersededError`, and what the driver raises.
        """
        source, target = self._copier.source, self._copier.target
        epoch = await self._next_epoch(left)
        await self._sequences.learn()
        turn = Turn(placement=replace(target.placement, epoch=epoch), left=left.epoch, after=after)
        source.hurried = target.hurried = True
        try:
            return await self._held(turn)
        finally:
            source.hurried = target.hurried = False

    async def _held(self, turn: Turn) -> CutoverReport:
        source, target, carried = self._copier.source, self._copier.target, Carried()
        lines = (source.connection, target.connection, self._desk.control)
        # The hold outlives the transactions, which are there before it.
        async with AsyncExitStack() as hold, self._copier.standing_by() as commit:
            await self._rehearse(turn)
            hold.enter_context(given_up_after(source.hold_limit_s, lines))
            asked_s = self._clock.monotonic_s()
            await hold.enter_async_context(source.held())
            held_s = self._clock.monotonic_s()
            await self._carry_rest(carried)
            await self._change_place(turn, commit)
            open_s = self._clock.monotonic_s()
        return CutoverReport(
            drain_ms=round((held_s - asked_s) * 1_000, 3),
            held_ms=round((open_s - held_s) * 1_000, 3),
            rows=carried.rows,
            epoch=turn.placement.epoch,
            atomic=self._copier.is_one_database and bool(self._with_catalog),
        )

    async def _change_place(self, turn: Turn, commit: Commit) -> None:
        """Close the one side, flip the placement and open the other, in as few commits as it takes.

        When there is no answer in time, whoever carries the move on looks at what the catalog says
        and opens that side.
        """
        source, target, epoch = self._copier.source, self._copier.target, turn.placement.epoch
        # At the new epoch: nothing that comes late, for the one before, opens it again.
        close = functools.partial(source.set_fence, epoch, is_open=False)
        async with asyncio.timeout(source.hold_max_s):
            if self._copier.is_one_database and self._with_catalog:
                await source.admin()
                await source.set_fence(epoch, is_open=True)
                await self._flip(turn, source)
                await commit(target)
            elif target in self._with_catalog:
                await source.admin()
                await close()
                await commit(source)
                await target.admin()
                await target.let_in(epoch)
                await self._flip(turn, target)
                await commit(target)
            else:
                if not self._copier.is_one_database:
                    await commit(target)
                await source.admin()
                await close()
                if target.connection.is_closed():
                    # It has died since: the tenant stays where it is.
                    raise asyncpg.ConnectionDoesNotExistError("the target's connection is gone")
                if source in self._with_catalog:
                    await self._flip(turn, source)
                await commit(source)
                if not self._with_catalog:
                    await self._flip(turn, None)
                await target.open_soon(epoch)

    async def _flip(self, turn: Turn, side: MoveSide | None) -> None:
        connection = None if side is None else side.connection
        await self._desk.flip(turn.placement, turn.left, turn.after, connection=connection)

    async def _rehearse(self, turn: Turn) -> None:
        """Do all of it once, beforehand, so that neither server nor driver has to learn anything
        while the tenant is held. Goes on as the admin at the source.
        """
        changed = await self._copier.source.changed()
        await self._copier.carry_changed(changed, Carried())
        # They may differ: the tenant is at work.
        await self._proof.compare_changed(changed)
        await self._copier.empty_stages()
        for side in (self._copier.source, self._copier.target):
            await side.admin()
            await side.rehearse()
        flipping = next(iter(self._with_catalog), None)
        await self._desk.rehearse_flip(
            turn.placement, turn.after, None if flipping is None else flipping.connection
        )
        if not self._copier.is_one_database:
            await self._copier.target.owner()

    async def _next_epoch(self, left: Placement) -> Epoch:
        """Higher than any that a session could be bound under, on either side."""
        fences = [await side.fence() for side in (self._copier.source, self._copier.target)]
        return Epoch(max(left.epoch, *(fence.epoch for fence in fences if fence is not None)) + 1)

    async def _carry_rest(self, carried: Carried) -> None:
        """Carry and compare what has changed until now."""
        changed = await self._copier.source.changed()
        await self._copier.carry_changed(changed, carried)
        check_equal(await self._proof.compare_changed(changed))
        await self._sequences.advance()


def check_equal(proofs: list[TableProof]) -> None:
    """Raise `UnequalError` when something that was compared is not the same."""
    unequal = [proof for proof in proofs if not proof.is_equal]
    if unequal:
        told = "; ".join(
            f"{proof.table}: {proof.source.rows} rows here and {proof.target.rows} there"
            for proof in unequal
        )
        raise UnequalError(f"source and target are not the same: {told}")


async def reopen(side: MoveSide, desk: MoveDesk, move: Move, placement: Placement) -> None:
    """Open the side at which the catalog has the tenant, after a cutover that was cut off.

    Under a higher epoch, which the catalog has first: whoever was at work under the old one can
    neither flip the placement nor open or close anything any more.
    """
    fence = await side.fence()
    if fence is not None and fence.is_open and fence.epoch == placement.epoch:
        return
    if fence is not None and fence.epoch < placement.epoch:
        # The catalog was flipped, and the other side not opened yet.
        await side.set_fence(placement.epoch, is_open=True)
        return
    epoch = Epoch(max(placement.epoch, 0 if fence is None else fence.epoch) + 1)
    await desk.raise_epoch(move.tenant_no, epoch, placement.epoch)
    await side.set_fence(epoch, is_open=True)
