"""When clients act: pauses that end when the work does, and a rate that all of them share."""

from __future__ import annotations

import asyncio


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait, at most until `stop`."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await stop.wait()
    except TimeoutError:
        pass


class Pace:
    """So many turns per second, evenly; no limit when the rate is None."""

    def __init__(self, per_s: float | None) -> None:
        self._interval_s = 1.0 / per_s if per_s else 0.0
        self._next_at = 0.0

    async def turn(self, stop: asyncio.Event) -> None:
        """Wait for the next turn. Turns that nobody took are lost, so that no burst follows."""
        if not self._interval_s:
            return
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_at)
        self._next_at = at + self._interval_s
        if at > now:
            await pause(stop, at - now)
