"""Pinned tenants: ready after a start and in a new period, within bounds, and never out of date."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.actor_file import actor_file
from support.caching import SETTINGS, OwnRedis, again, caching, kept, settled
from support.engines import TABLES, ask, make_tenant
from support.install import Install

from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.core import EngineConfig, TenantContext
from tenancy.data_isolation.core.errors import LimitError, SettingError
from tenancy.data_isolation.core.types import IsolationLevel
from tenancy.data_isolation.engine.cache_store import CacheStore
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.strategies import (
    PerformanceConfig,
    PerformanceOptimizedStrategy,
    RowLevelStrategy,
)

pytestmark = pytest.mark.migrated("0001_users", TABLES)

COUNT = "select count(*) from users"
ONE = "select email from users where id = $1"
#: The tenants of the first test. All keep their results.
LEVELS = {
    "acme": IsolationLevel.ROW,
    "own": IsolationLevel.DATABASE,
    "globex": IsolationLevel.ROW,
}
PINNED = ("acme", "own")
#: Looks are made by the tests themselves.
CALM = {"pinned_refresh_s": 3_600.0}


async def how(engine: Engine, tenant: str, query: str, *params: Any) -> str:
    return (await again(engine, tenant, query, *params))[1]


async def pinned(engine: Engine, tenant: str) -> None:
    """A pinned tenant that has asked for something, which is remembered."""
    await kept(engine, tenant)
    await engine.pin_tenant(tenant, True)
    await engine.results.pins.look()
    for query, *params in ((COUNT,), (ONE, 2)):
        await ask(engine, tenant, query, *params)
    await engine.results.pins.look()


async def filled(engine: Engine, tenant: str) -> None:
    """Look until the results of the present period are there."""
    number = (await engine.tenant(tenant)).tenant_no
    while True:
        await engine.results.pins.look()
        now = await engine.tenant(tenant)
        period = (now.cache.nonce, now.placement.epoch)
        if now.cache.serving and engine.results.pins._ours[number].filled == period:
            return


async def logins(install: Install, role: str) -> set[int]:
    """The server processes that work for a role."""
    async with install.connected() as admin:
        rows = await admin.fetch("select pid from pg_stat_activity where usename = $1", role)
        return {row["pid"] for row in rows}


async def test_after_a_start_a_pinned_tenant_is_ready(install, a_redis):
    async with caching(install, a_redis, **CALM) as engine:
        for name, level in LEVELS.items():
            await make_tenant(engine, name, level)
        for name in PINNED:
            await pinned(engine, name)
        await kept(engine, "globex")
        await ask(engine, "globex", COUNT)
        tenants = {name: await engine.tenant(name) for name in PINNED}

    async with caching(install, a_redis, **CALM) as engine:
        for name in PINNED:
            await filled(engine, name)
        assert engine.results.statistics.filled_ahead == 2 * len(PINNED)
        assert engine.results.document()["pinned_tenants"] == len(PINNED)
        before = await logins(install, tenants["own"].placement.role)
        assert before
        text = engine._executor.statement(COUNT, engine.shapes.newest).text
        for tenant in tenants.values():
            session = next(
                item
                for item in engine._executor._pools[tenant.placement.server]._idle
                if item.bound_tenant == tenant.tenant_no
            )
            assert session.prepared(text) is not None
        for query, *params in ((COUNT,), (ONE, 2)):
            for name in PINNED:
                assert await how(engine, name, query, *params) == "hits_memory"
            assert "hits_memory" not in await how(engine, "globex", query, *params)
        for name in PINNED:
            await ask(engine, name, "insert into users (id, email) values (9, 'x')")
            assert await ask_count(engine, name) == 4
        # What was ready is what it worked with.
        assert before <= await logins(install, tenants["own"].placement.role)


async def ask_count(engine: Engine, tenant: str) -> int:
    (found,) = (await ask(engine, tenant, COUNT)).rows[0]
    return int(found)


async def test_after_a_migration_results_are_there_before_they_are_asked_for(install, a_redis):
    async with caching(install, a_redis, **CALM) as engine:
        await make_tenant(engine)
        await pinned(engine, "acme")
        first = (await engine.tenant("acme")).cache.nonce
        await engine.apply_migration("0002_fewer", "delete from users where id = 1")
        await filled(engine, "acme")
        assert (await engine.tenant("acme")).cache.nonce != first
        result, what = await again(engine, "acme", COUNT)
        assert (result.rows, what) == ([[2]], "hits_memory")
        await ask(engine, "acme", "delete from users where id = 2")
        assert await ask_count(engine, "acme") == 1
        # Nobody asks again and again for what is there.
        before = engine.results.statistics.filled_ahead
        await engine.results.pins.look()
        assert engine.results.statistics.filled_ahead == before


async def test_two_pins_at_once_do_not_exceed_the_bound(install, a_redis):
    async with caching(install, a_redis, pinned_tenants_max=1, **CALM) as engine:
        for name in ("acme", "globex"):
            await make_tenant(engine, name)
            await kept(engine, name)
        number = (await engine.tenant("acme")).tenant_no
        sql = SqlFile("result_cache.sql")
        async with install.connected() as admin:
            async with admin.transaction():
                await admin.execute(sql.statement("one_pin_at_a_time"))
                assert await admin.fetchval(sql.statement("pin"), number, "first", 1) == "first"
                other = asyncio.create_task(engine.pin_tenant("globex", True))
                waiting = (
                    "select count(*) from pg_locks where locktype = 'advisory' and not granted"
                )
                while not other.done() and not await admin.fetchval(waiting):
                    await asyncio.sleep(0.01)
            with pytest.raises(LimitError, match="TENANCY_PINNED_TENANTS_MAX"):
                await other
        assert await engine.pinned_tenants() == ["acme"]


async def test_a_library_looks_after_tenants_that_were_pinned_before_it_began(install, a_redis):
    async with caching(install, a_redis, **CALM) as engine:
        await make_tenant(engine)
        await pinned(engine, "acme")
        number = (await engine.tenant("acme")).tenant_no
        settings = engine.settings

    strategy = RowLevelStrategy()
    await strategy.initialize(EngineConfig(servers=install.config.servers, settings=settings))
    try:
        own: Engine = strategy._lease.gateway  # type: ignore[assignment]
        async with asyncio.timeout(60):
            while number not in own.results.pins._ours:
                await asyncio.sleep(0.01)
    finally:
        await strategy.cleanup()


async def test_pins_are_bounded_and_end(install, a_redis: OwnRedis):
    async with caching(install, a_redis, pinned_tenants_max=1, **CALM) as engine:
        for name in ("acme", "globex"):
            await make_tenant(engine, name)
        await pinned(engine, "acme")
        with pytest.raises(LimitError, match="TENANCY_PINNED_TENANTS_MAX"):
            await engine.pin_tenant("globex", True)
        await kept(engine, "globex")
        with pytest.raises(LimitError, match="TENANCY_PINNED_TENANTS_MAX"):
            await engine.pin_tenant("globex", True)
        assert await engine.pinned_tenants() == ["acme"]

        (name,) = engine.results.hot.pinned.values()
        store = CacheStore(engine.settings, engine.results.redis.url)
        assert b"from users" in await store.recall(name)
        await engine.delete_tenant("acme")
        while await store.recall(name):
            pass
        await store.close()
        assert await engine.pinned_tenants() == []
        await engine.pin_tenant("globex", True)
        await engine.keep_results("globex", False)
        assert await engine.pinned_tenants() == []
        await engine.results.pins.look()
        assert engine.results.hot.pinned == {}


async def test_where_nothing_may_be_shared_nothing_is_remembered(install, a_redis: OwnRedis):
    async with caching(install, a_redis, cache_shared_bytes_max=1, **CALM) as engine:
        await make_tenant(engine)
        await pinned(engine, "acme")
        (name,) = engine.results.hot.pinned.values()
        store = CacheStore(engine.settings, engine.results.redis.url)
        assert await store.recall(name) == b""
        await store.close()


async def test_a_pinned_tenant_is_not_passivated(install, a_redis: OwnRedis):
    _, path = actor_file(install, redis_url=a_redis.url, tenant_idle_s=0.001, **SETTINGS, **CALM)
    async with caching(install, a_redis) as engine:
        for name in ("acme", "globex"):
            await make_tenant(engine, name)
    actor = TenantActor("tenancy-shared-default-0", str(path))
    try:
        await actor.keep_results("acme", True)
        await actor.pin_tenant("acme", True)
        assert await actor.pinned_tenants() == ["acme"]
        host = await actor._opened()
        await host.engine.results.pins.look()
        for name in ("acme", "globex"):
            await actor.query(name, COUNT)
        while "globex" in host.tenants:
            host.tenants.passivate_idle()
            await asyncio.sleep(0)
        assert "acme" in host.tenants

        # Who was let go for another reason comes back.
        host.tenants.forget("acme")
        await host.engine.results.pins.look()
        assert "acme" in host.tenants
        await actor.pin_tenant("acme", False)
        await host.engine.results.pins.look()
        while "acme" in host.tenants:
            host.tenants.passivate_idle()
            await asyncio.sleep(0)
    finally:
        await actor.close()


async def test_the_strategy_pins_tenants_that_there_are_and_that_come(install, a_redis):
    async with caching(install, a_redis, pinned_tenants_max=2, **CALM) as engine:
        await make_tenant(engine)
        strategy = PerformanceOptimizedStrategy(
            PerformanceConfig(pinned_tenants=["acme", "later", "too-late"])
        )
        await strategy.initialize(EngineConfig(gateway=engine, settings=engine.settings))
        assert await strategy.pinned() == ["acme"]
        count = {"query": COUNT}
        await strategy.isolate_data(TenantContext(tenant_id="later"), "count", count)
        await strategy.isolate_data(TenantContext(tenant_id="other"), "count", count)
        assert await strategy.pinned() == ["acme", "later"]
        await strategy.isolate_data(TenantContext(tenant_id="too-late"), "count", count)
        metrics = await strategy.metrics()
        assert metrics["pinned_tenants"] == ["acme", "later"]
        assert "TENANCY_PINNED_TENANTS_MAX" in metrics["without_effect"]["pinned_tenants"]
        await strategy.unpin("acme")
        await strategy.pin("too-late")
        assert await strategy.pinned() == ["later", "too-late"]
        await settled(engine, "acme")
        await strategy.cleanup()


@pytest.mark.parametrize("given", ["acme", ["Not A Name"], [3], 7])
def test_names_that_are_none_are_refused(given):
    with pytest.raises(SettingError, match="pinned_tenants"):
        PerformanceConfig(pinned_tenants=given)
