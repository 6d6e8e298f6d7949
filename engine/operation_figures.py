"""What operations came to in one process since it began, as it crosses to who tells Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.performance import Outcome
from tenancy.data_isolation.engine.measured_windows import Cell, MeasuredWindow

#: In place of the level of tenants that there was no room to tell apart.
_NO_LEVEL: Final = "other"
_COUNTS: Final = ("rows", "result_bytes", "cache_hits")
_SUMS: Final = ("latency_s", "queue_s", "busy_s", *_COUNTS)


@dataclass(kw_only=True, slots=True)
class LevelFigures:
    """What operations of tenants of one level came to since the process began."""

    outcomes: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    latency_s: float = 0.0
    queue_s: float = 0.0
    busy_s: float = 0.0
    rows: int = 0
    result_bytes: int = 0
    cache_hits: int = 0

    def copy(self) -> LevelFigures:
        """The figures as they are now."""
        return replace(self, outcomes=self.outcomes.copy(), latencies=self.latencies.copy())

    def add(self, cell: Cell) -> None:
        """Count a cell in."""
        not_done = cell.refused + cell.failed + cell.unavailable + cell.cancelled
        self.outcomes.update(
            {
                Outcome.DONE.value: cell.operations - not_done,
                Outcome.REFUSED.value: cell.refused,
                Outcome.FAILED.value: cell.failed,
                Outcome.UNAVAILABLE.value: cell.unavailable,
                "cancelled": cell.cancelled,
            }
        )
        self.latencies.update(cell.latencies)
        self.latency_s += cell.latency_s
        self.queue_s += cell.queue_s
        self.busy_s += cell.busy_s
        self.rows += cell.rows
        self.result_bytes += cell.result_bytes
        self.cache_hits += cell.cache_hits

    def covers(self, earlier: LevelFigures) -> bool:
        """Whether no count is less than it was. Times are added up in another order each time."""
        return (
            all(self.outcomes[key] >= count for key, count in earlier.outcomes.items())
            and all(self.latencies[key] >= count for key, count in earlier.latencies.items())
            and all(getattr(self, name) >= getattr(earlier, name) for name in _COUNTS)
        )

    def since(self, earlier: LevelFigures) -> LevelFigures:
        """What was added since these figures were `earlier`, which they cover."""
        return LevelFigures(
            outcomes=self.outcomes - earlier.outcomes,
            latencies=self.latencies - earlier.latencies,
            **{name: max(getattr(self, name) - getattr(earlier, name), 0) for name in _SUMS},
        )

    def include(self, other: LevelFigures) -> None:
        """Count others in."""
        self.outcomes.update(other.outcomes)
        self.latencies.update(other.latencies)
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class TopTenant:
    """A tenant that was among the busiest of a window."""

    tenant_id: TenantId
    operations: int
    not_done: int
    busy_s: float
    window_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What one process tells of its operations: sums by level, never by tenant but for `top`."""

    levels: Mapping[str, LevelFigures]
    windows_written: int
    windows_lost: int
    top: tuple[TopTenant, ...]


def add_window(levels: dict[str, LevelFigures], window: MeasuredWindow) -> None:
    """Count what was measured in a window."""
    for tenant, cell in window.cells():
        levels.setdefault(tenant.level or _NO_LEVEL, LevelFigures()).add(cell)


def busiest_tenants(window: MeasuredWindow, most: int) -> list[TopTenant]:
    """The tenants for whom sessions were busy longest."""
    if not most:
        return []
    found = [
        TopTenant(
            tenant_id=tenant.tenant_id,
            operations=sum(cell.operations for cell in tenant.cells.values()),
            not_done=sum(
                cell.refused + cell.failed + cell.unavailable for cell in tenant.cells.values()
            ),
            busy_s=sum(cell.busy_s for cell in tenant.cells.values()),
            window_s=window.length_s,
        )
        for tenant in window.tenants
        if tenant.tenant_id is not None
    ]
    return sorted(found, key=lambda item: item.busy_s, reverse=True)[:most]
