"""Does what waits for a session, in one session, in as few round trips as that takes.

A flight is what travels together. Each write has a section of its own (one implicit transaction);
reads that come one after the other share one, whoever they are for.

Rules this module keeps:

* What one operation does never changes what another gets: those that were undone with a failed one,
  or cancelled in its place, are run again, since nothing was done for them.
* A statement that turns out slow does not hold up the others: it is cancelled and runs again alone.
* A write is run again only when the server said that it was undone. When the connection breaks in
  between, its outcome is not known, and that is what is said.
* A write whose result is too large is undone: it is committed only after its result was seen.
* The session is left as it was found, or closed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from tenancy.data_isolation.core.errors import (
    OutcomeUnknownError,
    PlacementChangedError,
    ServerUnavailableError,
    StatementTimeoutError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.connection import Connection, Description
from tenancy.data_isolation.engine.descriptions import Descriptions
from tenancy.data_isolation.engine.driver_errors import CANCELLED, ServerReport, statement_error
from tenancy.data_isolation.engine.flight_plan import Plan, Planner, Seat, too_large
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.time_limit import PATIENCE_S, TimeLimit
from tenancy.data_isolation.engine.transaction import Transaction, UndoneError
from tenancy.data_isolation.engine.wire import Exchange

#: A statement that takes less may travel with others.
_QUICK_S: Final = 0.01
#: The same goes for one whose result is small.
_SMALL_BYTES: Final = 64 * 1024
#: How often an operation is tried again after nothing was done for it.
_ATTEMPTS_MAX: Final = 3


class _Landing:
    """An exchange that is over, with what its operations have to know of each other."""

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange,
        plan: Plan,
        *,
        shared: bool,
        cancelled: bool,
    ) -> None:
        self.connection = connection
        self.plan = plan
        #: Whether operations of different tenants travel together there, if only this time one.
        self.shared = shared
        #: Whether a cancellation was sent, which may have hit another statement than it was for.
        self.has_cancelled = cancelled or exchange.overflow is not None
        #: Whether that was because one took longer than others can be made to wait.
        self.hurried = shared and cancelled
        self._cut: frozenset[int] = frozenset()
        if exchange.overflow is not None:
            steps = [step for section in plan.sections for step in section.steps]
            # Steps are compared as objects.
            self._cut = frozenset(map(id, steps[steps.index(exchange.overflow) :]))

    def is_cut(self, seat: Seat) -> bool:
        """Whether rows of this operation were dropped, because all together did not fit."""
        return id(seat.execution) in self._cut


class Flights:
    """Runs operations in sessions. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        keys: BindingKeys,
        resubmit: Callable[[Ticket], None],
        crowded: Callable[[Ticket], bool],
    ) -> None:
        """`resubmit` lets an operation wait for a session again; it may raise an error of ours.

        `crowded` says whether one that takes long has to make room for others that do.
        """
        self._settings = settings
        self._resubmit = resubmit
        self._crowded = crowded
        self._long_s = settings.long_statement_ms / 1_000
        self._planner = Planner(keys)
        self._descriptions = Descriptions(settings.statement_descriptions_max)
        #: Texts that are known to be quick, and how long the last one took (seconds).
        self._quick: OrderedDict[str, float] = OrderedDict()
        #: Texts that travel alone for a tenant, as the last one failed, took long or gave much.
        self._let_alone: OrderedDict[tuple[TenantNo, str], None] = OrderedDict()
        self._loop = asyncio.get_running_loop()

    def may_travel(self, ticket: Ticket) -> bool:
        """Whether an operation can travel with those of others: it is known to be quick."""
        statement = ticket.statement
        return (
            statement is not None
            and statement.plain
            and not _must_be_seen(ticket)
            and statement.text in self._quick
            and not (self._let_alone and (ticket.tenant_no, statement.text) in self._let_alone)
        )

    async def fly(self, connection: Connection, tickets: list[Ticket]) -> None:
        """Do what the tickets ask for. Each gets its answer, or waits for a session again."""
        lead = tickets[0]
        if len(tickets) == 1:
            lead.flying = connection
        try:
            if not lead.plain and connection.has_served_others(lead.tenant_no):
                # It could look for what another tenant left, or undo its own binding so that the
                # one before it is in force again. Statements that the guard let through cannot,
                # but the boundary is not to hang on the guard.
                await connection.discard()
            for ticket in tickets:
                connection.serve(ticket.tenant_no)
            if lead.program is not None:
                await self._run_program(connection, lead)
            else:
                await self.run(connection, tickets, shared=len(tickets) > 1)
            if connection.dirty and not connection.closed:
                await connection.discard()
        except BaseException:
            connection.abort()
            for ticket in tickets:
                ticket.refuse(_unknown() if ticket.writes else _broken())
            raise
        finally:
            lead.flying = None

    async def run(self, connection: Connection, tickets: Sequence[Ticket], *, shared: bool) -> None:
        """Run statements, each on its own, those of one tenant in their order."""
        bound = connection.bound_tenant
        waiting = sorted(tickets, key=lambda item: (item.tenant_no != bound, item.tenant_no))
        while waiting:
            if connection.closed:
                for ticket in waiting:
                    self._again(ticket, _broken())
                return
            ready = await self._prepare(connection, waiting)
            waiting = []
            for group in _groups(ready):
                if _must_be_seen(group[0]):
                    waiting += await self._run_seen(connection, group[0])
                else:
                    waiting += await self._run_apart(connection, group, shared=shared)

    def transaction(self, connection: Connection, lead: Ticket) -> Transaction:
        """A transaction for what `lead` asks for."""
        return Transaction(
            connection,
            lead,
            planner=self._planner,
            time_left=self.time_left,
            timed_out=self.timed_out,
        )

    async def prepare(self, connection: Connection, ticket: Ticket) -> None:
        """Make a ticket's parameters ready. Raises the statement's error, or `ParameterError`."""
        description = self._descriptions.of(connection.key).get(ticket.text)
        if description is None:
            description = await self._describe(connection, ticket)
        ticket.encode(description)

    async def learn(self, connection: Connection, text: str) -> None:
        """Have a text prepared and planned in a session."""
        known = self._descriptions.of(connection.key).get(text)
        if known is None or connection.prepared(text) is None:
            known = await connection.describe(text)
            self._descriptions.put(connection.key, text, known)
        await connection.plan(text, len(known.encoders))

    def forget(self, connection: Connection, ticket: Ticket) -> None:
        """What was known of the ticket's statement is out of date."""
        connection.unprepare(ticket.text)
        self._descriptions.drop(connection.key, ticket.text)

    def forget_all(self) -> None:
        """What was known of statements is out of date: the schema has changed."""
        self._descriptions.clear()

    def time_left(self, ticket: Ticket) -> float:
        """Seconds that a statement of the ticket may run from now on."""
        until = ticket.deadline_at - self._loop.time()
        return max(0.001, min(ticket.limits.statement_timeout_ms / 1_000, until))

    def timed_out(self, ticket: Ticket) -> StatementTimeoutError:
        """The error of a statement whose time was over."""
        limit_ms = ticket.limits.statement_timeout_ms
        return StatementTimeoutError(
            f"the statement ran longer than its limit ({limit_ms} ms, or the caller's deadline, or "
            "what is left of its transaction's time); "
            "it was cancelled and nothing was done",
            CANCELLED,
        )

    async def _run_program(self, connection: Connection, ticket: Ticket) -> None:
        if ticket.program is None or ticket.abandoned:
            return
        try:
            ticket.answer(await ticket.program(connection, ticket))
        except TenancyError as error:
            ticket.refuse(error)

    async def _prepare(self, connection: Connection, waiting: list[Ticket]) -> list[Ticket]:
        """Those whose statement is known and whose parameters fit; the others get their error."""
        ready = []
        known = self._descriptions.of(connection.key)
        for ticket in waiting:
            if ticket.abandoned:
                continue
            try:
                description = known.get(ticket.text)
                if description is None:
                    description = await self._describe(connection, ticket)
                ticket.encode(description)
            except ServerUnavailableError as error:
                self._again(ticket, error)
            except TenancyError as error:
                ticket.refuse(error)
            else:
                # Who left meanwhile was cancelled when there was nothing to cancel.
                if not ticket.abandoned:
                    ready.append(ticket)
        return ready

    async def _describe(self, connection: Connection, ticket: Ticket) -> Description:
        """Learn what a statement takes and gives. It may wait for a lock, but not for long."""
        limit = connection.cancel_later(self.time_left(ticket))
        try:
            description = await connection.describe(ticket.text)
        finally:
            limit.cancel()
        self._descriptions.put(connection.key, ticket.text, description)
        return description

    # Statements whose result can be thrown away

    async def _run_apart(
        self, connection: Connection, tickets: list[Ticket], *, shared: bool
    ) -> list[Ticket]:
        """One exchange; who has to be run again in this session."""
        if connection.closed:
            return tickets
        ordered = not shared and any(ticket.writes for ticket in tickets)
        several = len(tickets) > 1
        plan = self._planner.apart(
            connection,
            tickets,
            ordered=ordered,
            slow=several and not shared,
            paces=self._quick,
        )
        started = self._loop.time()
        # A batch keeps its order, so nothing in it may be cancelled that would have to run again.
        bytes_max = plan.bytes_max
        exchange = connection.start(
            plan.sections, bytes_max=bytes_max, cancel_excess=shared or not several
        )
        # Once: who was sent back to wait for its turn has waited for it.
        yields = tickets[0].flying is connection and not tickets[0].attempts
        limit = TimeLimit(
            connection,
            exchange,
            plan,
            # Those that it should have travelled with may have dropped out.
            shared=shared and (several or tickets[0].flying is None),
            time_left=self.time_left,
            long_s=self._long_s if yields else None,
            crowded=self._crowded,
        )
        try:
            await connection.finish(exchange)
        finally:
            limit.stop()
        if not exchange.lost and all(section.error is None for section in plan.sections):
            connection.bound = plan.bound
        if plan.describes:
            await self._read_anew(connection, plan)
        self._weigh(plan, bytes_max)
        landing = _Landing(connection, exchange, plan, shared=shared, cancelled=limit.cancelled)
        again = [seat.ticket for seat in plan.seats if self._settle(landing, seat)]
        if not again:
            took_s = self._loop.time() - started
            if not several:
                self._learn_pace(
                    tickets[0], took_s, exchange.bytes_read, plan.sections[0].error is None
                )
            elif exchange.bytes_read < _SMALL_BYTES and not limit.cancelled:
                self._learn_paces(plan, took_s, shared=shared)
        return again

    def _learn_pace(self, ticket: Ticket, took_s: float, size: int, done: bool) -> None:
        """What a flight of one tells of the next statement with this text."""
        if took_s < _QUICK_S and size < _SMALL_BYTES:
            self._learn_quick(ticket.text, took_s)
            if self._let_alone and done:
                self._let_alone.pop((ticket.tenant_no, ticket.text), None)
        elif took_s >= PATIENCE_S and not ticket.alone:
            self._leave_alone(ticket)

    def _learn_paces(self, plan: Plan, took_s: float, *, shared: bool) -> None:
        """What a flight of several tells of texts, if all of it was done.

        A batch in which all together took no longer than a quick one is of quick ones. How long one
        took is told by a flight in which all are alike.
        """
        quick = took_s < _QUICK_S and not shared
        texts = {seat.ticket.text for seat in plan.seats}
        if not (quick or len(texts) == 1) or not all(_is_done(seat) for seat in plan.seats):
            return
        for text in texts:
            if quick or text in self._quick:
                self._learn_quick(text, took_s / len(plan.seats) if len(texts) == 1 else took_s)

    def _learn_quick(self, text: str, took_s: float) -> None:
        self._quick[text] = took_s
        self._quick.move_to_end(text)
        while len(self._quick) > self._settings.statement_descriptions_max:
            self._quick.popitem(last=False)

    def _weigh(self, plan: Plan, bytes_max: int) -> None:
        """Each operation answers for its own rows, whoever it travelled with."""
        for seat in plan.seats:
            size = seat.execution.size
            if size:
                # What is beyond the budget was dropped as it came.
                seat.ticket.result_bytes += min(size, bytes_max)
                if size >= _SMALL_BYTES:
                    self._leave_alone(seat.ticket)

    async def _read_anew(self, connection: Connection, plan: Plan) -> None:
        try:
            await self._planner.read_anew(connection, plan)
        except TenancyError as error:
            for seat in plan.seats:
                if seat.execution.decoders is None:
                    seat.execution.problem = error

    def _settle(self, landing: _Landing, seat: Seat) -> bool:
        """Answer an operation; True when it has to be run again in this session."""
        ticket, section = seat.ticket, seat.section
        if section.error is not None and seat.describing is not None:
            landing.connection.unprepare(ticket.text)
        whole = section.ended and section.error is None
        if not ticket.writes and landing.is_cut(seat):
            self._cut(landing, ticket)
        elif seat.execution.done and (whole or not ticket.writes):
            try:
                ticket.answer(self._planner.result(seat))
            except TenancyError as error:
                ticket.refuse(error)
        elif section.error is not None:
            return self._failed(landing, seat, ServerReport.of_fields(section.error))
        else:
            self._lost(seat, landing.plan)
        return False

    def _cut(self, landing: _Landing, ticket: Ticket) -> None:
        """Rows were dropped: alone they may fit, when they came together with those of others."""
        error = too_large(ticket)
        if landing.shared and len(landing.plan.seats) > 1:
            self._again(ticket, error, alone=True)
        else:
            ticket.refuse(error)

    def _failed(self, landing: _Landing, seat: Seat, report: ServerReport) -> bool:
        """The section failed; True when this operation has to be run again in this session."""
        ticket = seat.ticket
        error = statement_error(report)
        if report.fatal:
            if ticket.writes and seat.execution.done:
                ticket.refuse(_unknown())
            else:
                self._again(ticket, error)
        elif (
            isinstance(error, PlacementChangedError)
            and landing.plan.stopped_for(seat.section) == ticket.tenant_no
        ):
            # What else the tenant wants there works under the same binding and fares no better.
            ticket.refuse(error)
        elif not seat.is_to_blame:
            return self._counts(ticket, error)
        elif seat.out_of_time:
            ticket.refuse(self.timed_out(ticket))
        elif seat.too_slow or (report.sqlstate == CANCELLED and landing.hurried):
            # The server tells of several at a time, so another one may have been taken for it.
            self._leave_alone(ticket)
            self._again(ticket, error, alone=True)
        elif report.is_stale_plan or report.is_not_prepared:
            self.forget(landing.connection, ticket)
            return self._counts(ticket, error)
        elif report.sqlstate == CANCELLED and landing.has_cancelled:
            return self._counts(ticket, error)
        else:
            if not ticket.writes:
                # What fails undoes the reads that travel with it.
                self._leave_alone(ticket)
            ticket.refuse(error)
        return False

    def _lost(self, seat: Seat, plan: Plan) -> None:
        """The connection broke before the server had answered this operation."""
        ticket = seat.ticket
        if seat.out_of_time and not ticket.writes:
            ticket.refuse(self.timed_out(ticket))
        elif ticket.writes and not _ended_before(plan, seat):
            ticket.refuse(_unknown())
        else:
            self._again(ticket, _broken(), alone=seat.too_slow)

    # Writes that return rows

    async def _run_seen(self, connection: Connection, ticket: Ticket) -> list[Ticket]:
        """Run a write and commit it when its result was seen to fit."""
        if connection.closed:
            return [ticket]
        transaction = self.transaction(connection, ticket)
        try:
            results = await transaction.run([ticket])
            await transaction.commit()
        except UndoneError as undone:
            if undone.stale:
                self.forget(connection, ticket)
                return [ticket] if self._counts(ticket, undone.error) else []
            if isinstance(undone.error, ServerUnavailableError):
                self._again(ticket, undone.error)
            else:
                ticket.refuse(undone.error)
        else:
            ticket.answer(results[0])
        return []

    # Once more

    def _counts(self, ticket: Ticket, error: TenancyError) -> bool:
        """Whether an operation for which nothing was done may be tried again."""
        ticket.attempts += 1
        if ticket.attempts <= _ATTEMPTS_MAX:
            return not ticket.abandoned
        ticket.refuse(error)
        return False

    def _again(self, ticket: Ticket, error: TenancyError, *, alone: bool = False) -> None:
        """Let an operation for which nothing was done wait for another session."""
        if not self._counts(ticket, error):
            return
        ticket.alone = ticket.alone or alone
        try:
            self._resubmit(ticket)
        except TenancyError as refusal:
            ticket.refuse(refusal)

    def _leave_alone(self, ticket: Ticket) -> None:
        """The next one of the tenant with this text does not travel with others."""
        let_alone, item = self._let_alone, (ticket.tenant_no, ticket.text)
        let_alone[item] = None
        let_alone.move_to_end(item)
        while len(let_alone) > self._settings.statement_descriptions_max:
            let_alone.popitem(last=False)


def _must_be_seen(ticket: Ticket) -> bool:
    """Whether its result can be too large after it has changed something."""
    return ticket.writes and ticket.returns_rows


def _is_done(seat: Seat) -> bool:
    """Whether it ran to its end, and somebody waited for it: what was cancelled tells nothing."""
    return seat.execution.done and seat.section.error is None and not seat.ticket.left


def _groups(tickets: Sequence[Ticket]) -> list[list[Ticket]]:
    """Tickets in their order: writes whose result must be seen each alone, the others together."""
    groups: list[list[Ticket]] = []
    for ticket in tickets:
        if groups and not _must_be_seen(ticket) and not _must_be_seen(groups[-1][-1]):
            groups[-1].append(ticket)
        else:
            groups.append([ticket])
    return groups


def _ended_before(plan: Plan, seat: Seat) -> bool:
    """Whether the server ended the session at an earlier section, so that it never saw this one."""
    for section in plan.sections:
        if section is seat.section:
            return False
        if section.error is not None and ServerReport.of_fields(section.error).fatal:
            return True
    return False


def _broken() -> ServerUnavailableError:
    return ServerUnavailableError("the connection to the PostgreSQL server broke; try again later")


def _unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError()
