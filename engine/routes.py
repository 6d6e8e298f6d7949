"""Where tenants are, as far as this process knows, and what to do when they are there no more.

Rules this module keeps:

* What is remembered may be out of date: PostgreSQL refuses a session that is bound under an old
  epoch, before it gives or takes any row, and then the catalog is asked again.
* A table that has no row is no row to refuse, so a read of one would be answered at the old place
  as well. Therefore what is remembered is believed for `Settings.placement_refresh_ms` only; then
  the catalog is asked which tenants have moved and which may move before long, once for all of
  them. The latter are `watched`: whatever is done for them asks for the fence first, and so does
  what has waited until its way is not believed any more. A move waits until every process has heard
  of it (`Mover`). While the catalog does not answer, everybody is watched.
* Only an active tenant takes operations, and at level DATABASE only once its database is at the
  version of this release (`tenant_databases`).
* Bounded: tenants remembered, and how often and how long an operation looks for its tenant.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, TypeVar

from tenancy.data_isolation.core.errors import (
    LoginRefusedError,
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
from tenancy.data_isolation.engine.driver_errors import INVALID_BINDING, REFUSED_LOGINS
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.tenant_databases import TenantDatabases

_log = logging.getLogger(__name__)

_T = TypeVar("_T")

#: Pauses between looks at the catalog while a tenant is on its way to another place: a move keeps
#: it closed for some milliseconds.
_PAUSES_S: Final = (0.0, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
#: How often a login is tried of which the catalog says that it is the right one. Not just once: the
#: catalog may have been asked by another operation, just before the tenant moved.
_LOGIN_ATTEMPTS_MAX: Final = 2
#: Between two lines of the log about the same login.
_LOG_INTERVAL_S: Final = 60.0
_LOGGED_MAX: Final = 1_000
#: Tenants that one look tells of.
_MOVED_MAX: Final = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """The way to an active tenant: where it is, which sessions work there, what it may take."""

    tenant: Tenant
    placement: Placement
    key: SessionKey
    limits: TierLimits
    allowance: Allowance
    #: Whether the fence is to be asked for before anything else, whatever rows there are.
    watched: bool = False
    #: After it (event loop's time) that is to be done in any case: the tenant may have moved.
    unwatched_until: float = 0.0

    @property
    def believed_until(self) -> float:
        """Until when (event loop's time) the fence has not to be asked for first."""
        return 0.0 if self.watched else self.unwatched_until


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
        left: Callable[[Placement], None],
        arriving: Callable[[Route], None],
    ) -> None:
        """`left` is told of places that a tenant was known to be at and is at no more, and
        `arriving` of the way to a place at which a known one will be soon."""
        self._left = left
        self._arriving = arriving
        #: Tenants that were refused where they are known to be, until the catalog has answered.
        self._doubted: set[str] = set()
        #: Tenants that may move before long.
        self._moving: Set[TenantId] = frozenset()
        #: Whether the catalog gave no answer the last time, so that anybody may be moving.
        self._unsure = True
        #: Places that `arriving` was told of.
        self._announced: set[SessionKey] = set()
        self._loop = asyncio.get_running_loop()
        self._believed_s = settings.placement_refresh_ms / 1_000
        self._believed_until = 0.0
        #: The catalog's time when it was last asked who has moved.
        self._asked_at: datetime | None = None
        self._looking: asyncio.Task[None] | None = None
        self._entries_max = settings.tenant_cache_entries
        self._catalog = catalog
        self._keys = keys
        self._databases = databases
        self._tiers = settings.tier_limits
        self._allowances = Allowances(settings.tenant_cache_entries)
        #: In the order in which they were learned.
        self._known: OrderedDict[str, Route] = OrderedDict()
        self._asking: dict[TenantId, asyncio.Task[Tenant]] = {}
        #: Logins that were refused, and when that was last logged (event loop's time).
        self._logged: dict[SessionKey, float] = {}

    def known(self, tenant_id: str) -> Route | None:
        """The way to a tenant, if this process has asked before and that may still be believed."""
        left_s = self._believed_until - self._loop.time()
        if left_s < self._believed_s / 2:
            if left_s < 0:
                return None
            self._look_soon()
        if self._unsure or (self._doubted and tenant_id in self._doubted):
            return None
        route = self._known.get(tenant_id)
        return None if route is None else self._fresh(route)

    async def route(self, tenant_id: TenantId) -> Route:
        """The way to a tenant, as it is remembered or as the catalog has it."""
        if tenant_id in self._known and self._loop.time() > self._believed_until:
            looking = self._look_soon()
            if not self._unsure:
                await _shielded(looking)
        if tenant_id in self._doubted or tenant_id not in self._known:
            return await self._asked(tenant_id)
        return self._careful(self._fresh(self._known[tenant_id]))

    async def run(self, tenant_id: TenantId, work: Callable[[Route], Awaitable[_T]]) -> _T:
        """Do `work` where the tenant is, and again where it turns out to be elsewhere.

        Raises what `work` raises, `TenantNotFoundError`, `TenantSuspendedError` and, when
        PostgreSQL refuses the login there, `LoginRefusedError`.
        """
        route = await self.route(tenant_id)
        refreshed, refusals = False, 0
        for pause_s in _PAUSES_S:
            try:
                return await work(route)
            except PlacementChangedError as error:
                before = route.placement
                route = await self._asked(tenant_id)
                if route.placement != before:
                    refusals = 0
                    continue
                refusals += error.sqlstate in REFUSED_LOGINS
                if refusals >= _LOGIN_ATTEMPTS_MAX:
                    raise self._login_refused(route, error.sqlstate) from None
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

    def mistrust(self, route: Route) -> None:
        """Ask the catalog before this way is used again; another one may be known meanwhile."""
        tenant_id = route.tenant.tenant_id
        if self._known.get(tenant_id) is route:
            self._doubted.add(tenant_id)

    def forget(self, tenant_id: TenantId) -> None:
        """Ask the catalog next time."""
        self._known.pop(tenant_id, None)
        self._doubted.discard(tenant_id)

    def _login_refused(self, route: Route, sqlstate: str | None) -> LoginRefusedError:
        """What the tenant is told; the log has the names, which are for operators."""
        key, now = route.key, asyncio.get_running_loop().time()
        if now - self._logged.get(key, -_LOG_INTERVAL_S) >= _LOG_INTERVAL_S:
            if len(self._logged) >= _LOGGED_MAX:
                self._logged.clear()
            self._logged[key] = now
            _log.error(
                "tenant %s is not served: server %s refuses login %s in database %s: %s (SQLSTATE "
                "%s); run `tenancy doctor`",
                route.tenant.tenant_id,
                key.server,
                key.role,
                key.database,
                REFUSED_LOGINS.get(sqlstate or "", "see the server's log"),
                sqlstate,
            )
        return LoginRefusedError(
            f"tenant {route.tenant.tenant_id} cannot be served: PostgreSQL refuses the login that "
            "works for it; nothing was done, and trying again does not help: an operator has to "
            "run `tenancy doctor`",
            sqlstate,
        )

    async def close(self) -> None:
        """Ask for nothing more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    def _look_soon(self) -> asyncio.Task[None]:
        """Ask which tenants have moved, once for all that want to know at the same time."""
        if self._looking is None:
            self._looking = self._loop.create_task(self._look())
        return self._looking

    async def _look(self) -> None:
        began = self._loop.time()
        try:
            # In this order: who changes its place in between is told by the second answer.
            moving = await self._catalog.moving(_MOVED_MAX)
            now, moved = await self._catalog.moved(self._asked_at, _MOVED_MAX)
            if len(moved) >= _MOVED_MAX:
                self._known.clear()  # Too many to tell, so everybody is asked for anew.
            for tenant_id, (epoch, *cached) in moved.items():
                route = self._known.get(tenant_id)
                if route is None:
                    continue
                cache = route.tenant.cache
                if route.placement.epoch < epoch:
                    del self._known[tenant_id]
                    self._left(route.placement)
                elif [cache and cache.nonce, bool(cache and cache.serving)] != cached:
                    del self._known[tenant_id]
            self._asked_at = now
            self._watch(moving.keys())
            self._unsure = len(moving) >= _MOVED_MAX
            self._announce(moving)
        except BaseException as error:
            self._unsure = True
            began = self._loop.time()
            if not isinstance(error, TenancyError):
                raise
        finally:
            self._believed_until = began + self._believed_s
            self._looking = None

    def _watch(self, moving: Set[TenantId]) -> None:
        """Let exactly these be watched."""
        for tenant_id in self._moving ^ moving:
            route = self._known.get(tenant_id)
            if route is not None:
                self._known[tenant_id] = replace(route, watched=tenant_id in moving)
        self._moving = frozenset(moving)

    def _announce(self, moving: Mapping[TenantId, Placement | None]) -> None:
        """Tell once of each place at which a known tenant will be soon."""
        announced = set()
        for tenant_id, placement in moving.items():
            route = self._known.get(tenant_id)
            if route is None or placement is None:
                continue
            key = SessionKey.of(placement)
            announced.add(key)
            if key not in self._announced and key != route.key:
                there = replace(placement, epoch=route.placement.epoch)
                self._arriving(replace(route, placement=there, key=key))
        self._announced = announced

    def _to(self, tenant: Tenant) -> Route:
        placement = active_placement(tenant)
        limits = self._tiers.of(tenant.tenant_type)
        allowance = self._allowances.of(tenant.tenant_no, tenant.tenant_type, limits)
        watched = tenant.tenant_id in self._moving
        return Route(
            tenant,
            placement,
            SessionKey.of(placement),
            limits,
            allowance,
            watched=watched,
            unwatched_until=self._safe_until,
        )

    @property
    def _safe_until(self) -> float:
        """Until when no tenant can have been moved that was not announced (event loop's time).

        A move waits twice as long as what is known is believed; of the second time half is left for
        what is on its way by then.
        """
        return self._believed_until + self._believed_s / 2

    def _fresh(self, route: Route) -> Route:
        """A known way, which is believed for as long as the last look allows."""
        if route.unwatched_until < self._safe_until:
            route = replace(route, unwatched_until=self._safe_until)
            self._known[route.tenant.tenant_id] = route
        return route

    def _careful(self, route: Route) -> Route:
        return replace(route, watched=True) if self._unsure else route

    async def _asked(self, tenant_id: TenantId) -> Route:
        return self._careful(self._to(await self._ask(tenant_id)))

    async def _ask(self, tenant_id: TenantId) -> Tenant:
        """Ask the catalog, once for all that want to know at the same time."""
        task = self._asking.get(tenant_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._found(tenant_id))
            self._asking[tenant_id] = task
            task.add_done_callback(lambda done: self._answered(tenant_id, done))
        return await _shielded(task)

    async def _found(self, tenant_id: TenantId) -> Tenant:
        tenant = await self._catalog.tenant(tenant_id)
        if tenant.status is TenantStatus.ACTIVE:
            await self._databases.ensure(tenant)
        return tenant

    def _answered(self, tenant_id: TenantId, task: asyncio.Task[Tenant]) -> None:
        del self._asking[tenant_id]
        self._doubted.discard(tenant_id)
        if task.cancelled() or task.exception() is not None:
            self._known.pop(tenant_id, None)
            return
        tenant = task.result()
        if tenant.status is not TenantStatus.ACTIVE or tenant.placement is None:
            self._known.pop(tenant_id, None)
            return
        before, route = self._known.get(tenant_id), self._to(tenant)
        self._known[tenant_id] = route
        if before is not None and before.key != route.key:
            self._left(before.placement)
        self._known.move_to_end(tenant_id)
        while len(self._known) > self._entries_max:
            self._known.popitem(last=False)


async def _shielded(task: asyncio.Task[_T]) -> _T:
    """What the task gives; who stops waiting does not stop it for the others."""
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():
            raise ServerUnavailableError("the runtime is closing") from None
        raise
