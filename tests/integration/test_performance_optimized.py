"""The strategy performance_optimized over a real engine, alone and under the orchestrator."""

from __future__ import annotations

import dataclasses

import pytest
from support.caching import SETTINGS, settled
from support.engines import TABLES

from tenancy.data_isolation.core import EngineConfig, IsolationLevel, TenantContext
from tenancy.data_isolation.core.errors import ConflictError
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.strategies import (
    OrchestratorConfig,
    PerformanceConfig,
    PerformanceOptimizedStrategy,
    UltraAdvancedStrategyOrchestrator,
)

pytestmark = pytest.mark.migrated("0001_users", TABLES)

INSERT = {"query": "insert into users (id, email) values (:id, :email)"}
COUNT = {"query": "select count(*) from users"}


@pytest.fixture
async def engine(install, own_redis):
    config = EngineConfig(
        servers=install.config.servers,
        settings=dataclasses.replace(install.settings, **SETTINGS),
        redis_url=own_redis.url,
    )
    async with await Engine.attach(config) as engine:
        yield engine


async def test_a_tenant_of_the_strategy_is_cached_at_its_level(engine):
    strategy = PerformanceOptimizedStrategy(
        PerformanceConfig(isolation_level=IsolationLevel.SCHEMA)
    )
    await strategy.initialize(EngineConfig(gateway=engine, settings=engine.settings))
    acme = TenantContext(tenant_id="acme")
    for number in range(3):
        data = {**INSERT, "id": number, "email": f"{number}"}
        result = await strategy.isolate_data(acme, "add", data)
        assert result["strategy"] == "performance_optimized"
        assert result["isolation_level"] == "schema"
        await settled(engine)
        for _ in range(2):
            assert (await strategy.isolate_data(acme, "count", COUNT))["rows"] == [[number + 1]]
    metrics = await strategy.metrics()
    assert metrics["cache"]["hits_memory"] >= 3
    assert 0 < metrics["cache"]["bytes"] < engine.settings.cache_memory_bytes_max
    with pytest.raises(ConflictError, match="move it to database_level"):
        await strategy.isolate_data(
            TenantContext(tenant_id="acme", isolation_level=IsolationLevel.DATABASE), "count", COUNT
        )
    assert (await strategy.forgo("acme")).cache is None
    await strategy.cleanup()


async def test_the_orchestrator_chooses_it_for_a_workload_of_reads(engine):
    orchestrator = UltraAdvancedStrategyOrchestrator(OrchestratorConfig())
    await orchestrator.initialize(EngineConfig(gateway=engine, settings=engine.settings))
    reader = TenantContext(tenant_id="reader", metadata={"workload": "read_mostly"})
    other = TenantContext(tenant_id="other")
    for context, name in ((reader, "performance_optimized"), (other, "row_level")):
        for _ in range(2):
            result = await orchestrator.isolate_data(context, "count", COUNT)
            assert result["orchestrator"]["selected_strategy"] == name
        assert (await orchestrator.select_optimal_strategy(context)).strategy == name
    await settled(engine, "reader")
    strategy = orchestrator.strategy("performance_optimized")
    before = (await strategy.metrics())["cache"]
    for _ in range(2):
        await orchestrator.isolate_data(reader, "count", COUNT)
    after = (await strategy.metrics())["cache"]
    assert after["hits_memory"] > before["hits_memory"]
    assert (await engine.tenant("other")).cache is None
    await orchestrator.cleanup()


async def test_it_serves_while_redis_does_not_answer(engine, own_redis):
    await own_redis.server.stop()
    strategy = PerformanceOptimizedStrategy()
    await strategy.initialize(EngineConfig(gateway=engine, settings=engine.settings))
    acme = TenantContext(tenant_id="acme")
    await strategy.isolate_data(acme, "add", {**INSERT, "id": 1, "email": "x"})
    assert (await strategy.isolate_data(acme, "count", COUNT))["rows"] == [[1]]
    await own_redis.server.start()
    await settled(engine)
    assert (await strategy.isolate_data(acme, "count", COUNT))["rows"] == [[1]]
    assert (await strategy.isolate_data(acme, "count", COUNT))["rows"] == [[1]]
    assert (await strategy.cache())["hits_memory"] >= 1
    await strategy.cleanup()


async def test_tenants_made_in_a_batch_for_a_workload_of_reads(make_api, own_redis):
    api = await make_api(redis_url=own_redis.url, **SETTINGS)
    read_mostly = {"workload": "read_mostly"}
    wanted = [
        {"tenant_id": "acme", "metadata": read_mostly},
        {"tenant_id": "globex", "metadata": read_mostly, "isolation_level": "schema"},
        {"tenant_id": "plain"},
    ]
    for _ in range(2):
        made = await api.admin.post("/v1/tenant-batches", json={"tenants": wanted})
        assert made.is_success, made.text
        for name, is_kept in (("acme", True), ("globex", True), ("plain", False)):
            assert ((await api.engine.tenant(name)).cache is not None) is is_kept, name


async def test_a_tenant_made_over_http_for_a_workload_of_reads(make_api, own_redis):
    api = await make_api(redis_url=own_redis.url, **SETTINGS)
    body = {"tenant_id": "acme", "metadata": {"workload": "read_mostly"}}
    assert (await api.admin.post("/v1/tenants", json=body)).status_code == 201
    tenant = await api.client(await api.key("acme"))
    insert = "insert into users (id, email) values ($1::integer, $1::integer::text)"
    await settled(api.engine)
    for number in range(1, 4):
        done = await tenant.post(
            "/v1/tenants/acme/query", json={"query": insert, "params": [number]}
        )
        assert done.status_code == 200, done.text
        for _ in range(2):
            read = await tenant.post("/v1/tenants/acme/query", json=COUNT)
            assert read.json()["rows"] == [[number]]
    assert api.engine.results.statistics.hits_memory >= 3
    await api.tenant("plain")
    assert (await api.engine.tenant("plain")).cache is None
