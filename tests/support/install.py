"""A bootstrapped pair of databases for each test, cloned from one that is set up once per session.

Roles belong to the whole server, so all tests use one master key; what a test does to a role it has
to undo.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
from collections.abc import AsyncIterator, Callable
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
_BARE, _MODEL = "tenancy_bare", "tenancy_model"


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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "migrated(name, sql): the test begins with an installation that has had that"
    )


@pytest.fixture(scope="session")
def bare_model(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Install:
    """An installation that was set up and that no process has attached to yet."""
    model = make_install(postgres_server, _BARE, tmp_path_factory.mktemp("bare"))
    # Session fixtures have no event loop of their own; this one is gone before any test's begins.
    asyncio.run(bootstrap(model))
    return model


@pytest.fixture(scope="session")
def installed_model(bare_model: Install, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """The installation that those of single tests are cloned from. Nobody connects to it any more.

    An engine has attached to it once: what the first one prepares takes as long as the clone.
    """
    return asyncio.run(_prepared(bare_model, tmp_path_factory.mktemp("model")))


async def _prepared(bare: Install, home: Path) -> Install:
    # Imported late: the unit tests do without, and it takes a second.
    from tenancy.data_isolation.engine.engine import Engine

    model = await _clone(bare, _MODEL, home)
    await (await Engine.attach(model.config)).close()
    return model


#: Gives a model that has had that migration, by its name and its SQL.
MigratedModel = Callable[[str, str], Install]


@pytest.fixture(scope="session")
def migrated_model(
    installed_model: Install, tmp_path_factory: pytest.TempPathFactory
) -> MigratedModel:
    """Models for the tests that begin with the same tables; each is made when it is wanted."""

    @functools.cache
    def migrated(name: str, sql: str) -> Install:
        database = f"{_MODEL}_{secrets.token_hex(5)}"
        home = tmp_path_factory.mktemp("migrated")
        return asyncio.run(_migrated(installed_model, database, home, name, sql))

    return migrated


async def _migrated(
    installed: Install, database: str, home: Path, migration: str, sql: str
) -> Install:
    from tenancy.data_isolation.engine.engine import Engine

    model = await _clone(installed, database, home)
    async with await Engine.attach(model.config) as engine:
        report = await engine.apply_migration(migration, sql)
        assert report.complete
    return model


@pytest.fixture
def model(request: pytest.FixtureRequest, installed_model: Install) -> Install:
    """What `install` is cloned from."""
    marker = request.node.get_closest_marker("migrated")
    if marker is None:
        return installed_model
    migrated: MigratedModel = request.getfixturevalue("migrated_model")
    return migrated(*marker.args)


@pytest.fixture
async def install(model: Install, tmp_path: Path) -> AsyncIterator[Install]:
    """A bootstrapped installation of this test's own, dropped after it.

    Without tables, unless the test or its module is marked with `migrated`.
    """
    async with cloned(model, _unique(), tmp_path) as made:
        yield made


@pytest.fixture
async def bare_install(bare_model: Install, tmp_path: Path) -> AsyncIterator[Install]:
    """The same, never with tables, and the engine of the test is the first one."""
    async with cloned(bare_model, _unique(), tmp_path) as made:
        yield made


def _unique() -> str:
    return f"tenancy_{secrets.token_hex(5)}"


@asynccontextmanager
async def cloned(model: Install, name: str, home: Path) -> AsyncIterator[Install]:
    """A bootstrapped installation of that name, dropped at the end of the block."""
    try:
        yield await _clone(model, name, home)
    finally:
        await _drop(model.server, name)


async def _clone(model: Install, name: str, home: Path) -> Install:
    made = make_install(model.server, name, home)
    async with model.connected(database="postgres") as connection:
        for suffix in ("", "_template"):
            # Copying files is quicker than writing the copy to the log when nothing is synced.
            await connection.execute(
                f'create database "{name}{suffix}" template "{model.database}{suffix}" '
                "strategy file_copy owner tenancy_owner"
            )
            await connection.execute(f'revoke all on database "{name}{suffix}" from public')
        await connection.execute(
            f'grant connect on database "{name}" to tenancy_rows, tenancy_control, tenancy_hybrid'
        )
    async with made.connected() as connection:
        # What came along in the copy: the model's keys, and where its namespaces are.
        await replace_keys(connection, [binding_key(made.master_key, SERVER, made.database, 1)])
        for suffix in ("", "_template"):
            await connection.execute(
                "update catalog.namespace set database = $2 where database = $1",
                f"{model.database}{suffix}",
                f"{name}{suffix}",
            )
    return made


async def _drop(server: PostgresServer, name: str) -> None:
    connection = await asyncpg.connect(server.admin_dsn)
    try:
        for suffix in ("", "_template"):
            await connection.execute(f'drop database if exists "{name}{suffix}" with (force)')
    finally:
        await connection.close()
