"""The client's side of the way to one actor: operations coalesce, answers find their waiters.

Rules this module keeps:

* What is queued when the event loop comes round travels in one call. While as many calls are under
  way as may be, what comes is queued and goes with the next one. When many operations are under way
  a small queue grows for some milliseconds first.
* The queue is bounded; when it is full the caller hears so at once, and so does who would wait for
  too much of its time (`core.backlog`).
* Whoever stops waiting stops the operation: in the queue, or at the actor.
* When the actor is lost, what had been sent is of unknown outcome. What changes nothing, and what
  carries an idempotency key, is sent once more when the actor is back; any other write is reported
  as `OutcomeUnknownError`. What was still queued waits for the actor, as long as its deadline lets.
* Nobody waits for much longer than the deadline, whatever the actor does.

Knows nothing of Ray: it is given a function that connects to the actor. Used from one event loop;
not safe for threads.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tenancy.data_isolation.actors.wire import (
    PackedOperation,
    Packer,
    RequestHeader,
    ResultUnpacker,
    unpack,
)
from tenancy.data_isolation.core.backlog import Backlog
from tenancy.data_isolation.core.clock import Clock
from tenancy.data_isolation.core.errors import (
    OutcomeUnknownError,
    OverloadedError,
    RateLimitedError,
    StatementTimeoutError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.settings import Settings

#: Sends one request to the actor and gives its reply; raises `ActorLostError`.
Send: TypeAlias = Callable[[bytes], Awaitable[bytes]]

_OVERLOADED_RETRY_AFTER_S = 1.0
#: Ends that no work has led to.
_TURNED_AWAY = OverloadedError | RateLimitedError | StatementTimeoutError
#: How much longer than the deadline an answer may take before the actor counts as stuck.
_GRACE_S = 2.0
#: How often deadlines are looked at.
_SWEEP_S = 0.25
#: With so many operations at the actor, as many as there are, up to a number, are gathered for the
#: next call, for so long.
_GATHER_FROM = 6
_GATHER_MAX = 16
_GATHER_S = 0.003
_PROBE_FIRST_S = 0.05
_PROBE_MAX_S = 1.0


class ActorLostError(Exception):
    """The actor died, or cannot be reached; what was under way may or may not have been done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """How much may be on the way to one actor."""

    queued_max: int
    sent_max: int
    calls_max: int
    call_bytes_max: int
    restart_timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Limits:
        """The limits that the settings give."""
        return cls(
            queued_max=settings.actor_queued_operations_max,
            sent_max=settings.actor_sent_operations_max,
            calls_max=settings.actor_calls_max,
            call_bytes_max=settings.actor_call_bytes_max,
            restart_timeout_s=settings.actor_restart_timeout_s,
        )


@dataclass(kw_only=True, slots=True)
class Statistics:
    """What has gone through a channel."""

    operations: int = 0
    calls: int = 0
    retried: int = 0
    lost: int = 0


class _Entry:
    """A call that somebody waits for."""

    __slots__ = (
        "atomic",
        "final",
        "future",
        "number",
        "operations",
        "retried",
        "tenant",
        "trace",
        "until",
    )

    def __init__(
        self,
        tenant: TenantId,
        operations: tuple[PackedOperation, ...],
        atomic: bool | None,
        until: float,
        final: bool,
        future: asyncio.Future[Any],
        trace: str | None,
    ) -> None:
        self.number = 0
        self.tenant = tenant
        self.operations = operations
        self.atomic = atomic
        self.until = until
        self.final = final
        self.future = future
        self.trace = trace
        self.retried = False


