"""A session that the driver opened and then gave away: the only place that reaches into the driver.

asyncpg resolves addresses, negotiates TLS and answers SCRAM. It has no public way to give its
transport away or to cancel without a statement of its own, hence the private names here; a test of
each runs against the installed version, and `constraints.txt` pins that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import asyncpg
from asyncpg import connect_utils

from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.driver_errors import connection_error
from tenancy.data_isolation.engine.server_connection import open_connection
from tenancy.data_isolation.engine.session_key import SessionKey


class DriverSession:
    """An authenticated session whose transport anybody may read and write."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        #: The server process behind it.
        self.backend_pid: int = connection.get_server_pid()
        #: The connection, TLS included. Whoever takes it sets its own protocol.
        self.transport: asyncio.Transport = connection._transport

    @classmethod
    async def open(
        cls,
        key: SessionKey,
        *,
        server: ServerConfig,
        password: str,
        parameters: Mapping[str, str],
        settings: Settings,
    ) -> DriverSession:
        """Log in. Raises `ServerUnavailableError` or `PlacementChangedError`."""
        try:
            connection = await open_connection(
                server,
                user=key.role,
                password=password,
                database=key.database,
                timeout=settings.connect_timeout_s,
                statement_cache_size=0,
                server_settings=dict(parameters),
            )
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError) as error:
            raise connection_error(error, f"server {key.server!r}") from None
        return cls(connection)

    async def cancel(self) -> None:
        """Send a CancelRequest (manual, 55.2.8); returns when the server has sent the signal.

        Raises `OSError`.
        """
        protocol = self._connection._protocol
        cancel: Any = getattr(connect_utils, "_cancel")  # noqa: B009 - the stubs do not know it.
        try:
            await cancel(
                loop=asyncio.get_running_loop(),
                addr=self._connection._addr,
                params=self._connection._params,
                backend_pid=protocol.backend_pid,
                backend_secret=protocol.backend_secret,
            )
        except asyncpg.InterfaceError as error:
            raise OSError(str(error)) from None

    def lost(self, error: Exception | None) -> None:
        """Tell the driver that the transport is gone, so that it lets go of what it holds."""
        self._connection._protocol.connection_lost(error)
