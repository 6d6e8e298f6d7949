"""The orchestrator over tenants in memory: placing, refusing, measuring, coming and going."""

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
)
from tenancy.data_isolation.core.errors import (
    ConflictError,
    ConstraintError,
    InvalidInputError,
    OverloadedError,
    ServerUnavailableError,
    SettingError,
    SetupError,
    StrategyNotFoundError,
    TenantSuspendedError,
    UnavailableError,
)
from tenancy.data_isolation.strategies import (
    OrchestratorConfig,
    RowLevelStrategy,
    UltraAdvancedStrategyOrchestrator,
)

ROW, SCHEMA, DATABASE = IsolationLevel
QUERY = {"query": "select 1"}


@pytest.fixture
def gateway():
    return MemoryGateway()


@pytest.fixture
def clock():
    return SettableClock()


@pytest.fixture
async def make(gateway, clock):
    """Makes orchestrators that are ready, and cleans them up."""
    made = []

    async def never(seconds: float) -> None:
        await asyncio.Event().wait()

    async def ready(sleep=never, strategies=None, **options):
        orchestrator = UltraAdvancedStrategyOrchestrator(
            OrchestratorConfig(**options), clock=clock, sleep=sleep, strategies=strategies
        )
        made.append(orchestrator)
        await orchestrator.initialize(EngineConfig(gateway=gateway, settings=Settings()))
        return orchestrator

    yield ready
    for orchestrator in made:
        await orchestrator.cleanup()


def context(tenant_id: str = "acme", **wishes) -> TenantContext:
    return TenantContext(tenant_id=tenant_id, **wishes)


async def kinds(orchestrator) -> list[str]:
    return [item["kind"] for item in (await orchestrator.get_scaling_metrics())["recent_events"]]


async def turns() -> None:
    """Let every task run as far as it gets by itself."""
    for _ in range(10):
        await asyncio.sleep(0)


# Placing


async def test_a_new_tenant_is_made_at_the_level_that_the_rules_choose(make, gateway):
    orchestrator = await make()

    result = await orchestrator.isolate_data(context(tenant_type="premium"), "look", QUERY)

    assert [item["level"] for item in gateway.creations] == [SCHEMA]
    assert result["orchestrator"]["selected_strategy"] == "schema_level"
    assert any("premium" in text for text in result["orchestrator"]["reasons"])


async def test_the_result_has_the_promised_shape(make, clock):
    orchestrator = await make()

    result = await orchestrator.isolate_data(context(), "look", QUERY)

    assert isinstance(result.pop("processing_time"), float)
    assert isinstance(result["orchestrator"].pop("processing_time"), float)
    assert result.pop("orchestrator").keys() == {"selected_strategy", "reasons"}
    assert result == {
        "tenant_id": "acme",
        "operation": "look",
        "strategy": "row_level",
        "isolation_level": "row",
        "columns": [{"name": "query", "type": "text"}],
        "rows": [["select 1"]],
        "row_count": 1,
    }


async def test_a_tenant_that_exists_is_used_where_it_is(make, gateway):
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), DATABASE)
    orchestrator = await make()

    result = await orchestrator.isolate_data(context(), "look", QUERY)

    assert result["isolation_level"] == "database"
    assert gateway.creations == []
    assert "exists at level database" in result["orchestrator"]["reasons"][0]


async def test_many_first_uses_make_a_tenant_once(make, gateway):
    orchestrator = await make()
    gate = gateway.hold("create_tenant")
    uses = [
        asyncio.create_task(orchestrator.isolate_data(context(), "look", QUERY)) for _ in range(20)
    ]
    await turns()
    gate.set()

    results = await asyncio.gather(*uses)

    assert gateway.calls["create_tenant"] == 1
    assert {item["row_count"] for item in results} == {1}
    assert (await kinds(orchestrator)).count("tenant_created") == 1


async def test_a_caller_that_gives_up_does_not_take_the_new_tenant_from_the_others(make, gateway):
    orchestrator = await make()
    gate = gateway.hold("create_tenant")
    first, second = (
        asyncio.create_task(orchestrator.isolate_data(context(), "look", QUERY)) for _ in range(2)
    )
    await turns()
    first.cancel()
    await asyncio.wait([first])
    gate.set()

    assert (await second)["row_count"] == 1
    assert gateway.calls["create_tenant"] == 1


async def test_a_tenant_that_another_process_made_first_is_used_where_it_is(make, gateway):
    orchestrator = await make()
    gate = gateway.hold("create_tenant")
    use = asyncio.create_task(orchestrator.isolate_data(context(), "look", QUERY))
    await turns()
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), SCHEMA)
    gate.set()

    assert (await use)["strategy"] == "schema_level"


