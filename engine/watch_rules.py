"""What of the sessions on a server is over a limit, and what to do about it. Pure: no I/O.

A session of the runtime's own is known by its mark (`core.crypto.session_mark`); what is not marked
came straight to PostgreSQL with a login's password. The shared login of level ROW is for the
runtime alone, so there it is a stranger.

The runtime's own sessions are held to the same limits, a moment later, since the runtime sees to
its statements itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final

from tenancy.data_isolation.core.identifiers import RoleName
from tenancy.data_isolation.core.tier_limits import TierLimits

#: The runtime cancels its statements itself; the watchdog does it when that did not happen.
_RUNTIME_GRACE_MS: Final = 1_000
#: A cancelled statement that still runs is ended with its session.
_CANCEL_GRACE_MS: Final = 2_000
#: A session that has just begun may not have told its name yet.
_INTRODUCTION_MS: Final = 200
#: A login has room for the sessions of an actor and of the one that follows it.
HANDOVER_FACTOR: Final = 2


class Offence(StrEnum):
    """What a session did, or a login."""

    TABLE_LOCK = "table_lock"
    ADVISORY_LOCK = "advisory_lock"
    STRANGER = "stranger"
    TRANSACTION_AGE = "transaction_age"
    IDLE_TRANSACTION = "idle_transaction"
    LOCKS = "locks"
    STATEMENT_TIME = "statement_time"
    LONG_STATEMENTS = "long_statements"
    CONNECTIONS = "connections"
    #: It altered its login and did not end the transaction: who else alters logins waits.
    LOGIN_LOCK = "login_lock"
    #: A login changed its own settings or its password.
    LOGIN_SETTINGS = "login_settings"
    LOGIN_PASSWORD = "login_password"  # noqa: S105 - a name


#: After these a login keeps only the sessions that the runtime opened.
_SEVERE: Final = frozenset(
    {Offence.TABLE_LOCK, Offence.ADVISORY_LOCK, Offence.LOGIN_LOCK, Offence.STRANGER}
)
#: After these it gets no further session for a while.
_PENALIZED: Final = _SEVERE | {Offence.LONG_STATEMENTS, Offence.CONNECTIONS, Offence.LOCKS}


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionView:
    """A session as the server tells of it. Ages are in milliseconds, None where there is none."""

    pid: int
    role: RoleName
    #: Whether the runtime opened it.
    marked: bool
    #: Whether it has the mark of a session that the runtime opened.
    copied: bool
    #: Whether its login is the one that all tenants of level ROW share.
    shared: bool
    state: str | None
    backend_start: datetime
    query_start: datetime | None
    xact_start: datetime | None
    age_ms: int
    statement_ms: int | None
    transaction_ms: int | None
    state_ms: int | None
    locks: int
    table_lock: bool
    advisory_lock: bool
    #: Held for more than one look.
    login_lock: bool

    @property
    def active(self) -> bool:
        """Whether a statement is at work."""
        return self.state == "active"


@dataclass(frozen=True, kw_only=True, slots=True)
class Action:
    """A statement to cancel, or a session to end, as long as it is what was seen."""

    session: SessionView
    offence: Offence
    ends: bool
    #: Whether the statement, or the transaction, has to be the same still.
    same_statement: bool = False
    same_transaction: bool = False


@dataclass(slots=True)
class Verdict:
    """What to do, and how many sessions each login that is to be kept from more has left."""

    actions: list[Action] = field(default_factory=list)
    penalties: dict[RoleName, int] = field(default_factory=dict)


def judge(
    sessions: Sequence[SessionView],
    limits_of: Callable[[RoleName], TierLimits | None],
    *,
    long_ms: int,
    server_long_max: int,
) -> Verdict:
    """What is over a limit. A login whose limits are None is nobody's here and left alone."""
    verdict = Verdict()
    by_role: defaultdict[RoleName, list[SessionView]] = defaultdict(list)
    for session in sessions:
        by_role[session.role].append(session)
    for role, own in by_role.items():
        limits = limits_of(role)
        if limits is None:
            continue
        found = {
            action.session.pid: action
            for session in own
            if (action := _judge_session(session, limits)) is not None
        }
        if not own[0].shared:
            rest = [session for session in own if session.pid not in found]
            long_max = min(limits.long_statements_max, server_long_max)
            most = limits.connections_max * HANDOVER_FACTOR
            for action in (*_excess_long(rest, long_ms, long_max), *_excess(rest, most)):
                found.setdefault(action.session.pid, action)
        offences = {action.offence for action in found.values()}
        if offences & _SEVERE:
            for session in own:
                if not session.marked and session.pid not in found:
                    found[session.pid] = _end(session, max(offences & _SEVERE))
        verdict.actions += found.values()
        # What goes wrong in a session of the runtime's own must not keep it from opening others.
        if any(map(_closes_door, found.values())):
            ended = sum(action.ends for action in found.values())
            verdict.penalties[role] = len(own) - ended
    return verdict


