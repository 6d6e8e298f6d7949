"""Advice about plans: from real figures, at every level, and it helps once it is followed."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import pytest
from support.engines import ask, make_tenant
from support.http_api import api_over
from support.running_api import running_over

from tenancy.data_isolation.core import EngineConfig, IsolationLevel
from tenancy.data_isolation.core.errors import SettingError, StatementTimeoutError
from tenancy.data_isolation.core.identifiers import DatabaseName, SchemaName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.plan_advice import TablePlace
from tenancy.data_isolation.engine.statement_statistics import (
    StatementStatistics,
    StatisticsState,
)
from tenancy.data_isolation.engine.table_statistics import TableStatistics

TENANTS = {
    "acme": IsolationLevel.ROW,
    "globex": IsolationLevel.SCHEMA,
    "initech": IsolationLevel.DATABASE,
}
TABLES = """
create table customers (id integer primary key, name text not null);
create table orders (id integer primary key, customer integer not null, kind text not null);
create index on orders (kind);
"""
CUSTOMERS = "insert into customers select n, 'name-' || n from generate_series(1, 2000) n"
#: First each kind is a rare one; then nearly all orders are of the same one.
RARE = "insert into orders select n, n * 33, 'kind-' || n from generate_series(1, 60) n"
COMMON = "insert into orders select n, n % 2000 + 1, 'secret' from generate_series(61, 5000) n"
JOIN = (
    "select max(c.name) from orders o join customers c on c.id = o.customer where o.kind = 'secret'"
)
_ADVICE = "/v1/schema/advice"
_STATISTICS = "/v1/schema/statistics"
_CALLS = 12


def settings_of(home: Path, postgres_bin: Path, **options: Any) -> Settings:
    return Settings(
        home=home,
        postgres_bin=postgres_bin,
        statement_statistics_max=1_000,
        advice_call_blocks_min=16,
        **options,
    )


@asynccontextmanager
async def maintenance(engine: Engine) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(engine.servers[0].dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def configured(engine: Engine, **settings: str) -> None:
    """Have the server work with other settings, and wait until it does."""
    async with maintenance(engine) as connection:
        for name, value in settings.items():
            await connection.execute(f"alter system set {name.replace('__', '.')} = '{value}'")
        await connection.execute("select pg_reload_conf()")
        for name, value in settings.items():
            shown = name.replace("__", ".")
            while await connection.fetchval("select current_setting($1)", shown) != value:
                await connection.execute("select 1")


async def analyze_all(engine: Engine) -> None:
    async with maintenance(engine) as connection:
        names = await connection.fetch(
            "select datname from pg_database where datallowconn and not datistemplate"
        )
    for row in names:
        connection = await asyncpg.connect(engine.servers[0].dsn, database=row["datname"])
        await connection.execute("analyze")
        await connection.close()


async def counted(engine: Engine, part: str, figure: str) -> dict[str, tuple[int, int]]:
    """Of the statements whose text has `part`, by login: calls, and the figure of all of them."""
    statistics = StatementStatistics(settings=engine.settings, admin=engine.admin)
    servers, noted = await statistics.read()
    assert [server.state for server in servers] == [StatisticsState.READ]
    return {item.role: (item.calls, getattr(item, figure)) for item in noted if part in item.text}


async def each_call(
    engine: Engine, query: str, part: str, figure: str, *params: Any
) -> list[float]:
    """What a call of a statement takes now, tenant by tenant."""
    before = await counted(engine, part, figure)
    for name in TENANTS:
        for _ in range(_CALLS):
            await ask(engine, name, query, *params)
    after = await counted(engine, part, figure)
    assert len(after) == len(TENANTS)
    found = []
    for role, (calls, value) in after.items():
        old_calls, old_value = before.get(role, (0, 0))
        assert calls - old_calls == _CALLS
        found.append((value - old_value) / _CALLS)
    return found


async def plans(http: httpx.AsyncClient, kind: str) -> list[dict[str, Any]]:
    answer = await http.get(_ADVICE)
    assert answer.status_code == 200, answer.text
    # No value, no tenant, and no text of a statement.
    assert not any(word in answer.text for word in ("secret", "select", *TENANTS))
    return [item for item in answer.json()["plans"] if item["kind"] == kind]


@asynccontextmanager
async def three_tenants(settings: Settings) -> AsyncIterator[Engine]:
    """Tenants of all levels, whose tables no autovacuum looks at.

    A session tells what it has changed a while later, or when it ends, and so does each engine.
    """
    config = EngineConfig(settings=settings)
    async with await Engine.open(config) as engine:
        await configured(engine, autovacuum="off")
        await engine.apply_migration("0001_tables", TABLES)
        for name, level in TENANTS.items():
            await make_tenant(engine, name, level, users=0)
            await ask(engine, name, CUSTOMERS)
            await ask(engine, name, RARE)
    async with await Engine.open(config) as engine:
        await analyze_all(engine)
        for name in TENANTS:
            await ask(engine, name, COMMON)
    async with await Engine.open(config) as engine:
        yield engine


async def test_statistics_that_are_out_of_date_are_told_and_brought_up_to_date_when_asked(
    home: Path,
    postgres_bin: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    async with (
        three_tenants(settings_of(home, postgres_bin)) as engine,
        api_over(engine) as api,
    ):
        assert await plans(api.admin, "statistics") == []
        before = await each_call(engine, JOIN, "max(c.name)", "blocks")

        found = await plans(api.admin, "statistics")
        again = await plans(api.admin, "statistics")

        assert [item["analyze"]["table"] for item in found] == ["orders"] * 3
        places = [item["analyze"] for item in found]
        assert len({(place["database"], place["schema"]) for place in places}) == 3
        assert {place["schema"] == "app" for place in places} == {True, False}
        # What is advised is not done by being advised.
        assert [item["analyze"] for item in again] == places
        for item in found:
            place = item["analyze"]
            assert item["sql"] == f'analyze "{place["schema"]}"."orders"'
            assert item["figures"]["rows_changed"] > item["figures"]["autovacuum_waits_for"]
            assert (item["statements"], item["calls"]) == (1, _CALLS)
            (shown,) = item["shown"]
            assert shown["tables"] == ["customers", "orders"]
            assert len(shown["query_ids"]) == 1

        # A database that lets nobody in is told, and the others are looked at.
        own = next(place for place in places if place["database"] != engine.settings.database)
        async with maintenance(engine) as connection:
            name = f'"{own["database"]}"'
            await connection.execute(f"alter database {name} allow_connections off")
            answer = (await api.admin.get(_ADVICE)).json()
            await connection.execute(f"alter database {name} allow_connections on")
        assert answer["servers"][0]["state"] == "read"
        assert "tables of 1 database " in answer["servers"][0]["hint"]
        assert len([item for item in answer["plans"] if item["analyze"]]) == 2

        # One is asked for, and one is done.
        done = await api.admin.post(_STATISTICS, json=places[0])
        assert done.status_code == 200, done.text
        assert (done.json()["sql"], done.json()["rows"]) == (found[0]["sql"], 5000)
        left = [item["analyze"] for item in await plans(api.admin, "statistics")]
        assert left == places[1:]
        async with running_over(api, tmp_path / "state", monkeypatch, capsys) as running:
            told = await running.run("schema", "advice")
            assert f"{places[1]['schema']}" in told.out
            assert "done:" not in told.out
            said = (await running.run("schema", "advice", "--analyze", "--json")).json()
            assert [item["rows"] for item in said["analyzed"]] == [5000, 5000]
            assert said["applied"] == []
            told = await running.run("schema", "advice", "--analyze")
            assert "nothing was analyzed" in told.out
        assert await plans(api.admin, "statistics") == []

        after = await each_call(engine, JOIN, "max(c.name)", "blocks")
        assert max(after) < min(before) / 10


async def test_only_tables_of_tenants_are_looked_at_and_only_for_administrators(
    home: Path, postgres_bin: Path
):
    settings = settings_of(home, postgres_bin)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_tables", TABLES)
        async with api_over(engine) as api:
            at = {"server": "main", "database": settings.database, "schema": "app"}
            place = TablePlace(
                server=ServerName("main"),
                database=DatabaseName(settings.database),
                schema=SchemaName("app"),
                table="orders",
            )
            orders = at | {"table": "orders"}
            tenant = await api.tenant("acme", "row")
            assert (await tenant.post(_STATISTICS, json=orders)).status_code == 403
            assert (await api.anonymous.post(_STATISTICS, json=orders)).status_code == 401
            for wrong in (
                at | {"table": "nothing"},
                at | {"schema": "catalog", "table": "tenant"},
                at | {"schema": "tenancy_reference", "table": "orders"},
                at | {"database": "nowhere", "table": "orders"},
            ):
                answer = await api.admin.post(_STATISTICS, json=wrong)
                assert answer.status_code == 404, answer.text
            for wrong in ({"table": ""}, {"table": "a\0b"}, {"table": "x" * 64}, {"server": "far"}):
                answer = await api.admin.post(_STATISTICS, json=orders | wrong)
                assert answer.status_code == 422, answer.text

            other = await asyncpg.connect(engine.servers[0].dsn, database=settings.database)
            async with other.transaction():
                await other.execute("lock table app.orders in share update exclusive mode")
                busy = await api.admin.post(_STATISTICS, json=orders)
                assert (busy.status_code, "try again" in busy.text) == (409, True)
                hurried = dataclasses.replace(settings, advice_timeout_s=0.3)
                with pytest.raises(StatementTimeoutError, match="TENANCY_ADVICE_TIMEOUT_S"):
                    await TableStatistics(settings=hurried, admin=engine.admin).analyze(place)
            await other.close()
            assert (await api.admin.post(_STATISTICS, json=orders)).status_code == 200

            other = await asyncpg.connect(engine.servers[0].dsn, database=settings.database)
            await other.execute("create role limited login password 'open'")
            await other.execute(f"grant connect on database {settings.database} to limited")
            parts = urlsplit(engine.servers[0].dsn)
            netloc = f"limited:open@{parts.netloc.rpartition('@')[2]}"
            server = ServerConfig(dsn=parts._replace(netloc=netloc).geturl())
            admin = AdminConnections(settings=settings, servers=[server])
            # Without the schema PostgreSQL refuses; without the table it only warns.
            for right in ("select 1", "grant usage on schema app to limited"):
                await other.execute(right)
                with pytest.raises(SettingError, match="may not analyze"):
                    await TableStatistics(settings=settings, admin=admin).analyze(place)
            await other.close()


#: A wide row takes little more in memory than in a file, a narrow one several times as much.
SORTS = {
    "wide_place": "select sum(wide_place) from (select row_number() over "
    "(order by repeat(name, 20), id) wide_place from customers) s",
    "narrow_place": "select sum(narrow_place) from (select row_number() over "
    "(order by id + 0 desc) narrow_place from orders) s",
}


async def test_memory_that_sorts_would_need_is_told_and_is_enough(home: Path, postgres_bin: Path):
    settings = settings_of(home, postgres_bin)
    small = settings.tiers.changed({"TENANCY_STANDARD_STATEMENT_MEMORY_BYTES": str(64 * 1024)})
    async with three_tenants(dataclasses.replace(settings, tiers=small)) as engine:
        for part, query in SORTS.items():
            assert min(await each_call(engine, query, part, "temp_blocks")) > 0
        async with api_over(engine) as api:
            (advice,) = await plans(api.admin, "memory")
    assert advice["variable"]["name"] == "TENANCY_STANDARD_STATEMENT_MEMORY_BYTES"
    assert (advice["statements"], advice["calls"]) == (2, 2 * len(TENANTS) * _CALLS)
    assert advice["figures"]["memory_bytes_now"] == 64 * 1024
    assert (advice["sql"], advice["analyze"]) == (None, None)
    assert "=65536 " in advice["undo"]

    variable = advice["variable"]
    enough = settings.tiers.changed({variable["name"]: variable["value"]})
    config = EngineConfig(settings=dataclasses.replace(settings, tiers=enough))
    async with await Engine.open(config) as engine:
        for part, query in SORTS.items():
            assert set(await each_call(engine, query, part, "temp_blocks")) == {0}
        async with api_over(engine) as api:
            assert await plans(api.admin, "memory") == []


#: Takes many times as long to plan as to run.
MANY = "select count(*) as many from " + " join ".join(
    ["orders a0", *(f"orders a{n} using (id)" for n in range(1, 8))]
)


async def test_statements_that_are_planned_each_time_are_told_where_planning_is_counted(
    home: Path, postgres_bin: Path
):
    settings = settings_of(home, postgres_bin, advice_plans_min=60, tenant_connections_max=1)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        await engine.apply_migration("0001_tables", TABLES)
        for name, level in TENANTS.items():
            await make_tenant(engine, name, level, users=0)
        async with api_over(engine) as api:

            async def planned(numbers: range, query: str, *, as_parameter: bool) -> None:
                for number in numbers:
                    values = (number,) if as_parameter else ()
                    text = f"{query} where id = {'$1' if as_parameter else number}"
                    for name in TENANTS:
                        await ask(engine, name, text, *values)

            await planned(range(70), MANY, as_parameter=False)
            server = (await api.admin.get(_ADVICE)).json()["servers"][0]
            assert (server["planning_counted"], await plans(api.admin, "planning")) == (False, [])

            await configured(engine, pg_stat_statements__track_planning="on")
            # Sessions that were there before take the setting up with their next statement.
            await planned(range(1), "select count(*) from customers", as_parameter=False)
            async with maintenance(engine) as connection:
                await connection.execute("create extension pg_stat_statements")
                await connection.execute("select pg_stat_statements_reset()")
                # A session keeps the plan of a text that it has run before.
                await planned(range(100, 170), MANY, as_parameter=False)
                # The remedy: the same with the value as a parameter.
                few = MANY.replace("many", "few")
                await planned(range(70), few, as_parameter=True)
                (advice,) = await plans(api.admin, "planning")
                rows = await connection.fetch(
                    "select calls, plans from pg_stat_statements where query like '%(*) as few%'"
                )
                ids = await connection.fetch(
                    "select queryid from pg_stat_statements where query like '%(*) as many%'"
                )
            assert (advice["statements"], advice["calls"]) == (1, 70 * len(TENANTS))
            assert advice["figures"]["plans_per_call"] == 1
            # From PostgreSQL 18 on the same text has the same id in each schema.
            assert set(advice["shown"][0]["query_ids"]) == {str(row["queryid"]) for row in ids}
            assert len(rows) == len(TENANTS)
            assert all(row["plans"] < row["calls"] / 5 for row in rows)


async def state_of(engine: Engine, dsn: str | None = None, **options: Any) -> tuple[str, str]:
    """How the statistics of the server are found, and the hint, with other settings."""
    settings = dataclasses.replace(engine.settings, **options)
    admin = AdminConnections(
        settings=settings, servers=[ServerConfig(dsn=dsn or engine.servers[0].dsn)]
    )
    (found,), noted = await StatementStatistics(settings=settings, admin=admin).read()
    await admin.close()
    assert noted == []
    return found.state.value, found.hint or ""


async def test_why_a_server_cannot_be_read_is_told_apart(home: Path, postgres_bin: Path):
    settings = settings_of(home, postgres_bin)
    async with await Engine.open(EngineConfig(settings=settings)) as engine:
        dsn = engine.servers[0].dsn
        assert await state_of(engine) == ("read", "")
        port = dsn.rpartition(":")[2].partition("/")[0]
        state, hint = await state_of(engine, dsn.replace(f":{port}/", ":1/"))
        assert (state, "does not answer" in hint) == ("unreachable", True)
        async with maintenance(engine) as connection:
            async with connection.transaction():
                # Somebody else is making what the advice is about to make.
                await connection.execute("create schema tenancy_statistics")
                state, hint = await state_of(engine, advice_timeout_s=0.3)
            assert (state, "TENANCY_ADVICE_TIMEOUT_S" in hint) == ("timed_out", True)
            await connection.execute("drop schema tenancy_statistics")
            # As a server has it that was upgraded and whose extension was not.
            await connection.execute("create extension pg_stat_statements version '1.4'")
            state, hint = await state_of(engine)
            assert (state, "alter extension" in hint) == ("not_available", True)
            await connection.execute("alter extension pg_stat_statements update")
            assert await state_of(engine) == ("read", "")
