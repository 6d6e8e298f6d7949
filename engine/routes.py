"""Where tenants are, as far as this process knows, and what to do when they are there no more.

Rules this module keeps:

* What is remembered may be out of date and never does harm: PostgreSQL refuses a session that is
  bound under an old epoch, before anything runs, and then the catalog is asked again.
* Only an active tenant takes operations, and at level DATABASE only once its database is at the
  version of this release (`tenant_databases`).
* Bounded: tenants remembered, and how often and how long an operation looks for its tenant.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from tenancy.data_isolation.core.errors import (
    PlacementChangedError,
    ServerUnavailableError,
    TenancyError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.tier_limits import TierLimits
from tenancy.data_isolation.core.types import Placement, Tenant, TenantStatus
from tenancy.data_isolation.engine.allowance import Allowance, Allowances
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.driver_errors import INVALID_BINDING
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.tenant_databases import TenantDatabases

_T = TypeVar("_T")

#: Pauses between looks at the catalog while a tenant is on its way to another place: a move keeps
#: it closed for some milliseconds.
_PAUSES_S: Final = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """The way to an active tenant: where it is, which sessions work there, what it may take."""

    tenant: Tenant
    placement: Placement
    key: SessionKey
    limits: TierLimits
    allowance: Allowance


def active_placement(tenant: Tenant) -> Placement:
    """Where a tenant works; `TenantSuspendedError` when it takes no operations."""
    placement = tenant.placement
    if tenant.status is not TenantStatus.ACTIVE or placement is None:
        raise TenantSuspendedError(
            f"tenant {tenant.tenant_id} is {tenant.status}; it takes no operations now"
        )
    return placement


class Routes:
    """The ways to tenants. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        keys: BindingKeys,
        databases: TenantDatabases,
    ) -> None:
        self._entries_max = settings.tenant_cache_entries
        self._catalog = catalog
        self._keys = keys
        self._databases = databases
        self._tiers = settings.tier_limits
        self._allowances = Allowances(settings.tenant_cache_entries)
        #: In the order in which they were learned.
        self._known: OrderedDict[str, Route] = OrderedDict()
        self._asking: dict[TenantId, asyncio.Task[Tenant]] = {}

    def known(self, tenant_id: str) -> Route | None:
        """The way to a tenant, if this process has asked before."""
        return self._known.get(tenant_id)

    async def route(self, tenant_id: TenantId) -> Route:
        """The way to a tenant, as it is remembered or as the catalog has it."""
        return self._known.get(tenant_id) or self._to(await self._ask(tenant_id))

    async def run(self, tenant_id: TenantId, work: Callable[[Route], Awaitable[_T]]) -> _T:
        """Do `work` where the tenant is, and again where it turns out to be elsewhere.

        Raises what `work` raises, `TenantNotFoundError` and `TenantSuspendedError`.
        """
        route = await self.route(tenant_id)
        refreshed = False
        for pause_s in _PAUSES_S:
            try:
                return await work(route)
            except PlacementChangedError:
                before = route.placement
                route = self._to(await self._ask(tenant_id))
                if route.placement == before:
                    await asyncio.sleep(pause_s)
            except TenancyError as error:
                if error.sqlstate != INVALID_BINDING or refreshed:
                    raise
                # The keys have rotated since this process looked.
                refreshed = True
                await self._keys.refresh(self._catalog)
        raise PlacementChangedError(
            f"tenant {tenant_id} is on its way to another place; nothing was done; try again"
        )

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """The tenant as it is remembered, or as the catalog has it."""
        route = self._known.get(tenant_id)
        return await self._ask(tenant_id) if route is None else route.tenant

    def forget(self, tenant_id: TenantId) -> None:
        """Ask the catalog next time."""
        self._known.pop(tenant_id, None)

    def _to(self, tenant: Tenant) -> Route:
        placement = active_placement(tenant)
        limits = self._tiers.of(tenant.tenant_type)
        allowance = self._allowances.of(tenant.tenant_no, tenant.tenant_type, limits)
        return Route(tenant, placement, SessionKey.of(placement), limits, allowance)

    async def _ask(self, tenant_id: TenantId) -> Tenant:
        """Ask the catalog, once for all that want to know at the same time."""
        task = self._asking.get(tenant_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._look(tenant_id))
            self._asking[tenant_id] = task
            task.add_done_callback(lambda done: self._answered(tenant_id, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ServerUnavailableError("the runtime is closing") from None
            raise

    async def _look(self, tenant_id: TenantId) -> Tenant:
        tenant = await self._catalog.tenant(tenant_id)
        if tenant.status is TenantStatus.ACTIVE:
            await self._databases.ensure(tenant)
        return tenant

    def _answered(self, tenant_id: TenantId, task: asyncio.Task[Tenant]) -> None:
        del self._asking[tenant_id]
        if task.cancelled() or task.exception() is not None:
            self._known.pop(tenant_id, None)
            return
        tenant = task.result()
        if tenant.status is not TenantStatus.ACTIVE or tenant.placement is None:
            self._known.pop(tenant_id, None)
            return
        self._known[tenant_id] = self._to(tenant)
        self._known.move_to_end(tenant_id)
        while len(self._known) > self._entries_max:
            self._known.popitem(last=False)
