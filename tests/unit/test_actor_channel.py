"""The client's side: operations coalesce, and each ends whatever becomes of the actor.

The other side is a real `Session`, reached by a function call in place of Ray.
"""

from __future__ import annotations

import asyncio

import pytest

from tenancy.data_isolation.actors.channel import ActorChannel, ActorLostError, Limits
from tenancy.data_isolation.actors.session import Session
from tenancy.data_isolation.actors.statement_kind import changes_nothing
from tenancy.data_isolation.actors.wire import (
    Call,
    RequestHeader,
    pack_operation,
    unpack,
    unpack_operation,
)
from tenancy.data_isolation.core.clock import SystemClock
from tenancy.data_isolation.core.errors import (
    ConstraintError,
    OutcomeUnknownError,
    OverloadedError,
    StatementTimeoutError,
    TenancyError,
    UnavailableError,
)
from tenancy.data_isolation.core.identifiers import TenantId
from tenancy.data_isolation.core.types import Operation, QueryResult

READ, WRITE = "select 1", "insert into orders (id) values (1)"


class Counterpart:
    """An actor in this process: echoes the first parameter, holds `hold` until told, dies."""

    def __init__(self):
        self.sessions = {}
        self.requests = []
        self.done = []
        self.cancelled = []
        self.held = 0
        self.gate = asyncio.Event()
        self.alive = True
        self.death = asyncio.Event()
        self.deaf = False

    async def connect(self):
        if not self.alive:
            raise ActorLostError("dead")
        return self.send

    async def send(self, message):
        if self.deaf:
            await asyncio.Event().wait()
        work = asyncio.ensure_future(self._serve(message))
        death = asyncio.ensure_future(self.death.wait())
        await asyncio.wait((work, death), return_when=asyncio.FIRST_COMPLETED)
        if death.done():
            work.cancel()
            raise ActorLostError("killed")
        death.cancel()
        return work.result()

    async def _serve(self, message):
        items = unpack(message)
        header = RequestHeader(*next(items))
        calls = [Call(*item) for item in items]
        self.requests.append(calls)
        session = self.sessions.setdefault(
            header.session, Session(reply_wait_s=0.001, reply_bytes_max=1 << 16)
        )
        for number in header.cancelled:
            session.cancel(number)
        for call in calls:
            session.start(call.number, self._perform(call))
        return await session.reply(header.waiting_max)

    async def _perform(self, call):
        operation = unpack_operation(call.operations[0], call.deadline_s)
        value = operation.params[0] if operation.params else None
        if value == "hold":
            self.held += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled.append(call.number)
                raise
            finally:
                self.held -= 1
        if value == "fail":
            return ConstraintError("refused", "23505")
        self.done.append(value)
        return QueryResult(columns=(), rows=[[value]], row_count=1)

    async def die_and_restart(self):
        for session in self.sessions.values():
            session.cancel_all()
        self.sessions.clear()
        self.death.set()
        self.death = asyncio.Event()


@pytest.fixture
async def actor():
    return Counterpart()


@pytest.fixture
async def make(actor):
    channels = []

    def build(**limits):
        values = {
            "queued_max": 1_000,
            "sent_max": 500,
            "calls_max": 2,
            "call_bytes_max": 1 << 16,
            "restart_timeout_s": 5.0,
        }
        channel = ActorChannel(
            name="actor",
            connect=actor.connect,
            changes_nothing=changes_nothing,
            limits=Limits(**(values | limits)),
            clock=SystemClock(),
        )
        channels.append(channel)
        return channel

    yield build
    actor.deaf = False
    await asyncio.gather(*(channel.close() for channel in channels))


async def _perform(channel, value=None, query=READ, key=None, deadline_s=10.0):
    operation = Operation(query=query, params=[value], idempotency_key=key)
    return await channel.perform(
        TenantId("acme"),
        (pack_operation(operation, 1 << 20),),
        atomic=None,
        deadline_s=deadline_s,
        final=False,
    )


async def _until(condition):
    """Let the event loop run until something is true; the test's time limit ends it otherwise."""
    while not condition():
        await asyncio.sleep(0)


async def test_concurrent_operations_travel_together(make, actor):
    channel = make()

    results = await asyncio.gather(*(_perform(channel, number) for number in range(300)))

    assert [result.rows for result in results] == [[[number]] for number in range(300)]
    assert channel.statistics.operations == 300
    assert channel.statistics.calls <= 3


