"""The sessions on one PostgreSQL server, and who gets one next.

There is one budget of sessions per server, whatever they are for. Requests wait in lines, one line
per kind of session (`SessionKey`); in a line they wait per tenant.

Rules this module keeps:

* Fair: within a line tenants take turns; between lines the one that was served longest ago goes
  first, and one that has less than its share of sessions may take one over. Statements that run for
  long cannot take the whole server: the last sessions are for lines that have none.
* Fair in time: a tenant whose statements take long runs few of them at once (`LongStatements`).
* Bounded: requests that wait, in all and per tenant, and how long they wait; sessions, in all, per
  line of a single tenant, and per tenant; sessions being opened. Who does not fit is refused.
* A server that has no slot left is no error: the pool makes do with what it has and tries later.
* A session goes to the tenant it is bound to, if there is one that is free.
* Requests that can travel together do: a session that gets free takes its part of those who wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from itertools import islice
from typing import Any, Final

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    RateLimitedError,
    ServerUnavailableError,
    TenancyError,
)
from tenancy.data_isolation.core.identifiers import TenantNo
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.departure import (
    EAGER_SESSIONS,
    GATHER_S,
    GROWTH_WAIT_S,
    may_depart,
    share,
)
from tenancy.data_isolation.engine.driver_errors import TOO_MANY_CONNECTIONS, LoginFullError
from tenancy.data_isolation.engine.long_statements import LongStatements
from tenancy.data_isolation.engine.session_key import SessionKey
from tenancy.data_isolation.engine.session_line import Line, Request, least_missed

_log = logging.getLogger(__name__)

_TICK_S: Final = 0.01
#: Every so many ticks all that wait are looked at for deadlines, not only the next in turn.
_TICKS_PER_INSPECTION: Final = 10
#: One in so many sessions of a server that several lines use is for a line that has none.
_RESERVE: Final = 8
#: Operations of one tenant that travel together before the next tenant's turn, if there is one.
_TURN: Final = 8
#: Bytes of parameters that travel together.
_FLIGHT_BYTES_MAX: Final = 1024 * 1024
#: Who used a session so recently will want it again, and opening one takes longer than a statement.
_COLD_S: Final = 0.25
#: How long a server that was full is left alone, and how long what it could hold is believed.
_FULL_PAUSE_S: Final = 0.1
_CEILING_S: Final = 10.0
_RETRY_AFTER_S: Final = 1.0


class ServerPool:
    """The sessions on one server. All methods run on one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        shared: Callable[[SessionKey], bool],
        open_session: Callable[[SessionKey], Awaitable[Any]],
        fly: Callable[[Any, list[Any]], Awaitable[None]],
    ) -> None:
        """`shared` says which sessions work for many tenants. `fly` does requests in a session."""
        self._settings = settings
        self._shared = shared
        self._open_session = open_session
        self._fly = fly
        self._loop = asyncio.get_running_loop()
        self._lines: dict[SessionKey, Line] = {}
        #: Lines in which somebody waits, the one served longest ago first.
        self._hungry: OrderedDict[SessionKey, Line] = OrderedDict()
        #: All free sessions, the one used longest ago first.
        self._idle: OrderedDict[Any, None] = OrderedDict()
        self._flying: Counter[TenantNo] = Counter()
        #: Statements at work alone, which may take long.
        self.long = LongStatements(settings)
        self._waiting_per_tenant: Counter[TenantNo] = Counter()
        self._waiting = 0
        #: Slots held: sessions that are free, at work, being opened or being closed.
        self._slots = 0
        self._opening = 0
        self._closing = 0
        self._ceiling = settings.server_connections_max
        self._ceiling_until = 0.0
        self._full_until = 0.0
        self._retiring: set[SessionKey] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._ticks = 0
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def slots(self) -> int:
        """Sessions held on the server, those being opened or closed among them."""
        return self._slots

    @property
    def waiting(self) -> int:
        """Requests that wait for a session."""
        return self._waiting

    def submit(self, request: Request) -> None:
        """Do the request as soon as there is a session for it. Raises `OverloadedError`."""
        if self._closed:
            raise ServerUnavailableError("the runtime is closing; nothing was done")
        settings = self._settings
        if self._waiting >= settings.waiting_operations_max:
            raise OverloadedError(retry_after_s=_RETRY_AFTER_S)
        tenant_no = request.tenant_no
        if self._waiting_per_tenant[tenant_no] >= settings.tenant_waiting_operations_max:
            raise OverloadedError(
                f"{settings.tenant_waiting_operations_max} operations of the tenant wait already; "
                "nothing was done; wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        now = self._loop.time()
        request.give_up_at = min(request.give_up_at, now + settings.connection_wait_ms / 1_000)
        line = self._line(request, now)
        if not line.waiting:
            line.since = now
            self._hungry[line.key] = line
        line.tenants.setdefault(tenant_no, deque()).append(request)
        line.waiting += 1
        line.waiting_alone += request.alone
        self._waiting += 1
        self._waiting_per_tenant[tenant_no] += 1
        if not line.called:
            # What comes in the same turn of the event loop can travel together.
            line.called = True
            self._loop.call_soon(self._call, line)

    async def retire(self, key: SessionKey) -> None:
        """Close the free sessions of a kind, and those at work when they are done."""
        line = self._lines.get(key)
        if line is None:
            return
        if line.busy or line.opening:
            self._retiring.add(key)
        sessions = list(line.idle)
        for session in sessions:
            self._take(line, session)
        await asyncio.gather(*(self._part_with(session) for session in sessions))

    async def close(self) -> None:
        """Refuse who waits, let those at work end for a while, and close all sessions."""
        self._closed = True
        for handle in (self._timer, self._sweeper):
            if handle is not None:
                handle.cancel()
        for line in list(self._hungry.values()):
            self._refuse_all(line, ServerUnavailableError("the runtime is closing"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._settings.drain_timeout_s)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in list(self._idle):
            self._take(self._lines[session.key], session)
            self._part_with(session)
        await asyncio.gather(*self._tasks)

    # Who gets a session

    def _line(self, request: Request, now: float) -> Line:
        key = request.key
        line = self._lines.get(key)
        if line is None:
            most = self._settings.server_connections_max
            limit = most if self._shared(key) else min(most, self._tenant_max(request))
            line = self._lines[key] = Line(key, limit, now)
        return line

    def _tenant_max(self, request: Request) -> int:
        """Sessions that may work for the tenant at the same time."""
        return min(request.limits.connections_max, self._settings.tenant_connections_max)

    def _call(self, line: Line) -> None:
        line.called = False
        self._serve(line)

    def _serve(self, line: Line) -> None:
        """Give the line's free sessions to those who wait in it, and open one where that helps."""
        while line.waiting and line.idle:
            several = may_depart(line, self.long, self._loop.time())
            if not several:
                self._call_later(line)
                if not line.waiting_alone:
                    break
            session = self._choose(line)
            before = line.waiting
            batch = self._collect(line, several=several)
            if batch:
                self._take(line, session)
                self._depart(line, session, batch)
            elif line.waiting == before:
                break  # All who wait have as many sessions at work as one tenant may have.
        if line.waiting:
            self._grow(line)
            self._arm()

    def _call_later(self, line: Line) -> None:
        """Serve the line when those who wait have waited for long enough."""
        if not line.called_later and (due_at := line.since + GATHER_S) > self._loop.time():
            line.called_later = True
            self._loop.call_at(due_at, self._call_due, line)

    def _call_due(self, line: Line) -> None:
        line.called_later = False
        self._serve(line)

    def _choose(self, line: Line) -> Any:
        """The free session that is bound to the tenant in turn, else the one used last."""
        tenant_no = next(iter(line.tenants))
        last = None
        for session in reversed(line.idle):
            if session.bound_tenant == tenant_no:
                return session
            last = last or session
        return last

    def _collect(self, line: Line, *, several: bool) -> list[Request]:
        """Requests for one session: its share of those who wait, or one that travels alone.

        Unless `several`, only the latter.
        """
        most = share(line, self._settings.flight_operations_max)
        batch: list[Request] = []
        size = 0
        now = self._loop.time()
        # Some tenants may be passed over, hence a few more than can be needed.
        for tenant_no in list(islice(line.tenants, most + _TURN)):
            queue = line.tenants[tenant_no]
            first = queue[0]
            if self._flying[tenant_no] >= self._tenant_max(first):
                continue
            if first.alone and not self.long.may_depart(tenant_no, first.limits, now):
                # Others are not to be looked for behind it again and again.
                line.tenants.move_to_end(tenant_no)
                continue
            if not several and not first.alone:
                continue
            taken = 0
            while queue and len(batch) < most and (taken < _TURN or len(line.tenants) == 1):
                request = queue[0]
                if not request.abandoned:
                    if batch and (request.alone or size + request.size > _FLIGHT_BYTES_MAX):
                        break
                    batch.append(request)
                    size += request.size
                    taken += 1
                queue.popleft()
                self._left(line, request)
                if not request.abandoned and request.alone:
                    most = 0
            if not queue:
                del line.tenants[tenant_no]
            elif taken:
                line.tenants.move_to_end(tenant_no)
            if len(batch) >= most:
                break
        return batch

    def _left(self, line: Line, request: Request) -> None:
        """One request less waits."""
        tenant_no = request.tenant_no
        line.waiting -= 1
        line.waiting_alone -= request.alone
        self._waiting -= 1
        self._waiting_per_tenant[tenant_no] -= 1
        if not self._waiting_per_tenant[tenant_no]:
            del self._waiting_per_tenant[tenant_no]
        if not line.waiting:
            self._hungry.pop(line.key, None)

    def _depart(self, line: Line, session: Any, batch: list[Request]) -> None:
        line.busy += 1
        line.since = now = self._loop.time()
        if line.waiting:
            self._hungry.move_to_end(line.key)
        if len(batch) == 1:
            batch[0].departed_at = now
        if batch[0].alone:
            self.long.departed(session, batch[0].tenant_no, now)
        else:
            line.short[session] = len(batch)
        for tenant_no in {request.tenant_no for request in batch}:
            self._flying[tenant_no] += 1
        self._start(self._flight(line, session, batch))

    async def _flight(self, line: Line, session: Any, batch: list[Request]) -> None:
        try:
            await self._fly(session, batch)
        except asyncio.CancelledError:
            session.abort()
            raise
        except Exception:
            # The programmer's error, not the tenant's: nobody may wait forever because of it.
            _log.exception("a flight failed in a way that was not foreseen")
            session.abort()
            for request in batch:
                request.refuse(TenancyError())
        finally:
            line.short.pop(session, None)
            lead, now = batch[0], self._loop.time()
            spent = self.long.landed(session, lead.tenant_no, now, result_bytes=lead.result_bytes)
            for tenant_no in {request.tenant_no for request in batch}:
                self._flying[tenant_no] -= 1
                if not self._flying[tenant_no]:
                    del self._flying[tenant_no]
            self._release(line, session, spent=spent)

    def _release(self, line: Line, session: Any, *, spent: bool) -> None:
        """The session's work is done. One that took long is `spent`: it may have less of the
        processor from now on, and memory that it does not give back."""
        line.busy -= 1
        session.used_at = self._loop.time()
        if not session.closed:
            if spent or self._closed or line.key in self._retiring or self._yields(line):
                self._part_with(session)
            else:
                self._keep(line, session)
        if not line.busy and not line.opening:
            self._retiring.discard(line.key)
        self._serve(line)
        self._feed()
        self._tidy(line)

    def _keep(self, line: Line, session: Any) -> None:
        """The session is free."""
        line.idle[session] = None
        self._idle[session] = None
        self._serve(line)
        if self._idle and self._sweeper is None and not self._closed:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)

    def _yields(self, line: Line) -> bool:
        """Whether a session that this line has work for has to make room for another line's."""
        if not line.waiting or len(self._idle) > len(line.idle):
            return False  # The one that was free for the longest time makes room, if any has to.
        if self._slots < self._budget() or self._closing >= self._settings.connections_opening_max:
            return False
        share = max(1, self._budget() // len(self._hungry))
        provided = self._closing
        # Each one that is passed over has a session, so there are no more of them than sessions.
        for rival in self._hungry.values():
            if rival is line or rival.sessions >= min(share, rival.limit):
                continue
            if provided:
                provided -= 1  # It will have the slot of a session that is closing.
                continue
            if line.sessions + 1 > share:
                return True
            if not rival.sessions:
                # Those behind it have waited for less long.
                return rival.since < line.since
        return False

    # Opening and closing

    def _budget(self) -> int:
        if self._ceiling_until and self._loop.time() >= self._ceiling_until:
            self._ceiling, self._ceiling_until = self._settings.server_connections_max, 0.0
        return self._ceiling

    def _grow(self, line: Line) -> None:
        """Open sessions for those who wait in the line, as far as that is allowed and helps."""
        now = self._loop.time()
        if line.idle:
            return  # There is one, and none of those who wait may have it now.
        if self._closed or now < line.paused_until or now < self._full_until:
            return
        wanted = min(line.waiting, EAGER_SESSIONS)
        if line.sessions >= wanted and not line.opening and now - line.since >= GROWTH_WAIT_S:
            wanted = line.sessions + 1
        wanted = min(wanted, line.limit)
        while line.sessions < wanted:
            if self._opening >= self._settings.connections_opening_max:
                return
            if line.sessions and not self._may_have_another(line):
                return
            if self._slots >= self._budget():
                if line.sessions + line.promised < wanted:
                    self._make_room(line)
                return  # There will be room when the session that was asked to leave has left.
            line.opening += 1
            self._opening += 1
            self._slots += 1
            self._start(self._open(line))

    def _may_have_another(self, line: Line) -> bool:
        """Whether a line that has a session may have one more, in view of those that have none."""
        budget = self._budget()
        within_reach = budget - self._slots + len(self._idle) - len(line.idle)
        if within_reach <= budget // _RESERVE and len(self._lines) > 1:
            return False
        if line.sessions < budget // max(1, len(self._hungry)):
            return True
        return all(rival.sessions for rival in self._hungry.values())

    def _make_room(self, line: Line) -> None:
        """Close a free session of another line, if one can be spared for this one."""
        if self._closing >= self._settings.connections_opening_max:
            return
        session = least_missed(line, self._idle, self._lines, self._loop.time() - _COLD_S)
        if session is not None:
            other = self._lines[session.key]
            self._take(other, session)
            line.promised += 1
            self._part_with(session).add_done_callback(lambda _: self._made_room(line))
            self._tidy(other)

    def _made_room(self, line: Line) -> None:
        line.promised -= 1
        self._feed()

    async def _open(self, line: Line) -> None:
        try:
            session = await self._open_session(line.key)
        except TenancyError as error:
            self._opened(line)
            self._slots -= 1
            self._not_opened(line, error)
            self._feed()
            self._tidy(line)
            return
        except BaseException:
            self._opened(line)
            self._slots -= 1
            raise
        self._opened(line)
        session.used_at = self._loop.time()
        session.ended.add_done_callback(lambda _: self._ended(line, session))
        if self._closed or line.key in self._retiring:
            await session.close()
            return
        self._keep(line, session)
        self._feed()

    def _opened(self, line: Line) -> None:
        line.opening -= 1
        self._opening -= 1

    def _not_opened(self, line: Line, error: TenancyError) -> None:
        now = self._loop.time()
        if isinstance(error, LoginFullError):
            # Who waits for this login goes on waiting; there are slots for everybody else.
            line.paused_until = now + _FULL_PAUSE_S
            self._arm()
        elif error.sqlstate == TOO_MANY_CONNECTIONS:
            # Somebody else has the slots. Who waits goes on waiting, as long as waiting is allowed.
            self._full_until = now + _FULL_PAUSE_S
            self._ceiling = max(1, self._slots)
            self._ceiling_until = now + _CEILING_S
            self._arm()
        elif line.sessions:
            line.paused_until = now + _RETRY_AFTER_S
        else:
            self._refuse_all(line, error)

    def _ended(self, line: Line, session: Any) -> None:
        """The session's slot is free."""
        self._slots -= 1
        if session in line.idle:
            self._take(line, session)
        self._feed()
        self._tidy(line)

    def _take(self, line: Line, session: Any) -> None:
        """The session is not free any more."""
        del line.idle[session]
        del self._idle[session]

    def _part_with(self, session: Any) -> asyncio.Task[None]:
        """Close a session that is not free."""
        self._closing += 1
        return self._start(self._close(session))

    async def _close(self, session: Any) -> None:
        try:
            await session.close()
        finally:
            self._closing -= 1
            self._feed()

    def _feed(self) -> None:
        """Open sessions for lines that wait, the one served longest ago first."""
        for line in self._hungry.values():
            # Few are passed over: those that have as many sessions as they may have.
            if not self._has_room():
                return
            self._grow(line)

    def _has_room(self) -> bool:
        """Whether a session can be opened now, or closed in favour of another."""
        most = self._settings.connections_opening_max
        if self._opening >= most or self._loop.time() < self._full_until:
            return False
        return self._slots < self._budget() or (self._closing < most and bool(self._idle))

    def _tidy(self, line: Line) -> None:
        # A session that ends late may belong to an earlier line of the same key.
        if line.empty and self._lines.get(line.key) is line:
            del self._lines[line.key]
            self._retiring.discard(line.key)

    # Time

    def _arm(self) -> None:
        if self._timer is None and not self._closed:
            self._timer = self._loop.call_later(_TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._ticks += 1
        now = self._loop.time()
        everyone = self._ticks % _TICKS_PER_INSPECTION == 0
        for line in list(self._hungry.values()):
            self._expire(line, now, everyone)
            if line.idle:
                self._serve(line)
            self._tidy(line)
        self._feed()
        if self._hungry:
            self._arm()

    def _expire(self, line: Line, now: float, everyone: bool) -> None:
        """Refuse who waited too long."""
        for tenant_no, queue in list(line.tenants.items()):
            if not everyone and queue[0].give_up_at > now:
                continue
            kept = deque(item for item in queue if item.give_up_at > now and not item.abandoned)
            for request in queue:
                if request.give_up_at <= now or request.abandoned:
                    self._left(line, request)
                    request.refuse(self._waited_in_vain(request, now))
            if kept:
                line.tenants[tenant_no] = kept
            else:
                del line.tenants[tenant_no]

    def _waited_in_vain(self, request: Request, now: float) -> TenancyError:
        if request.alone and self.long.is_held(request.tenant_no, now):
            return RateLimitedError(
                "the tenant's statements that take long use up what it may run at the same time; "
                "nothing was done. Wait and try again",
                retry_after_s=_RETRY_AFTER_S,
            )
        return OverloadedError(
            "no connection got free in time; nothing was done", retry_after_s=_RETRY_AFTER_S
        )

    @property
    def _sweep_s(self) -> float:
        return min(self._settings.connection_idle_s / 2, 5.0)

    def _sweep(self) -> None:
        """Close sessions that nobody used for long."""
        self._sweeper = None
        self.long.forget_old(self._loop.time())
        oldest = self._loop.time() - self._settings.connection_idle_s
        for session in list(self._idle):
            if session.used_at > oldest:
                break
            line = self._lines[session.key]
            self._take(line, session)
            self._part_with(session)
            self._tidy(line)
        if self._idle:
            self._sweeper = self._loop.call_later(self._sweep_s, self._sweep)

    def _refuse_all(self, line: Line, error: TenancyError) -> None:
        for tenant_no, queue in list(line.tenants.items()):
            while queue:
                request = queue.popleft()
                self._left(line, request)
                request.refuse(error)
            del line.tenants[tenant_no]
        self._tidy(line)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
