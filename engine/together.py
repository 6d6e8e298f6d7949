"""Several pieces of work at the same time, of which all are done or none goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def together(*works: Coroutine[Any, Any, _T]) -> list[_T]:
    """What each of them gives, in their order.

    Raises the first error there is, as it is, when the others have been cancelled and have ended.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]
