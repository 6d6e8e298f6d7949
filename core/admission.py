"""Admission: so many at work at the same time, and a bounded queue before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tenancy.data_isolation.core.errors import OverloadedError


class Admission:
    """Room for `at_work_max` in one event loop; others wait, first come first served."""

    def __init__(self, *, at_work_max: int, waiting_max: int, wait_ms: int) -> None:
        self._free = asyncio.Semaphore(at_work_max)
        self._waiting_max = waiting_max
        self._wait_ms = wait_ms
        self.at_work = 0
        self.waiting = 0

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[bool]:
        """Room for the work inside; yields whether it had to wait.

        Raises `OverloadedError` when there is no room, and nothing was done.
        """
        waits = self._free.locked()
        if waits:
            await self._queue()
        else:
            await self._free.acquire()
        self.at_work += 1
        try:
            yield waits
        finally:
            self.at_work -= 1
            self._free.release()

    async def _queue(self) -> None:
        if self.waiting >= self._waiting_max:
            raise OverloadedError(
                f"{self.waiting} operations wait already; nothing was done, try again",
                retry_after_s=1.0,
            )
        self.waiting += 1
        try:
            async with asyncio.timeout(self._wait_ms / 1e3):
                await self._free.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"no operation ended within {self._wait_ms} ms; nothing was done, try again",
                retry_after_s=1.0,
            ) from None
        finally:
            self.waiting -= 1