async def test_a_tenant_that_was_deleted_elsewhere_is_new_on_its_next_use(make, gateway):
    orchestrator = await make()
    await orchestrator.isolate_data(context(), "look", QUERY)
    await gateway.delete_tenant(TenantId("acme"))

    assert (await orchestrator.isolate_data(context(), "look", QUERY))["row_count"] == 1
    assert gateway.calls["create_tenant"] == 2


async def test_a_tenant_is_looked_up_again_only_when_what_is_known_is_old(make, gateway, clock):
    orchestrator = await make()
    for _ in range(3):
        await orchestrator.isolate_data(context(), "look", QUERY)
    assert gateway.calls["tenant"] == 1

    clock.pass_s(6)
    await orchestrator.isolate_data(context(), "look", QUERY)
    assert gateway.calls["tenant"] == 2


async def test_a_wish_that_differs_from_the_placement_is_a_conflict_that_says_what_to_do(make):
    orchestrator = await make()
    await orchestrator.isolate_data(context(isolation_level=SCHEMA), "look", QUERY)

    with pytest.raises(ConflictError, match=r"is at level schema and row is asked for.*leave iso"):
        await orchestrator.isolate_data(context(isolation_level=ROW), "look", QUERY)


async def test_a_wish_is_compared_with_where_the_tenant_is_now(make, gateway):
    orchestrator = await make()
    await orchestrator.isolate_data(context(), "look", QUERY)
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), DATABASE)

    result = await orchestrator.isolate_data(context(isolation_level=DATABASE), "look", QUERY)

    assert result["isolation_level"] == "database"


# Compliance


async def test_a_wish_below_the_compliance_is_refused(make, gateway):
    orchestrator = await make(compliance_validation=True)

    with pytest.raises(ConflictError, match="'regulated data' demands at least database"):
        await orchestrator.isolate_data(
            context(isolation_level=ROW, compliance=["hipaa"]), "look", QUERY
        )
    assert gateway.creations == []


async def test_a_regime_that_no_rule_knows_is_refused(make):
    orchestrator = await make()

    with pytest.raises(InvalidInputError, match="no rule knows compliance hippa"):
        await orchestrator.isolate_data(context(compliance=["hippa"]), "look", QUERY)


async def test_a_placement_below_the_compliance_is_refused(make, gateway):
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), SCHEMA)
    orchestrator = await make()

    with pytest.raises(ConflictError, match=r"at level schema.*at least database"):
        await orchestrator.isolate_data(context(compliance=["sox"]), "look", QUERY)
    assert gateway.calls["execute"] == 0


async def test_without_compliance_validation_the_wish_is_followed(make, gateway):
    orchestrator = await make(compliance_validation=False)
    wish = context(isolation_level=ROW, compliance=["hipaa", "hippa"])

    await orchestrator.isolate_data(wish, "look", QUERY)

    assert gateway.creations[0]["level"] is ROW


# Choosing without doing


async def test_select_optimal_strategy_chooses_and_creates_nothing(make, gateway):
    orchestrator = await make()

    choice = await orchestrator.select_optimal_strategy(context(compliance=["gdpr"]), "look", {})

    assert (choice.strategy, choice.level) == ("schema_level", SCHEMA)
    assert choice.rules[0] == "personal data"
    assert gateway.creations == []


async def test_select_optimal_strategy_keeps_a_tenant_where_it_is_and_tells_the_rules_view(
    make, gateway
):
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), DATABASE)
    orchestrator = await make()

    choice = await orchestrator.select_optimal_strategy(context(), "look", {})

    assert choice.strategy == "database_level"
    assert "The rules would give a new tenant like this row_level:" in choice.reasons


async def test_databases_that_exist_count_in_the_choice(make, gateway):
    for number in range(200):
        name = TenantId(f"t{number}")
        gateway.known[name] = tenant(name, DATABASE)
    orchestrator = await make()

    choice = await orchestrator.select_optimal_strategy(context(metadata={"load_ops_s": 9_000}))

    assert choice.strategy == "schema_level"


async def test_rules_of_ones_own_decide(make):
    rule = {"name": "mine", "because": "I say so.", "prefer": ["database_level"]}
    orchestrator = await make(rules={"rules": [rule]})

    assert (await orchestrator.select_optimal_strategy(context())).strategy == "database_level"


