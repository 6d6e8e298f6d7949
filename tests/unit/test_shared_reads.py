"""Readers of the same: one asks, the others wait, and when it fails one of them asks next."""

from __future__ import annotations

import asyncio

import pytest

from tenancy.data_isolation.core.errors import (
    OverloadedError,
    ResultTooLargeError,
    StatementError,
    TenancyError,
)
from tenancy.data_isolation.engine.shared_reads import Nothing, SharedReads

COUNTS = (1, 2)


class Readers:
    """Readers of one thing. Each that asks takes what comes next: a result, None or an error."""

    def __init__(self, *answers: bytes | TenancyError | None, followers_max: int = 100) -> None:
        self.shared = SharedReads(followers_max)
        self.answers = list(answers)
        self.asking = self.asked = self.at_once = 0

    async def read(self, until_s: float = 60.0) -> bytes | None:
        until = asyncio.get_running_loop().time() + until_s
        found = await self.shared.join(b"digest", COUNTS, until)
        if isinstance(found, TenancyError):
            raise found
        if isinstance(found, bytes):
            return found
        if found is Nothing.NOT_SHARED:
            return await self._answer()
        with self.shared.asking(b"digest", COUNTS) as reader:
            answer = await self._answer()
            reader.gives(answer)
            return answer

    async def _answer(self) -> bytes | None:
        self.asked += 1
        self.asking += 1
        self.at_once = max(self.at_once, self.asking)
        await asyncio.sleep(0.001)
        self.asking -= 1
        answer = self.answers.pop(0)
        if isinstance(answer, TenancyError):
            raise answer
        return answer

    async def all(self, count: int) -> list[object]:
        return await asyncio.gather(*(self.read() for _ in range(count)), return_exceptions=True)


async def test_after_one_that_failed_one_asks_and_the_others_wait_on():
    readers = Readers(OverloadedError("a"), OverloadedError("b"), b"found")

    outcomes = await readers.all(20)

    assert [type(item) for item in outcomes[:2]] == [OverloadedError] * 2
    assert outcomes[2:] == [b"found"] * 18
    assert (readers.asked, readers.at_once) == (3, 1)


async def test_after_one_that_was_cancelled_another_one_asks():
    readers = Readers(b"found")
    first = asyncio.create_task(readers.read())
    others = asyncio.create_task(readers.all(5))
    while readers.asking == 0:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    first.cancel()

    assert await others == [b"found"] * 5
    assert readers.asked == 2


@pytest.mark.parametrize(
    "error", [StatementError("by zero", "22012"), ResultTooLargeError("too large")]
)
async def test_an_error_that_everybody_would_get_is_asked_for_once(error):
    readers = Readers(error)

    outcomes = await readers.all(20)

    assert outcomes == [error] * 20
    assert readers.asked == 1


async def test_what_cannot_be_kept_keeps_nobody_waiting():
    readers = Readers(*[None] * 20)

    assert await readers.all(20) == [None] * 20
    assert readers.at_once == 19


async def test_no_more_wait_than_may():
    readers = Readers(*[b"found"] * 6, followers_max=4)

    assert await readers.all(10) == [b"found"] * 10
    assert readers.asked == 6


async def test_who_waits_gives_up_when_its_time_is_over():
    readers = Readers(b"found")
    with readers.shared.asking(b"digest", COUNTS):
        until = asyncio.get_running_loop().time()
        assert await readers.shared.join(b"digest", COUNTS, until) is Nothing.NOT_SHARED
        assert await readers.shared.join(b"digest", (1, 3), until) is Nothing.NOBODY
