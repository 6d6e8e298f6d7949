"""Runs tenants' operations: from the guard through a pool to a session and back.

Rules this module keeps:

* Nothing reaches PostgreSQL that the guard has not read.
* Who stops waiting leaves nothing behind: an operation that waits is forgotten, one that runs alone
  is cancelled, one that travels with others is finished and its answer dropped.
* The number of sessions per server, and of operations that wait, is bounded by the pools.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from tenancy.data_isolation.core.crypto import MasterKey, role_password
from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    ParameterError,
    RequestTooLargeError,
    ServerNotFoundError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import DatabaseName, ServerName
from tenancy.data_isolation.core.settings import ServerConfig, Settings
from tenancy.data_isolation.core.types import Operation, Placement, QueryResult, Tenant
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.flight import Flights
from tenancy.data_isolation.engine.guard import Guard
from tenancy.data_isolation.engine.idempotency import IdempotentWrite, check_key, statement_ticket
from tenancy.data_isolation.engine.layout import ROWS_ROLE
from tenancy.data_isolation.engine.pool import ServerPool
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.transaction import UndoneError
from tenancy.data_isolation.engine.type_map import TypeMap
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Databases whose types are remembered.
_TYPE_MAPS_MAX: Final = 1_024
#: Times that a transaction is run again because the schema changed under it.
_TRANSACTION_ATTEMPTS_MAX: Final = 3
#: Idempotent writes between two looks for answers that are old.
_WRITES_PER_CLEARANCE: Final = 100


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
    ) -> None:
        self._settings = settings
        self._guard = guard
        self._master_key = master_key
        self._servers: Mapping[ServerName, ServerConfig] = {
            ServerName(server.name): server for server in servers
        }
        self._flights = Flights(settings=settings, keys=keys, resubmit=self._submit)
        self._pools: dict[ServerName, ServerPool] = {}
        self._types: OrderedDict[tuple[ServerName, DatabaseName], TypeMap] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._idempotent_writes = 0
        self._closed = False

    async def execute(
        self, tenant: Tenant, placement: Placement, operation: Operation, schema: VisibleSchema
    ) -> QueryResult:
        """Run one operation. Raises `StatementError`s, `LimitError`s and `UnavailableError`s."""
        statement = self._guard.check(operation.query, schema=schema)
        arguments = statement.bind(operation.params)
        ticket = self._ticket(tenant, placement, statement, arguments, operation.deadline_s)
        if operation.idempotency_key is not None:
            check_key(operation.idempotency_key)
            results = await self._in_transaction(
                tenant, placement, [ticket], operation.idempotency_key, operation.deadline_s
            )
            found: QueryResult = results[0]
            return found
        ticket.alone = not self._flights.may_travel(ticket)
        result: QueryResult = await self._wait(ticket)
        return result

    async def execute_apart(
        self,
        tenant: Tenant,
        placement: Placement,
        operations: Sequence[Operation],
        schema: VisibleSchema,
    ) -> list[QueryResult | TenancyError]:
        """Run operations one after the other, each on its own; an error stands in its place."""
        self._check_length(operations)
        outcomes: list[Any] = [None] * len(operations)
        tickets: list[tuple[int, Ticket]] = []
        for index, operation in enumerate(operations):
            if operation.idempotency_key is not None:
                await self._apart(tenant, placement, tickets, outcomes)
                tickets = []
                outcomes[index] = await _caught(self.execute(tenant, placement, operation, schema))
                continue
            try:
                statement = self._guard.check(operation.query, schema=schema)
                arguments = statement.bind(operation.params)
            except TenancyError as error:
                outcomes[index] = error
            else:
                ticket = self._ticket(tenant, placement, statement, arguments, operation.deadline_s)
                tickets.append((index, ticket))
        await self._apart(tenant, placement, tickets, outcomes)
        return outcomes

    async def execute_together(
        self,
        tenant: Tenant,
        placement: Placement,
        operations: Sequence[Operation],
        schema: VisibleSchema,
    ) -> list[QueryResult]:
        """Run operations as one transaction, all or nothing.

        The error of a failed one begins with its number. A key for idempotency stands in the first
        operation and covers all of them.
        """
        self._check_length(operations)
        if not operations:
            return []
        key = operations[0].idempotency_key
        if any(item.idempotency_key not in (None, key) for item in operations):
            raise InvalidInputError(
                "the operations of an atomic batch happen together: give one idempotency key, "
                "in the first of them"
            )
        if key is not None:
            check_key(key)
        deadlines = [item.deadline_s for item in operations if item.deadline_s is not None]
        deadline_s = min(deadlines, default=None)
        tickets = []
        for index, operation in enumerate(operations):
            try:
                statement = self._guard.check(operation.query, schema=schema)
                arguments = statement.bind(operation.params)
            except TenancyError as error:
                raise _numbered(error, index) from None
            tickets.append(self._ticket(tenant, placement, statement, arguments, deadline_s))
        results: list[QueryResult] = await self._in_transaction(
            tenant, placement, tickets, key, deadline_s, numbered=True
        )
        return results

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
        self._closed = True
        await asyncio.gather(*(pool.close() for pool in self._pools.values()))

    # Waiting

    async def _wait(self, ticket: Ticket) -> Any:
        self._submit(ticket)
        try:
            return await ticket.future
        except asyncio.CancelledError:
            ticket.abandon()
            raise

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
                fly=self._flights.fly,
            )
        pool.submit(ticket)

    async def _open(self, key: SessionKey) -> Connection:
        server = self._servers[key.server]
        return await Connection.open(
            key,
            server=server,
            password=role_password(self._master_key, key.server, key.role),
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

    def _ticket(
        self,
        tenant: Tenant,
        placement: Placement,
        statement: Statement | None,
        arguments: Sequence[Any],
        deadline_s: float | None,
        program: Callable[[Connection, Ticket], Awaitable[Any]] | None = None,
    ) -> Ticket:
        if len(arguments) > self._settings.statement_params_max:
            raise ParameterError(
                f"a statement takes {self._settings.statement_params_max} parameters at most"
            )
        until = float("inf") if deadline_s is None else self._loop.time() + deadline_s
        ticket = Ticket(
            SessionKey.of(placement),
            tenant.tenant_no,
            placement.epoch,
            statement=statement,
            arguments=arguments,
            program=program,
            deadline_at=until,
        )
        ticket.alone = True
        return ticket

    # Batches

    def _check_length(self, operations: Sequence[Operation]) -> None:
        limit = self._settings.batch_operations_max
        if len(operations) > limit:
            raise RequestTooLargeError(f"a batch has {limit} operations at most")

    async def _apart(
        self,
        tenant: Tenant,
        placement: Placement,
        tickets: list[tuple[int, Ticket]],
        outcomes: list[Any],
    ) -> None:
        """Run tickets in one session, in their order, and note what came of each."""
        if not tickets:
            return
        several = [ticket for _, ticket in tickets]

        async def program(connection: Connection, lead: Ticket) -> None:
            await self._flights.run(connection, several, shared=False)

        lead = self._ticket(tenant, placement, None, (), None, program)
        lead.deadline_at = lead.give_up_at = max(ticket.deadline_at for ticket in several)
        try:
            await self._wait(lead)
        except TenancyError as error:
            for ticket in several:
                ticket.refuse(error)
        except asyncio.CancelledError:
            for ticket in several:
                ticket.abandon()
            raise
        for index, ticket in tickets:
            outcomes[index] = await _caught(ticket.future)

    async def _in_transaction(
        self,
        tenant: Tenant,
        placement: Placement,
        tickets: list[Ticket],
        key: str | None,
        deadline_s: float | None,
        *,
        numbered: bool = False,
    ) -> Any:
        async def program(connection: Connection, lead: Ticket) -> list[QueryResult]:
            for _ in range(_TRANSACTION_ATTEMPTS_MAX):
                try:
                    return await self._transact(connection, lead, tickets, key, numbered)
                except UndoneError as undone:
                    if undone.stale and not connection.closed:
                        for ticket in tickets:
                            self._flights.forget(connection, ticket)
                        continue
                    if undone.index is None or not numbered:
                        raise undone.error from None
                    raise _numbered(undone.error, undone.index) from None
            raise TenancyError("the schema changes again and again; try again later")

        return await self._wait(self._ticket(tenant, placement, None, (), deadline_s, program))

    async def _transact(
        self,
        connection: Connection,
        lead: Ticket,
        tickets: list[Ticket],
        key: str | None,
        numbered: bool,
    ) -> list[QueryResult]:
        flights = self._flights
        write = None
        if key is not None:
            write = IdempotentWrite(lead, key, tickets, self._settings.idempotency_retention_s)
        for ticket in write.tickets if write else tickets:
            try:
                await flights.prepare(connection, ticket)
            except TenancyError as error:
                if not numbered or ticket not in tickets:
                    raise
                raise _numbered(error, tickets.index(ticket)) from None
        transaction = flights.transaction(connection, lead)
        if write is None:
            # A result that is too large must be seen before anything is committed.
            at_once = not any(ticket.writes for ticket in tickets) or not any(
                ticket.statement is not None and ticket.statement.returns_rows for ticket in tickets
            )
            results = await transaction.run(tickets, commit=at_once)
            if not at_once:
                await transaction.commit()
            return results
        try:
            results = await write.run(transaction)
        finally:
            await transaction.undo()
        await self._clear_old_keys(connection, lead)
        return results

    async def _clear_old_keys(self, connection: Connection, lead: Ticket) -> None:
        """Once in a while, forget answers that are old."""
        self._idempotent_writes += 1
        if self._idempotent_writes % _WRITES_PER_CLEARANCE == 0:
            keep_s = self._settings.idempotency_retention_s
            await self._flights.run(
                connection, [statement_ticket(lead, "forget_old_keys", keep_s)], shared=False
            )


async def _caught(work: Awaitable[QueryResult]) -> QueryResult | TenancyError:
    try:
        return await work
    except TenancyError as error:
        return error


def _numbered(error: TenancyError, index: int) -> TenancyError:
    """The error of an operation in a batch, with its number."""
    return type(error)(f"operation {index}: {error.detail}", error.sqlstate, error.retry_after_s)
