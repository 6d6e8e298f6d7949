"""The actor's side of one client's connection: which answers travel back, and when.

Operations of a client come in requests that carry many of them. If a reply waited for all that its
request brought, one slow operation would hold up the fast ones; if every operation had its own
reply, the calls would cost more than the work. So a reply belongs to the session and not to the
operations of its request: it takes whatever has ended.

Measured with Ray 2.60 on two slow cores, 64 operations in a call, 4 calls under way: a plain call
that carries all, 1,600/s and 0.5 ms of the client's processor; a streaming generator with one item,
800/s and 1.1 ms; with two items, 590/s and 1.6 ms. A second plain call for what is late costs
nothing while nothing is late, hence plain calls.

Rules this module keeps:

* A finished operation waits for others to travel with: `reply_wait_s`, or half of the time that it
  has taken itself when that is more (then the machine is busy, and many small replies would make
  it busier); not at all when nothing else is under way, or when many have finished.
* A request waits only while something of its session is under way, and never holds up a newer one:
  of those that wait, the oldest gives way when there are more than the client wants to spend.
* A reply has a size; what does not fit goes with the next.

Used from one event loop; not safe for threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from tenancy.data_isolation.actors.wire import Packer, ResultPacker
from tenancy.data_isolation.core.errors import TenancyError

_log = logging.getLogger(__name__)
_WAIT_SHARE = 0.5
_WAIT_MAX_S = 0.05
#: So many answers wait for no others: while they travel, and lead to other operations, the rest of
#: their request is worked on.
_MANY = 16


class Cancellable(Protocol):
    """Something under way: a task, or what stands in its place."""

    def cancel(self) -> object:
        """Stop it."""
        ...


class Session:
    """Calls of one client that are under way, and answers that have not travelled yet."""

    def __init__(self, *, reply_wait_s: float, reply_bytes_max: int) -> None:
        self._reply_wait_s = reply_wait_s
        self._reply_bytes_max = reply_bytes_max
        self._running: dict[int, Cancellable | None] = {}
        self._ready: deque[tuple[int, Any]] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        #: Whether a request has been given the turn that has not used it yet.
        self._given = False
        self._heard_at = asyncio.get_running_loop().time()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way and nobody waits."""
        return not self._running and not self._waiting

    @property
    def waiting(self) -> bool:
        """Whether a request waits for its reply."""
        return bool(self._waiting)

    def abandoned(self, idle_s: float) -> bool:
        """Whether the client has not been heard of for so long."""
        return not self._waiting and asyncio.get_running_loop().time() - self._heard_at > idle_s

    def start(self, number: int, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work`, which never raises an `Exception`; what it returns is the call's outcome."""
        if number in self._running:
            work.close()
            return  # A request that Ray delivered twice.
        task = asyncio.get_running_loop().create_task(work)
        self._running[number] = task
        task.add_done_callback(partial(self._ended, number, asyncio.get_running_loop().time()))

    def begin(
        self, number: int, begin: Callable[[Callable[[Any], None]], Cancellable | None]
    ) -> bool:
        """Have `begin` begin a call without a task; whether it did, or the call is under way.

        `begin` is given what to call with the call's outcome, once; None = it was cancelled and has
        none. It gives None when it cannot.
        """
        if number in self._running:
            return True  # As in `start`.
        self._running[number] = None
        begun: Cancellable | None = None
        try:
            begun = begin(partial(self._over, number, asyncio.get_running_loop().time()))
        finally:
            if begun is None:
                self._running.pop(number, None)
        if begun is None:
            return False
        if number in self._running:
            self._running[number] = begun
        return True

    def cancel(self, number: int) -> None:
        """Stop a call that nobody waits for any more; it has no answer."""
        task = self._running.get(number)
        if task is not None:
            task.cancel()

    def cancel_all(self) -> None:
        """Stop all calls."""
        for task in list(self._running.values()):
            if task is not None:
                task.cancel()

    async def reply(self, waiting_max: int) -> bytes:
        """The next reply: a message of `Answer`s, empty when there is nothing to say."""
        self._heard_at = asyncio.get_running_loop().time()
        if self._running:
            await self._turn(waiting_max)
        self._given = False
        message = self._message()
        self._heard_at = asyncio.get_running_loop().time()
        if self._ready:
            self._wake()
        return message

    def _message(self) -> bytes:
        """The answers that are ready, as far as they fit.

        One that cannot travel becomes an error, and the message is begun anew: what was written of
        it, and what the pickler remembers of it, would spoil the answers of others.
        """
        taken: list[tuple[int, Any]] = []
        packer, results = self._packers()
        while self._ready and not packer.full:
            number, outcome = self._ready.popleft()
            try:
                packer.add((number, results.pack(outcome)))  # The fields of `Answer`.
            except Exception:
                _log.exception("the answer to call %d could not be packed", number)
                self._ready.extendleft(reversed([*taken, (number, TenancyError())]))
                taken = []
                packer, results = self._packers()
            else:
                taken.append((number, outcome))
        return packer.message()

    def _packers(self) -> tuple[Packer, ResultPacker]:
        return Packer((len(self._running),), self._reply_bytes_max), ResultPacker()

    async def _turn(self, waiting_max: int) -> None:
        """Wait until this request is the one that replies."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if len(self._waiting) > waiting_max:
            self._wake()
        else:
            self._call(0.0)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._wake()  # The turn was given, and cannot be used.
            raise
        finally:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _ended(self, number: int, started_at: float, task: asyncio.Task[Any]) -> None:
        outcome: Any = None
        if not task.cancelled():
            failed = task.exception() is not None  # Cannot be, but must not leave anyone waiting.
            outcome = TenancyError() if failed else task.result()
        self._over(number, started_at, outcome)

    def _over(self, number: int, started_at: float, outcome: Any) -> None:
        """A call has ended; outcome None = it was cancelled, and has no answer."""
        del self._running[number]
        if outcome is not None:
            self._ready.append((number, outcome))
        if not self._running:
            self._wake_all()
        else:
            self._call(asyncio.get_running_loop().time() - started_at)

    def _call(self, taken_s: float) -> None:
        """Have what is ready travel, now or soon; the last one of it has taken so long.

        A request that has been given the turn takes along what ends until it comes to it.
        """
        if self._given or not self._ready or not self._waiting:
            return
        if len(self._ready) >= _MANY:
            self._wake()
        elif self._timer is None:
            self._set_timer(taken_s)

    def _set_timer(self, taken_s: float) -> None:
        wait_s = max(self._reply_wait_s, min(taken_s * _WAIT_SHARE, _WAIT_MAX_S))
        self._timer = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        """Give the turn to the request that has waited for longest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._given = False
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                self._given = True
                return

    def _wake_all(self) -> None:
        self._wake()
        while self._waiting:
            self._wake()
