"""How long what comes now would wait behind what is under way, and who is turned away for it.

Where more comes than can be done, a queue grows until everything in it has waited for as long as
its deadline allows: then all the work is for operations that nobody waits for any more. So who
would wait for most of the time that is left is told at once to come again.

The wait follows from Little's law: what is ahead, over how many ended per second lately. Tenants
take turns, so ahead of a tenant with little under way there is as much of each other tenant at
most, however much one of them has sent.

Pure: the caller gives the time. Bounded by what is under way.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from tenancy.data_isolation.core.errors import OverloadedError
from tenancy.data_isolation.core.identifiers import TenantId

#: Of the time until the deadline so much may be waiting; the rest is for the work, and for
#: operations that take longer than others.
_WAIT_SHARE: Final = 0.5
#: With less than that under way nothing is learned about the pace, and with less than twice as much
#: ahead nobody is turned away.
_AHEAD_MIN: Final = 32
#: Over so long is counted what ends, and how much the newest count weighs.
_WINDOW_S: Final = 0.25
_NEWEST_WEIGHT: Final = 0.5
_RETRY_MIN_S: Final = 0.1


class Backlog:
    """Operations under way on one way to the tenants. Belongs to one event loop."""

    __slots__ = ("_counted", "_rate", "_since", "_tenants", "_under_way")

    def __init__(self) -> None:
        self._tenants: Counter[TenantId] = Counter()
        self._under_way = 0
        #: Operations per second that ended while there was enough to do; None = not known yet.
        self._rate: float | None = None
        self._since: float | None = None
        self._counted = 0

    def enter(self, tenant: TenantId, deadline_s: float) -> None:
        """Let an operation in; follow with `leave`. Raises `OverloadedError`."""
        if self._under_way >= _AHEAD_MIN:
            self._check(tenant, deadline_s)
        self._under_way += 1
        self._tenants[tenant] += 1

    def leave(self, tenant: TenantId, now: float, *, done: bool) -> None:
        """One has ended; `done` unless it was turned away further on."""
        self._under_way -= 1
        left = self._tenants[tenant] - 1
        if left:
            self._tenants[tenant] = left
        else:
            del self._tenants[tenant]
        if self._under_way < _AHEAD_MIN:
            # What ends now is as much as comes, and not as much as could be done.
            self._since = None
        elif self._since is None:
            self._since, self._counted = now, 0
        else:
            self._counted += done
            self._learn(now)

    def _learn(self, now: float) -> None:
        # Asked when something has ended, be it by its deadline: while the caller is busy sending,
        # what has ended meanwhile has not been heard of.
        if self._since is None or now - self._since < _WINDOW_S:
            return
        rate = self._counted / (now - self._since)
        if self._rate is not None:
            rate = _NEWEST_WEIGHT * rate + (1 - _NEWEST_WEIGHT) * self._rate
        self._rate, self._since, self._counted = rate, now, 0

    def _check(self, tenant: TenantId, deadline_s: float) -> None:
        turns = len(self._tenants) * (self._tenants[tenant] + 1)
        ahead = min(self._under_way, turns)
        # Twice: else a pace that was learned while everything stood still would let in so few that
        # no other one is ever learned.
        if self._rate is None or ahead < 2 * _AHEAD_MIN:
            return
        allowed_s = deadline_s * _WAIT_SHARE
        if ahead <= self._rate * allowed_s:
            return
        wait_s = ahead / self._rate if self._rate else deadline_s
        raise OverloadedError(
            f"{ahead} operations are ahead of it, and it would hardly be done before its deadline; "
            "nothing was done; wait and try again",
            retry_after_s=min(max(wait_s - allowed_s, _RETRY_MIN_S), deadline_s),
        )
