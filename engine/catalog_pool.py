"""The catalog's connections, and what their failures mean.

Rules this module keeps:

* At most `Settings.catalog_connections_max` connections, opened when they are needed; a caller
  waits for one no longer than `Settings.connection_wait_ms`, and no more than
  `Settings.waiting_operations_max` callers wait (`OverloadedError`).
* Nothing of the driver gets out: a server that cannot be reached is `ServerUnavailableError`, a
  write whose answer was lost is `OutcomeUnknownError`.
* Every statement is its own transaction, and reads are never mixed with writes in one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, LiteralString

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey, role_password
from tenancy.data_isolation.core.errors import (
    DiskFullError,
    InvalidInputError,
    OutcomeUnknownError,
    OverloadedError,
    ServerUnavailableError,
    SetupError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.impatient_connection import ImpatientConnection
from tenancy.data_isolation.engine.layout import CONTROL_ROLE, shared_database
from tenancy.data_isolation.engine.server_connection import open_connection

#: The connection is gone, or was never made.
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class CatalogPool:
    """A small pool of the role `tenancy_control`. For one event loop; safe from any task of it."""

    def __init__(self, *, settings: Settings, pool: asyncpg.Pool) -> None:
        self._settings = settings
        self._pool = pool
        self._waiting = 0
        # Apart from the pool's own queue, so that waiting for others and waiting for the server are
        # told apart.
        self._slots = asyncio.Semaphore(settings.catalog_connections_max)

    @classmethod
    async def open(
        cls, *, settings: Settings, master_key: MasterKey, server: ServerConfig
    ) -> CatalogPool:
        """A pool on the control server. Raises `ServerUnavailableError`, `SetupError`."""
        timeout_s = settings.connect_timeout_s
        pool = asyncpg.create_pool(
            # Not by the driver itself: it would take TLS for a matter of taste.
            connect=partial(_connected, server),
            user=CONTROL_ROLE,
            password=role_password(master_key, ServerName(server.name), CONTROL_ROLE),
            database=shared_database(settings),
            min_size=0,
            max_size=settings.catalog_connections_max,
            max_inactive_connection_lifetime=settings.connection_idle_s,
            timeout=timeout_s,
            connection_class=ImpatientConnection,
            reset=_leave_as_it_is,
            command_timeout=settings.statement_timeout_ms / 1_000,
            server_settings={
                "application_name": "tenancy catalog",
                "search_path": "pg_catalog, pg_temp",
            },
        )
        opened = cls(settings=settings, pool=pool)
        try:
            await pool
            await opened.value("select 1")
        except BaseException:
            pool.terminate()
            raise
        return opened

    async def close(self) -> None:
        """Close all connections; those that do not answer in time are dropped."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def rows(self, query: LiteralString, *values: Any) -> list[asyncpg.Record]:
        """The rows of a reading statement."""
        async with self._connection() as connection:
            with _translated(write=False):
                return await connection.fetch(query, *values)

    async def row(self, query: LiteralString, *values: Any) -> asyncpg.Record | None:
        """The first row of a reading statement."""
        async with self._connection() as connection:
            with _translated(write=False):
                return await connection.fetchrow(query, *values)

    async def value(self, query: LiteralString, *values: Any) -> Any:
        """The first column of the first row of a reading statement."""
        async with self._connection() as connection:
            with _translated(write=False):
                return await connection.fetchval(query, *values)

    async def write(self, query: LiteralString, *values: Any) -> Any:
        """Run a changing statement; the first column of the first row that it returns.

        Raises `OutcomeUnknownError` when the connection broke before the answer came. What breaks
        a foreign or a unique key passes through as asyncpg's error, for the caller to name.
        """
        async with self._connection() as connection:
            with _translated(write=True):
                return await connection.fetchval(query, *values)

    async def write_row(self, query: LiteralString, *values: Any) -> asyncpg.Record | None:
        """As `write`; the first row that the statement returns."""
        async with self._connection() as connection:
            with _translated(write=True):
                return await connection.fetchrow(query, *values)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy]:
        """A connection of the pool, given back whatever happens."""
        await self._take_slot()
        try:
            with _translated(write=False):
                connection = await self._pool.acquire(timeout=self._settings.connect_timeout_s)
            try:
                yield connection
            finally:
                # A connection that breaks now is dropped by the pool. What was done stays done.
                with suppress(*_LOST, asyncpg.PostgresError):
                    await self._pool.release(connection)
        finally:
            self._slots.release()

    async def _take_slot(self) -> None:
        """Wait for one of the connections to be free, within limits."""
        if self._slots.locked() and self._waiting >= self._settings.waiting_operations_max:
            raise OverloadedError("too many operations wait for the catalog")
        self._waiting += 1
        try:
            async with asyncio.timeout(self._settings.connection_wait_ms / 1_000):
                await self._slots.acquire()
        except TimeoutError:
            raise OverloadedError("all connections to the catalog are at work") from None
        finally:
            self._waiting -= 1


async def _connected(server: ServerConfig, *_: Any, **arguments: Any) -> asyncpg.Connection:
    """A connection as the pool wants it; it gives its own DSN, which is none, first."""
    return await open_connection(server, **arguments)


async def _leave_as_it_is(connection: asyncpg.Connection) -> None:
    """The catalog's statements leave nothing behind in a session that could be reset."""


@contextmanager
def _translated(*, write: bool) -> Iterator[None]:
    """Replace the driver's errors by ours, but for those that `CatalogPool.write` lets through."""
    try:
        yield
    except (asyncpg.ForeignKeyViolationError, asyncpg.UniqueViolationError):
        raise
    except (*_LOST, asyncpg.PostgresError) as error:
        raise _translate(error, write=write) from None


def _translate(error: Exception, *, write: bool) -> TenancyError:
    sqlstate = getattr(error, "sqlstate", None)
    match error:
        case asyncpg.DiskFullError():
            return DiskFullError(sqlstate=sqlstate)
        case asyncpg.TooManyConnectionsError():
            return ServerUnavailableError("the catalog's server has no connection left", sqlstate)
        case asyncpg.InvalidAuthorizationSpecificationError() | asyncpg.InvalidCatalogNameError():
            return SetupError(
                f"the catalog's server refused {CONTROL_ROLE}; run the bootstrap again", sqlstate
            )
        # Found by the driver (ValueError) or by the server: nothing was done.
        case ValueError() | asyncpg.DataError():
            return InvalidInputError("the catalog cannot hold such a value", sqlstate)
        case asyncpg.IntegrityConstraintViolationError():
            return InvalidInputError(f"the catalog refuses the change: {error}", sqlstate)
        case asyncpg.QueryCanceledError():
            return ServerUnavailableError("the catalog did not answer in time", sqlstate)
        case _ if isinstance(error, _LOST):
            if write:
                return OutcomeUnknownError("the catalog's server went away during a change")
            return ServerUnavailableError("the catalog's server does not answer", sqlstate)
        case _:
            return TenancyError(f"the catalog refused a statement: {error}", sqlstate)
