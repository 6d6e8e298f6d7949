"""Cancels statements whose time is over, from outside the session.

A tenant can set `statement_timeout` for itself, so the server's own limit is none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from tenancy.data_isolation.engine.connection import Connection
from tenancy.data_isolation.engine.flight_plan import Plan, Seat
from tenancy.data_isolation.engine.ticket import Ticket
from tenancy.data_isolation.engine.wire import Exchange

#: A statement that takes longer holds up those that travel with it.
PATIENCE_S: Final = 0.05
_LOOK_S: Final = 0.025


class TimeLimit:
    """Watches one exchange until `stop`.

    `shared` says that operations of different tenants travel together there: then one that takes
    longer than others can be made to wait is cancelled as well, to be run again alone.
    """

    def __init__(
        self,
        connection: Connection,
        exchange: Exchange,
        plan: Plan,
        *,
        shared: bool,
        time_left: Callable[[Ticket], float],
        long_s: float | None = None,
        crowded: Callable[[Ticket], bool] | None = None,
    ) -> None:
        """After `long_s` a statement that is alone is asked whether it is `crowded`."""
        self._connection = connection
        self._exchange = exchange
        self._plan = plan
        self._shared = shared
        self._time_left = time_left
        self._loop = asyncio.get_running_loop()
        self._seen: Seat | None = plan.seats[0]
        self._until = self._loop.time() + self._limit(plan.seats[0])
        #: Whether anything was cancelled.
        self.cancelled = False
        first = self._limit(plan.seats[0]) if len(plan.seats) == 1 else _LOOK_S
        self._handle = self._loop.call_later(first, self._look)
        self._crowded = crowded
        self._long: asyncio.TimerHandle | None = None
        if long_s is not None and crowded is not None:
            self._long = self._loop.call_later(long_s, self._make_room)

    def stop(self) -> None:
        """The exchange is over."""
        self._handle.cancel()
        if self._long is not None:
            self._long.cancel()

    def _limit(self, seat: Seat) -> float:
        return PATIENCE_S if self._shared else self._time_left(seat.ticket)

    def _make_room(self) -> None:
        """Cancel a statement that takes long where enough of them run, to be run in its turn."""
        seat = self._plan.current(self._exchange)
        if seat is not None and self._crowded is not None and self._crowded(seat.ticket):
            seat.too_slow = True
            self.cancelled = True
            self._connection.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        seat = self._plan.current(self._exchange)
        if seat is not None and seat is not self._seen:
            self._seen = seat
            self._until = now + self._limit(seat)
        elif seat is not None and now >= self._until:
            if self._shared:
                seat.too_slow = True
            else:
                seat.out_of_time = True
            self.cancelled = True
            self._connection.cancel()
            self._until = now + self._limit(seat)
        self._handle = self._loop.call_later(_LOOK_S, self._look)
