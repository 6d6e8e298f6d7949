"""The moment at which a tenant changes its place.

Nobody works for the tenant within it: the exclusive lock is granted when the last statement has
ended, whoever sent it, and what comes meanwhile waits. Then the last changed rows are carried and
compared, the side that is left is closed, the catalog's placement is replaced by compare-and-set,
and the other side is opened under a higher epoch, in this order. Where both sides and the catalog
are in one database all of that is one transaction.

Who dies in the middle leaves either everything as it was, or a tenant that is closed where the
catalog says it is; `reopen` mends that, and nothing else can be.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import Epoch
from tenancy.data_isolation.core.move import Move, MoveState
from tenancy.data_isolation.core.types import Placement
from tenancy.data_isolation.engine.impatient_connection import given_up_after
from tenancy.data_isolation.engine.move_copy import Carried, MoveCopier
from tenancy.data_isolation.engine.move_proof import (
    MoveProof,
    TableProof,
    advance_sequences,
    positions,
)
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


class Cutover:
    """Lets a tenant leave `copier.source` for `copier.target`."""

    def __init__(
        self,
        copier: MoveCopier,
        proof: MoveProof,
        desk: MoveDesk,
        *,
        clock: Clock,
        with_catalog: bool,
    ) -> None:
        """`with_catalog` says that the catalog is in the database of the target."""
        self._copier = copier
        self._proof = proof
        self._desk = desk
        self._clock = clock
        self._atomic = with_catalog and copier.is_one_database

    async def run(self, left: Placement, after: MoveState) -> CutoverReport:
        """Carry it out; `left` is the catalog's placement now, and `after` the state then.

        Raises `OverloadedError` when statements of the tenant do not end in time, `UnequalError`,
        `SupersededError`, and what the driver raises.
        """
        source, target = self._copier.source, self._copier.target
        epoch = await self._next_epoch(left)
        placement = replace(target.placement, epoch=epoch)
        source.hurried = target.hurried = True
        try:
            lines = (source.connection, target.connection, self._desk.control)
            with given_up_after(source.hold_limit_s, lines):
                return await self._held(placement, left, after)
        finally:
            source.hurried = target.hurried = False

    async def _held(self, placement: Placement, left: Placement, after: MoveState) -> CutoverReport:
        source, target, epoch = self._copier.source, self._copier.target, placement.epoch
        asked_s = self._clock.monotonic_s()
        async with source.held():
            held_s = self._clock.monotonic_s()
            carried = Carried()
            async with self._copier.carrying() as changed:
                await self._copier.carry_changed(changed, carried)
                check_equal(await self._proof.compare_changed(changed))
                await self._advance_sequences()
                if self._atomic:
                    await source.admin()
                    await source.set_fence(epoch, is_open=True)
                    await self._desk.flip(
                        placement, left.epoch, after, connection=source.connection
                    )
                else:
                    await source.admin()
                    # At the new epoch: nothing that comes late, for the one before, opens it again.
                    await source.set_fence(epoch, is_open=False)
            if not self._atomic:
                # The tenant is closed. When there is no answer in time, whoever carries the move on
                # looks at what the catalog says and opens that side.
                async with asyncio.timeout(source.hold_max_s):
                    await self._desk.flip(placement, left.epoch, after)
                    await target.set_fence(epoch, is_open=True)
            open_s = self._clock.monotonic_s()
        return CutoverReport(
            drain_ms=round((held_s - asked_s) * 1_000, 3),
            held_ms=round((open_s - held_s) * 1_000, 3),
            rows=carried.rows,
            epoch=epoch,
            atomic=self._atomic,
        )

    async def _next_epoch(self, left: Placement) -> Epoch:
        """Higher than any that a session could be bound under, on either side."""
        fences = [await side.fence() for side in (self._copier.source, self._copier.target)]
        return Epoch(max(left.epoch, *(fence.epoch for fence in fences if fence is not None)) + 1)

    async def _advance_sequences(self) -> None:
        await advance_sequences(self._copier.target, await positions(self._copier.source))


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
