"""Admission: room for so many, a bounded queue, and nothing lost when a waiter gives up."""

from __future__ import annotations

import asyncio

import pytest

from tenancy.data_isolation.core.admission import Admission
from tenancy.data_isolation.core.errors import OverloadedError


async def enter(admission: Admission, leave: asyncio.Event) -> bool:
    async with admission.hold() as waited:
        await leave.wait()
        return waited


async def started(*tasks: asyncio.Task) -> None:
    """Let the tasks run as far as they get by themselves."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_no_more_than_the_bound_are_at_work():
    admission, leave = Admission(at_work_max=2, waiting_max=9, wait_ms=60_000), asyncio.Event()
    tasks = [asyncio.create_task(enter(admission, leave)) for _ in range(5)]
    await started(*tasks)
    assert (admission.at_work, admission.waiting) == (2, 3)

    leave.set()
    assert sorted(await asyncio.gather(*tasks)) == [False, False, True, True, True]
    assert (admission.at_work, admission.waiting) == (0, 0)


async def test_a_full_queue_turns_away_at_once():
    admission, leave = Admission(at_work_max=1, waiting_max=1, wait_ms=60_000), asyncio.Event()
    tasks = [asyncio.create_task(enter(admission, leave)) for _ in range(2)]
    await started(*tasks)

    with pytest.raises(OverloadedError) as caught:
        await enter(admission, leave)
    assert caught.value.retry_after_s is not None
    leave.set()
    await asyncio.gather(*tasks)


async def test_waiting_comes_to_an_end():
    admission, leave = Admission(at_work_max=1, waiting_max=1, wait_ms=1), asyncio.Event()
    task = asyncio.create_task(enter(admission, leave))
    await started(task)

    with pytest.raises(OverloadedError, match="within 1 ms"):
        await enter(admission, leave)
    assert admission.waiting == 0
    leave.set()
    await task


async def test_a_cancelled_waiter_leaves_its_place_to_others():
    admission, leave = Admission(at_work_max=1, waiting_max=1, wait_ms=60_000), asyncio.Event()
    first, second = (asyncio.create_task(enter(admission, leave)) for _ in range(2))
    await started(first, second)
    second.cancel()
    await asyncio.wait([second])

    third = asyncio.create_task(enter(admission, leave))
    await started(third)
    leave.set()

    assert await third
    assert not await first
    assert (admission.at_work, admission.waiting) == (0, 0)


async def test_an_error_inside_gives_the_room_back():
    admission = Admission(at_work_max=1, waiting_max=1, wait_ms=1)

    for _ in range(3):
        with pytest.raises(ValueError, match="inside"):
            async with admission.hold():
                raise ValueError("inside")
    assert admission.at_work == 0
