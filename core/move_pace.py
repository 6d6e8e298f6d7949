"""How fast rows are copied, so that nobody notices. Pure.

Copying is a share of the time: the rest is left to others. The share rises by steps and falls by
half when a small write takes longer than before the move (additive increase, multiplicative
decrease: Chiu and Jain, 1989; latency as the signal: Slacker, EDBT 2012).
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

SHARE_MIN: Final = 0.05
_STEP: Final = 0.1
#: Samples that make up what is usual, and that are compared with it.
_USUAL: Final = 9
_RECENT: Final = 3


class MovePace:
    """Says how long to rest after a piece of work."""

    def __init__(self, *, latency_factor: float) -> None:
        """`latency_factor` is how many times as long as usual a small write may take."""
        self._factor = latency_factor
        self._usual: list[float] = []
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._share = 1.0

    @property
    def share(self) -> float:
        """The share of the time in which rows are copied, 0.05 to 1."""
        return self._share

    @property
    def knows_usual(self) -> bool:
        """Whether enough samples were taken before the first piece of work."""
        return len(self._usual) >= _USUAL

    def note_usual(self, latency_s: float) -> None:
        """How long a small write took while no rows were copied."""
        self._usual.append(latency_s)

    def rest_s(self, worked_s: float, latency_s: float) -> float:
        """How long to rest after `worked_s` of copying, when a small write took `latency_s`."""
        self._recent.append(latency_s)
        if self._usual and median(self._recent) > self._factor * median(self._usual):
            self._share = max(SHARE_MIN, self._share / 2)
        else:
            self._share = min(1.0, self._share + _STEP)
        return worked_s * (1 - self._share) / self._share
