"""What happens to a tenant while its clients work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import asyncpg

from support.history.pace import pause

#: Does what it does until it is done, or until the event is set. What it raises ends the trial.
Nemesis = Callable[[asyncio.Event], Coroutine[Any, Any, None]]

_VICTIM = """
select pid from pg_stat_activity
where usename = $1 and backend_type = 'client backend' and pid <> pg_backend_pid()
order by state = 'active' desc, random() limit 1
"""


async def nothing(stop: asyncio.Event) -> None:
    """Leave the tenant in peace."""
    await stop.wait()


def alongside(first: Nemesis, *others: Nemesis) -> Nemesis:
    """Several at once: the others go on for as long as the first one does."""

    async def act(stop: asyncio.Event) -> None:
        ended = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                for other in others:
                    group.create_task(other(ended))
                await first(stop)
                ended.set()
        except ExceptionGroup as several:
            raise several.exceptions[0] from None

    return act


class SessionKiller:
    """Ends sessions of a login, one at a time, those that are at work first."""

    def __init__(
        self,
        admin: asyncpg.Connection,
        login: Callable[[], Awaitable[str]],
        *,
        every_s: float = 0.05,
        at_least: int = 0,
        seed: int = 0,
    ) -> None:
        """`admin` may end sessions; `login` gives the role that has them now; `every_s` is the mean
        time between two ends. When told to end it goes on until it has ended `at_least` so many."""
        self.killed = 0
        self._admin = admin
        self._login = login
        self._every_s = every_s
        self._at_least = at_least
        self._chance = random.Random(seed)

    async def __call__(self, stop: asyncio.Event) -> None:
        while not stop.is_set() or self.killed < self._at_least:
            until = stop if self.killed >= self._at_least else asyncio.Event()
            await pause(until, self._chance.uniform(0, 2 * self._every_s))
            pid = await self._admin.fetchval(_VICTIM, await self._login())
            if pid is not None:
                self.killed += await self._admin.fetchval("select pg_terminate_backend($1)", pid)
