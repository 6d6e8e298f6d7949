"""A bootstrapped pair of databases for each test, cloned from one that is set up once per session.

Roles belong to the whole server, so all tests use one master key; what a test does to a role it has
to undo.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from support.postgres import PostgresServer
from tenancy.data_isolation.core.crypto import (
    MasterKey,
    binding_key,
    parse_master_key,
    role_password,
    sign_binding,
)
from tenancy.data_isolation.core.identifiers import (
    DatabaseName,
    Epoch,
    RoleName,
    ServerName,
    TenantNo,
)
from tenancy.data_isolation.core.settings import EngineConfig, ServerConfig, Settings
from tenancy.data_isolation.engine.binding_keys import replace_keys
from tenancy.data_isolation.engine.bootstrap import Bootstrap

#: The master key of every test.
MASTER_KEY_TEXT = "5a" * 32
SERVER = ServerName("main")
_MODEL = "tenancy_model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Install:
    """A bootstrapped server with databases that only this test uses."""

    settings: Settings
    config: EngineConfig
    server: PostgresServer
    master_key: MasterKey

    @property
    def database(self) -> DatabaseName:
        """The shared database, which has the catalog as well."""
        return DatabaseName(self.settings.database)

    @property
    def server_config(self) -> ServerConfig:
        """The one server of the configuration."""
        server = self.config.servers[0]
        assert isinstance(server, ServerConfig)
        return server

    def admin_dsn(self, database: str | None = None) -> str:
        """The superuser's DSN, for the shared database unless another is named."""
        return self.server.dsn(database or self.database)

    def role_dsn(self, role: str, database: str | None = None) -> str:
        """The DSN of a login role with its derived password."""
        password = role_password(self.master_key, SERVER, RoleName(role))
        return self.server.dsn(database or self.database, role, password)

    @asynccontextmanager
    async def connected(
        self, role: str | None = None, database: str | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection of a login role, or of the superuser, closed at the end of the block."""
        dsn = self.admin_dsn(database) if role is None else self.role_dsn(role, database)
        connection = await asyncpg.connect(dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def bind(
        self, connection: asyncpg.Connection, tenant_no: int, epoch: int = 1, key_id: int = 1
    ) -> None:
        """Bind a session to a tenant as the runtime does."""
        text = self.binding(tenant_no, epoch, connection.get_server_pid(), key_id=key_id)
        await connection.execute("select set_config('tenancy.binding', $1, false)", text)

    def binding(
        self,
        tenant_no: int,
        epoch: int,
        backend_pid: int,
        *,
        database: str | None = None,
        key_id: int = 1,
    ) -> str:
        """A binding as the runtime signs it."""
        key = binding_key(self.master_key, SERVER, DatabaseName(database or self.database), key_id)
        return sign_binding(key, TenantNo(tenant_no), Epoch(epoch), backend_pid)


def make_install(server: PostgresServer, database: str, home: Path) -> Install:
    """The settings of an installation on `server` under that database name; nothing is done."""
    settings = Settings(database=database, home=home, master_key=MASTER_KEY_TEXT)
    config = EngineConfig(
        servers=(ServerConfig(name=SERVER, dsn=server.admin_dsn),), settings=settings
    )
    return Install(
        settings=settings,
        config=config,
        server=server,
        master_key=parse_master_key(MASTER_KEY_TEXT),
    )


async def bootstrap(install: Install) -> None:
    """Set the installation up as the runtime does."""
    await Bootstrap(
        settings=install.settings,
        master_key=install.master_key,
        servers=(install.server_config,),
    ).run()


@pytest.fixture(scope="session")
def installed_model(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Install:
    """The installation that those of single tests are cloned from. Nobody connects to it."""
    model = make_install(postgres_server, _MODEL, tmp_path_factory.mktemp("model"))
    # Session fixtures have no event loop of their own; this one is gone before any test's begins.
    asyncio.run(bootstrap(model))
    return model


@pytest.fixture
async def install(installed_model: Install, tmp_path: Path) -> AsyncIterator[Install]:
    """A bootstrapped installation of this test's own, dropped after it."""
    async with cloned(installed_model, f"tenancy_{secrets.token_hex(5)}", tmp_path) as made:
        yield made


@asynccontextmanager
async def cloned(model: Install, name: str, home: Path) -> AsyncIterator[Install]:
    """A bootstrapped installation of that name, dropped at the end of the block."""
    made = make_install(model.server, name, home)
    names = (name, f"{name}_template")
    try:
        await asyncio.gather(
            *(_copy(made.server, name, name[len(made.database) :]) for name in names)
        )
        await _own_keys(made)
        yield made
    finally:
        await asyncio.gather(*(_drop(made.server, name) for name in names))


async def _copy(server: PostgresServer, name: str, suffix: str) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    try:
        # Copying files is quicker than writing the copy to the log when nothing is synced.
        await connection.execute(
            f'create database "{name}" template "{_MODEL}{suffix}" '
            "strategy file_copy owner tenancy_owner"
        )
        await connection.execute(f'revoke all on database "{name}" from public')
        if not suffix:
            await connection.execute(
                f'grant connect on database "{name}" '
                "to tenancy_rows, tenancy_control, tenancy_hybrid"
            )
    finally:
        await connection.close()


async def _drop(server: PostgresServer, name: str) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    try:
        await connection.execute(f'drop database if exists "{name}" with (force)')
    finally:
        await connection.close()


async def _own_keys(install: Install) -> None:
    """Replace the keys that came along in the copy."""
    connection = await asyncpg.connect(install.admin_dsn())
    try:
        key = binding_key(install.master_key, SERVER, install.database, 1)
        await replace_keys(connection, [key])
    finally:
        await connection.close()
