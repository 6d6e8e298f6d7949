"""The three placement strategies and their options, over tenants in memory."""

from __future__ import annotations

import pytest
from support.memory_gateway import MemoryGateway, tenant

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    ServerConfig,
    Settings,
    TenantContext,
    TenantId,
)
from tenancy.data_isolation.core.errors import (
    ConflictError,
    SettingError,
    SetupError,
    TenantNotFoundError,
)
from tenancy.data_isolation.strategies import (
    DatabaseConfig,
    DatabaseLevelStrategy,
    OrchestratorConfig,
    RowLevelConfig,
    RowLevelStrategy,
    SchemaLevelConfig,
    SchemaLevelStrategy,
    UltraAdvancedStrategyOrchestrator,
)

ROW, SCHEMA, DATABASE = IsolationLevel
QUERY = {"query": "select 1"}
STRATEGIES = {ROW: RowLevelStrategy, SCHEMA: SchemaLevelStrategy, DATABASE: DatabaseLevelStrategy}


@pytest.fixture
def gateway():
    return MemoryGateway()


def config(gateway: MemoryGateway, *dsns: str) -> EngineConfig:
    return EngineConfig(gateway=gateway, settings=Settings(), servers=dsns)


def context(**wishes) -> TenantContext:
    return TenantContext(tenant_id="acme", **wishes)


@pytest.mark.parametrize("level", IsolationLevel)
async def test_a_strategy_makes_new_tenants_at_its_level(gateway, level):
    strategy = STRATEGIES[level]()
    await strategy.initialize(config(gateway))

    result = await strategy.isolate_data(context(), "look", QUERY)
    metrics = await strategy.metrics()
    await strategy.cleanup()

    assert (result["strategy"], result["isolation_level"]) == (f"{level}_level", str(level))
    assert "orchestrator" not in result
    assert gateway.creations[0]["level"] is level
    assert (metrics["tenants"], metrics["performance"]["operations"]) == (1, 1)


async def test_a_strategy_refuses_a_tenant_that_is_at_another_level(gateway):
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), SCHEMA)
    strategy = DatabaseLevelStrategy()
    await strategy.initialize(config(gateway))

    with pytest.raises(ConflictError, match="is at level schema; use schema_level"):
        await strategy.isolate_data(context(), "look", QUERY)


async def test_a_strategy_gives_more_than_the_wish_and_never_less(gateway):
    strong, weak = DatabaseLevelStrategy(), RowLevelStrategy()
    await strong.initialize(config(gateway))
    await weak.initialize(config(gateway))

    with pytest.raises(ConflictError, match="asks for level schema and RowLevelStrategy gives"):
        await weak.isolate_data(context(isolation_level=SCHEMA), "look", QUERY)
    assert gateway.creations == []
    result = await strong.isolate_data(context(isolation_level=SCHEMA), "look", QUERY)
    assert result["isolation_level"] == "database"


@pytest.mark.parametrize(
    ("strategy", "noun"),
    [
        (RowLevelStrategy(RowLevelConfig(auto_create_tenant=False)), "rows"),
        (SchemaLevelStrategy(SchemaLevelConfig(auto_create_schema=False)), "schema"),
        (DatabaseLevelStrategy(DatabaseConfig(auto_create_database=False)), "database"),
    ],
)
async def test_without_automatic_creation_a_new_tenant_is_an_error_that_says_so(
    gateway, strategy, noun
):
    await strategy.initialize(config(gateway))

    with pytest.raises(TenantNotFoundError, match=f"tenant acme has no {noun} and .* not to make"):
        await strategy.isolate_data(context(), "look", QUERY)
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), strategy.level)
    assert (await strategy.isolate_data(context(), "look", QUERY))["row_count"] == 1


async def test_the_prefix_of_new_databases_reaches_the_gateway(gateway):
    strategy = DatabaseLevelStrategy(DatabaseConfig(database_prefix="tenant_"))
    await strategy.initialize(config(gateway))
    await strategy.isolate_data(context(), "look", QUERY)

    assert gateway.creations[0]["prefix"] == "tenant_"


LOCAL = "postgresql://admin:secret@127.0.0.1:5432/postgres"
FAR = "postgresql://admin:secret@db.example.com:6000/postgres"


@pytest.mark.parametrize(
    ("options", "server"),
    [
        ({"host": "localhost", "port": 5432}, "main"),
        ({"host": "LOCALHOST"}, "main"),
        ({"host": "db.example.com"}, "server-2"),
        ({"port": 6000}, "server-2"),
        ({"host": "/run/postgresql", "port": 5433}, "server-3"),
        ({"host": "::1", "port": 7000}, "server-4"),
        ({"host": "b.example.com", "port": 2}, "server-5"),
        ({}, None),
    ],
)
async def test_host_and_port_choose_the_server_that_listens_there(gateway, options, server):
    strategy = DatabaseLevelStrategy(DatabaseConfig(**options))
    await strategy.initialize(
        config(
            gateway,
            LOCAL,
            FAR,
            "postgresql://admin@/postgres?host=/run/postgresql&port=5433",
            "postgresql://admin@[::1]:7000/postgres",
            "postgresql://admin@a.example.com:1,b.example.com:2/postgres",
        )
    )
    await strategy.isolate_data(context(), "look", QUERY)

    assert gateway.creations[0]["server"] == server
    assert (await strategy.metrics())["without_effect"] == {}


