"""Movers that lose a request, or its answer, on the way to a server: what was done is looked up.

`make soak` loses every request of a move in every way.
"""

from __future__ import annotations

import pytest
from support.cut_moves import PATIENT, staged, tried_out
from support.faulty_line import Loss
from support.two_servers import TwoServers

#: What was asked for may be done, and everything depends on whether it was.
HELD = [
    ("close the source", Loss.REQUEST),
    ("close the source", Loss.ANSWER_SILENTLY),
    ("flip", Loss.REQUEST),
    ("flip", Loss.ANSWER),
    ("flip", Loss.ANSWER_SILENTLY),
    ("open the target", Loss.REQUEST_SILENTLY),
    ("open the target", Loss.ANSWER),
    ("flip at once", Loss.ANSWER_SILENTLY),
]
#: What a server still has of a session that nobody hears of any more, and what others need of it.
OTHERS = [
    ("make the move's schema", Loss.ANSWER_SILENTLY),
    ("lock a table", Loss.ANSWER_SILENTLY),
    ("write a chunk", Loss.REQUEST_SILENTLY),
    ("take the source away", Loss.REQUEST_SILENTLY),
]


@pytest.mark.timeout(180)
async def test_a_lost_line_loses_no_row_and_leaves_nobody_closed(two_servers: TwoServers):
    async with staged(two_servers, **PATIENT) as stage:
        await tried_out(stage, HELD)


@pytest.mark.timeout(180)
async def test_a_line_on_which_nothing_passes_is_given_up_in_time(two_servers: TwoServers):
    async with staged(two_servers) as stage:
        await tried_out(stage, OTHERS)
