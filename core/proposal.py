"""A proposal to move a tenant: what is proposed, why, and what became of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NewType

from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.core.identifiers import TenantId, TenantNo
from tenancy.data_isolation.core.level_policy import Action
from tenancy.data_isolation.core.move import MoveId, MoveTarget
from tenancy.data_isolation.core.rules import STRATEGY_OF_LEVEL
from tenancy.data_isolation.core.types import IsolationLevel

#: A proposal, as the outside names it: `p_` and 20 hexadecimal digits.
ProposalId = NewType("ProposalId", str)

PROPOSAL_ID_PATTERN: Final = "p_[0-9a-f]{20}"
#: Of a move that the orchestrator has started: whatever a person wants goes first.
PROPOSED_PRIORITY: Final = -50


class OrchestrationMode(StrEnum):
    """What the orchestrator does about tenants that are at the wrong place."""

    OFF = "off"
    #: It says so, and somebody has to accept.
    PROPOSE = "propose"
    #: It moves them.
    AUTOMATIC = "automatic"


class ProposalState(StrEnum):
    """What became of a proposal."""

    PROPOSED = "proposed"
    #: There is a move for it.
    ACCEPTED = "accepted"
    #: Somebody did not want it.
    DISMISSED = "dismissed"
    #: What spoke for it is not true any more.
    WITHDRAWN = "withdrawn"
    #: The plan of the move was refused.
    REFUSED = "refused"


class Decider(StrEnum):
    """Who has accepted a proposal."""

    OPERATOR = "operator"
    ORCHESTRATOR = "orchestrator"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """A proposal as the catalog knows it.

    `evidence` is what was measured; `acts` is everything that was done about it, with the reasons,
    the oldest first: at, act, by, reason. `movable` is false for a tenant that cannot be moved yet.
    """

    proposal_id: ProposalId
    tenant_id: TenantId
    tenant_no: TenantNo
    state: ProposalState
    action: Action
    source_level: IsolationLevel
    target: MoveTarget
    reasons: tuple[str, ...]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    acts: Sequence[Mapping[str, Any]] = ()
    accepted_by: Decider | None = None
    move_id: MoveId | None = None
    movable: bool = True
    created_at: datetime | None = None
    changed_at: datetime | None = None

    def check_open(self) -> None:
        """Raise `ConflictError` unless somebody can still decide about it."""
        if self.state is ProposalState.PROPOSED:
            return
        more = f", and its move is {self.move_id}" if self.move_id else ""
        raise ConflictError(f"proposal {self.proposal_id} is {self.state} already{more}")

    def document(self) -> dict[str, Any]:
        """As metrics show it."""
        level = self.target.level or self.source_level
        return {
            "proposal_id": self.proposal_id,
            "tenant_id": self.tenant_id,
            "action": str(self.action),
            "strategy": str(STRATEGY_OF_LEVEL[level]),
            "isolation_level": str(level),
            "region": self.target.region,
            "since": None if self.created_at is None else self.created_at.isoformat(),
            "reasons": list(self.reasons),
        }


def act(at: datetime, name: str, reason: str, by: str = Decider.ORCHESTRATOR) -> dict[str, str]:
    """One entry of a proposal's acts."""
    return {"at": at.isoformat(), "act": name, "by": str(by), "reason": reason[:1_000]}
