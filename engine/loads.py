"""What tenants' operations come to in this process, told to the catalog window by window.

Every operation that the engine carries out is counted, whoever sent it: HTTP, an actor's client, or
the library. What a process has counted in a window is told when the window has ended; a process
that is killed loses one window at most.

Bounded: tenants counted in a window, tenants told of by name (the busiest), and windows that wait
while the catalog does not answer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Final

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import OutcomeUnknownError, TenancyError
from tenancy.data_isolation.core.identifiers import ServerName, TenantNo
from tenancy.data_isolation.core.proposal import OrchestrationMode
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.routes import Route
from tenancy.data_isolation.engine.sql_files import SqlFile

_log = logging.getLogger(__name__)
_SQL = SqlFile("orchestration.sql")
#: Tenants that are counted in one window; operations of others count for their servers alone.
_TENANTS_MAX: Final = 100_000
#: Windows that wait to be told; older ones are given up.
_WAITING_MAX: Final = 5
_MICROSECONDS: Final = 1_000_000


class Load:
    """Operations of one tenant, or of a server, in one window."""

    __slots__ = ("busy_s", "operations", "server")

    def __init__(self, server: ServerName) -> None:
        self.server = server
        self.operations = 0
        #: The time from their arrival to their end, added up.
        self.busy_s = 0.0


@dataclass(frozen=True, slots=True)
class _Counted:
    """What was counted in the window that began then."""

    began_at: datetime
    tenants: dict[TenantNo, Load]
    #: Operations of tenants beyond those that are counted by name.
    others: dict[ServerName, Load]


def window_of(at: datetime, length_s: float) -> datetime:
    """When the window began in which a time falls. All processes cut time at the same moments."""
    seconds = at.timestamp()
    return datetime.fromtimestamp(seconds - seconds % length_s, UTC)


class Loads:
    """Counts operations. Belongs to one event loop.

    Nothing is told while `TENANCY_ORCHESTRATION` is off.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        servers: tuple[ServerName, ...],
        clock: Clock | None = None,
    ) -> None:
        self._length_s = settings.load_window_s
        self._named_max = settings.load_tenants_max
        self._is_on = settings.orchestration != OrchestrationMode.OFF
        self._catalog = catalog
        self._servers = servers
        self._clock = clock or SystemClock()
        self._counted = self._fresh()
        self._waiting: deque[_Counted] = deque(maxlen=_WAITING_MAX)
        self._telling: asyncio.Task[None] | None = None

    def note(self, route: Route, operations: int, began_s: float) -> None:
        """Count operations that have ended now and were begun at `began_s` (`time.monotonic`)."""
        load = self._counted.tenants.get(route.tenant.tenant_no)
        if load is None:
            if not self._is_on:
                return
            load = self._new(route)
        load.operations += operations
        load.busy_s += monotonic() - began_s

    def start(self) -> None:
        """Tell what is counted whenever a window has ended. Can be called again."""
        if self._telling is None and self._is_on:
            self._telling = asyncio.get_running_loop().create_task(self._tell_for_ever())

    async def tell(self) -> None:
        """Tell all that was counted in windows that have ended. Raises errors of the catalog."""
        if not self._is_on:
            return
        self._cut()
        while self._waiting:
            counted = self._waiting[0]
            try:
                await self._catalog.pool.write(_SQL.statement("tell_loads"), *self._values(counted))
            except OutcomeUnknownError:
                _log.warning("whether the load of %s was told is not known", counted.began_at)
            # It may have been pushed out by later ones meanwhile.
            if self._waiting and self._waiting[0] is counted:
                self._waiting.popleft()

    async def close(self) -> None:
        """Tell no more."""
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
            await asyncio.wait([telling])

    # Parts

    def _fresh(self) -> _Counted:
        return _Counted(window_of(self._clock.now(), self._length_s), {}, {})

    def _new(self, route: Route) -> Load:
        self.start()
        server = route.placement.server
        if len(self._counted.tenants) < _TENANTS_MAX:
            load = self._counted.tenants[route.tenant.tenant_no] = Load(server)
            return load
        return self._counted.others.setdefault(server, Load(server))

    def _cut(self) -> None:
        """Put what was counted aside if its window has ended."""
        fresh = self._fresh()
        if fresh.began_at <= self._counted.began_at:
            return
        self._waiting.append(self._counted)
        self._counted = fresh

    def _values(self, counted: _Counted) -> tuple[object, ...]:
        """The arguments of the statement that tells of a window."""
        busiest = sorted(
            counted.tenants.items(), key=lambda item: item[1].operations, reverse=True
        )[: self._named_max]
        # Also of a server for which nothing was done: that is known now.
        totals = {name: Load(name) for name in self._servers}
        for load in (*counted.tenants.values(), *counted.others.values()):
            total = totals.setdefault(load.server, Load(load.server))
            total.operations += load.operations
            total.busy_s += load.busy_s
        return (
            counted.began_at,
            [number for number, _ in busiest],
            [load.operations for _, load in busiest],
            [_microseconds(load) for _, load in busiest],
            list(totals),
            [load.operations for load in totals.values()],
            [_microseconds(load) for load in totals.values()],
        )

    async def _tell_for_ever(self) -> None:
        while True:
            ends_at = self._counted.began_at + timedelta(seconds=self._length_s)
            left_s = (ends_at - self._clock.now()).total_seconds()
            await asyncio.sleep(min(max(left_s, 0.01), self._length_s))
            try:
                await self.tell()
            except TenancyError as error:
                _log.warning("the load of tenants could not be told: %s", error.detail)
            except Exception:
                # Nobody awaits this task who could be told, and the next window may go better.
                _log.exception("the load of tenants could not be told")


def _microseconds(load: Load) -> int:
    return round(load.busy_s * _MICROSECONDS)
