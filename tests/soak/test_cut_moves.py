"""Every request of a move lost in every way, again and again. Minutes: `make soak`."""

from __future__ import annotations

import random

import pytest
from support.cut_moves import HOLDING, PATIENT, POINTS, staged, tried_out
from support.faulty_line import Loss

ROUNDS = 3
SECONDS = 3_600


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_every_request_of_a_move_can_be_lost_in_every_way(two_servers, seed):
    trials = [(point, loss) for point in POINTS for loss in Loss]
    random.Random(seed).shuffle(trials)
    async with staged(two_servers, **PATIENT) as stage:
        await tried_out(stage, [trial for trial in trials if trial[0] in HOLDING])
    async with staged(two_servers) as stage:
        await tried_out(stage, [trial for trial in trials if trial[0] not in HOLDING])
    print(f"round {seed}: {len(trials)} moves", flush=True)
