"""The durable rows of the orchestrator: who decides, what was counted, and what is proposed.

Rules this module keeps:

* One process decides. Whoever does renews its hold with each look; what a look comes to is recorded
  in one statement, and only if nobody else has looked since: a window is never counted twice.
* A change of a proposal names the state it starts from.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import asyncpg

from tenancy.data_isolation.core.errors import ConflictError, ProposalNotFoundError
from tenancy.data_isolation.core.identifiers import Region, ServerName, TenantId, TenantNo
from tenancy.data_isolation.core.level_policy import Action, Streak
from tenancy.data_isolation.core.move import MoveId, MoveState, MoveTarget
from tenancy.data_isolation.core.proposal import (
    Decider,
    Proposal,
    ProposalId,
    ProposalState,
)
from tenancy.data_isolation.core.types import IsolationLevel, Tenant, TenantSize
from tenancy.data_isolation.engine.catalog import Catalog, tenant_of_row
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("orchestration.sql")


def new_proposal_id() -> ProposalId:
    """A fresh id."""
    return ProposalId(f"p_{secrets.token_hex(10)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """That this process is the one that decides, and up to which window somebody has looked."""

    holder: str
    term: int
    looked_upto: datetime | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is known of a tenant that is looked at."""

    tenant: Tenant
    streak: Streak | None
    size: TenantSize | None
    sized_at: datetime | None
    move_state: MoveState | None
    moved_at: datetime | None
    move_settled: bool
    #: What is proposed for it now, and whether compliance or residency asks for it.
    proposal_id: ProposalId | None
    proposed: tuple[Action, MoveTarget] | None
    demanded: bool
    answered_at: datetime | None
    chosen: IsolationLevel | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """All that one look has come to."""

    looked_upto: datetime
    known: Sequence[Known] = ()
    proposals: Sequence[Proposal] = ()
    #: Proposals that are withdrawn, with the act that says why.
    withdrawn: Mapping[ProposalId, Mapping[str, Any]]
    told: Mapping[str, Any]


