"""How quickly a tenant was served, as its clients saw it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from support.history.call import Call, Change

_NS_PER_S = 1e9


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Counts, latencies and the longest gap, over one stretch of time.

    `longest_gap_s` is the longest time without an acknowledgement of a read or a write; the
    beginning and the end of the stretch count as one. It began at `longest_gap_began_ns`.
    `longest_write_gap_s` is the same for writes alone, which a pause may hold up when reads go on.
    `errors` counts every error that a client met, by class, those of repeated attempts included.
    """

    duration_s: float
    acknowledged: int
    refused: int
    unknown: int
    longest_gap_s: float
    longest_gap_began_ns: int
    longest_write_gap_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    errors: Mapping[str, int]

    @property
    def acknowledged_per_s(self) -> float:
        return self.acknowledged / self.duration_s if self.duration_s else 0.0

    def __str__(self) -> str:
        errors = ", ".join(f"{name} {count}" for name, count in self.errors.items()) or "none"
        return (
            f"{self.acknowledged_per_s:.0f} calls/s, "
            f"longest gap {self.longest_gap_s * 1e3:.1f} ms "
            f"({self.longest_write_gap_s * 1e3:.1f} ms of writes), "
            f"p50 {self.p50_ms:.1f} ms, p95 {self.p95_ms:.1f} ms, "
            f"p99 {self.p99_ms:.1f} ms, max {self.max_ms:.1f} ms; "
            f"refused {self.refused}, unknown {self.unknown}; errors: {errors}"
        )


def figures_of(calls: Iterable[Call], began_ns: int, ended_ns: int) -> Figures:
    """The figures of the calls that were completed between two times."""
    inside = [call for call in calls if began_ns <= call.completed_ns <= ended_ns]
    acknowledged = sorted((call for call in inside if call.ok), key=lambda call: call.completed_ns)
    gap, gap_began = _longest_gap(acknowledged, began_ns, ended_ns)
    writes = [call for call in acknowledged if isinstance(call.action, Change)]
    write_gap, _ = _longest_gap(writes, began_ns, ended_ns)
    latencies = sorted((call.completed_ns - call.invoked_ns) / 1e6 for call in acknowledged)
    outcomes = Counter(call.outcome.value for call in inside)
    return Figures(
        duration_s=(ended_ns - began_ns) / _NS_PER_S,
        acknowledged=outcomes["ok"],
        refused=outcomes["refused"],
        unknown=outcomes["unknown"],
        longest_gap_s=gap / _NS_PER_S,
        longest_gap_began_ns=gap_began,
        longest_write_gap_s=write_gap / _NS_PER_S,
        p50_ms=_percentile(latencies, 0.50),
        p95_ms=_percentile(latencies, 0.95),
        p99_ms=_percentile(latencies, 0.99),
        max_ms=latencies[-1] if latencies else 0.0,
        errors=Counter(name for call in inside for name in call.errors),
    )


def _longest_gap(acknowledged: list[Call], began_ns: int, ended_ns: int) -> tuple[int, int]:
    """The longest time without an acknowledgement, and its beginning, in nanoseconds."""
    marks = [began_ns, *(call.completed_ns for call in acknowledged), ended_ns]
    return max((later - earlier, earlier) for earlier, later in pairwise(marks))


def _percentile(ordered: list[float], share: float) -> float:
    """The smallest value that at least that share of the values do not exceed."""
    return ordered[max(0, math.ceil(len(ordered) * share - 1e-9) - 1)] if ordered else 0.0
