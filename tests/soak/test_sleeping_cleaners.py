"""Cleaners that sleep at every step until the tenant is back. Minutes: `make soak`."""

from __future__ import annotations

import pytest
from support.sleeping_cleaners import NAPS, all_slept


@pytest.mark.timeout(3_600)
async def test_a_cleaner_that_wakes_up_takes_nothing_away_that_is_in_use(two_servers):
    await all_slept(two_servers, NAPS)
