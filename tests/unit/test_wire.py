"""The protocol: messages in any pieces, answers to the right step, and bounded memory."""

from __future__ import annotations

import asyncio
import itertools
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenancy.data_isolation.core.errors import TenancyError
from tenancy.data_isolation.engine import wire
from tenancy.data_isolation.engine.wire import Exchange, Section, Step, Wire


class Transport:
    """Notes what is written."""

    def __init__(self) -> None:
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


def message(code: bytes, body: bytes = b"") -> bytes:
    return code + struct.pack("!I", len(body) + 4) + body


def row(*values: bytes | None) -> bytes:
    parts = [struct.pack("!h", len(values))]
    for value in values:
        parts.append(struct.pack("!i", -1 if value is None else len(value)) + (value or b""))
    return message(b"D", b"".join(parts))


def error(code: str) -> bytes:
    return message(b"E", b"SERROR\0VERROR\0C" + code.encode() + b"\0Mno\0\0")


BOUND = message(b"2")
READY = message(b"Z", b"I")


def done(tag: bytes = b"SELECT 1") -> bytes:
    return message(b"C", tag + b"\0")


def play(
    sections: list[Section],
    answer: bytes,
    *,
    bytes_max: int = 10_000,
    cuts: tuple[int, ...] = (),
    lose: bool = False,
    act: Callable[[Wire], None] | None = None,
) -> tuple[Exchange, Transport, list[str]]:
    """Send sections, and let the answer come in pieces."""

    async def run() -> tuple[Exchange, Transport, list[str]]:
        transport: Any = Transport()
        heard: list[str] = []
        speaker = Wire(transport, lambda _: heard.append("lost"))
        exchange = Exchange(sections, bytes_max)
        speaker.send(exchange, lambda: heard.append("overflow"))
        places = sorted({0, len(answer), *(cut for cut in cuts if cut < len(answer))})
        for start, end in itertools.pairwise(places):
            speaker.data_received(answer[start:end])
        if lose:
            speaker.connection_lost(None)
        return exchange, transport, heard

    return asyncio.run(run())


def two_sections() -> list[Section]:
    return [
        Section([b"a"], [Step((int, bytes.decode)), Step()]),
        Section([b"b"], [Step((bytes.decode,))]),
    ]


ANSWER = (
    message(b"1")
    + BOUND
    + row(b"1", b"one")
    + row(b"2", None)
    + done(b"SELECT 2")
    + message(b"N", b"SNOTICE\0\0")
    + BOUND
    + done(b"UPDATE 7")
    + READY
    + BOUND
    + row(b"x" * 500)
    + message(b"s")
    + READY
)


@settings(deadline=None)
@given(st.lists(st.integers(1, len(ANSWER) - 1), max_size=30))
def test_answers_reach_their_steps_in_whatever_pieces_they_come(cuts):
    sections = two_sections()
    exchange, transport, heard = play(sections, ANSWER, cuts=tuple(cuts))

    assert exchange.finished.done()
    assert heard == []
    assert transport.written == b"a" + wire.SYNC + b"b" + wire.SYNC
    first, second = sections[0].steps
    assert first.rows == [[1, "one"], [2, None]]
    assert first.tag == b"SELECT 2"
    assert second.tag == b"UPDATE 7"
    last = sections[1].steps[0]
    assert last.rows == [["x" * 500]]
    assert not last.complete
    assert all(section.ended and section.error is None for section in sections)


def test_after_an_error_the_next_section_goes_on():
    sections = two_sections()
    exchange, _, _ = play(
        sections, BOUND + done() + error("23505") + READY + BOUND + row(b"y") + done() + READY
    )

    assert exchange.finished.done()
    assert sections[0].error is not None
    assert sections[0].error["C"] == "23505"
    assert sections[0].at == 1, "the second step is the one that failed"
    assert sections[1].steps[0].rows == [["y"]]


def test_a_section_that_stays_open_ends_with_its_last_step_or_its_error():
    for answer, failed in ((BOUND + done(), False), (error("22012"), True)):
        section = Section([b"a"], [Step()], sync=False)
        exchange, transport, _ = play([section], answer)

        assert exchange.finished.done()
        assert transport.written == b"a" + wire.FLUSH
        assert (section.error is not None) is failed
        assert section.ended is not failed


