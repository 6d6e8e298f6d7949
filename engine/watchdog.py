"""The watchdog of one server: holds tenants' sessions to their limits, from outside the session.

Whatever a tenant sets in its own session, here it counts for nothing: one look at a time at all
sessions of tenants' logins (`watch_rules.judge`), then one statement that acts, each time against
exactly the session, statement and transaction that was seen.

Rules this module keeps:

* One session on the server, one query per look, however many sessions there are.
* Of several watchdogs one acts: an advisory lock decides, and goes with the connection.
* A lost connection is made again, and what is known outlives it; nothing but `stop` ends the watch.
* A tenant that holds on to its login's row holds up nothing (`login_changes`): whoever is to be
  ended is ended before any login is altered.
* What it did is logged and counted, by offence and never by tenant.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.crypto import MasterKey
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.identifiers import RoleName, ServerName
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import TenantType
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.layout import ROWS_ROLE, shared_database
from tenancy.data_isolation.engine.login_changes import SESSION_SETTINGS
from tenancy.data_isolation.engine.login_watch import LoginWatch
from tenancy.data_isolation.engine.long_statements import SPENT_FACTOR, server_long_statements_max
from tenancy.data_isolation.engine.priority import make_less_important
from tenancy.data_isolation.engine.session_marks import SessionId, SessionMarks
from tenancy.data_isolation.engine.sql_files import SqlFile
from tenancy.data_isolation.engine.watch_rules import Action, Offence, SessionView, judge

_log = logging.getLogger(__name__)

_SQL = SqlFile("watchdog.sql")
#: How long a watchdog waits before it connects again, or asks again whether it is its turn.
_RETRY_S: Final = 1.0
#: The same when it was at work until then.
_RETURN_S: Final = 0.05
#: How often the logins are looked at, and how long what the catalog said of them is believed.
_LOGINS_S: Final = 1.0
_TYPES_S: Final = 10.0
#: The runtime's own sessions are made less important when they are sure not to be used again.
_LOWERED_FACTOR: Final = SPENT_FACTOR + 0.5
#: How long a session may take to end before it is ended again.
_GOING_S: Final = 1.0
#: A look that takes longer than this is one that has failed.
_LOOK_TIMEOUT_S: Final = 5.0
#: Who has not looked for so long does not watch, whatever it is doing.
_OVERDUE_S: Final = 1.0
_ACTING: Final = "acting"
#: Columns of a look that are no part of what is judged.
_NAMES: Final = frozenset({"application_name", "database", "login_lock"})
_MEND: Final = "grant pg_monitor, pg_signal_backend to"


@dataclass(slots=True)
class WatchdogReport:
    """What a watchdog is doing and has done since it started."""

    server: ServerName
    #: `acting`, `standby` (another one acts), or why it does not watch.
    state: str = "starting"
    looks: int = 0
    #: Time of the last look, in milliseconds, acting included.
    look_ms: float = 0.0
    actions: Counter[Offence] = field(default_factory=Counter)
    #: Sessions whose processes got less of the processor from then on.
    lowered: int = 0
    #: Sessions that had changed hands, or ended, before anything was done to them.
    missed: int = 0
    #: When the last look ended (monotonic time).
    looked_at: float = 0.0

    @property
    def state_now(self) -> str:
        """The state; one that acts and whose look is overdue is none that acts."""
        late_s = time.monotonic() - self.looked_at
        if self.state == _ACTING and late_s >= _OVERDUE_S:
            return f"late: the last look ended {late_s:.0f} s ago"
        return self.state

    def plain(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "server": self.server,
            "state": self.state_now,
            "looks": self.looks,
            "look_ms": round(self.look_ms, 2),
            "actions": {offence.value: self.actions[offence] for offence in Offence},
            "lowered": self.lowered,
            "missed": self.missed,
        }


class Watchdog:
    """Watches one server. Belongs to one event loop; `run` it in a task."""

    def __init__(
        self,
        *,
        settings: Settings,
        master_key: MasterKey,
        admin: AdminConnections,
        server: ServerName,
    ) -> None:
        """The first server of `admin` holds the catalog."""
        self.report = WatchdogReport(server)
        self._settings = settings
        self._admin = admin
        self._server = server
        self._control = ServerName(admin.servers[0].name)
        self._database = shared_database(settings)
        self._long_max = server_long_statements_max(settings)
        self._stopping = asyncio.Event()
        self._marks = SessionMarks(
            master_key,
            server,
            entries_max=settings.catalog_page_rows_max * 10,
            connect_timeout_s=settings.connect_timeout_s,
        )
        self._logins = LoginWatch(
            settings=settings, master_key=master_key, server=server, clock=time.monotonic
        )
        #: Transactions that held a lock on the catalogs of logins at the last look.
        self._holding: set[tuple[Any, ...]] = set()
        #: Statements that were cancelled, and sessions that were ended and when, as long as they
        #: are seen: once is enough, and who is on the way out does not count any more.
        self._cancelled: set[tuple[Any, ...]] = set()
        self._ended: dict[tuple[int, datetime], float] = {}
        #: Sessions whose processes were made less important, or could not be.
        self._lowered: set[tuple[int, datetime]] = set()

    async def run(self) -> None:
        """Watch until `stop`. Raises nothing but cancellation."""
        while not self._stopping.is_set():
            began_at = self.report.looks
            try:
                await self._watch()
            except (TenancyError, OSError, TimeoutError, asyncpg.PostgresError) as error:
                self._tell(f"not watching: {type(error).__name__}")
            except asyncpg.InterfaceError:
                self._tell("not watching: the connection broke")
            except Exception:
                _log.exception("the watchdog of server %s failed; it starts again", self._server)
                self._tell("not watching: it failed")
            await self._pause(_RETURN_S if self.report.looks > began_at else _RETRY_S)
        self._tell("stopped")

    def stop(self) -> None:
        """End `run` soon; logins get back what they may have."""
        self._stopping.set()

    async def _watch(self) -> None:
        connection = await self._admin.connect(self._server, self._database)
        try:
            await connection.execute(SESSION_SETTINGS, timeout=_LOOK_TIMEOUT_S)
            sight = await connection.fetchrow(_SQL.statement("sight"), timeout=_LOOK_TIMEOUT_S)
            if sight is None or not (sight["sees"] and sight["signals"]):
                admin = "the admin role" if sight is None else sight["admin"]
                self._tell(f"blind: {_MEND} {admin}")
                return
            become = _SQL.statement("become_watchdog")
            while not await connection.fetchval(become, timeout=_LOOK_TIMEOUT_S):
                self._tell("standby")
                if await self._pause(_RETRY_S):
                    return
            await self._act(connection, superuser=sight["superuser"])
        finally:
            await close(connection, self._settings.connect_timeout_s)

    async def _act(self, connection: asyncpg.Connection, *, superuser: bool) -> None:
        """Look and act until it is time to stop, or the connection breaks."""
        logins = self._logins
        logins.prepare(superuser=superuser)
        await logins.settle(connection)
        await self._compare_clocks(connection)
        sessions = await connection.prepare(_SQL.statement("sessions"), timeout=_LOOK_TIMEOUT_S)
        self.report.looked_at = time.monotonic()
        self._tell(_ACTING)
        tick_s = self._settings.watchdog_tick_ms / 1_000
        logins_at = types_at = 0.0
        while True:
            began = time.monotonic()
            rows = await sessions.fetch(ROWS_ROLE, timeout=_LOOK_TIMEOUT_S)
            await self._judge(connection, logins, rows)
            await logins.settle(connection)
            await logins.limit(connection)
            if began - types_at >= _TYPES_S:
                types_at = began
                await self._compare_clocks(connection)
                logins.forget()
                await self._learn(connection, logins, await logins.unusual(connection))
            if began - logins_at >= _LOGINS_S:
                logins_at = began
                await self._see_to_logins(connection, logins)
            self.report.looked_at = time.monotonic()
            took = self.report.looked_at - began
            self.report.looks += 1
            self.report.look_ms = took * 1_000
            if await self._pause(max(tick_s - took, tick_s / 5)):
                await logins.restore(connection)
                return

    async def _judge(
        self, connection: asyncpg.Connection, logins: LoginWatch, rows: list[asyncpg.Record]
    ) -> None:
        await self._learn(connection, logins, {RoleName(row["role"]) for row in rows})
        views = self._without_ended(self._views(rows))
        self._lower(views)
        verdict = judge(
            views,
            logins.limits_of,
            # The runtime looks at its own after that time; a stranger's are many sooner.
            long_ms=max(1, self._settings.long_statement_ms // 2),
            server_long_max=self._long_max,
        )
        cancelled = {_statement(action) for action in verdict.actions if not action.ends}
        actions = [
            action
            for action in verdict.actions
            if action.ends or _statement(action) not in self._cancelled
        ]
        self._cancelled = cancelled
        if actions:
            await self._do(connection, actions)
        # The door after that: who is in can hold it open. Who is back meanwhile is seen next time.
        for role, left in verdict.penalties.items():
            logins.penalize(role, left)

    async def _do(self, connection: asyncpg.Connection, actions: list[Action]) -> None:
        """One statement for all of them."""
        views = [action.session for action in actions]
        done = await connection.fetch(
            _SQL.statement("act"),
            [view.pid for view in views],
            [view.backend_start for view in views],
            [item.session.query_start if item.same_statement else None for item in actions],
            [item.session.xact_start if item.same_transaction else None for item in actions],
            [item.ends for item in actions],
            timeout=_LOOK_TIMEOUT_S,
        )
        now = time.monotonic()
        for row in done:
            action = actions[row["index"]]
            if action.ends:
                self._ended[action.session.pid, action.session.backend_start] = now
            self.report.actions[action.offence] += 1
            _log.warning(
                "%s: login %s, pid %d: %s; %s",
                self._server,
                action.session.role,
                action.session.pid,
                action.offence,
                "session ended" if action.ends else "statement cancelled",
            )
        self.report.missed += len(actions) - len(done)

    async def _see_to_logins(self, connection: asyncpg.Connection, logins: LoginWatch) -> None:
        logins.open_doors()
        for offence in await logins.undo_changes(connection):
            self.report.actions[offence] += 1

    async def _learn(
        self, connection: asyncpg.Connection, logins: LoginWatch, roles: Collection[RoleName]
    ) -> None:
        """Ask the catalog whose logins these are."""
        unknown = logins.unknown(roles)
        if not unknown:
            return
        query = _SQL.statement("types_of_logins")
        if self._server == self._control:
            rows = await connection.fetch(query, self._server, unknown, timeout=_LOOK_TIMEOUT_S)
        else:
            async with self._admin.session(self._control, self._database) as control:
                rows = await control.fetch(query, self._server, unknown, timeout=_LOOK_TIMEOUT_S)
        types = {RoleName(row["role"]): TenantType(row["tenant_type"]) for row in rows}
        logins.learn(unknown, types)

    def _views(self, rows: list[asyncpg.Record]) -> list[SessionView]:
        """The sessions, and whose they are."""
        self._marks.look(rows)
        held, self._holding = self._holding, set()
        views = []
        for row in rows:
            session = SessionId(row["pid"], row["backend_start"])
            # One that is over at once was seen by chance.
            transaction = (*session, row["xact_start"])
            if row["login_lock"]:
                self._holding.add(transaction)
            views.append(
                SessionView(
                    **{key: value for key, value in row.items() if key not in _NAMES},
                    marked=self._marks.is_own(session),
                    copied=self._marks.is_copy(session),
                    shared=row["role"] == ROWS_ROLE,
                    login_lock=row["login_lock"] and transaction in held,
                )
            )
        return views

    def _without_ended(self, views: list[SessionView]) -> list[SessionView]:
        """Those that are not on their way out; who does not go is looked at again."""
        if not self._ended:
            return views
        since = time.monotonic() - _GOING_S
        keys = {(view.pid, view.backend_start) for view in views}
        self._ended = {key: at for key, at in self._ended.items() if key in keys and at >= since}
        return [view for view in views if (view.pid, view.backend_start) not in self._ended]

    def _lower(self, views: list[SessionView]) -> None:
        """Take processor time from statements that take long, and from all of strangers."""
        long_ms = self._settings.long_statement_ms * _LOWERED_FACTOR
        slow = {
            (view.pid, view.backend_start)
            for view in views
            if view.active and (not view.marked or (view.statement_ms or 0) >= long_ms)
        }
        for pid, backend_start in slow - self._lowered:
            self.report.lowered += make_less_important(pid, backend_start)
        known = {(view.pid, view.backend_start) for view in views}
        self._lowered = (self._lowered | slow) & known

    async def _compare_clocks(self, connection: asyncpg.Connection) -> None:
        """A server whose clock is off must not have the runtime's sessions taken for strangers."""
        there = await connection.fetchval(_SQL.statement("time_of_day"), timeout=_LOOK_TIMEOUT_S)
        self._marks.clock_ahead_s = float(there) - time.time()

    async def _pause(self, seconds: float) -> bool:
        """Wait; whether it is time to stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _tell(self, state: str) -> None:
        if state != self.report.state:
            _log.info("watchdog of server %s: %s", self._server, state)
            self.report.state = state


def _statement(action: Action) -> tuple[Any, ...]:
    """What tells one statement of one session from all others."""
    view = action.session
    return view.pid, view.backend_start, view.query_start
