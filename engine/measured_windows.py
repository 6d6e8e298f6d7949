"""What tenants' operations take, added up by tenant and kind of statement, window by window.

A kind of statement is its fingerprint, which has no values in it. Operations are noted when their
flight lands, all that travelled together at once, because a note each would cost as much again.

Rules this module keeps:

* Nothing of an operation is kept but numbers, its fingerprint and the schema's names of the tables.
* Bounded: kinds of statement in a window, in all and per tenant; the rest counts as `OTHER`, and
  that of tenants for which there is no room at all as nobody's.
* An operation is noted once, however it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import log2
from time import monotonic
from typing import TYPE_CHECKING, Final

from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import Epoch, ServerName, TenantId, TenantNo
from tenancy.data_isolation.core.latency_buckets import BUCKETS, BUCKETS_PER_DOUBLING, bucket_of
from tenancy.data_isolation.core.performance import Outcome, outcome_of
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import QueryResult
from tenancy.data_isolation.engine.outcomes import is_worth_another_look
from tenancy.data_isolation.engine.process_usage import ProcessUsage, SessionUsage
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.statement import Statement
from tenancy.data_isolation.engine.ticket import Ticket

if TYPE_CHECKING:
    from tenancy.data_isolation.engine.connection import Connection

#: In place of a fingerprint: kinds of statement beyond those that are told apart; and operations
#: that were refused by the guard or before it, or because what they name is not there.
OTHER: Final = "other"
UNREAD: Final = "unread"
#: So many flights are looked at from the side of the operating system: one in that many. A prime,
#: so that no rhythm of the tenants' falls together with it.
_FLIGHTS_PER_LOOK: Final = 31
_PER_S: Final = 1e6
_LAST_BUCKET: Final = BUCKETS - 1
_NOBODY: Final = TenantNo(0)


class Cell:
    """Operations of one kind, of one tenant, in one window. Times are in seconds."""

    # Plain attributes: there are a dozen additions for every operation.
    __slots__ = (
        "busy_s",
        "cache_hits",
        "cancelled",
        "cpu_s",
        "failed",
        "fingerprint",
        "kind",
        "latencies",
        "latency_max_s",
        "latency_s",
        "operations",
        "queue_max_s",
        "queue_s",
        "read_bytes",
        "refused",
        "result_bytes",
        "rows",
        "sampled",
        "tables",
        "unavailable",
        "written_bytes",
    )

    def __init__(self, fingerprint: str, kind: str | None, tables: tuple[str, ...]) -> None:
        self.fingerprint = fingerprint
        #: `read` or `write`; None where it is not known, or where there are both.
        self.kind = kind
        self.tables = tables
        #: All that have ended, those that were not done and those from the cache included.
        self.operations = 0
        self.refused = 0
        self.failed = 0
        self.unavailable = 0
        self.cancelled = 0
        self.cache_hits = 0
        self.rows = 0
        self.result_bytes = 0
        #: From their arrival in this process to their end, and until a session began with them.
        self.latency_s = 0.0
        self.latency_max_s = 0.0
        self.queue_s = 0.0
        self.queue_max_s = 0.0
        #: Their part of the time in which sessions were at work.
        self.busy_s = 0.0
        #: How many by bucket of their latency (`latency_buckets`).
        self.latencies: dict[int, int] = {}
        #: How many travelled in flights that were looked at, and their part of what the server's
        #: processes used for these. None = the operating system does not tell.
        self.sampled = 0
        self.cpu_s = 0.0
        self.read_bytes: int | None = 0
        self.written_bytes: int | None = 0

    def ended(self, outcome: Outcome | None) -> None:
        """Count an operation that was not done; `outcome` None = nobody waited for it any more."""
        match outcome:
            case None:
                self.cancelled += 1
            case Outcome.REFUSED:
                self.refused += 1
            case Outcome.UNAVAILABLE:
                self.unavailable += 1
            case Outcome.FAILED:
                self.failed += 1
            case Outcome.DONE:
                pass

    def used(self, usage: ProcessUsage, share: int) -> None:
        """Take one part in `share` of what a process has used."""
        self.sampled += 1
        self.cpu_s += usage.cpu_s / share
        if usage.read_bytes is None or usage.written_bytes is None or self.read_bytes is None:
            self.read_bytes = self.written_bytes = None
        elif self.written_bytes is not None:
            self.read_bytes += usage.read_bytes // share
            self.written_bytes += usage.written_bytes // share


class MeasuredTenant:
    """The cells of one tenant at one place."""

    __slots__ = ("cells", "epoch", "level", "server", "tenant_id", "tenant_no")

    def __init__(self, tenant_no: TenantNo, route: Route | None) -> None:
        self.tenant_no = tenant_no
        self.tenant_id: TenantId | None = route.tenant.tenant_id if route else None
        self.epoch = route.placement.epoch if route else Epoch(0)
        self.level: str | None = route.placement.level.value if route else None
        self.server: ServerName | None = route.placement.server if route else None
        self.cells: dict[str, Cell] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredWindow:
    """What was measured from `began_at` on, for so long."""

    began_at: datetime
    length_s: float
    tenants: tuple[MeasuredTenant, ...]

    def cells(self) -> Iterator[tuple[MeasuredTenant, Cell]]:
        """Every cell with its tenant."""
        for tenant in self.tenants:
            for cell in tenant.cells.values():
                yield tenant, cell


class MeasuredWindows:
    """Adds up what operations take. Belongs to one event loop."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._cells_max = settings.measured_fingerprints_max
        self._tenant_cells_max = settings.tenant_measured_fingerprints_max
        self._clock = clock
        self._usage = SessionUsage()
        self._flights = 0
        self._tenants: dict[TenantNo, MeasuredTenant] = {}
        #: Tenants that are at another place now, or gone.
        self._earlier: list[MeasuredTenant] = []
        self._cells = 0
        self._began_at = clock.now()
        self._began_s = clock.monotonic_s()

    # What is noted

    def depart(self, connection: Connection) -> ProcessUsage | None:
        """A flight begins; what its server process has used so far, if this one is looked at."""
        self._flights += 1
        if self._flights % _FLIGHTS_PER_LOOK:
            return None
        return self._usage.of(connection)

    def land(
        self,
        connection: Connection,
        tickets: Sequence[Ticket],
        departed_s: float,
        before: ProcessUsage | None = None,
    ) -> None:
        """A flight has ended that began at `departed_s` (`time.monotonic`).

        Operations that wait for another flight are noted when that one ends.
        """
        now = monotonic()
        share = len(tickets)
        busy_s = (now - departed_s) / share
        after = None if before is None else self._usage.of(connection)
        usage = None if before is None or after is None else after.since(before)
        # What travels together is of one kind most of the time.
        kind: Statement | None = None
        tenant_no: TenantNo | None = None
        tenants = self._tenants
        for ticket in tickets:
            outcome = ticket.outcome
            if outcome is None and not ticket.future.done():
                continue
            began_s = ticket.began_s
            if not began_s or (type(outcome) is not QueryResult and is_worth_another_look(outcome)):
                continue  # Not to be noted, or not yet: who waits for it may try again.
            ticket.began_s = 0.0
            if ticket.statement is not kind or ticket.tenant_no != tenant_no:
                kind, tenant_no = ticket.statement, ticket.tenant_no
                # As `_cell_of` begins, without the call.
                tenant = tenants.get(tenant_no)
                found = None
                if tenant is not None and tenant.epoch == ticket.epoch and kind is not None:
                    found = tenant.cells.get(kind.fingerprint)
                cell = self._cell_of(ticket) if found is None else found
                latencies = cell.latencies
            took_s = now - began_s
            cell.operations += 1
            cell.latency_s += took_s
            if took_s > cell.latency_max_s:
                cell.latency_max_s = took_s
            # As `bucket_of` has it, without the call.
            bucket = int(log2(max(took_s * _PER_S, 1.0)) * BUCKETS_PER_DOUBLING)
            latencies[bucket] = latencies.get(bucket, 0) + 1
            queue_s = departed_s - began_s
            cell.queue_s += queue_s
            if queue_s > cell.queue_max_s:
                cell.queue_max_s = queue_s
            cell.busy_s += busy_s
            cell.result_bytes += ticket.result_bytes
            if type(outcome) is QueryResult:
                cell.rows += outcome.row_count
            else:
                cell.ended(None if outcome is None else outcome_of(outcome))
            if usage is not None:
                cell.used(usage, share)

    def end(self, ticket: Ticket, error: TenancyError | None) -> None:
        """An operation has ended without a flight, or its flight will not say so any more.

        `error` None = nobody waits for it any more.
        """
        if not ticket.began_s:
            return
        cell = self._cell_of(ticket)
        took_s = monotonic() - ticket.began_s
        ticket.began_s = 0.0
        _took(cell, took_s)
        cell.queue_s += took_s
        cell.queue_max_s = max(cell.queue_max_s, took_s)
        cell.ended(None if error is None else outcome_of(error))

    def finish(
        self,
        tickets: Sequence[Ticket],
        departed_s: float,
        outcomes: Sequence[QueryResult] | TenancyError | None,
    ) -> None:
        """Operations that happen together have ended: their results, or one error for all.

        None = nobody waits for them any more.
        """
        if isinstance(outcomes, TenancyError) and is_worth_another_look(outcomes):
            return
        now = monotonic()
        for index, ticket in enumerate(tickets):
            if not ticket.began_s:
                continue
            cell = self._cell_of(ticket)
            _took(cell, now - ticket.began_s)
            queue_s = max(departed_s - ticket.began_s, 0.0)
            ticket.began_s = 0.0
            cell.queue_s += queue_s
            cell.queue_max_s = max(cell.queue_max_s, queue_s)
            cell.busy_s += (now - departed_s) / len(tickets)
            if outcomes is None:
                cell.ended(None)
            elif isinstance(outcomes, TenancyError):
                cell.ended(outcome_of(outcomes))
            else:
                cell.rows += outcomes[index].row_count
                cell.result_bytes += ticket.result_bytes

    def turn_away(self, route: Route, error: TenancyError, operations: int = 1) -> None:
        """Operations were refused before anything was done for them."""
        cell = self._unread(route)
        outcome = outcome_of(error)
        for _ in range(operations):
            cell.operations += 1
            cell.ended(outcome)

    def hit(self, route: Route, statement: Statement, took_s: float, rows: int) -> None:
        """An operation was answered from a cache of results, which took so long."""
        cell = self._cell(self._tenant(route), statement)
        _took(cell, took_s)
        cell.cache_hits += 1
        cell.rows += rows

    # Windows

    def cut(self) -> MeasuredWindow:
        """End the present window, which may be empty, and begin the next."""
        window = self.present()
        self._tenants = {}
        self._earlier = []
        self._cells = 0
        self._began_at, self._began_s = self._clock.now(), self._clock.monotonic_s()
        return window

    def present(self) -> MeasuredWindow:
        """The present window as it is so far. Its cells go on growing."""
        return MeasuredWindow(
            began_at=self._began_at.astimezone(UTC),
            length_s=self._clock.monotonic_s() - self._began_s,
            tenants=(*self._tenants.values(), *self._earlier),
        )

    def forget(self, tenant_no: TenantNo) -> MeasuredWindow:
        """Keep nothing of a tenant; what there was of it in the present window."""
        present = self.present()
        self._tenants.pop(tenant_no, None)
        self._earlier = [item for item in self._earlier if item.tenant_no != tenant_no]
        gone = tuple(item for item in present.tenants if item.tenant_no == tenant_no)
        return replace(present, tenants=gone)

    # Cells

    def _cell_of(self, ticket: Ticket) -> Cell:
        tenant = self._tenants.get(ticket.tenant_no)
        if tenant is None or tenant.epoch != ticket.epoch:
            if ticket.route is None:
                return self._nobody()
            tenant = self._tenant(ticket.route)
        statement = ticket.statement
        assert statement is not None  # noqa: S101 - those without one are not noted.
        cell = tenant.cells.get(statement.fingerprint)
        return self._cell(tenant, statement) if cell is None else cell

    def _tenant(self, route: Route) -> MeasuredTenant:
        number = route.tenant.tenant_no
        tenant = self._tenants.get(number)
        if tenant is not None and tenant.epoch == route.placement.epoch:
            return tenant
        if tenant is not None:
            self._earlier.append(tenant)
        elif self._is_full:
            # It would have a cell at once, and there may be any number of such tenants.
            return self._others()
        found = self._tenants[number] = MeasuredTenant(number, route)
        return found

    def _cell(self, tenant: MeasuredTenant, statement: Statement) -> Cell:
        cell = tenant.cells.get(statement.fingerprint)
        if cell is not None:
            return cell
        if self._is_full or len(tenant.cells) >= self._tenant_cells_max:
            return self._other(tenant)
        tables = tuple(sorted(statement.tables))
        return self._add(tenant, Cell(statement.fingerprint, statement.kind.value, tables))

    def _other(self, tenant: MeasuredTenant) -> Cell:
        """Where a tenant's operations count that are not told apart."""
        cell = tenant.cells.get(OTHER)
        if cell is not None:
            return cell
        if self._is_full and tenant.tenant_no != _NOBODY:
            return self._nobody()
        return self._add(tenant, Cell(OTHER, None, ()))

    def _unread(self, route: Route) -> Cell:
        tenant = self._tenant(route)
        cell = tenant.cells.get(UNREAD)
        if cell is not None:
            return cell
        return self._nobody() if self._is_full else self._add(tenant, Cell(UNREAD, None, ()))

    @property
    def _is_full(self) -> bool:
        return self._cells >= self._cells_max

    def _others(self) -> MeasuredTenant:
        """Stands for all tenants beyond those that there is room for."""
        tenant = self._tenants.get(_NOBODY)
        if tenant is None:
            tenant = self._tenants[_NOBODY] = MeasuredTenant(_NOBODY, None)
        return tenant

    def _nobody(self) -> Cell:
        return self._other(self._others())

    def _add(self, tenant: MeasuredTenant, cell: Cell) -> Cell:
        tenant.cells[cell.fingerprint] = cell
        self._cells += 1
        return cell


def _took(cell: Cell, took_s: float) -> None:
    cell.operations += 1
    cell.latency_s += took_s
    cell.latency_max_s = max(cell.latency_max_s, took_s)
    bucket = bucket_of(took_s)
    cell.latencies[bucket] = cell.latencies.get(bucket, 0) + 1


def window_end_s(now: datetime, length_s: float) -> float:
    """Seconds until the window ends in which a time falls. All processes cut at the same times."""
    return length_s - now.timestamp() % length_s
