"""Looks after tenants that are pinned: they are ready before they ask.

Which tenants are pinned is in the catalog, so that a process that starts knows. Every process that
represents some of them looks from time to time, and has ready for each

* the way to it, which is not forgotten (`Holder` keeps it active in a tenant actor);
* sessions that are bound to it and know its most frequent statements, prepared and planned;
* the results of those, once for each start of the process and each period: after a restart, a move
  or a migration nothing is kept, and what is asked for the most is read ahead.

Rules this module keeps:

* It waits for sessions as the tenant itself would, and asks one question of a tenant at a time.
* What it reads goes the way of every read that may be kept, so it is never out of date.
* Nothing that it meets ends it, and nothing of it is told to the tenant.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from tenancy.data_isolation.core.errors import NotFoundError, TenancyError
from tenancy.data_isolation.core.identifiers import Epoch, TenantId, TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Tenant
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.executor import Executor
from tenancy.data_isolation.engine.routes import Route, Routes
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.table_shape import TableShapes
from tenancy.data_isolation.engine.warming import bind, learn

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.result_cache import ResultCache

_log = logging.getLogger(__name__)
_SQL: Final = SqlFile("result_cache.sql")


class Holder(Protocol):
    """Who represents tenants in this process."""

    def represents(self, tenant: Tenant) -> bool:
        """Whether the tenant's operations come here."""
        ...

    async def hold(self, tenant_id: TenantId) -> None:
        """Keep the tenant active until it is let go of."""
        ...

    def let_go(self, tenant_id: TenantId) -> None:
        """Treat it as all others again."""
        ...


class _Everybody:
    """All tenants are represented by a process that has no actors."""

    def represents(self, _: Tenant) -> bool:
        return True

    async def hold(self, tenant_id: TenantId) -> None:
        """The way to it is asked for at each look."""

    def let_go(self, tenant_id: TenantId) -> None:
        """There is nothing to let go of."""


@dataclass(slots=True)
class _Pinned:
    tenant_id: TenantId
    name: str
    #: The period and the epoch whose results are there, and what was remembered last.
    filled: tuple[str | None, Epoch] | None = None
    remembered: bytes = b""
    recalled: bool = False
    #: The last thing that was in the way, so that it is told once.
    trouble: str = field(default="")