async def test_beside_slow_calls_a_quick_one_waits_for_no_others(make, actor):
    channel = make()
    slow = [asyncio.create_task(_perform(channel, "hold")) for _ in range(10)]
    await _until(lambda: actor.held == len(slow))
    # What comes back one by one shows that there is nothing to gather.
    for number in range(3):
        await _perform(channel, number)
        assert channel._gathering is None
    # The control: once several have come back together, a small queue grows for a moment.
    await asyncio.gather(*(_perform(channel, number) for number in range(20)))
    late = asyncio.create_task(_perform(channel, 5))
    await _until(lambda: channel._gathering is not None)
    await late
    actor.gate.set()
    await asyncio.gather(*slow)


async def test_an_operation_alone_travels_alone(make):
    # The control of the test before: calls are counted, and one that cannot coalesce is one call.
    channel = make()
    for number in range(5):
        await _perform(channel, number)

    assert channel.statistics.calls == 5


async def test_an_operation_fails_alone(make):
    channel = make()

    outcomes = await asyncio.gather(
        *(_perform(channel, value) for value in (1, "fail", 3)), return_exceptions=True
    )

    assert [outcome.rows for outcome in outcomes[::2]] == [[[1]], [[3]]]
    assert type(outcomes[1]) is ConstraintError
    assert outcomes[1].sqlstate == "23505"


async def test_slow_operations_hold_up_no_others_even_when_they_take_every_call(make, actor):
    channel = make(calls_max=2)
    slow = []
    for _ in range(5):
        slow.append(asyncio.create_task(_perform(channel, "hold")))
        await _until(lambda: actor.held == len(slow))

    assert (await _perform(channel, "fast")).rows == [["fast"]]

    assert not any(task.done() for task in slow)
    actor.gate.set()
    await asyncio.gather(*slow)


async def test_a_full_queue_turns_away_at_once_and_says_when_to_come_again(make, actor):
    channel = make(queued_max=10, sent_max=5)
    waiting = [asyncio.create_task(_perform(channel, "hold")) for _ in range(5)]
    await _until(lambda: actor.held == 5)
    waiting += [asyncio.create_task(_perform(channel, "hold")) for _ in range(10)]
    await asyncio.sleep(0)

    with pytest.raises(OverloadedError) as refused:
        await _perform(channel, 1)

    assert refused.value.retry_after_s
    actor.gate.set()
    await asyncio.gather(*waiting)
    await _perform(channel, 1)


async def test_what_is_at_the_actor_is_bounded(make, actor):
    channel = make(sent_max=7)
    waiting = [asyncio.create_task(_perform(channel, "hold")) for _ in range(50)]
    await _until(lambda: actor.requests and sum(map(len, actor.requests)) >= 7)
    await asyncio.sleep(0)

    assert sum(map(len, actor.requests)) == 7
    actor.gate.set()
    await asyncio.gather(*waiting)


async def test_a_large_queue_is_cut_into_calls_of_bounded_size(make, actor):
    channel = make(call_bytes_max=10_000)

    await asyncio.gather(*(_perform(channel, f"{number:01000}") for number in range(50)))

    assert max(map(len, actor.requests)) <= 11
    assert len(actor.done) == 50


