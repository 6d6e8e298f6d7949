"""The actor's side of a connection: slow operations hold up neither answers nor newer requests."""

from __future__ import annotations

import asyncio

import pytest

from tenancy.data_isolation.actors.session import Session
from tenancy.data_isolation.actors.tenant_actor import TenantActor
from tenancy.data_isolation.actors.wire import ResultUnpacker, unpack
from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.core.settings import Settings
from tenancy.data_isolation.core.types import QueryResult


def _result(number=1):
    return QueryResult(columns=(), rows=[], row_count=number)


async def _at_once(outcome):
    return outcome


async def _when(event, outcome):
    await event.wait()
    return outcome


def _numbers(reply):
    return [number for number, _ in list(unpack(reply))[1:]]


@pytest.fixture
async def session():
    return Session(reply_wait_s=0.001, reply_bytes_max=1 << 20)


async def test_a_reply_carries_all_that_ends_together(session):
    for number in range(20):
        session.start(number, _at_once(_result(number)))

    reply = await session.reply(waiting_max=2)

    assert sorted(_numbers(reply)) == list(range(20))
    assert session.idle


async def test_an_answer_that_cannot_travel_spoils_no_other(session, caplog):
    deep = []
    for _ in range(5_000):
        deep = [deep]
    rows = [["kept"], ["kept"]]
    strange = QueryResult(columns=(), rows=[[rows, deep]], row_count=1)
    for number, outcome in enumerate(
        [_result(0), strange, QueryResult(columns=(), rows=rows, row_count=2), strange]
    ):
        session.start(number, _at_once(outcome))

    answers = dict(list(unpack(await session.reply(waiting_max=2)))[1:])
    found = {number: ResultUnpacker().unpack(outcome) for number, outcome in answers.items()}

    assert found[0] == _result(0)
    assert found[2].rows == rows
    assert type(found[1]) is type(found[3]) is TenancyError
    assert session.idle
    assert caplog.text.count("could not be packed") == 2


async def test_a_slow_operation_does_not_hold_up_the_fast_ones_of_its_request(session):
    gate = asyncio.Event()
    session.start(1, _when(gate, _result()))
    session.start(2, _at_once(_result()))

    assert _numbers(await session.reply(waiting_max=2)) == [2]

    late = asyncio.create_task(session.reply(waiting_max=2))
    gate.set()
    assert _numbers(await late) == [1]


async def test_a_request_that_waits_gives_way_to_newer_ones(session):
    gate = asyncio.Event()
    session.start(1, _when(gate, _result()))
    waiting = [asyncio.create_task(session.reply(waiting_max=2)) for _ in range(2)]
    await asyncio.sleep(0)

    newest = asyncio.create_task(session.reply(waiting_max=2))

    assert _numbers(await waiting[0]) == []
    assert not waiting[1].done()
    gate.set()
    replies = await asyncio.gather(waiting[1], newest)
    assert [_numbers(reply) for reply in replies] == [[1], []]


async def test_nobody_waits_when_nothing_is_under_way(session):
    assert _numbers(await session.reply(waiting_max=2)) == []


async def test_a_cancelled_operation_stops_and_has_no_answer(session):
    gate = asyncio.Event()
    stopped = []

    async def work():
        try:
            await gate.wait()
        except asyncio.CancelledError:
            stopped.append(True)
            raise

    session.start(1, work())
    waiting = asyncio.create_task(session.reply(waiting_max=2))
    await asyncio.sleep(0)

    session.cancel(1)

    assert _numbers(await waiting) == []
    assert stopped == [True]
    assert session.idle


async def test_an_operation_that_is_cancelled_before_it_began_leaves_nothing(session):
    session.start(1, _at_once(_result()))
    session.cancel(1)

    assert _numbers(await session.reply(waiting_max=2)) == []
    assert session.idle


async def test_answers_that_do_not_fit_go_with_the_next_reply():
    session = Session(reply_wait_s=0.001, reply_bytes_max=100)
    large = QueryResult(columns=(), rows=[["x" * 200]], row_count=1)
    for number in range(3):
        session.start(number, _at_once(large))

    replies = [await session.reply(waiting_max=2) for _ in range(3)]

    assert [_numbers(reply) for reply in replies] == [[0], [1], [2]]


async def test_a_request_that_ray_gives_up_does_not_take_answers_with_it(session):
    gate = asyncio.Event()
    session.start(1, _when(gate, _result()))
    given_up = asyncio.create_task(session.reply(waiting_max=2))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.gather(given_up, return_exceptions=True)

    gate.set()

    assert _numbers(await session.reply(waiting_max=2)) == [1]


async def test_a_number_that_comes_twice_runs_once(session):
    gate = asyncio.Event()
    session.start(1, _when(gate, _result()))
    session.start(1, _at_once(_result()))
    gate.set()

    assert _numbers(await session.reply(waiting_max=2)) == [1]


