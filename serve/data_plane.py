"""What the daemon does to PostgreSQL and Redis: start them, set them up, mend them, end them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from tenancy.data_isolation.actors.configuration import (
    ActorConfiguration,
    configuration_path,
    write_configuration,
)
from tenancy.data_isolation.actors.directory import build_directory
from tenancy.data_isolation.core import EngineConfig, ServerConfig, Settings, TenancyError
from tenancy.data_isolation.core.errors import SetupError, UnauthenticatedError
from tenancy.data_isolation.core.servers_file import all_servers
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.engine.credentials import Credentials
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.master_key import master_key
from tenancy.data_isolation.engine.redis_connection import RedisConnection, check_redis
from tenancy.data_isolation.engine.server_connection import check_transport
from tenancy.data_isolation.engine.state_directory import file_errors, replace_file
from tenancy.data_isolation.engine.tracing import check_traces
from tenancy.data_isolation.serve.home_server import HomeServer
from tenancy.data_isolation.serve.runtime_state import RuntimeDirectory
from tenancy.data_isolation.serve.watchdog_thread import WatchdogThread

_log = logging.getLogger(__name__)

_KEY_LABEL = "made by tenancy up"
_DIRECTORY_VERSION = 1


class ServersMovedError(Exception):
    """PostgreSQL is at another address now, and everyone who knows the old one must be told."""


#: Stands for the embedded server until there is one.
_TO_BE_STARTED: Final = ServerConfig(dsn="")


class DataPlane:
    """The servers of one runtime, embedded unless they are given by DSN. Used by one task."""

    def __init__(self, settings: Settings, directory: RuntimeDirectory) -> None:
        self._settings = settings
        self._directory = directory
        self._postgres = None if settings.postgres_dsn else EmbeddedPostgres(settings)
        self._redis = None if settings.redis_url else EmbeddedRedis(settings)
        #: How to reach them, once they are started.
        self.postgres_dsn = settings.postgres_dsn
        self.redis_url = settings.redis_url
        self._known: tuple[ServerConfig, ...] = ()

    async def start_servers(self) -> None:
        """Have both running. Raises `SetupError`s, also for a server that the home is not of."""
        check_traces(self._settings)
        await asyncio.to_thread(HomeServer(self._settings).check)
        if self._redis is not None:
            RedisConnection.check_embedded(self._settings)
        server = self._settings.postgres_server()
        if server is not None:
            await check_transport(server)
        # A file that cannot be used is told before anything is started.
        listed = await asyncio.to_thread(all_servers, self._settings, server or _TO_BE_STARTED)
        await asyncio.gather(self._start_postgres(), self._start_redis())
        assert self.postgres_dsn is not None  # noqa: S101 - it was given, or has been started.
        # Read once: a file that is changed counts with the next start.
        first = dataclasses.replace(listed[0], dsn=self.postgres_dsn)
        self._known = (first, *listed[1:])

    async def set_up(self) -> None:
        """Roles, databases, catalog, schema, and the first admin key."""
        key = await master_key(self._settings)
        # The tenant actors and the HTTP processes work with the same key, wherever they run.
        self._settings = dataclasses.replace(self._settings, master_key=key.hex())
        config = EngineConfig(servers=self._servers(), settings=self._settings)
        engine = await Engine.open(config)
        try:
            await self._have_admin_key(engine.credentials)
        finally:
            await engine.close()
        await asyncio.to_thread(HomeServer(self._settings).note)

    def write_configuration(self) -> Path:
        """Write what the tenant actors and the HTTP processes need to know; where it is."""
        path = configuration_path(self._settings)
        configuration = ActorConfiguration(
            settings=self._settings,
            servers=self._servers(),
            directory=build_directory(
                version=_DIRECTORY_VERSION, actors_per_region=self._settings.shared_actors
            ),
        )
        with file_errors(path):
            write_configuration(configuration, path)
        return path

    async def watchdogs(self) -> WatchdogThread:
        """What holds tenants' sessions to their limits, to be started; after `set_up`."""
        return WatchdogThread(self._settings, await master_key(self._settings), self._servers())

    async def mend(self) -> str | None:
        """Start again what has ended; what is the matter when that does not help.

        Raises `ServersMovedError` when PostgreSQL could not be started at its old address.
        """
        before = self.postgres_dsn
        for embedded, start in (
            (self._postgres, self._start_postgres),
            (self._redis, self._start_redis),
        ):
            if embedded is None or await embedded.health():
                continue
            matter = await _tried(start)
            if matter is not None:
                return matter
        if self.postgres_dsn != before:
            raise ServersMovedError("PostgreSQL had to be started at another port")
        return None

    async def stop_servers(self) -> None:
        """End the embedded servers that were started here."""
        for embedded in (self._redis, self._postgres):
            if embedded is not None:
                await embedded.stop()

    def _servers(self) -> tuple[ServerConfig, ...]:
        if not self._known:
            raise SetupError("PostgreSQL has not been started yet")
        return self._known

    async def _start_postgres(self) -> None:
        if self._postgres is not None:
            self.postgres_dsn = (await self._postgres.start()).dsn

    async def _start_redis(self) -> None:
        if self._redis is not None:
            self.redis_url = (await self._redis.start()).url
        elif self.redis_url is not None:
            await check_redis(self._settings)

    async def _have_admin_key(self, credentials: Credentials) -> None:
        """Make the administrator's key, unless the file has one that is good."""
        path = self._directory.admin_key
        with file_errors(path):
            text = path.read_text().strip() if path.exists() else ""
        if text:
            try:
                if (await credentials.verify(text)).scope is CredentialScope.ADMIN:
                    return
            except UnauthenticatedError:
                pass
            _log.warning("the key in %s is not good for this installation any more", path)
        key = await credentials.create(CredentialScope.ADMIN, label=_KEY_LABEL)
        with file_errors(path):
            replace_file(path, key.text.encode() + b"\n")


def shut_down_servers(settings: Settings) -> None:
    """End embedded servers that an earlier daemon has left behind. Blocks."""

    async def ended() -> None:
        if settings.postgres_dsn is None and (settings.home / "postgres").is_dir():
            await EmbeddedPostgres(settings).shut_down()
        if settings.redis_url is None and (settings.home / "redis").is_dir():
            await EmbeddedRedis(settings).shut_down()

    asyncio.run(ended())


async def _tried(start: Callable[[], Awaitable[None]]) -> str | None:
    try:
        await start()
    except TenancyError as error:
        return error.detail
    return None
