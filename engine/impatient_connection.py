"""A connection that is given up together with a statement that has no answer in time.

And with one that the driver does not send, because it has heard from the server that the session
ends, and not yet seen it: it calls that an error of its own.

The driver would keep it: it asks the server to cancel the statement and waits for that answer
before anything else, as long again. Over a connection on which nothing passes any more both waits
are for nothing, and a transaction that is rolled back on the way out adds a third one. The server
ends what it still holds of such a session by limits of its own (`sql/move.sql`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg


class ImpatientConnection(asyncpg.Connection):
    """A connection whose `TimeoutError`s close it. What is called on it then fails at once.

    Raises no `InternalClientError`, but `ConnectionDoesNotExistError`.
    """

    __slots__ = ()

    async def execute(self, query: str, *args: Any, **options: Any) -> str:
        """As the driver has it."""
        with self._kept_while_answered():
            status: str = await super().execute(query, *args, **options)
        return status

    async def fetch(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver has it."""
        with self._kept_while_answered():
            return await super().fetch(query, *args, **options)

    async def fetchrow(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver has it."""
        with self._kept_while_answered():
            return await super().fetchrow(query, *args, **options)

    async def fetchval(self, query: str, *args: Any, **options: Any) -> Any:
        """As the driver has it."""
        with self._kept_while_answered():
            return await super().fetchval(query, *args, **options)

    async def copy_from_table(self, table_name: str, **options: Any) -> str:
        """As the driver has it."""
        with self._kept_while_answered():
            status: str = await super().copy_from_table(table_name, **options)
        return status

    async def copy_to_table(self, table_name: str, **options: Any) -> str:
        """As the driver has it."""
        with self._kept_while_answered():
            status: str = await super().copy_to_table(table_name, **options)
        return status

    @contextmanager
    def _kept_while_answered(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError:
            self.terminate()
            raise
        except asyncpg.InternalClientError as error:
            self.terminate()
            raise asyncpg.ConnectionDoesNotExistError(str(error)) from None


@contextmanager
def given_up_after(limit_s: float, connections: Iterable[asyncpg.Connection]) -> Iterator[None]:
    """Drop all of these connections when the block takes longer than `limit_s` seconds.

    Whatever waits for one of them fails then, and so does what comes after it in the block.
    """

    def give_up() -> None:
        for connection in given:
            connection.terminate()

    given = tuple(connections)
    timer = asyncio.get_running_loop().call_later(limit_s, give_up)
    try:
        yield
    finally:
        timer.cancel()
