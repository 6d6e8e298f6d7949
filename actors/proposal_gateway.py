"""Proposals to move tenants, through tenant actors: the same words as `Engine.proposals`.

Any tenant actor can be asked, because a proposal is a durable row of the catalog; the actor that
carries moves out (`move_actor.py`) makes proposals, and moves what is accepted.
"""

from __future__ import annotations

from typing import Any

from tenancy.data_isolation.actors.move_gateway import Ask
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.move import Move
from tenancy.data_isolation.core.proposal import (
    Proposal,
    ProposalId,
    ProposalState,
)


class ActorProposals:
    """Proposals of an installation. Used from one event loop, by any number of its tasks."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    async def proposal(self, proposal_id: str) -> Proposal:
        """The proposal of that id, or `ProposalNotFoundError`."""
        found: Proposal = await self._ask(None, "proposals", "proposal", proposal_id)
        return found

    async def proposals(
        self,
        *,
        before: ProposalId | None = None,
        tenant_id: TenantId | None = None,
        state: ProposalState | None = None,
        limit: int = 100,
    ) -> list[Proposal]:
        """Proposals, the newest first; those of a tenant, or in one state."""
        found: list[Proposal] = await self._ask(
            tenant_id,
            "proposals",
            "proposals",
            before=before,
            tenant_id=tenant_id,
            state=state,
            limit=limit,
        )
        return found

    async def orchestrator(self) -> dict[str, Any]:
        """What the process that decides is doing."""
        found: dict[str, Any] = await self._ask(None, "proposals", "orchestrator")
        return found

    async def accept(self, proposal_id: str, *, priority: int = 0) -> Move:
        """Plan the move that is proposed, and start it.

        Raises `ProposalNotFoundError`, `ConflictError` when somebody has answered it before, and
        what starting a move raises. When an actor is lost on the way and the move had been
        recorded, that is what the error says, with the move's id.
        """
        move: Move = await self._ask(None, "proposals", "accept", proposal_id, priority=priority)
        return move

    async def dismiss(self, proposal_id: str, *, reason: str = "") -> Proposal:
        """Turn a proposal down; nothing is proposed for the tenant again for a while."""
        found: Proposal = await self._ask(None, "proposals", "dismiss", proposal_id, reason=reason)
        return found
