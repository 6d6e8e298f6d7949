"""What the HTTP interface takes and gives of moves: shapes as in `models`, and how they are made.

A place is told as level and server; names of database objects stay inside.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Final, assert_never

from pydantic import ConfigDict, Field

from tenancy.data_isolation.core import IsolationLevel
from tenancy.data_isolation.core.errors import InvalidInputError
from tenancy.data_isolation.core.move import PRIORITY_RANGE, Move, MoveState, MoveWish
from tenancy.data_isolation.core.types import Placement
from tenancy.data_isolation.engine.driver_errors import without_runtime
from tenancy.data_isolation.engine.move_plan import MovePlan, RefusalCode
from tenancy.data_isolation.serve.models import Answer, Body, Word

_PRIORITY_MIN, _PRIORITY_MAX = PRIORITY_RANGE
#: What a tenant is told in place of an error, which can name servers, addresses and more.
ERROR_FOR_TENANTS: Final = "the move did not go through; its operator has the reason"
#: What tenants see of a report: what became of their rows, and how long they were held.
_TABLE_FOR_TENANTS: Final = ("table", "rows", "source", "target", "left_out", "equal")
_HOLD_FOR_TENANTS: Final = ("drain_ms", "held_ms")
_REPORT_FOR_TENANTS: Final = {
    "before": _TABLE_FOR_TENANTS,
    "after": _TABLE_FOR_TENANTS,
    "cutover": _HOLD_FOR_TENANTS,
    "rollback": _HOLD_FOR_TENANTS,
}


class MovePhase(StrEnum):
    """What happens to a move just now."""

    #: It has not begun: others are carried out, or nobody has taken it up yet.
    WAITING = "waiting"
    PAUSED = "paused"
    PREPARING = "preparing"
    COPYING = "copying"
    CATCHING_UP = "catching_up"
    #: The sides are equal; the tenant is still at the source, and will be held in a moment.
    VERIFIED = "verified"
    CUTTING_OVER = "cutting_over"
    #: The tenant works at the target, and somebody has to decide: confirm, or roll back.
    OPEN = "open"
    CONFIRMING = "confirming"
    ROLLING_BACK = "rolling_back"
    CANCELLING = "cancelling"
    #: Decided; what is left at the other side is being taken away.
    CLEANING_UP = "cleaning_up"
    #: Nothing is left to do.
    SETTLED = "settled"


class MoveBody(Body):
    """Where a tenant shall go; what is left out stays as it is, and something has to be named."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"isolation_level": "schema"},
                {"isolation_level": "database", "server": "main", "dry_run": True},
            ]
        }
    )

    isolation_level: Annotated[IsolationLevel, Field(strict=False)] | None = None
    server: Word | None = None
    region: Word | None = Field(
        default=None, description="Some server of the region, when no `server` is named."
    )
    priority: int = Field(
        default=0,
        ge=_PRIORITY_MIN,
        le=_PRIORITY_MAX,
        description=(
            "Of the moves that wait for their turn, the highest goes first. Not with `dry_run`."
        ),
    )
    dry_run: bool = Field(
        default=False, description="Answer with the plan, and start nothing: 200 in place of 202."
    )

    def check(self) -> None:
        """Raise `InvalidInputError` for a part that would be ignored beside another."""
        if self.dry_run and "priority" in self.model_fields_set:
            raise InvalidInputError("priority does not go with dry_run: a plan waits for nothing")


class PlaceAnswer(Answer):
    """A side of a move."""

    isolation_level: IsolationLevel
    server: str


class MoveRefusalAnswer(Answer):
    """One thing that stands against a move."""

    code: RefusalCode
    subject: str = Field(description="What it is about: the tenant, a server or a move.")
    detail: str


class MoveEstimateAnswer(Answer):
    """What the estimates of a plan rest on."""

    rows_per_s: int = Field(
        description=(
            "Rows that are copied and compared in a second: the median of the last moves of at "
            "least TENANCY_MOVE_ESTIMATE_ROWS_MIN rows, within one server or between two as this "
            "one, or an assumption."
        )
    )
    bytes_per_s: int | None = Field(
        description="Bytes of their rows in a second; null when no move has shown it."
    )
    setup_s: float = Field(
        description="Until the first row is copied: the median of moves to the same level."
    )
    moves: int = Field(description="From how many moves the rates are; 0 when they are assumed.")
    pauses: int = Field(description="From how many moves the pause is; 0 when it is assumed.")
    basis: str = Field(description="The same in words.")


class MovePlanAnswer(Answer):
    """What a move would do, and everything that stands against it. Nothing was started."""

    tenant_id: str
    source: PlaceAnswer
    target: PlaceAnswer
    possible: bool = Field(description="Whether nothing stands against it.")
    refused: list[MoveRefusalAnswer]
    tables: int
    rows: int | None = Field(description="The tenant's own; null when they were not counted.")
    bytes: int | None = Field(description="Of those rows; null when they were not counted.")
    indexes: int
    constraints: int
    sequences: int
    duration_s: float | None = Field(
        description=(
            "How long it may take until it is open; an estimate, null when the rows were not "
            "counted."
        )
    )
    pause_ms: float = Field(description="How long the tenant may be held; an estimate.")
    estimate: MoveEstimateAnswer


