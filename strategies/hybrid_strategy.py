"""Hybrid: level row, with the tables that are marked sensitive in a schema of the tenant's own.

For workloads that nobody knows yet. The strategy watches how its tenants grow, and proposes another
level for one that has outgrown the shared tables; it moves nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    NotFoundError,
    SettingError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.promotion import Growth, Promotion, PromotionLimits, proposed
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel, Tenant
from tenancy.data_isolation.strategies.base import (
    Creation,
    PlacementStrategy,
    check_numbers,
    check_server,
    check_switches,
    checked_options,
    chosen_server,
)

_log = logging.getLogger(__name__)
#: A few operations within a moment are no load.
_LOAD_WINDOW_MIN_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class HybridConfig:
    """How new tenants are made, and when another level is proposed for one.

    A tenant that reaches one of the three limits is proposed for `promotion_level`, until it was
    seen well below all of them. Raises `SettingError`.
    """

    #: The server for new tenants; None leaves it to the engine.
    server: str | None = None
    #: False = a tenant that does not exist is an error.
    auto_create_tenant: bool = True
    #: What is proposed: schema or database.
    promotion_level: IsolationLevel | str = IsolationLevel.SCHEMA
    promotion_rows_min: int = 10_000_000
    promotion_bytes_min: int = 50_000_000_000
    promotion_load_ops_s_min: float = 500.0
    #: How often the load is looked at, and after how long a tenant's rows are counted again.
    review_interval_s: float = 60.0
    size_interval_s: float = 3_600.0
    #: Tenants whose rows are counted in one review; the busiest ones come first.
    review_tenants_max: int = 100

    def __post_init__(self) -> None:
        check_switches(self)
        check_server(self)
        check_numbers(self, _RANGES)
        if self.promotion_level not in (IsolationLevel.SCHEMA, IsolationLevel.DATABASE):
            raise SettingError(
                f"HybridConfig.promotion_level is {self.promotion_level!r}; use schema or database"
            )
        object.__setattr__(self, "promotion_level", IsolationLevel(self.promotion_level))

    def limits(self) -> PromotionLimits:
        """The limits and what is proposed."""
        return PromotionLimits(
            level=IsolationLevel(self.promotion_level),
            rows_min=self.promotion_rows_min,
            bytes_min=self.promotion_bytes_min,
            load_ops_s_min=self.promotion_load_ops_s_min,
        )


_RANGES: dict[str, tuple[float, float]] = {
    "promotion_rows_min": (1, 10**15),
    "promotion_bytes_min": (1, 10**18),
    "promotion_load_ops_s_min": (0.001, 1e9),
    "review_interval_s": (0.1, 604_800),
    "size_interval_s": (0.1, 604_800),
    "review_tenants_max": (1, 100_000),
}


class HybridStrategy(PlacementStrategy):
    """Start here: shared tables, sensitive ones apart, and a proposal when a tenant outgrows them.

    `sleep` is how the reviews wait for their next turn.
    """

    name = StrategyName.HYBRID
    level = IsolationLevel.ROW

    def __init__(
        self,
        config: HybridConfig | None = None,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(clock=clock)
        self.config = checked_options(config, HybridConfig)
        self._sleep = sleep
        self._limits = self.config.limits()
        #: Operations of each tenant since the last review.
        self._operations: Counter[TenantId] = Counter()
        self._reviewed_at_s = 0.0
        #: What is known of tenants, those reviewed lately last; bounded.
        self._growth: OrderedDict[TenantId, Growth] = OrderedDict()
        self._promotions: dict[TenantId, Promotion] = {}
        self._tenants_max = 1
        self._reviewer: asyncio.Task[None] | None = None

    async def initialize(self, engine_config: EngineConfig | None = None) -> None:
        """Make ready; once. Opens the engine unless the configuration brings a gateway."""
        await super().initialize(engine_config)
        settings = (engine_config or EngineConfig()).resolved_settings()
        self._tenants_max = settings.known_tenants_max
        self._reviewed_at_s = self._clock.monotonic_s()
        self._reviewer = asyncio.create_task(self._review_for_ever())

    async def operate(
        self, tenant: Tenant, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a hybrid tenant."""
        if tenant.tenant_id in self._operations or len(self._operations) < self._tenants_max:
            self._operations[tenant.tenant_id] += 1
        return await super().operate(tenant, operation, data)

    @property
    def promotions(self) -> tuple[Promotion, ...]:
        """The tenants that have outgrown the shared tables, as far as the last review knows."""
        return tuple(self._promotions[name] for name in sorted(self._promotions))

    async def review(self) -> tuple[Promotion, ...]:
        """Look at the tenants that were at work since the last review; what is proposed now.

        Done by itself every `HybridConfig.review_interval_s`. What cannot be measured now stays as
        it is known.
        """
        now_s = self._clock.monotonic_s()
        elapsed_s = max(now_s - self._reviewed_at_s, _LOAD_WINDOW_MIN_S)
        operations, self._operations = self._operations, Counter()
        self._reviewed_at_s = now_s
        idle = [name for name in self._promotions if name not in operations]
        counted = 0
        for tenant_id in (*(name for name, _ in operations.most_common()), *idle):
            before = self._growth.pop(tenant_id, None) or Growth()
            growth = before.with_load(operations[tenant_id] / elapsed_s)
            due = before.tried_at_s is None or (
                now_s - before.tried_at_s >= self.config.size_interval_s
            )
            if due and counted < self.config.review_tenants_max:
                counted += 1
                try:
                    growth = await self._sized(tenant_id, growth, now_s)
                except NotFoundError:
                    self._promotions.pop(tenant_id, None)
                    continue
            self._note(tenant_id, growth)
        return self.promotions

    async def metrics(self) -> dict[str, Any]:
        """As every strategy's, with the promotions that are proposed."""
        found = await super().metrics()
        return {**found, "promotions": [item.document() for item in self.promotions]}

    async def cleanup(self) -> None:
        """Let go of everything. Can be called again."""
        reviewer, self._reviewer = self._reviewer, None
        if reviewer is not None:
            reviewer.cancel()
            await asyncio.wait([reviewer])
        await super().cleanup()

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        server = chosen_server(self.config.server, config, "HybridConfig.server")
        return Creation(allowed=self.config.auto_create_tenant, server=server), {}

    async def _sized(self, tenant_id: TenantId, growth: Growth, now_s: float) -> Growth:
        """With the size as it is now. Raises `NotFoundError` for a tenant that is gone.

        What fails is not tried again before its time: counting a tenant that is too large to be
        counted within the limit of a statement is work as well.
        """
        growth = growth.with_attempt(at_s=now_s)
        try:
            size = await self._lease.gateway.tenant_size(
                tenant_id, rows_max=self.config.promotion_rows_min
            )
        except NotFoundError:
            raise
        except TenancyError as error:
            _log.warning("the size of tenant %s could not be measured: %s", tenant_id, error)
            return growth
        return growth.with_size(size)

    def _note(self, tenant_id: TenantId, growth: Growth) -> None:
        self._growth[tenant_id] = growth
        while len(self._growth) > self._tenants_max:
            self._growth.popitem(last=False)
        promotion = proposed(
            tenant_id,
            growth,
            self._limits,
            before=self._promotions.get(tenant_id),
            at=self._clock.now().isoformat(),
        )
        if promotion is None:
            self._promotions.pop(tenant_id, None)
        else:
            self._promotions[tenant_id] = promotion

    async def _review_for_ever(self) -> None:
        while True:
            await self._sleep(self.config.review_interval_s)
            try:
                await self.review()
            except Exception:
                # The next review may go better; nobody awaits this task who could be told.
                _log.exception("a review of hybrid tenants failed in a way that was not foreseen")
