"""The orchestrator: chooses each tenant's strategy by rules, and runs its operations there.

A tenant that was not seen before is created at the chosen level on its first use; one that exists
is used where its data is. Rules, breakers and the fallback decide about new tenants only. At most
`max_concurrent_strategies` operations are at work at the same time; a bounded number waits.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenancy.data_isolation.core.admission import Admission
from tenancy.data_isolation.core.choice import Choice
from tenancy.data_isolation.core.circuit_breaker import (
    BreakerLimits,
    CircuitBreaker,
    is_infrastructure_failure,
)
from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    SettingError,
    StrategyNotFoundError,
    TenancyError,
    TenantNotFoundError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.core.optimization import Optimization, ProposalDesk
from tenancy.data_isolation.core.performance import Outcome, PerformanceLog, outcome_of
from tenancy.data_isolation.core.placement_policy import PlacementPolicy, where_it_is
from tenancy.data_isolation.core.promotion import Promotion
from tenancy.data_isolation.core.rules import Facts, StrategyName, distribution, placed_by
from tenancy.data_isolation.core.service_levels import checked_targets, compare
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import Tenant, TenantContext
from tenancy.data_isolation.strategies import performance_optimized_strategy as optimized
from tenancy.data_isolation.strategies.base import (
    GatewayLease,
    KnownTenants,
    PlacementStrategy,
    check_numbers,
    check_switches,
    checked_config,
    checked_context,
    checked_options,
    checked_request,
    context_id,
    known_servers,
    placement_of,
    rule_book,
)
from tenancy.data_isolation.strategies.database_level import DatabaseLevelStrategy
from tenancy.data_isolation.strategies.hybrid_strategy import HybridStrategy
from tenancy.data_isolation.strategies.row_level import RowLevelStrategy
from tenancy.data_isolation.strategies.schema_level import SchemaLevelStrategy

_log = logging.getLogger(__name__)

#: Options of parts that do not exist yet, and why they do nothing when they are switched on.
_WITHOUT_EFFECT = {
    "ml_enabled": "there is no learned selector yet; strategies are chosen by rules",
    "predictive_scaling": "there is no forecast of load yet",
    "real_time_adaptation": "a tenant's strategy cannot be tuned or changed while in use yet",
    "security_monitoring": "there is no monitoring of tenants' behaviour yet",
    "automatic_security_upgrades": "nothing looks for attacks that would call for one yet",
}
_OPTIMIZATION_INTERVAL_MINUTES = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class OrchestratorConfig:
    """What the orchestrator does. Raises `SettingError` for a value that cannot be.

    Options of parts that do not exist yet are accepted; `get_orchestrator_metrics()` lists those
    that have no effect, with the reason, under `without_effect`. `auto_optimization` moves tenants
    to where their load, size or compliance asks for; without it that is proposed, as
    `Settings.orchestration` says, after a look every `optimization_interval_minutes`.
    """

    ml_enabled: bool = False
    auto_optimization: bool = False
    predictive_scaling: bool = False
    real_time_adaptation: bool = False
    security_monitoring: bool = False
    automatic_security_upgrades: bool = False
    optimization_interval_minutes: int = _OPTIMIZATION_INTERVAL_MINUTES

    #: Refuse a level below what the tenant's compliance demands, and regimes that no rule knows.
    compliance_validation: bool = True
    #: Where new tenants go when the chosen strategy does not exist or its breaker is open. Without
    #: one, the rules' next best takes the place of a missing one, and an open breaker refuses.
    fallback_strategy: str | None = None
    #: A rules file, or a mapping of the same shape, in place of `rules.toml`.
    rules: str | Path | Mapping[str, Any] | None = None
    #: latency_ms, throughput_ops_sec, availability_percentage, error_rate: compared in the metrics.
    performance_sla_targets: Mapping[str, float] = field(default_factory=dict)
    #: How often tenants are counted and an interval of measuring ends.
    metrics_collection_interval_seconds: float = 60
    #: Intervals that the metrics look back on, and events that are kept.
    metrics_intervals_max: int = 60
    recent_events_max: int = 200

    #: Operations at work at the same time, and how long another waits for one of them to end.
    max_concurrent_strategies: int = 1_000
    admission_wait_ms: int = 5_000

    #: Failures of the infrastructure in a row, within the window, that open a strategy's breaker.
    breaker_failures_max: int = 5
    breaker_window_s: float = 30.0
    #: How long it then takes no new tenants.
    breaker_open_s: float = 10.0

    def __post_init__(self) -> None:
        check_switches(self)
        check_numbers(self, _RANGES)
        targets = self.performance_sla_targets
        if not isinstance(targets, Mapping):
            raise SettingError("OrchestratorConfig.performance_sla_targets must be a mapping")
        checked = checked_targets(targets, "OrchestratorConfig.performance_sla_targets")
        object.__setattr__(self, "performance_sla_targets", checked)
        if self.fallback_strategy is not None:
            if self.fallback_strategy not in list(StrategyName):
                raise SettingError(
                    f"OrchestratorConfig.fallback_strategy: {self.fallback_strategy!r} is not a "
                    f"strategy; there are {', '.join(StrategyName)}"
                )
            object.__setattr__(self, "fallback_strategy", StrategyName(self.fallback_strategy))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> OrchestratorConfig:
        """The configuration that a mapping spells; `SettingError` lists the names there are."""
        known = [item.name for item in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise SettingError(
                    f"OrchestratorConfig has no {name!r}; it has {', '.join(sorted(known))}"
                )
        return cls(**values)


_RANGES: dict[str, tuple[float, float]] = {
    "optimization_interval_minutes": (1, 10_080),
    "metrics_collection_interval_seconds": (0.1, 86_400),
    "metrics_intervals_max": (1, 10_000),
    "recent_events_max": (1, 100_000),
    "max_concurrent_strategies": (1, 100_000),
    "admission_wait_ms": (1, 600_000),
    "breaker_failures_max": (1, 1_000),
    "breaker_window_s": (0.1, 86_400),
    "breaker_open_s": (0.1, 86_400),
}


class UltraAdvancedStrategyOrchestrator:
    """Chooses strategies, runs operations, measures. For use from one event loop.

    `strategies` are the ones to choose among; by default one of each that exists. `sleep` is how
    the collection of metrics waits for its next turn.
    """

    def __init__(
        self,
        config: OrchestratorConfig | None = None,
        *,
        strategies: Sequence[PlacementStrategy] | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.config = checked_options(config, OrchestratorConfig)
        self._clock = clock or SystemClock()
        self._sleep = sleep
        given = strategies or (
            RowLevelStrategy(),
            SchemaLevelStrategy(),
            DatabaseLevelStrategy(),
            HybridStrategy(),
            optimized.PerformanceOptimizedStrategy(),
        )
        self._strategies = {strategy.name: strategy for strategy in given}
        fallback = self.config.fallback_strategy
        self._policy = PlacementPolicy(
            book=rule_book(self.config.rules),
            available=tuple(self._strategies),
            fallback=StrategyName(fallback) if fallback else None,
            compliance_validation=self.config.compliance_validation,
        )
        limits = BreakerLimits(
            failures_max=self.config.breaker_failures_max,
            window_s=self.config.breaker_window_s,
            open_s=self.config.breaker_open_s,
        )
        self._breakers = {name: CircuitBreaker(limits) for name in self._strategies}
        self._lease = GatewayLease(type(self).__name__)
        self._admission = self._room(waiting_max=0)
        self._events: deque[dict[str, Any]] = deque(maxlen=self.config.recent_events_max)
        self._log = self._new_log()
        self._collected: deque[dict[str, Any]] = deque(maxlen=self.config.metrics_intervals_max)
        self._missed_targets: frozenset[str] = frozenset()
        self._proposed: frozenset[TenantId] = frozenset()
        self._optimization: Optimization | None = None
        self._known: KnownTenants | None = None
        self._counts: tuple[Mapping[StrategyName, int], float] | None = None
        self._counts_age_s = 0.0
        self._hybrids_max = 0
        self._collector: asyncio.Task[None] | None = None

    # Life

    async def initialize(self, engine_config: EngineConfig | None = None) -> None:
        """Make ready; once. Opens the engine unless the configuration brings a gateway."""
        config = checked_config(engine_config)
        settings = config.resolved_settings()
        servers = known_servers(config)
        gateway = await self._lease.open(config)
        try:
            below = dataclasses.replace(config, servers=servers, gateway=gateway)
            for strategy in self._strategies.values():
                await strategy.initialize(below)
        except BaseException:
            await self.cleanup()
            raise
        self._admission = self._room(waiting_max=settings.waiting_operations_max)
        self._counts_age_s = settings.known_tenant_s
        # Behind a gateway the servers may not be known; there is one at least.
        self._hybrids_max = settings.hybrid_tenants_max * max(1, len(servers))
        self._known = KnownTenants(
            gateway,
            clock=self._clock,
            entries_max=settings.known_tenants_max,
            age_s=settings.known_tenant_s,
        )
        self._log = self._new_log()
        self._optimization = Optimization(
            gateway,
            book=self._policy.book,
            settings=settings,
            automatic=self.config.auto_optimization,
            interval_minutes=self.config.optimization_interval_minutes,
        )
        self._collector = asyncio.create_task(self._collect_for_ever())

    async def cleanup(self) -> None:
        """Let go of everything. Can be called again."""
        collector, self._collector = self._collector, None
        if collector is not None:
            collector.cancel()
            with suppress(asyncio.CancelledError):
                await collector
        if self._optimization is not None:
            await self._optimization.close()
        if self._known is not None:
            await self._known.settle()
        try:
            for strategy in self._strategies.values():
                await strategy.cleanup()
        finally:
            await self._lease.close()

    # Work

    async def isolate_data(
        self, tenant_context: TenantContext, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a tenant; a tenant that is new is placed and made first.

        Returns what the strategy returns, and under `orchestrator` the selected_strategy, the
        processing_time (seconds, with all waiting) and the reasons. Raises errors of `core.errors`.
        """
        self._lease.gateway  # noqa: B018 - raises unless the orchestrator is ready.
        started_s = self._clock.monotonic_s()
        context = checked_context(tenant_context)
        name, given = checked_request(operation, data)
        try:
            async with self._admission.hold() as waited:
                self._log.present.waited += waited
                result, reasons = await self._run(context, name, given)
        except TenancyError as error:
            self._log.present.record(outcome_of(error), self._clock.monotonic_s() - started_s)
            raise
        elapsed_s = self._clock.monotonic_s() - started_s
        self._log.present.record(Outcome.DONE, elapsed_s)
        result["orchestrator"] = {
            "selected_strategy": result["strategy"],
            "processing_time": elapsed_s,
            "reasons": list(reasons),
        }
        return result

    async def select_optimal_strategy(
        self,
        tenant_context: TenantContext,
        operation: str = "",
        data: Mapping[str, Any] | None = None,
    ) -> Choice:
        """The strategy for a tenant, with its reasons. Creates nothing.

        Rules may look at the operation's name. The data is the tenant's own; no rule sees it.
        """
        context = checked_context(tenant_context)
        name = checked_request(operation, data)[0] if operation else None
        tenant = await self._tenants().find(context_id(context))
        if tenant is None:
            return await self.choose_for_new(context, name)
        facts = Facts.of(context, tenant=tenant, operation=name)
        choice = self._policy.for_placed(tenant.tenant_id, facts, placement_of(tenant))
        return optimized.choice_with_layer(self._strategies, tenant, choice)

    def strategy(self, name: str) -> PlacementStrategy:
        """The strategy of that name; `StrategyNotFoundError` lists what exists."""
        if name not in self._strategies:
            what = "does not exist yet" if name in list(StrategyName) else "is not a strategy"
            raise StrategyNotFoundError(f"{name!r} {what}; there are {', '.join(self._strategies)}")
        return self._strategies[StrategyName(name)]

    async def suspend_tenant(self, tenant_id: str) -> Tenant:
        """Refuse the tenant's operations from now on."""
        key = parse_tenant_id(tenant_id)
        self._tenants().forget(key)
        tenant = await self._lease.gateway.suspend_tenant(key)
        self._tell("tenant_suspended", key)
        return tenant

    async def resume_tenant(self, tenant_id: str) -> Tenant:
        """Take the tenant's operations again."""
        key = parse_tenant_id(tenant_id)
        tenant = await self._lease.gateway.resume_tenant(key)
        self._tenants().forget(key)
        self._tell("tenant_resumed", key)
        return tenant

    async def delete_tenant(self, tenant_id: str) -> None:
        """Erase the tenant's data, then its name."""
        key = parse_tenant_id(tenant_id)
        await self._lease.gateway.delete_tenant(key)
        self._tenants().forget(key)
        self._tell("tenant_deleted", key)

    # What is known of the work

    @property
    def proposals(self) -> ProposalDesk:
        """Proposals to move tenants: listing, accepting and dismissing them."""
        return self._optimizing().desk

    async def get_orchestrator_metrics(self) -> dict[str, Any]:
        """Tenants, what was measured against what was promised, breakers, options without effect.

        `promotions` are proposals to move a tenant, with the reasons, of all processes.
        `average_performance` and `sla` look back on the last `metrics_intervals_max` intervals.
        """
        counts = await self._lease.gateway.strategy_counts()
        now_s = self._clock.monotonic_s()
        measured, elapsed_s = self._log.lately(now_s)
        return {
            "total_tenants": sum(counts.values()),
            "strategy_distribution": distribution(counts),
            "ml_enabled": self.config.ml_enabled,
            "ml_active": False,
            "average_performance": measured.summary(elapsed_s),
            "circuit_breakers": {
                str(name): breaker.document(now_s) for name, breaker in self._breakers.items()
            },
            "promotions": await self._optimizing().documents(self._promotions()),
            "orchestration": str(self._optimizing().mode),
            "sla": self._service_levels(now_s),
            "operations_at_work": self._admission.at_work,
            "operations_waiting": self._admission.waiting,
            "max_concurrent_strategies": self.config.max_concurrent_strategies,
            "without_effect": self._without_effect(),
        }

    async def get_scaling_metrics(self) -> dict[str, Any]:
        """`recent_events`, newest last, and what each interval of the collection counted."""
        self._lease.gateway  # noqa: B018 - raises unless the orchestrator is ready.
        return {
            "recent_events": [dict(event) for event in self._events],
            "intervals": [dict(item) for item in self._collected],
            "operations_at_work": self._admission.at_work,
            "operations_waiting": self._admission.waiting,
            "max_concurrent_strategies": self.config.max_concurrent_strategies,
        }

    async def collect_metrics(self) -> None:
        """Count the tenants and end the interval that is being measured.

        Done by itself every `metrics_collection_interval_seconds`.
        """
        counts = await self._lease.gateway.strategy_counts()
        now_s = self._clock.monotonic_s()
        self._counts = (counts, now_s)
        interval = self._log.cut(now_s, self._clock.now().isoformat())
        self._collected.append(
            {
                "ended_at": interval.ended_at,
                "elapsed_s": interval.elapsed_s,
                "total_tenants": sum(counts.values()),
                "strategy_distribution": distribution(counts),
                **interval.measured.summary(interval.elapsed_s),
            }
        )
        self._tell_of_promotions()
        verdicts = self._service_levels(now_s)
        missed = frozenset(name for name, verdict in verdicts.items() if verdict["met"] is False)
        for name in sorted(missed - self._missed_targets):
            self._tell(
                "sla_missed",
                detail=f"{name}: {verdicts[name]['measured']:.6g} measured, "
                f"target {verdicts[name]['target']:g}",
            )
        self._missed_targets = missed

    async def _update_ml_models(self) -> dict[str, Any]:
        """Tell that there is nothing to learn with yet; nothing is trained."""
        self._lease.gateway  # noqa: B018 - raises unless the orchestrator is ready.
        reason = _WITHOUT_EFFECT["ml_enabled"]
        self._tell("ml_update_skipped", detail=reason)
        return {"updated": False, "reason": reason}

    # Where a tenant's data is, or goes

    async def _run(
        self, context: TenantContext, operation: str, data: Mapping[str, Any]
    ) -> tuple[dict[str, Any], Sequence[str]]:
        tenant, reasons = await self._place(context, operation)
        try:
            return await self._operate(tenant, operation, data), reasons
        except TenantNotFoundError:
            # It was deleted since we saw it, and nothing was done: it is a new tenant now.
            self._tenants().forget(tenant.tenant_id)
        tenant, reasons = await self._place(context, operation)
        return await self._operate(tenant, operation, data), reasons

    async def _operate(
        self, tenant: Tenant, operation: str, data: Mapping[str, Any]
    ) -> dict[str, Any]:
        strategy = optimized.layer_of(self._strategies, tenant) or self.strategy(
            placed_by(placement_of(tenant))
        )
        try:
            with self._observed(strategy.name):
                return await strategy.operate(tenant, operation, data)
        except TenantSuspendedError:
            self._tenants().forget(tenant.tenant_id)
            raise

    async def _place(self, context: TenantContext, operation: str) -> tuple[Tenant, Sequence[str]]:
        """The tenant, made when it is new, and why its data is where it is."""
        known, tenant_id = self._tenants(), context_id(context)
        choices: list[Choice] = []

        async def create() -> Tenant:
            choice = await self.choose_for_new(context, operation)
            choices.append(choice)
            return await self._create(context, choice)

        tenant = await known.obtain(tenant_id, create)
        wish = context.isolation_level
        if wish is not None and placement_of(tenant).level is not wish:
            # What we remember may be out of date; a refusal must not be.
            known.forget(tenant_id)
            tenant = await known.obtain(tenant_id, create)
        placement = placement_of(tenant)
        if wish is not None or context.compliance or tenant.compliance:
            facts = Facts.of(context, tenant=tenant)
            self._policy.check_placed(tenant_id, facts, placement.level)
        if choices:
            return tenant, choices[-1].reasons
        return tenant, (where_it_is(tenant_id, placement),)

    async def _create(self, context: TenantContext, choice: Choice) -> Tenant:
        strategy = self.strategy(choice.placed_by)
        # Not refused, because the choice looked; when half-open, this one is the attempt.
        self._breakers[strategy.name].admit(self._clock.monotonic_s())
        with self._observed(strategy.name):
            tenant = await strategy.create(context)
        tenant = await optimized.adopted(self._strategies, tenant, choice.strategy)
        self._tell("tenant_created", tenant.tenant_id, f"with {choice.strategy}")
        if choice.instead_of is not None:
            detail = f"{choice.strategy} instead of {choice.instead_of}"
            self._tell("fallback_used", tenant.tenant_id, detail)
        if self._counts is not None:
            counts, at_s = self._counts
            self._counts = ({**counts, strategy.name: counts.get(strategy.name, 0) + 1}, at_s)
        return tenant

    async def choose_for_new(self, context: TenantContext, operation: str | None) -> Choice:
        """As `select_optimal_strategy`, for a tenant that is known to have no data yet."""
        counts = await self._tenant_counts()
        facts = Facts.of(
            context,
            databases=counts.get(StrategyName.DATABASE_LEVEL, 0),
            hybrid_room=max(0, self._hybrids_max - counts.get(StrategyName.HYBRID, 0)),
            operation=operation,
        )
        now_s = self._clock.monotonic_s()
        waits = {name: item.retry_after_s(now_s) for name, item in self._breakers.items()}
        closed = {name: wait for name, wait in waits.items() if wait > 0}
        return self._policy.for_new(context_id(context), facts, closed)

    async def _tenant_counts(self) -> Mapping[StrategyName, int]:
        """How many tenants each strategy holds; may be as old as what is known of tenants."""
        now_s = self._clock.monotonic_s()
        if self._counts is None or now_s - self._counts[1] > self._counts_age_s:
            self._counts = (await self._lease.gateway.strategy_counts(), now_s)
        return self._counts[0]

    def _tenants(self) -> KnownTenants:
        self._lease.gateway  # noqa: B018 - raises unless the orchestrator is ready.
        assert self._known is not None  # noqa: S101 - set before `initialize` returns.
        return self._known

    # Measuring

    def _optimizing(self) -> Optimization:
        self._lease.gateway  # noqa: B018 - raises unless the orchestrator is ready.
        assert self._optimization is not None  # noqa: S101 - set before `initialize` returns.
        return self._optimization

    def _promotions(self) -> list[Promotion]:
        return [item for strategy in self._strategies.values() for item in strategy.promotions]

    def _tell_of_promotions(self) -> None:
        """An event for each promotion that is proposed for the first time."""
        found = self._promotions()
        for item in found:
            if item.tenant_id not in self._proposed:
                detail = f"{item.strategy}: {'; '.join(item.reasons)}"
                self._tell("promotion_proposed", item.tenant_id, detail)
        self._proposed = frozenset(item.tenant_id for item in found)

    def _room(self, *, waiting_max: int) -> Admission:
        return Admission(
            at_work_max=self.config.max_concurrent_strategies,
            waiting_max=waiting_max,
            wait_ms=self.config.admission_wait_ms,
        )

    def _new_log(self) -> PerformanceLog:
        return PerformanceLog(
            intervals_max=self.config.metrics_intervals_max, now_s=self._clock.monotonic_s()
        )

    @contextmanager
    def _observed(self, name: StrategyName) -> Iterator[None]:
        """Tell the strategy's breaker how the work inside went."""
        breaker = self._breakers[name]
        try:
            yield
        except TenancyError as error:
            if is_infrastructure_failure(error) and breaker.failed(self._clock.monotonic_s()):
                self._tell("breaker_opened", detail=f"{name}: {error}")
            raise
        if breaker.succeeded(self._clock.monotonic_s()):
            self._tell("breaker_closed", detail=str(name))

    def _service_levels(self, now_s: float) -> dict[str, dict[str, Any]]:
        measured, _ = self._log.lately(now_s)
        best = self._log.best_throughput_ops_s(now_s)
        return compare(self.config.performance_sla_targets, measured, best)

    def _without_effect(self) -> dict[str, str]:
        config = self.config
        found = {name: why for name, why in _WITHOUT_EFFECT.items() if getattr(config, name)}
        interval = config.optimization_interval_minutes
        found |= self._optimizing().without_effect(interval != _OPTIMIZATION_INTERVAL_MINUTES)
        if config.fallback_strategy and config.fallback_strategy not in self._strategies:
            found["fallback_strategy"] = (
                f"{config.fallback_strategy} does not exist yet; "
                f"there are {', '.join(self._strategies)}"
            )
        for name, strategy in self._strategies.items():
            found |= {f"{name}.{key}": why for key, why in strategy.without_effect.items()}
        return found

    async def _collect_for_ever(self) -> None:
        while True:
            await self._sleep(self.config.metrics_collection_interval_seconds)
            try:
                await self.collect_metrics()
            except TenancyError as error:
                self._tell("collection_failed", detail=str(error))

    def _tell(self, kind: str, tenant_id: TenantId | None = None, detail: str = "") -> None:
        """Keep an event, and log it."""
        event: dict[str, Any] = {"at": self._clock.now().isoformat(), "kind": kind}
        if tenant_id is not None:
            event["tenant_id"] = tenant_id
        if detail:
            event["detail"] = detail
        self._events.append(event)
        _log.info("%s", event)
