"""Statements that take long: how many of them may run at the same time in one pool.

Whoever runs a stream of statements that take long gets one processor after the other, since
PostgreSQL knows no shares. So a tenant that has one at work, or had one a moment ago, runs no more
than its type may at the same time; and beyond one for each tenant, all together run no more than
leave a processor to the others. Statements that are known to be quick are not counted here, until
one of them takes long after all.

Who is not known yet begins with as many, and each statement that ends quickly gives room for one
more. What turns out long among more than may be is let go on for a moment only: `crowded` says then
which have to make room and wait for their turn.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final

from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tier_limits import TierLimits

#: How long a tenant counts as one that runs long statements after the last one has ended.
_MEMORY_S: Final = 2.0
#: A session whose statement took so many times as long as a long one is not used again.
SPENT_FACTOR: Final = 2
#: From here on a result takes milliseconds to read.
_LARGE_BYTES: Final = 256 * 1024


def server_long_statements_max(settings: Settings) -> int:
    """Long statements on one server: as set, else one less than this machine has processors."""
    return settings.server_long_statements_max or max(1, (os.cpu_count() or 2) - 1)


@dataclass(slots=True, eq=False)
class _Work:
    """The statements of a tenant that are at work alone, the oldest first: when each began."""

    began: list[float] = field(default_factory=list)
    #: Until when the tenant counts as one that runs long statements.
    long_until: float = 0.0
    #: Statements beyond those that may be long that it may have at work, and since when it has it.
    trust: int = 0
    trusted_at: float = 0.0


class LongStatements:
    """What is at work alone in one pool. Times are those of the event loop."""

    def __init__(self, settings: Settings) -> None:
        self.long_s = settings.long_statement_ms / 1_000
        self._server_max = server_long_statements_max(settings)
        self._tenants: dict[TenantNo, _Work] = {}
        #: When the statement of a session began that is counted.
        self._began: dict[Hashable, float] = {}

    def departed(self, session: Hashable, tenant_no: TenantNo, began: float) -> None:
        """A statement of the tenant went to work in the session."""
        self._began[session] = began
        self._tenants.setdefault(tenant_no, _Work()).began.append(began)

    def landed(
        self, session: Hashable, tenant_no: TenantNo, now: float, *, result_bytes: int
    ) -> bool:
        """What the session did for the tenant has ended; whether the session is spent.

        A large result keeps this process busy instead of the server, and counts as well.
        """
        began = self._began.pop(session, None)
        if began is None:
            return False
        work = self._tenants[tenant_no]
        work.began.remove(began)
        long = now - began >= self.long_s
        if long or result_bytes >= _LARGE_BYTES:
            work.long_until = now + _MEMORY_S
            work.trust = 0
        else:
            work.trust += 1
            work.trusted_at = now
        return now - began >= self.long_s * SPENT_FACTOR

    def may_depart(self, tenant_no: TenantNo, limits: TierLimits, now: float) -> bool:
        """Whether another statement of the tenant may go to work beside those that are."""
        work = self._tenants.get(tenant_no)
        if work is None:
            return True
        if not self._is_long(work, now):
            return len(work.began) < limits.long_statements_max + work.trust
        # One at a time is nobody's too many: on a server that is slow, all statements take long.
        if not work.began:
            return True
        return len(work.began) < limits.long_statements_max and self._long(now) < self._server_max

    def is_held(self, tenant_no: TenantNo, now: float) -> bool:
        """Whether the tenant's statements wait because it runs long ones."""
        work = self._tenants.get(tenant_no)
        return work is not None and self._is_long(work, now)

    def crowded(
        self, session: Hashable, tenant_no: TenantNo, began: float, limits: TierLimits, now: float
    ) -> bool:
        """Whether a statement that turned out long has to make room for those before it.

        One that was known to be quick counts from now on.
        """
        if session not in self._began:
            self.departed(session, tenant_no, began)
        work = self._tenants[tenant_no]
        own = sum(other < began for other in work.began)
        if own >= limits.long_statements_max or not own:
            return bool(own)
        before = sum(
            other < began and now - other >= self.long_s
            for item in self._tenants.values()
            for other in item.began
        )
        return before >= self._server_max

    def forget_old(self, now: float) -> None:
        """Forget tenants that have been quiet for a while."""
        for tenant_no, work in list(self._tenants.items()):
            quiet_since = max(work.long_until, work.trusted_at + _MEMORY_S)
            if not work.began and quiet_since <= now:
                del self._tenants[tenant_no]

    def _is_long(self, work: _Work, now: float) -> bool:
        return now < work.long_until or bool(work.began and now - work.began[0] >= self.long_s)

    def _long(self, now: float) -> int:
        """Statements at work of tenants that count as running long ones."""
        return sum(len(work.began) for work in self._tenants.values() if self._is_long(work, now))
