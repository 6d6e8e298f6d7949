"""When a tenant is to be kept apart more, or less: rules over what was measured of it. Pure.

Time is cut into windows. A window counts for a promotion when the tenant reached one of the promote
values in it, and for a demotion when it was below all of the demote values, which are lower; one in
between counts for neither, and begins both counts anew. So many windows in a row, and a pause after
each move, are what keeps a tenant from going to and fro.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from tenancy.data_isolation.core.errors import SettingError
from tenancy.data_isolation.core.identifiers import Region, ServerName
from tenancy.data_isolation.core.move import MoveTarget
from tenancy.data_isolation.core.rules import (
    LEVEL_OF_STRATEGY,
    Facts,
    RuleBook,
    regime,
    strength,
)
from tenancy.data_isolation.core.types import IsolationLevel, Tenant, TenantSize, TenantStatus

ROW, SCHEMA, DATABASE = IsolationLevel.ROW, IsolationLevel.SCHEMA, IsolationLevel.DATABASE


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """What a tenant did in one window of time. None = not known."""

    operations_per_s: float = 0.0
    #: How much of the time that the server's tenants were at work was this one's, from 0 to 1. None
    #: while its neighbours do too little for that to say anything.
    busy_share: float | None = None
    size: TenantSize | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Values of what is measured. `busy_share` None = not looked at."""

    operations_per_s: float
    rows: int
    bytes: int
    busy_share: float | None = None

    def reached(self, window: Window) -> list[str]:
        """The values that a window has reached, in words."""
        return [
            f"{round(value, 1):,.15g} {unit} >= {round(limit, 1):,.15g}"
            for value, limit, unit in self._pairs(window)
            if value >= limit
        ]

    def is_above(self, window: Window) -> bool:
        """Whether the window stayed below all of these, as far as was measured."""
        return all(value < limit for value, limit, _ in self._pairs(window))

    def _pairs(self, window: Window) -> Iterator[tuple[float, float, str]]:
        yield window.operations_per_s, self.operations_per_s, "operations/s"
        if window.busy_share is not None and self.busy_share is not None:
            yield 100 * window.busy_share, 100 * self.busy_share, "% of its server's time"
        if window.size is not None:
            yield window.size.rows, self.rows, "rows"
            yield window.size.bytes, self.bytes, "bytes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Edge:
    """Between a level and the one above it: what leads up, and what leads down again.

    Raises `SettingError` unless each value that leads down is lower.
    """

    promote: Limits
    demote: Limits

    def __post_init__(self) -> None:
        for name in Limits.__slots__:
            up, down = getattr(self.promote, name), getattr(self.demote, name)
            if (up is None) != (down is None) or (up is not None and down >= up):
                raise SettingError(
                    f"{name}: a tenant is demoted below {down} and promoted from {up}; the first "
                    "has to be lower, or it would go to and fro"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelPolicy:
    """The rules' numbers. Raises `SettingError` when they contradict each other."""

    to_schema: Edge
    to_database: Edge
    #: Windows in a row that lead up, and down.
    promote_windows: int
    demote_windows: int
    #: After a move of the tenant, and after one that did not stay.
    cooldown_s: float
    failed_cooldown_s: float

    def __post_init__(self) -> None:
        if self.failed_cooldown_s < self.cooldown_s:
            raise SettingError(
                f"the pause after a move that failed ({self.failed_cooldown_s:g} s) is shorter "
                f"than that after one that did not ({self.cooldown_s:g} s)"
            )
        for side in ("promote", "demote"):
            low, high = getattr(self.to_schema, side), getattr(self.to_database, side)
            for name in ("operations_per_s", "rows", "bytes"):
                if getattr(low, name) > getattr(high, name):
                    raise SettingError(
                        f"{side} {name}: the value for schemas ({getattr(low, name):g}) is higher "
                        f"than that for databases ({getattr(high, name):g})"
                    )

    def wanted_above(self, level: IsolationLevel, window: Window) -> tuple[IsolationLevel, str]:
        """The level that a window calls for, at least `level`, and by what."""
        if level is not DATABASE:
            found = self.to_database.promote.reached(window)
            if found:
                return DATABASE, "; ".join(found)
        if level is ROW:
            found = self.to_schema.promote.reached(window)
            if found:
                return SCHEMA, "; ".join(found)
        return level, ""

    def wanted_below(self, level: IsolationLevel, window: Window) -> IsolationLevel:
        """The level that would do, at most `level`. A tenant of unknown size stays."""
        if window.size is None or not window.size.complete:
            return level
        if level is DATABASE and not self.to_database.demote.is_above(window):
            return level
        if level is not ROW and self.to_schema.demote.is_above(window):
            return ROW
        return SCHEMA if level is DATABASE else level

    def is_calm(self, level: IsolationLevel, window: Window) -> bool:
        """Whether nothing is left of what would lead up from the level."""
        edge = self.to_schema if level is ROW else self.to_database
        return edge.demote.is_above(window)


@dataclass(frozen=True, kw_only=True, slots=True)
class Streak:
    """What is remembered of a tenant's windows. Those at another level count for nothing."""

    level: IsolationLevel
    #: Windows in a row that called for a higher level, the lowest of those, and what the last said.
    above: int = 0
    up_to: IsolationLevel | None = None
    reached: str = ""
    #: Windows in a row for which a lower level would have done, and the highest of those.
    below: int = 0
    down_to: IsolationLevel | None = None
    #: Windows in a row in which nothing led up.
    calm: int = 0

    def after(self, policy: LevelPolicy, level: IsolationLevel, window: Window) -> Streak:
        """With one window more."""
        before = self if self.level is level else Streak(level=level)
        up, reached = policy.wanted_above(level, window)
        down = policy.wanted_below(level, window)
        rises, falls = up is not level, down is not level
        return Streak(
            level=level,
            above=before.above + 1 if rises else 0,
            up_to=min(up, before.up_to or up, key=strength) if rises else None,
            reached=reached,
            below=before.below + 1 if falls else 0,
            down_to=max(down, before.down_to or down, key=strength) if falls else None,
            calm=before.calm + 1 if policy.is_calm(level, window) else 0,
        )


class Action(StrEnum):
    """What is to become of a tenant's placement."""

    KEEP = "keep"
    PROMOTE = "promote"
    DEMOTE = "demote"
    #: To a server of the region in which its data has to be.
    RELOCATE = "relocate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is to become of a tenant's placement, and why."""

    action: Action
    target: MoveTarget | None = None
    reasons: tuple[str, ...] = ()
    #: Whether it is not for load or size, but for what compliance or residency asks for.
    demanded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelBounds:
    """Between which levels a tenant may be, by rules that are not about its load.

    `demanded` is what its compliance asks for at least, `floor` what other rules ask for, `avoided`
    the levels to which it is not promoted; with each the rule that says so.
    """

    demanded: tuple[IsolationLevel, str] | None = None
    floor: tuple[IsolationLevel, str] | None = None
    avoided: Mapping[IsolationLevel, str] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A tenant as the policy looks at it."""

    tenant: Tenant
    streak: Streak
    bounds: LevelBounds
    #: What others than the orchestrator have chosen for it: it is never demoted below that.
    chosen: IsolationLevel
    under_move: bool = False
    #: When its last move ended, and whether the tenant went back, or never came.
    moved_at: datetime | None = None
    move_failed: bool = False
    #: When a proposal for it was last dismissed, or refused by the plan.
    answered_at: datetime | None = None


def level_bounds(book: RuleBook, tenant: Tenant, *, databases: int) -> LevelBounds:
    """What the rules say about the tenant's level whatever its load is."""
    facts = Facts(
        tenant_type=tenant.tenant_type,
        compliance=tuple(sorted({regime(word) for word in tenant.compliance})),
        databases=databases,
    )
    demand = book.demand(facts)
    floor: tuple[IsolationLevel, str] | None = None
    avoided: dict[IsolationLevel, str] = {}
    for rule in book.rules:
        if rule.evidence(facts) is None:
            continue
        if rule.at_least and (floor is None or strength(rule.at_least) > strength(floor[0])):
            floor = rule.at_least, rule.name
        for strategy in rule.avoid:
            level = LEVEL_OF_STRATEGY.get(strategy)
            if level is not None and level is not ROW:
                avoided.setdefault(level, rule.name)
    return LevelBounds(
        demanded=None if demand is None else (demand[0], demand[1].name),
        floor=floor,
        avoided=avoided,
    )


def decide(
    policy: LevelPolicy,
    subject: Subject,
    *,
    servers: Mapping[ServerName, Region | None],
    now: datetime,
) -> Verdict:
    """What is to become of the tenant now."""
    kept = _kept(policy, subject, now)
    if kept is not None:
        return Verdict(action=Action.KEEP, reasons=(kept,))
    tenant = subject.tenant
    here = tenant.placement
    assert here is not None  # noqa: S101 - one without a place is kept.
    strays = tenant.region is not None and servers.get(here.server) != tenant.region
    if strays and tenant.region in servers.values():
        told = f"its data has to be in region {tenant.region}, and server {here.server} is not"
        target = MoveTarget(region=tenant.region)
        return Verdict(action=Action.RELOCATE, target=target, reasons=(told,), demanded=True)
    demanded = subject.bounds.demanded
    if demanded is not None and strength(demanded[0]) > strength(here.level):
        told = f"rule '{demanded[1]}' demands at least {demanded[0]} for its compliance"
        return replace(_to(Action.PROMOTE, demanded[0], told), demanded=True)
    return _by_load(policy, subject, here.level)


def _by_load(policy: LevelPolicy, subject: Subject, level: IsolationLevel) -> Verdict:
    streak, bounds = subject.streak, subject.bounds
    if streak.level is level and streak.up_to and streak.above >= policy.promote_windows:
        avoided = (bounds.avoided or {}).get(streak.up_to)
        target = streak.up_to
        if avoided is not None and target is DATABASE and level is ROW:
            target = SCHEMA
        elif avoided is not None:
            return _keep(f"rule '{avoided}' is against level {target}")
        told = f"{streak.above} windows in a row reached what leads to {target}: {streak.reached}"
        return _to(Action.PROMOTE, target, told)
    if streak.level is level and streak.down_to and streak.below >= policy.demote_windows:
        floors = [(subject.chosen, "it was put there by others than the orchestrator")]
        floors += [
            (item[0], f"rule '{item[1]}'") for item in (bounds.demanded, bounds.floor) if item
        ]
        floor, why = max(floors, key=lambda item: strength(item[0]))
        target = max(streak.down_to, floor, key=strength)
        if target is level:
            return _keep(f"it stays at {level}, although a lower level would do: {why}")
        told = f"{streak.below} windows in a row were below what would keep it at {level}"
        return _to(Action.DEMOTE, target, told)
    return _keep("nothing speaks for another level")


def _kept(policy: LevelPolicy, subject: Subject, now: datetime) -> str | None:
    """Why nothing is to be done about the tenant now, whatever was measured."""
    tenant = subject.tenant
    if tenant.placement is None or tenant.status is not TenantStatus.ACTIVE:
        return f"it is {tenant.status}"
    if subject.under_move:
        return "it is being moved"
    if subject.moved_at is not None:
        pause_s = policy.failed_cooldown_s if subject.move_failed else policy.cooldown_s
        until = subject.moved_at + timedelta(seconds=pause_s)
        if now < until:
            what = "did not stay" if subject.move_failed else "ended"
            return f"its last move {what} less than {pause_s:g} s ago"
    if subject.answered_at is not None:
        until = subject.answered_at + timedelta(seconds=policy.failed_cooldown_s)
        if now < until:
            return "its last proposal was dismissed or refused not long ago"
    return None


def _keep(reason: str) -> Verdict:
    return Verdict(action=Action.KEEP, reasons=(reason,))


def _to(action: Action, level: IsolationLevel, reason: str) -> Verdict:
    return Verdict(action=action, target=MoveTarget(level=level), reasons=(reason,))


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveBudget:
    """How many moves the orchestrator may start by itself, over the whole fleet."""

    per_hour_max: int
    at_once_max: int

    def against(self, *, lately: int, under_way: int) -> str | None:
        """Why no move may be started now; None when one may.

        `lately` were started within an hour, and `under_way` are not open yet.
        """
        if under_way >= self.at_once_max:
            return f"{under_way} of its moves are under way, and {self.at_once_max} may be"
        if lately >= self.per_hour_max:
            return f"it started {lately} moves within an hour, and {self.per_hour_max} may be"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyGuard:
    """When a tenant that was moved is worse off than before."""

    #: So many times as long as before, and longer by so much.
    factor: float
    slack_ms: float
    #: Windows at the new place, each with so many operations, before that is judged.
    windows_min: int
    operations_min: int

    def usual_ms(self, windows: Sequence[tuple[int, float]]) -> float | None:
        """How long an operation takes; None when too few were seen.

        `windows` are operations and their mean time in ms. Of several windows the middle one
        counts, so that one slow moment says nothing.
        """
        known = sorted(ms for count, ms in windows if count >= self.operations_min)
        return known[len(known) // 2] if known else None

    def verdict(self, before_ms: float | None, windows: Sequence[tuple[int, float]]) -> str | None:
        """Why the tenant is to go back; None when it may stay, or nothing can be said.

        `windows` as in `usual_ms`, at the new place, the newest first.
        """
        known = [item for item in windows if item[0] >= self.operations_min][: self.windows_min]
        after_ms = self.usual_ms(known)
        if before_ms is None or after_ms is None or len(known) < self.windows_min:
            return None
        if after_ms <= max(self.factor * before_ms, before_ms + self.slack_ms):
            return None
        return (
            f"its operations take {after_ms:.3g} ms, and took {before_ms:.3g} ms before: more than "
            f"{self.factor:g} times as long"
        )
