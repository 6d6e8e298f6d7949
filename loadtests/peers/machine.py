"""What the processors did meanwhile, from /proc/stat (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

_STAT = Path("/proc/stat")
_IDLE, _IOWAIT, _STEAL, _FIELDS = 3, 4, 7, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorTimes:
    """Clock ticks since the machine started, over all processors."""

    total: int
    idle: int
    steal: int

    @classmethod
    def now(cls) -> Self:
        """Read them. Time of guests is within the user's and is not counted twice."""
        words = _STAT.read_text().splitlines()[0].split()[1 : 1 + _FIELDS]
        ticks = [int(word) for word in words]
        return cls(total=sum(ticks), idle=ticks[_IDLE] + ticks[_IOWAIT], steal=ticks[_STEAL])

    def shares_since(self, before: ProcessorTimes) -> tuple[float, float]:
        """Shares of the time since then: at work for somebody here, and stolen by the host."""
        total = max(1, self.total - before.total)
        steal = (self.steal - before.steal) / total
        return 1 - (self.idle - before.idle) / total - steal, steal
