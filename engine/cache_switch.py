"""Switches the keeping of a tenant's results on and off, so that every process agrees about it.

A *period* is the time in which one nonce stands in the catalog for a tenant. In it every process
announces each write of the tenant before it sends it (`result_cache`).

Rules this module keeps:

* A period begins with a higher epoch of the tenant's placement. PostgreSQL refuses what is bound
  under an earlier one, so who writes has read the catalog since, and knows of the period. Results
  are kept and given only when the last statement under an earlier epoch has ended (`serving`).
* It ends in the catalog, and then everybody is waited for: a process believes what it knows for
  `Settings.placement_refresh_ms` (`routes`). Only after that may anything be written unannounced.
* No period begins while migrations are brought to tenants, nor while the tenant is being moved.
* What was begun and not finished, since a process died, is finished by whoever is refused.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, Final

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ServerUnavailableError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import Epoch, ServerName, TenantId, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Tenant, TenantCache, TenantStatus
from tenancy.data_isolation.engine.admin import AdminConnections
from tenancy.data_isolation.engine.cache_periods import heard_s
from tenancy.data_isolation.engine.cache_store import CacheStore, NoAnswerError
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.fence import drain, fence_epoch, raise_fence
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.provisioning_errors import provisioning
from tenancy.data_isolation.engine.redis_place import RedisPlace
from tenancy.data_isolation.engine.sql_files import SqlFile

_log = logging.getLogger(__name__)
_SQL: Final = SqlFile("result_cache.sql")
#: Attempts to see the last statement of an earlier epoch end; each holds new ones up for as long as
#: one attempt of a move does.
_DRAINS_MAX: Final = 100
#: Periods that are remembered to have ended.
_ENDED_MAX: Final = 10_000


class CacheSwitch:
    """Begins and ends periods. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        maker: PlacementMaker,
        store: CacheStore,
        redis: RedisPlace,
        forget: Callable[[TenantId], None],
    ) -> None:
        """`forget` makes this process ask the catalog about a tenant next time."""
        self._redis = redis
        self._settings = settings
        self._catalog = catalog
        self._admin = admin
        self._maker = maker
        self._store = store
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        #: When a tenant's period may be begun again (event loop's time).
        self._again_at: OrderedDict[TenantNo, float] = OrderedDict()
        self._ending: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._beginning: dict[TenantNo, asyncio.Task[None]] = {}
        #: Each takes several of the few connections of the admin.
        self._one = asyncio.Semaphore(1)
        #: Periods that this process has begun and ended.
        self.begun = 0
        self.ended = 0

    # For administrators

    async def want(self, tenant: Tenant) -> None:
        """Keep the tenant's results from now on; what cannot be now is tried again later."""
        await self._catalog.pool.write(_SQL.statement("want_cache"), tenant.tenant_no)
        self._forget(tenant.tenant_id)
        try:
            await self._begin(tenant.tenant_id)
        except NoAnswerError:
            raise UnavailableError(
                "Redis does not answer, so no results are kept yet; they are as soon as it does; "
                "`tenancy doctor` says more"
            ) from None

    async def unwant(self, tenant: Tenant) -> None:
        """Keep none any more."""
        await self._catalog.pool.write(_SQL.statement("unwant_cache"), tenant.tenant_no)
        if tenant.cache is not None and tenant.cache.nonce is not None:
            self._store.drop(tenant.cache.nonce)
        await asyncio.sleep(heard_s(self._settings))
        # Who began a period and died may have left PostgreSQL behind the catalog.
        fresh = await self._catalog.tenant(tenant.tenant_id)
        if fresh.placement is not None:
            with provisioning(tenant.tenant_id):
                async with self._maker.home(fresh.placement) as home:
                    await raise_fence(home, tenant.tenant_no, fresh.placement.epoch)
        await self._catalog.pool.write(_SQL.statement("forget_cache"), tenant.tenant_no)
        self._forget(tenant.tenant_id)

    async def pin(self, tenant: Tenant, most: int) -> str | None:
        """The name under which what the tenant asks for is shared; None when it is one too many."""
        name = secrets.token_hex(16)
        control = ServerName(self._admin.servers[0].name)
        with provisioning(tenant.tenant_id):
            async with (
                self._admin.session(control, shared_database(self._settings)) as connection,
                connection.transaction(),
            ):
                await connection.execute(_SQL.statement("one_pin_at_a_time"))
                pinned: str | None = await connection.fetchval(
                    _SQL.statement("pin"), tenant.tenant_no, name, most
                )
        return pinned

    async def unpin(self, tenant: Tenant) -> str | None:
        """Pin the tenant no more; the name that was in force."""
        before: str | None = await self._catalog.pool.write(
            _SQL.statement("unpin"), tenant.tenant_no
        )
        return before

    async def end_of(self, tenant: Tenant) -> None:
        """End the tenant's period, if there is one; when this returns, nobody gives its results.

        For a tenant that is not active any more, so that no other one begins.
        """
        if tenant.cache is None:
            return
        if tenant.cache.nonce is not None:
            await self.end(tenant, tenant.cache.nonce)
        await self.settled(tenant.cache)

    # For who runs operations

    async def settled(self, cache: TenantCache) -> None:
        """Wait until everybody has heard of the end of the last period, or knows nothing."""
        if cache.ended_s is not None:
            left_s = cache.ended_s + heard_s(self._settings) - monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)

    def has_ended(self, nonce: str) -> bool:
        """Whether this process has seen that period end, and everybody has heard of it."""
        return nonce in self._ended

    async def end(self, tenant: Tenant, nonce: str) -> None:
        """End a period; when this returns, everybody has heard of it.

        Raises `UnavailableError`s when the catalog does not answer.
        """
        if nonce in self._ended:
            return
        task = self._ending.get(nonce)
        if task is None:
            task = self._ending[nonce] = self._loop.create_task(self._end(tenant, nonce))
            task.add_done_callback(lambda done: self._is_over(nonce, done))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise ServerUnavailableError("the runtime is closing; nothing was done") from None
            raise

    def begin_later(self, tenant: Tenant) -> None:
        """Begin a period, or finish beginning it, beside everything else; not too often."""
        number, now = tenant.tenant_no, self._loop.time()
        if number in self._beginning or now < self._again_at.get(number, 0.0):
            return
        self._again_at[number] = now + self._settings.cache_retry_s
        self._again_at.move_to_end(number)
        while len(self._again_at) > _ENDED_MAX:
            self._again_at.popitem(last=False)
        self._aside(number, self._begin(tenant.tenant_id))

    def renew_later(self, tenant: Tenant, nonce: str) -> None:
        """Let another period follow: what was announced in this one does not end."""
        if tenant.tenant_no not in self._beginning:
            self._aside(tenant.tenant_no, self._renew(tenant, nonce))

    async def close(self) -> None:
        """Stop what is under way."""
        tasks = [*self._beginning.values(), *self._ending.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # Ending

    async def _end(self, tenant: Tenant, nonce: str) -> None:
        await self._catalog.pool.write(_SQL.statement("end_period"), tenant.tenant_no, nonce)
        self._store.drop(nonce)
        # Also when another process has just ended it: not everybody may have heard of that yet.
        await asyncio.sleep(heard_s(self._settings))
        self._ended[nonce] = None
        while len(self._ended) > _ENDED_MAX:
            self._ended.popitem(last=False)
        self.ended += 1
        self._forget(tenant.tenant_id)
        _log.warning("the results of tenant %s are not kept for now", tenant.tenant_id)

    def _is_over(self, nonce: str, task: asyncio.Task[None]) -> None:
        del self._ending[nonce]
        if not task.cancelled():
            task.exception()

    # Beginning

    def _aside(self, number: TenantNo, work: Coroutine[Any, Any, None]) -> None:
        async def watched() -> None:
            try:
                await work
            except (TenancyError, NoAnswerError) as error:
                _log.info("the results of tenant number %d cannot be kept now: %s", number, error)

        task = self._beginning[number] = self._loop.create_task(watched())
        task.add_done_callback(lambda _: self._beginning.pop(number, None))

    async def _renew(self, tenant: Tenant, nonce: str) -> None:
        await self.end(tenant, nonce)
        await self._begin(tenant.tenant_id)

    async def _begin(self, tenant_id: TenantId) -> None:
        """Have a period in force and served, whatever was done of it already."""
        async with self._one:
            await self._begin_next(tenant_id)

    async def _begin_next(self, tenant_id: TenantId) -> None:
        tenant = await self._catalog.tenant(tenant_id)
        if tenant.placement is None or tenant.status is not TenantStatus.ACTIVE:
            return
        async with self._no_migrations() as free:
            if not free:
                return
            with provisioning(tenant_id):
                async with self._maker.locked(tenant, tenant.placement):
                    await self._begin_alone(await self._catalog.tenant(tenant_id))
        self._forget(tenant_id)

    async def _begin_alone(self, tenant: Tenant) -> None:
        placement, cache = tenant.placement, tenant.cache
        if placement is None or cache is None or cache.serving:
            return
        if tenant.status is not TenantStatus.ACTIVE:
            return
        nonce, epoch = cache.nonce, placement.epoch
        async with self._maker.home(placement) as home:
            if nonce is None:
                nonce = secrets.token_hex(16)
                await self._redis.start()
                await self._store.open(nonce)
                fenced = await fence_epoch(home, tenant.tenant_no) or epoch
                epoch = Epoch(max(fenced, epoch) + 1)
                version = await self._catalog.pool.write(
                    _SQL.statement("begin_period"),
                    tenant.tenant_no,
                    placement.epoch,
                    epoch,
                    nonce,
                    heard_s(self._settings),
                )
                if version is None:
                    return  # It is being moved, its tables are behind, or a period has just ended.
            await raise_fence(home, tenant.tenant_no, epoch)
            await self._drained(home, tenant.tenant_no)
        await self._catalog.pool.write(_SQL.statement("serve"), tenant.tenant_no, nonce)
        self.begun += 1

    async def _drained(self, home: Any, tenant_no: TenantNo) -> None:
        for attempt in range(_DRAINS_MAX):
            try:
                return await drain(home, tenant_no, self._settings.move_drain_ms)
            except OverloadedError:
                if attempt + 1 == _DRAINS_MAX:
                    raise
                # Let those in that wait behind us.
                await asyncio.sleep(self._settings.move_drain_ms / 1_000)

    @asynccontextmanager
    async def _no_migrations(self) -> AsyncIterator[bool]:
        """Keep migrations from tenants' tables; False when they are being brought there now."""
        control = ServerName(self._admin.servers[0].name)
        async with self._admin.session(control, shared_database(self._settings)) as connection:
            if not await connection.fetchval(_SQL.statement("try_keep_migrations_out")):
                yield False
                return
            try:
                yield True
            finally:
                if not connection.is_closed():
                    await connection.execute(_SQL.statement("let_migrations_in"))
