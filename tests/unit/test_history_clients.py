"""What the clients of a history note of errors, and how trials end."""

from __future__ import annotations

import asyncio
from collections import Counter, deque

import pytest
from support.history.call import Account, AddItem, Append, Outcome, ReadRegister, Swap, Transfer
from support.history.client import Client
from support.history.nemesis import alongside
from support.history.pace import Pace
from support.history.trial import run_trial

from tenancy.data_isolation.core.errors import (
    ConstraintError,
    OutcomeUnknownError,
    OverloadedError,
    SerializationError,
    ServerUnavailableError,
    StatementTimeoutError,
    TenancyError,
    TenantSuspendedError,
)
from tenancy.data_isolation.core.types import QueryResult

OK, REFUSED, UNKNOWN = Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN
ADD = AddItem(7)
TRANSFER = Transfer(1, Account("current", 1), Account("savings", 1), 1)
DONE = QueryResult(columns=(), rows=[], row_count=1)
BELOW_ZERO = ConstraintError("operation 0: below zero", "23514")


class Script:
    """Gives prepared outcomes, one per execution; the last of them for ever."""

    def __init__(self, *outcomes: QueryResult | BaseException) -> None:
        self.operations = []
        self._outcomes = deque(outcomes)

    async def execute(self, tenant_id, operation):
        return (await self.execute_batch(tenant_id, [operation]))[0]

    async def execute_batch(self, tenant_id, operations, *, atomic=False):
        self.operations += operations
        outcome = self._outcomes.popleft() if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return [outcome for _ in operations]


async def made(action, *outcomes, keyed=False):
    """The call that is noted when the executor does that, and the keys that it was sent."""
    script, calls = Script(*outcomes), []
    await Client("writer", script, "acme", calls, asyncio.Event()).call(action, keyed=keyed)
    (call,) = calls
    assert 0 < call.invoked_ns <= call.completed_ns
    return call, [operation.idempotency_key for operation in script.operations]


@pytest.mark.parametrize(
    ("action", "error", "outcome", "expected"),
    [
        (ADD, OverloadedError(), REFUSED, True),
        (ADD, ServerUnavailableError(), REFUSED, True),
        (ADD, StatementTimeoutError(), REFUSED, True),
        (ADD, SerializationError(), REFUSED, True),
        (ADD, OutcomeUnknownError(), UNKNOWN, True),
        (ADD, ConnectionResetError(), UNKNOWN, True),
        (TRANSFER, BELOW_ZERO, REFUSED, True),
        # A sequence that begins again would show like this.
        (ADD, ConstraintError("duplicate key", "23505"), REFUSED, False),
        (ADD, TenantSuspendedError(), UNKNOWN, False),
        (ADD, TenancyError(), UNKNOWN, False),
        (ADD, KeyError("x"), UNKNOWN, False),
    ],
)
async def test_what_an_error_says_of_the_outcome(action, error, outcome, expected):
    call, _ = await made(action, error)

    assert (call.outcome, call.unexpected is None) == (outcome, expected)
    assert call.errors == (type(error).__name__,)


@pytest.mark.parametrize(
    ("action", "result", "answer"),
    [
        (Append(1, 2), QueryResult(columns=(), rows=[[5]], row_count=1), 5),
        (Swap(1, 2, 3), QueryResult(columns=(), rows=[], row_count=0), False),
        (ReadRegister(1), QueryResult(columns=(), rows=[], row_count=0), None),
    ],
)
async def test_answers(action, result, answer):
    call, _ = await made(action, result)

    assert (call.outcome, call.answer, call.errors) == (OK, answer, ())


async def test_a_write_that_was_acknowledged_and_changed_no_row_is_an_error():
    call, _ = await made(ADD, QueryResult(columns=(), rows=[], row_count=0))

    assert call.unexpected is not None


async def test_a_write_with_a_key_is_sent_again_until_its_outcome_is_known():
    errors = (OutcomeUnknownError(), ServerUnavailableError(), SerializationError())

    call, keys = await made(ADD, *errors, DONE, keyed=True)

    assert call.ok
    assert call.errors == ("OutcomeUnknownError", "ServerUnavailableError", "SerializationError")
    assert len(keys) == 4
    (key,) = set(keys)
    assert key is not None
    assert {key} != set((await made(ADD, DONE, keyed=True))[1])


async def test_a_write_without_a_key_or_refused_at_once_is_not_sent_again():
    assert len((await made(ADD, OutcomeUnknownError()))[1]) == 1
    call, keys = await made(ADD, OverloadedError(), keyed=True)
    assert (call.outcome, len(keys)) == (REFUSED, 1)


async def test_that_a_repetition_is_refused_says_nothing_of_the_first_attempt():
    stop = asyncio.Event()
    stop.set()
    calls = []
    script = Script(OutcomeUnknownError(), OverloadedError())
    await Client("writer", script, "acme", calls, stop).call(ADD, keyed=True)

    assert calls[0].outcome is UNKNOWN
    assert Counter(calls[0].errors)["OverloadedError"] > 1


async def test_a_client_that_gives_up_or_is_cancelled_does_not_know():
    asked = asyncio.Event()

    class Silence:
        async def execute(self, tenant_id, operation):
            asked.set()
            await asyncio.Event().wait()

    calls = []
    client = Client("writer", Silence(), "acme", calls, asyncio.Event())
    await client.call(ADD, patience_s=0.001)
    asked.clear()
    cancelled = asyncio.create_task(client.call(ADD))
    await asked.wait()
    cancelled.cancel()
    await asyncio.wait([cancelled])

    assert [call.outcome for call in calls] == [UNKNOWN, UNKNOWN]
    assert [call.errors for call in calls] == [("TimeoutError",), ("CancelledError",)]
    assert [call.unexpected for call in calls] == [None, None]


async def test_what_a_nemesis_raises_ends_the_trial():
    before = asyncio.all_tasks()

    async def fails(stop: asyncio.Event) -> None:
        raise LookupError("no such thing")

    async def hangs(stop: asyncio.Event) -> None:
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="no such thing"):
        await run_trial(Script(DONE), ["acme"], seconds=30, nemesis=fails)
    with pytest.raises(TimeoutError, match="nemesis"):
        await run_trial(Script(DONE), ["acme"], seconds=0, nemesis=hangs, nemesis_s=0.05)
    assert asyncio.all_tasks() == before


async def test_what_happens_alongside_goes_on_until_the_first_has_ended():
    told, ended = asyncio.Event(), []
    told.set()

    async def first(stop: asyncio.Event) -> None:
        await stop.wait()
        await asyncio.sleep(0)
        ended.append("first")

    async def other(stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append("other")

    async def fails(stop: asyncio.Event) -> None:
        raise LookupError("no such thing")

    await alongside(first, other)(told)
    assert ended == ["first", "other"]
    for pair in ((fails, other), (other, fails)):
        with pytest.raises(LookupError):
            await alongside(*pair)(asyncio.Event())


async def test_turns_come_at_the_rate_and_not_after_the_end():
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    pace, began = Pace(1_000), loop.time()
    for _ in range(11):
        await pace.turn(stop)
    assert loop.time() - began >= 0.0095

    slow = Pace(0.001)
    await slow.turn(stop)
    stop.set()
    await slow.turn(stop)
