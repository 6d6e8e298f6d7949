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
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from tenancy.data_isolation.actors.configuration import ActorConfiguration, read_configuration
from tenancy.data_isolation.actors.directory import ActorName, Directory
from tenancy.data_isolation.actors.local_link import LinkAddress, LocalListener
from tenancy.data_isolation.actors.peaceful_end import close_on
from tenancy.data_isolation.actors.session import Session
from tenancy.data_isolation.actors.tenant_host import TenantHost, only_our_errors
from tenancy.data_isolation.actors.wire import (
    Call,
    Packer,
    RequestHeader,
    ResultPacker,
    unpack,
)
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import ServerName, TenantId, parse_tenant_id
from tenancy.data_isolation.core.rules import StrategyName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import (
    IsolationLevel,
    Operation,
    QueryResult,
    Tenant,
    TenantContext,
    TenantSize,
)
from tenancy.data_isolation.engine.engine import Engine
from tenancy.data_isolation.engine.operation_figures import Figures

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
        self._host: TenantHost | None = None
        self._opening: asyncio.Task[TenantHost] | None = None
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: LocalListener | None = None
        self._listening = asyncio.Lock()
        self._calls = 0

    def __repr__(self) -> str:
        return self._name  # Ray puts this into logs.

    # Operations

    async def execute_many(self, request: bytes) -> bytes:
        """Start the calls of a request, and give the next answers of its session (`wire.py`)."""
        return await self._perform(request, set())

    async def _perform(self, request: bytes, sessions: set[str]) -> bytes:
        """As `execute_many`; adds the session's name to `sessions`."""
        self._calls += 1
        items = unpack(request)
        header = RequestHeader(*next(items))
        try:
            host = self._host or await self._opened()
        except TenancyError as error:
            return _refusal(items, error)
        sessions.add(header.session)
        session = self._session(header.session, host.configuration.settings)
        for number in header.cancelled:
            session.cancel(number)
        for call in items:
            if call[6] is not None:
                session.start(call[0], host.perform_traced(call))
            elif not session.begin(call[0], partial(host.begin, call)):
                session.start(call[0], host.perform(call))
        return await session.reply(header.waiting_max)

    async def listen(self) -> LinkAddress | None:
        """Where processes of this machine may send what `execute_many` takes; None = nowhere."""
        async with self._listening:
            if self._listener is None:
                self._listener = await self._listen()
        return None if self._listener is None else self._listener.address

    async def execute(self, tenant_id: str, operation: Operation) -> QueryResult:
        """Run one operation; raises an error of ours."""
        host = self._host or await self._opened()
        return await only_our_errors(host.execute(parse_tenant_id(tenant_id), operation))

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
        return await only_our_errors(
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
        return await only_our_errors(
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
        return await only_our_errors(engine.create_row_tenants(contexts, server=server))

    async def tenant(self, tenant_id: TenantId) -> Tenant:
        """As `Engine.tenant`."""
        return await only_our_errors((await self._opened()).engine.tenant(tenant_id))

    async def tenants(self, *, after: TenantId | None = None, limit: int = 100) -> list[Tenant]:
        """As `Engine.tenants`."""
        engine = (await self._opened()).engine
        return await only_our_errors(engine.tenants(after=after, limit=limit))

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
        tenant = await only_our_errors(host.engine.tenant(tenant_id))
        await host.change(tenant_id, host.engine.delete_tenant)
        if host.measurements is not None:
            await host.measurements.forget(tenant.tenant_no)

    async def keep_results(self, tenant_id: TenantId, wanted: bool) -> Tenant:
        """As `Engine.keep_results`."""
        engine = (await self._opened()).engine
        return await only_our_errors(engine.keep_results(tenant_id, wanted))

    async def pin_tenant(self, tenant_id: TenantId, wanted: bool) -> None:
        """As `Engine.pin_tenant`; the actor that represents the tenant looks for it soon."""
        engine = (await self._opened()).engine
        await only_our_errors(engine.pin_tenant(tenant_id, wanted))

    async def pinned_tenants(self) -> list[TenantId]:
        """As `Engine.pinned_tenants`."""
        return await only_our_errors((await self._opened()).engine.pinned_tenants())

    async def cache_statistics(self) -> Mapping[str, int]:
        """As `Engine.cache_statistics`."""
        return await only_our_errors((await self._opened()).engine.cache_statistics())

    async def resolve_operation(
        self, name: str, data: Mapping[str, Any], *, anew: bool = False
    ) -> Operation:
        """As `Engine.resolve_operation`."""
        engine = (await self._opened()).engine
        return await only_our_errors(engine.resolve_operation(name, data, anew=anew))

    async def strategy_counts(self) -> Mapping[StrategyName, int]:
        """As `Engine.strategy_counts`."""
        return await only_our_errors((await self._opened()).engine.strategy_counts())

    async def tenant_size(self, tenant_id: TenantId, *, rows_max: int) -> TenantSize:
        """As `Engine.tenant_size`."""
        engine = (await self._opened()).engine
        return await only_our_errors(engine.tenant_size(tenant_id, rows_max=rows_max))

    async def moves(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As the method of that name of `Engine.moves`; one of `MOVE_METHODS`."""
        if method not in MOVE_METHODS:
            raise InvalidInputError(
                f"moves have no {method!r}; there are {', '.join(MOVE_METHODS)}"
            )
        moves = (await self._opened()).engine.moves
        return await only_our_errors(getattr(moves, method)(*args, **kwargs))

    async def proposals(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        """As the method of that name of `Engine.proposals`; one of `PROPOSAL_METHODS`."""
        if method not in PROPOSAL_METHODS:
            raise InvalidInputError(
                f"proposals have no {method!r}; there are {', '.join(PROPOSAL_METHODS)}"
            )
        proposals = (await self._opened()).engine.proposals
        return await only_our_errors(getattr(proposals, method)(*args, **kwargs))

    # The actor itself

    async def route(self, tenant_id: str) -> ActorName:
        """The actor that represents the tenant; `TenantNotFoundError` when there is none such."""
        host = await self._opened()
        tenant = await only_our_errors(host.engine.tenant(parse_tenant_id(tenant_id)))
        return host.configuration.directory.actor_of(tenant)

    async def describe(self) -> tuple[Directory, Settings]:
        """The directory, and the settings without their secrets."""
        host = self._host
        configuration = host.configuration if host else await self._read()
        return configuration.directory, configuration.public_settings()

    async def reload(self) -> int:
        """Make ready for work, and read the directory again; its version."""
        host = await only_our_errors(self._opened())
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
        if self._listener is not None:
            self._listener.close()
        for session in self._sessions.values():
            session.cancel_all()
        self._sessions.clear()
        host, self._host = self._host, None
        if host is not None:
            await host.close()

    def __ray_shutdown__(self) -> None:
        """What Ray calls when it ends the actor in peace."""
        close_on(self._loop, self.close)

    async def _listen(self) -> LocalListener | None:
        host = self._host
        configuration = host.configuration if host else await self._read()
        connections_max = configuration.settings.actor_local_connections_max
        if not connections_max:
            return None
        try:
            return await LocalListener.open(self._perform, self._forsake, connections_max)
        except OSError as error:
            _log.warning("no connections from this machine, all comes by way of Ray: %s", error)
            return None

    def _forsake(self, sessions: set[str]) -> None:
        """Nobody waits any more for what was asked for in these sessions."""
        for name in sessions:
            session = self._sessions.pop(name, None)
            if session is not None:
                session.cancel_all()

    async def _opened(self) -> TenantHost:
        """The engine with all around it, opened once however many wait for it."""
        if self._host is not None:
            return self._host
        if self._opening is None:
            self._loop = asyncio.get_running_loop()
            self._opening = self._loop.create_task(self._open())
        # One who stops waiting must not stop it for the others.
        return await asyncio.shield(self._opening)

    async def _open(self) -> TenantHost:
        try:
            configuration = await self._read()
            engine = await only_our_errors(Engine.attach(configuration.engine_config(self._name)))
            # Also that it has nothing to do is told, so that idle tenants are known to be idle.
            engine.loads.start()
            host = TenantHost(self._name, configuration, engine)
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
        # Not this one, however long it was quiet: it would go on with what nobody can ask for.
        if oldest is not session and (
            oldest.abandoned(_SESSION_IDLE_S) or len(self._sessions) > _SESSIONS_MAX
        ):
            del self._sessions[oldest_name]
            oldest.cancel_all()
        elif oldest.waiting:
            self._sessions.move_to_end(oldest_name)
        return session


def _refusal(items: Iterator[Any], error: TenancyError) -> bytes:
    """A reply that answers every call with `error`: nothing was started."""
    results = ResultPacker()
    packer = Packer((0,), 0)
    for call in items:
        packer.add((Call._make(call).number, results.pack(error)))
    return packer.message()
