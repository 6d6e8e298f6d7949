"""An engine that keeps results of tenants, with a Redis of the test's own."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import ask
from support.install import Install
from support.ram_disk import server_directory
from tenancy.data_isolation.core.settings import EngineConfig, Settings
from tenancy.data_isolation.core.types import QueryResult, Tenant
from tenancy.data_isolation.engine.embedded_redis import EmbeddedRedis
from tenancy.data_isolation.engine.engine import Engine

#: Everything is looked for, and what was ended is heard of soon.
SETTINGS = {
    "cache_statement_min_us": 0,
    "placement_refresh_ms": 100,
    "cache_retry_s": 0.05,
    # Longer than a slow machine ever stops.
    "cache_answer_timeout_ms": 30_000,
}


@dataclasses.dataclass(frozen=True, slots=True)
class OwnRedis:
    """A Redis server that can be stopped and started again."""

    server: EmbeddedRedis
    url: str
    pid: int


@pytest.fixture(scope="session")
def redis_home() -> Iterator[Path]:
    """A home that the server's user can reach."""
    directory = server_directory()
    yield directory / "home"
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def a_redis(redis_home: Path) -> Iterator[OwnRedis]:
    """A Redis server that goes on when the test is over: starting one takes a while."""
    server = EmbeddedRedis(Settings(home=redis_home))
    handle = asyncio.run(server.start())
    yield OwnRedis(server, handle.url, handle.pid)
    asyncio.run(server.stop())


@pytest.fixture
async def own_redis(home: Path) -> AsyncIterator[OwnRedis]:
    """A Redis server of this test's own."""
    server = EmbeddedRedis(Settings(home=home))
    handle = await server.start()
    yield OwnRedis(server, handle.url, handle.pid)
    await server.stop()


@asynccontextmanager
async def caching(install: Install, redis: OwnRedis, **settings: Any) -> AsyncIterator[Engine]:
    """An engine as a process of its own would have it."""
    given = {**SETTINGS, "redis_url": redis.url, **settings}
    config = EngineConfig(
        servers=install.config.servers, settings=dataclasses.replace(install.settings, **given)
    )
    async with await Engine.attach(config) as engine:
        yield engine


async def kept(engine: Engine, tenant: str = "acme") -> Tenant:
    """Keep the tenant's results, and have its way known well enough for that."""
    found = await engine.keep_results(tenant, True)
    assert found.cache is not None
    assert found.cache.serving
    await settled(engine, tenant)
    return found


async def settled(engine: Engine, tenant: str = "acme") -> None:
    """Ask until results may be given: the catalog has to be looked at first."""
    before = engine.results.statistics.bypassed
    while True:
        await ask(engine, tenant, "select count(*) from plans where id = -1")
        if engine.results.statistics.bypassed == before:
            return
        before = engine.results.statistics.bypassed


async def again(engine: Engine, tenant: str, query: str, *params: Any) -> tuple[QueryResult, str]:
    """Run a read, and the statistic that it counted in."""
    before = dataclasses.asdict(engine.results.statistics)
    result = await ask(engine, tenant, query, *params)
    after = dataclasses.asdict(engine.results.statistics)
    names = [name for name in before if after[name] != before[name] and name != "kept"]
    return result, " ".join(names)
