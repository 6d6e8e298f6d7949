"""What this process tells Prometheus of its requests, and of what it has asked the actors.

By tenant only for the few busiest, and only when `metrics_top_tenants_max` asks for it: a label per
tenant would be a series per tenant. Each process counts its requests for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core import IsolationLevel
from tenancy.data_isolation.core.rules import LEVEL_OF_STRATEGY, StrategyName
from tenancy.data_isolation.engine.operation_figures import Figures
from tenancy.data_isolation.serve.admission import Admission
from tenancy.data_isolation.serve.operation_metrics import OperationCollector
from tenancy.data_isolation.serve.watchdog_report import WatchdogCollector

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
#: The route of a request that no route takes.
NO_ROUTE = "none"

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class HttpMetrics:
    """Requests by route, method and status, with their times. Belongs to one event loop."""

    def __init__(self, admission: Admission, watchdog_report: Path, top_tenants_max: int) -> None:
        """`watchdog_report` is the file that tells what the daemon's watchdogs do.

        `top_tenants_max` is how many tenants are named, the busiest; 0 = none.
        """
        self._registry = CollectorRegistry()
        self._operations = OperationCollector(top_tenants_max)
        self._registry.register(self._operations)
        self._registry.register(WatchdogCollector(watchdog_report))
        self._requests = Counter(
            "tenancy_http_requests",
            "Requests that have ended.",
            ("route", "method", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "tenancy_http_request_seconds",
            "Time from the first byte of a request to the last of its answer.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._tenants = Gauge(
            "tenancy_tenants",
            "Tenants at each isolation level.",
            ("level",),
            registry=self._registry,
        )
        self._hybrids = Gauge(
            "tenancy_hybrid_tenants",
            "Tenants at level row that keep sensitive tables in a schema of their own.",
            registry=self._registry,
        )
        for name, text, read in (
            ("tenancy_http_requests_in_flight", "Requests in work.", lambda: admission.requests),
            ("tenancy_http_body_bytes", "Bytes of their bodies.", lambda: admission.body_bytes),
            ("tenancy_http_tenants_in_flight", "Their tenants.", lambda: admission.tenants),
            ("tenancy_http_streams_in_flight", "Results being sent.", lambda: admission.streams),
        ):
            Gauge(name, text, registry=self._registry).set_function(read)
        # Looking a labelled series up takes longer than counting in it.
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def record(self, route: str, method: str, status: int, elapsed_s: float) -> None:
        """One more request has ended. `route` and `method` come from fixed lists."""
        key = (route, method, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(route, method, str(status))
        counter.inc()
        histogram = self._histograms.get(route)
        if histogram is None:
            histogram = self._histograms[route] = self._seconds.labels(route)
        histogram.observe(elapsed_s)

    def exposition(
        self,
        tenants: Mapping[StrategyName, int] | None,
        operations: Mapping[ActorName, Figures | None],
    ) -> bytes:
        """Everything in Prometheus's text format.

        `tenants` are those that each strategy holds; None = they are not known now. `operations` is
        what the tenant actors tell.
        """
        self._operations.take(operations)
        for level in IsolationLevel:
            holding = [name for name, at in LEVEL_OF_STRATEGY.items() if at is level]
            count = math.nan if tenants is None else sum(tenants.get(name, 0) for name in holding)
            self._tenants.labels(level.value).set(count)
        self._hybrids.set(math.nan if tenants is None else tenants.get(StrategyName.HYBRID, 0))
        return generate_latest(self._registry)
