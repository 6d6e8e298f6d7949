"""Both servers of a move killed at every point. Minutes: `make soak`."""

from __future__ import annotations

import pytest
from support.killed_servers import POINTS, killed_trial

#: In this order each side is once that of either server.
SIDES = ("source", "source", "target", "target")


@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("point", POINTS)
async def test_nothing_is_lost_when_a_server_is_killed(postgres_bin, tmp_path, point):
    trial = await killed_trial(postgres_bin, tmp_path, [(point, side) for side in SIDES])
    assert trial.anomalies == [], str(trial)