async def test_one_who_stops_waiting_stops_the_statement_at_the_actor(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold"))
    await _until(lambda: actor.held)
    number = next(iter(channel._sent))

    task.cancel()
    await _until(lambda: actor.cancelled)

    assert actor.cancelled == [number]
    assert task.cancelled()


async def test_one_who_stops_waiting_in_the_queue_is_never_sent(make, actor):
    channel = make()
    await _perform(channel, "first")
    task = asyncio.create_task(_perform(channel, "second"))
    await asyncio.sleep(0)
    task.cancel()

    await _perform(channel, "third")

    assert actor.done == ["first", "third"]


async def test_a_read_is_repeated_once_when_the_actor_is_lost(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold"))
    await _until(lambda: actor.held)
    await actor.die_and_restart()
    await _until(lambda: len(actor.requests) >= 3)
    actor.gate.set()

    assert (await task).rows == [["hold"]]
    assert channel.statistics.retried == 1


async def test_a_read_whose_actor_is_lost_twice_fails_and_may_be_tried_again(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold"))
    for _ in range(2):
        await _until(lambda: actor.held)
        await actor.die_and_restart()
        await _until(lambda: not actor.held)

    with pytest.raises(UnavailableError) as error:
        await task

    assert error.value.retryable


async def test_a_write_under_way_when_the_actor_is_lost_is_reported_and_not_repeated(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold", WRITE))
    await _until(lambda: actor.held)
    await actor.die_and_restart()

    with pytest.raises(OutcomeUnknownError, match="idempotency key"):
        await task

    actor.gate.set()
    await _perform(channel, "other")
    assert actor.done == ["other"]


async def test_a_write_with_an_idempotency_key_is_repeated(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold", WRITE, key="k"))
    await _until(lambda: actor.held)
    await actor.die_and_restart()
    actor.gate.set()

    assert (await task).rows == [["hold"]]


async def test_a_repeated_write_that_fails_again_is_of_unknown_outcome(make, actor):
    channel = make()
    task = asyncio.create_task(_perform(channel, "hold", WRITE, key="k"))
    for _ in range(2):
        await _until(lambda: actor.held)
        await actor.die_and_restart()
        await _until(lambda: not actor.held)

    with pytest.raises(OutcomeUnknownError):
        await task


async def test_what_was_not_sent_waits_for_the_actor_and_is_done_once(make, actor):
    channel = make(sent_max=1)
    first = asyncio.create_task(_perform(channel, "hold", WRITE))
    await _until(lambda: actor.held)
    queued = asyncio.create_task(_perform(channel, "queued", WRITE))
    await asyncio.sleep(0)
    actor.alive = False
    await actor.die_and_restart()
    with pytest.raises(OutcomeUnknownError):
        await first

    actor.alive = True

    assert (await queued).rows == [["queued"]]
    assert actor.done == ["queued"]


async def test_an_actor_that_never_comes_back_is_unavailable_and_nothing_was_done(make, actor):
    actor.alive = False
    channel = make(restart_timeout_s=0.01)

    with pytest.raises(UnavailableError, match="nothing was done"):
        await _perform(channel, 1, WRITE)

    actor.alive = True
    assert (await _perform(channel, 1, WRITE)).rows == [[1]]


async def test_the_deadline_ends_the_wait_for_an_actor(make, actor):
    actor.alive = False
    channel = make()

    with pytest.raises(StatementTimeoutError, match="nothing was done"):
        await _perform(channel, 1, WRITE, deadline_s=0.01)


@pytest.mark.parametrize(
    ("query", "kind"), [(READ, UnavailableError), (WRITE, OutcomeUnknownError)]
)
async def test_an_actor_that_is_stuck_is_noticed_by_the_deadline(
    make, actor, monkeypatch, query, kind
):
    monkeypatch.setattr("tenancy.data_isolation.actors.channel._GRACE_S", 0.01)
    channel = make(restart_timeout_s=0.01)
    await _perform(channel, "warm")
    actor.deaf = True

    stuck = asyncio.create_task(_perform(channel, 1, query, deadline_s=0.01))
    with pytest.raises(TenancyError) as late:
        await stuck

    assert type(late.value) is (StatementTimeoutError if query is READ else OutcomeUnknownError)
    await _until(lambda: channel.statistics.lost == 1)
    actor.deaf = False
    assert (await _perform(channel, "again")).rows == [["again"]]


async def test_an_error_of_the_connection_itself_reaches_those_who_wait(make, actor):
    async def refused():
        raise OverloadedError("no more actors")

    actor.connect = refused
    channel = make()

    with pytest.raises(OverloadedError, match="no more actors"):
        await _perform(channel, 1)


async def test_a_closed_channel_ends_what_waits_and_takes_no_more(make, actor):
    channel = make()
    read = asyncio.create_task(_perform(channel, "hold"))
    write = asyncio.create_task(_perform(channel, "hold", WRITE))
    await _until(lambda: actor.held == 2)

    await channel.close()

    with pytest.raises(UnavailableError):
        await read
    with pytest.raises(OutcomeUnknownError):
        await write
    with pytest.raises(UnavailableError):
        await _perform(channel, 1)
    assert len(actor.cancelled) == 2


@pytest.mark.parametrize(
    ("query", "harmless"),
    [
        ("select * from orders where id = $1", True),
        ("with a as (select 1) select * from a", True),
        ("select :name", True),
        ("insert into orders values (1)", False),
        ("with a as (delete from orders returning id) select * from a", False),
        ("select book_an_order(1)", False),
        ("not sql", False),
        ("select 1; delete from orders", False),
    ],
)
def test_only_what_certainly_reads_counts_as_harmless(query, harmless):
    assert changes_nothing(query) is harmless
