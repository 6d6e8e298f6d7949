"""Tenants as they are used: a few very much, most of them hardly ever (Zipf's law)."""

from __future__ import annotations

import bisect
import itertools
import random


class ZipfDraw:
    """Draws numbers from 0, the k-th of them with a weight of 1 / k^exponent."""

    def __init__(self, count: int, exponent: float, draw: random.Random) -> None:
        weights = (1 / rank**exponent for rank in range(1, count + 1))
        self._sums = list(itertools.accumulate(weights))
        self._draw = draw

    def one(self) -> int:
        """The next number."""
        place = self._draw.random() * self._sums[-1]
        return min(bisect.bisect_left(self._sums, place), len(self._sums) - 1)
