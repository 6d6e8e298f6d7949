"""Waiting for something that nothing tells of: a file's lock, or a process that is no child."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_INTERVAL_S = 0.02


async def polled(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask `condition` until it holds or the time is over; whether it held.

    It is asked at least once, in another thread, since it may touch files.
    """
    deadline = time.monotonic() + timeout_s
    while not await asyncio.to_thread(condition):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_INTERVAL_S)
    return True
