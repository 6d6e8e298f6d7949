"""A closed loop: so many operations are always in flight, and each is followed by the next.

Latency is from the moment at which an operation is handed over to its answer; what waits for a
connection waits within it. Operations that end within the window count; those of the warm-up
before it do not. Every value is checked.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from report import percentile

from peers.machine import ProcessorTimes
from peers.work import WrongAnswerError, check

#: Whoever got an error waits for a moment, so that errors do not crowd out the rest.
_AFTER_ERROR_S = 0.01

Pairs = list[tuple[int, int]]
Read = Callable[[int, int], Awaitable[int]]
ReadMany = Callable[[int, list[int]], Awaitable[list[int]]]


@dataclass(kw_only=True, slots=True)
class Window:
    """What happened within the seconds that count."""

    warm_s: float
    seconds: float
    begins: float = 0.0
    ends: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    error: str | None = None
    busy: float = 0.0
    steal: float = 0.0

    def open(self) -> None:
        """The warm-up starts now."""
        self.begins = time.perf_counter() + self.warm_s
        self.ends = self.begins + self.seconds

    def done(self, begun: float) -> None:
        """An operation that began then has its right answer."""
        now = time.perf_counter()
        if self.begins <= now < self.ends:
            self.latencies.append(now - begun)

    def failed(self, error: Exception) -> None:
        """An operation has an error in place of an answer."""
        self.errors[type(error).__name__] += 1
        self.error = self.error or f"{type(error).__name__}: {error}"[:300]

    async def watch(self) -> None:
        """Note what the processors do from the begin to the end."""
        await asyncio.sleep(self.begins - time.perf_counter())
        before = ProcessorTimes.now()
        await asyncio.sleep(self.ends - time.perf_counter())
        self.busy, self.steal = ProcessorTimes.now().shares_since(before)

    def result(self, per_call: int = 1) -> dict[str, Any]:
        """The figures, per second and in milliseconds; a call has so many operations.

        When none ended within the window, its own length stands for the latency, which is higher.
        """
        latencies = self.latencies or [self.seconds]
        return {
            "ops_per_s": len(self.latencies) * per_call / self.seconds,
            "p50_ms": percentile(latencies, 50) * 1_000,
            "p99_ms": percentile(latencies, 99) * 1_000,
            "errors": sum(self.errors.values()),
            "error": self.error,
            "busy": self.busy,
            "steal": self.steal,
        }


async def one_by_one(window: Window, read: Read, pairs: Pairs, in_flight: int) -> None:
    """Operations that are handed over singly."""

    async def work(position: int) -> None:
        while (begun := time.perf_counter()) < window.ends:
            tenant, row = pairs[position % len(pairs)]
            position += in_flight
            async with _counted(window, begun):
                check(tenant, row, await read(tenant, row))

    await _together(window, work, in_flight)


async def in_batches(
    window: Window, read: ReadMany, pairs: Pairs, in_flight: int, per_call: int
) -> None:
    """Calls with several operations of one tenant; as many calls are in flight."""

    async def work(position: int) -> None:
        while (begun := time.perf_counter()) < window.ends:
            tenant = pairs[position % len(pairs)][0]
            rows = [pairs[(position + step) % len(pairs)][1] for step in range(per_call)]
            position += in_flight
            async with _counted(window, begun):
                values = await read(tenant, rows)
                if len(values) != per_call:
                    raise WrongAnswerError(f"{len(values)} answers to {per_call} operations")
                for row, value in zip(rows, values, strict=True):
                    check(tenant, row, value)

    await _together(window, work, in_flight)


@asynccontextmanager
async def _counted(window: Window, begun: float) -> AsyncIterator[None]:
    """Count a call that is made in the block; only a wrong answer ends the run."""
    try:
        yield
        window.done(begun)
    except WrongAnswerError:
        raise
    except Exception as error:
        window.failed(error)
        await asyncio.sleep(_AFTER_ERROR_S)


async def _together(window: Window, work: Callable[[int], Awaitable[None]], in_flight: int) -> None:
    window.open()
    async with asyncio.TaskGroup() as group:
        group.create_task(window.watch())
        for position in range(in_flight):
            group.create_task(work(position))


def in_threads(
    window: Window, read: Callable[[int, int], int], pairs: Pairs, in_flight: int, threads: int
) -> None:
    """A blocking library: what is in flight waits in one fair queue for a few threads."""
    waiting: queue.SimpleQueue[tuple[float, int]] = queue.SimpleQueue()
    wrong: list[WrongAnswerError] = []

    def work() -> None:
        while time.perf_counter() < window.ends and not wrong:
            begun, position = waiting.get()
            tenant, row = pairs[position % len(pairs)]
            try:
                check(tenant, row, read(tenant, row))
                window.done(begun)
            except WrongAnswerError as error:
                wrong.append(error)
            except Exception as error:
                window.failed(error)
                time.sleep(_AFTER_ERROR_S)
            waiting.put((time.perf_counter(), position + in_flight))

    window.open()
    for position in range(in_flight):
        waiting.put((time.perf_counter(), position))
    workers = [threading.Thread(target=work) for _ in range(min(threads, in_flight))]
    for worker in workers:
        worker.start()
    asyncio.run(window.watch())
    for worker in workers:
        worker.join()
    if wrong:
        raise wrong[0]
