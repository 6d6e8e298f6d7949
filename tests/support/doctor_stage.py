"""A server of its own with an installation that has a tenant at each level, to break and mend."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from support.install import Install, make_install
from support.postgres import PostgresServer, postgres_server
from tenancy.data_isolation.core import IsolationLevel, TenantContext
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.bootstrap import inspection_of
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.findings import Finding
from tenancy.data_isolation.engine.mending import mend
from tenancy.data_isolation.engine.server_look import ServerLook

_MIGRATION = """
create table people (id integer primary key, email text unique);
create table notes (id integer generated always as identity primary key,
                    author integer references people on delete cascade, body text);
create index notes_body on notes (body);
create function stamped() returns trigger language plpgsql as $$ begin return new; end $$;
create trigger stamp before insert on people for each row execute function stamped();
create view authors as select id, email from people;
"""
#: The throw-away servers of the tests are set up to be fast and to keep nothing.
_AS_IT_SHOULD_BE = ("fsync", "full_page_writes", "synchronous_commit")
_POLLS_MAX = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The installation, and the names of what its tenants have."""

    install: Install
    names: Mapping[str, str]

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[AdminConnections]:
        """Connections of the admin role, closed at the end of the block."""
        connections = AdminConnections(
            settings=self.install.settings, servers=(self.install.server_config,)
        )
        try:
            yield connections
        finally:
            await connections.close()

    async def run(self, statements: Sequence[str], database: str | None = None) -> None:
        """Run statements as the superuser, one by one, with `{names}` filled in."""
        place = (database or "{db}").format(**self.names)
        connection = await asyncpg.connect(self.install.server.dsn(place))
        try:
            for statement in statements:
                await connection.execute(_filled(statement, self.names))
        finally:
            await connection.close()

    async def look(self) -> ServerLook:
        """Everything that is found. What was changed a moment ago counts as settled."""
        settings = dataclasses.replace(self.install.settings, control_timeout_s=0.001)
        async with self.admin() as admin:
            (look,) = await inspection_of(settings, admin).look(self.install.master_key)
        return look

    async def findings(self) -> list[Finding]:
        """What is wrong."""
        return list((await self.look()).findings)

    async def mend(self, findings: Sequence[Finding], *, rounds: int = 3) -> list[Finding]:
        """Carry the mends out, and those of what shows up then; what is left."""
        for _ in range(rounds):
            async with self.admin() as admin:
                for finding in findings:
                    await mend(admin, finding, key=self.install.master_key)
            findings = await self.findings()
            if not findings:
                break
        return list(findings)

    async def wait_for(self, name: str, value: str) -> None:
        """Wait until new sessions have a setting that was reloaded."""
        for _ in range(_POLLS_MAX):
            connection = await asyncpg.connect(self.install.server.admin_dsn)
            try:
                if await connection.fetchval("select current_setting($1)", name) == value:
                    return
            finally:
                await connection.close()
            await asyncio.sleep(0.02)
        pytest.fail(f"{name} does not become {value}")


def _filled(statement: str, names: Mapping[str, str]) -> str:
    for name, value in names.items():
        statement = statement.replace(f"{{{name}}}", value)
    return statement


async def _set_up(install: Install) -> dict[str, str]:
    superuser = await asyncpg.connect(install.server.admin_dsn)
    try:
        for name in _AS_IT_SHOULD_BE:
            await superuser.execute(f"alter system set {name} = 'on'")
        await superuser.execute("select pg_reload_conf()")
    finally:
        await superuser.close()
    names = {"db": str(install.database)}
    async with await Engine.open(install.config) as engine:
        await engine.apply_migration("0001_notes", _MIGRATION)
        for name, level in (
            ("rowan", IsolationLevel.ROW),
            ("scarlet", IsolationLevel.SCHEMA),
            ("sienna", IsolationLevel.SCHEMA),
            ("dawn", IsolationLevel.DATABASE),
        ):
            tenant = await engine.create_tenant(TenantContext(tenant_id=name), level=level)
            assert tenant.placement is not None
            names[f"{name}_no"] = str(tenant.tenant_no)
            names[f"{name}_role"] = str(tenant.placement.role)
            names[f"{name}_schema"] = str(tenant.placement.schema)
            names[f"{name}_db"] = str(tenant.placement.database)
        hybrid = await engine.create_tenant(
            TenantContext(tenant_id="hazel"), level=IsolationLevel.ROW, hybrid=True
        )
        assert hybrid.placement is not None
        names["hazel_schema"] = str(hybrid.placement.sensitive_schema)
    return names


@pytest.fixture(scope="module")
def doctor_server(postgres_bin: Path) -> Iterator[PostgresServer]:
    """A server that only the tests of one module break: the same fixture once more."""
    yield from inspect.unwrap(postgres_server)(postgres_bin)


@pytest.fixture(scope="module")
def stage(doctor_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """The installation. A test leaves it as it found it."""
    install = make_install(doctor_server, "doctored", tmp_path_factory.mktemp("doctored"))
    names = asyncio.run(_set_up(install))
    return Stage(install=install, names=names)
