"""Something that carries moves out and dies, or freezes, at a step of our choice.

A step is a call of the driver, counted before it is sent and again when its answer is there. Who
dies loses all connections at once, as a process that is killed does; who freezes goes on, when it
is woken, as if nothing had happened. Or something else happens around it, and it has to see.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakKeyDictionary

import asyncpg

from tenancy.data_isolation.core.move import MoveId
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.impatient_connection import ImpatientConnection
from tenancy.data_isolation.engine.move_sides import answer_limit_s
from tenancy.data_isolation.engine.move_worker import MoveWorker


class Killed(BaseException):
    """The process is gone. Nothing in the code under test can handle it."""


class Fate:
    """When a mover dies or freezes. `steps` says what it has done.

    `at` is what the name of the step begins with, and `beyond` what that of an earlier one has in
    it; the `nth` step of that name is the one. Without `at` nothing happens. `act` is what happens
    then instead, given the connection of the step; the mover goes on.
    """

    def __init__(
        self,
        at: str | None = None,
        *,
        beyond: str = "",
        nth: int = 1,
        freezes: bool = False,
        act: Callable[[asyncpg.Connection], None] | None = None,
    ) -> None:
        self.at = at
        self.beyond = beyond
        self.left = nth
        self.freezes = freezes
        self.act = act
        self.steps: list[str] = []
        self.connections: list[asyncpg.Connection] = []
        self.happened = asyncio.Event()
        self.woken = asyncio.Event()

    async def step(self, name: str, connection: asyncpg.Connection) -> None:
        """Count a step; at the chosen one and after it nothing is done any more."""
        if self.happened.is_set() and not self.woken.is_set() and self.act is None:
            await self._end()
        self.steps.append(name)
        if self.beyond in name:
            self.beyond = ""
        elif self.beyond:
            return
        if self.at is not None and name.startswith(self.at):
            self.left -= 1
            if self.left == 0:
                self.happened.set()
                if self.act is not None:
                    self.act(connection)
                    return
                await self._end()

    async def _end(self) -> None:
        if self.freezes:
            await self.woken.wait()
            return
        for connection in self.connections:
            connection.terminate()
        raise Killed


#: Commands of the driver's own, which are told in capitals.
_OF_THE_DRIVER: Final = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
_PINNED_OPERATOR: Final = re.compile(r"OPERATOR\(pg_catalog\.([^)]+)\)")
_FATES: WeakKeyDictionary[asyncpg.Connection, Fate] = WeakKeyDictionary()


class MortalConnection(ImpatientConnection):
    """A connection whose calls are steps of a mover."""

    __slots__ = ()

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        return await self._step("execute", query, super().execute, query, *args, **options)

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        return await self._step("fetch", query, super().fetch, query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        return await self._step("fetchrow", query, super().fetchrow, query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        return await self._step("fetchval", query, super().fetchval, query, *args, **options)

    async def copy_from_table(self, table: str, **options: Any) -> str:
        return await self._step("copy out", table, super().copy_from_table, table, **options)

    async def copy_to_table(self, table: str, **options: Any) -> str:
        return await self._step("copy in", table, super().copy_to_table, table, **options)

    async def _step(self, kind: str, text: str, call: Any, *args: Any, **options: Any) -> Any:
        fate = _FATES[self]
        # What is asked of users' tables is a parameter of the statement that asks.
        asks = "tenancy.answer" in text
        name = f"asks {_first_line(args[1])}" if asks else f"{kind} {_first_line(text)}"
        await fate.step(f"before {name}", self)
        result = await call(*args, **options)
        await fate.step(f"after {name}", self)
        return result


class MortalAdmin(AdminConnections):
    """Connections of a mover with that fate."""

    fate: Fate

    async def connect(self, *args: Any, **kwargs: Any) -> asyncpg.Connection:
        connection = await super().connect(*args, **kwargs)
        connection.__class__ = MortalConnection
        _FATES[connection] = self.fate
        self.fate.connections.append(connection)
        return connection


@asynccontextmanager
async def mover(
    engine: Engine, fate: Fate, only: MoveId | None = None
) -> AsyncIterator[MoveWorker]:
    """A mover beside the engine's own, at work within the block, at one move alone or at all."""
    settings = engine.settings
    admin = MortalAdmin(
        settings=settings,
        servers=engine.servers,
        command_timeout_s=answer_limit_s(settings),
        silent_max_ms=settings.move_idle_timeout_ms,
    )
    admin.fate = fate
    worker = MoveWorker(
        settings=engine.settings,
        catalog=engine.catalog,
        admin=admin,
        keys=engine.keys,
        maker=engine._maker.over(admin, silent_max_ms=settings.move_idle_timeout_ms),
    )
    worker.start(only)
    try:
        yield worker
    finally:
        fate.woken.set()
        await worker.close()
        await admin.close()


def _first_line(text: str) -> str:
    """The beginning of a text as it is written in our files, and not as it is sent (`pinning`)."""
    lines = [line.strip() for line in text.splitlines()]
    first = next((line for line in lines if line and not line.startswith("--")), "")
    if first.startswith(_OF_THE_DRIVER):
        return first[:60]
    return _PINNED_OPERATOR.sub(r"\1", first).replace("pg_catalog.", "").lower()[:60]
