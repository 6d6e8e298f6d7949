"""Proposals to move tenants: listing them, accepting and dismissing them. Any process can."""

from __future__ import annotations

from typing import Any

import asyncpg

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import MoveRefusedError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.move import Move, MoveId
from tenancy.data_isolation.core.proposal import (
    Decider,
    Proposal,
    ProposalId,
    ProposalState,
    act,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.moves import Moves
from tenancy.data_isolation.engine.proposal_store import ProposalStore, claim


class Proposals:
    """Proposals of one installation. Safe from any task of the engine's event loop."""

    def __init__(
        self, *, settings: Settings, catalog: Catalog, moves: Moves, clock: Clock | None = None
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._moves = moves
        self._clock = clock or SystemClock()
        self.store = ProposalStore(catalog)

    async def proposal(self, proposal_id: str) -> Proposal:
        """The proposal of that id, or `ProposalNotFoundError`."""
        return await self.store.proposal(proposal_id)

    async def proposals(
        self,
        *,
        before: ProposalId | None = None,
        tenant_id: TenantId | None = None,
        state: ProposalState | None = None,
        limit: int = 100,
    ) -> list[Proposal]:
        """Proposals, the newest first; those of a tenant, or in one state."""
        number = None
        if tenant_id is not None:
            number = (await self._catalog.tenant(tenant_id)).tenant_no
        return await self.store.proposals(before=before, tenant_no=number, state=state, limit=limit)

    async def orchestrator(self) -> dict[str, Any]:
        """What the process that decides is doing.

        Whether one is `deciding`, in which `mode`, up to when it has looked at what was counted
        (`looked_upto`), and what it told of that look.
        """
        found = await self.store.orchestrator()
        return found | {"configured": self._settings.orchestration}

    async def accept(self, proposal_id: str, *, priority: int = 0) -> Move:
        """Plan the move that is proposed, and start it.

        Raises `ProposalNotFoundError`, `ConflictError` when somebody has answered it before, and
        what starting a move raises. A plan that is refused is noted, and the proposal stays.
        """
        proposal = await self.proposal(proposal_id)
        proposal.check_open()
        now = self._clock.now()
        accepted = act(now, "accepted", "; ".join(proposal.reasons), Decider.OPERATOR)

        async def claimed(control: asyncpg.Connection, move_id: MoveId) -> None:
            await claim(control, proposal, move_id, Decider.OPERATOR, accepted, at=now)

        try:
            return await self._moves.start(
                proposal.tenant_id, proposal.target, priority=priority, claim=claimed
            )
        except MoveRefusedError as error:
            refused = act(now, "refused", error.detail, Decider.OPERATOR)
            await self.store.answer(proposal, ProposalState.PROPOSED, refused, at=now)
            raise

    async def dismiss(self, proposal_id: str, *, reason: str = "") -> Proposal:
        """Turn a proposal down; nothing is proposed for the tenant again for a while.

        Raises `ProposalNotFoundError`, and `ConflictError` when it was answered before.
        """
        proposal = await self.proposal(proposal_id)
        proposal.check_open()
        now = self._clock.now()
        told = act(now, "dismissed", reason or "no reason was given", Decider.OPERATOR)
        return await self.store.answer(proposal, ProposalState.DISMISSED, told, at=now)
