"""Performance optimized: results of a tenant's reads are kept, and never given out of date.

A layer: the tenant's data is at any level, held there by a strategy that places data. What is kept,
and how it is known to be current, is told in `engine/result_cache.py` and `docs/result-cache.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

from tenancy.data_isolation.core.choice import Choice
from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    ConflictError,
    InvalidInputError,
    LimitError,
    OverloadedError,
    SettingError,
    SetupError,
    TenantNotFoundError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId, parse_tenant_id
from tenancy.data_isolation.core.rules import STRATEGY_OF_LEVEL, StrategyName, placed_by, strength
from tenancy.data_isolation.core.settings import EngineConfig
from tenancy.data_isolation.core.types import IsolationLevel, Tenant, TenantContext
from tenancy.data_isolation.strategies.base import (
    Creation,
    PlacementStrategy,
    check_server,
    check_switches,
    checked_options,
    chosen_server,
    context_id,
    placement_of,
)

_log = logging.getLogger(__name__)


@runtime_checkable
class ResultKeeping(Protocol):
    """What a `TenantGateway` offers besides when it can keep results."""

    async def keep_results(self, tenant_id: TenantId, wanted: bool) -> Tenant:
        """Keep the tenant's results, or do not; `UnavailableError` when that begins later only."""
        ...

    async def cache_statistics(self) -> Mapping[str, int]:
        """What keeping results came to, over all processes that this gateway reaches."""
        ...


