"""How fast rows are copied, so that nobody notices. Pure.

Copying is a share of the time, and the rest is left to others. While rows are copied a small write
takes `ratio` times as long as at rest. So copying all the time would take 1 - 1/ratio of what
clients reach who wait for their answers, for as much of it as somebody is at work, and to the mean
latency it would add ratio - 1. The share is what keeps both within their budgets (latency as the
signal: Slacker, EDBT 2012). Both latencies are measured all the time, so that what others do to the
server is not taken for our doing.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean
from typing import Final

SHARE_MIN: Final = 0.05
#: Before there is anything to go by.
SHARE_UNKNOWN: Final = 0.15
#: No rest is shorter: a write after it shows how the server is without us. Nor is one longer, since
#: what is wished of the move is looked for between two; what is missing of it comes after the next.
REST_MIN_S: Final = 0.002
REST_MAX_S: Final = 5.0
#: Samples that are compared, and without how many nothing is known.
_SAMPLES: Final = 60
SAMPLES_MIN: Final = 5
#: Of the samples, the longest are of no account: that share of them are hiccups of the machine.
_HICCUPS: Final = 0.1
#: Who waits for answers is not seen at work while an answer travels and the next question is made.
_UNSEEN_FACTOR: Final = 2


class MovePace:
    """Says how long to rest after a piece of work, for the sake of one server."""

    def __init__(self, *, latency_factor: float, dip_max: float) -> None:
        """`latency_factor` is how many times as long as usual a small write may take on average.

        `dip_max` is the share of their throughput that clients may lose who wait for each answer.
        """
        self._added_max = latency_factor - 1
        self._dip_max = dip_max
        self._usual: deque[float] = deque(maxlen=_SAMPLES)
        self._working: deque[float] = deque(maxlen=_SAMPLES)
        self._at_work: deque[int] = deque(maxlen=_SAMPLES)
        self._owed_s = 0.0

    def note_usual(self, latency_s: float, at_work: int) -> None:
        """How long a small write took at rest, and how many sessions of others were at work."""
        self._usual.append(latency_s)
        self._at_work.append(min(at_work, 1))

    def note_working(self, latency_s: float) -> None:
        """How long a small write took while rows were copied."""
        self._working.append(latency_s)

    @property
    def share(self) -> float:
        """The share of the time in which rows are copied, 0.05 to 1."""
        if len(self._usual) < SAMPLES_MIN:
            return SHARE_UNKNOWN
        if not any(self._at_work):
            return 1.0
        if len(self._working) < SAMPLES_MIN:
            return SHARE_UNKNOWN
        usual_s = _mean(self._usual)
        added = max(0.0, _mean(self._working) - usual_s)
        busy = min(1.0, _UNSEEN_FACTOR * fmean(self._at_work))
        # What all the time would come to. Who is there once in a while meets the copying as well,
        # and loses no throughput.
        latency = added / usual_s
        dip = added / (added + usual_s) * busy
        return max(SHARE_MIN, min(_part(self._added_max, latency), _part(self._dip_max, dip)))

    def rest_s(self, worked_s: float) -> float:
        """How long to rest after `worked_s` of copying."""
        share = self.share
        if share == 1.0:
            self._owed_s = 0.0
        self._owed_s += worked_s * (1 - share) / share
        rest_s = min(max(self._owed_s, REST_MIN_S), REST_MAX_S)
        self._owed_s = min(max(0.0, self._owed_s - rest_s), REST_MAX_S)
        return rest_s


class ChunkSize:
    """How many rows to copy at once, so that a piece of work is short."""

    def __init__(self, rows: int, *, alone_factor: int, piece_max_s: float) -> None:
        """`rows` at most; `alone_factor` times as many and as long for nobody's sake."""
        self._rows = rows
        self._alone_factor = alone_factor
        self._piece_max_s = piece_max_s
        self._divisor = 1

    def rows(self, *, alone: bool) -> int:
        """How many to copy next."""
        return max(1, self._rows * (self._alone_factor if alone else 1) // self._divisor)

    def took(self, worked_s: float, *, alone: bool) -> None:
        """How long the last piece took: the next is half as large, or twice, where that helps."""
        most_s = self._piece_max_s * (self._alone_factor if alone else 1)
        if worked_s > most_s:
            self._divisor = min(self._divisor * 2, self._rows)
        elif worked_s < most_s / 4:
            self._divisor = max(1, self._divisor // 2)


def _part(budget: float, whole: float) -> float:
    """The part of the whole that the budget allows."""
    return 1.0 if whole <= budget else budget / whole


def _mean(samples: deque[float]) -> float:
    kept = sorted(samples)[: max(1, round(len(samples) * (1 - _HICCUPS)))]
    return max(fmean(kept), 1e-9)
