"""How much one HTTP process works on at the same time, over all tenants and per tenant.

Rules this module keeps: who cannot be admitted is turned away at once and told when to come again,
so nothing piles up here; what a request was given it gives back when it ends, however it ends.
Belongs to one event loop.
"""

from __future__ import annotations

from collections import Counter

from tenancy.data_isolation.core import Settings
from tenancy.data_isolation.core.errors import OverloadedError, RateLimitedError
from tenancy.data_isolation.core.identifiers import TenantId

_RETRY_AFTER_S = 1.0


class Admission:
    """Counts requests, tenants' requests and the bytes of bodies, against their limits."""

    def __init__(self, settings: Settings) -> None:
        self._requests_max = settings.requests_in_flight_max
        self._tenant_requests_max = settings.tenant_requests_in_flight_max
        self._bytes_max = settings.request_bytes_in_flight_max
        self._requests = 0
        self._bytes = 0
        self._tenants: Counter[TenantId] = Counter()
        self._streams_max = settings.streams_in_flight_max
        self._tenant_streams_max = settings.tenant_streams_in_flight_max
        self._streams: Counter[TenantId] = Counter()

    @property
    def requests(self) -> int:
        """Requests that are being worked on."""
        return self._requests

    @property
    def body_bytes(self) -> int:
        """Bytes that their bodies take."""
        return self._bytes

    @property
    def tenants(self) -> int:
        """Tenants that have a request in work."""
        return len(self._tenants)

    @property
    def streams(self) -> int:
        """Answers that are sent as streams."""
        return self._streams.total()

    def admit(self) -> Admitted:
        """Let one more request in; `OverloadedError` when there are too many."""
        if self._requests >= self._requests_max:
            raise OverloadedError(
                f"{self._requests_max} requests are being worked on "
                "(TENANCY_REQUESTS_IN_FLIGHT_MAX); nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._requests += 1
        return Admitted(self)

    def _take_bytes(self, count: int) -> None:
        if self._bytes + count > self._bytes_max:
            raise OverloadedError(
                f"bodies of requests take {self._bytes_max} bytes already "
                "(TENANCY_REQUEST_BYTES_IN_FLIGHT_MAX); nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._bytes += count

    def _take_tenant(self, tenant_id: TenantId) -> None:
        if self._tenants[tenant_id] >= self._tenant_requests_max:
            raise RateLimitedError(
                f"{self._tenant_requests_max} requests of this tenant are being worked on "
                "(TENANCY_TENANT_REQUESTS_IN_FLIGHT_MAX); nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._tenants[tenant_id] += 1

    def _take_stream(self, tenant_id: TenantId) -> None:
        if self._streams.total() >= self._streams_max:
            raise OverloadedError(
                f"{self._streams_max} streams of results are being sent "
                "(TENANCY_STREAMS_IN_FLIGHT_MAX); nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._streams[tenant_id] >= self._tenant_streams_max:
            raise RateLimitedError(
                f"{self._tenant_streams_max} streams of this tenant's results are being sent "
                "(TENANCY_TENANT_STREAMS_IN_FLIGHT_MAX); nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._streams[tenant_id] += 1

    def _end_stream(self, tenant_id: TenantId) -> None:
        self._streams[tenant_id] -= 1
        if not self._streams[tenant_id]:
            del self._streams[tenant_id]

    def _give_back(self, body_bytes: int, tenant_id: TenantId | None) -> None:
        self._requests -= 1
        self._bytes -= body_bytes
        if tenant_id is not None:
            self._tenants[tenant_id] -= 1
            if not self._tenants[tenant_id]:
                # An entry per tenant ever seen would be a list that only grows.
                del self._tenants[tenant_id]


class Admitted:
    """What one request was given. `leave` gives it back, once."""

    __slots__ = ("_admission", "_body_bytes", "_left", "_streams", "_tenant_id")

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._body_bytes = 0
        self._tenant_id: TenantId | None = None
        self._streams = False
        self._left = False

    def take_bytes(self, count: int) -> None:
        """Account for so many more bytes of the body; `OverloadedError`."""
        self._admission._take_bytes(count)
        self._body_bytes += count

    def take_tenant(self, tenant_id: TenantId) -> None:
        """Account for the request as one of this tenant's; `RateLimitedError`."""
        self._admission._take_tenant(tenant_id)
        self._tenant_id = tenant_id

    def take_stream(self, tenant_id: TenantId) -> None:
        """Account for an answer that is sent as a stream; `OverloadedError`, `RateLimitedError`.

        Results are in memory until they are sent, and a slow client takes its time.
        """
        self._admission._take_stream(tenant_id)
        self._tenant_id = tenant_id
        self._streams = True

    def leave(self) -> None:
        """The request has ended."""
        if not self._left:
            self._left = True
            if self._streams and self._tenant_id is not None:
                self._admission._end_stream(self._tenant_id)
            self._admission._give_back(self._body_bytes, self._tenant_id)
