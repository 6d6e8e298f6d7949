"""The tenants that are active in one actor process: a cache with single-flight and pinning.

Rules this module keeps:

* A tenant becomes active on first use. Concurrent first uses wait for one activation; other
  tenants do not wait for it (there is no lock over all).
* A tenant that has been idle for `idle_s`, or the one idle for longest when there are too many, is
  passivated. One that is in use never is; when all are in use, a further tenant is turned away.
* A failed activation leaves nothing behind: the next use tries again.

Used from one event loop; not safe for threads.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import OverloadedError
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Tenant

#: What a caller is told to wait when every active tenant is in use.
_RETRY_AFTER_S = 1.0


class ActiveTenant:
    """A tenant in memory, with the actor that represents it and the operations that use it now."""

    __slots__ = ("actor", "idle_since", "tenant", "uses")

    def __init__(self, tenant: Tenant, actor: ActorName) -> None:
        self.tenant = tenant
        self.actor = actor
        self.uses = 0
        self.idle_since = 0.0


class ActiveTenants:
    """Tenants by id, made active by `activate` and let go by `passivate`."""

    def __init__(
        self,
        *,
        activate: Callable[[TenantId], Awaitable[Tenant]],
        passivate: Callable[[Tenant], None],
        actor_of: Callable[[Tenant], ActorName],
        tenants_max: int,
        idle_s: float,
        clock: Clock,
    ) -> None:
        self._activate = activate
        self._passivate = passivate
        self._actor_of = actor_of
        self._tenants_max = tenants_max
        self._idle_s = idle_s
        self._clock = clock
        self._active: dict[TenantId, ActiveTenant] = {}
        #: Those of `_active` that nobody uses, the one idle for longest first.
        self._idle: OrderedDict[TenantId, ActiveTenant] = OrderedDict()
        self._activating: dict[TenantId, asyncio.Task[ActiveTenant]] = {}
        self.activations = 0
        self.passivations = 0

    def __len__(self) -> int:
        return len(self._active)

    def __contains__(self, tenant_id: TenantId) -> bool:
        return tenant_id in self._active

    def acquire_active(self, tenant_id: TenantId) -> ActiveTenant | None:
        """Pin the tenant if it is active already; the fast path of `acquire`."""
        active = self._active.get(tenant_id)
        if active is None:
            return None
        if active.uses == 0:
            self._idle.pop(tenant_id, None)
        active.uses += 1
        return active

    async def acquire(self, tenant_id: TenantId) -> ActiveTenant:
        """Pin the tenant, activating it when needed. Follow with `release`.

        Raises what `activate` raises, and `OverloadedError` when every active tenant is in use.
        """
        active = self.acquire_active(tenant_id)
        if active is not None:
            return active
        activating = self._activating.get(tenant_id)
        if activating is None:
            activating = asyncio.get_running_loop().create_task(self._make(tenant_id))
            self._activating[tenant_id] = activating
            activating.add_done_callback(lambda _: self._activating.pop(tenant_id, None))
        # One who stops waiting must not stop the others' activation.
        made = await asyncio.shield(activating)
        # It may have been let go again while this task waited for its turn. What was true then is
        # good enough for the operations that have waited for it.
        if self._active.get(tenant_id) is made:
            self._idle.pop(tenant_id, None)
        made.uses += 1
        return made

    def release(self, active: ActiveTenant) -> None:
        """Undo one `acquire`."""
        active.uses -= 1
        tenant_id = active.tenant.tenant_id
        if active.uses == 0 and self._active.get(tenant_id) is active:
            active.idle_since = self._clock.monotonic_s()
            self._idle[tenant_id] = active

    def forget(self, tenant_id: TenantId) -> None:
        """Let the tenant go, in use or not: what is known of it is not true any more."""
        active = self._active.pop(tenant_id, None)
        self._idle.pop(tenant_id, None)
        if active is not None:
            self._let_go(active)

    def reroute(self) -> None:
        """Ask again which actor represents each tenant: the directory has changed."""
        for active in self._active.values():
            active.actor = self._actor_of(active.tenant)

    def passivate_idle(self) -> float | None:
        """Passivate what has been idle for long enough.

        Returns the seconds until the next one is due, or None when no tenant is idle.
        """
        now = self._clock.monotonic_s()
        while self._idle:
            tenant_id, oldest = next(iter(self._idle.items()))
            left = oldest.idle_since + self._idle_s - now
            if left > 0:
                return left
            self.forget(tenant_id)
        return None

    async def _make(self, tenant_id: TenantId) -> ActiveTenant:
        tenant = await self._activate(tenant_id)
        if len(self._active) >= self._tenants_max:
            if not self._idle:
                raise OverloadedError(
                    f"all {self._tenants_max} tenants of this actor are in use; "
                    "wait and try again, or raise TENANCY_ACTOR_TENANTS_MAX",
                    retry_after_s=_RETRY_AFTER_S,
                )
            self.forget(next(iter(self._idle)))
        active = ActiveTenant(tenant, self._actor_of(tenant))
        self._active[tenant_id] = active
        active.idle_since = self._clock.monotonic_s()
        self._idle[tenant_id] = active
        self.activations += 1
        return active

    def _let_go(self, active: ActiveTenant) -> None:
        self.passivations += 1
        self._passivate(active.tenant)