class ProposalStore:
    """Reads and writes the orchestrator's rows. Safe as `Catalog` is, whose connections it uses."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # Who decides

    async def hold(self, holder: str, duration_s: float, mode: str) -> Turn | None:
        """Be the one that decides, for so long; None when another process is."""
        row = await self._catalog.pool.write_row(_SQL.statement("hold"), holder, duration_s, mode)
        if row is None:
            return None
        return Turn(holder=holder, term=row["term"], looked_upto=row["looked_upto"])

    async def let_go(self, holder: str) -> None:
        """Let another process decide at once."""
        await self._catalog.pool.write(_SQL.statement("let_go"), holder)

    async def orchestrator(self) -> dict[str, Any]:
        """Whether a process decides, how, up to when it has looked, and what it told of that."""
        row = await self._catalog.pool.row(_SQL.statement("orchestrator"))
        if row is None:
            return {"deciding": False, "mode": None, "looked_upto": None}
        told: dict[str, Any] = json.loads(row["told"])
        found = {name: row[name] for name in ("deciding", "mode", "looked_upto")}
        return found | {"told": told}

    # What was counted

    async def windows(
        self, after: datetime | None, until: datetime, limit: int
    ) -> dict[datetime, dict[ServerName, tuple[int, int]]]:
        """Of windows after one and begun until another: per server operations and busy time (us).

        The oldest first; of more than `limit` rows the newest.
        """
        found: dict[datetime, dict[ServerName, tuple[int, int]]] = {}
        rows = await self._catalog.pool.rows(_SQL.statement("windows"), after, until, limit)
        for row in reversed(rows):
            totals = found.setdefault(row["began_at"], {})
            totals[ServerName(row["server"])] = row["operations"], row["busy_us"]
        return found

    async def loads(
        self, windows: Iterable[datetime]
    ) -> dict[datetime, dict[TenantNo, tuple[int, int]]]:
        """Of each window, per tenant: operations and busy time in microseconds."""
        found: dict[datetime, dict[TenantNo, tuple[int, int]]] = {at: {} for at in windows}
        for row in await self._catalog.pool.rows(_SQL.statement("loads"), list(found)):
            found[row["began_at"]][TenantNo(row["tenant_no"])] = row["operations"], row["busy_us"]
        return found

    async def latencies(
        self, tenant_no: TenantNo, since: datetime, limit: int
    ) -> list[tuple[int, float]]:
        """Of a tenant's windows that began then or later: operations and their mean time in ms."""
        rows = await self._catalog.pool.rows(
            _SQL.statement("loads_of_tenant"), tenant_no, since, limit
        )
        return [
            (row["operations"], row["busy_us"] / row["operations"] / 1_000)
            for row in rows
            if row["operations"]
        ]

    # Tenants

    async def known(self, tenants: Iterable[TenantNo], limit: int) -> list[Known]:
        """These tenants, and those of which something is remembered or proposed."""
        rows = await self._catalog.pool.rows(_SQL.statement("subjects"), list(tenants), limit)
        return [_known(row) for row in rows]

    async def record(
        self, turn: Turn, outcome: Outcome, *, at: datetime, keep_s: float
    ) -> frozenset[ProposalId] | None:
        """Record a look: the proposals that were made or withdrawn; None when another process has
        looked meanwhile.

        What was counted more than `keep_s` before the newest window is thrown away.
        """
        values = (
            turn.holder,
            turn.term,
            turn.looked_upto,
            outcome.looked_upto,
            json.dumps([_tendency(item) for item in outcome.known]),
            json.dumps([_row_of(item) for item in outcome.proposals]),
            json.dumps(
                [{"proposal_id": name, "act": item} for name, item in outcome.withdrawn.items()]
            ),
            json.dumps(outcome.told),
            at,
            keep_s,
        )
        try:
            done = await self._catalog.pool.write(_SQL.statement("record"), *values)
        except asyncpg.ForeignKeyViolationError:
            return None  # A tenant was erased meanwhile; the next look does without it.
        return None if done is None else frozenset(map(ProposalId, done))

    async def started_lately(self, since: datetime) -> tuple[int, int]:
        """Moves that the orchestrator has started since, and those that are not open yet."""
        (row,) = await self._catalog.pool.rows(_SQL.statement("started_lately"), since)
        return row["lately"], row["under_way"]

    # Proposals

    async def proposal(self, proposal_id: str) -> Proposal:
        """The proposal of that id, or `ProposalNotFoundError`."""
        row = await self._catalog.pool.row(_SQL.statement("one"), proposal_id)
        if row is None:
            raise ProposalNotFoundError(f"there is no proposal {proposal_id[:80]}")
        return _proposal(row)

    async def proposals(
        self,
        *,
        before: ProposalId | None = None,
        tenant_no: TenantNo | None = None,
        state: ProposalState | None = None,
        limit: int = 100,
    ) -> list[Proposal]:
        """Proposals, the newest first."""
        length = self._catalog.page_length(limit)
        rows = await self._catalog.pool.rows(
            _SQL.statement("many"), before, tenant_no, state, length
        )
        return [_proposal(row) for row in rows]

    async def waiting(self, limit: int) -> list[Proposal]:
        """What can be carried out, the most urgent first."""
        rows = await self._catalog.pool.rows(_SQL.statement("waiting"), limit)
        return [_proposal(row) for row in rows]

    async def followed(self, limit: int) -> list[Proposal]:
        """Proposals whose moves are still to be looked after."""
        rows = await self._catalog.pool.rows(_SQL.statement("followed"), limit)
        return [_proposal(row) for row in rows]

    async def answer(
        self,
        proposal: Proposal,
        state: ProposalState,
        act: Mapping[str, Any],
        *,
        at: datetime,
    ) -> Proposal:
        """Give a proposal another state; `ConflictError` when it is not open any more."""
        done = await self._catalog.pool.write(
            _SQL.statement("answer"), proposal.proposal_id, state, at, json.dumps([act])
        )
        now = await self.proposal(proposal.proposal_id)
        if done is None:
            now.check_open()
        return now

    async def add_act(
        self, proposal: Proposal, act: Mapping[str, Any], *, at: datetime, done: bool = False
    ) -> None:
        """Note what was done about a proposal's move; with `done` it is the last of it."""
        await self._catalog.pool.write(
            _SQL.statement("add_act"), proposal.proposal_id, at, json.dumps([act]), done
        )


