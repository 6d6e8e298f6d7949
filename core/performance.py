"""What was measured of a series of operations: how many, how fast, how they ended.

Latencies are counted in buckets (`latency_buckets`), so that a percentile is right within 3 %, the
memory is bounded, and two measurements can be added. No clock in here.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from tenancy.data_isolation.core.circuit_breaker import is_infrastructure_failure
from tenancy.data_isolation.core.errors import (
    OverloadedError,
    RateLimitedError,
    ResultTooLargeError,
    StatementTimeoutError,
    TenancyError,
)
from tenancy.data_isolation.core.latency_buckets import BUCKETS, bucket_of, middle_s


class Outcome(StrEnum):
    """How an operation ended."""

    DONE = "done"
    #: The caller's own doing: its SQL, its parameters, a name that does not exist.
    REFUSED = "refused"
    #: A limit in time or load, or a fault of the runtime.
    FAILED = "failed"
    #: Something below does not answer.
    UNAVAILABLE = "unavailable"


def outcome_of(error: BaseException) -> Outcome:
    """How an operation ended that raised `error`."""
    if is_infrastructure_failure(error):
        return Outcome.UNAVAILABLE
    if isinstance(error, StatementTimeoutError | OverloadedError):
        return Outcome.FAILED
    if isinstance(error, RateLimitedError | ResultTooLargeError):
        return Outcome.REFUSED
    refused = isinstance(error, TenancyError) and error.status < 500
    return Outcome.REFUSED if refused else Outcome.FAILED


class Performance:
    """A measurement that grows. Not for use from several threads."""

    def __init__(self) -> None:
        self.outcomes = dict.fromkeys(Outcome, 0)
        #: Operations that had to wait until fewer were at work.
        self.waited = 0
        self._total_s = 0.0
        self._buckets = [0] * BUCKETS

    @property
    def operations(self) -> int:
        """How many operations ended."""
        return sum(self.outcomes.values())

    def record(self, outcome: Outcome, duration_s: float) -> None:
        """Count one operation."""
        self.outcomes[outcome] += 1
        self._total_s += duration_s
        self._buckets[bucket_of(duration_s)] += 1

    def add(self, other: Performance) -> None:
        """Count all that `other` counted."""
        for outcome, number in other.outcomes.items():
            self.outcomes[outcome] += number
        self.waited += other.waited
        self._total_s += other._total_s
        self._buckets = [
            mine + theirs for mine, theirs in zip(self._buckets, other._buckets, strict=True)
        ]

    def mean_ms(self) -> float | None:
        """The mean latency; None when nothing was measured."""
        return self._total_s / self.operations * 1e3 if self.operations else None

    def percentile_ms(self, share: float) -> float | None:
        """The latency that this share (0 to 1) of the operations stayed within."""
        wanted = max(1, math.ceil(share * self.operations))
        seen = 0
        for index, count in enumerate(self._buckets):
            seen += count
            if seen >= wanted:
                return middle_s(index) * 1e3
        return None

    def error_rate(self) -> float | None:
        """The share of operations that failed for a reason that is not the caller's."""
        failed = self.outcomes[Outcome.FAILED] + self.outcomes[Outcome.UNAVAILABLE]
        return failed / self.operations if self.operations else None

    def availability_percentage(self) -> float | None:
        """How many of 100 operations found everything below them answering."""
        if not self.operations:
            return None
        return 100.0 * (1 - self.outcomes[Outcome.UNAVAILABLE] / self.operations)

    def summary(self, elapsed_s: float) -> dict[str, float | int | None]:
        """The measurement in figures, over so many seconds."""
        return {
            "operations": self.operations,
            "latency_ms": self.mean_ms(),
            "latency_p50_ms": self.percentile_ms(0.50),
            "latency_p95_ms": self.percentile_ms(0.95),
            "latency_p99_ms": self.percentile_ms(0.99),
            "throughput_ops_sec": self.operations / elapsed_s if elapsed_s > 0 else None,
            "error_rate": self.error_rate(),
            "availability_percentage": self.availability_percentage(),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A measurement that is complete."""

    ended_at: str
    elapsed_s: float
    measured: Performance

    def throughput_ops_s(self) -> float:
        """Operations per second."""
        return self.measured.operations / self.elapsed_s if self.elapsed_s > 0 else 0.0


class PerformanceLog:
    """A measurement that goes on, cut into intervals, of which the last ones are kept."""

    def __init__(self, *, intervals_max: int, now_s: float) -> None:
        self.intervals: deque[Interval] = deque(maxlen=intervals_max)
        self.present = Performance()
        self._since_s = now_s

    def cut(self, now_s: float, ended_at: str) -> Interval:
        """End the present interval and begin the next."""
        interval = Interval(
            ended_at=ended_at, elapsed_s=now_s - self._since_s, measured=self.present
        )
        self.intervals.append(interval)
        self.present, self._since_s = Performance(), now_s
        return interval

    def lately(self, now_s: float) -> tuple[Performance, float]:
        """All that the kept intervals and the present one measured, and over how many seconds."""
        total, elapsed_s = Performance(), now_s - self._since_s
        total.add(self.present)
        for interval in self.intervals:
            total.add(interval.measured)
            elapsed_s += interval.elapsed_s
        return total, elapsed_s

    def best_throughput_ops_s(self, now_s: float) -> float | None:
        """Operations per second in the best complete interval, or so far when there is none."""
        total, elapsed_s = self.lately(now_s)
        if not total.operations:
            return None
        rates = [interval.throughput_ops_s() for interval in self.intervals]
        return max(rates) if rates else total.operations / max(elapsed_s, 1e-9)