async def test_work_that_fails_unforeseen_is_answered_with_an_error(session):
    async def work():
        raise ZeroDivisionError

    session.start(1, work())

    ((_, outcome),) = list(unpack(await session.reply(waiting_max=2)))[1:]
    assert type(ResultUnpacker().unpack(outcome)) is TenancyError


async def test_a_session_whose_client_is_gone_is_abandoned_and_one_that_waits_is_not(session):
    gate = asyncio.Event()
    assert not session.abandoned(60)
    assert session.abandoned(-1)

    session.start(1, _when(gate, _result()))
    waiting = asyncio.create_task(session.reply(waiting_max=2))
    await asyncio.sleep(0)

    assert not session.abandoned(-1)
    gate.set()
    await waiting


class _Begun:
    """A call without a task, as an operation under way is: it can be cancelled, and tells once."""

    def __init__(self, over):
        self._over = over

    def cancel(self):
        self.end(None)

    def end(self, outcome):
        over, self._over = self._over, lambda _: None
        over(outcome)


async def test_a_call_without_a_task_is_answered(session):
    begun = []
    for number in (1, 2):
        assert session.begin(number, lambda over: begun.append(_Begun(over)) or begun[-1])
    waiting = asyncio.create_task(session.reply(waiting_max=2))
    begun[1].end(_result(2))
    begun[0].end(TenancyError("no"))

    assert _numbers(await waiting) == [2, 1]
    assert session.idle


async def test_a_call_without_a_task_may_end_while_it_is_begun(session):
    assert session.begin(1, lambda over: over(_result()) or _Begun(over))

    assert session.idle
    assert _numbers(await session.reply(waiting_max=2)) == [1]


async def test_a_call_that_cannot_be_begun_leaves_nothing(session):
    assert not session.begin(1, lambda over: None)

    assert session.idle
    session.start(1, _at_once(_result()))
    assert _numbers(await session.reply(waiting_max=2)) == [1]


async def test_a_call_without_a_task_that_is_cancelled_has_no_answer(session):
    begun = []
    session.begin(1, lambda over: begun.append(_Begun(over)) or begun[-1])
    session.begin(2, lambda over: begun.append(_Begun(over)) or begun[-1])

    session.cancel(1)
    session.cancel_all()

    assert session.idle
    assert _numbers(await session.reply(waiting_max=2)) == []


async def test_a_call_without_a_task_that_comes_twice_is_begun_once(session):
    begun = []
    for _ in range(2):
        assert session.begin(1, lambda over: begun.append(_Begun(over)) or begun[-1])

    assert len(begun) == 1


async def test_many_that_have_ended_do_not_wait_for_the_rest(postponed_session):
    begun = []
    for number in range(20):
        postponed_session.begin(number, lambda over: begun.append(_Begun(over)) or begun[-1])
    first, second = (asyncio.create_task(postponed_session.reply(waiting_max=2)) for _ in range(2))
    await asyncio.sleep(0)
    for item in begun[:18]:
        item.end(_result())

    assert _numbers(await first) == list(range(18))
    # What ends together with them does not take a second reply that would have nothing to say.
    assert not second.done()
    begun[18].end(_result())
    begun[19].end(_result())
    assert _numbers(await second) == [18, 19]


async def test_who_has_the_turn_takes_along_what_ends_meanwhile(session):
    begun = []
    for number in range(40):
        session.begin(number, lambda over: begun.append(_Begun(over)) or begun[-1])
    first, second = (asyncio.create_task(session.reply(waiting_max=2)) for _ in range(2))
    await asyncio.sleep(0)
    for item in begun[:32]:
        item.end(_result())

    assert len(_numbers(await first)) == 32
    # Ten times what a reply waits for others.
    assert not (await asyncio.wait([second], timeout=0.01))[0]
    begun[32].end(_result())
    assert _numbers(await second) == [32]


async def test_a_call_that_fails_to_begin_leaves_nothing(session):
    with pytest.raises(ZeroDivisionError):
        session.begin(1, lambda over: 1 / 0)

    assert session.idle


async def test_a_request_that_comes_when_many_have_ended_does_not_wait(postponed_session):
    begun = []
    for number in range(20):
        postponed_session.begin(number, lambda over: begun.append(_Begun(over)) or begun[-1])
    for item in begun[:18]:
        item.end(_result())

    assert _numbers(await postponed_session.reply(waiting_max=2)) == list(range(18))


async def test_a_client_that_was_quiet_goes_on_with_its_session(tmp_path):
    """It is the one not heard of for longest, and the one that is asked for."""
    actor = TenantActor("tenancy-shared-default-0", str(tmp_path / "actors.json"))
    session = actor._session("client", Settings())
    session._heard_at -= 3_600

    assert actor._session("client", Settings()) is session
    assert dict(actor._sessions) == {"client": session}


@pytest.fixture
async def postponed_session():
    """One that would wait for hours."""
    return Session(reply_wait_s=10_000.0, reply_bytes_max=1 << 20)