async def test_rules_come_from_a_file(make, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[rules]]\nname = "a"\nbecause = "b"\nprefer = ["schema_level"]\n')

    assert (await (await make(rules=path)).select_optimal_strategy(context())).level is SCHEMA
    with pytest.raises(SettingError, match=r"absent\.toml cannot be read"):
        UltraAdvancedStrategyOrchestrator(OrchestratorConfig(rules=tmp_path / "absent.toml"))
    path.write_text("[[rules]]\nnme = 3\n")
    with pytest.raises(SettingError, match=r"mine\.toml, line 2: rule 1, nme"):
        UltraAdvancedStrategyOrchestrator(OrchestratorConfig(rules=str(path)))


# Breakers and the fallback


async def broken(make, gateway, **options):
    """An orchestrator whose row_level breaker is open; tenant `old` exists there."""
    orchestrator = await make(breaker_failures_max=2, breaker_open_s=10, **options)
    await orchestrator.isolate_data(context("old"), "look", QUERY)
    gateway.fail("execute", ServerUnavailableError(), ServerUnavailableError())
    for _ in range(2):
        with pytest.raises(ServerUnavailableError):
            await orchestrator.isolate_data(context("old"), "look", QUERY)
    return orchestrator


async def state(orchestrator) -> str:
    return (await orchestrator.get_orchestrator_metrics())["circuit_breakers"]["row_level"]["state"]


async def test_an_open_breaker_refuses_new_tenants_when_there_is_no_fallback(make, gateway):
    orchestrator = await broken(make, gateway)
    assert await state(orchestrator) == "open"

    with pytest.raises(UnavailableError, match="row_level takes no new tenants") as caught:
        await orchestrator.isolate_data(context("new"), "look", QUERY)

    assert caught.value.retry_after_s == 10
    assert "breaker_opened" in await kinds(orchestrator)


async def test_an_open_breaker_sends_new_tenants_to_the_fallback(make, gateway):
    orchestrator = await broken(make, gateway, fallback_strategy="schema_level")

    result = await orchestrator.isolate_data(context("new"), "look", QUERY)

    assert result["orchestrator"]["selected_strategy"] == "schema_level"
    assert any("breaker is open" in text for text in result["orchestrator"]["reasons"])
    assert "fallback_used" in await kinds(orchestrator)


async def test_an_open_breaker_leaves_tenants_that_exist_alone(make, gateway):
    orchestrator = await broken(make, gateway, fallback_strategy="schema_level")

    result = await orchestrator.isolate_data(context("old"), "look", QUERY)

    assert result["strategy"] == "row_level"


@pytest.mark.parametrize("fallback", ["blockchain_security", "row_level"])
async def test_a_fallback_that_cannot_be_used_refuses_as_well(make, gateway, fallback):
    orchestrator = await broken(make, gateway, fallback_strategy=fallback)

    with pytest.raises(UnavailableError, match=f"the fallback {fallback} cannot take"):
        await orchestrator.isolate_data(context("new"), "look", QUERY)


async def test_a_fallback_below_the_wish_refuses(make, gateway):
    orchestrator = await broken(make, gateway, fallback_strategy="schema_level")

    with pytest.raises(UnavailableError):
        await orchestrator.isolate_data(context("new", isolation_level=ROW), "look", QUERY)


async def test_after_a_while_a_success_closes_the_breaker(make, gateway, clock):
    orchestrator = await broken(make, gateway)
    clock.pass_s(10)
    assert await state(orchestrator) == "half_open"

    await orchestrator.isolate_data(context("new"), "look", QUERY)

    assert await state(orchestrator) == "closed"
    assert "breaker_closed" in await kinds(orchestrator)


async def test_errors_of_the_tenants_sql_leave_the_breaker_closed(make, gateway):
    orchestrator = await make(breaker_failures_max=1)
    gateway.fail("execute", *[ConstraintError() for _ in range(5)])
    for _ in range(5):
        with pytest.raises(ConstraintError):
            await orchestrator.isolate_data(context(), "look", QUERY)

    assert await state(orchestrator) == "closed"


async def test_a_creation_that_fails_counts_and_can_be_tried_again(make, gateway):
    orchestrator = await make(breaker_failures_max=2)
    gateway.fail("create_tenant", ServerUnavailableError())
    with pytest.raises(ServerUnavailableError):
        await orchestrator.isolate_data(context(), "look", QUERY)

    assert (await orchestrator.isolate_data(context(), "look", QUERY))["row_count"] == 1


# Room


