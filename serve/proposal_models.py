"""What the HTTP interface takes and gives of proposals: shapes as in `models`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from tenancy.data_isolation.core import IsolationLevel
from tenancy.data_isolation.core.level_policy import Action
from tenancy.data_isolation.core.move import PRIORITY_RANGE
from tenancy.data_isolation.core.proposal import (
    Decider,
    OrchestrationMode,
    Proposal,
    ProposalState,
)
from tenancy.data_isolation.engine.driver_errors import without_runtime
from tenancy.data_isolation.serve.models import Answer, Body

_PRIORITY_MIN, _PRIORITY_MAX = PRIORITY_RANGE
_REASON_MAX = 500


class AcceptBody(Body):
    """How the move is to be started."""

    priority: int = Field(
        default=0,
        ge=_PRIORITY_MIN,
        le=_PRIORITY_MAX,
        description="Of the moves that wait for their turn, the highest goes first.",
    )


class DismissBody(Body):
    """Why the proposal is turned down."""

    reason: str = Field(default="", max_length=_REASON_MAX)


class ActAnswer(Answer):
    """Something that was done about a proposal."""

    at: datetime
    act: str
    by: Decider
    reason: str


class EvidenceAnswer(Answer):
    """What was measured when it was proposed; null = not known."""

    operations_per_s: float
    latency_ms: float | None = Field(description="Mean time of an operation in the runtime.")
    rows: int | None
    bytes: int | None
    counted_completely: bool | None = Field(description="Otherwise there is as much at least.")
    windows: int = Field(description="Windows of measuring in a row that led to it.")
    demanded: bool = Field(description="Whether it is compliance or residency that asks for it.")


class ProposalAnswer(Answer):
    """A proposal to move a tenant."""

    proposal_id: str
    tenant_id: str
    state: ProposalState
    action: Action
    from_level: IsolationLevel
    isolation_level: IsolationLevel | None = Field(description="Where to; null = as it is.")
    region: str | None = Field(description="The region to go to; null = none is named.")
    movable: bool = Field(description="False for a tenant that cannot be moved yet.")
    reasons: list[str]
    evidence: EvidenceAnswer
    acts: list[ActAnswer] = Field(description="Everything that was done about it, with reasons.")
    accepted_by: Decider | None
    move_id: str | None
    created_at: datetime
    changed_at: datetime


class OrchestrationAnswer(Answer):
    """What looks after tenants' levels."""

    mode: OrchestrationMode = Field(description="What the process that decides does, or would do.")
    deciding: bool = Field(description="Whether a process decides now.")
    looked_upto: datetime | None = Field(
        description="The beginning of the last window of measuring that was looked at."
    )


class ProposalsAnswer(Answer):
    """One page of proposals, the newest first. `next` is the `after` of the next page."""

    proposals: list[ProposalAnswer]
    next: str | None
    orchestration: OrchestrationAnswer


def proposal_answer(proposal: Proposal) -> ProposalAnswer:
    """A proposal as the interface has it: without names of database objects."""
    return ProposalAnswer.model_validate(
        {
            "proposal_id": proposal.proposal_id,
            "tenant_id": proposal.tenant_id,
            "state": proposal.state,
            "action": proposal.action,
            "from_level": proposal.source_level,
            "isolation_level": proposal.target.level,
            "region": proposal.target.region,
            "movable": proposal.movable,
            "reasons": list(proposal.reasons),
            "evidence": dict(proposal.evidence),
            "acts": [{**item, "reason": without_runtime(item["reason"])} for item in proposal.acts],
            "accepted_by": proposal.accepted_by,
            "move_id": proposal.move_id,
            "created_at": proposal.created_at,
            "changed_at": proposal.changed_at,
        },
        strict=False,
    )


def orchestration_answer(found: dict[str, Any]) -> OrchestrationAnswer:
    """What looks after tenants' levels, as the interface has it."""
    mode = found["mode"] if found["deciding"] else found["configured"]
    return OrchestrationAnswer(
        mode=OrchestrationMode(mode), deciding=found["deciding"], looked_upto=found["looked_upto"]
    )
