"""asyncpg without a library of tenancy: the usual way, and the fastest ways known.

Row security on a plain setting, which any SQL of a tenant could change: that much these variants
leave out, and the others of this comparison as well, but ours.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from typing import Any

import asyncpg

READ = "select bal from users where id = $1"
BIND = "select set_config('app.tenant', $1, true)"
POOL = 10
HELD = 4
#: Operations that go to the server together.
TOGETHER = 64

Waiting = tuple[int, int, asyncio.Future[int]]


class ByHand:
    """The reference: a pool, and per operation acquire, begin, set_config, query, commit."""

    def __init__(self, target: dict[str, Any]) -> None:
        self._dsn = target["dsn"]["app"]

    async def open(self) -> None:
        """Fill the pool."""
        self._pool = await asyncpg.create_pool(self._dsn, min_size=POOL, max_size=POOL)

    async def read(self, tenant: int, row: int) -> int:
        """One operation."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute(BIND, str(tenant))
            return int(await connection.fetchval(READ, row))

    async def close(self) -> None:
        """Give the connections back."""
        await self._pool.close()


class Held(ABC):
    """Connections that are kept, and what is waiting goes together. Variants say how."""

    user = "app"
    #: Whether only operations of one tenant go together.
    by_tenant = False

    def __init__(self, target: dict[str, Any]) -> None:
        self._dsn = target["dsn"][self.user]
        self._waiting: dict[int, deque[Waiting]] = {}
        self._ready: asyncio.Queue[int] = asyncio.Queue()
        self._workers: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Connect."""
        self._connections = [await asyncpg.connect(self._dsn) for _ in range(HELD)]
        self._workers = [asyncio.create_task(self._work(item)) for item in self._connections]

    async def read(self, tenant: int, row: int) -> int:
        """One operation, which may wait for others to go with."""
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        key = tenant if self.by_tenant else 0
        line = self._waiting.setdefault(key, deque())
        if not line:
            self._ready.put_nowait(key)
        line.append((tenant, row, answer))
        return await answer

    async def close(self) -> None:
        """End the connections."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.wait(self._workers)
        for connection in self._connections:
            await connection.close()

    @abstractmethod
    async def send(self, connection: asyncpg.Connection, batch: list[Waiting]) -> list[int]:
        """The values of a batch, in its order."""

    async def _work(self, connection: asyncpg.Connection) -> None:
        while True:
            key = await self._ready.get()
            line = self._waiting[key]
            batch = [line.popleft() for _ in range(min(TOGETHER, len(line)))]
            if line:
                self._ready.put_nowait(key)
            try:
                values = await self.send(connection, batch)
                if len(values) != len(batch):
                    raise RuntimeError(f"{len(values)} rows for {len(batch)} keys")
            except Exception as error:
                for *_, answer in batch:
                    answer.set_exception(error)
                continue
            for (*_, answer), value in zip(batch, values, strict=True):
                answer.set_result(value)


class FetchmanyPerTenant(Held):
    """One transaction for what one tenant has waiting: the binding, a fetchmany, the commit.

    BEGIN and the binding are one round trip, as text: a number needs no quoting.
    """

    by_tenant = True

    async def send(self, connection: asyncpg.Connection, batch: list[Waiting]) -> list[int]:
        """Three round trips."""
        await connection.execute(f"begin; select set_config('app.tenant', '{batch[0][0]}', true)")
        rows = await connection.fetchmany(READ, [(row,) for _, row, _ in batch])
        await connection.execute("commit")
        return [record[0] for record in rows]


class FunctionOfBatch(Held):
    """One call of a plpgsql function that binds and reads for each pair of a mixed batch.

    The real rival. It needs one function per statement, an error fails the whole batch, and all
    operations of a batch share a transaction.
    """

    async def send(self, connection: asyncpg.Connection, batch: list[Waiting]) -> list[int]:
        """One round trip."""
        tenants, rows = [item[0] for item in batch], [item[1] for item in batch]
        values: list[int] = await connection.fetchval(
            "select read_batch($1::int[], $2::int[])", tenants, rows
        )
        return values


class BareFetchmany(Held):
    """No boundary at all: the tenant is a part of the key. What one such process can do at best."""

    user = "bare"

    async def send(self, connection: asyncpg.Connection, batch: list[Waiting]) -> list[int]:
        """One round trip, apart from what asyncpg adds."""
        rows = await connection.fetchmany(
            "select bal from users where tenant_id = $1 and id = $2",
            [(tenant, row) for tenant, row, _ in batch],
        )
        return [record[0] for record in rows]
