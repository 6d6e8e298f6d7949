"""Connections of the admin role: the only ones that make roles, databases, schemas and tables.

Rules this module keeps:

* A process holds at most `Settings.admin_connections_max` of them; a caller waits for a slot no
  longer than `Settings.connection_wait_ms`.
* They start with a search path that holds nothing but `pg_catalog`, so that no object of a tenant's
  schema can stand in for one of PostgreSQL's.
* No error shows a DSN: it holds a password.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ServerNotFoundError,
    ServerUnavailableError,
    SettingError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.impatient_connection import ImpatientConnection
from tenancy.data_isolation.engine.server_connection import open_connection

#: What a connection can fail with while it is being made (manual, appendix A, classes 08, 53, 57).
_UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
)


#: Connections that are kept warm per server.
_WARM_MAX: Final = 2


class AdminConnections:
    """Opens connections of the admin role to any database of any configured server.

    Safe to use from any task of one event loop. A connection belongs to its caller, who closes it;
    a connection that breaks gives its slot back as well.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        servers: Sequence[ServerConfig],
        keep_warm: bool = False,
        command_timeout_s: float | None = None,
        silent_max_ms: int = 0,
    ) -> None:
        """`keep_warm` keeps connections to shared databases until `close`.

        `command_timeout_s` is what `connect` takes when it is not told another one. A session that
        is silent within a transaction for `silent_max_ms` is ended by its server, and with it all
        locks that it has; 0 = never.
        """
        self._command_timeout_s = command_timeout_s
        self._silent_max_ms = silent_max_ms
        self._settings = settings
        self._servers = {ServerName(server.name): server for server in servers}
        self._slots = asyncio.Semaphore(settings.admin_connections_max)
        self._warm_max = _WARM_MAX if keep_warm else 0
        self._warm: dict[ServerName, list[asyncpg.Connection]] = {}

    @property
    def servers(self) -> tuple[ServerConfig, ...]:
        """The configured servers; the first one holds the catalog."""
        return tuple(self._servers.values())

    def server(self, name: ServerName) -> ServerConfig:
        """The server of that name, or `ServerNotFoundError`."""
        found = self._servers.get(name)
        if found is None:
            known = ", ".join(self._servers) or "none"
            raise ServerNotFoundError(f"no server is called {name!r}; the servers are {known}")
        return found

    async def connect(
        self,
        server: ServerName,
        database: DatabaseName | None = None,
        *,
        name: str = "tenancy admin",
        command_timeout_s: float | None = None,
    ) -> asyncpg.Connection:
        """A connection to `database`, or to the maintenance database that the DSN names.

        It calls itself `name` where the server lists its sessions. A statement that has no answer
        after `command_timeout_s` is given up, and the connection with it.

        Raises `ServerUnavailableError`, `ServerNotFoundError`, `OverloadedError` when no slot gets
        free in time, and `SettingError` when the server refuses the DSN's role.
        """
        config = self.server(server)
        await self._take_slot()
        try:
            connection = await self._open(config, database, name, command_timeout_s)
        except BaseException:
            self._slots.release()
            raise
        connection.add_termination_listener(lambda _: self._slots.release())
        return connection

    async def answers(self, server: ServerName) -> bool:
        """Whether a server is there: it lets the admin in, or refuses to do so just now.

        One that is not configured is not. A DSN that cannot be used raises as in `connect`.
        """
        try:
            connection = await self.connect(server)
        except ServerNotFoundError:
            return False
        except ServerUnavailableError as error:
            # Class 08 is a connection that broke: nobody has said anything (manual, appendix A).
            return error.sqlstate is not None and not error.sqlstate.startswith("08")
        await close(connection, self._settings.connect_timeout_s)
        return True

    @asynccontextmanager
    async def session(
        self, server: ServerName, database: DatabaseName | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection for the block: as `connect` gives it, or one that was kept warm."""
        connection = self._take_warm(server, database) or await self.connect(server, database)
        keep = False
        try:
            yield connection
            keep = await self._made_ready(connection, server, database)
        finally:
            if not keep:
                await close(connection, self._settings.connect_timeout_s)

    async def close(self) -> None:
        """Close what was kept warm. Can be called again."""
        self._warm_max = 0
        for connections in self._warm.values():
            while connections:
                await close(connections.pop(), self._settings.connect_timeout_s)

    def _take_warm(
        self, server: ServerName, database: DatabaseName | None
    ) -> asyncpg.Connection | None:
        kept = self._warm.get(server, []) if database == self._settings.database else []
        while kept:
            connection = kept.pop()
            if not connection.is_closed():
                return connection
        return None

    async def _made_ready(
        self, connection: asyncpg.Connection, server: ServerName, database: DatabaseName | None
    ) -> bool:
        """Whether the connection was reset and kept for the next block."""
        kept = self._warm.setdefault(server, [])
        if database != self._settings.database or len(kept) >= self._warm_max:
            return False
        try:
            await connection.reset(timeout=self._settings.connect_timeout_s)
            await connection.execute("reset role")
        except (*_UNREACHABLE, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        if len(kept) >= self._warm_max:
            return False
        kept.append(connection)
        return True

    async def _take_slot(self) -> None:
        try:
            async with asyncio.timeout(self._settings.connection_wait_ms / 1_000):
                await self._slots.acquire()
        except TimeoutError:
            raise OverloadedError(
                f"all {self._settings.admin_connections_max} admin connections are at work"
            ) from None

    async def _open(
        self,
        config: ServerConfig,
        database: DatabaseName | None,
        name: str,
        command_timeout_s: float | None,
    ) -> asyncpg.Connection:
        try:
            return await open_connection(
                config,
                database=database,
                timeout=self._settings.connect_timeout_s,
                command_timeout=command_timeout_s or self._command_timeout_s,
                connection_class=ImpatientConnection,
                server_settings={
                    "application_name": name,
                    "search_path": "pg_catalog, pg_temp",
                    # Reading the catalogs looks dear to the planner and is not; compiling is.
                    "jit": "off",
                    "idle_in_transaction_session_timeout": f"{self._silent_max_ms}ms",
                },
            )
        except (*_UNREACHABLE, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise _connect_error(config, database, error) from None


async def close(connection: asyncpg.Connection, timeout_s: float) -> None:
    """Close `connection`; when it does not answer in time, drop it."""
    try:
        await connection.close(timeout=timeout_s)
    except _UNREACHABLE:
        connection.terminate()


def _connect_error(
    config: ServerConfig, database: DatabaseName | None, error: Exception
) -> TenancyError:
    """What to tell the user. The driver's text is used only where it cannot hold the DSN."""
    server = f"server {config.name!r}"
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return SettingError(f"{server} refused the role or the password of its DSN")
        case asyncpg.InvalidCatalogNameError():
            named = repr(database) if database else "of its DSN"
            return ServerUnavailableError(f"{server} has no database {named}", "3D000")
        case asyncpg.PostgresError():
            return ServerUnavailableError(f"{server} refused a connection: {error}", error.sqlstate)
        case OSError() | TimeoutError():
            return ServerUnavailableError(
                f"{server} ({_place(config.dsn)}) does not answer; see that it runs and that its "
                f"DSN ({_setting(config)}) names the right host and port"
            )
        case _:
            return SettingError(
                f"the DSN of {server} cannot be used; give {_setting(config)} as a libpq URI, "
                "postgresql://user:password@host:5432/postgres"
            )


def _setting(config: ServerConfig) -> str:
    """Where the DSN of a server comes from, as far as that is known."""
    first = config.name == "main"
    return "TENANCY_POSTGRES_DSN" if first else "EngineConfig or TENANCY_POSTGRES_SERVERS_FILE"


def _place(dsn: str) -> str:
    """The host and port of a DSN, which hold no secret."""
    return urlsplit(dsn).netloc.rpartition("@")[2] or "its socket"
