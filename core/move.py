"""A move of a tenant from one placement to another: what it is, and which steps it may take. Pure.

A move is a durable row of the catalog; this module says what may follow what. `PLANNED` to
`CUTTING_OVER` lead to the target, `OPEN` is at the target with the way back kept open, and the
others are ends. The tenant works at the source until the catalog's placement is the target's, which
happens in the same commit as `OPEN`; the way back is the same protocol with the sides exchanged,
from `OPEN` over `CUTTING_OVER` to `ROLLED_BACK`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NewType

from tenancy.data_isolation.core.errors import ConflictError, InvalidInputError
from tenancy.data_isolation.core.identifiers import Region, ServerName, TenantId, TenantNo
from tenancy.data_isolation.core.types import IsolationLevel, Placement, member

#: A move, as the outside names it: `m_` and 20 hexadecimal digits.
MoveId = NewType("MoveId", str)
#: A generation of whoever carries a move out. Only rises; what is of an older one is refused.
Term = NewType("Term", int)

MOVE_ID_PATTERN: Final = "m_[0-9a-f]{20}"
PRIORITY_RANGE: Final = (-100, 100)


class MoveState(StrEnum):
    """Where a move stands."""

    #: Recorded, and nothing made.
    PLANNED = "planned"
    #: The target's tables are being made, and the source begins to note which rows change.
    PREPARING = "preparing"
    #: Rows are copied in the order of their keys.
    COPYING = "copying"
    #: Rows that changed since are copied, again and again.
    CATCHING_UP = "catching_up"
    #: The copies were seen to be equal but for what has changed meanwhile.
    VERIFIED = "verified"
    #: The tenant is held for some milliseconds.
    CUTTING_OVER = "cutting_over"
    #: The tenant works at the target; the source follows, so that the move can be undone.
    OPEN = "open"
    #: The target stays; what was at the source is taken away.
    CONFIRMED = "confirmed"
    #: It could not be done; the tenant works at the source.
    FAILED = "failed"
    #: Given up by order; the tenant works at the source.
    CANCELLED = "cancelled"
    #: Undone by order; the tenant works at the source again.
    ROLLED_BACK = "rolled_back"

    @property
    def is_final(self) -> bool:
        """Whether the move has come to its end; what it has left behind may still be there."""
        return self in _FINAL

    @property
    def is_at_source(self) -> bool:
        """Whether the tenant works at the source, unless the move is on its way back."""
        return self not in (MoveState.OPEN, MoveState.CONFIRMED)


class MoveWish(StrEnum):
    """What somebody has asked of a move that is under way."""

    CANCEL = "cancel"
    ROLLBACK = "rollback"
    CONFIRM = "confirm"


_FINAL: Final = frozenset(
    {MoveState.CONFIRMED, MoveState.FAILED, MoveState.CANCELLED, MoveState.ROLLED_BACK}
)
_GIVE_UP: Final = frozenset({MoveState.FAILED, MoveState.CANCELLED})

#: What may follow a state. From `CUTTING_OVER` it goes back when the tenant could not be held, and
#: on the way back from the target (`reversing`) it does so to `OPEN`.
_NEXT: Final[Mapping[MoveState, frozenset[MoveState]]] = {
    MoveState.PLANNED: frozenset({MoveState.PREPARING}) | _GIVE_UP,
    MoveState.PREPARING: frozenset({MoveState.COPYING}) | _GIVE_UP,
    MoveState.COPYING: frozenset({MoveState.CATCHING_UP}) | _GIVE_UP,
    MoveState.CATCHING_UP: frozenset({MoveState.VERIFIED}) | _GIVE_UP,
    MoveState.VERIFIED: frozenset({MoveState.CUTTING_OVER, MoveState.CATCHING_UP}) | _GIVE_UP,
    MoveState.CUTTING_OVER: frozenset(
        {MoveState.OPEN, MoveState.VERIFIED, MoveState.CATCHING_UP, MoveState.ROLLED_BACK}
    ),
    MoveState.OPEN: frozenset({MoveState.CONFIRMED, MoveState.CUTTING_OVER}),
    MoveState.CONFIRMED: frozenset(),
    MoveState.FAILED: frozenset(),
    MoveState.CANCELLED: frozenset(),
    MoveState.ROLLED_BACK: frozenset(),
}
#: In which states somebody may ask for what.
ASKABLE: Final[Mapping[MoveWish, frozenset[MoveState]]] = {
    MoveWish.CANCEL: frozenset(
        {
            MoveState.PLANNED,
            MoveState.PREPARING,
            MoveState.COPYING,
            MoveState.CATCHING_UP,
            MoveState.VERIFIED,
            MoveState.CUTTING_OVER,
        }
    ),
    MoveWish.ROLLBACK: frozenset({MoveState.OPEN}),
    MoveWish.CONFIRM: frozenset({MoveState.OPEN}),
}


#: What the report calls that the server of the other side was given up, since it is lost for good.
ABANDONED: Final = "abandoned"


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveTarget:
    """Where a tenant shall go; what is None stays as it is.

    `server` None with a `region` leaves the choice among the servers of the region.
    """

    level: IsolationLevel | None = None
    server: ServerName | None = None
    region: Region | None = None

    def __post_init__(self) -> None:
        if self.level is None and self.server is None and self.region is None:
            raise InvalidInputError("say where to: isolation_level, server or region")
        object.__setattr__(self, "level", member(IsolationLevel, self.level, optional=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveProgress:
    """How far a move has come. Bytes are those of the rows as they travelled."""

    rows_total: int = 0
    rows_copied: int = 0
    bytes_copied: int = 0
    #: Changed keys that are not copied yet, as last seen.
    backlog_rows: int = 0
    passes: int = 0
    #: Tables whose first copy is complete, and all.
    tables_copied: int = 0
    tables_total: int = 0
    #: Attempts to hold the tenant that came to nothing, and failures in a row of anything else.
    cutover_attempts: int = 0
    failures: int = 0
    #: Seconds that are left until the copy is complete, at the rate so far; None when nothing is
    #: known.
    remaining_s: float | None = None
    #: Seconds that it took to make the place at the target, that went into the first copy so far
    #: (rests included, pauses not), and that the last passes and comparisons took.
    prepare_s: float = 0.0
    copy_s: float = 0.0
    prove_s: float = 0.0

    def copied(self, rows: int, took_s: float) -> MoveProgress:
        """The progress after a piece of the first copy that has taken so long."""
        total, copy_s = self.rows_copied + rows, self.copy_s + took_s
        left = max(self.rows_total - total, 0)
        return replace(
            self,
            rows_copied=total,
            copy_s=round(copy_s, 3),
            remaining_s=round(left * copy_s / total, 1) if total else None,
        )

    def document(self) -> dict[str, Any]:
        """As the catalog and the interface have it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Move:
    """A move as the catalog knows it.

    `reversing` says that it is on its way back. `cleaned` says that nothing is left at the side at
    which the tenant does not work. `report` is the proof: what was compared, and what was seen.
    """

    move_id: MoveId
    tenant_id: TenantId
    tenant_no: TenantNo
    state: MoveState
    source: Placement
    target: Placement
    term: Term = Term(0)
    priority: int = 0
    paused: bool = False
    wish: MoveWish | None = None
    reversing: bool = False
    cleaned: bool = False
    progress: MoveProgress = field(default_factory=MoveProgress)
    report: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    created_at: datetime | None = None
    changed_at: datetime | None = None
    opened_at: datetime | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state.is_final and self.cleaned

    @property
    def can_stand_still(self) -> bool:
        """Whether it can be paused: what is open, on its way back or at its end goes on."""
        return not (self.state.is_final or self.state is MoveState.OPEN or self.reversing)

    @property
    def stands_still(self) -> bool:
        """Whether nothing is done for it until it is resumed, or cancelled."""
        # Who has paused it just before it opened or failed keeps nobody from going on with it.
        return self.paused and self.wish is None and self.can_stand_still

    @property
    def other_side(self) -> Placement:
        """The side at which the tenant does not work."""
        on_the_way_back = self.reversing and not self.state.is_final
        at_target = on_the_way_back or self.state in (MoveState.OPEN, MoveState.CONFIRMED)
        return self.source if at_target else self.target

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody waits for the server of the other side any more."""
        given_up = self.report.get(ABANDONED)
        return given_up is not None and given_up["server"] == self.other_side.server

    def check_abandonment(self) -> None:
        """Raise `ConflictError` unless the other side can be given up as things stand."""
        if self.is_settled:
            raise ConflictError(f"move {self.move_id} is settled; nothing of it waits for a server")
        if self.state.is_final or self.state is MoveState.OPEN or self.reversing:
            return
        raise ConflictError(
            f"move {self.move_id} is {self.state}; cancel it first, and give its target up when it "
            "is cancelled and cannot be cleaned up"
        )

    def check_next(self, state: MoveState) -> None:
        """Raise `ConflictError` unless `state` may follow."""
        if state not in _NEXT[self.state]:
            raise ConflictError(f"move {self.move_id} is {self.state}; it cannot become {state}")

    def check_pause(self) -> None:
        """Raise `ConflictError` unless it can be paused and resumed as things stand."""
        if self.can_stand_still:
            return
        where = self.state if self.state.is_final or not self.reversing else "on its way back"
        raise ConflictError(
            f"move {self.move_id} is {where}; only a move that is not open yet can be paused or "
            "resumed"
        )

    def check_wish(self, wish: MoveWish) -> None:
        """Raise `ConflictError` unless the wish can be granted as things stand."""
        if self.state in ASKABLE[wish]:
            return
        if self.state.is_final and wish is not MoveWish.ROLLBACK:
            raise ConflictError(
                f"move {self.move_id} is {self.state} already; what is left of it is cleaned up by "
                "itself"
            )
        raise ConflictError(f"move {self.move_id} is {self.state}; {_INSTEAD[wish]}")


_INSTEAD: Final[Mapping[MoveWish, str]] = {
    MoveWish.CANCEL: "only a move whose tenant still works at the source can be cancelled; "
    "roll back one that is open",
    MoveWish.ROLLBACK: "only a move that is open can be rolled back; cancel one that is under way, "
    "and undo one that is confirmed by a new move",
    MoveWish.CONFIRM: "only a move that is open can be confirmed",
}


def check_priority(priority: int) -> int:
    """The priority, when it is one; `InvalidInputError` otherwise."""
    smallest, largest = PRIORITY_RANGE
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidInputError(f"priority is {priority!r}; a whole number is needed")
    if not smallest <= priority <= largest:
        raise InvalidInputError(f"priority is {priority}; use {smallest} to {largest}")
    return priority
