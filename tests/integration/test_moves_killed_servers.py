"""PostgreSQL servers that are killed in the middle of a move, and started again.

`make soak` kills each of them at each of the points.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.killed_servers import killed_trial

#: One goes to another server with each move, so these are all four of server and side.
KILLS = (
    ("a chunk is copied", "source"),
    ("the copies are compared", "source"),
    ("the source is closed and the placement flipped", "target"),
    ("the placement is about to be flipped", "target"),
)


@pytest.mark.timeout(240)
async def test_nothing_is_lost_when_a_server_is_killed(postgres_bin: Path, tmp_path: Path):
    trial = await killed_trial(postgres_bin, tmp_path, KILLS)
    assert trial.anomalies == [], str(trial)
