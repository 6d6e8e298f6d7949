"""Those who wait for a session on a server, and the sessions of one kind."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.engine.session_key import SessionKey


class Session(Protocol):
    """What the pool knows of a session (`connection.Connection`)."""

    key: SessionKey
    used_at: float

    @property
    def bound_tenant(self) -> TenantNo | None:
        """The tenant it is bound to."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it is over."""
        ...

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when its slot on the server is free."""
        ...

    async def close(self) -> None:
        """Say goodbye and wait for the end."""
        ...

    def abort(self) -> None:
        """Drop it."""
        ...


class Request(ABC):
    """Something that needs a session. Belongs to the event loop of its pool."""

    __slots__ = (
        "alone",
        "departed_at",
        "give_up_at",
        "key",
        "limits",
        "result_bytes",
        "size",
        "tenant_no",
    )

    def __init__(
        self,
        key: SessionKey,
        tenant_no: TenantNo,
        *,
        limits: TierLimits,
        give_up_at: float = float("inf"),
    ) -> None:
        self.key = key
        self.tenant_no = tenant_no
        #: What the tenant may take.
        self.limits = limits
        #: Whether it cannot travel together with others.
        self.alone = False
        #: When (event loop's time) a session began to work for it and for nobody else.
        self.departed_at = 0.0
        #: Bytes that its results had on the way from the server.
        self.result_bytes = 0
        #: Bytes of its parameters.
        self.size = 0
        #: When (event loop's time) it stops waiting for a session. The pool sets a time that is
        #: not later than this one.
        self.give_up_at = give_up_at

    @property
    @abstractmethod
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more."""

    @abstractmethod
    def refuse(self, error: TenancyError) -> None:
        """It will not be done: nothing was done for it."""


class Line:
    """Those who wait for one kind of session, and the sessions of that kind."""

    __slots__ = (
        "busy",
        "called",
        "idle",
        "key",
        "limit",
        "opening",
        "paused_until",
        "promised",
        "since",
        "tenants",
        "waiting",
    )

    def __init__(self, key: SessionKey, limit: int, now: float) -> None:
        self.key = key
        self.limit = limit
        #: Tenants in the order of their turns, with their requests in order.
        self.tenants: OrderedDict[TenantNo, deque[Any]] = OrderedDict()
        self.waiting = 0
        #: Free sessions; the one that was used last comes last.
        self.idle: dict[Any, None] = {}
        self.busy = 0
        self.opening = 0
        #: Sessions of other lines that are being closed to make room for one of this line.
        self.promised = 0
        #: Since when the line waits for a session: the last time it got one, or became a line.
        self.since = now
        #: No session of this kind is opened before.
        self.paused_until = 0.0
        #: It will be served in this turn of the event loop.
        self.called = False

    @property
    def sessions(self) -> int:
        """Sessions that are free, at work or being opened."""
        return len(self.idle) + self.busy + self.opening

    @property
    def empty(self) -> bool:
        """Whether there is nobody and nothing in it."""
        return not (self.waiting or self.sessions)


def least_missed(
    line: Line, idle: Iterable[Any], lines: Mapping[SessionKey, Line], cold_at: float
) -> Any:
    """The free session of another line that can best be spared for this one; None when none can.

    `idle` begins with the one that was free for longest. If it was last used before `cold_at`
    (event loop's time) it goes; else one of a line that has several; else, for a line that has
    none or has waited since before that time, somebody's only one. Otherwise lines that work all
    the time would take their sessions from each other again and again.
    """
    oldest = None
    for session in idle:
        if session.key == line.key:
            continue
        if session.used_at <= cold_at or lines[session.key].sessions > line.sessions + 1:
            return session
        oldest = oldest or session
    return None if line.sessions and line.since > cold_at else oldest
