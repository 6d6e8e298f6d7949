"""What a move does to others, seen from a session of its own at each server that it touches.

Others are whoever else works there. A small write shows how long theirs take, all the time: while
rows are copied, and while the move rests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Final

import asyncpg

from tenancy.data_isolation.core.errors import OverloadedError, ServerUnavailableError
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move_pace import SAMPLES_MIN, MovePace
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.sql_files import SqlFile

_SQL = SqlFile("move.sql")
_LOG = logging.getLogger(__name__)
#: Between two looks while rows are copied, which is a tenth of a second at a time, and at rest. One
#: takes about a millisecond of the server's time.
_LOOK_EVERY_S: Final = 0.05
_LOOK_AT_REST_EVERY_S: Final = 0.2
#: What ends the watching of a server, and not the move: its own sessions will find out.
_ENDS = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


class MoveWatch:
    """Tells how long a move is to rest after a piece of work."""

    def __init__(self, watched: Sequence[_Watched]) -> None:
        self._watched = watched

    @property
    def paces(self) -> tuple[MovePace, ...]:
        """What is known of each server."""
        return tuple(watched.pace for watched in self._watched)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Rows are copied within the block."""
        self._say(working=True)
        try:
            yield
        finally:
            self._say(working=False)

    async def begin(self) -> None:
        """See as much of the servers at rest as it takes to know whom there is to spare."""
        for _ in range(SAMPLES_MIN):
            await self.look()

    async def look(self) -> None:
        """See how the servers are at rest."""
        for watched in self._watched:
            await watched.look()

    def rest_s(self, worked_s: float) -> float:
        """How long to rest after `worked_s` of copying, in seconds, for all servers' sake."""
        return max(watched.pace.rest_s(worked_s) for watched in self._watched)

    @property
    def alone(self) -> bool:
        """Whether nobody has to be spared."""
        return all(watched.pace.share == 1.0 for watched in self._watched)

    def _say(self, *, working: bool) -> None:
        for watched in self._watched:
            watched.turn_to(working=working)


class _Watched:
    """One server, without a session where there was none to be had: then nothing is known of it."""

    def __init__(
        self, connection: asyncpg.Connection | None, fresh_pace: Callable[[], MovePace]
    ) -> None:
        self.pace = fresh_pace()
        self._fresh_pace = fresh_pace
        self._connection = connection
        self._working = False
        #: Changes between working and resting; a look at rest that saw one says nothing.
        self._changes = 0
        self._looking = asyncio.Lock()

    def turn_to(self, *, working: bool) -> None:
        self._working = working
        self._changes += 1

    async def look(self) -> None:
        async with self._looking:
            if self._connection is None:
                return
            working, changes = self._working, self._changes
            try:
                began_s = time.perf_counter()
                await self._connection.execute(_SQL.statement("small_write"))
                took_s = time.perf_counter() - began_s
                if working:
                    # One that outlives the piece of work would have taken even longer with it.
                    self.pace.note_working(took_s)
                else:
                    at_work = await self._connection.fetchval(_SQL.statement("others_at_work"))
                    if changes == self._changes:
                        self.pace.note_usual(took_s, at_work)
            except _ENDS as error:
                _LOG.info("a move no longer sees what it does to others: %s", error)
                self._connection = None
                # What was seen before says nothing of what comes.
                self.pace = self._fresh_pace()

    async def look_on(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if not self._working:
                await asyncio.sleep(_LOOK_AT_REST_EVERY_S - _LOOK_EVERY_S)
            await self.look()


@asynccontextmanager
async def watching(
    servers: Sequence[ServerName], *, name: str, settings: Settings, admin: AdminConnections
) -> AsyncIterator[MoveWatch]:
    """Watch servers for the block, over sessions that are called `name`."""
    fresh_pace = partial(
        MovePace,
        latency_factor=settings.move_latency_factor,
        dip_max=settings.move_dip_percent / 100,
    )
    async with AsyncExitStack() as stack:
        watched = []
        for server in dict.fromkeys(servers):
            connection = await _session(server, name, admin, settings.connect_timeout_s)
            if connection is not None:
                stack.push_async_callback(close, connection, settings.connect_timeout_s)
            watched.append(_Watched(connection, fresh_pace))
        tasks = [asyncio.create_task(one.look_on()) for one in watched]
        stack.push_async_callback(_ended, tasks)
        yield MoveWatch(watched)


async def _session(
    server: ServerName, name: str, admin: AdminConnections, timeout_s: float
) -> asyncpg.Connection | None:
    """A session that is given up when a look has no answer for so long."""
    with contextlib.suppress(OverloadedError, ServerUnavailableError):
        return await admin.connect(server, name=name, command_timeout_s=timeout_s)
    return None


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if not isinstance(outcome, asyncio.CancelledError):
            _LOG.error("a move could not see what it does to others", exc_info=outcome)