@runtime_checkable
class TenantPinning(Protocol):
    """What a `TenantGateway` offers besides when it can have tenants ready before they ask."""

    async def pin_tenant(self, tenant_id: TenantId, wanted: bool) -> None:
        """Have the tenant ready before it asks, or do not; `LimitError` when it is one too many."""
        ...

    async def pinned_tenants(self) -> list[TenantId]:
        """The tenants that are pinned."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformanceConfig:
    """How new tenants are made, and which are pinned.

    Limits of what is kept are settings (`TENANCY_CACHE_...`, `TENANCY_PINNED_...`).
    """

    #: The level of new tenants that ask for none.
    isolation_level: IsolationLevel | str = IsolationLevel.ROW
    #: The server for new tenants; None leaves it to the engine.
    server: str | None = None
    #: False = a tenant that does not exist is an error.
    auto_create_tenant: bool = True
    #: Tenants that are pinned from now on, until `unpin`: never passivated, with sessions that are
    #: bound and statements that are prepared ahead, and with results that are there before they are
    #: asked for. One that does not exist yet is pinned when it is made.
    pinned_tenants: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_switches(self)
        check_server(self)
        if self.isolation_level not in list(IsolationLevel):
            raise SettingError(
                f"PerformanceConfig.isolation_level is {self.isolation_level!r}; "
                f"use {', '.join(IsolationLevel)}"
            )
        object.__setattr__(self, "isolation_level", IsolationLevel(self.isolation_level))
        object.__setattr__(self, "pinned_tenants", _names(self.pinned_tenants))


class PerformanceOptimizedStrategy(PlacementStrategy):
    """Reads of what has not changed are answered without PostgreSQL.

    A tenant that is used through this strategy keeps its results from then on, whoever uses it,
    until `forgo`.
    """

    name = StrategyName.PERFORMANCE_OPTIMIZED
    level = IsolationLevel.ROW

    def __init__(
        self, config: PerformanceConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        super().__init__(clock=clock)
        self.config = checked_options(config, PerformanceConfig)
        #: Of the configured ones, those that are still to be pinned.
        self._to_pin: set[TenantId] = set()

    async def initialize(self, engine_config: EngineConfig | None = None) -> None:
        """Make ready; once. Pins the configured tenants that exist.

        Raises `LimitError` when they are more than may be pinned.
        """
        await super().initialize(engine_config)
        self._to_pin = {parse_tenant_id(name) for name in self.config.pinned_tenants}
        try:
            for tenant_id in sorted(self._to_pin):
                with suppress(TenantNotFoundError):
                    await self.pin(tenant_id)
        except BaseException:
            await self.cleanup()
            raise

    async def pin(self, tenant_id: TenantId | str) -> None:
        """Have the tenant ready before it asks, from now on; its results are kept.

        Raises `LimitError` when it is one too many.
        """
        pinning = self._pinning()
        tenant = await self._lease.gateway.tenant(parse_tenant_id(tenant_id))
        await self.adopt(tenant, pin=False)
        await pinning.pin_tenant(tenant.tenant_id, True)
        self._to_pin.discard(tenant.tenant_id)

    async def unpin(self, tenant_id: TenantId | str) -> None:
        """Treat the tenant as all others; its results are kept still."""
        name = parse_tenant_id(tenant_id)
        self._to_pin.discard(name)
        await self._pinning().pin_tenant(name, False)

    async def pinned(self) -> list[TenantId]:
        """The tenants that are pinned, by whomever."""
        return await self._pinning().pinned_tenants()

    async def create(self, context: TenantContext) -> Tenant:
        """Make the tenant at the level that it asks for, or at the configured one."""
        if not self._creation.allowed:
            return await super().create(context)
        level = context.isolation_level or IsolationLevel(self.config.isolation_level)
        return await self._lease.gateway.create_tenant(
            context, level=level, server=self._creation.server
        )

    async def adopt(self, tenant: Tenant, *, pin: bool = True) -> Tenant:
        """Have the tenant's results kept from now on, and have it pinned if that was configured.

        While Redis does not answer the tenant is served as any other.
        """
        adopted = tenant
        if tenant.cache is None:
            try:
                adopted = await self._keeping().keep_results(tenant.tenant_id, True)
            except (UnavailableError, OverloadedError, SetupError) as error:
                _log.warning("tenant %s: %s", tenant.tenant_id, error)
        if pin and tenant.tenant_id in self._to_pin:
            self._to_pin.discard(tenant.tenant_id)
            try:
                await self._pinning().pin_tenant(tenant.tenant_id, True)
            except LimitError as error:
                # Its operations go on; that it is not pinned is seen in the metrics.
                self.without_effect["pinned_tenants"] = error.detail
                _log.warning("tenant %s is not pinned: %s", tenant.tenant_id, error)
        return adopted

    async def forgo(self, tenant_id: TenantId | str) -> Tenant:
        """Keep none of the tenant's results any more; when this returns, nobody gives any."""
        tenant = await self._keeping().keep_results(parse_tenant_id(tenant_id), False)
        self._forget(tenant.tenant_id)
        return tenant

    async def operate(
        self, tenant: Tenant, operation: str, data: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Run a named operation for a tenant, wherever its data is."""
        result = await super().operate(tenant, operation, data)
        return {**result, "isolation_level": str(placement_of(tenant).level)}

    async def metrics(self) -> dict[str, Any]:
        """As every strategy's, with what keeping results came to (`cache`), and who is pinned."""
        found = await super().metrics()
        found["isolation_level"] = str(self.config.isolation_level)
        pinned = await self.pinned() if isinstance(self._lease.gateway, TenantPinning) else []
        return {**found, "cache": await self.cache(), "pinned_tenants": list(map(str, pinned))}

    async def cache(self) -> dict[str, int]:
        """What keeping results came to."""
        gateway = self._lease.gateway
        if not isinstance(gateway, ResultKeeping):
            return {}
        return dict(await gateway.cache_statistics())

    def _plan(self, config: EngineConfig) -> tuple[Creation, dict[str, str]]:
        server = chosen_server(self.config.server, config, "PerformanceConfig.server")
        return Creation(allowed=self.config.auto_create_tenant, server=server), {}

    def _keeping(self) -> ResultKeeping:
        gateway = self._lease.gateway
        if not isinstance(gateway, ResultKeeping):
            raise SetupError(
                f"{type(gateway).__name__} keeps no results, so {type(self).__name__} has nothing "
                "to work with; use the engine or the tenant actors"
            )
        return gateway

    def _pinning(self) -> TenantPinning:
        gateway = self._lease.gateway
        if not isinstance(gateway, TenantPinning):
            raise SetupError(
                f"{type(gateway).__name__} cannot have tenants ready before they ask; leave "
                "PerformanceConfig.pinned_tenants empty, or use the engine or the tenant actors"
            )
        return gateway

    async def _obtain(self, context: TenantContext) -> Tenant:
        known = self._known
        assert known is not None  # noqa: S101 - set before the lease is open to callers.
        tenant = await known.obtain(context_id(context), lambda: self.create(context))
        level, wish = placement_of(tenant).level, context.isolation_level
        if wish is not None and strength(wish) > strength(level):
            raise ConflictError(
                f"tenant {tenant.tenant_id} asks for level {wish} and is at level {level}, with "
                f"{placed_by(placement_of(tenant))}; move it to {STRATEGY_OF_LEVEL[wish]} first "
                "(`tenancy tenant move`), or change isolation_level"
            )
        if tenant.cache is None or tenant.tenant_id in self._to_pin:
            tenant = await self.adopt(tenant)
            known.forget(tenant.tenant_id)
        return tenant


def _names(given: Sequence[str]) -> tuple[TenantId, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise SettingError(
            f"PerformanceConfig.pinned_tenants is {given!r}; give a list of tenants' names"
        )
    try:
        return tuple(dict.fromkeys(parse_tenant_id(name) for name in given))
    except InvalidInputError as error:
        raise SettingError(f"PerformanceConfig.pinned_tenants: {error.detail}") from None


# What the orchestrator asks of its strategies

_Strategies = Mapping[StrategyName, PlacementStrategy]


def layer_of(strategies: _Strategies, tenant: Tenant) -> PerformanceOptimizedStrategy | None:
    """The strategy through which a tenant is used whose results are kept."""
    found = strategies.get(StrategyName.PERFORMANCE_OPTIMIZED)
    if not isinstance(found, PerformanceOptimizedStrategy) or tenant.cache is None:
        return None
    return found


def choice_with_layer(strategies: _Strategies, tenant: Tenant, choice: Choice) -> Choice:
    """The choice for a tenant that exists, through that strategy if its results are kept."""
    layer = layer_of(strategies, tenant)
    return choice if layer is None else replace(choice, strategy=layer.name)


async def adopted(strategies: _Strategies, tenant: Tenant, chosen: StrategyName) -> Tenant:
    """A tenant that was just made, with its results kept when that was chosen for it."""
    found = strategies.get(chosen)
    return await found.adopt(tenant) if isinstance(found, PerformanceOptimizedStrategy) else tenant