async def test_a_server_that_is_not_there_is_an_error_that_names_those_that_are(gateway):
    strategy = DatabaseLevelStrategy(DatabaseConfig(host="elsewhere", port=5432))

    with pytest.raises(SettingError) as caught:
        await strategy.initialize(config(gateway, LOCAL, FAR))

    assert "no server of the engine listens at elsewhere, port 5432" in str(caught.value)
    assert "main (127.0.0.1:5432), server-2 (db.example.com:6000)" in str(caught.value)
    assert "secret" not in str(caught.value)


async def test_options_with_nothing_to_act_on_are_told(gateway):
    strategy = DatabaseLevelStrategy(DatabaseConfig(host="localhost", port=5432, ssl_enabled=True))
    await strategy.initialize(config(gateway))

    assert (await strategy.metrics())["without_effect"].keys() == {"host", "port", "ssl_enabled"}


@pytest.mark.parametrize(
    ("dsn", "allowed"),
    [
        (LOCAL, True),
        ("postgresql://admin@/postgres?host=/run/postgresql", True),
        (FAR, True),
        (f"{FAR}?sslmode=disable", False),
        (f"{FAR}?sslmode=prefer", False),
        (f"{FAR}?sslmode=require", True),
        (f"{FAR}?sslmode=verify-full", True),
        ("postgresql://admin@localhost:1,far.example.com:2/postgres", True),
        ("postgresql://admin@localhost:1,far.example.com:2/postgres?sslmode=disable", False),
        ("postgresql://admin@localhost/postgres?host=far.example.com", False),
    ],
)
async def test_ssl_enabled_refuses_a_way_through_the_network_without_tls(gateway, dsn, allowed):
    strategy = DatabaseLevelStrategy(DatabaseConfig(ssl_enabled=True))
    if allowed:
        await strategy.initialize(config(gateway, dsn))
        return
    with pytest.raises(SettingError, match=r"server '?main'?.*(sslmode|two hosts)"):
        await strategy.initialize(config(gateway, dsn))


async def test_ssl_enabled_looks_only_at_the_server_that_is_used(gateway):
    strategy = DatabaseLevelStrategy(DatabaseConfig(host="127.0.0.1", ssl_enabled=True))

    await strategy.initialize(config(gateway, LOCAL, f"{FAR}?sslmode=disable"))

    # Behind the gateway it cannot be switched on here, and is not said to be.
    assert (await strategy.metrics())["without_effect"].keys() == {"ssl_enabled"}


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"host": ""}, "host"),
        ({"port": 0}, "port"),
        ({"port": "5432"}, "port"),
        ({"database_prefix": ""}, "database_prefix"),
        ({"database_prefix": "Tenant"}, "database_prefix"),
        ({"database_prefix": "a" * 32}, "database_prefix"),
        ({"database_prefix": 'x"; drop'}, "database_prefix"),
        ({"auto_create_database": "no"}, "auto_create_database"),
        ({"ssl_enabled": None}, "ssl_enabled"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(options, name):
    with pytest.raises(SettingError, match=f"DatabaseConfig.{name}"):
        DatabaseConfig(**options)


@pytest.mark.parametrize(
    "strategy",
    [
        RowLevelStrategy(RowLevelConfig(server="attic")),
        SchemaLevelStrategy(SchemaLevelConfig(server="attic")),
    ],
)
async def test_a_named_server_must_be_one_of_those_given(gateway, strategy):
    with pytest.raises(SettingError, match="there is no server 'attic'; there are main"):
        await strategy.initialize(config(gateway, LOCAL))


async def test_strategies_with_options_of_their_own_work_below_the_orchestrator(gateway):
    orchestrator = UltraAdvancedStrategyOrchestrator(
        OrchestratorConfig(),
        strategies=[
            RowLevelStrategy(),
            DatabaseLevelStrategy(DatabaseConfig(host="db.example.com", database_prefix="x_")),
        ],
    )
    await orchestrator.initialize(config(gateway, LOCAL, FAR))
    try:
        await orchestrator.isolate_data(context(isolation_level=DATABASE), "look", QUERY)
    finally:
        await orchestrator.cleanup()

    assert gateway.creations == [
        {"level": DATABASE, "server": "server-2", "prefix": "x_", "hybrid": False}
    ]


async def test_an_option_of_a_strategy_that_cannot_be_met_stops_the_orchestrator(gateway):
    orchestrator = UltraAdvancedStrategyOrchestrator(
        strategies=[RowLevelStrategy(), DatabaseLevelStrategy(DatabaseConfig(host="elsewhere"))]
    )

    with pytest.raises(SettingError, match="no server of the engine listens at elsewhere"):
        await orchestrator.initialize(config(gateway, LOCAL))
    with pytest.raises(SetupError):
        await orchestrator.get_orchestrator_metrics()


async def test_before_initialize_and_after_cleanup_a_strategy_says_what_to_do(gateway):
    strategy = RowLevelStrategy()
    with pytest.raises(
        SetupError, match="this RowLevelStrategy is not ready: await its initialize"
    ):
        await strategy.isolate_data(context(), "look", QUERY)
    await strategy.initialize(config(gateway))
    await strategy.cleanup()
    await strategy.cleanup()

    with pytest.raises(SetupError, match="was cleaned up; make a new one"):
        await strategy.isolate_data(context(), "look", QUERY)
    with pytest.raises(SetupError, match="was cleaned up; make a new one"):
        await strategy.metrics()


def test_servers_keep_their_secrets():
    assert "secret" not in repr(ServerConfig(dsn=LOCAL))
