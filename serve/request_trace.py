"""The span of one request: it begins when it is known who asks, and there are only so many.

A `traceparent` lets its sender decide that a request is traced. So nobody decides before the
credential is known to be good, and those who may decide have one budget per process: what is beyond
it is served without a span, and costs whoever takes the spans nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import Scope

from tenancy.data_isolation.core.trace_context import TraceContext
from tenancy.data_isolation.engine.tracing import Traced, Tracing

#: Where a scope has the trace of its request.
_TRACE: Final = "tenancy.trace"
#: So long may nothing have been traced for as much to be traced at once.
_BURST_S: Final = 1.0


class TraceBudget:
    """How many requests may be traced: so many in a second. Belongs to one event loop."""

    def __init__(self, per_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._interval_s = 1.0 / per_s
        # At least one, however few there are.
        self._burst_s = max(_BURST_S, self._interval_s)
        self._now = now
        self._full_at = 0.0

    def take(self) -> bool:
        """Whether one more may be; it counts then."""
        now = self._now()
        full_at = max(self._full_at, now) + self._interval_s
        if full_at - now > self._burst_s + 1e-9:
            return False
        self._full_at = full_at
        return True


class RequestTraces:
    """Traces requests of one process."""

    def __init__(self, tracing: Tracing, per_s: float) -> None:
        self._tracing = tracing
        self._budget = TraceBudget(per_s)

    @contextmanager
    def tracing(self, scope: Scope, method: str) -> Iterator[RequestTrace]:
        """The trace of the request, which `authenticated` begins."""
        found = [value for name, value in scope["headers"] if name == b"traceparent"]
        # More than one is none (W3C Trace Context, 3.2.1).
        parent = TraceContext.of(found[0].decode("latin-1")) if len(found) == 1 else None
        trace = scope[_TRACE] = RequestTrace(self._tracing, self._budget, method, parent)
        with self._tracing.apart():
            yield trace


class RequestTrace:
    """The span of one request, if it gets one."""

    __slots__ = ("_began_ns", "_budget", "_method", "_parent", "_span", "_tracing")

    def __init__(
        self, tracing: Tracing, budget: TraceBudget, method: str, parent: TraceContext | None
    ) -> None:
        self._tracing = tracing
        self._budget = budget
        self._method = method
        self._parent = parent
        self._began_ns = time.time_ns()
        self._span: Traced | None = None

    def begin(self) -> None:
        """Whoever asks may decide that this is traced."""
        if self._span is not None:
            return
        attributes = {"http.request.method": self._method}
        span = self._tracing.begin(
            self._method, self._parent, attributes, server=True, began_ns=self._began_ns
        )
        # A span that is never ended goes nowhere.
        if span is not None and self._budget.take():
            self._span = span
            self._tracing.follow(span)

    def answered(self, route: str, status: int) -> None:
        """The request was answered, which took a route of that template."""
        if self._span is not None:
            self._tracing.answered(self._span, self._method, route, status)


def authenticated(scope: Scope) -> None:
    """It is known who sends the request, and that it may be traced."""
    trace: RequestTrace | None = scope.get(_TRACE)
    if trace is not None:
        trace.begin()