class MoveProgressAnswer(Answer):
    """How far a move has come."""

    rows_total: int
    rows_copied: int
    bytes_copied: int = Field(description="As the rows travelled.")
    backlog_rows: int = Field(description="Changed rows that are not copied yet, as last seen.")
    passes: int
    tables_total: int
    tables_copied: int
    cutover_attempts: int = Field(description="Attempts to hold the tenant that came to nothing.")
    failures: int = Field(description="Failures in a row of anything else.")
    remaining_s: float | None = Field(
        description=(
            "Until the copy is complete, at the move's own rate so far; null when nothing is known."
        )
    )
    prepare_s: float = Field(description="What it took to make the place at the target.")
    copy_s: float = Field(description="Spent on the copy so far, rests included, and pauses not.")
    prove_s: float = Field(description="What the last passes and comparisons took.")


class MoveAnswer(Answer):
    """A move."""

    move_id: str
    tenant_id: str
    state: MoveState
    phase: MovePhase
    source: PlaceAnswer
    target: PlaceAnswer
    priority: int
    paused: bool
    wish: MoveWish | None = Field(description="What was asked for and is not granted yet.")
    progress: MoveProgressAnswer
    error: str | None = Field(
        description="What stood in its way last; a tenant is told that something did."
    )
    created_at: datetime
    changed_at: datetime
    opened_at: datetime | None
    confirms_at: datetime | None = Field(
        description="When a move that is open is confirmed by itself (TENANCY_MOVE_RETENTION_S)."
    )
    settled: bool = Field(description="Whether nothing is left to do for it.")


class MoveReportAnswer(MoveAnswer):
    """A move, with the proof of it."""

    report: dict[str, Any] = Field(
        description=(
            "`why`: the proposal that asked for it, if one did, and what was done about it since; "
            "`plan`: what was expected; `before` and `after`: per table the rows and the digests "
            "of both sides, before the tenant changed its place and after it; `cutover` and "
            "`rollback`: how long that took. "
            "A tenant is told what concerns its rows, and how long it was held."
        )
    )


class MovesAnswer(Answer):
    """One page of moves, the newest first. `next` is the `after` of the next page."""

    moves: list[MoveAnswer]
    next: str | None


def plan_answer(plan: MovePlan) -> MovePlanAnswer:
    """A plan as the interface has it."""
    return MovePlanAnswer.model_validate(plan.document())


def move_answer(move: Move, retention_s: float, *, for_admin: bool) -> MoveAnswer:
    """A move as the interface has it; a tenant is not told the operator's words."""
    return MoveAnswer(**_fields(move, retention_s, for_admin))


def move_report(move: Move, retention_s: float, *, for_admin: bool) -> MoveReportAnswer:
    """A move with its report; a tenant is told what concerns it."""
    report = dict(move.report) if for_admin else _report_for_tenant(move.report)
    return MoveReportAnswer(**_fields(move, retention_s, for_admin), report=report)


def _report_for_tenant(report: Mapping[str, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for part, names in _REPORT_FOR_TENANTS.items():
        found = report.get(part)
        if isinstance(found, list):
            told[part] = [_only(item, names) for item in found]
        elif found is not None:
            told[part] = _only(found, names)
    return told


def _only(found: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}


def _error(move: Move, for_admin: bool) -> str | None:
    if move.error is None:
        return None
    return without_runtime(move.error) if for_admin else ERROR_FOR_TENANTS


def _fields(move: Move, retention_s: float, for_admin: bool) -> dict[str, Any]:
    is_open = move.state is MoveState.OPEN and move.opened_at is not None
    return {
        "move_id": move.move_id,
        "tenant_id": move.tenant_id,
        "state": move.state,
        "phase": phase_of(move),
        "source": _place(move.source),
        "target": _place(move.target),
        "priority": move.priority,
        "paused": move.paused and move.can_stand_still,
        "wish": move.wish,
        "progress": MoveProgressAnswer(**asdict(move.progress)),
        "error": _error(move, for_admin),
        "created_at": move.created_at,
        "changed_at": move.changed_at,
        "opened_at": move.opened_at,
        "confirms_at": move.opened_at + timedelta(seconds=retention_s)
        if is_open and move.opened_at is not None
        else None,
        "settled": move.is_settled,
    }


def phase_of(move: Move) -> MovePhase:
    """What happens to a move just now."""
    if move.state.is_final:
        return MovePhase.SETTLED if move.cleaned else MovePhase.CLEANING_UP
    if move.reversing:
        return MovePhase.ROLLING_BACK
    match move.wish:
        case MoveWish.CANCEL:
            return MovePhase.CANCELLING
        case MoveWish.CONFIRM:
            return MovePhase.CONFIRMING
        case MoveWish.ROLLBACK:
            return MovePhase.ROLLING_BACK
        case None:
            pass
        case _:
            assert_never(move.wish)
    if move.stands_still:
        return MovePhase.PAUSED
    return _PHASES[move.state]


_PHASES = {
    MoveState.PLANNED: MovePhase.WAITING,
    MoveState.PREPARING: MovePhase.PREPARING,
    MoveState.COPYING: MovePhase.COPYING,
    MoveState.CATCHING_UP: MovePhase.CATCHING_UP,
    MoveState.VERIFIED: MovePhase.VERIFIED,
    MoveState.CUTTING_OVER: MovePhase.CUTTING_OVER,
    MoveState.OPEN: MovePhase.OPEN,
}


def _place(placement: Placement) -> PlaceAnswer:
    return PlaceAnswer(isolation_level=placement.level, server=placement.server)
