"""Waiting for work in a thread, and for what nothing tells of: a file's lock, another's process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

_INTERVAL_S = 0.02

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


async def in_thread(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Run `function`, which is short, in another thread, and never leave it behind.

    A thread cannot be cancelled. When this task is, the function is waited for all the same, so
    that who cleans up finds things as the function left them.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # Looked at, or the loop would complain that nobody did.
        raise


async def polled(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Ask `condition` until it holds or the time is over; whether it held.

    It is asked at least once, in another thread, since it may touch files.
    """
    deadline = time.monotonic() + timeout_s
    while not await in_thread(condition):
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(_INTERVAL_S)
    return True
