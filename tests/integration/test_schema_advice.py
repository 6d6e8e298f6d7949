"""Advice about indexes: from real statistics, for all tenants, and applied only when asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx
from support.engines import ask, make_tenant

from tenancy.data_isolation.core import EngineConfig, IsolationLevel
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.catalog_records import CredentialScope
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.schema_advice import SchemaAdviser
from tenancy.data_isolation.engine.statement_statistics import StatisticsState
from tenancy.data_isolation.serve.api import create_api
from tenancy.data_isolation.serve.composition import open_services

ORDERS = """
create table orders (id integer primary key, code text not null, kind text not null, note text);
create index on orders (kind);
"""
FILL = (
    "insert into orders select n, 'code-' || n, 'same', repeat('x', 200) "
    "from generate_series(1, 2000) n"
)
#: A value that must be told to nobody.
SECRET = "code-1711"
TENANTS = {"acme": IsolationLevel.ROW, "globex": IsolationLevel.SCHEMA}
_ADVICE = "/v1/schema/advice"


@asynccontextmanager
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """The interface over an engine, for its administrator."""
    async with AsyncExitStack() as stack:
        app = create_api(await open_services(engine, engine, stack))
        key = await engine.credentials.create(CredentialScope.ADMIN)
        yield await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://test",
                headers={"Authorization": f"Bearer {key.text}"},
            )
        )


async def limited(engine: Engine) -> StatisticsState:
    """How an admin role fares that is no superuser."""
    parts = urlsplit(engine.servers[0].dsn)
    place = parts.netloc.rpartition("@")[2]
    dsn = parts._replace(netloc=f"limited:open@{place}").geturl()
    settings = engine.settings
    admin = AdminConnections(settings=settings, servers=[ServerConfig(dsn=dsn)])
    adviser = SchemaAdviser(
        settings=settings, admin=admin, catalog=engine.catalog, reference=engine.shapes.reference
    )
    advice = await adviser.advice()
    await admin.close()
    (found,) = advice.servers
    if found.state is StatisticsState.READ:
        assert [item.columns for item in advice.indexes] == [("code",)]
    else:
        assert "pg_read_all_stats to" in str(found.hint)
    return found.state


async def test_a_table_that_is_scanned_gets_advice_and_an_indexed_one_does_not(
    home: Path, postgres_bin: Path
):
    settings = Settings(
        home=home,
        postgres_bin=postgres_bin,
        statement_statistics_max=1_000,
        advice_call_blocks_min=16,
    )
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_orders", ORDERS)
        for name, level in TENANTS.items():
            await make_tenant(engine, name, level, users=0)
            await ask(engine, name, FILL)
        async with client(engine) as http:
            found = (await http.get(_ADVICE)).json()
            assert (found["servers"][0]["state"], found["indexes"]) == ("read", [])

            for name in TENANTS:
                for number in range(12):
                    await ask(engine, name, f"select id from orders where code = '{SECRET}'")
                    await ask(engine, name, "select id from orders where code = $1", SECRET)
                    # It reads as much, and has its index; and this one reads one row.
                    await ask(engine, name, "select max(note) from orders where kind = 'same'")
                    await ask(engine, name, "select note from orders where id = $1", number)
            answer = await http.get(_ADVICE)
            (advice,) = answer.json()["indexes"]
            assert (advice["table"], advice["columns"]) == ("orders", ["code"])
            assert advice["calls"] >= 24
            assert advice["blocks_per_call"] > 16
            assert advice["migration"]["sql"] == 'create index on "orders" ("code");'
            assert not any(secret in answer.text for secret in (SECRET, "acme", "globex", "select"))

            async with admin(engine) as connection:
                assert await connection.fetchval("select count(*) from pg_extension") == 1
                assert await indexes(connection) == set()
                await connection.execute("create role limited login password 'open'")
                maintenance = await asyncpg.connect(engine.servers[0].dsn)
                assert await limited(engine) is StatisticsState.NOT_PERMITTED
                await maintenance.execute("create extension pg_stat_statements")
                await maintenance.execute("grant pg_read_all_stats to limited")
                assert await limited(engine) is StatisticsState.READ
                await maintenance.close()

            applied = await http.post("/v1/schema/migrations", json=advice["migration"])
            assert applied.status_code == 201, applied.text
            async with admin(engine) as connection:
                assert await indexes(connection) == {"app", "own"}
            assert (await http.get(_ADVICE)).json()["indexes"] == []
            for name in TENANTS:
                result = await ask(engine, name, f"select id from orders where code = '{SECRET}'")
                assert result.rows == [[1711]]


@asynccontextmanager
async def admin(engine: Engine) -> AsyncIterator[asyncpg.Connection]:
    """The superuser in the shared database."""
    connection = await asyncpg.connect(engine.servers[0].dsn, database=engine.settings.database)
    try:
        yield connection
    finally:
        await connection.close()


async def indexes(connection: asyncpg.Connection) -> set[str]:
    """Where the column has an index: in the shared tables, in a tenant's own ones."""
    rows = await connection.fetch(
        "select schemaname from pg_indexes where indexdef like '%(tenant_id, code)%'"
    )
    found = {row["schemaname"] for row in rows}
    return {"own" if name.startswith("t_") else name for name in found} & {"app", "own"}


async def test_a_server_that_counts_nothing_says_what_to_do(api):
    answer = await api.admin.get(_ADVICE)
    (server,) = answer.json()["servers"]
    assert server["state"] == "not_loaded"
    assert "TENANCY_STATEMENT_STATISTICS_MAX" in server["hint"]
    assert "shared_preload_libraries" in server["hint"]
    assert answer.json()["indexes"] == []


async def test_advice_is_for_administrators(api):
    tenant = await api.tenant("acme")
    assert (await tenant.get(_ADVICE)).status_code == 403
    assert (await api.anonymous.get(_ADVICE)).status_code == 401