async def test_no_more_operations_are_at_work_than_allowed(make, gateway):
    orchestrator = await make(max_concurrent_strategies=3)
    await orchestrator.isolate_data(context(), "look", QUERY)
    gate = gateway.hold("execute")
    uses = [
        asyncio.create_task(orchestrator.isolate_data(context(), "look", QUERY)) for _ in range(8)
    ]
    await turns()
    metrics = await orchestrator.get_orchestrator_metrics()
    assert (metrics["operations_at_work"], metrics["operations_waiting"]) == (3, 5)
    assert gateway.calls["execute"] == 1 + 3

    gate.set()
    assert len(await asyncio.gather(*uses)) == 8


async def test_who_waits_too_long_is_turned_away(make, gateway):
    orchestrator = await make(max_concurrent_strategies=1, admission_wait_ms=1)
    gate = gateway.hold("execute")
    use = asyncio.create_task(orchestrator.isolate_data(context(), "look", QUERY))
    await turns()

    with pytest.raises(OverloadedError):
        await orchestrator.isolate_data(context(), "look", QUERY)
    gate.set()
    await use


# Metrics


async def test_metrics_count_tenants_by_strategy(make):
    orchestrator = await make(ml_enabled=True)
    for number, level in enumerate([ROW, ROW, DATABASE]):
        await orchestrator.isolate_data(context(f"t{number}", isolation_level=level), "look", QUERY)

    metrics = await orchestrator.get_orchestrator_metrics()

    assert metrics["total_tenants"] == 3
    assert metrics["strategy_distribution"] == {
        "row_level": 2,
        "schema_level": 0,
        "database_level": 1,
        "hybrid": 0,
    }
    assert metrics["average_performance"]["operations"] == 3
    assert (metrics["ml_enabled"], metrics["ml_active"]) == (True, False)


async def test_metrics_say_which_options_have_no_effect(make):
    plain = await (await make()).get_orchestrator_metrics()
    asked = await (
        await make(
            ml_enabled=True,
            auto_optimization=True,
            predictive_scaling=True,
            real_time_adaptation=True,
            security_monitoring=True,
            automatic_security_upgrades=True,
            compliance_validation=True,
            fallback_strategy="blockchain_security",
            optimization_interval_minutes=5,
        )
    ).get_orchestrator_metrics()

    assert plain["without_effect"] == {}
    assert asked["without_effect"].keys() == {
        "ml_enabled",
        "auto_optimization",
        "predictive_scaling",
        "real_time_adaptation",
        "security_monitoring",
        "automatic_security_upgrades",
        "fallback_strategy",
        "optimization_interval_minutes",
    }


async def test_targets_are_compared_with_what_was_measured_and_a_miss_is_an_event(
    make, gateway, clock
):
    targets = {"latency_ms": 50, "availability_percentage": 99.99}
    orchestrator = await make(performance_sla_targets=targets)
    gateway.fail("execute", ServerUnavailableError())
    with pytest.raises(ServerUnavailableError):
        await orchestrator.isolate_data(context(), "look", QUERY)
    clock.pass_s(10)
    await orchestrator.collect_metrics()
    await orchestrator.collect_metrics()

    sla = (await orchestrator.get_orchestrator_metrics())["sla"]

    assert (sla["latency_ms"]["target"], sla["latency_ms"]["met"]) == (50, True)
    assert (sla["availability_percentage"]["measured"], sla["availability_percentage"]["met"]) == (
        0,
        False,
    )
    assert (await kinds(orchestrator)).count("sla_missed") == 1


async def test_metrics_are_collected_at_the_configured_interval(make, gateway, clock):
    asked: list[float] = []
    again = asyncio.Event()

    async def sleep(seconds: float) -> None:
        asked.append(seconds)
        await again.wait()
        again.clear()

    orchestrator = await make(sleep=sleep, metrics_collection_interval_seconds=10)
    await orchestrator.isolate_data(context(), "look", QUERY)
    clock.pass_s(10)
    again.set()
    await turns()

    intervals = (await orchestrator.get_scaling_metrics())["intervals"]
    assert asked == [10, 10]
    assert [
        (item["elapsed_s"], item["operations"], item["total_tenants"]) for item in intervals
    ] == [(10, 1, 1)]


async def test_a_collection_that_fails_is_an_event_and_not_the_end(make, gateway, clock):
    again = asyncio.Event()

    async def sleep(seconds: float) -> None:
        await again.wait()
        again.clear()

    orchestrator = await make(sleep=sleep)
    gateway.fail("strategy_counts", ServerUnavailableError())
    for _ in range(2):
        await turns()
        again.set()
        await turns()

    assert await kinds(orchestrator) == ["collection_failed"]
    assert len((await orchestrator.get_scaling_metrics())["intervals"]) == 1


