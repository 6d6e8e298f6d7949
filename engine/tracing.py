"""Spans of traced requests, through gateway, actor and PostgreSQL (OpenTelemetry, OTLP over HTTP).

There is a `Tracing` only where `TENANCY_TRACES_ENDPOINT` is set; everybody else has None and asks
nothing more. Spans are sent by a thread of the SDK; what it cannot send in time is dropped.

Rules this module keeps:

* No statement's text, parameter or value gets into a span, nor an error's words, which may quote
  them: kinds of statement are named by fingerprint, errors by their slug and SQLSTATE.
* What is not sampled costs nothing beyond the gateway: it is not carried on.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

from tenancy.data_isolation.core.errors import SettingError, TenancyError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.trace_context import TraceContext
from tenancy.data_isolation.engine.statement import Statement

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

    from tenancy.data_isolation.engine.ticket import Ticket

#: The span that an operation is a part of.
Traced: TypeAlias = "Span"

_EXPORT_TIMEOUT_S: Final = 5.0
#: Other operations of a flight that a span names.
_LINKS_MAX: Final = 32
_NS: Final = 1e9
_SERVER_ERROR: Final = 500
_current: ContextVar[Traced | None] = ContextVar("tenancy_span", default=None)


def check_traces(settings: Settings) -> None:
    """Raise `SettingError` for an endpoint that spans cannot be sent to."""
    endpoint = settings.traces_endpoint
    if endpoint is None:
        return
    try:
        parts = urlsplit(endpoint)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise SettingError(
            "TENANCY_TRACES_ENDPOINT is no URL of http or https; name where OTLP is taken over "
            "HTTP, as in http://127.0.0.1:4318/v1/traces"
        )


def outgoing() -> str | None:
    """The `traceparent` of the span that this task works for, if that one is recorded.

    The runtime's own, or the one that the caller's program has made with OpenTelemetry.
    """
    from opentelemetry import trace

    span = _current.get() or trace.get_current_span()
    found = span.get_span_context()
    if not found.is_valid or not found.trace_flags.sampled:
        return None
    return str(TraceContext(found.trace_id, found.span_id, sampled=True))


class Tracing:
    """Makes spans. Safe for use from any task."""

    def __init__(self, provider: TracerProvider) -> None:
        """Use `of`. The provider is closed with it."""
        from opentelemetry import trace

        self._trace = trace
        self._provider = provider
        self._tracer = provider.get_tracer("tenancy.data_isolation")

    @classmethod
    def of(cls, settings: Settings, process: str) -> Tracing | None:
        """What the settings ask for; None = nothing is traced. `process` says what this one is."""
        if settings.traces_endpoint is None:
            return None
        check_traces(settings)
        # Imported late: most installations trace nothing.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

        name = os.environ.get("OTEL_SERVICE_NAME", "tenancy")
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.traces_sample_percent / 100)),
            resource=Resource.create({"service.name": name, "tenancy.process": process}),
        )
        exporter = OTLPSpanExporter(settings.traces_endpoint, timeout=_EXPORT_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def begin(
        self,
        name: str,
        parent: TraceContext | None,
        attributes: Mapping[str, Any],
        *,
        server: bool,
        began_ns: int | None = None,
    ) -> Traced | None:
        """A span that has to be ended; None when this trace is not recorded.

        `began_ns` is when it began (`time.time_ns`), where that is not now.
        """
        kind = self._trace.SpanKind.SERVER if server else self._trace.SpanKind.INTERNAL
        context = self._trace.set_span_in_context(self._remote(parent))
        span = self._tracer.start_span(name, context, kind, attributes, start_time=began_ns)
        return span if span.is_recording() else None

    @contextmanager
    def following(self, span: Traced) -> Iterator[None]:
        """What this task asks for meanwhile is part of the span."""
        token = _current.set(span)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """What this task asks for meanwhile is part of no span, until it says `follow`."""
        token = _current.set(None)
        try:
            yield
        finally:
            _current.reset(token)

    def follow(self, span: Traced) -> None:
        """What this task asks for from now on is part of the span; see `apart`."""
        _current.set(span)

    def end(self, span: Traced, outcome: object) -> None:
        """The span's work is done; an error in `outcome`, or None for nobody waits, is told."""
        if isinstance(outcome, TenancyError):
            self._failed(span, outcome)
        elif outcome is None:
            span.set_status(self._trace.StatusCode.ERROR)
            span.set_attribute("error.type", "cancelled")
        span.end()

    def answered(self, span: Traced, method: str, route: str, status: int) -> None:
        """A request was answered, which took a route of that template."""
        span.update_name(f"{method} {route}")
        span.set_attributes({"http.route": route, "http.response.status_code": status})
        if status >= _SERVER_ERROR:
            span.set_status(self._trace.StatusCode.ERROR)
            span.set_attribute("error.type", str(status))
        span.end()

    def current(self) -> Traced | None:
        """The span that this task works for."""
        return _current.get()

    def land(self, tickets: Sequence[Ticket], departed_s: float) -> None:
        """A flight has ended that began at `departed_s` (`time.monotonic`).

        Each traced operation gets a span of its own in its own trace, with links to the others that
        travelled along.
        """
        traced = [(item, item.traced) for item in tickets if item.traced is not None]
        if not traced:
            return
        ended_ns = time.time_ns()
        began_ns = ended_ns - int((time.monotonic() - departed_s) * _NS)
        contexts = [span.get_span_context() for _, span in traced]
        for ticket, parent in traced:
            own = parent.get_span_context()
            span = self._tracer.start_span(
                "PostgreSQL flight",
                self._trace.set_span_in_context(parent),
                self._trace.SpanKind.CLIENT,
                _attributes(ticket, len(tickets), departed_s),
                [self._trace.Link(other) for other in _others(contexts, own)],
                began_ns,
            )
            future = ticket.future
            if future.done() and not future.cancelled():
                error = future.exception()
                if isinstance(error, TenancyError):
                    self._failed(span, error)
            span.end(ended_ns)

    async def close(self) -> None:
        """Send what is there, as far as that goes in a few seconds."""
        try:
            async with asyncio.timeout(_EXPORT_TIMEOUT_S):
                await asyncio.to_thread(self._provider.shutdown)
        except TimeoutError:
            pass

    def _remote(self, parent: TraceContext | None) -> Traced:
        if parent is None:
            return self._trace.INVALID_SPAN
        flags = self._trace.TraceFlags(self._trace.TraceFlags.SAMPLED if parent.sampled else 0)
        return self._trace.NonRecordingSpan(
            self._trace.SpanContext(
                parent.trace_id, parent.span_id, is_remote=True, trace_flags=flags
            )
        )

    def _failed(self, span: Traced, error: TenancyError) -> None:
        span.set_status(self._trace.StatusCode.ERROR)
        span.set_attribute("error.type", error.slug)
        if error.sqlstate is not None:
            span.set_attribute("db.response.status_code", error.sqlstate)


def _attributes(ticket: Ticket, operations: int, departed_s: float) -> dict[str, Any]:
    """What is told of an operation, named as OpenTelemetry's conventions for databases have it."""
    found: dict[str, Any] = {
        "db.system.name": "postgresql",
        "tenancy.server": ticket.key.server,
        "tenancy.flight.operations": operations,
    }
    if ticket.began_s:
        found["tenancy.queue_s"] = departed_s - ticket.began_s
    statement: Statement | None = ticket.statement
    if statement is not None:
        found["tenancy.fingerprint"] = statement.fingerprint
        found["tenancy.statement.kind"] = statement.kind.value
        found["tenancy.tables"] = sorted(statement.tables)
    return found


def _others(contexts: Sequence[SpanContext], own: SpanContext) -> list[SpanContext]:
    return [item for item in contexts if item.span_id != own.span_id][:_LINKS_MAX]
