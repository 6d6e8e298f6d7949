"""Every request of a move lost in every way, again and again. Minutes: `make soak`."""

from __future__ import annotations

import asyncio
import random

import pytest
from support.cut_moves import POINTS, staged
from support.faulty_line import Loss

ROUNDS = 5
AT_ONCE = 4
SECONDS = 3_600


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_every_request_of_a_move_can_be_lost_in_every_way(two_servers, seed):
    trials = [(point, loss) for point in POINTS for loss in Loss]
    random.Random(seed).shuffle(trials)
    turns = asyncio.Semaphore(AT_ONCE)
    async with staged(two_servers, moves_at_once_max=AT_ONCE) as stage:

        async def one(number: int, point: str, loss: Loss) -> None:
            async with turns:
                await stage.try_out(f"tenant{number}", POINTS[point], loss)

        async with asyncio.TaskGroup() as group:
            for number, (point, loss) in enumerate(trials):
                group.create_task(one(number, point, loss))
    print(f"round {seed}: {len(trials)} moves", flush=True)
