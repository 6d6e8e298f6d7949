"""How many operations a tenant may send: per second, and at the same time.

A token bucket per tenant, kept as the time at which it will be full again, so that one addition
stands for refilling it (the generic cell rate algorithm, ITU-T I.371, is the same bucket turned
round). A tenant has one actor, so that one process counts all its operations.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from tenancy.data_isolation.core.errors import RateLimitedError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.tier_limits import TierLimits, limit_variable
from tenancy.data_isolation.core.types import TenantType

#: A result counts as one operation more for each of these: reading and sending it takes as long.
BYTES_PER_OPERATION: Final = 1024
#: When another operation of a tenant that has too many under way has probably ended.
_IN_FLIGHT_RETRY_S: Final = 1.0


class Allowance:
    """What one tenant may still send. Belongs to one event loop."""

    __slots__ = ("_burst_s", "_full_at", "_interval_s", "_now", "_type", "limits", "under_way")

    def __init__(
        self,
        tenant_type: TenantType,
        limits: TierLimits,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        #: Operations that have entered and not left.
        self.under_way = 0
        self._type = tenant_type
        self._now = now
        self._interval_s = 1.0 / limits.operations_per_s
        self._burst_s = limits.operations_burst * self._interval_s
        self._full_at = 0.0

    def enter(self, operations: int = 1) -> None:
        """Let operations in, all or none; follow with `leave`. Raises `RateLimitedError`.

        More at once than the bucket holds are let in when it is full.
        """
        now = self._now()
        full_at = self._full_at
        if full_at < now:
            full_at = now
        full_at += operations * self._interval_s
        excess_s = full_at - now - self._burst_s
        if excess_s > 1e-9 and self._full_at > now:
            raise self._too_fast(min(excess_s, self._full_at - now))
        if self.under_way and self.under_way + operations > self.limits.operations_in_flight_max:
            raise self._too_many()
        self._full_at = full_at
        self.under_way += operations

    def charge(self, result_bytes: int) -> None:
        """Count a large result as so many operations more; they are made up for by waiting."""
        if result_bytes >= BYTES_PER_OPERATION:
            extra = result_bytes // BYTES_PER_OPERATION
            self._full_at = max(self._full_at, self._now()) + extra * self._interval_s

    def leave(self, operations: int = 1) -> None:
        """They have ended."""
        self.under_way -= operations

    def _too_fast(self, wait_s: float) -> RateLimitedError:
        variable = limit_variable(self._type, "operations_per_s")
        return RateLimitedError(
            f"a tenant of type {self._type} may send {self.limits.operations_per_s:g} operations "
            f"per second ({variable}); nothing was done. Wait and try again",
            retry_after_s=wait_s,
        )

    def _too_many(self) -> RateLimitedError:
        variable = limit_variable(self._type, "operations_in_flight_max")
        return RateLimitedError(
            f"a tenant of type {self._type} may have {self.limits.operations_in_flight_max} "
            f"operations under way ({variable}); nothing was done. Wait and try again",
            retry_after_s=_IN_FLIGHT_RETRY_S,
        )


class Allowances:
    """The allowances of the tenants that a process works for: so many, the latest ones."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._known: OrderedDict[TenantNo, Allowance] = OrderedDict()

    def of(self, tenant_no: TenantNo, tenant_type: TenantType, limits: TierLimits) -> Allowance:
        """The tenant's allowance; what it has sent so far is remembered."""
        found = self._known.get(tenant_no)
        if found is None or found.limits != limits:
            found = self._known[tenant_no] = Allowance(tenant_type, limits)
        self._known.move_to_end(tenant_no)
        while len(self._known) > self._entries_max:
            self._known.popitem(last=False)
        return found
