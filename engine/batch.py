"""Several operations of a tenant at once, and operations with an idempotency key.

Rules this module keeps:

* A batch runs in one session, in its order.
* Apart: each operation on its own, with its own result or error. Together: one transaction, which
  is committed when every result was seen to fit, or undone.
* What the results of a batch have together is bounded: what would go beyond is refused as a result
  that is too large by itself.
* A transaction that fails because the schema changed under it is run again: nothing was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from tenancy.data_isolation.core.errors import (
    InvalidInputError,
    RequestTooLargeError,
    TenancyError,
)
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import Operation, QueryResult
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.executor import Executor, caught
from tenancy.data_isolation.engine.idempotency import IdempotentWrite, statement_ticket
from tenancy.data_isolation.engine.result_budget import ResultBudget
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.transaction import UndoneError
from tenancy.data_isolation.engine.visible_schema import VisibleSchema

#: Times that a transaction is run again because the schema changed under it.
_ATTEMPTS_MAX: Final = 3
#: Idempotent writes between two looks for answers that are old.
_WRITES_PER_CLEARANCE: Final = 100


class Batches:
    """Runs batches over an executor. Belongs to one event loop."""

    def __init__(self, *, settings: Settings, executor: Executor) -> None:
        self._settings = settings
        self._executor = executor
        self._flights = executor.flights
        self._writes = 0

    async def once(self, route: Route, operation: Operation, schema: VisibleSchema) -> QueryResult:
        """Run an operation with an idempotency key. Raises `IdempotencyConflictError`."""
        return await self._once(route, self._executor.ticket(route, operation, schema), operation)

    async def apart(
        self, route: Route, operations: Sequence[Operation], schema: VisibleSchema
    ) -> list[QueryResult | TenancyError]:
        """Run operations one after the other, each on its own; an error stands in its place."""
        self.check_length(operations)
        outcomes: list[Any] = [None] * len(operations)
        tickets: list[tuple[int, Ticket]] = []
        budget = ResultBudget(route.limits.batch_result_bytes_max)
        for index, operation in enumerate(operations):
            if operation.idempotency_key is not None:
                await self._run_apart(route, tickets, outcomes)
                tickets = []
                once = self._once_of_batch(route, operation, schema, budget)
                outcome = outcomes[index] = await caught(once)
                if isinstance(outcome, TenancyError):
                    self._executor.given_up(route, outcome)
                continue
            try:
                tickets.append((index, self._ticket(route, operation, schema, budget)))
            except TenancyError as error:
                self._executor.given_up(route, error)
                outcomes[index] = error
        await self._run_apart(route, tickets, outcomes)
        return outcomes

    async def together(
        self, route: Route, operations: Sequence[Operation], schema: VisibleSchema
    ) -> list[QueryResult]:
        """Run operations as one transaction, all or nothing.

        The error of a failed one begins with its number. An idempotency key stands in the first
        operation and covers all of them.
        """
        self.check_length(operations)
        if not operations:
            return []
        key = operations[0].idempotency_key
        if any(item.idempotency_key not in (None, key) for item in operations):
            raise InvalidInputError(
                "the operations of an atomic batch happen together: give one idempotency key, "
                "in the first of them"
            )
        tickets = []
        budget = ResultBudget(route.limits.batch_result_bytes_max)
        for index, operation in enumerate(operations):
            try:
                tickets.append(self._ticket(route, operation, schema, budget))
            except TenancyError as error:
                raise _numbered(error, index) from None
        deadline_at = min(ticket.deadline_at for ticket in tickets)
        return await self._transact(route, tickets, key, deadline_at, numbered=True)

    def check_length(self, operations: Sequence[Operation]) -> None:
        """`RequestTooLargeError` when a batch has more operations than one may have."""
        limit = self._settings.batch_operations_max
        if len(operations) > limit:
            raise RequestTooLargeError(f"a batch has {limit} operations at most")

    def _ticket(
        self, route: Route, operation: Operation, schema: VisibleSchema, budget: ResultBudget
    ) -> Ticket:
        ticket = self._executor.ticket(route, operation, schema)
        ticket.budget = budget
        ticket.alone = True
        return ticket

    async def _once_of_batch(
        self, route: Route, operation: Operation, schema: VisibleSchema, budget: ResultBudget
    ) -> QueryResult:
        return await self._once(route, self._ticket(route, operation, schema, budget), operation)

    async def _once(self, route: Route, ticket: Ticket, operation: Operation) -> QueryResult:
        results = await self._transact(
            route, [ticket], operation.idempotency_key, ticket.deadline_at, numbered=False
        )
        return results[0]

    async def _run_apart(
        self, route: Route, tickets: list[tuple[int, Ticket]], outcomes: list[Any]
    ) -> None:
        """Run tickets in one session, in their order, and note what came of each."""
        if not tickets:
            return
        several = [ticket for _, ticket in tickets]

        async def program(connection: Connection, lead: Ticket) -> None:
            departed_s = monotonic()
            await self._flights.run(connection, several, shared=False)
            lead.result_bytes += sum(ticket.result_bytes for ticket in several)
            self._executor.landed(connection, several, departed_s)

        try:
            latest = max(ticket.deadline_at for ticket in several)
            plain = all(ticket.plain for ticket in several)
            await self._executor.run(route, program, latest, plain=plain)
        except TenancyError as error:
            for ticket in several:
                ticket.refuse(error)
        except asyncio.CancelledError:
            for ticket in several:
                ticket.abandon()
                self._executor.ended(ticket, None)
            raise
        for index, ticket in tickets:
            outcome = outcomes[index] = await caught(ticket.future)
            if isinstance(outcome, TenancyError):
                self._executor.ended(ticket, outcome)

    async def _transact(
        self,
        route: Route,
        tickets: list[Ticket],
        key: str | None,
        deadline_at: float,
        *,
        numbered: bool,
    ) -> list[QueryResult]:
        departed_s = monotonic()

        async def program(connection: Connection, lead: Ticket) -> list[QueryResult]:
            nonlocal departed_s
            departed_s = monotonic()
            most_s = lead.limits.transaction_timeout_ms / 1_000
            lead.deadline_at = min(lead.deadline_at, self._executor.deadline_at(most_s))
            for _ in range(_ATTEMPTS_MAX):
                try:
                    results = await self._attempt(connection, lead, tickets, key, numbered)
                except UndoneError as undone:
                    if undone.stale and not connection.closed:
                        for ticket in tickets:
                            self._flights.forget(connection, ticket)
                        continue
                    if undone.index is None or not numbered:
                        raise undone.error from None
                    raise _numbered(undone.error, undone.index) from None
                for ticket in tickets:
                    ticket.result_bytes = lead.result_bytes // len(tickets)
                return results
            raise TenancyError("the schema changes again and again; try again later")

        plain = all(ticket.plain for ticket in tickets)
        outcomes: list[QueryResult] | TenancyError | None = None
        try:
            results: list[QueryResult] = await self._executor.run(
                route, program, deadline_at, plain=plain
            )
            outcomes = results
        except TenancyError as error:
            outcomes = error
            raise
        finally:
            self._executor.finished(tickets, departed_s, outcomes)
        return results

    async def _attempt(
        self,
        connection: Connection,
        lead: Ticket,
        tickets: list[Ticket],
        key: str | None,
        numbered: bool,
    ) -> list[QueryResult]:
        """One attempt at a transaction. Raises `UndoneError`."""
        for index, ticket in enumerate(tickets):
            try:
                await self._flights.prepare(connection, ticket)
            except TenancyError as error:
                raise _numbered(error, index) if numbered else error from None
        if key is not None:
            return await self._attempt_once(connection, lead, tickets, key)
        transaction = self._flights.transaction(connection, lead)
        # A result that is too large must be seen before anything is committed.
        at_once = not any(ticket.writes for ticket in tickets) or not any(
            ticket.returns_rows for ticket in tickets
        )
        results = await transaction.run(tickets, commit=at_once)
        if not at_once:
            await transaction.commit()
        return results

    async def _attempt_once(
        self, connection: Connection, lead: Ticket, tickets: list[Ticket], key: str
    ) -> list[QueryResult]:
        keep_s = self._settings.idempotency_retention_s
        write = IdempotentWrite(lead, key, tickets, keep_s)
        for ticket in write.own_tickets:
            await self._flights.prepare(connection, ticket)
        transaction = self._flights.transaction(connection, lead)
        try:
            results = await write.run(transaction)
        finally:
            await transaction.undo()
        self._writes += 1
        if self._writes % _WRITES_PER_CLEARANCE == 0:
            clearance = statement_ticket(lead, "forget_old_keys", keep_s)
            await self._flights.run(connection, [clearance], shared=False)
        return results


def _numbered(error: TenancyError, index: int) -> TenancyError:
    """The error of an operation in a batch, with its number."""
    return type(error)(f"operation {index}: {error.detail}", error.sqlstate, error.retry_after_s)