async def test_events_are_bounded_and_the_newest_stay(make):
    orchestrator = await make(recent_events_max=3)
    for number in range(6):
        await orchestrator.isolate_data(context(f"t{number}"), "look", QUERY)

    events = (await orchestrator.get_scaling_metrics())["recent_events"]

    assert [item["tenant_id"] for item in events] == ["t3", "t4", "t5"]


async def test_suspending_resuming_and_deleting_are_done_and_told(make, gateway):
    orchestrator = await make()
    await orchestrator.isolate_data(context(), "look", QUERY)

    await orchestrator.suspend_tenant("acme")
    with pytest.raises(TenantSuspendedError):
        await orchestrator.isolate_data(context(), "look", QUERY)
    await orchestrator.resume_tenant("acme")
    assert (await orchestrator.isolate_data(context(), "look", QUERY))["row_count"] == 1
    await orchestrator.delete_tenant("acme")

    assert gateway.known == {}
    assert await kinds(orchestrator) == [
        "tenant_created",
        "tenant_suspended",
        "tenant_resumed",
        "tenant_deleted",
    ]


async def test_updating_models_says_that_there_is_nothing_to_learn_with(make):
    orchestrator = await make(ml_enabled=True)

    answer = await orchestrator._update_ml_models()

    assert answer["updated"] is False
    assert "no learned selector" in answer["reason"]
    assert await kinds(orchestrator) == ["ml_update_skipped"]


# Life


async def test_before_initialize_everything_says_to_initialize():
    orchestrator = UltraAdvancedStrategyOrchestrator()
    for call in (
        lambda: orchestrator.isolate_data(context(), "look", QUERY),
        lambda: orchestrator.select_optimal_strategy(context()),
        orchestrator.get_orchestrator_metrics,
        orchestrator.get_scaling_metrics,
        orchestrator._update_ml_models,
        lambda: orchestrator.suspend_tenant("acme"),
    ):
        with pytest.raises(SetupError, match=r"await its initialize\(EngineConfig"):
            await call()


async def test_after_cleanup_everything_says_to_make_a_new_one(make, gateway):
    orchestrator = await make()
    await orchestrator.cleanup()
    await orchestrator.cleanup()

    with pytest.raises(SetupError, match="was cleaned up; make a new one"):
        await orchestrator.isolate_data(context(), "look", QUERY)
    with pytest.raises(SetupError, match="make a new one"):
        await orchestrator.initialize(EngineConfig(gateway=gateway))
    assert gateway.closed == 0, "a gateway that was given is not ours to close"


async def test_cleanup_without_initialize_is_fine():
    await UltraAdvancedStrategyOrchestrator().cleanup()


async def test_initialize_twice_is_an_error(make, gateway):
    orchestrator = await make()

    with pytest.raises(SetupError, match="initialized before"):
        await orchestrator.initialize(EngineConfig(gateway=gateway))


async def test_initialize_refuses_what_is_no_configuration_and_no_gateway():
    with pytest.raises(InvalidInputError, match="takes an EngineConfig, not dict"):
        await UltraAdvancedStrategyOrchestrator().initialize({})
    with pytest.raises(SettingError, match=r"object is no way to tenants; it lacks .*execute"):
        await UltraAdvancedStrategyOrchestrator().initialize(EngineConfig(gateway=object()))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("acme", "look", {}), "must be a TenantContext, not str"),
        ((context(), "", {}), "the operation's name '' is not valid"),
        ((context(), "Drop Table", {}), "the operation's name 'Drop Table' is not valid"),
        ((context(), "look", ["select 1"]), "data must be a mapping, not list"),
    ],
)
async def test_arguments_that_cannot_be_are_refused(make, arguments, complaint):
    with pytest.raises(InvalidInputError, match=complaint):
        await (await make()).isolate_data(*arguments)


async def test_a_strategy_that_does_not_exist_is_told_apart_from_a_wrong_name(make):
    orchestrator = await make()

    assert orchestrator.strategy("row_level").name == "row_level"
    with pytest.raises(
        StrategyNotFoundError, match="'edge_computing' does not exist yet; there are"
    ):
        orchestrator.strategy("edge_computing")
    with pytest.raises(StrategyNotFoundError, match="'shelf' is not a strategy; there are row_lev"):
        orchestrator.strategy("shelf")


async def test_a_tenant_at_a_level_without_a_strategy_is_an_error_that_says_so(make, gateway):
    gateway.known[TenantId("acme")] = tenant(TenantId("acme"), SCHEMA)
    orchestrator = await make(strategies=[RowLevelStrategy()])

    with pytest.raises(StrategyNotFoundError, match=r"schema_level.*there are row_level"):
        await orchestrator.isolate_data(context(), "look", QUERY)