async def claim(
    control: asyncpg.Connection,
    proposal: Proposal,
    move_id: MoveId,
    by: Decider,
    act: Mapping[str, Any],
    *,
    at: datetime,
) -> None:
    """Give a proposal its move, in the transaction that records the move.

    Raises `ConflictError` when somebody else has answered it meanwhile.
    """
    done = await control.fetchval(
        _SQL.statement("claim"), proposal.proposal_id, move_id, by, at, json.dumps([act])
    )
    if done is None:
        raise ConflictError(f"proposal {proposal.proposal_id} was answered by somebody else")


async def claim_turn(
    control: asyncpg.Connection, turn: Turn, since: datetime
) -> tuple[int, int] | None:
    """Keep the turn to the end of the transaction; None when another process has it already.

    Otherwise moves that the orchestrator has started since, and those that are not open yet.
    """
    if not await control.fetchval(_SQL.statement("keep_turn"), turn.holder, turn.term):
        return None
    (row,) = await control.fetch(_SQL.statement("started_lately"), since)
    return row["lately"], row["under_way"]


# What the rows are in Python


def _known(row: asyncpg.Record) -> Known:
    chosen, state = row["chosen"], row["move_state"]
    return Known(
        tenant=tenant_of_row(row),
        streak=None if row["streak"] is None else _streak(json.loads(row["streak"])),
        size=None if row["size"] is None else TenantSize(**json.loads(row["size"])),
        sized_at=row["sized_at"],
        move_state=None if state is None else MoveState(state),
        moved_at=row["moved_at"],
        move_settled=bool(row["move_settled"]),
        proposal_id=None if row["proposal_id"] is None else ProposalId(row["proposal_id"]),
        proposed=None
        if row["proposal_id"] is None
        else (Action(row["action"]), _target(row["target_level"], row["target_region"])),
        demanded=bool(row["demanded"]),
        answered_at=row["answered_at"],
        chosen=None if chosen is None else IsolationLevel(chosen),
    )


def _streak(found: dict[str, Any]) -> Streak | None:
    if not found:
        return None
    up, down = found.pop("up_to"), found.pop("down_to")
    return Streak(
        **found | {"level": IsolationLevel(found["level"])},
        up_to=None if up is None else IsolationLevel(up),
        down_to=None if down is None else IsolationLevel(down),
    )


def _tendency(item: Known) -> dict[str, Any]:
    streak, size = item.streak, item.size
    kept = {} if streak is None else {name: getattr(streak, name) for name in streak.__slots__}
    return {
        "tenant_no": item.tenant.tenant_no,
        "streak": kept,
        "size": None
        if size is None
        else {"rows": size.rows, "bytes": size.bytes, "complete": size.complete},
        "sized_at": None if item.sized_at is None else item.sized_at.isoformat(),
    }


def _row_of(proposal: Proposal) -> dict[str, Any]:
    return {
        "proposal_id": proposal.proposal_id,
        "tenant_no": proposal.tenant_no,
        "action": proposal.action,
        "source_level": proposal.source_level,
        "target_level": proposal.target.level,
        "region": proposal.target.region,
        "movable": proposal.movable,
        "reasons": list(proposal.reasons),
        "evidence": proposal.evidence,
        "acts": list(proposal.acts),
    }


def _proposal(row: asyncpg.Record) -> Proposal:
    by, move_id = row["accepted_by"], row["move_id"]
    return Proposal(
        proposal_id=ProposalId(row["proposal_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        tenant_no=TenantNo(row["tenant_no"]),
        state=ProposalState(row["state"]),
        action=Action(row["action"]),
        source_level=IsolationLevel(row["source_level"]),
        target=_target(row["target_level"], row["region"]),
        reasons=tuple(json.loads(row["reasons"])),
        evidence=json.loads(row["evidence"]),
        acts=json.loads(row["acts"]),
        accepted_by=None if by is None else Decider(by),
        move_id=None if move_id is None else MoveId(move_id),
        movable=row["movable"],
        created_at=row["created_at"],
        changed_at=row["changed_at"],
    )


def _target(level: str | None, region: str | None) -> MoveTarget:
    return MoveTarget(
        level=None if level is None else IsolationLevel(level),
        region=None if region is None else Region(region),
    )


def remembered(item: Known, streak: Streak) -> Known:
    """With the streak as it is now; one that says nothing is not kept."""
    says = streak.above or streak.below or (item.proposal_id is not None and streak.calm)
    return replace(item, streak=streak if says else None)