def test_rows_beyond_the_budget_are_dropped_and_reported_once():
    sections = [Section([], [Step((bytes.decode,))]), Section([], [Step((bytes.decode,))])]
    answer = row(b"a" * 40) + row(b"b" * 40) + row(b"c" * 40) + done() + READY
    exchange, _, heard = play(sections, answer + row(b"d") + done() + READY, bytes_max=110)

    assert heard == ["overflow"]
    assert exchange.overflow is sections[0].steps[0]
    assert sections[0].steps[0].rows == [["a" * 40], ["b" * 40]]
    assert sections[1].steps[0].rows == []
    assert exchange.finished.done()


@given(st.lists(st.integers(1, 99_000), max_size=20))
@settings(deadline=None, max_examples=30)
def test_a_row_that_cannot_fit_is_not_collected_while_it_arrives(cuts):
    async def run() -> None:
        transport: Any = Transport()
        heard: list[str] = []
        speaker = Wire(transport, lambda _: None)
        step = Step((bytes.decode,))
        exchange = Exchange([Section([], [step])], 1_000)
        speaker.send(exchange, lambda: heard.append("overflow"))
        answer = row(b"x" * 100_000) + done() + READY
        places = sorted({0, len(answer), *cuts})
        for start, end in itertools.pairwise(places):
            speaker.data_received(answer[start:end])
            assert sum(map(len, speaker._parts)) < 1_000
        assert heard == ["overflow"]
        assert step.rows == []
        assert step.done
        assert exchange.finished.done()

    asyncio.run(run())


def test_a_value_that_cannot_be_read_is_a_problem_of_its_step_alone():
    sections = [Section([], [Step((int,)), Step((bytes.decode,))])]
    play(sections, row(b"x") + row(b"1") + done() + row(b"fine") + done() + READY)

    first, second = sections[0].steps
    assert isinstance(first.problem, TenancyError)
    assert second.problem is None
    assert second.rows == [["fine"]]


def test_a_description_that_is_not_what_was_expected_leaves_the_rows_as_they_came():
    shape = struct.pack("!h", 1) + b"n\0" + struct.pack("!IhIhih", 0, 0, 25, -1, -1, 0)
    for expected, rows in ((shape, [["7"]]), (b"other", [[b"7"]])):
        execution = Step((bytes.decode,))
        describing = Step()
        describing.expected_shape, describing.relying = expected, execution
        section = Section([], [describing, execution])
        play(
            [section],
            message(b"1")
            + message(b"t", struct.pack("!hI", 1, 23))
            + message(b"T", shape)
            + BOUND
            + row(b"7")
            + done()
            + READY,
        )

        assert execution.rows == rows
        assert wire.parameter_types(describing.parameters) == (23,)
        assert wire.columns(describing.row_shape or b"") == [("n", 25, -1)]
    assert wire.decode_rows([[b"7", None]], (int, int)) == [[7, None]]


@pytest.mark.parametrize(
    "answer",
    [row(b"1"), message(b"G"), done() + done(), message(b"?"), done() + READY + READY],
    ids=["a row for nobody", "COPY", "one answer too many", "not PostgreSQL", "out of turn"],
)
def test_what_makes_no_sense_ends_the_connection(answer):
    steps = [] if answer == row(b"1") else [Step()]
    _, transport, _ = play([Section([], steps)], answer)

    assert transport.aborted


def test_a_lost_connection_ends_the_exchange_and_those_after_it():
    sections = two_sections()
    exchange, _, heard = play(sections, BOUND + row(b"1", b"x") + done(), lose=True)

    assert exchange.finished.done()
    assert exchange.lost
    assert heard == ["lost"]
    assert not sections[0].ended

    async def send_on_closed() -> Exchange:
        transport: Any = Transport()
        speaker = Wire(transport, lambda _: None)
        speaker.connection_lost(None)
        late = Exchange([Section([b"a"], [Step()])], 100)
        speaker.send(late, lambda: None)
        assert transport.written == b""
        return late

    late = asyncio.run(send_on_closed())
    assert late.lost
    assert late.finished.done()


def test_messages_are_spelled_as_the_protocol_says():
    assert wire.parse(b"s1", "select $1") == message(b"P", b"s1\0select $1\0\0\0")
    assert wire.describe(b"s1") == message(b"D", b"Ss1\0")
    assert wire.close_statement(b"s1") == message(b"C", b"Ss1\0")
    assert wire.bind(b"s1", [b"ab", None]) == message(
        b"B", b"\0s1\0" + b"\0\0" + b"\0\2" + b"\0\0\0\2ab" + b"\xff" * 4 + b"\0\0"
    )
    assert wire.execute(5) == message(b"E", b"\0" + b"\0\0\0\5")
    assert wire.FAIL[1:5] == struct.pack("!I", len(wire.FAIL) - 1)
