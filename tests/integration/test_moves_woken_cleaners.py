"""Who cleans up after a move, falls asleep over it, and wakes up when the tenant is back.

`make soak` lets cleaners sleep at every step.
"""

from __future__ import annotations

import pytest
from support.sleeping_cleaners import all_slept
from support.two_servers import TwoServers

NAPS = ("drop the tenant's schema", "delete rows")


@pytest.mark.timeout(180)
async def test_a_cleaner_that_wakes_up_takes_nothing_away_that_is_in_use(two_servers: TwoServers):
    await all_slept(two_servers, NAPS)
