"""Which operation sits where in a flight: sections, steps, and the messages that make them up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tenancy.data_isolation.core.errors import ResultTooLargeError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.connection import Binding, Connection
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.wire import Exchange, Section, Step


@dataclass(slots=True, eq=False)
class Seat:
    """An operation in a flight: its section, and its steps in it."""

    ticket: Ticket
    section: Section
    first_step: int
    execution: Step
    describing: Step | None
    #: It was cancelled because its own time was over, or because it held up others.
    out_of_time: bool = False
    too_slow: bool = False

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

    def current(self, exchange: Exchange) -> Seat | None:
        """The operation that the server works on."""
        section = exchange.section
        if section is None:
            return None
        for seat in self.seats:
            if seat.section is section and seat.end_step > section.at:
                return seat
        return None


class Planner:
    """Turns operations whose parameters are encoded into messages. No I/O."""

    def __init__(self, settings: Settings, keys: BindingKeys) -> None:
        self._settings = settings
        self._keys = keys

    def apart(self, connection: Connection, tickets: Sequence[Ticket]) -> Plan:
        """Each write in a section of its own, and reads that follow each other per tenant."""
        plan = Plan(bound=connection.bound)
        section: Section | None = None
        for ticket in tickets:
            follows = section is not None and not ticket.writes and not plan.seats[-1].ticket.writes
            if section is None or not follows or self._binding(ticket) != plan.bound:
                section = _new_section(plan)
            self._take_in(connection, plan, section, ticket)
        return plan

    def together(
        self, connection: Connection, tickets: Sequence[Ticket], *, bound: bool, sync: bool
    ) -> Plan:
        """All in one section; without `sync` the transaction stays open."""
        plan = Plan(bound=self._binding(tickets[0]) if bound else connection.bound)
        section = _new_section(plan)
        section.sync = sync
        for ticket in tickets:
            self._take_in(connection, plan, section, ticket)
        return plan

    async def result(self, connection: Connection, seat: Seat) -> QueryResult:
        """What an execution gave. Raises `ResultTooLargeError`."""
        step, description = seat.execution, seat.ticket.description
        if step.problem is not None:
            raise step.problem
        if not step.complete or len(step.rows) > self._settings.result_rows_max:
            raise self.too_large()
        rows = step.rows
        if step.decoders is None and seat.describing is not None:
            # The schema changed since the statement was described: read the rows as they are now.
            described = seat.describing
            description = await connection.describe_shape(described.parameters, described.row_shape)
            rows = wire.decode_rows(rows, description.decoders)
        columns = description.columns if description is not None else None
        if columns is None:
            return QueryResult(columns=(), rows=[], row_count=_changed(step.tag))
        return QueryResult(columns=columns, rows=rows, row_count=len(rows))

    def too_large(self) -> ResultTooLargeError:
        """The error for a result that does not fit."""
        settings = self._settings
        return ResultTooLargeError(
            f"the result has more than {settings.result_rows_max} rows or "
            f"{settings.result_bytes_max} bytes; ask for less at a time"
        )

    def _binding(self, ticket: Ticket) -> Binding:
        return Binding(ticket.tenant_no, ticket.epoch, self._keys.signing_id)

    def _take_in(
        self, connection: Connection, plan: Plan, section: Section, ticket: Ticket
    ) -> None:
        """Add an operation to a section, after binding the session to its tenant."""
        binding = self._binding(ticket)
        if binding != plan.bound:
            key = connection.key
            text = self._keys.sign(
                key.server, key.database, ticket.tenant_no, ticket.epoch, connection.backend_pid
            )
            section.messages += connection.binding_messages(text)
            section.steps.append(Step())
            plan.bound = binding
        if ticket.statement is None or not ticket.statement.plain:
            connection.dirty = True
        plan.seats.append(self._seat(connection, section, ticket))

    def _seat(self, connection: Connection, section: Section, ticket: Ticket) -> Seat:
        description = ticket.description
        if description is None:
            raise RuntimeError("a statement was planned before it was described")
        first = len(section.steps)
        execution = Step(description.decoders)
        describing: Step | None = None
        name = connection.prepared(ticket.text)
        if name is None:
            name, messages = connection.preparation(ticket.text)
            section.messages += messages
            section.messages.append(wire.describe(name))
            describing = Step(expected_shape=description.raw_columns, relying=execution)
            section.steps.append(describing)
        rows_max = 0 if description.columns is None else self._settings.result_rows_max + 1
        section.messages += (wire.bind(name, ticket.encoded), wire.execute(rows_max))
        section.steps.append(execution)
        return Seat(ticket, section, first, execution, describing)


def _new_section(plan: Plan) -> Section:
    section = Section([], [])
    plan.sections.append(section)
    return section


def _changed(tag: bytes) -> int:
    """The number of rows in a command tag: `INSERT 0 5`, `UPDATE 3` (manual, 55.7)."""
    last = tag.rsplit(b" ", 1)[-1]
    return int(last) if last.isdigit() else 0
