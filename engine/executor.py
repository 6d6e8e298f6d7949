"""Runs tenants' operations: from the guard through a pool to a session and back.

Rules this module keeps:

* Nothing reaches PostgreSQL that the guard has not read.
* Who stops waiting leaves nothing behind: an operation that waits is forgotten, one that runs alone
  is cancelled, one that travels with others is finished and its answer dropped.
* The number of sessions per server, and of operations that wait, is bounded by the pools.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tenancy.data_isolation.core.crypto import MasterKey, role_password, session_mark
from tenancy.data_isolation.core.errors import ServerNotFoundError, TenancyError
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName, TenantNo
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import Operation, Placement, QueryResult
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.flight import Flights
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.idempotency import check_key
from tenancy.data_isolation.engine.layout import ROWS_ROLE
from tenancy.data_isolation.engine.measured_windows import MeasuredWindows
from tenancy.data_isolation.engine.outcomes import is_worth_another_look
from tenancy.data_isolation.engine.pool import ServerPool
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.ticket import Program, Ticket, Waiter
from tenancy.data_isolation.engine.tracing import Tracing
from tenancy.data_isolation.engine.type_map import TypeMap
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Databases whose types are remembered.
_TYPE_MAPS_MAX: Final = 1_024
#: Texts of the newest version of the schema that were read; then all are forgotten.
_TEXTS_MAX: Final = 4_096
#: Longest text among them.
_TEXT_CHARS_MAX: Final = 2_000
#: How long a session may be kept from other work to learn statements.
_LEARNING_S: Final = 1.0
_FOREVER: Final = float("inf")


class Executor:
    """Runs operations of tenants at their placements. Belongs to one event loop.

    Durability: a write that is answered is committed. When its answer is lost the error is
    `OutcomeUnknownError`; every other error says that nothing was done.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        guard: Guard,
        keys: BindingKeys,
        master_key: MasterKey,
        servers: Sequence[ServerConfig],
        hear: Callable[[TenantNo, Statement], None],
    ) -> None:
        """`hear` is told what tenants ask for that may move before long."""
        self._hear = hear
        #: Where operations are measured, and who traces them; None = they are not.
        self.windows: MeasuredWindows | None = None
        self.tracing: Tracing | None = None
        self.flights = Flights(
            settings=settings, keys=keys, resubmit=self._submit, crowded=self._crowded
        )
        self._settings = settings
        self._guard = guard
        self._master_key = master_key
        self._servers: Mapping[ServerName, ServerConfig] = {
            ServerName(server.name): server for server in servers
        }
        self._pools: dict[ServerName, ServerPool] = {}
        self._types: OrderedDict[tuple[ServerName, DatabaseName], TypeMap] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        # The guard's own cache serves all versions of the schema and all threads, and costs more.
        self._texts: dict[str, Statement] = {}
        self._texts_schema: VisibleSchema | None = None

    def start(
        self,
        route: Route,
        operation: Operation,
        schema: VisibleSchema,
        waiter: Waiter | None = None,
    ) -> Ticket:
        """Let an operation without an idempotency key wait for a session.

        `waiter` is told of its end; None = a future of the ticket's own. Whoever waits and stops
        waiting calls the ticket's `abandon`. Raises `StatementError`s and `OverloadedError`.
        """
        ticket = self.ticket(route, operation, schema, waiter)
        ticket.alone = not self.flights.may_travel(ticket)
        try:
            self._submit(ticket)
        except TenancyError as error:
            self.ended(ticket, error)
            raise
        return ticket

    async def execute(
        self, route: Route, operation: Operation, schema: VisibleSchema
    ) -> QueryResult:
        """Run one operation without an idempotency key.

        Raises `StatementError`s, `LimitError`s and `UnavailableError`s.
        """
        ticket = self.start(route, operation, schema)
        try:
            result: QueryResult = await ticket.future
        except asyncio.CancelledError:
            ticket.abandon()
            self.ended(ticket, None)
            raise
        except TenancyError as error:
            if not is_worth_another_look(error):
                self.ended(ticket, error)
            raise
        finally:
            route.allowance.charge(ticket.result_bytes)
        return result

    async def ask(
        self, route: Route, statement: Statement, arguments: Sequence[Any]
    ) -> QueryResult:
        """Run a statement of the runtime's own, which no guard reads, as the tenant."""
        ticket = Ticket(
            route.key,
            route.tenant.tenant_no,
            route.placement.epoch,
            limits=route.limits,
            statement=statement,
            arguments=arguments,
            believed_until=route.believed_until,
        )
        ticket.alone = True
        self._submit(ticket)
        try:
            result: QueryResult = await ticket.future
        except asyncio.CancelledError:
            ticket.abandon()
            raise
        return result

    async def learn(self, route: Route, texts: Sequence[str]) -> None:
        """Have a session there that has these texts prepared and planned; nothing runs."""

        async def program(connection: Connection, _: Ticket) -> None:
            limit = connection.cancel_later(_LEARNING_S)
            try:
                for text in texts:
                    await self.flights.learn(connection, text)
            finally:
                limit.cancel()

        await self.run(route, program, self.deadline_at(_LEARNING_S), plain=True)

    async def run(
        self, route: Route, program: Program, deadline_at: float, *, plain: bool = False
    ) -> Any:
        """Run a program that needs a session of the tenant's for several steps.

        `plain` says that all its statements are.
        """
        ticket = Ticket(
            route.key,
            route.tenant.tenant_no,
            route.placement.epoch,
            limits=route.limits,
            deadline_at=deadline_at,
            believed_until=route.believed_until,
        )
        ticket.program = program
        ticket.plain = plain
        ticket.alone = True
        if self.tracing is not None:
            ticket.traced = self.tracing.current()
        self._submit(ticket)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            ticket.abandon()
            raise
        finally:
            route.allowance.charge(ticket.result_bytes)

    def ticket(
        self,
        route: Route,
        operation: Operation,
        schema: VisibleSchema,
        waiter: Waiter | None = None,
    ) -> Ticket:
        """A ticket for an operation. Raises what the guard raises, and `ParameterError`."""
        try:
            statement = self.statement(operation.query, schema)
            if route.watched:
                self._hear(route.tenant.tenant_no, statement)
            params = operation.params
            if (
                (type(params) is list or type(params) is tuple)
                and statement.parameter_names is None
                and len(params) == statement.parameter_count
            ):
                arguments: Sequence[Any] = params
            else:
                arguments = statement.bind(params)
            if operation.idempotency_key is not None:
                check_key(operation.idempotency_key)
        except TenancyError as error:
            if not is_worth_another_look(error):
                self.turned_away(route, error)
            raise
        ticket = Ticket(
            route.key,
            route.tenant.tenant_no,
            route.placement.epoch,
            limits=route.limits,
            statement=statement,
            arguments=arguments,
            deadline_at=self.deadline_at(operation.deadline_s),
            believed_until=route.believed_until,
            waiter=waiter,
        )
        if self.windows is not None or self.tracing is not None:
            ticket.route, ticket.began_s = route, time.monotonic()
            if self.tracing is not None:
                ticket.traced = self.tracing.current()
        return ticket

    # What is measured of operations, while somebody measures

    def turned_away(self, route: Route, error: TenancyError, operations: int = 1) -> None:
        """Operations were refused before they were anything to measure."""
        if self.windows is not None:
            self.windows.turn_away(route, error, operations)

    def given_up(self, route: Route, error: TenancyError, operations: int = 1) -> None:
        """Another look has not helped. Until then such an error counts for nothing."""
        if is_worth_another_look(error):
            self.turned_away(route, error, operations)

    def landed(self, connection: Connection, tickets: Sequence[Ticket], departed_s: float) -> None:
        """A program has run these, which it began with at `departed_s`."""
        if self.windows is not None:
            self.windows.land(connection, tickets, departed_s)

    def finished(
        self,
        tickets: Sequence[Ticket],
        departed_s: float,
        outcomes: Sequence[QueryResult] | TenancyError | None,
    ) -> None:
        """Operations that happen together are at their end: their results, or one error for all.

        None = nobody waits for them any more.
        """
        if self.windows is not None:
            self.windows.finish(tickets, departed_s, outcomes)

    def ended(self, ticket: Ticket, error: TenancyError | None) -> None:
        """An operation ended; None = nobody waits. Its flight may have told of it already."""
        if self.windows is not None:
            self.windows.end(ticket, error)

    def deadline_at(self, deadline_s: float | None) -> float:
        """When (event loop's time) so many seconds are over."""
        return _FOREVER if deadline_s is None else self._loop.time() + deadline_s

    async def retire(self, placement: Placement) -> None:
        """Close the sessions that work at a placement, when it is not shared with others."""
        pool = self._pools.get(placement.server)
        if pool is not None and placement.role != ROWS_ROLE:
            await pool.retire(SessionKey.of(placement))

    def statistics(self) -> dict[ServerName, tuple[int, int]]:
        """Per server: sessions held, and operations that wait."""
        return {name: (pool.slots, pool.waiting) for name, pool in self._pools.items()}

    async def close(self) -> None:
        """Let what is at work end for a while, then close all sessions. Can be called again."""
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    def statement(self, text: str, schema: VisibleSchema) -> Statement:
        """The statement that the guard has read, or its refusal."""
        if schema is not self._texts_schema or type(text) is not str:
            return self._guard.check(text, schema=schema)
        found = self._texts.get(text)
        if found is None:
            found = self._guard.check(text, schema=schema)
            if len(text) <= _TEXT_CHARS_MAX:
                if len(self._texts) >= _TEXTS_MAX:
                    self._texts.clear()
                self._texts[text] = found
        return found

    def use(self, schema: VisibleSchema) -> None:
        """Most operations are read with this version of the schema from now on."""
        if schema is not self._texts_schema:
            self._texts_schema = schema
            self._texts.clear()
            self.flights.forget_all()
            for types in self._types.values():
                types.clear()

    def _submit(self, ticket: Ticket) -> None:
        name = ticket.key.server
        pool = self._pools.get(name)
        if pool is None:
            if name not in self._servers:
                raise ServerNotFoundError(f"no server is called {name!r} here")
            pool = self._pools[name] = ServerPool(
                settings=self._settings,
                shared=lambda key: key.role == ROWS_ROLE,
                open_session=self._open,
                fly=self._fly,
            )
        pool.submit(ticket)

    async def _fly(self, connection: Connection, tickets: list[Ticket]) -> None:
        """A flight, with what is noted of it."""
        windows, tracing = self.windows, self.tracing
        if windows is None and tracing is None:
            return await self.flights.fly(connection, tickets)
        departed_s = time.monotonic()
        before = None if windows is None else windows.depart(connection)
        try:
            await self.flights.fly(connection, tickets)
        finally:
            # The windows come last: they mark what they have noted.
            if tracing is not None:
                tracing.land(tickets, departed_s)
            if windows is not None:
                windows.land(connection, tickets, departed_s, before)
        return None

    def _crowded(self, ticket: Ticket) -> bool:
        """Whether a statement that takes long has to make room for others that do."""
        pool = self._pools.get(ticket.key.server)
        return pool is not None and pool.long.crowded(
            ticket.flying, ticket.tenant_no, ticket.departed_at, ticket.limits, self._loop.time()
        )

    async def _open(self, key: SessionKey) -> Connection:
        return await Connection.open(
            key,
            server=self._servers[key.server],
            password=role_password(self._master_key, key.server, key.role),
            mark=session_mark(
                self._master_key, key.server, key.role, key.database, int(time.time() * 1_000)
            ),
            types=self._type_map(key),
            settings=self._settings,
        )

    def _type_map(self, key: SessionKey) -> TypeMap:
        place = (key.server, key.database)
        found = self._types.get(place)
        if found is None:
            found = self._types[place] = TypeMap()
            while len(self._types) > _TYPE_MAPS_MAX:
                self._types.popitem(last=False)
        self._types.move_to_end(place)
        return found


async def caught(work: Any) -> QueryResult | TenancyError:
    """The result of an awaitable, or the error of ours that it ends with."""
    try:
        result: QueryResult = await work
    except TenancyError as error:
        return error
    return result
