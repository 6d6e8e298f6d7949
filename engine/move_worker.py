"""Whoever carries moves out: claims those that nobody works at, up to a number over all processes.

Rules this module keeps:

* A move is worked at by who holds its lock in the catalog's database, on a connection of its own:
  the lock goes with the connection, so a process that dies gives all its moves back at once.
* A move that copies takes one of `Settings.moves_at_once_max` slots, which are locks as well.
* What fails is tried again after a pause that grows, by whoever comes first; what no attempt can
  overcome lets the move fail, and the tenant works where it was.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Final

import asyncpg

from tenancy.data_isolation.core.clock import Clock, SystemClock
from tenancy.data_isolation.core.errors import (
    LimitError,
    OverloadedError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import ServerName
from tenancy.data_isolation.core.move import Move, MoveId, MoveState
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.engine.admin import AdminConnections, close
from tenancy.data_isolation.engine.binding_keys import BindingKeys
from tenancy.data_isolation.engine.catalog import Catalog
from tenancy.data_isolation.engine.layout import shared_database
from tenancy.data_isolation.engine.move_reasons import told, told_of
from tenancy.data_isolation.engine.move_store import MoveDesk, MoveStore, SupersededError
from tenancy.data_isolation.engine.mover import CutOffError, Mover, PausedError
from tenancy.data_isolation.engine.placement_maker import PlacementMaker
from tenancy.data_isolation.engine.sql_files import SqlFile

_log = logging.getLogger(__name__)
_SQL = SqlFile("move.sql")
#: Attempts that follow each other at once when a tenant can be closed.
_CUT_OFF_MAX: Final = 5
#: How often what is under way is told to end, when the worker is closed.
_CANCELLATIONS_MAX: Final = 3
#: What another attempt may overcome.
_PASSING: Final = (
    LimitError,
    UnavailableError,
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.TransactionRollbackError,
    asyncpg.ObjectInUseError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
)


class MoveWorker:
    """Carries moves out until it is closed. Belongs to one event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        catalog: Catalog,
        admin: AdminConnections,
        keys: BindingKeys,
        maker: PlacementMaker,
        clock: Clock | None = None,
    ) -> None:
        #: The one move that is carried out; None = all.
        self._only: MoveId | None = None
        self._settings = settings
        self._store = MoveStore(catalog, settings)
        self._admin = admin
        self._keys = keys
        self._maker = maker
        self._clock = clock or SystemClock()
        self._control = (ServerName(admin.servers[0].name), shared_database(settings))
        self._tasks: dict[MoveId, asyncio.Task[bool]] = {}
        #: When a move that has failed, or is open, is looked at again, on the clock that measures
        #: intervals, and which of them are open: these do not wait when something is wished.
        self._later_s: dict[MoveId, float] = {}
        self._resting: set[MoveId] = set()
        #: Sessions of ours that owned a move when their connections were lost, by their process
        #: ids at the server, which may not have noticed.
        self._lost: dict[MoveId, int] = {}
        self._wake = asyncio.Event()
        self._nudge = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None

    def start(self, only: MoveId | None = None) -> None:
        """Begin to look for moves, or for one alone. Can be called again."""
        self._only = only
        if self._loop is None:
            self._loop = asyncio.get_running_loop().create_task(self._run())

    def wake(self) -> None:
        """Look now, and let what rests look whether something is wished."""
        self._wake.set()
        self._nudge.set()
        self._nudge = asyncio.Event()

    async def close(self) -> None:
        """Let go of everything; moves that are not finished are taken up by whoever comes next."""
        tasks: list[asyncio.Task[Any]] = [*self._tasks.values()]
        if self._loop is not None:
            tasks.append(self._loop)
        for _ in range(_CANCELLATIONS_MAX):
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            # One that rolls back on the way out may wait for a server that does not answer.
            _, late = await asyncio.wait(tasks, timeout=self._settings.connect_timeout_s)
            tasks = list(late)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self._look()
            except TenancyError as error:
                _log.warning("cannot look for moves: %s", error.detail)
            except Exception:
                # Whatever it was, moves are not to stand still for the rest of this process.
                _log.exception("cannot look for moves")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.move_poll_s):
                    await self._wake.wait()

    async def _look(self) -> None:
        """Begin what nobody works at."""
        unsettled = await self._store.unsettled()
        known = {move.move_id for move in unsettled}
        self._later_s = {name: at for name, at in self._later_s.items() if name in known}
        self._resting &= known
        self._lost = {name: pid for name, pid in self._lost.items() if name in known}
        # Each kind has so many places: those that copy, and those that are open or are cleaned up.
        busy = Counter(_copies(move) for move in unsettled if move.move_id in self._tasks)
        for move in sorted(unsettled, key=lambda item: item.wish is None):
            if busy[_copies(move)] >= self._settings.moves_at_once_max or not self._is_due(move):
                continue
            busy[_copies(move)] += 1
            task = asyncio.get_running_loop().create_task(self._carry_out(move))
            self._tasks[move.move_id] = task
            task.add_done_callback(self._ended(move.move_id))

    def _is_due(self, move: Move) -> bool:
        if self._only not in (None, move.move_id):
            return False
        if move.move_id in self._tasks or move.stands_still:
            return False
        if move.move_id in self._resting and move.wish is not None:
            return True
        now_s = self._clock.monotonic_s()
        return self._later_s.get(move.move_id, now_s) <= now_s

    def _ended(self, move_id: MoveId) -> Callable[[asyncio.Task[bool]], None]:
        def forget(task: asyncio.Task[bool]) -> None:
            del self._tasks[move_id]
            # There may be room for another one. Nothing has changed where somebody else is at it.
            if not task.cancelled() and task.exception() is None and task.result():
                self._wake.set()

        return forget

    async def _carry_out(self, move: Move) -> bool:
        """One attempt at a move, if nobody else is at it; whether there was one that succeeded.

        One that was cut off when the tenant could be closed is followed by another at once.
        """
        try:
            for _ in range(_CUT_OFF_MAX):
                try:
                    async with self._owned(move) as desk:
                        return desk is not None and await self._attempt(move, desk)
                except CutOffError as error:
                    _log.warning("move %s was cut off: %s", move.move_id, error)
            self._try_later(move, 1)
        except asyncio.CancelledError:
            raise
        except SupersededError:
            _log.info("move %s is carried out by somebody else", move.move_id)
        except Exception as error:
            self._try_later(move, 1)
            _log.warning("move %s: %s", move.move_id, told(error))
        return False

    async def _attempt(self, move: Move, desk: MoveDesk) -> bool:
        slot = _Slot(desk)
        if _copies(move) and not await slot.take(self._settings.moves_at_once_max):
            return False
        mover = Mover(
            desk,
            settings=self._settings,
            admin=self._admin,
            keys=self._keys,
            maker=self._maker,
            clock=self._clock,
            sleep=self._rest,
            opened=slot.free,
        )
        self._resting.discard(move.move_id)
        try:
            if not await mover.run():
                self._resting.add(move.move_id)
                now_s = self._clock.monotonic_s()
                self._later_s[move.move_id] = now_s + self._settings.move_follow_s
        except (asyncio.CancelledError, SupersededError, CutOffError):
            raise
        except PausedError:
            return True
        except Exception as error:
            await self._failed(mover, desk, error)
            return False
        return True

    async def _failed(self, mover: Mover, desk: MoveDesk, error: Exception) -> None:
        """Try again later, or let the move fail."""
        if desk.control.is_closed():
            raise error
        move = await desk.read()
        failures = move.progress.failures + 1
        reason = told_of(move, error)
        known = isinstance(error, (TenancyError, asyncpg.PostgresError, *_PASSING))
        trace = None if known else error
        _log.warning("move %s (%s): %s", move.move_id, move.state, reason, exc_info=trace)
        if not isinstance(error, _PASSING) or failures >= self._settings.move_failures_max:
            await mover.give_up(reason)
            move = await desk.read()
            if move.is_settled:
                return
        await desk.note_progress(replace(move.progress, failures=failures))
        await desk.note_error(reason)
        # Who cannot keep up with its tenant lets others go first.
        self._try_later(move, 10 if isinstance(error, OverloadedError) else failures)

    async def _rest(self, pause_s: float) -> None:
        """Rest, but not beyond the moment at which something is wished in this process."""
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._nudge.wait()

    def _try_later(self, move: Move, failures: int) -> None:
        pause_s = min(0.1 * 2 ** min(failures, 10), self._settings.move_retry_s)
        self._later_s[move.move_id] = self._clock.monotonic_s() + pause_s

    @asynccontextmanager
    async def _owned(self, move: Move) -> AsyncIterator[MoveDesk | None]:
        """The desk of a move that nobody else works at; None when somebody does."""
        timeout_s = self._settings.move_owner_timeout_s
        lost = self._lost.get(move.move_id)
        if lost is None:
            # Over one that is kept: making one only to find that somebody is at it costs more.
            async with self._admin.session(*self._control) as scout:
                text = _SQL.statement("is_free")
                if not await scout.fetchval(text, move.move_id, timeout=timeout_s):
                    yield None
                    return
        connection = await self._admin.connect(
            *self._control, name="tenancy mover", command_timeout_s=timeout_s
        )
        try:
            if lost is not None:
                wait_ms = round(timeout_s * 1_000)
                await connection.execute(_SQL.statement("end_own"), lost, wait_ms)
                self._lost.pop(move.move_id, None)
            if not await connection.fetchval(_SQL.statement("try_own"), move.move_id):
                yield None
                return
            pid = connection.get_server_pid()
            await connection.fetchval(
                _SQL.statement("end_when_silent"), f"{round(timeout_s * 1_000)}ms"
            )
            desk = MoveDesk(connection, move.move_id)
            keeping = asyncio.get_running_loop().create_task(desk.keep(timeout_s / 4))
            try:
                yield desk
            finally:
                keeping.cancel()
                await asyncio.wait([keeping])
                if not keeping.cancelled() and keeping.exception() is not None:
                    _log.info("the session that owns %s is gone", move.move_id)
                if connection.is_closed():
                    self._lost[move.move_id] = pid
        finally:
            await close(connection, self._settings.connect_timeout_s)


class _Slot:
    """One of the places for moves that are carried out at the same time."""

    def __init__(self, desk: MoveDesk) -> None:
        self._desk = desk
        self._number: int | None = None

    async def take(self, slots: int) -> bool:
        """Take a place; False when there is none."""
        for number in range(slots):
            if await self._desk.ask("try_slot", number):
                self._number = number
                return True
        return False

    async def free(self) -> None:
        """Let another move have it. Can be called again."""
        if self._number is not None:
            await self._desk.ask("free_slot", self._number)
            self._number = None


def _copies(move: Move) -> bool:
    """Whether a move takes a slot: it has not yet brought the tenant to the target."""
    return not (move.state.is_final or move.state is MoveState.OPEN or move.reversing)