class PinnedTenants:
    """Has pinned tenants ready. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        routes: Routes,
        executor: Executor,
        results: ResultCache,
        shapes: TableShapes,
    ) -> None:
        self._settings = settings
        self._catalog = catalog
        self._routes = routes
        self._executor = executor
        self._results = results
        self._shapes = shapes
        self._holder: Holder = _Everybody()
        self._ours: dict[TenantNo, _Pinned] = {}
        self._looking: asyncio.Task[None] | None = None
        self._soon = asyncio.Event()
        self._turn = asyncio.Lock()

    def start(self, holder: Holder | None = None) -> None:
        """Look from now on; again at once when it does already."""
        if holder is not None:
            self._holder = holder
        self._soon.set()
        if self._looking is None:
            self._looking = asyncio.get_running_loop().create_task(self._work())

    async def pinned(self) -> list[TenantId]:
        """The tenants that are pinned, here or elsewhere."""
        return [tenant_id for tenant_id, _ in (await self._asked()).values()]

    async def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])

    async def _work(self) -> None:
        most_s = self._settings.pinned_refresh_s
        least_s = min(self._settings.placement_refresh_ms / 1_000, most_s)
        pause_s = least_s
        while True:
            self._soon.clear()
            ready = False
            try:
                ready = await self.look()
            except TenancyError as error:
                _log.info("pinned tenants are not looked after now: %s", error)
            except Exception:
                # The programmer's error: pinned tenants are served as all others.
                _log.exception("pinned tenants could not be looked after")
            # A period that has just begun, or a way that was just learned, wants a moment.
            pause_s = most_s if ready else min(2 * pause_s, most_s)
            try:
                async with asyncio.timeout(pause_s):
                    await self._soon.wait()
            except TimeoutError:
                pass
            if ready:
                pause_s = least_s

    async def look(self) -> bool:
        """Have those ready that this process represents, once; whether they are."""
        async with self._turn:
            return await self._look()

    async def _look(self) -> bool:
        ours: dict[TenantNo, str] = {}
        for number, (tenant_id, name) in (await self._asked()).items():
            if await self._is_ours(tenant_id):
                ours[number] = name
                known = self._ours.get(number)
                if known is None or known.name != name:
                    self._ours[number] = _Pinned(tenant_id, name)
        for number in self._ours.keys() - ours.keys():
            self._holder.let_go(self._ours.pop(number).tenant_id)
        if self._results.hot.pinned != ours:
            self._results.hold(ours)
        ready = True
        for number, pinned in list(self._ours.items()):
            try:
                ready &= await self._ready(number, pinned)
                pinned.trouble = ""
            except TenancyError as error:
                # Suspended, moving, no session: it is looked at again.
                ready = False
                if pinned.trouble != error.slug:
                    pinned.trouble = error.slug
                    _log.info("pinned tenant %s is not ready: %s", pinned.tenant_id, error)
        return ready

    async def _asked(self) -> Mapping[TenantNo, tuple[TenantId, str]]:
        most = self._settings.pinned_tenants_max
        rows = await self._catalog.pool.rows(_SQL.statement("pinned"), most)
        return {
            TenantNo(row["tenant_no"]): (TenantId(row["tenant_id"]), row["pinned"]) for row in rows
        }

    async def _is_ours(self, tenant_id: TenantId) -> bool:
        try:
            return self._holder.represents(await self._routes.tenant(tenant_id))
        except NotFoundError:
            return False  # Erased meanwhile.

    async def _ready(self, number: TenantNo, pinned: _Pinned) -> bool:
        """Have one tenant ready; whether it is."""
        results = self._results
        if not pinned.recalled:
            pinned.recalled = await results.recall(number)
        await self._holder.hold(pinned.tenant_id)
        route = await self._routes.route(pinned.tenant_id)
        await self._bind(route)
        cache = route.tenant.cache
        if cache is None:
            # What this process knows is older than the pin.
            self._routes.forget(pinned.tenant_id)
            return False
        # A move goes on in the same period, and its results are those of another place.
        period = (cache.nonce, route.placement.epoch)
        if not cache.serving:
            results.begin_later(route.tenant)
        elif pinned.filled != period and await self._fill(route):
            pinned.filled = period
        packed = results.hot.packed(number)
        if (
            pinned.recalled
            and packed != pinned.remembered
            and results.hot.top(number)
            and await results.remember(number, packed)
        ):
            pinned.remembered = packed
        return cache.serving and pinned.filled == period

    async def _bind(self, route: Route) -> None:
        """Have sessions that are bound to the tenant and know its statements."""
        schema = self._shapes.at(route.key)
        texts: dict[str, None] = {}
        for operation in self._results.hot.top(route.tenant.tenant_no):
            try:
                statement = self._executor.statement(operation.query, schema)
            except TenancyError:
                continue  # The schema does not have it any more.
            if statement.plain:
                # To plan others could call functions of users.
                texts[statement.text] = None
        sessions = self._settings.pinned_sessions
        await bind(self._executor, route, schema, sessions)
        await learn(self._executor, route, list(texts), sessions)

    async def _fill(self, route: Route) -> bool:
        """Read what is asked for the most; False when nothing could be kept yet."""
        schema = self._shapes.at(route.key)
        questions = self._results.hot.top(route.tenant.tenant_no)
        filled = not questions
        for operation in questions:
            try:
                filled |= await self._results.fill(route, operation, schema)
            except TenancyError as error:
                _log.debug("ahead for pinned tenant %s: %s", route.tenant.tenant_id, error)
        return filled
