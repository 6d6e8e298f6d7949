"""What operations came to at the tenant actors, as Prometheus reads it from the HTTP endpoint.

Actors have no HTTP, so each scrape asks them. By actor and isolation level, never by tenant, unless
`TENANCY_METRICS_TOP_TENANTS_MAX` names the busiest: a series per tenant would be too many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tenancy.data_isolation.actors.directory import ActorName, is_dedicated
from tenancy.data_isolation.core.latency_buckets import BUCKETS_PER_DOUBLING, SMALLEST_S
from tenancy.data_isolation.engine.operation_figures import Figures, LevelFigures, TopTenant

#: Bounds of the histogram, in doublings of a microsecond: 0.26 ms to 16.8 s. They are bounds of the
#: sketch's own buckets, so that nothing is counted on the wrong side.
_DOUBLINGS: Final = range(8, 25)
#: Actors of single tenants are one: their names have the tenants' numbers.
_DEDICATED: Final = "dedicated"
_LABELS: Final = ("actor", "level")
_SUMS: Final = (
    ("queue_s", "tenancy_operation_queue_seconds", "Time that operations waited for a session."),
    ("busy_s", "tenancy_operation_busy_seconds", "Time that sessions were at work for them."),
    ("rows", "tenancy_operation_rows", "Rows returned, or changed where none are returned."),
    ("result_bytes", "tenancy_operation_result_bytes", "Bytes of results from PostgreSQL."),
    ("cache_hits", "tenancy_operation_cache_hits", "Operations that a cache of results answered."),
)


class OperationCollector(Collector):
    """The figures that were fetched last."""

    def __init__(self, top_max: int) -> None:
        """`top_max` is how many tenants are named at most."""
        self._top_max = top_max
        self.figures: Mapping[ActorName, Figures | None] = {}

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
        for name, found in _by_label(self.figures):
            answered = [item for item in found if item is not None]
            up.add_metric((name,), len(answered) / len(found))
            for outcome, number in (
                ("written", sum(item.windows_written for item in answered)),
                ("lost", sum(item.windows_lost for item in answered)),
            ):
                written.add_metric((name, outcome), number)
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
        for name, found in _by_label(self.figures):
            for level, figures in _by_level(found):
                labels = (name, level)
                for outcome in sorted({key for item in figures for key in item.outcomes}):
                    count = sum(item.outcomes[outcome] for item in figures)
                    operations.add_metric((*labels, outcome), count)
                seconds.add_metric(labels, _buckets(figures), sum(i.latency_s for i in figures))
                for (field, _, _), metric in zip(_SUMS, sums, strict=True):
                    metric.add_metric(labels, sum(getattr(item, field) for item in figures))
        yield operations
        yield seconds
        yield from sums

    def _top(self) -> Iterator[Metric]:
        if not self._top_max:
            return
        told = [item for found in self.figures.values() if found for item in found.top]
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
        found.setdefault(_DEDICATED if is_dedicated(name) else name, []).append(item)
    return list(found.items())


def _by_level(figures: list[Figures | None]) -> list[tuple[str, list[LevelFigures]]]:
    found: dict[str, list[LevelFigures]] = {}
    for item in figures:
        for level, of_level in item.levels.items() if item else ():
            found.setdefault(level, []).append(of_level)
    return sorted(found.items())


def _buckets(figures: list[LevelFigures]) -> list[tuple[str, float]]:
    """The sketches as Prometheus has histograms: how many took no longer than each bound."""
    counts: Counter[int] = Counter()
    for item in figures:
        counts.update(item.latencies)
    found: list[tuple[str, float]] = []
    for doubling in _DOUBLINGS:
        below = sum(n for at, n in counts.items() if at < doubling * BUCKETS_PER_DOUBLING)
        found.append((f"{SMALLEST_S * 2**doubling:.9g}", below))
    return [*found, ("+Inf", sum(counts.values()))]
