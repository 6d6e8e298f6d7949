"""The orchestrator's hold on what moves tenants to other levels: who looks, and how to decide."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.move import Move
from tenancy.data_isolation.core.promotion import Promotion
from tenancy.data_isolation.core.proposal import (
    OrchestrationMode,
    Proposal,
    ProposalId,
    ProposalState,
)
from tenancy.data_isolation.core.rules import RuleBook
from tenancy.data_isolation.core.settings import Settings


class ProposalDesk(Protocol):
    """What is proposed for tenants, for all processes alike. Safe for concurrent use."""

    async def proposal(self, proposal_id: str) -> Proposal:
        """The proposal of that id, or `ProposalNotFoundError`."""
        ...

    async def proposals(
        self,
        *,
        before: ProposalId | None = None,
        tenant_id: TenantId | None = None,
        state: ProposalState | None = None,
        limit: int = 100,
    ) -> list[Proposal]:
        """Proposals, the newest first; those of a tenant, or in one state."""
        ...

    async def orchestrator(self) -> dict[str, Any]:
        """What the process that decides is doing."""
        ...

    async def accept(self, proposal_id: str, *, priority: int = 0) -> Move:
        """Plan the move that is proposed, and start it.

        Raises `ProposalNotFoundError`, `ConflictError` when somebody has answered it before, and
        `MoveRefusedError` with everything that stands against it.
        """
        ...

    async def dismiss(self, proposal_id: str, *, reason: str = "") -> Proposal:
        """Turn a proposal down; nothing is proposed for the tenant again for a while."""
        ...


class Review(Protocol):
    """What looks whether tenants are at the right level."""

    def start(self) -> None:
        """Look again and again."""
        ...

    async def close(self) -> None:
        """Look no more."""
        ...


class Reviewing(Protocol):
    """A way to tenants that looks after their levels in this process: the engine is one."""

    def level_review(
        self, book: RuleBook, mode: OrchestrationMode, *, interval_s: float | None = None
    ) -> Review:
        """What looks, from its `start` on."""
        ...


class Optimization:
    """Looks after tenants' levels in this process, unless a runtime does. For one event loop.

    It begins with its making. `automatic` is what the user of this process wishes, beside what the
    settings say.
    """

    def __init__(
        self,
        gateway: object,
        *,
        book: RuleBook,
        settings: Settings,
        automatic: bool,
        interval_minutes: int,
    ) -> None:
        self.mode = OrchestrationMode(settings.orchestration)
        self._wished = automatic
        self._desk: ProposalDesk | None = getattr(gateway, "proposals", None)
        self._review: Review | None = None
        if hasattr(gateway, "level_review"):
            if automatic:
                self.mode = OrchestrationMode.AUTOMATIC
            looking = cast("Reviewing", gateway)
            self._review = looking.level_review(book, self.mode, interval_s=60 * interval_minutes)
            self._review.start()

    @property
    def desk(self) -> ProposalDesk:
        """The proposals; `ConflictError` when this way to tenants has none."""
        if self._desk is None:
            raise ConflictError("this way to tenants has no proposals; ask the engine or a client")
        return self._desk

    async def close(self) -> None:
        """Look no more."""
        review, self._review = self._review, None
        if review is not None:
            await review.close()

    async def documents(self, more: Iterable[Promotion]) -> list[dict[str, Any]]:
        """What waits for somebody to decide, as metrics show it; `more` is what strategies propose.

        Of a tenant that has a proposal, that alone is told.
        """
        found: list[Proposal] = []
        if self._desk is not None:
            found = await self._desk.proposals(state=ProposalState.PROPOSED)
        known = {item.tenant_id for item in found}
        told = [item.document() for item in found]
        return told + [item.document() for item in more if item.tenant_id not in known]

    def without_effect(self, interval_was_set: bool) -> dict[str, str]:
        """Options of this process that change nothing, and why."""
        why = (
            "the runtime that has the tenants decides by itself, as its TENANCY_ORCHESTRATION "
            f"says ({self.mode})"
        )
        found = {}
        if self._wished and self.mode is not OrchestrationMode.AUTOMATIC:
            found["auto_optimization"] = why
        if interval_was_set and self._review is None:
            found["optimization_interval_minutes"] = why
        return found
