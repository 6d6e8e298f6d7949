"""Closed and open loops of operations, what became of the operations, and memory meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import psutil
from report import Figure, figure

#: What a closed loop manages has to come through under overload, by so much; an actor that is
#: stuck is given so much longer than the deadline; and no process may grow by more than this.
GOODPUT_MIN: Final = 0.8
LATE_S: Final = 2.5
MEMORY_MAX_MB: Final = 600
#: What is left out at the beginning of a window.
SETTLE_S: Final = 2.0
#: How often the open loop begins what is due.
_TICK_S: Final = 0.01
#: So many of it are begun in one go before others get a turn.
_SLICE: Final = 100


@dataclass(kw_only=True, slots=True)
class Tally:
    """What became of operations."""

    outcomes: Counter[str] = field(default_factory=Counter)
    ended: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    latest_s: float = -1e9
    untold: int = 0

    def note(self, outcome: str, began: float, deadline_s: float) -> None:
        """One more has ended now."""
        now = time.perf_counter()
        late_s = now - began - deadline_s
        self.latest_s = max(self.latest_s, late_s)
        if outcome == "answered" and late_s > 0:
            outcome = "late"
        self.outcomes[outcome] += 1
        if outcome == "answered":
            self.ended.append(now)
            self.took_s.append(now - began)

    def within(self, since: float, seconds: float) -> list[float]:
        """How long those took that were answered in that window, in seconds."""
        pairs = zip(self.ended, self.took_s, strict=True)
        return [took for at, took in pairs if since <= at < since + seconds]

    def share(self, outcome: str) -> float:
        """In per cent of all."""
        return self.outcomes[outcome] / max(1, self.outcomes.total()) * 100

    def others(self) -> int:
        """Operations that were neither answered nor refused nor given up at their deadline."""
        known = ("answered", "late", "refused", "deadline")
        return self.outcomes.total() - sum(self.outcomes[name] for name in known)

    def figures(self, what: str, *, late_s: float = LATE_S) -> list[Figure]:
        """The outcomes, and how long the last one took."""
        return [
            figure(f"{what}: answered", self.share("answered"), "%"),
            figure(f"{what}: refused", self.share("refused"), "%"),
            figure(f"{what}: given up at their deadline", self.share("deadline"), "%"),
            figure(f"{what}: answered after their deadline", self.share("late"), "%"),
            figure(f"{what}: anything else", self.others(), "operations", at_most=0),
            figure(f"{what}: refusals that do not say when to come again", self.untold,
                   "operations", at_most=0),
            figure(f"{what}: the latest end, after the deadline", self.latest_s, "s",
                   at_most=late_s),
        ]  # fmt: skip


class Memory:
    """The resident sets of processes, looked at again and again."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self.before = self._now()
        self.most = dict(self.before)

    def _now(self) -> dict[str, float]:
        return {name: item.memory_info().rss / 1e6 for name, item in self._processes.items()}

    async def watch(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(0.1)
            for name, value in self._now().items():
                self.most[name] = max(self.most[name], value)

    def figures(self, what: str) -> list[Figure]:
        """How much each has grown at most."""
        return [
            figure(f"{what}: memory of {name}, growth", self.most[name] - before, "MB",
                   at_most=MEMORY_MAX_MB)
            for name, before in self.before.items()
        ]  # fmt: skip


#: Does one operation, and notes what became of it; told how long the operation may take.
Run: TypeAlias = Callable[[Tally, float], Awaitable[None]]


async def closed_loop(
    run: Run, at_once: int, deadline_s: float, seconds: float
) -> tuple[Tally, list[float]]:
    """Keep so many operations in flight for so long, after a warm-up.

    What became of all of them, and how long those took that were answered in the window.
    """
    tally, since = Tally(), time.perf_counter() + SETTLE_S

    async def worker() -> None:
        while time.perf_counter() < since + seconds:
            await run(tally, deadline_s)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return tally, tally.within(since, seconds)


async def open_loop(
    run: Run, tally: Tally, rate: float, deadline_s: float, seconds: float
) -> float:
    """Begin so many per second, whatever becomes of them; how many it really were."""
    began, begun = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while (now := time.perf_counter()) < began + seconds:
            due = min(int((now - began) * rate) - begun, _SLICE)
            for _ in range(due):
                group.create_task(run(tally, deadline_s))
            begun += due
            # Who is behind does not wait, but lets what has come be dealt with.
            await asyncio.sleep(_TICK_S if due < _SLICE else 0)
        took = time.perf_counter() - began
    return begun / took
