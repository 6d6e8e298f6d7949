"""The hybrid strategy over tenants in memory: its options, its tenants, its proposals."""

from __future__ import annotations

import asyncio

import pytest
from support.memory_gateway import MemoryGateway, tenant
from support.settable_clock import SettableClock

from tenancy.data_isolation.core import (
    EngineConfig,
    IsolationLevel,
    Settings,
    TenantContext,
    TenantId,
    TenantSize,
)
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    ServerUnavailableError,
    SettingError,
    StatementTimeoutError,
    TenantNotFoundError,
)
from tenancy.data_isolation.strategies import (
    HybridConfig,
    HybridStrategy,
    OrchestratorConfig,
    RowLevelStrategy,
    UltraAdvancedStrategyOrchestrator,
)

ROW, SCHEMA, DATABASE = IsolationLevel
ACME, GLOBEX = TenantId("acme"), TenantId("globex")
QUERY = {"query": "select 1"}


@pytest.fixture
def gateway():
    return MemoryGateway()


@pytest.fixture
def clock():
    return SettableClock()


class Bell:
    """Stands in for sleeping: a wait ends when it is rung."""

    def __init__(self) -> None:
        self.waits: list[float] = []
        self._rung = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await self._rung.wait()
        self._rung.clear()

    def ring(self) -> None:
        self._rung.set()


@pytest.fixture
async def make(gateway, clock):
    made = []

    async def ready(sleep=None, **options):
        strategy = HybridStrategy(HybridConfig(**options), clock=clock, sleep=sleep or Bell().sleep)
        made.append(strategy)
        await strategy.initialize(EngineConfig(gateway=gateway, settings=Settings()))
        return strategy

    yield ready
    for strategy in made:
        await strategy.cleanup()


async def work(strategy, tenant_id: str = "acme", times: int = 1) -> None:
    for _ in range(times):
        await strategy.isolate_data(TenantContext(tenant_id=tenant_id), "look", QUERY)


async def test_new_tenants_are_hybrid_and_at_level_row(make, gateway):
    strategy = await make()
    result = await strategy.isolate_data(TenantContext(tenant_id="acme"), "look", QUERY)

    assert (result["strategy"], result["isolation_level"]) == ("hybrid", "row")
    assert gateway.creations == [{"level": ROW, "server": None, "prefix": None, "hybrid": True}]
    assert (await strategy.metrics())["tenants"] == 1


async def test_a_plain_tenant_of_level_row_is_not_a_hybrid_one_nor_the_other_way(make, gateway):
    gateway.known[ACME] = tenant(ACME, ROW)
    gateway.known[GLOBEX] = tenant(GLOBEX, ROW, hybrid=True)
    rows = RowLevelStrategy()
    await rows.initialize(EngineConfig(gateway=gateway, settings=Settings()))

    with pytest.raises(ConflictError, match="use row_level for it"):
        await work(await make())
    with pytest.raises(ConflictError, match="use hybrid for it"):
        await work(rows, "globex")
    await rows.cleanup()


async def test_a_stronger_wish_is_refused_and_creation_can_be_switched_off(make):
    with pytest.raises(ConflictError, match="asks for level schema"):
        await (await make()).isolate_data(
            TenantContext(tenant_id="acme", isolation_level=SCHEMA), "look", QUERY
        )
    with pytest.raises(TenantNotFoundError, match="configured not to make one"):
        await work(await make(auto_create_tenant=False))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"promotion_rows_min": 0}, "promotion_rows_min is 0; use 1 to"),
        ({"promotion_rows_min": 1.5}, "promotion_rows_min is 1.5; a whole number"),
        ({"promotion_bytes_min": True}, "promotion_bytes_min is True; a whole number"),
        ({"promotion_load_ops_s_min": float("nan")}, "promotion_load_ops_s_min is nan"),
        ({"review_interval_s": "60"}, "review_interval_s is '60'; a number"),
        ({"promotion_level": "row"}, "promotion_level is 'row'; use schema or database"),
        ({"auto_create_tenant": 1}, "auto_create_tenant is 1"),
        ({"server": "Bad Name!"}, r"HybridConfig\.server 'Bad Name!' is not valid"),
        ({"server": 5}, r"HybridConfig\.server 5 is not valid"),
    ],
)
def test_options_that_cannot_be_are_named(options, text):
    with pytest.raises(SettingError, match=text):
        HybridConfig(**options)


