"""What operations came to at the tenant actors, as Prometheus reads it from the HTTP endpoint.

Actors have no HTTP, so each scrape asks them. By actor and isolation level, never by tenant, unless
`TENANCY_METRICS_TOP_TENANTS_MAX` names the busiest: a series per tenant would be too many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core.latency_buckets import BUCKETS_PER_DOUBLING, SMALLEST_S
from tenancy.data_isolation.engine.operation_figures import Figures, TopTenant
from tenancy.data_isolation.serve.lasting_figures import ActorFigures, label_of

#: Bounds of the histogram, in doublings of a microsecond: 0.26 ms to 16.8 s. They are bounds of the
#: sketch's own buckets, so that nothing is counted on the wrong side.
_DOUBLINGS: Final = range(8, 25)
_LABELS: Final = ("actor", "level")
_SUMS: Final = (
    ("queue_s", "tenancy_operation_queue_seconds", "Time that operations waited for a session."),
    ("busy_s", "tenancy_operation_busy_seconds", "Time that sessions were at work for them."),
    ("rows", "tenancy_operation_rows", "Rows returned, or changed where none are returned."),
    ("result_bytes", "tenancy_operation_result_bytes", "Bytes of results from PostgreSQL."),
    ("cache_hits", "tenancy_operation_cache_hits", "Operations that a cache of results answered."),
)


class OperationCollector(Collector):
    """The figures that were fetched last, and what they have come to."""

    def __init__(self, top_max: int) -> None:
        """`top_max` is how many tenants are named at most."""
        self._top_max = top_max
        self._figures: Mapping[ActorName, Figures | None] = {}
        self._lasting = ActorFigures()

    def take(self, figures: Mapping[ActorName, Figures | None]) -> None:
        """Tell of these figures from now on; None = the actor does not answer."""
        self._figures = figures
        self._lasting.take(figures)

    def collect(self) -> Iterator[Metric]:
        """Everything, once for each actor and level."""
        up = GaugeMetricFamily(
            "tenancy_actor_up", "Whether the actor told of its operations.", labels=("actor",)
        )
        written = CounterMetricFamily(
            "tenancy_measured_windows",
            "Measured windows by what became of them.",
            labels=("actor", "outcome"),
        )
        for name, found in _by_label(self._figures):
            up.add_metric((name,), sum(item is not None for item in found) / len(found))
        for name, known in self._lasting.found.items():
            written.add_metric((name, "written"), known.windows_written)
            written.add_metric((name, "lost"), known.windows_lost)
        yield up
        yield written
        yield from self._levels()
        yield from self._top()

    def _levels(self) -> Iterator[Metric]:
        operations = CounterMetricFamily(
            "tenancy_operations", "Operations that have ended.", labels=(*_LABELS, "outcome")
        )
        seconds = HistogramMetricFamily(
            "tenancy_operation_seconds", "Time of operations in their actor.", labels=_LABELS
        )
        sums = [CounterMetricFamily(name, text, labels=_LABELS) for _, name, text in _SUMS]
        for name, known in self._lasting.found.items():
            for level, figures in sorted(known.levels.items()):
                labels = (name, level)
                for outcome, count in sorted(figures.outcomes.items()):
                    operations.add_metric((*labels, outcome), count)
                seconds.add_metric(labels, _buckets(figures.latencies), figures.latency_s)
                for (field, _, _), metric in zip(_SUMS, sums, strict=True):
                    metric.add_metric(labels, getattr(figures, field))
        yield operations
        yield seconds
        yield from sums

    def _top(self) -> Iterator[Metric]:
        if not self._top_max:
            return
        told = [item for found in self._figures.values() if found for item in found.top]
        told.sort(key=lambda item: item.busy_s / item.window_s, reverse=True)
        top: dict[str, TopTenant] = {}
        for item in told[: self._top_max]:
            # One that changed its actor in the window counts where more was done for it.
            top.setdefault(item.tenant_id, item)
        for field, name, text in (
            ("operations", "operations_per_second", "Operations per second"),
            ("not_done", "errors_per_second", "Operations that were not done, per second"),
            ("busy_s", "busy_ratio", "Sessions at work"),
        ):
            metric = GaugeMetricFamily(
                f"tenancy_top_tenant_{name}",
                f"{text}, in the last window, of the tenants that kept sessions busiest.",
                labels=("tenant",),
            )
            for tenant_id, item in top.items():
                metric.add_metric((tenant_id,), getattr(item, field) / item.window_s)
            yield metric


def _by_label(
    figures: Mapping[ActorName, Figures | None],
) -> list[tuple[str, list[Figures | None]]]:
    found: dict[str, list[Figures | None]] = {}
    for name, item in sorted(figures.items()):
        found.setdefault(label_of(name), []).append(item)
    return list(found.items())


def _buckets(counts: Mapping[int, int]) -> list[tuple[str, float]]:
    """A sketch as Prometheus has histograms: how many took no longer than each bound."""
    found: list[tuple[str, float]] = []
    for doubling in _DOUBLINGS:
        below = sum(n for at, n in counts.items() if at < doubling * BUCKETS_PER_DOUBLING)
        found.append((f"{SMALLEST_S * 2**doubling:.9g}", below))
    return [*found, ("+Inf", sum(counts.values()))]
