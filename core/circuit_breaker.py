"""A circuit breaker: stops handing work to something that keeps failing, and tries again later.

Pure: it holds no clock; every method takes the time, in seconds, of a clock that never goes back.
Closed, it counts failures that follow one another without a success; too many of them within a
window open it. Open, it admits nothing for a while. Then it is half-open and admits one attempt at
a time: a success closes it, a failure opens it again, and an attempt that never reports back makes
room for the next after the same while.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from tenancy.data_isolation.core.errors import (
    EmbeddedServerError,
    LoginRefusedError,
    OutcomeUnknownError,
    PlacementChangedError,
    UnavailableError,
)


class BreakerState(StrEnum):
    """Where a breaker stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, kw_only=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long."""

    #: Failures in a row that open it.
    failures_max: int = 5
    #: Failures that are older than this are forgotten.
    window_s: float = 30.0
    #: How long it stays open, and how long an attempt may take that tries whether to close it.
    open_s: float = 10.0


class CircuitBreaker:
    """The state machine. Not for use from several threads."""

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._state = BreakerState.CLOSED
        self._failures: deque[float] = deque(maxlen=limits.failures_max)
        self._opened_at = 0.0
        self._attempt_at: float | None = None
        #: How often it has opened.
        self.openings = 0

    def document(self, now_s: float) -> dict[str, str | int | float]:
        """As metrics show it."""
        return {
            "state": str(self.state(now_s)),
            "openings": self.openings,
            "retry_after_s": self.retry_after_s(now_s),
        }

    def state(self, now_s: float) -> BreakerState:
        """The state at that time."""
        if self._state is BreakerState.OPEN and now_s - self._opened_at >= self._limits.open_s:
            self._state = BreakerState.HALF_OPEN
            self._attempt_at = None
        return self._state

    def admit(self, now_s: float) -> bool:
        """Whether new work may be tried now. When half-open, a yes counts as the attempt."""
        state = self.state(now_s)
        if state is BreakerState.HALF_OPEN:
            busy = self._attempt_at is not None and now_s - self._attempt_at < self._limits.open_s
            if not busy:
                self._attempt_at = now_s
            return not busy
        return state is BreakerState.CLOSED

    def succeeded(self, now_s: float) -> bool:
        """Record a success; returns whether it closed the breaker.

        While it is open, successes of work that was admitted before say nothing.
        """
        match self.state(now_s):
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                self._state = BreakerState.CLOSED
                self._failures.clear()
                return True
            case BreakerState.CLOSED:
                self._failures.clear()
                return False

    def failed(self, now_s: float) -> bool:
        """Record a failure; returns whether it opened the breaker."""
        match self.state(now_s):
            case BreakerState.OPEN:
                return False
            case BreakerState.HALF_OPEN:
                return self._open(now_s)
            case BreakerState.CLOSED:
                self._failures.append(now_s)
                full = len(self._failures) == self._limits.failures_max
                if full and now_s - self._failures[0] <= self._limits.window_s:
                    return self._open(now_s)
                return False

    def retry_after_s(self, now_s: float) -> float:
        """Seconds until new work may be tried; 0 when it may be tried now."""
        match self.state(now_s):
            case BreakerState.OPEN:
                return self._opened_at + self._limits.open_s - now_s
            case BreakerState.HALF_OPEN:
                begun = self._attempt_at
                return 0.0 if begun is None else max(0.0, begun + self._limits.open_s - now_s)
            case BreakerState.CLOSED:
                return 0.0

    def _open(self, now_s: float) -> bool:
        self._state = BreakerState.OPEN
        self._opened_at = now_s
        self._failures.clear()
        self.openings += 1
        return True


def is_infrastructure_failure(error: BaseException) -> bool:
    """Whether an error says that something below does not work, rather than what was asked of it.

    A changed placement is ordinary, and a full queue says that there is much to do. A login that is
    refused is one tenant's, and the others must not be kept waiting for it.
    """
    if isinstance(error, PlacementChangedError | LoginRefusedError):
        return False
    return isinstance(error, UnavailableError | OutcomeUnknownError | EmbeddedServerError)