def _closes_door(action: Action) -> bool:
    """Whether the login is kept from new sessions, but not for what a tenant of level ROW can do.

    It can copy a mark that it sees, and change that of the session its statement runs in, in one
    that is so new that nobody has seen its mark.
    """
    session = action.session
    if action.offence is Offence.STRANGER:
        return not session.copied and session.age_ms >= _INTRODUCTION_MS
    return action.offence in _PENALIZED and not session.marked


def _judge_session(session: SessionView, limits: TierLimits) -> Action | None:
    """What is wrong with a session by itself, the worst first."""
    if session.table_lock:
        return _end(session, Offence.TABLE_LOCK, same_transaction=True)
    if session.advisory_lock:
        return _end(session, Offence.ADVISORY_LOCK)
    if session.login_lock:
        return _end(session, Offence.LOGIN_LOCK, same_transaction=True)
    if session.shared and not session.marked:
        if session.active or session.age_ms >= _INTRODUCTION_MS:
            return _end(session, Offence.STRANGER)
        return None
    grace = _RUNTIME_GRACE_MS if session.marked else 0
    if _over(session.transaction_ms, limits.transaction_timeout_ms + grace):
        return _end(session, Offence.TRANSACTION_AGE, same_transaction=True)
    if (session.state or "").startswith("idle in transaction") and _over(
        session.state_ms, limits.idle_transaction_timeout_ms + grace
    ):
        return _end(session, Offence.IDLE_TRANSACTION, same_transaction=True)
    if session.locks > limits.locks_max:
        if session.marked and session.active:
            return Action(session=session, offence=Offence.LOCKS, ends=False, same_statement=True)
        return _end(session, Offence.LOCKS, same_transaction=session.xact_start is not None)
    if session.active and _over(session.statement_ms, limits.statement_timeout_ms + grace):
        stuck = _over(session.statement_ms, limits.statement_timeout_ms + grace + _CANCEL_GRACE_MS)
        return Action(
            session=session, offence=Offence.STATEMENT_TIME, ends=stuck, same_statement=True
        )
    return None


def _excess_long(sessions: Iterable[SessionView], long_ms: int, most: int) -> list[Action]:
    """Statements that take long beyond so many: the runtime's own count first, then the oldest."""
    long = [item for item in sessions if item.active and _over(item.statement_ms, long_ms)]
    long.sort(key=lambda item: (not item.marked, -(item.statement_ms or 0)))
    return [
        _end(item, Offence.LONG_STATEMENTS, same_statement=True)
        for item in long[most:]
        if not item.marked
    ]


def _excess(sessions: Sequence[SessionView], most: int) -> list[Action]:
    """Sessions beyond so many, the youngest; the runtime sees to its own."""
    strange = sorted((item for item in sessions if not item.marked), key=lambda item: item.age_ms)
    return [_end(item, Offence.CONNECTIONS) for item in strange[: max(0, len(sessions) - most)]]


def _end(
    session: SessionView,
    offence: Offence,
    *,
    same_statement: bool = False,
    same_transaction: bool = False,
) -> Action:
    return Action(
        session=session,
        offence=offence,
        ends=True,
        same_statement=same_statement,
        same_transaction=same_transaction and session.xact_start is not None,
    )


def _over(value: int | None, limit: int) -> bool:
    return value is not None and value >= limit
