"""How fast rows are copied, so that nobody notices. Pure.

Copying is a share of the time: the rest is left to others. The share rises by steps and falls by
half when a small write right after a piece of work takes longer than one after a rest (additive
increase, multiplicative decrease: Chiu and Jain, 1989; latency as the signal: Slacker, EDBT 2012).
Both are measured all the time, so that what others do to the server is not taken for our doing.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

SHARE_MIN: Final = 0.1
#: No rest is longer, and none is shorter: a write after it shows how the server is without us.
REST_MAX_S: Final = 2.0
REST_MIN_S: Final = 0.002
_STEP: Final = 0.1
#: Samples that are compared.
_SAMPLES: Final = 5


class MovePace:
    """Says how long to rest after a piece of work."""

    def __init__(self, *, latency_factor: float) -> None:
        """`latency_factor` is how many times as long as usual a small write may take."""
        self._factor = latency_factor
        self._usual: deque[float] = deque(maxlen=_SAMPLES)
        self._working: deque[float] = deque(maxlen=_SAMPLES)
        self._share = 1.0

    @property
    def share(self) -> float:
        """The share of the time in which rows are copied, 0.1 to 1."""
        return self._share

    def note_usual(self, latency_s: float) -> None:
        """How long a small write took after a rest."""
        self._usual.append(latency_s)

    def rest_s(self, worked_s: float, latency_s: float) -> float:
        """How long to rest after `worked_s` of copying, when a small write took `latency_s`."""
        self._working.append(latency_s)
        if self._usual and median(self._working) > self._factor * median(self._usual):
            self._share = max(SHARE_MIN, self._share / 2)
        else:
            self._share = min(1.0, self._share + _STEP)
        rest_s = worked_s * (1 - self._share) / self._share
        return min(max(rest_s, REST_MIN_S), REST_MAX_S)
