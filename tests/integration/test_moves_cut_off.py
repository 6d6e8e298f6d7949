"""Movers that lose a request, or its answer, on the way to a server: what was done is looked up."""

from __future__ import annotations

import asyncio

import pytest
from support.cut_moves import POINTS, Stage, staged
from support.faulty_line import Loss
from support.two_servers import TwoServers

#: At these points what was asked for may be done, and everything depends on whether it was.
DECISIVE = ("commit the last rows", "close the source", "flip", "open the target", "flip at once")
#: Trials that are under way at the same time.
AT_ONCE = 4


async def tried_out(stage: Stage, trials: list[tuple[str, Loss]]) -> None:
    """Carry the trials out, some at a time, each with a tenant and a mover of its own."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, point: str, loss: Loss) -> None:
        async with turns:
            await stage.try_out(f"tenant{number}", POINTS[point], loss)

    async with asyncio.TaskGroup() as group:
        for number, (point, loss) in enumerate(trials):
            group.create_task(one(number, point, loss))


@pytest.mark.timeout(180)
async def test_a_line_that_is_cut_loses_no_row_and_leaves_nobody_closed(two_servers: TwoServers):
    trials = [(point, loss) for point in POINTS for loss in (Loss.REQUEST, Loss.ANSWER)]
    async with staged(two_servers, moves_at_once_max=AT_ONCE) as stage:
        await tried_out(stage, trials)


@pytest.mark.timeout(180)
async def test_a_line_on_which_nothing_passes_is_given_up_in_time(two_servers: TwoServers):
    trials = [
        (point, loss) for point in POINTS for loss in (Loss.REQUEST_SILENTLY, Loss.ANSWER_SILENTLY)
    ]
    async with staged(two_servers, moves_at_once_max=AT_ONCE) as stage:
        await tried_out(stage, trials)