class ActorChannel:
    """The way to one actor.

    `connect` gives the function that sends to the actor as it is now; it is asked again when the
    actor was lost. `changes_nothing` says of a statement that it only reads.
    """

    def __init__(
        self,
        *,
        name: str,
        connect: Callable[[], Awaitable[Send]],
        changes_nothing: Callable[[str], bool],
        limits: Limits,
        clock: Clock,
    ) -> None:
        self._name = name
        self._connect = connect
        self._changes_nothing = changes_nothing
        self._limits = limits
        self._clock = clock
        self._queue: deque[_Entry] = deque()
        self._sent: dict[int, _Entry] = {}
        self._cancelled: list[int] = []
        self._backlog = Backlog()
        self._numbers = itertools.count(1)
        self._session = secrets.token_hex(8)
        self._send: Send | None = None
        self._connecting: asyncio.Task[None] | None = None
        #: Tasks of calls; nobody else holds them.
        self._calls: set[asyncio.Task[None]] = set()
        self._calls_under_way = 0
        self._heard_at = 0.0
        self._suspected_at: float | None = None
        self._flush_due = False
        self._gathering: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.statistics = Statistics()

    async def perform(
        self,
        tenant: TenantId,
        operations: tuple[PackedOperation, ...],
        *,
        atomic: bool | None,
        deadline_s: float,
        final: bool,
        trace: str | None = None,
    ) -> Any:
        """Have the actor run a call; its outcome as `ResultUnpacker.unpack` gives it.

        Cancelling this cancels the statement. Raises `OverloadedError`, `UnavailableError`,
        `StatementTimeoutError` and `OutcomeUnknownError` for what becomes of the way itself.
        """
        if self._closed:
            raise UnavailableError("the client is closed; connect again")
        if len(self._queue) >= self._limits.queued_max:
            raise OverloadedError(
                f"{self._limits.queued_max} operations wait for the tenant's actor already; "
                "nothing was done; wait and try again",
                retry_after_s=_OVERLOADED_RETRY_AFTER_S,
            )
        loop = asyncio.get_running_loop()
        until = self._clock.monotonic_s() + deadline_s
        entry = _Entry(tenant, operations, atomic, until, final, loop.create_future(), trace)
        self._backlog.enter(tenant, deadline_s)
        self._queue.append(entry)
        self._plan_flush()
        if self._sweep_timer is None:
            self._sweep_timer = loop.call_later(_SWEEP_S, self._sweep)
        done = False
        try:
            outcome = await entry.future
            # A result that was too large was work all the same.
            done = not isinstance(outcome, _TURNED_AWAY)
        except asyncio.CancelledError:
            self._abandon(entry)
            raise
        finally:
            self._backlog.leave(tenant, self._clock.monotonic_s(), done=done)
        if isinstance(outcome, TenancyError):
            raise outcome
        return outcome

    @property
    def waiting(self) -> int:
        """Calls that somebody waits for: those that are queued, and those that were sent."""
        return len(self._queue) + len(self._sent)

    async def close(self) -> None:
        """Stop. What is under way is cancelled at the actor, as far as that can be reached."""
        if self._closed:
            return
        self._closed = True
        self._fail_queue(UnavailableError("the client was closed; nothing was done"))
        if self._send is not None and self._sent:
            self._cancelled.extend(self._sent)
            self._launch(self._send)
        for entry in self._sent.values():
            self._fail(entry, UnavailableError("the client was closed"), sent=True)
        self._sent.clear()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        if self._gathering is not None:
            self._gathering.cancel()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=_GRACE_S)
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    # Sending

    def _plan_flush(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what can be sent now."""
        self._flush_due = False
        if self._closed:
            return
        if self._send is None:
            if self._connecting is None and self._queue:
                self._connecting = asyncio.create_task(self._make_connection())
            return
        if self._gathers():
            return
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        while self._has_to_call() and self._calls_under_way < self._limits.calls_max:
            self._launch(self._send)

    def _gathers(self) -> bool:
        """Whether to let a small queue grow for a moment, because much is under way already.

        Nagle's rule (RFC 896). Where little is under way nothing waits.
        """
        at_actor = len(self._sent)
        if not self._calls_under_way or self._cancelled or at_actor < _GATHER_FROM:
            return False
        if len(self._queue) >= min(at_actor, _GATHER_MAX):
            return False
        loop = asyncio.get_running_loop()
        if self._gathering is None:
            self._gathering = loop.call_later(_GATHER_S, self._plan_flush)
        return loop.time() < self._gathering.when()

    def _has_to_call(self) -> bool:
        if self._queue and len(self._sent) < self._limits.sent_max:
            return True
        # Answers come only as replies, so as long as any is due one call has to be under way.
        return bool(self._cancelled or (self._sent and not self._calls_under_way))

    def _launch(self, send: Send) -> None:
        cancelled, self._cancelled = tuple(self._cancelled), []
        header = RequestHeader(self._session, cancelled, self._limits.calls_max - 1)
        packer = Packer(header, self._limits.call_bytes_max)
        now = self._clock.monotonic_s()
        texts: dict[str, str] = {}
        while self._queue and len(self._sent) < self._limits.sent_max and not packer.full:
            entry = self._queue.popleft()
            if entry.future.done():
                continue
            entry.number = next(self._numbers)
            self._sent[entry.number] = entry
            call = (
                entry.number,
                entry.tenant,
                _with_shared_texts(entry.operations, texts),
                entry.atomic,
                max(entry.until - now, 0.001),
                entry.final,
                entry.trace,
            )  # The fields of `Call`.
            packer.add(call)
            self.statistics.operations += len(entry.operations)
        self.statistics.calls += 1
        self._calls_under_way += 1
        task = asyncio.get_running_loop().create_task(
            self._call(send, self._session, packer.message())
        )
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _call(self, send: Send, session: str, message: bytes) -> None:
        try:
            reply = await send(message)
            if session == self._session:
                self._take(reply)
        except Exception as error:
            # Also a reply that means nothing: without it no one knows what was done.
            if session == self._session:
                self._lose(error)
            return
        if session == self._session:
            self._calls_under_way -= 1
            self._plan_flush()

    def _take(self, reply: bytes) -> None:
        """Hand the answers of a reply to those who wait for them."""
        self._heard_at = self._clock.monotonic_s()
        answers = unpack(reply)
        next(answers)
        results = ResultUnpacker()
        for number, outcome in answers:
            entry = self._sent.pop(number, None)
            if entry is not None and not entry.future.done():
                entry.future.set_result(results.unpack(outcome))

    # Losing the actor and finding it again

    def _lose(self, error: Exception) -> None:
        """Give the session up: decide for each call that was sent whether it is sent again."""
        self.statistics.lost += 1
        self._session = secrets.token_hex(8)
        self._send = None
        self._calls_under_way = 0
        self._suspected_at = None
        self._cancelled.clear()
        for task in self._calls - {asyncio.current_task()}:
            task.cancel()
        lost, self._sent = self._sent, {}
        again = []
        for entry in lost.values():
            if entry.retried or not self._may_repeat(entry):
                self._fail(entry, self._lost_error(error), sent=True)
            elif not entry.future.done():
                entry.retried = True
                again.append(entry)
        self.statistics.retried += len(again)
        self._queue.extendleft(reversed(again))
        self._plan_flush()

    async def _make_connection(self) -> None:
        """Connect, and make sure that the actor answers before anything is sent."""
        wait_s, reason = _PROBE_FIRST_S, "it did not answer"
        probe = Packer(RequestHeader(self._session, (), 0), 0).message()
        try:
            async with asyncio.timeout(self._limits.restart_timeout_s):
                while True:
                    try:
                        send = await self._connect()
                        await send(probe)
                        break
                    except ActorLostError as error:
                        reason = str(error)
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, _PROBE_MAX_S)
            self._send = send
        except TimeoutError:
            self._fail_queue(
                UnavailableError(
                    f"the tenant's actor {self._name} cannot be reached: {reason}; nothing was "
                    "done; `tenancy doctor` says more"
                )
            )
        except TenancyError as error:
            self._fail_queue(error)
        except Exception as error:
            # Whatever Ray raises when this process has left the cluster.
            text = f"the tenant's actor {self._name} cannot be reached: {type(error).__name__}"
            self._fail_queue(UnavailableError(text))
        finally:
            self._connecting = None
            self._plan_flush()

    def _may_repeat(self, entry: _Entry) -> bool:
        return all(
            key is not None or self._changes_nothing(query) for query, _, _, key in entry.operations
        )

    def _lost_error(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            f"the tenant's actor {self._name} was lost ({error or type(error).__name__})"
        )

    # Ends that no answer brings

    def _abandon(self, entry: _Entry) -> None:
        """Nobody waits any more. An entry in the queue is passed over when its turn comes."""
        if self._sent.pop(entry.number, None) is not None:
            self._cancelled.append(entry.number)
            self._plan_flush()

    def _sweep(self) -> None:
        """End what is past its deadline, and find out whether the actor still answers."""
        now = self._clock.monotonic_s()
        for entry in self._queue:
            if entry.until <= now:
                self._fail(
                    entry,
                    StatementTimeoutError(
                        "the deadline passed while the operation waited for the tenant's actor; "
                        "nothing was done"
                    ),
                )
        self._queue = deque(entry for entry in self._queue if not entry.future.done())
        stuck = [entry for entry in self._sent.values() if entry.until + _GRACE_S <= now]
        for entry in stuck:
            late = f"the deadline passed, and the tenant's actor {self._name} has not answered"
            self._fail(entry, StatementTimeoutError(late), sent=True)
            self._abandon(entry)
        self._suspect(now, bool(stuck))
        self._sweep_timer = None
        if self._queue or self._sent or self._suspected_at is not None:
            self._sweep_timer = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)

    def _suspect(self, now: float, late: bool) -> None:
        """When an answer is late, ask the actor for a sign of life; without one it is lost."""
        if self._suspected_at is None:
            if late and self._send is not None:
                self._suspected_at = now
                # One call more than may be: an actor that lives answers the oldest at once.
                self._launch(self._send)
        elif self._heard_at >= self._suspected_at:
            self._suspected_at = None
        elif now - self._suspected_at > _GRACE_S:
            self._lose(ActorLostError("it does not answer"))

    def _fail_queue(self, error: TenancyError) -> None:
        queue, self._queue = self._queue, deque()
        for entry in queue:
            self._fail(entry, error)

    def _fail(self, entry: _Entry, error: TenancyError, *, sent: bool = False) -> None:
        """End a call with `error`, or with what is true of a write that had left this process."""
        if entry.future.done():
            return
        if (sent or entry.retried) and not self._reads(entry):
            error = OutcomeUnknownError(
                f"{error}; the write may or may not have happened: look, or give writes an "
                "idempotency key, with which they are repeated safely"
            )
        entry.future.set_result(error)

    def _reads(self, entry: _Entry) -> bool:
        return all(self._changes_nothing(operation[0]) for operation in entry.operations)


def _with_shared_texts(
    operations: Sequence[PackedOperation], texts: dict[str, str]
) -> tuple[PackedOperation, ...]:
    """The operations with equal texts made one object, so that each travels once."""
    if len(operations) == 1:
        query, params, pickled, key = operations[0]
        return ((texts.setdefault(query, query), params, pickled, key),)
    return tuple(
        (texts.setdefault(query, query), params, pickled, key)
        for query, params, pickled, key in operations
    )
