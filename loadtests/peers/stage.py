"""The one server of all variants, with the rows of each, and the runtime when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from peers.work import MIXED_ROW, MIXED_SCHEMA
from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Operation,
    ServerConfig,
    Settings,
    TenantContext,
)
from tenancy.data_isolation.engine.embedded_postgres import EmbeddedPostgres
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.postgres_binaries import PostgresBinaries

_SQL = Path(__file__).with_name("stage.sql")
_LOGINS = ("app", "bare", "ft", "dj", "sat", "schemas")
_TABLE = "create table users (id integer primary key, email text not null, bal bigint not null)"
_FILL = (
    "insert into users select i, 'user' || i || '@tenant' || $1::integer || '.example', "
    "$1::integer * 1000 + i from generate_series(1, $2::integer) i"
)
#: The rest of the rows belongs to tenants that nobody asks for: numbers that are given to nobody.
_FILLER = """
insert into app.users (tenant_id, id, email, bal)
select 900000000 + t, i, 'user' || i || '@filler.example', i
from generate_series(1, $1::integer) t, generate_series(1, $2::integer) i
"""
#: It is the machine that is to set the bounds, not what a type of tenant is allowed.
TIERS = {
    "standard": {
        "operations_per_s": 1_000_000,
        "operations_burst": 1_000_000,
        "operations_in_flight_max": 100_000,
    }
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Where everything is. Holds passwords."""

    home: Path
    server_dsn: str
    dsn: dict[str, str]
    pgbench: Path
    server_version: str

    def target(self) -> dict[str, Any]:
        """What drivers are told."""
        return {
            "dsn": self.dsn,
            "server_dsn": self.server_dsn,
            "home": str(self.home),
            "tiers": TIERS,
        }


@contextlib.asynccontextmanager
async def server(folder: Path, tenants: int, rows: int) -> AsyncIterator[Stage]:
    """The server, filled: `tenants` have `rows` rows each. It ends with the block."""
    embedded = EmbeddedPostgres(Settings(home=folder / "server"))
    handle = await embedded.start()
    try:
        dsn = await _peers(handle.dsn, tenants, rows)
        home = folder / "runtime"
        await _ours(handle.dsn, home, tenants, rows)
        binaries = PostgresBinaries.find(None, None)
        admin = await asyncpg.connect(handle.dsn)
        try:
            version = await admin.fetchval("show server_version")
            await admin.execute("checkpoint")
        finally:
            await admin.close()
        yield Stage(
            home=home,
            server_dsn=handle.dsn,
            dsn=dsn,
            pgbench=binaries.directory / "pgbench",
            server_version=version,
        )
    finally:
        await embedded.stop()


@contextlib.asynccontextmanager
async def runtime(stage: Stage) -> AsyncIterator[dict[str, Any]]:
    """`tenancy up` on that server; where its endpoint is, and the administrator's key."""
    limits = {
        f"TENANCY_{kind}_{name}".upper(): str(value)
        for kind, row in TIERS.items()
        for name, value in row.items()
    }
    environment = (
        os.environ
        | limits
        | {
            "TENANCY_HOME": str(stage.home),
            "TENANCY_POSTGRES_DSN": stage.server_dsn,
            "TENANCY_HTTP_PORT": "0",
        }
    )
    try:
        state = json.loads(await _tenancy("up", environment))
        where = urlsplit(state["url"])
        yield {
            "http": {"host": where.hostname, "port": where.port},
            "key": _key(state["admin_key_file"]),
        }
    finally:
        await _tenancy("down", environment)


def _key(file: str) -> str:
    return Path(file).read_text().strip()


async def _tenancy(command: str, environment: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tenancy.data_isolation.serve.cli", command, "--json",
        env=environment, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, _ = await process.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        raise
    if process.returncode != 0:
        raise SystemExit(f"tenancy {command} failed: {output.decode()}")
    return output.decode()


async def _peers(server_dsn: str, tenants: int, rows: int) -> dict[str, str]:
    """The database of the others; the connection strings of its logins."""
    admin = await asyncpg.connect(server_dsn)
    await admin.execute("create database peers")
    await admin.close()
    parts = urlsplit(server_dsn)._replace(path="/peers")
    admin = await asyncpg.connect(parts.geturl())
    dsn = {}
    try:
        sizes = {
            "tenants": tenants,
            "rows": rows,
            "mixed": MIXED_ROW,
            "schemas": MIXED_SCHEMA,
        }
        for name, value in sizes.items():
            await admin.execute(f"set bench.{name} = {value}")
        await admin.execute(_SQL.read_text())
        for login in _LOGINS:
            password = secrets.token_hex(16)
            await admin.execute(f"alter role {login} password '{password}'")
            where = f"{login}:{password}@{parts.hostname}:{parts.port}"
            dsn[login] = f"postgresql://{where}/peers"
        await admin.execute("vacuum analyze")
    finally:
        await admin.close()
    return dsn


async def _ours(server_dsn: str, home: Path, tenants: int, rows: int) -> None:
    """The same rows in an installation of the product."""
    settings = Settings(home=home, tiers=TIERS)
    config = EngineConfig(servers=(ServerConfig(dsn=server_dsn),), settings=settings)
    async with await Engine.open(config) as engine:
        await engine.apply_migration("0001_users", _TABLE)
        for level, count in (
            (IsolationLevel.ROW, MIXED_ROW),
            (IsolationLevel.SCHEMA, MIXED_SCHEMA),
        ):
            for number in range(1, count + 1):
                name = f"{level}-{number}"
                await engine.create_tenant(TenantContext(tenant_id=name), level=level)
                await engine.execute(name, Operation(query=_FILL, params=[number, rows]))
    parts = urlsplit(server_dsn)._replace(path=f"/{settings.database}")
    admin = await asyncpg.connect(parts.geturl())
    try:
        await admin.execute(_FILLER, max(0, tenants - MIXED_ROW), rows)
        await admin.execute("vacuum analyze")
    finally:
        await admin.close()


async def wait_for_port(host: str, port: int, timeout_s: float = 20.0) -> None:
    """Return when somebody listens there. Raises `TimeoutError`."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise TimeoutError(f"nobody listens at {host}:{port}")
