"""An engine over two servers in two regions, of different versions of PostgreSQL if there are."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from support.install import Install
from support.postgres import PostgresServer, embedded_bin, postgres_running
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig
from tenancy.data_isolation.engine.engine import Engine

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
#: The second server's name and region; the first one is `main`, in region `north`.
SECOND = "second"
NORTH, SOUTH = "north", "south"


@pytest.fixture(scope="session")
def other_server(postgres_bin: Path) -> Iterator[PostgresServer]:
    """A server beside the one under test, of the other version if there is one."""
    other = DEBIAN_15 if postgres_bin == embedded_bin() else embedded_bin()
    found = other if (other / "postgres").exists() else postgres_bin
    with postgres_running(found) as server:
        yield server


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TwoServers:
    """An installation over two servers. The first one has the catalog."""

    install: Install
    other: PostgresServer

    def config(self, **settings: Any) -> EngineConfig:
        """The configuration, with other settings where they are given."""
        first = dataclasses.replace(self.install.server_config, region=NORTH)
        second = ServerConfig(name=SECOND, dsn=self.other.admin_dsn, region=SOUTH)
        return EngineConfig(
            servers=(first, second),
            settings=dataclasses.replace(self.install.settings, **settings),
        )

    @asynccontextmanager
    async def opened(self, **settings: Any) -> AsyncIterator[Engine]:
        """An engine that carries moves out."""
        async with await Engine.open(self.config(**settings)) as engine:
            engine.moves.work()
            yield engine


@pytest.fixture
async def two_servers(install: Install, other_server: PostgresServer) -> AsyncIterator[TwoServers]:
    """Two servers; what the second one has of this installation is dropped after the test."""
    yield TwoServers(install=install, other=other_server)
    connection = await asyncpg.connect(other_server.admin_dsn)
    try:
        for name in await connection.fetch(
            "select datname from pg_database where datname ~ '^(t|tenancy)_'"
        ):
            await connection.execute(f'drop database if exists "{name[0]}" with (force)')
        for role in await connection.fetch(
            "select rolname from pg_roles where rolname ~ '^t_[0-9a-f]{20}$'"
        ):
            await connection.execute(f'drop role "{role[0]}"')
    finally:
        await connection.close()
