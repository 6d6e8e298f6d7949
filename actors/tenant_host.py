"""The tenants that are active in one tenant actor, over its engine.

Used from one event loop. What it does not foresee is logged here, and becomes a plain error of
ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tenancy.data_isolation.actors.activation import ActiveTenant, ActiveTenants
from tenancy.data_isolation.actors.configuration import ActorConfiguration
from tenancy.data_isolation.actors.directory import ActorName
from tenancy.data_isolation.actors.wire import Call, Redirect, unpack_operation
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import (
    NotFoundError,
    OverloadedError,
    SetupError,
    StatementTimeoutError,
    TenancyError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.trace_context import TraceContext
from tenancy.data_isolation.core.types import Operation, QueryResult, Tenant
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.operations import Begun
from tenancy.data_isolation.engine.tracing import Tracing

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.measurements import Measurements

_T = TypeVar("_T")
_RETRY_AFTER_S = 1.0

_log = logging.getLogger(__name__)


class TenantHost:
    """An open engine and the tenants that are active over it."""

    def __init__(self, name: ActorName, configuration: ActorConfiguration, engine: Engine) -> None:
        settings = configuration.settings
        self.configuration = configuration
        self.engine = engine
        self.operations = 0
        self.tenants = ActiveTenants(
            activate=engine.activate,
            passivate=lambda tenant: engine.passivate(tenant.tenant_id),
            actor_of=lambda tenant: self.configuration.directory.actor_of(tenant),
            tenants_max=settings.actor_tenants_max,
            idle_s=settings.tenant_idle_s,
            clock=SystemClock(),
        )
        #: Pinned tenants, which are kept active.
        self._held: dict[TenantId, ActiveTenant] = {}
        self._name = name
        self._operations_max = settings.waiting_operations_max
        self._activation_s = settings.statement_timeout_ms / 1000
        self._under_way = 0
        self._passivation: asyncio.TimerHandle | None = None
        #: None where nothing is measured, or traced.
        self.measurements: Measurements | None = None
        self.tracing: Tracing | None = None

    async def observe(self) -> None:
        """Measure and trace operations from now on, as far as the settings want it."""
        settings = self.configuration.settings
        self.tracing = Tracing.of(settings, self._name)
        if settings.measurement_window_s:
            catalog = self.engine.catalog
            measuring = await asyncio.to_thread(_measurements, settings, catalog, self._name)
            measuring.start()
            self.measurements = measuring
            self.engine.observe(measuring.windows, self.tracing)
        else:
            self.engine.observe(None, self.tracing)

    async def perform_traced(self, call: Call) -> Any:
        """As `perform`, with a span in the trace that the call is part of."""
        parent = TraceContext.of(call[6])
        if self.tracing is None or parent is None:
            return await self.perform(call)
        attributes = {"tenancy.tenant": call[1], "tenancy.operations": len(call[2])}
        span = self.tracing.begin("tenant actor", parent, attributes, server=True)
        if span is None:
            return await self.perform(call)
        outcome: Any = None
        try:
            with self.tracing.following(span):
                outcome = await self.perform(call)
            return outcome
        finally:
            self.tracing.end(span, outcome)

    @property
    def under_way(self) -> int:
        """Operations that have been let in and have not ended."""
        return self._under_way

    def begin(self, call: Call, done: Callable[[Any], None]) -> Begun | None:
        """Begin a call without a task for it, as `perform` but `done` is called at its end.

        None when that cannot be: then nothing was begun. The outcome of one that was cancelled is
        None.
        """
        _, tenant_id, packed, atomic, deadline_s, final, _ = call
        if atomic is not None or self._under_way >= self._operations_max:
            return None
        query, params, pickled, key = packed[0]
        if pickled or key is not None:
            return None
        active = self.tenants.acquire_active(tenant_id)
        if active is None:
            return None
        self._under_way += 1
        begun: Begun | None = None
        try:
            if final or active.actor == self._name:
                operation = Operation(query=query, params=params, deadline_s=deadline_s)
                begun = self.engine.begin(tenant_id, operation, partial(self._over, active, done))
        except Exception:
            # `perform` answers with an error, if it fares no better.
            _log.exception("a call could not be begun")
        if begun is None:
            self._unpin(active)
        else:
            self.operations += 1
        return begun

    def _over(self, active: ActiveTenant, done: Callable[[Any], None], outcome: Any) -> None:
        """An operation that was begun has ended."""
        if isinstance(outcome, TenancyError):
            self._learn(active.tenant.tenant_id, outcome)
        self._unpin(active)
        done(outcome)

    async def perform(self, call: Call) -> Any:
        """The outcome of one call; never raises an `Exception`."""
        number, tenant_id, packed, atomic, deadline_s, final, _ = call
        active: ActiveTenant | None = None
        try:
            active = self._pin(tenant_id)
            if active is None:
                active, deadline_s = await self._activate(tenant_id, deadline_s)
            if not final and active.actor != self._name:
                return Redirect(active.actor, self.configuration.directory.version)
            if atomic is None:
                operation = unpack_operation(packed[0], deadline_s)
                return await self.engine.execute(tenant_id, operation)
            operations = [unpack_operation(item, deadline_s) for item in packed]
            return await self.engine.execute_batch(tenant_id, operations, atomic=atomic)
        except TenancyError as error:
            self._learn(tenant_id, error)
            return error
        except Exception:
            _log.exception("call %d failed in a way that was not foreseen", number)
            return TenancyError()
        finally:
            self._unpin(active)

    async def execute(self, tenant_id: TenantId, operation: Operation) -> QueryResult:
        """Run one operation here, whatever the directory says."""
        return await self._use(
            tenant_id, lambda: self.engine.execute(tenant_id, operation), operation.deadline_s
        )

    async def execute_batch(
        self, tenant_id: TenantId, operations: Sequence[Operation], *, atomic: bool
    ) -> list[QueryResult | TenancyError]:
        """Run several here, whatever the directory says."""
        return await self._use(
            tenant_id,
            lambda: self.engine.execute_batch(tenant_id, operations, atomic=atomic),
            None,
        )

    async def change(self, tenant_id: TenantId, change: Callable[[TenantId], Awaitable[_T]]) -> _T:
        """Change a tenant in the catalog, and forget what was true of it before."""
        try:
            return await only_our_errors(change(tenant_id))
        finally:
            self.tenants.forget(tenant_id)

    # Pinned tenants (`pinned_tenants.Holder`)

    def represents(self, tenant: Tenant) -> bool:
        """Whether this is the tenant's actor."""
        return self.configuration.directory.actor_of(tenant) == self._name

    async def hold(self, tenant_id: TenantId) -> None:
        """Keep the tenant active: one that is in use is not passivated."""
        active = self.tenants.acquire_active(tenant_id) or await self.tenants.acquire(tenant_id)
        held = self._held.get(tenant_id)
        self._held[tenant_id] = active
        if held is not None:
            # The same one, or one that was forgotten meanwhile.
            self.tenants.release(held)

    def let_go(self, tenant_id: TenantId) -> None:
        """Let the tenant be passivated as all others."""
        held = self._held.pop(tenant_id, None)
        if held is not None:
            self.tenants.release(held)
            if self._passivation is None:
                self._passivate_later()

    async def close(self) -> None:
        """Close the engine."""
        if self._passivation is not None:
            self._passivation.cancel()
        if self.measurements is not None:
            await self.measurements.close()
        await self.engine.close()
        if self.tracing is not None:
            await self.tracing.close()

    async def _use(
        self, tenant_id: TenantId, work: Callable[[], Awaitable[_T]], deadline_s: float | None
    ) -> _T:
        """Run `work` with the tenant active and pinned."""
        active: ActiveTenant | None = None
        try:
            active = self._pin(tenant_id)
            if active is None:
                active, _ = await self._activate(tenant_id, deadline_s or self._activation_s)
            return await work()
        except TenancyError as error:
            self._learn(tenant_id, error)
            raise
        finally:
            self._unpin(active)

    def _pin(self, tenant_id: TenantId) -> ActiveTenant | None:
        """Admit an operation, and pin its tenant if that is active.

        Follow with `_unpin`, also after an error.
        """
        self._under_way += 1
        if self._under_way > self._operations_max:
            raise OverloadedError(
                f"{self._operations_max} operations are under way in this actor already; nothing "
                "was done; wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        self.operations += 1
        return self.tenants.acquire_active(tenant_id)

    async def _activate(self, tenant_id: TenantId, left_s: float) -> tuple[ActiveTenant, float]:
        """Activate and pin a tenant; with it the seconds that are left of `left_s`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + left_s
        try:
            async with asyncio.timeout_at(until):
                active = await self.tenants.acquire(tenant_id)
        except TimeoutError:
            raise StatementTimeoutError(
                "the deadline passed while the tenant was being activated; nothing was done"
            ) from None
        return active, max(until - loop.time(), 0.001)

    def _unpin(self, active: ActiveTenant | None) -> None:
        self._under_way -= 1
        if active is not None:
            self.tenants.release(active)
            if self._passivation is None:
                self._passivate_later()

    def _learn(self, tenant_id: TenantId, error: TenancyError) -> None:
        """Forget the tenant when an error says that what is known of it is not true any more."""
        if isinstance(error, NotFoundError | TenantSuspendedError):
            self.tenants.forget(tenant_id)

    def _passivate_later(self) -> None:
        """Passivate what is due, and come back when the next one is."""
        self._passivation = None
        due_s = self.tenants.passivate_idle()
        if due_s is not None:
            loop = asyncio.get_running_loop()
            self._passivation = loop.call_later(due_s, self._passivate_later)


def _measurements(settings: Settings, catalog: Catalog, name: ActorName) -> Measurements:
    """What measures in an actor. Blocks for as long as importing Arrow takes."""
    # Imported late: who measures nothing does without Arrow.
    try:
        from tenancy.data_isolation.engine.measurements import Measurements
    except ImportError as error:
        raise SetupError(
            f"what operations take cannot be kept: {error}; install the extra `serve`, or set "
            "TENANCY_MEASUREMENT_WINDOW_S to 0"
        ) from None
    return Measurements(settings, catalog, name)


async def only_our_errors(work: Awaitable[_T]) -> _T:
    """The result of `work`; an error that is not ours is logged and becomes a plain one."""
    try:
        return await work
    except TenancyError:
        raise
    except Exception:
        _log.exception("a request failed in a way that was not foreseen")
        raise TenancyError from None