def test_options_of_another_kind_are_told(gateway):
    with pytest.raises(InvalidInputError, match=r"options are a HybridConfig\(\.\.\.\), not dict"):
        HybridStrategy({"server": "main"})
    with pytest.raises(InvalidInputError, match="OrchestratorConfig"):
        UltraAdvancedStrategyOrchestrator({})


async def test_without_room_an_unknown_workload_gets_the_next_best(gateway, clock):
    orchestrator = UltraAdvancedStrategyOrchestrator(clock=clock, sleep=Bell().sleep)
    settings = Settings(hybrid_tenants_max=1)
    await orchestrator.initialize(EngineConfig(gateway=gateway, settings=settings))
    try:
        for name, strategy in (("acme", "hybrid"), ("globex", "row_level")):
            context = TenantContext(tenant_id=name, metadata={"workload": "unknown"})
            made = await orchestrator.isolate_data(context, "look", QUERY)
            assert made["strategy"] == strategy
        assert any("no room for hybrids" in text for text in made["orchestrator"]["reasons"])
    finally:
        await orchestrator.cleanup()


async def test_a_tenant_that_outgrew_a_limit_is_proposed_with_the_reason(make, gateway, clock):
    strategy = await make(promotion_rows_min=100, promotion_level="database")
    gateway.sizes[ACME] = TenantSize(rows=100, bytes=5_000, complete=False)
    await work(strategy)
    await work(strategy, "globex")
    clock.pass_s(10)

    (found,) = await strategy.review()

    assert (found.tenant_id, found.level, found.reasons) == (
        "acme",
        DATABASE,
        ("rows 100 >= 100",),
    )
    assert (await strategy.metrics())["promotions"] == [found.document()]


async def test_load_is_measured_between_reviews(make, clock):
    strategy = await make(promotion_load_ops_s_min=5)
    await work(strategy, times=60)
    clock.pass_s(10)
    (found,) = await strategy.review()
    assert found.reasons == ("load_ops_s 6 >= 5",)

    # Nothing was asked since, so the load is none, and the proposal is withdrawn.
    clock.pass_s(10)
    assert await strategy.review() == ()


async def test_a_few_operations_within_a_moment_are_no_load(make, clock):
    strategy = await make(promotion_load_ops_s_min=5)
    await work(strategy, times=4)
    clock.pass_s(0.001)

    assert await strategy.review() == ()


async def test_sizes_are_counted_seldom_and_only_of_the_busiest(make, gateway, clock):
    strategy = await make(review_tenants_max=1, size_interval_s=100)
    await work(strategy, "globex", times=3)
    await work(strategy, "acme")
    clock.pass_s(1)
    await strategy.review()
    assert gateway.calls["tenant_size"] == 1

    await work(strategy, "globex", times=3)
    await work(strategy, "acme")
    await strategy.review()
    assert gateway.calls["tenant_size"] == 2  # Of acme, whose turn it was not before.

    await work(strategy, "globex")
    clock.pass_s(100)
    await strategy.review()
    assert gateway.calls["tenant_size"] == 3


async def test_what_cannot_be_measured_stays_as_it_is_known(make, gateway, clock):
    strategy = await make(promotion_rows_min=100, size_interval_s=1)
    gateway.sizes[ACME] = TenantSize(rows=100, bytes=0, complete=True)
    await work(strategy)
    first = await strategy.review()
    gateway.fail("tenant_size", ServerUnavailableError())
    clock.pass_s(5)

    assert await strategy.review() == first
    clock.pass_s(5)
    gateway.sizes[ACME] = TenantSize(rows=1, bytes=0, complete=True)
    assert await strategy.review() == ()


