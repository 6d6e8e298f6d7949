"""Which operation sits where in a flight: sections, steps, and the messages that make them up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tenancy.data_isolation.core.errors import ResultTooLargeError
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.connection import Binding, Connection
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.wire import Exchange, Section, Step

#: The server is to send its answers after so many operations, each time waking this process up, or
#: after as many as may take so long: so that it is seen how far it is before it seems to hang
#: (`time_limit.PATIENCE_S`).
_FLUSHED_SEATS: Final = 16
_FLUSHED_S: Final = 0.04
#: What an operation is taken for of which nothing is known.
_UNKNOWN_PACE_S: Final = 0.01
#: Far more than the rows have that the runtime's own steps give.
_OWN_ROWS_BYTES: Final = 1_024
_FENCE: Final = (wire.parse(b"", "select tenancy.tenant()"), wire.bind(b"", ()), wire.execute())


class Seat:
    """An operation in a flight: its section, and its steps in it."""

    #: It was cancelled because its own time was over, or because it held up others.
    out_of_time: bool = False
    too_slow: bool = False

    def __init__(
        self,
        ticket: Ticket,
        section: Section,
        first_step: int,
        execution: Step,
        describing: Step | None,
    ) -> None:
        self.ticket = ticket
        self.section = section
        self.first_step = first_step
        self.execution = execution
        self.describing = describing

    @property
    def end_step(self) -> int:
        """The number of the first step that is not its own."""
        return self.first_step + (1 if self.describing is None else 2)

    @property
    def is_to_blame(self) -> bool:
        """Whether the section stopped at this operation, or at the end that is its own."""
        at = self.section.at
        return self.first_step <= at < self.end_step or (
            at >= len(self.section.steps) and self.ticket.writes
        )


@dataclass(slots=True, eq=False)
class Plan:
    """The sections of a flight, who sits where, and for whom the session is bound at its end."""

    sections: list[Section] = field(default_factory=list)
    seats: list[Seat] = field(default_factory=list)
    bound: Binding | None = None
    #: Some statement is prepared on the way, so that it may turn out to have changed.
    describes: bool = False

    @property
    def bytes_max(self) -> int:
        """The most that all results together may have: what the least of its tenants may.

        A batch travels by itself, and has what is left for it.
        """
        budget = self.seats[0].ticket.budget
        if budget is not None:
            # Binding and fence answer with rows too. Who has too many of its own is told by `take`.
            return budget.left + _OWN_ROWS_BYTES
        return min(seat.ticket.limits.result_bytes_max for seat in self.seats)

    def current(self, exchange: Exchange) -> Seat | None:
        """The operation that the server works on."""
        return None if exchange.section is None else self._reached(exchange.section)

    def stopped_for(self, section: Section) -> TenantNo | None:
        """The tenant at whose steps a section stopped: its binding, its fence or an operation."""
        seat = self._reached(section)
        return None if seat is None else seat.ticket.tenant_no

    def _reached(self, section: Section) -> Seat | None:
        """The first operation of a section that has not been answered."""
        for seat in self.seats:
            if seat.section is section and seat.end_step > section.at:
                return seat
        return None


class Planner:
    """Turns operations whose parameters are encoded into messages. No I/O."""

    def __init__(self, keys: BindingKeys) -> None:
        self._keys = keys
        self._all_rows = wire.execute()
        #: By the limit of rows: there is one for each type of tenant.
        self._some_rows: dict[int, bytes] = {}

    def apart(
        self,
        connection: Connection,
        tickets: Sequence[Ticket],
        *,
        ordered: bool,
        slow: bool,
        paces: Mapping[str, float],
    ) -> Plan:
        """Each write in a section of its own, and reads that follow each other in one.

        Reads of several tenants too, each under its own binding: the server answers a section at
        its end, so that one for each tenant would cost it and this process as many wake-ups.
        With `ordered` each read has its own section too: one that fails undoes the others of its
        section, and to run them again later would change their order. When something is `slow`, the
        tenant may have moved before the next section, so each asks for the fence. `paces` tells
        how long (seconds) texts took lately.
        """
        plan = Plan(bound=connection.bound)
        unseen_seats, unseen_s = 0, 0.0
        key_id = self._keys.signing_id
        section: Section | None = None
        after_write = sent = watched = False
        last_no = 0
        for ticket in tickets:
            bound = plan.bound
            is_bound = (
                bound is not None
                and bound.tenant_no == ticket.tenant_no
                and bound.epoch == ticket.epoch
                and bound.key_id == key_id
            )
            to_watch = slow or ticket.watched
            unseen = to_watch and not watched
            # What was undone with another one is not to be undone with a third one.
            own = ordered or ticket.writes or after_write or ticket.attempts > 0
            # Each tenant's lock is held until the section ends. When all take them in the same
            # order, no flight waits for a tenant's mover that waits, by way of another one, for it.
            joins = is_bound or (not to_watch and not watched and ticket.tenant_no > last_no)
            last_no = ticket.tenant_no
            if section is None or not joins or unseen or own:
                section = _new_section(plan)
                # A binding is undone with the section that sent it, and then the one before it is
                # in force again: another tenant's, and valid. So once a flight has sent a binding,
                # no section may rely on that of an earlier one.
                if sent or not is_bound:
                    self._bind(connection, plan, section, ticket)
                    sent = True
                watched = to_watch
                if watched:
                    _ask_for_fence(section)
            elif not is_bound:
                self._bind(connection, plan, section, ticket)
                sent = True
            self._take_in(connection, plan, section, ticket)
            after_write = ticket.writes
            unseen_seats += 1
            unseen_s += paces.get(ticket.text, _UNKNOWN_PACE_S)
            if unseen_seats >= _FLUSHED_SEATS or unseen_s >= _FLUSHED_S:
                # So that it is seen how far the server is, and who holds up the others.
                section.messages.append(wire.FLUSH)
                unseen_seats, unseen_s = 0, 0.0
        return plan

    def together(
        self, connection: Connection, tickets: Sequence[Ticket], *, bound: bool, sync: bool
    ) -> Plan:
        """All in one section; without `sync` the transaction stays open."""
        plan = Plan(bound=connection.bound)
        section = _new_section(plan)
        section.sync = sync
        if bound:
            plan.bound = self._binding(tickets[0])
        elif plan.bound != self._binding(tickets[0]):
            self._bind(connection, plan, section, tickets[0])
        if not bound:
            # Later statements may come when the tenant has moved; the fence, once asked for, stays.
            _ask_for_fence(section)
        for ticket in tickets:
            self._take_in(connection, plan, section, ticket)
        return plan

    def result(self, seat: Seat) -> QueryResult:
        """What an execution gave. Raises `ResultTooLargeError`."""
        step, description = seat.execution, seat.ticket.description
        rows = step.rows
        if step.problem is not None:
            raise step.problem
        if not step.complete or len(rows) > seat.ticket.limits.result_rows_max:
            raise too_large(seat.ticket)
        budget = seat.ticket.budget
        if budget is not None and (
            step.size > seat.ticket.limits.result_bytes_max or not budget.take(step.size)
        ):
            raise too_large(seat.ticket)
        columns = description.columns if description is not None else None
        if columns is None:
            return QueryResult(columns=(), rows=[], row_count=_changed(step.tag))
        return QueryResult(columns=columns, rows=rows, row_count=len(rows))

    async def read_anew(self, connection: Connection, plan: Plan) -> None:
        """Read rows whose statement turned out to give others than it was known to give.

        The schema has changed since; the server has said what the rows look like now.
        """
        for seat in plan.seats:
            step, described = seat.execution, seat.describing
            if step.decoders is None and described is not None and step.done:
                description = await connection.describe_shape(
                    described.parameters, described.row_shape
                )
                seat.ticket.description = description
                step.rows = wire.decode_rows(step.rows, description.decoders)

    def _binding(self, ticket: Ticket) -> Binding:
        memory_kb = ticket.limits.statement_memory_bytes // 1024
        return Binding(ticket.tenant_no, ticket.epoch, self._keys.signing_id, memory_kb)

    def _bind(self, connection: Connection, plan: Plan, section: Section, ticket: Ticket) -> None:
        """Let a section go on with the session bound to the ticket's tenant."""
        plan.bound = self._binding(ticket)
        section.messages += connection.binding_messages(plan.bound, self._keys)
        section.steps.append(Step())

    def _rows(self, rows_max: int) -> bytes:
        """The message that executes up to one row more than the limit."""
        found = self._some_rows.get(rows_max)
        if found is None:
            found = self._some_rows[rows_max] = wire.execute(rows_max + 1)
        return found

    def _take_in(
        self, connection: Connection, plan: Plan, section: Section, ticket: Ticket
    ) -> None:
        """Add an operation to a section."""
        statement, description = ticket.statement, ticket.description
        if statement is None or description is None:
            raise RuntimeError("a statement was planned before it was described")
        if not statement.plain:
            connection.dirty = True
        steps, messages = section.steps, section.messages
        first = len(steps)
        execution = Step(description.decoders)
        describing: Step | None = None
        name = connection.prepared(statement.text)
        if name is None:
            name, preparation = connection.preparation(statement.text)
            messages += preparation
            messages.append(wire.describe(name))
            describing = Step()
            describing.expected_shape = description.raw_columns
            describing.relying = execution
            steps.append(describing)
            plan.describes = True
        messages.append(wire.bind(name, ticket.encoded))
        messages.append(
            self._all_rows
            if description.columns is None
            else self._rows(ticket.limits.result_rows_max)
        )
        steps.append(execution)
        plan.seats.append(Seat(ticket, section, first, execution, describing))


def too_large(ticket: Ticket) -> ResultTooLargeError:
    """The error for a result that does not fit."""
    limits, budget = ticket.limits, ticket.budget
    together = (
        f", or with it the results of the batch have more than {budget.bytes_max} bytes together"
        if budget is not None
        else ""
    )
    return ResultTooLargeError(
        f"the result has more than {limits.result_rows_max} rows or "
        f"{limits.result_bytes_max} bytes{together}; ask for less at a time"
    )


def _new_section(plan: Plan) -> Section:
    section = Section([], [])
    plan.sections.append(section)
    return section


def _ask_for_fence(section: Section) -> None:
    """A step that fails when the tenant is not here: what reads no row would not notice that.

    It keeps the fence as it is until the section ends.
    """
    section.messages += _FENCE
    section.steps.append(Step())


def _changed(tag: bytes) -> int:
    """The number of rows in a command tag: `INSERT 0 5`, `UPDATE 3` (manual, 55.7)."""
    last = tag.rsplit(b" ", 1)[-1]
    return int(last) if last.isdigit() else 0
