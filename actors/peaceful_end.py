"""How an actor ends that Ray ends in peace.

Ray calls `__ray_shutdown__` from the main thread, when the thread of the actor's event loop has
ended (Ray 2.60), so the loop runs on here. A killed process never gets here, and needs not:
PostgreSQL notices that the socket is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

_CLOSE_TIMEOUT_S: Final = 20.0


def close_on(
    loop: asyncio.AbstractEventLoop | None, close: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Run `close` to its end on the actor's loop, if it has one. Blocks."""
    if loop is None or loop.is_closed():
        return
    closing = asyncio.wait_for(close(), _CLOSE_TIMEOUT_S)
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(closing, loop).result(_CLOSE_TIMEOUT_S)
    else:
        loop.run_until_complete(closing)
