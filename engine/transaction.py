"""Several statements of a tenant as one transaction, which is committed only when all is well.

Rules this module keeps:

* Nothing is committed before its results were seen to fit: until then the end of the transaction
  (Sync) is not sent, and a connection that breaks undoes it.
* After `commit` or `undo`, and after any error, no transaction is open, or the session is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenancy.data_isolation.core.errors import (
    OutcomeUnknownError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.driver_errors import CANCELLED, ServerReport, statement_error
from tenancy.data_isolation.engine.flight_plan import Plan, Planner, Seat, too_large
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.time_limit import TimeLimit
from tenancy.data_isolation.engine.wire import Section, Step


class UndoneError(Exception):
    """A transaction was undone: `error` at the operation number `index`, or at its end (None).

    `stale` says that it failed because the schema changed, so that it can be run again.
    """

    def __init__(self, error: TenancyError, index: int | None, *, stale: bool = False) -> None:
        super().__init__(error, index)
        self.error = error
        self.index = index
        self.stale = stale


class Transaction:
    """One transaction in a session. `lead` is the ticket that it is done for."""

    def __init__(
        self,
        connection: Connection,
        lead: Ticket,
        *,
        planner: Planner,
        time_left: Callable[[Ticket], float],
        timed_out: Callable[[Ticket], TenancyError],
    ) -> None:
        self._connection = connection
        self._lead = lead
        self._planner = planner
        self._time_left = time_left
        self._timed_out = timed_out
        self._open = False

    async def run(self, tickets: Sequence[Ticket], *, commit: bool = False) -> list[QueryResult]:
        """Run statements whose parameters are encoded, in one round trip. Raises `UndoneError`.

        With `commit` the transaction is committed in the same round trip: for statements whose
        results cannot be too large after they have changed something.
        """
        connection = self._connection
        plan = self._planner.together(connection, tickets, bound=self._open, sync=commit)
        self._open = not commit
        exchange = connection.start(plan.sections, bytes_max=plan.bytes_max)
        limit = TimeLimit(
            connection,
            exchange,
            plan,
            shared=False,
            time_left=lambda _: self._time_left(self._lead),
        )
        try:
            await connection.finish(exchange)
        finally:
            limit.stop()
        self._lead.result_bytes += exchange.bytes_read
        section = plan.sections[0]
        if section.error is not None:
            await self._recover(section)
            report = ServerReport.of_fields(section.error)
            if exchange.overflow is not None and report.sqlstate == CANCELLED:
                # That is how rows that do not fit are stopped, maybe some statements later.
                await self._results(plan, exchange.overflow)
            raise self._failure(plan, report)
        if not section.ended:
            self._open = False
            raise UndoneError(self._lost(plan, commit), None)
        connection.bound = plan.bound
        if plan.describes:
            await self._planner.read_anew(connection, plan)
        return await self._results(plan, exchange.overflow)

    async def commit(self) -> None:
        """Make it last. Raises `UndoneError`, or `OutcomeUnknownError` inside of one."""
        section = Section([], [])
        self._open = False
        exchange = self._connection.start([section])
        limit = self._connection.cancel_later(self._time_left(self._lead))
        try:
            await self._connection.finish(exchange)
        finally:
            limit.cancel()
        if section.error is not None:
            report = ServerReport.of_fields(section.error)
            raise UndoneError(_unknown() if report.fatal else statement_error(report), None)
        if not section.ended:
            raise UndoneError(_unknown(), None)

    async def undo(self) -> None:
        """Leave nothing of it."""
        if self._open:
            self._open = False
            await self._connection.undo()

    async def _results(self, plan: Plan, overflow: Step | None) -> list[QueryResult]:
        """The results. Raises `UndoneError`: `overflow` is the step whose rows did not fit."""
        results = []
        for index, seat in enumerate(plan.seats):
            try:
                if overflow is not None and _is_cut(seat, overflow):
                    raise too_large(seat.ticket)
                results.append(self._planner.result(seat))
            except TenancyError as error:
                await self.undo()
                raise UndoneError(error, index) from None
        return results

    async def _recover(self, section: Section) -> None:
        """After an error the server waits for the end of the transaction."""
        self._open = False
        if not section.sync and not self._connection.closed:
            await self._connection.perform([Section([], [])])

    def _failure(self, plan: Plan, report: ServerReport) -> UndoneError:
        connection = self._connection
        for seat in plan.seats:
            if seat.describing is not None:
                connection.unprepare(seat.ticket.text)
        index = next((n for n, seat in enumerate(plan.seats) if seat.is_to_blame), None)
        blamed = plan.seats[index] if index is not None else None
        # A cancellation may come so late that it hits the statement after the one it was for.
        if report.sqlstate == CANCELLED and any(seat.out_of_time for seat in plan.seats):
            return UndoneError(self._timed_out(self._lead), index)
        if report.fatal:
            return UndoneError(self._ended_by_server(plan), None)
        if report.is_stale_plan or report.is_not_prepared:
            if blamed is not None:
                connection.unprepare(blamed.ticket.text)
            return UndoneError(statement_error(report), index, stale=True)
        return UndoneError(statement_error(report), self._position(plan, blamed))

    @staticmethod
    def _position(plan: Plan, blamed: Seat | None) -> int | None:
        """The operation to blame; none when the end of the transaction failed."""
        if blamed is None or blamed.section.at >= len(blamed.section.steps):
            return None
        return plan.seats.index(blamed)

    def _ended_by_server(self, plan: Plan) -> TenancyError:
        """The server ended the session: before the commit, unless that was all that was missing."""
        section = plan.sections[0]
        if section.sync and section.at >= len(section.steps):
            return _unknown()
        return ServerUnavailableError("the PostgreSQL server ended the session; nothing was done")

    def _lost(self, plan: Plan, commit: bool) -> TenancyError:
        if commit and any(seat.ticket.writes for seat in plan.seats):
            return _unknown()
        return ServerUnavailableError("the connection broke; nothing was done")


def _is_cut(seat: Seat, overflow: Step) -> bool:
    """Whether rows of the operation were dropped."""
    steps = seat.section.steps
    return steps.index(seat.execution) >= steps.index(overflow)


def _unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError()