async def test_a_size_that_cannot_be_measured_is_not_tried_again_at_once(make, gateway, clock):
    strategy = await make(size_interval_s=100)
    gateway.fail("tenant_size", StatementTimeoutError())
    for _ in range(3):
        await work(strategy)
        clock.pass_s(10)
        await strategy.review()
    assert gateway.calls["tenant_size"] == 1

    await work(strategy)
    clock.pass_s(100)
    await strategy.review()
    assert gateway.calls["tenant_size"] == 2


async def test_reviews_go_on_after_what_was_not_foreseen(make, gateway, caplog):
    bell = Bell()
    strategy = await make(sleep=bell.sleep, promotion_rows_min=1, size_interval_s=0.1)
    gateway.sizes[ACME] = TenantSize(rows=1, bytes=0, complete=True)
    gateway.fail("tenant_size", RuntimeError("boom"))
    await work(strategy)
    async with asyncio.timeout(10):
        bell.ring()
        while "not foreseen" not in caplog.text:
            await asyncio.sleep(0)
        await work(strategy)
        bell.ring()
        while not strategy.promotions:
            await asyncio.sleep(0)
    await strategy.cleanup()


async def test_a_tenant_that_is_gone_is_proposed_no_more(make, gateway, clock):
    strategy = await make(promotion_rows_min=1, size_interval_s=1)
    gateway.sizes[ACME] = TenantSize(rows=1, bytes=0, complete=True)
    await work(strategy)
    assert len(await strategy.review()) == 1
    await gateway.delete_tenant(ACME)
    clock.pass_s(5)

    assert await strategy.review() == ()


async def test_reviews_come_by_themselves(make, gateway):
    bell = Bell()
    strategy = await make(sleep=bell.sleep, promotion_rows_min=1, review_interval_s=7)
    gateway.sizes[ACME] = TenantSize(rows=1, bytes=0, complete=True)
    await work(strategy)
    bell.ring()
    async with asyncio.timeout(10):
        while not strategy.promotions:
            await asyncio.sleep(0)

    assert bell.waits[0] == 7


async def test_the_orchestrator_starts_unknown_workloads_here_and_tells_of_proposals(
    gateway, clock
):
    hybrid = HybridStrategy(HybridConfig(promotion_rows_min=1), clock=clock, sleep=Bell().sleep)
    orchestrator = UltraAdvancedStrategyOrchestrator(
        OrchestratorConfig(),
        strategies=[RowLevelStrategy(clock=clock), hybrid],
        clock=clock,
        sleep=Bell().sleep,
    )
    await orchestrator.initialize(EngineConfig(gateway=gateway, settings=Settings()))
    try:
        gateway.sizes[ACME] = TenantSize(rows=1, bytes=0, complete=True)
        context = TenantContext(tenant_id="acme", metadata={"workload": "unknown"})
        made = await orchestrator.isolate_data(context, "look", QUERY)
        again = await orchestrator.isolate_data(TenantContext(tenant_id="acme"), "look", QUERY)
        choice = await orchestrator.select_optimal_strategy(TenantContext(tenant_id="acme"))
        await hybrid.review()
        for _ in range(2):
            await orchestrator.collect_metrics()

        assert made["orchestrator"]["selected_strategy"] == "hybrid"
        assert (again["strategy"], again["isolation_level"]) == ("hybrid", "row")
        assert (choice.strategy, choice.level) == ("hybrid", ROW)
        assert "sensitive tables apart" in choice.reasons[0]
        metrics = await orchestrator.get_orchestrator_metrics()
        assert metrics["strategy_distribution"]["hybrid"] == 1
        assert [item["tenant_id"] for item in metrics["promotions"]] == ["acme"]
        events = (await orchestrator.get_scaling_metrics())["recent_events"]
        told = [event for event in events if event["kind"] == "promotion_proposed"]
        assert [event["detail"] for event in told] == ["schema_level: rows 1 >= 1"]
    finally:
        await orchestrator.cleanup()
