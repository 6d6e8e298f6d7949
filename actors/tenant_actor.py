"""The tenant actor: many tenants in one process, over one engine.

A plain class. Ray makes an actor of it (`remote.py`), and tests use it as it is.

Rules this module keeps:

* The constructor does nothing that can fail, because an actor whose constructor fails is dead for
  good. The engine is opened by the first call, once for all that wait; when that fails, the next
  call tries again.
* Nothing is kept here that PostgreSQL does not have. A process that is killed loses nothing that it
  has confirmed, and its successor starts empty.
* Activating a tenant asks the catalog and nothing else, so it works while Ray's control store does
  not.
* Every call has its own outcome. Nothing but an error of ours leaves this class; what it did not
  foresee is logged here.
* A call of a tenant that another actor represents is answered with that actor's name. It would be
  safe to serve it: which sessions may work for a tenant is decided in PostgreSQL, by epochs.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tenancy.data_isolation.actors.activation import ActiveTenant, ActiveTenants
from tenancy.data_isolation.actors.configuration import ActorConfiguration, read_configuration
from tenancy.data_isolation.actors.directory import ActorName, Directory
from tenancy.data_isolation.actors.peaceful_end import close_on
from tenancy.data_isolation.actors.session import Session
from tenancy.data_isolation.actors.wire import (
    Call,
    Packer,
    Redirect,
    RequestHeader,
    ResultPacker,
    unpack,
    unpack_operation,
)
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    SetupError,
    StatementTimeoutError,
    TenancyError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, parse_tenant_id
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.trace_context import TraceContext
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
)
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.operation_figures import Figures
from tenancy.data_isolation.engine.tracing import Tracing

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.measurements import Measurements

_T = TypeVar("_T")

#: Clients whose connection an actor remembers. One that was forgotten connects anew.
_SESSIONS_MAX = 1_000
#: What can be asked of moves through an actor.
MOVE_METHODS: Final = (
    *("plan", "start", "move", "moves", "cancel", "roll_back", "confirm", "abandon"),
    *("pause", "resume"),
)
#: And of proposals to move tenants.
PROPOSAL_METHODS: Final = ("proposal", "proposals", "orchestrator", "accept", "dismiss")
#: A client that has not asked for so long is gone, and with it who waits for its answers.
_SESSION_IDLE_S = 60.0
_RETRY_AFTER_S = 1.0

_log = logging.getLogger(__name__)


class TenantActor:
    """Hosts tenants. All methods run on one event loop and may overlap."""

    def __init__(self, name: str, configuration_path: str) -> None:
        self._name = ActorName(name)
        self._path = Path(configuration_path)
        self._host: _Host | None = None
        self._opening: asyncio.Task[_Host] | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._calls = 0

    def __repr__(self) -> str:
        return self._name  # Ray puts this into logs.

    # Operations

    async def execute_many(self, request: bytes) -> bytes:
        """Start the calls of a request, and give the next answers of its session (`wire.py`)."""
        self._calls += 1
        items = unpack(request)
        header = RequestHeader(*next(items))
        try:
            host = self._host or await self._opened()
        except TenancyError as error:
            return _refusal(items, error)
        session = self._session(header.session, host.configuration.settings)
        for number in header.cancelled:
            session.cancel(number)
        for call in items:
            work = host.perform(call) if call[6] is None else host.perform_traced(call)
            session.start(call[0], work)
        return await session.reply(header.waiting_max)

    async def execute(self, tenant_id: str, operation: Operation) -> QueryResult:
        """Run one operation; raises an error of ours."""
        host = self._host or await self._opened()
        return await _only_our_errors(host.execute(parse_tenant_id(tenant_id), operation))

    async def query(
        self,
        tenant_id: str,
        query: str,
        params: Sequence[Any] | Mapping[str, Any] = (),
        *,
        deadline_s: float | None = None,
        idempotency_key: str | None = None,
    ) -> QueryResult:
        """Run one statement; raises an error of ours."""
        operation = Operation(
            query=query, params=params, deadline_s=deadline_s, idempotency_key=idempotency_key
        )
        return await self.execute(tenant_id, operation)

    async def batch(
        self, tenant_id: str, operations: Sequence[Operation], *, atomic: bool = False
    ) -> list[QueryResult | TenancyError]:
        """Run several; an operation's own error stands in its place, unless `atomic`."""
        host = self._host or await self._opened()
        return await _only_our_errors(
            host.execute_batch(parse_tenant_id(tenant_id), operations, atomic=atomic)
        )

    # Control of tenants: any actor can, since the catalog is the only truth

    async def create_tenant(
        self,
        context: TenantContext,
        *,
        level: IsolationLevel,
        server: ServerName | None = None,
        database_prefix: str | None = None,
        hybrid: bool = False,
    ) -> Tenant:
        """As `Engine.create_tenant`."""
        engine = (await self._opened()).engine
        return await _only_our_errors(
            engine.create_tenant(
                context,
                level=level,
                server=server,
                database_prefix=database_prefix,
                hybrid=hybrid,
            )
        )

    async def create_row_tenants(
        self, contexts: Sequence[TenantContext], *, server: ServerName | None = None
    ) -> list[Tenant | TenancyError]:
        """As `Engine.create_row_tenants`."""
        engine = (await self._opened()).engine
        return await _only_our_errors(engine.create_row_tenants(contexts, server=server))

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """As `Engine.tenant`."""
        return await _only_our_errors((await self._opened()).engine.tenant(tenant_id))

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """As `Engine.tenants`."""
        engine = (await self._opened()).engine
        return await _only_our_errors(engine.tenants(after=after, limit=limit))

    async def suspend_tenant(self, tenant_id: TenantId) -> Tenant:
        """As `Engine.suspend_tenant`; the tenant is passivated here at once."""
        host = await self._opened()
        return await host.change(tenant_id, host.engine.suspend_tenant)

    async def resume_tenant(self, tenant_id: TenantId) -> Tenant:
        """As `Engine.resume_tenant`."""
        host = await self._opened()
        return await host.change(tenant_id, host.engine.resume_tenant)

    async def delete_tenant(self, tenant_id: TenantId) -> None:
        """As `Engine.delete_tenant`; the tenant is passivated here at once."""
        host = await self._opened()
        tenant = await _only_our_errors(host.engine.tenant(tenant_id))
        await host.change(tenant_id, host.engine.delete_tenant)
        if host.measurements is not None:
            await host.measurements.forget(tenant.tenant_no)

    async def keep_results(self, tenant_id: TenantId, wanted: bool) -> Tenant:
        """As `Engine.keep_results`."""
        engine = (await self._opened()).engine
        return await _only_our_errors(engine.keep_results(tenant_id, wanted))

    async def pin_tenant(self, tenant_id: TenantId, wanted: bool) -> None:
        """As `Engine.pin_tenant`; the actor that represents the tenant looks for it soon."""
        engine = (await self._opened()).engine
        await _only_our_errors(engine.pin_tenant(tenant_id, wanted))

    async def pinned_tenants(self) -> list[TenantId]:
        """As `Engine.pinned_tenants`."""
        return await _only_our_errors((await self._opened()).engine.pinned_tenants())

    async def cache_statistics(self) -> Mapping[str, int]:
        """As `Engine.cache_statistics`."""
        return await _only_our_errors((await self._opened()).engine.cache_statistics())

    async def resolve_operation(self, name: str, data: Mapping[str, Any]) -> Operation:
        """As `Engine.resolve_operation`."""
        return await _only_our_errors((await self._opened()).engine.resolve_operation(name, data))

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """As `Engine.strategy_counts`."""
        return await _only_our_errors((await self._opened()).engine.strategy_counts())

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        """As `Engine.tenant_size`."""
        engine = (await self._opened()).engine
        return await _only_our_errors(engine.tenant_size(tenant_id, rows_max=rows_max))

    async def moves(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As the method of that name of `Engine.moves`; one of `MOVE_METHODS`."""
        if method not in MOVE_METHODS:
            raise InvalidInputError(
                f"moves have no {method!r}; there are {', '.join(MOVE_METHODS)}"
            )
        moves = (await self._opened()).engine.moves
        return await _only_our_errors(getattr(moves, method)(*args, **kwargs))

    async def proposals(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As the method of that name of `Engine.proposals`; one of `PROPOSAL_METHODS`."""
        if method not in PROPOSAL_METHODS:
            raise InvalidInputError(
                f"proposals have no {method!r}; there are {', '.join(PROPOSAL_METHODS)}"
            )
        proposals = (await self._opened()).engine.proposals
        return await _only_our_errors(getattr(proposals, method)(*args, **kwargs))

    # The actor itself

    async def route(self, tenant_id: str) -> ActorName:
        """The actor that represents the tenant; `TenantNotFoundError` when there is none such."""
        host = await self._opened()
        tenant = await _only_our_errors(host.engine.tenant(parse_tenant_id(tenant_id)))
        return host.configuration.directory.actor_of(tenant)

    async def describe(self) -> tuple[Directory, Settings]:
        """The directory, and the settings without their secrets."""
        host = self._host
        configuration = host.configuration if host else await self._read()
        return configuration.directory, configuration.public_settings()

    async def reload(self) -> int:
        """Make ready for work, and read the directory again; its version."""
        host = await _only_our_errors(self._opened())
        host.configuration = await self._read()
        host.tenants.reroute()
        return host.configuration.directory.version

    async def statistics(self) -> dict[str, int]:
        """The process, and counts since it started."""
        host = self._host
        return {
            "pid": os.getpid(),
            "calls": self._calls,
            "sessions": len(self._sessions),
            "operations": host.operations if host else 0,
            "under_way": host.under_way if host else 0,
            "active_tenants": len(host.tenants) if host else 0,
            "activations": host.tenants.activations if host else 0,
            "passivations": host.tenants.passivations if host else 0,
        }

    async def figures(self) -> Figures | None:
        """What operations came to since the process began; None where nothing is measured."""
        host = await self._opened()
        return None if host.measurements is None else host.measurements.figures()

    async def close(self) -> None:
        """Stop what is under way and close the connections."""
        for session in self._sessions.values():
            session.cancel_all()
        self._sessions.clear()
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    def __ray_shutdown__(self) -> None:
        """What Ray calls when it ends the actor in peace."""
        close_on(self._loop, self.close)

    async def _opened(self) -> _Host:
        """The engine with all around it, opened once however many wait for it."""
        if self._host is not None:
            return self._host
        if self._opening is None:
            self._loop = asyncio.get_running_loop()
            self._opening = self._loop.create_task(self._open())
        # One who stops waiting must not stop it for the others.
        return await asyncio.shield(self._opening)

    async def _open(self) -> _Host:
        try:
            configuration = await self._read()
            engine = await _only_our_errors(Engine.attach(configuration.engine_config(self._name)))
            # Also that it has nothing to do is told, so that idle tenants are known to be idle.
            engine.loads.start()
            host = _Host(self._name, configuration, engine)
            try:
                await host.observe()
            except BaseException:
                await engine.close()
                raise
            self._host = host
            engine.results.pins.start(host)
            return host
        finally:
            self._opening = None

    async def _read(self) -> ActorConfiguration:
        return await asyncio.to_thread(read_configuration, self._path)

    def _session(self, name: str, settings: Settings) -> Session:
        """The session of that name, new or not; one whose client is gone makes room."""
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(
                reply_wait_s=settings.actor_reply_wait_ms / 1000,
                reply_bytes_max=settings.actor_call_bytes_max,
            )
        self._sessions.move_to_end(name)
        oldest_name, oldest = next(iter(self._sessions.items()))
        if oldest.abandoned(_SESSION_IDLE_S) or len(self._sessions) > _SESSIONS_MAX:
            del self._sessions[oldest_name]
            oldest.cancel_all()
        elif oldest.waiting:
            self._sessions.move_to_end(oldest_name)
        return session


class _Host:
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
            return await _only_our_errors(change(tenant_id))
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


def _refusal(items: Iterator[Any], error: TenancyError) -> bytes:
    """A reply that answers every call with `error`: nothing was started."""
    results = ResultPacker()
    packer = Packer((0,), 0)
    for call in items:
        packer.add((Call._make(call).number, results.pack(error)))
    return packer.message()


async def _only_our_errors(work: Awaitable[_T]) -> _T:
    """The result of `work`; an error that is not ours is logged and becomes a plain one."""
    try:
        return await work
    except TenancyError:
        raise
    except Exception:
        _log.exception("a request failed in a way that was not foreseen")
        raise TenancyError from None
